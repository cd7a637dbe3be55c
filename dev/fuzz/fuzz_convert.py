#!/usr/bin/env python3
"""The harness of dev/convert.py: files of every form that it reads, changed at random. Each has to be
converted, or refused with one line and exit code 2. A traceback, another exit code, more than 2 seconds of
processor time or 300 MB of memory is a fault, whose file is kept.

  dev/fuzz/fuzz_convert.py [-max_total_time=SECONDS] [-seed=N] [-artifact_prefix=PREFIX] [FILE…]

FILE: a file that was kept, to read it again and nothing else. The options are libFuzzer's; of others it takes
no notice.
"""
import io
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "dev", "test"))
import checkpoint_files as files  # noqa: E402

MOST_SECONDS, MOST_MEGABYTES = 2, 300
FORMATS = ("bin", "bin", "bin", "open_clip", "hf", "openai-state")  # the output is written by each of them, too


class Hang(BaseException):  # not an Exception: the converter catches those
    pass


def on_time(*_):
    raise Hang


# ---------------------------------------------------------------- inputs

def make_seeds():
    """Small files that are converted: name -> bytes."""
    arrays = files.weights()
    files.put("config.json", files.CONFIG)
    files.torch_zip("zip.pt", files.tensors(arrays))
    files.torch_zip("deflated.pt", files.tensors(arrays), compression=zipfile.ZIP_DEFLATED)
    files.torch_zip("script.pt", files.script(files.weights(dtype="<f2")))
    files.torch_legacy("legacy.pt", files.tensors(arrays))
    files.write_safetensors("plain.safetensors", arrays)
    files.write_safetensors("hf.safetensors", files.hf_tensors(arrays))
    np.savez("plain.npz", **arrays)
    files.run("plain.npz", "--model", "config.json", "-o", "packed.bin")
    names = [n for n in sorted(os.listdir(".")) if n.endswith((".pt", ".safetensors", ".npz", ".bin"))]
    return {name: read(name) for name in [*names, "config.json"]}


def read(path):
    with open(path, "rb") as f:
        return f.read()


def put(path, data):
    with open(path, "wb") as f:
        f.write(data)


# ---------------------------------------------------------------- changes

NUMBERS = [struct.pack(f, n) for f in ("<B", "<H", "<I", "<Q") for n in (0, 1, 2, 127, 128, 255)] + [
    b"\xff" * 2, b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f"]
WORDS = [b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"-1", b"1e999", b"9" * 40, b"NaN", b'"F32"', b'"BF16"', b'"I64"',
         b"\x80\x02", b"\x85R", b"Q", b"s", b"b", b"o", b"\x81", b"h\x00", b"q\x00", b"r\xff\xff\xff\xff", b"(", b"t", b"u", b"\x8a\xff",
         b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b".", b"0", b"2",
         b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"data_offsets", b"__metadata__"]


def change(rng, data, others):
    """One random change."""
    at = rng.randrange(len(data) + 1)
    n = min(rng.choice((1, 1, 2, 4, 8, 32)), len(data) - at)
    kind = rng.randrange(8)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
    if kind == 1 and at < len(data):
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1:]
    if kind == 2:
        number = rng.choice(NUMBERS)
        return data[:at] + number + data[at + len(number):]
    if kind == 3:
        return data[:at] + rng.choice(WORDS) + data[at + rng.choice((0, n)):]
    if kind == 4:
        return data[:at] + data[at + n:]
    if kind == 5:
        return data[:at] + data[at:at + n] * rng.choice((2, 2, 3, 50)) + data[at + n:]
    if kind == 6:
        return data[:at] if rng.randrange(4) == 0 else data
    other = rng.choice(others)
    begin = rng.randrange(len(other) + 1)
    piece = other[begin:begin + rng.randrange(1, 65)]
    return data[:at] + piece + data[at + len(piece):]


def changed(rng, data, others):
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = change(rng, data, others)
    return data


def changed_zip(rng, data, others):
    """A zip with one changed member, whose checksum fits it again: otherwise no reader gets to see it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        members = old.infolist()
        chosen = next((m for m in members if m.filename.endswith(".pkl") and rng.randrange(4)), rng.choice(members))
        for member in members:
            text = old.read(member)
            if member is chosen:
                text = changed(rng, text, others)
                member.filename = member.filename if rng.randrange(20) else changed(rng, b"archive/data/0", others).decode("latin-1")
            new.writestr(zipfile.ZipInfo(member.filename), text, member.compress_type)
    return out.getvalue()


def changed_safetensors(rng, data, others):
    """With a changed header of the right length."""
    length = struct.unpack("<Q", data[:8])[0]
    header = changed(rng, data[8:8 + length], others)
    return struct.pack("<Q", len(header)) + header + data[8 + length:]


def new_input(rng, seeds):
    """-> name of the file, its bytes, the bytes of config.json beside it."""
    name = rng.choice(list(seeds))
    data, others = seeds[name], list(seeds.values())
    if name == "config.json":  # beside a file that is as it was
        return "plain.npz", seeds["plain.npz"], changed(rng, data, others)
    if rng.randrange(3) == 0:
        data = changed(rng, data, others)
    elif data[:2] == b"PK":
        data = changed_zip(rng, data, others)
    elif name.endswith(".safetensors"):
        data = changed_safetensors(rng, data, others)
    else:
        data = changed(rng, data[:4096], others) + data[4096:]
    return name, data, seeds["config.json"]


# ---------------------------------------------------------------- running

def megabytes():
    """The most memory that this process has ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def arguments_for(path, output_format):
    """A TorchScript archive needs --model; a packed file refuses it; the others find the config.json themselves."""
    model = ["--model", "config.json"] if "script" in path else []
    return [path, *model, "-o", "out.bin" if output_format == "bin" else "out", "--format", output_format]


def judge(path, output_format):
    """Converts a file; -> what is wrong, or None."""
    before = megabytes()
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        code, _, err = files.run(*arguments_for(path, output_format))
    except Hang:
        return f"more than {MOST_SECONDS} seconds"
    except BaseException:  # SystemExit, too
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        shutil.rmtree("out", ignore_errors=True)
    if megabytes() - before > MOST_MEGABYTES:
        return f"{megabytes() - before:.0f} MB of memory"
    lines = err.splitlines()
    if code not in (0, 2):
        return f"exit code {code}: {err[:500]}"
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("convert.py: ")):
        return f"{len(lines)} lines: {err[:500]}"
    left = [n for n in ("out.bin.part", "pwned.txt", *(["out.bin"] if code else [])) if os.path.exists(n)]
    if left:
        return f"exit code {code} leaves {left}"
    if os.path.exists("out.bin"):
        os.unlink("out.bin")
    return None


def keep(prefix, name, data, config, what):
    """Keeps the input as a folder, for the file may need the config.json beside it."""
    folder = f"{prefix}crash-{abs(hash((data, config))):x}"
    os.makedirs(folder, exist_ok=True)
    put(os.path.join(folder, name), data)
    put(os.path.join(folder, "config.json"), config)
    print(f"FAULT: {what}\nthe input is {folder}", file=sys.stderr)


def mutate_for(seconds, seed, prefix):
    """-> number of executions, number of faults."""
    rng, seeds, executions, faults = random.Random(seed), make_seeds(), 0, 0
    for name in seeds:
        if name != "config.json":
            code, _, err = files.run(*arguments_for(name, "bin"))
            assert code == 0, (name, err)
    os.unlink("out.bin")
    begin = time.monotonic()
    while time.monotonic() - begin < seconds and faults < 10:
        name, data, config = new_input(rng, seeds)
        put(name, data)
        put("config.json", config)
        what = judge(name, rng.choice(FORMATS))
        executions += 1
        if what:
            faults += 1
            keep(prefix, name, data, config, what)
    return executions, faults


def main(arguments):
    options = dict(a[1:].split("=", 1) for a in arguments if a.startswith("-") and "=" in a)
    paths = [os.path.abspath(a) for a in arguments if not a.startswith("-") and os.path.isfile(a)]
    prefix = os.path.abspath(options.get("artifact_prefix", "."))
    prefix += "/" if options.get("artifact_prefix", "/").endswith("/") else ""
    signal.signal(signal.SIGPROF, on_time)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # a bomb must not take the machine down
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        os.chdir(folder)
        executions, faults = len(paths), 0
        for path in paths:
            for output_format in sorted(set(FORMATS)):
                what = judge(path, output_format)
                if what:
                    faults += 1
                    print(f"FAULT: {path}, --format {output_format}: {what}", file=sys.stderr)
        if not paths:
            executions, faults = mutate_for(float(options.get("max_total_time", 10)), int(options.get("seed", 1)), prefix)
        os.chdir(ROOT)
    print(f"stat::number_of_executed_units: {executions}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
