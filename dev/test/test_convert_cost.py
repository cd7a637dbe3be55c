#!/usr/bin/env python3
"""The cost of dev/convert.py is bounded by the size of what it reads: the worst files of 1 KB to 1 MB that we
could think of, of every kind, generated. Each is refused in one line, in less than 2 s of one core and 300 MB
(doc/limits.md)."""
import io
import itertools
import json
import os
import resource
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np

import checkpoint_files
from checkpoint_files import CONFIG, ROOT, TorchStorage, TorchTensor, check, convert, put, tensors, torch_zip, weights

SECONDS, MEGABYTES = 2.0, 300
LARGE = 1_000_000
CONVERT = os.path.join(ROOT, "dev", "convert.py")
HOSTILE = os.path.join(ROOT, "..", "shared", "cases", "hostile")


def start_up():
    """Seconds of a core that Python, numpy and the tables take before anything is read."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, CONVERT, "--list"], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(arguments):
    """dev/convert.py in a copy of this process: -> exit code, stderr, seconds of a core, megabytes. What takes
    far more than the limits is killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (int(3 * SECONDS), int(3 * SECONDS)))
            resource.setrlimit(resource.RLIMIT_AS, (3 * MEGABYTES << 20,) * 2)
            out, err = os.open("out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open("err", os.O_WRONLY
                                                                                     | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(err, 2)
            code = convert.main([str(a) for a in arguments])
            sys.stdout.flush()
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    with open("err", encoding="utf-8", errors="replace") as f:
        err = f.read()
    return os.waitstatus_to_exitcode(status), err, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def cheap(arguments, what, says="", part=1.0, output=("-o", "out.bin")):
    """Refused in one line that holds `says`. part: how much of the limits this may take."""
    code, err, seconds, megabytes = measured([*arguments, *output])
    if os.environ.get("VERBOSE"):
        print(f"{seconds:5.2f} s {megabytes:4.0f} MB  {what}: {err.strip()[:110]}")
    check(code == 2 and err.count("\n") == 1 and says in err, f"{what}: exit {code}: {err[:300]!r}")
    check(seconds < part * (SECONDS - START_UP) and megabytes < MEGABYTES,
          f"{what}: {seconds:.2f} s and {START_UP:.2f} s to start, {megabytes:.0f} MB")


# ---------------------------------------------------------------- pickles

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x09tQ"
AXES = b"(" + 8 * b"K\x01" + b"t"
ARGUMENTS = b"(" + STORAGE + b"K\x00" + AXES + AXES + b"tq\x000ctorch._utils\n_rebuild_tensor_v2\nq\x010"
NAME = b"X\xf4\x01\x00\x00" + 500 * b"n"

# What is repeated until the file is full, and what comes before: opcodes that make the most of few bytes.
REPEATED = {
    "lists": (b"", b"]"), "dicts": (b"", b"}"), "marks": (b"", b"("), "nones": (b"", b"N"), "copies": (b"]", b"2"),
    "frames": (b"", b"\x95" + 8 * b"\xff"), "floats": (b"", b"G12345678"), "texts": (b"", b"X\x00\x00\x00\x00"),
    "memoized": (b"", b"]\x940"), "pushed and popped": (b"", b"]0"), "marked and popped": (b"", b"(]1"),
    "lists of lists": (b"]", b"](]]e"), "sets": (b"", b"\x8f(NN\x90"), "tuples": (b"", b")\x85"),
    "deep tuples": (b"N", b"\x85"), "twice itself": (b")", b"q\x00h\x00\x86"), "deep dicts": (b"}", b"q\x000}Kah\x00s"),
    "nested tuples as values": (b"}q\x00)", b"q\x01h\x01\x86q\x01h\x000"),
    "a list in itself": (b"]q\x00", b"h\x00a"), "a dict in itself": (b"}q\x00", b"K\x01h\x00s"),
    "long integers": (b"", b"\x8a\xff" + 255 * b"\x7f"), "text integers": (b"", b"I" + 400 * b"9" + b"\n"),
    "classes": (b"", b"c__torch__\nM\n"), "modules": (b"c__torch__\nM\nq\x00", b"h\x00)\x81"),
    "deep modules": (b"c__torch__\nM\n)\x81", b"q\x000c__torch__\nM\n)\x81}K\x01h\x00sb"),
    "calls": (b"ctorch\ndevice\n", b"2)R0"), "dict calls": (b"ccollections\nOrderedDict\nq\x00", b"h\x00)R"),
    "tensors": (ARGUMENTS, b"h\x01h\x00R"), "storages": (STORAGE[:-1] + b"q\x000", b"h\x00Q"),
    "names": (b"}" + NAME + b"q\x000" + NAME + b"q\x010", b"h\x00Nsh\x01Ns"),
    "names and numbers": (b"}", b"K\x01Ns"), "names without end": (b"", b"cxxxx"),
    "a built dict": (b"}", b"}b"), "extensions": (b"", b"\x82\x01"),
}


def filled(before, repeated, size):
    return b"\x80\x04" + before + repeated * ((size - len(before)) // len(repeated)) + b"."


def pickle_file(data, deflated=False):
    with zipfile.ZipFile("x.pt", "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as z:
        z.writestr("a/data.pkl", data)
    return ["x.pt"]


def test_repeated_opcodes():
    for what, (before, repeated) in REPEATED.items():
        cheap(pickle_file(filled(before, repeated, 1_000)), f"{what}, 1 KB", "x.pt: ")
        put("x.pth", MAGIC + filled(before, repeated, LARGE // 20))
        cheap(["x.pth"], f"{what}, 50 KB, older form", "x.pth: ", part=0.2)
    for what in ("lists", "tensors"):
        cheap(pickle_file(filled(*REPEATED[what], LARGE)), f"{what}, 1 MB", "x.pt: ")
    cheap(pickle_file(filled(*REPEATED["modules"], LARGE), deflated=True), "modules, 1 MB deflated", "x.pt: ")
    cheap(pickle_file(filled(*REPEATED["lists"], 50 * LARGE), deflated=True), "lists, 50 MB deflated", "far smaller")


def colliding(bits, most):
    """A number, and others that occupy the places of a Python dict of 2^bits places where it would go."""
    wanted = perturb = 2_000_000_011
    mask, places = (1 << bits) - 1, {}
    place = wanted & mask
    while len(places) < most:
        places[place] = None
        perturb >>= 5
        place = (5 * place + perturb + 1) & mask
    return wanted, list(places)


def test_the_numbers_do_collide():
    """Or else what follows tests nothing."""
    def seconds(last):
        table = dict.fromkeys(places)
        before = time.process_time()
        for _ in range(100):
            table[last] = None
        return time.process_time() - before
    wanted, places = colliding(17, 80_000)
    check(seconds(wanted) > 20 * seconds(1 << 29), "a dict is as fast with chosen numbers")


def test_what_a_pickle_refers_to_again_and_again():
    """A few bytes that refer to a large value: nothing may copy, hash, compare or print it."""
    half = 500_000
    many = b"(" + half * b"N"
    long = b"X" + struct.pack("<I", half) + half * b"."
    laugh = b")q\x00" + 40 * b"q\x00h\x00\x86"
    wanted, places = colliding(17, 80_000)
    cases = {
        "a nested tuple as a key": b"}" + laugh + b"K\x01s.",
        "a nested tuple as a storage": b"(X\x07\x00\x00\x00storageX\x03\x00\x00\x00F32" + laugh + b"NK\x01tQ.",
        "a nested tuple as a dtype": b"(X\x07\x00\x00\x00storage" + laugh + b"X\x01\x00\x00\x000NK\x01tQ.",
        "a nested tuple as an axis": ARGUMENTS + b"h\x01(" + STORAGE + b"K\x00" + laugh + b"\x85q\x030h\x03h\x03tR.",
        "a nested tuple as a weight": b"}X\x01\x00\x00\x00a" + laugh + b"s.",
        "a nested tuple as a state dict": laugh + b".",
        "arguments": many + b"tq\x000ctorch\nSize\nq\x010" + 100_000 * b"h\x01h\x00R0" + b".",
        "axes": b"(" + half // 4 * b"K\x01" + b"tq\x000ctorch._utils\n_rebuild_tensor_v2\nq\x010(" + STORAGE
                + b"K\x00h\x00h\x00tq\x020" + 80_000 * b"h\x01h\x02R0" + b".",
        "pairs": b"]q\x00(" + 100_000 * b"K\x01K\x02\x86" + b"e0ccollections\nOrderedDict\nq\x010h\x00\x85q\x020"
                 + 80_000 * b"h\x01h\x02R0" + b".",
        "a text as a name": b"}" + long + b"q\x010" + 100_000 * b"h\x01Ns" + b".",
        "a text as a module": long + b"q\x010" + 100_000 * b"h\x01h\x01\x93" + b".",
        "a text as a script's module": b"X" + struct.pack("<I", half) + b"__torch__" + (half - 9) * b"."
                                       + b"q\x010" + 100_000 * b"h\x01h\x01\x93" + b".",
        "a text as a storage": b"(X\x07\x00\x00\x00storageX\x03\x00\x00\x00F32" + long + b"NK\x01tq\x010"
                               + 100_000 * b"h\x01Q0" + b".",
        "numbers that collide": b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in places)
                                + b"J" + struct.pack("<i", wanted) + b"q\x00N" + 150_000 * b"h\x00N" + b"u.",
        "memo entries that collide": b"N" + b"".join(b"r" + struct.pack("<I", n) for n in [*places, wanted])
                                     + 80_000 * (b"j" + struct.pack("<I", wanted) + b"0") + b".",
        "a module's name": b"c__torch__\nM\nq\x00)\x81}" + b"".join(
            b"X\x04\x00\x00\x00%04dh\x00)\x81}" % (i % 10_000) for i in range(80_000)) + 80_000 * b"bs" + b"b.",
        "an integer of the whole file": b"\x8b" + struct.pack("<I", 2 * half) + 2 * half * b"\x7f" + b".",
        "an integer's digits": b"I" + 2 * half * b"9" + b"\n."}
    says = {"arguments": "a call without", "axes": "a malformed tensor", "a text as a name": "500000 characters",
            "a text as a module": "impossible name", "a text as a script's module": "impossible name",
            "a text as a storage": "500000 characters", "a module's name": "a module's name has",
            "an integer of the whole file": "an integer of 1000000 bytes"}
    for what, data in cases.items():
        cheap(pickle_file(b"\x80\x04" + data), what, says.get(what, "x.pt: "))
    for code, form in ((b"X", "<I"), (b"B", "<I"), (b"T", "<I"), (b"\x8d", "<Q"), (b"\x8e", "<Q"), (b"\x96", "<Q")):
        data = b"\x80\x05" + code + struct.pack(form, 3 << 30) + b"."
        put("x.pth", data)
        cheap(["x.pth"], f"3 GB announced by {code}", "announces")
        cheap(pickle_file(data), f"3 GB announced by {code}, in a zip", "announces")


# ---------------------------------------------------------------- tensors that are larger than the file

def test_tensors_larger_than_the_file():
    put("config.json", CONFIG)
    zeros = {name: np.zeros_like(a) for name, a in weights().items()}
    zeros["token_embedding.weight"] = np.zeros((1_000_000, 10), "<f4")
    torch_zip("x.pt", tensors(zeros), zipfile.ZIP_DEFLATED)
    cheap(["x.pt"], "a deflated vocabulary of zeros", "describe tensors")
    np.savez_compressed("x.npz", **zeros)
    cheap(["x.npz"], "a deflated vocabulary of zeros, npz", "describe tensors")
    small = tensors(weights())
    small["token_embedding.weight"] = TorchTensor(np.broadcast_to(np.float32(0), (4_000_000, 16_000)),
                                                  TorchStorage(np.zeros(1, "<f4")), strides=(0, 0))
    torch_zip("x.pt", small)
    cheap(["x.pt"], "a number as a matrix of 256 GB", "describe tensors")
    one = TorchStorage(np.zeros(1_000_000, "<f4"))
    many = {f"b{i}": TorchTensor(np.zeros(2), one, strides=(999_999,)) for i in range(5_000)}
    torch_zip("x.pt", many, zipfile.ZIP_DEFLATED)
    cheap(["x.pt"], "many tensors that span the same storage", "describe tensors")
    many = {f"b{i}": TorchTensor(np.zeros(1), one, offset=999_999) for i in range(5_000)}
    torch_zip("x.pt", many, zipfile.ZIP_DEFLATED)
    cheap(["x.pt"], "many tensors at the end of a deflated storage", "describe tensors")


# ---------------------------------------------------------------- JSON

def header(text):
    return put("x.safetensors", struct.pack("<Q", len(text)) + text)


def test_headers_of_safetensors():
    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    for size in (1_000, LARGE):
        n = size // 10
        entry = '{{"a":{{"dtype":"F32","shape":[{}],"data_offsets":[0,0]}}}}'
        texts = {"a name twice at the end": "{" + ",".join(f'"k{i:05}":1' for i in [*range(n), n - 1]) + "}",
                 "the same name": "{" + ",".join(["\"a\":1"] * (size // 6)) + "}", "nested lists": "[" * size,
                 "nested lists, closed": "[" * (size // 2) + "]" * (size // 2), "nested objects": '{"":' * (size // 4),
                 "lists": "[" + ",".join(["[]"] * (size // 3)) + "]", "digits": '{"a":' + "9" * size + "}",
                 "digits of a fraction": '{"a":1.' + "9" * size + "}", "an exponent": '{"a":1e' + "9" * size + "}",
                 "axes": entry.format(",".join(["9" * 18] * (size // 19))), "axes of 1": entry.format("1" + ",1" * n),
                 "a long dtype": '{"a":{"dtype":"' + "F" * size + '","shape":[],"data_offsets":[0,0]}}',
                 "escapes": '{"' + "\\u0007" * (size // 6) + '":1}',
                 "wide characters": '{"' + "\U0001F600" * (size // 4),
                 "empty tensors": "{" + ",".join(f'"{i}":{empty}' for i in range(size // 56)) + "}",
                 "metadata": '{"__metadata__":{' + ",".join(f'"{i}":""' for i in range(n)) + "}}",
                 "a text without end": '{"' + "a" * size, "backslashes": '{"' + "\\\\" * (size // 2)}
        for what, text in texts.items():
            cheap([header(text.encode("utf-8"))], f"safetensors, {what}, {size} bytes", "x.safetensors: ")


def test_configurations():
    torch_zip("x.pt", tensors(weights()))
    pair = "[" * 900 + "1" + "]" * 900
    deep = f'{{"vision_cfg":{{}},"text_cfg":{{}},"embed_dim":[{pair},{pair}]}}'
    texts = {"two deep lists": deep,
             "a deep list of timm": f'{{"architecture":"a","num_classes":1,"model_args":{{"act_layer":{pair}}}}}',
             "a deep type": f'{{"model_type":{pair}}}',
             "a long type": '{"model_type":"' + "a" * 1_000_000 + '"}',
             "many keys": '{"vision_cfg":{' + ",".join(f'"k{i}":0' for i in range(90_000)) + '},"text_cfg":{}}',
             "digits": '{"embed_dim":' + "7" * 1_000_000 + "}"}
    for what, text in texts.items():
        put("c.json", text.encode())
        cheap(["x.pt", "--model", "c.json"], f"configuration, {what}", "c.json: ")
    os.makedirs("shards", exist_ok=True)
    put("shards/model.safetensors.index.json",
        json.dumps({"weight_map": {f"k{i}": f"f{i}" for i in range(50_000)}}).encode())
    cheap(["shards"], "an index of 50,000 shards", "is missing")


# ---------------------------------------------------------------- zip archives

def npy(shape, length=0):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}".encode().ljust(length)
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text


def archive(members):
    """A deflated archive of members (name, bytes or ZipInfo)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members:
            z.writestr(name, data)
    return out.getvalue()


def test_archives():
    numbers = itertools.count()
    members = {"long headers": npy("0,", 500), "headers of many axes": npy("0," * 160),
               "headers of 5 MB": npy("0,", 5_000_000), "nested headers": npy("(" * 100 + ")" * 100),
               "signs": npy("-" * 300 + "1"), "products": npy("9**" * 100 + "9")}
    for what, data in members.items():
        many = 5_000 if what == "long headers" else 2  # 5,000: 0.9 MB
        put("x.npz", archive((f"{next(numbers)}.npy", data) for _ in range(many)))
        cheap(["x.npz"], f"npz, {what}", "a header of 5" if what == "headers of 5 MB" else "x.npz: ")
    put("x.pt", archive(((f"a/{next(numbers)}" if i else "a/data.pkl"), b"\x80\x02}.") for i in range(8_000)))
    cheap(["x.pt"], "many members", "x.pt: ")
    info = [zipfile.ZipInfo(f"a/{i}" if i else "a/data.pkl") for i in range(9)]
    for i in info:
        i.extra = b"\xfe\xca\0\0" * 16_000
    put("x.pt", archive((i, b"\x80\x02}.") for i in info))
    cheap(["x.pt"], "extra fields", "x.pt: ")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile("x.pt", "w", method) as z:
            z.writestr("a/data.pkl", 900_000 * b"]")
        cheap(["x.pt"], f"method {method}", "neither stored nor deflated")


# ---------------------------------------------------------------- packed files, and what is no worst case

def test_merges_of_a_packed_file():
    wide = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": 49408, "width": 2, "heads": 1}}
    put("c.json", wide)
    code, _, err = checkpoint_files.run("--model", "c.json", "--random", 1, "--dtype", "bf16", "-o", "x.bin")
    check(code == 0, f"a model of a vocabulary of 49408: {err}")
    model = convert.open_packed("x.bin")
    for what, merges in (("empty lines", b"\n" * 700_000), ("pairs", b"a b\n" * 150_000), ("a line", b"a" * 700_000),
                         ("not UTF-8", b"\xff" * 700_000)):
        convert.write_packed(convert.Model("x", model.config, model.entries, merges, "BF16"), "y.bin")
        cheap(["y.bin"], f"merges, {what}", "y.bin: ", output=("-o", "folder", "--format", "hf"))


def test_a_training_checkpoint_of_many_tensors_converts():
    """State of an optimizer with 5,000 parameters next to the weights."""
    put("config.json", CONFIG)
    one = TorchStorage(np.zeros(3, "<f4"))
    state = {i: {"step": TorchTensor(np.zeros(()), one), "exp_avg": TorchTensor(np.zeros(3), one),
                 "exp_avg_sq": TorchTensor(np.zeros(3), one)} for i in range(5_000)}
    groups = [{"lr": 1e-3, "betas": (0.9, 0.98), "params": list(range(5_000)), "fused": None, "foreach": True}]
    torch_zip("x.pt", {"epoch": 3, "name": "run", "state_dict": tensors(weights()),
                       "optimizer": {"state": state, "param_groups": groups}, "scaler": {"scale": 65536.0}})
    checkpoint_files.convert_and_expect(["x.pt"], weights(), "a training checkpoint with 15,000 tensors")


def test_shared_cases():
    for name in ("legacy_ba.pt", "laugh_hash.pt", "bigint.pt", "bomb.pt", "dq.safetensors"):
        path = os.path.join(HOSTILE, name)
        if os.path.exists(path):
            cheap([path], name, f"{name}: ")


START_UP = start_up()

if __name__ == "__main__":
    sys.exit(checkpoint_files.run_tests(globals()))
