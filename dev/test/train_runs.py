"""Runs of the real program, for the test_run_*.py: how to start it, what it must say, and what it leaves in its run folder.

BIN= names the folder of train_clip.
"""
import glob
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import checks
from checks import check
from seals import unsealed

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.join(ROOT, os.environ.get("BIN", ""), "train_clip")
LIMIT = 120  # seconds; every run is shorter

# Sizes that are not multiples of anything. SMALL has no tokenizer, so it trains on synthetic pairs alone.
SMALL = {"embed_dim": 9, "vision_cfg": {"image_size": 19, "patch_size": 6, "width": 15, "head_width": 5, "layers": 2},
         "text_cfg": {"context_length": 7, "vocab_size": 97, "width": 12, "heads": 3, "layers": 2}}
WORDS = {"embed_dim": 8, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 24, "head_width": 12, "layers": 2},
         "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 1}}
SYNTHETIC = ["--model", "small.json", "--train-data", "synthetic", "--train-num-samples", 50, "--batch-size", 8, "--keep-states", 0]
IMAGES = ["--model", "words.json", "--train-data", "shapes/train.csv", "--batch-size", 8, "--keep-states", 0]
LABELLED = ["--zeroshot-data", "shapes/val.csv", "--classnames", "shapes/classnames.txt"]


# ---------------------------------------------------------------- starting the program

def environment(threads=1, isa=None):
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="passive", OMP_DYNAMIC="false")
    env.pop("CLIPC_ISA", None)
    if isa:
        env["CLIPC_ISA"] = isa
    return env


def start(*arguments, threads=1, isa=None, **more):
    return subprocess.Popen([PROGRAM, *map(str, arguments)], env=environment(threads, isa), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", **more)


def finish(process, limit=LIMIT):
    """-> exit code (negative: a signal), stdout, stderr"""
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err += "timed out\n"
    return process.returncode, out, err


def run(*arguments, **how):
    return finish(start(*arguments, **how))


def works(*arguments, **how):
    """Ends with 0 and nothing on stderr, or with says=text one line that contains the text; -> stdout"""
    says = how.pop("says", None)
    code, out, err = run(*arguments, **how)
    lines = err.splitlines()
    right = code == 0 and (len(lines) == 1 and says in err and err.startswith("train_clip: ") if says else not err)
    check(right, f"{shown(arguments)}: exit {code}, stderr {err[-600:]!r}" + (f", should say {says!r}" if says else ""))
    return out


def shown(arguments):
    return "train_clip " + " ".join(map(str, arguments))


def tree():
    """All files with size and time of change: what a refused command must leave alone."""
    found = {}
    for folder, _, files in os.walk("."):
        found[folder] = None
        for name in files:
            path = os.path.join(folder, name)
            state = os.lstat(path)
            found[path] = (state.st_size, state.st_mtime_ns)
    return found


def refused(says, *arguments, code=2, writes=False, **how):
    """Ends with `code` and one line on stderr that begins with the program's name and holds `says`; nothing written."""
    before = tree()
    got, out, err = run(*arguments, **how)
    one = err.startswith("train_clip: ") and err.count("\n") == 1 and err.endswith("\n")
    check(got == code and one and says in err, f"{shown(arguments)}: exit {got} instead of {code}, stderr {err[-600:]!r} should say {says!r}")
    if not writes:
        check(tree() == before, f"{shown(arguments)}: wrote {sorted(set(tree()) ^ set(before)) or 'into a file'}")
    return err


# ---------------------------------------------------------------- what a run leaves

def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "w" if isinstance(data, str) else "wb") as f:
        f.write(data)
    return path


def folder(name):
    return f"logs/{name}"


def checkpoint(name, stem):
    return f"logs/{name}/checkpoints/{stem}"


def stems(name):
    return sorted(f[:-4] for f in os.listdir(checkpoint(name, "")) if f.endswith(".bin") and not f.endswith("_ema.bin"))


def records(name):
    with open(f"logs/{name}/metrics.jsonl") as f:
        return [json.loads(line) for line in f]


def curve(name):
    """The records without their times: what the settings determine."""
    timed = ("samples_per_second", "data_time", "batch_time")
    return [{key: value for key, value in r.items() if key not in timed} for r in records(name)]


def header_bytes(data):
    """Of a state file without its seal: its header ends with the bytes of settings, the count of tensors, the count of numbers."""
    for end in range(64, 256, 8):
        settings, _, floats = struct.unpack_from("<3q", data, end - 24)
        if end + settings + 4 * floats == len(data):
            return end, settings
    raise ValueError("no training state")


def moments(path):
    """Steps done, and the numbers (m, v, moving average) of a state file."""
    data = unsealed(read(path))
    return struct.unpack_from("<q", data, 16)[0], data[sum(header_bytes(data)):]


def newest(name):
    return max((stem for stem in stems(name) if os.path.exists(checkpoint(name, stem + ".state"))), key=lambda stem: (moments(checkpoint(name, stem + ".state"))[0], stem))


def expect_same(one, other, what, log=True):
    """Two runs ended with the same weights and optimizer state, and wrote the same records."""
    last, its = newest(one), newest(other)
    check(read(checkpoint(one, last + ".bin")) == read(checkpoint(other, its + ".bin")), f"{what}: weights differ ({last}, {its})")
    check(moments(checkpoint(one, last + ".state")) == moments(checkpoint(other, its + ".state")), f"{what}: steps or optimizer states differ ({last}, {its})")
    if os.path.exists(checkpoint(one, last + "_ema.bin")):
        check(read(checkpoint(one, last + "_ema.bin")) == read(checkpoint(other, its + "_ema.bin")), f"{what}: moving averages differ ({last}, {its})")
    check(not glob.glob(checkpoint(other, "*.part")), f"{what}: left {glob.glob(checkpoint(other, '*.part'))}")
    if log:
        a, b = curve(one), curve(other)
        check(a == b, f"{what}: {len(b)} records instead of {len(a)}, the first that differs: {next((p for p in zip(a, b) if p[0] != p[1]), None)}")


def lines_in(path):
    try:
        return read(path).count(b"\n")
    except FileNotFoundError:
        return 0


def wait_for(process, ready):
    """Until ready() or the process has ended; True: it still runs."""
    end = time.monotonic() + LIMIT
    while process.poll() is None and not ready() and time.monotonic() < end:
        time.sleep(0.0005)
    return process.poll() is None


# ---------------------------------------------------------------- all tests of a file

def main(names, count=64):
    """Runs the tests among a module's globals() in a temporary folder with `count` drawn images and two model files; -> exit code"""
    if not os.path.exists(PROGRAM):
        print(f"FAILED {PROGRAM} is not built; run make\n0 passed, 1 failed")
        return 1
    shapes = [sys.executable, os.path.join(ROOT, "dev/data/make_shapes.py"), "--out", "shapes", "--count", str(count)]
    with tempfile.TemporaryDirectory(prefix="test_run.") as scratch:
        os.chdir(scratch)
        subprocess.run(shapes, check=True, stdout=subprocess.DEVNULL)
        write("small.json", json.dumps(SMALL))
        write("words.json", json.dumps(WORDS))
        for test in checks.tests_of(names):
            begin = time.monotonic()
            checks.run(test)
            if os.environ.get("VERBOSE"):
                print(f"{time.monotonic() - begin:6.1f} s  {test.__name__}", flush=True)
            shutil.rmtree("logs", ignore_errors=True)
        os.chdir(ROOT)
    return checks.report()
