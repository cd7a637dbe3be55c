#!/usr/bin/env python3
"""A short run over images, with workers, caches, moving average, best and evaluation, in which one call of the C library fails, files change under it, or the clocks jump.
It ends with 0 and the bytes of the undisturbed run, or with 1 or 2 and a line that says what failed; what it leaves goes on to the same files.

  ALL=1 dev/test/test_run_faults.py       every call and change, not a sample of them (an hour or two)
  FAULT=malloc:12,open:3                  these calls alone, with what was said
"""
import errno
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from train_runs import (IMAGES, PROGRAM, ROOT, check, checkpoint, curve, environment, lines_in, main, newest, read, start, wait_for, works, write)

ALL = bool(os.environ.get("ALL"))
ONLY = [(name, int(n)) for name, n in re.findall(r"(\w+):(\d+)", os.environ.get("FAULT", ""))]
HANG = 60  # seconds; a run takes less than one
NAME = "logs/run/checkpoints/"
ERRORS = {"malloc": errno.ENOMEM, "pthread_create": errno.EAGAIN, "open": errno.EMFILE, "read": errno.EIO, "pread": errno.EIO, "write": errno.ENOSPC,
          "fsync": errno.EIO, "rename": errno.EIO, "close": errno.EIO}
SAMPLE = {"malloc": 6, "open": 4, "read": 3, "write": 4}  # calls of each function without ALL; of the others 2
DATA = ["--pretrained", "../base.bin", "--train-data", "../data/train.csv", "--val-data", "../data/val.csv", "--batch-size", 4, "--precision", "fp32", "--workers", 2, "--name", "run"]
FILES = ["--feature-cache", "features.cache", "--cache-images", "images.cache"]
CACHES = ["--aug-cfg", "none", "--lock-image", *FILES]
OPTIONS = [*DATA, *CACHES, "--epochs", 2, "--save-steps", 3, "--ema-decay", 0.9, "--save-most-recent", "--keep-checkpoints", 2, "--eval-steps", 3]


def shim():
    """The library that lets calls fail; None: not here, and a line says so once"""
    if not os.path.exists("fault.so"):
        compiler = os.environ.get("CC") or "cc"
        here = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc" and b"__asan_init" not in read(PROGRAM) and shutil.which(compiler)
        if not here:
            print("no glibc, no compiler, or a program with AddressSanitizer: no call was made to fail")
            check(True, "")
            return None
        subprocess.run([compiler, "-std=c11", "-O1", "-fPIC", "-shared", "-o", "fault.so", os.path.join(ROOT, "dev/test/fault.c"), "-ldl"], check=True)
    return os.path.abspath("fault.so")


def place(name):
    shutil.rmtree(name, ignore_errors=True)
    os.makedirs(name)
    return name


def data():
    """base.bin, and images in data/ which the tests may change"""
    if not os.path.exists("base.bin"):
        works(*IMAGES, "--precision", "fp32", "--steps", 1, "--name", "base")
        shutil.copy(checkpoint("base", newest("base") + ".bin"), "base.bin")
    shutil.rmtree("data", ignore_errors=True)
    shutil.copytree("shapes", "data")


def disturbed(cwd, *arguments, **fault):
    """-> exit code (None: it hung), what it said on stderr"""
    env = dict(environment(), LD_PRELOAD=shim(), **{f"FAULT{name}": str(value) for name, value in fault.items()})
    process = subprocess.Popen([PROGRAM, *map(str, arguments)], env=env, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    return end(process)


def end(process):
    try:
        err = process.communicate(timeout=HANG)[1]
        return process.returncode, err
    except subprocess.TimeoutExpired:
        process.kill()
        return None, "hangs; " + process.communicate()[1]


def one_line(code, err, what):
    """No signal, no hang; what fails is one line"""
    lines = [line for line in err.splitlines() if line.startswith(("train_clip: ", "libgomp: "))]
    different = {re.sub(r"\d+", "", line) for line in lines}  # what is left out is said after each epoch
    good = code == 0 or code in (1, 2) and len(lines) == 1
    return check(good and err.count("\n") == len(lines) and len(different) <= 1, f"{what}: exit {code}, stderr {err[-600:]!r}")


def results(cwd):
    """-> the names of the files of a run, the contents of its checkpoints, its records"""
    names = sorted(os.path.relpath(os.path.join(folder, f), cwd) for folder, _, found in os.walk(cwd) for f in found)
    os.chdir(cwd)
    try:
        return names, {f: read(f) for f in names if f.startswith(NAME)}, curve("run")
    finally:
        os.chdir("..")


def same(cwd, what, log=True):
    names, contents, records = results("whole")
    its_names, its_contents, its_records = results(cwd)
    check(names == its_names, f"{what}: files that are missing {sorted(set(names) - set(its_names))}, that are too many {sorted(set(its_names) - set(names))}")
    differ = [f for f in contents if contents[f] != its_contents.get(f)]
    check(not differ, f"{what}: other contents in {differ}")
    check(not log or records == its_records, f"{what}: other records")


def goes_on(cwd, what, options=OPTIONS):
    """The run is resumed, or begun again where it has saved nothing; -> stderr"""
    saved = os.path.isdir(f"{cwd}/{NAME}") and any(f.endswith(".state") for f in os.listdir(f"{cwd}/{NAME}"))
    if not saved:
        shutil.rmtree(f"{cwd}/logs", ignore_errors=True)
    process = start(*(["--resume", "latest", "--name", "run", *FILES] if saved else options), cwd=cwd)
    code, err = end(process)
    check(code == 0 and not err, f"{what}: {'resumed' if saved else 'begun again'}, then exit {code}, {err[-600:]!r}")
    return err


def counted(name):
    """The undisturbed run; -> how often it calls each function"""
    code, err = disturbed(place(name), *OPTIONS, _COUNT=os.path.abspath("counts.txt"))
    check(code == 0 and not err, f"exit {code}, {err[-600:]!r}")
    counts = {line.split()[0]: int(line.split()[1]) for line in read("counts.txt").decode().splitlines()}
    check(all(counts[name] for name in ERRORS), f"calls: {counts}")
    return counts


def points(counts):
    draw = random.Random(5)
    for name in ERRORS:
        every = range(counts[name])
        yield from ((name, n) for n in (every if ALL else sorted(draw.sample(every, min(SAMPLE.get(name, 2), len(every))))))


def test_any_call_that_fails_ends_with_a_line_or_changes_nothing():
    if not shim():
        return
    data()
    counts = counted("whole")
    done, ends = 0, {}
    for name, n in ONLY or points(counts):
        what = f"{name}() number {n} of {counts[name]} failing"
        code, err = disturbed(place("failed"), *OPTIONS, **{"": name, "_AT": n, "_ERRNO": ERRORS[name]})
        one_line(code, err, what)
        left_out = code == 0 and b"passed over" in read("failed/logs/run/out.log")  # an image that could not be read
        if code == 0 and not left_out:
            same("failed", f"{what}, {err!r}", log=not err)
        if code:
            what += f" ({err.strip()})"
            goes_on("failed", what)
            same("failed", what, log=name != "write")
        done += 1
        ends.setdefault((name, code), []).append((n, err.strip()))
        if ONLY:
            print(f"{what}: exit {code} {err.strip()}")
    if ALL:
        print(f"{done} calls failed; exit codes: " + ", ".join(f"{name} {code}: {len(found)}" for (name, code), found in sorted(ends.items(), key=str)))
        for text in sorted({re.sub(r"\d+", "N", e) for found in ends.values() for _, e in found}):
            print("   ", text)


def test_clocks_that_jump_back_change_nothing_and_give_numbers():
    """An hour back, at any moment: same bytes, and no rate or time that is negative or no number"""
    if not shim():
        return
    data()
    counts = counted("whole")
    for n in range(counts["clock"]) if ALL else sorted(random.Random(6).sample(range(counts["clock"]), min(2, counts["clock"]))):
        code, err = disturbed(place("jumped"), *OPTIONS, _JUMP=n)
        what = f"the clocks an hour behind after {n} of {counts['clock']} readings"
        check(code == 0 and not err, f"{what}: exit {code}, {err!r}")
        same("jumped", what)
        for record in map(json.loads, read("jumped/logs/run/metrics.jsonl").decode().splitlines()):
            wrong = {key: value for key, value in record.items() if key in ("samples_per_second", "data_time", "batch_time") and not 0 <= value < math.inf}
            check(not wrong, f"{what}: {wrong}")


# ---------------------------------------------------------------- files that change under the run

def cut(path):
    os.truncate(path, os.path.getsize(path) // 2)


def emptied(folder):
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))


def images():
    return [os.path.join("data/images", name) for name in sorted(os.listdir("data/images"))[:5]]


CHANGES = {"all images deleted": lambda: emptied("data/images"),
           "images deleted": lambda: [os.unlink(path) for path in images()],
           "images cut": lambda: [cut(path) for path in images()],
           "images that are other files": lambda: [write(path, "no image") for path in images()],
           "images that are folders": lambda: [(os.unlink(path), os.mkdir(path)) for path in images()],
           "no table": lambda: os.unlink("data/train.csv"),
           "a table cut": lambda: cut("data/train.csv"),
           "another table": lambda: write("data/train.csv", "filepath,title\n"),
           "an image cache cut": lambda: os.truncate("changed/images.cache", 100),
           "an image cache deleted": lambda: os.unlink("changed/images.cache"),
           "an image cache damaged": lambda: write("changed/images.cache", bytes(os.path.getsize("changed/images.cache"))),
           "a feature cache cut": lambda: os.truncate("changed/features.cache", 100),
           "a feature cache damaged": lambda: write("changed/features.cache", bytes(os.path.getsize("changed/features.cache"))),
           "no folder of checkpoints": lambda: shutil.rmtree("changed/" + NAME),
           "a file in place of the checkpoints": lambda: (shutil.rmtree("changed/" + NAME), write("changed/" + NAME[:-1], "")),
           "no run folder": lambda: shutil.rmtree("changed/logs/run"),
           "a checkpoints folder that is read only": lambda: os.chmod("changed/" + NAME, 0o555)}


def test_files_that_change_under_a_run_end_it_with_a_line_or_not_at_all():
    long = ["--steps", 30, "--save-steps", 10, "--ema-decay", 0.9, "--eval-steps", 10]
    for what, change in CHANGES.items() if ALL else random.Random(8).sample(sorted(CHANGES.items()), 5):
        data()
        cached = "cache" in what
        options = [*DATA, *long, *(CACHES if "feature" in what else ["--cache-images", "images.cache"] if cached else [])]
        process = start(*options, cwd=place("changed"))
        if check(wait_for(process, lambda: lines_in("changed/logs/run/metrics.jsonl") > 2), f"{what}: ended before"):
            process.send_signal(signal.SIGSTOP)
            change()
            process.send_signal(signal.SIGCONT)
        code, err = end(process)
        one_line(code, err, what)
        if os.environ.get("VERBOSE"):
            print(f"       {what}: exit {code} {err.strip()}")
        if os.path.isdir("changed/" + NAME):
            os.chmod("changed/" + NAME, 0o755)


if __name__ == "__main__":
    if os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"  # where fsync takes no time
    sys.exit(main(globals(), count=16))
