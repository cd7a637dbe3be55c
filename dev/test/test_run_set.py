#!/usr/bin/env python3
"""A save is whole or absent, as a set: killed before any system call that changes a file, or with any of them failing, a run ends with the files of the undisturbed one.

  ALL=1 dev/test/test_run_set.py       every call, not a sample of them (some ten minutes)
"""
import errno
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time

import syscalls
from seals import sealed, unsealed
from train_runs import (PROGRAM, check, curve, environment, finish, header_bytes, main, read, run, start, tree, wait_for, works, write)

ALL = bool(os.environ.get("ALL"))
SAMPLE = 14  # calls of each test without ALL
NAME = "logs/run/checkpoints/"
# every kind of file at once: numbered with and without a new best, best alone, latest, moving average, what is pruned
OPTIONS = ["--model", "../small.json", "--train-data", "synthetic", "--train-num-samples", 50, "--batch-size", 8, "--steps", 10, "--save-steps", 4, "--ema-decay", 0.9,
           "--save-most-recent", "--val-data", "synthetic", "--val-num-samples", 16, "--eval-steps", 2, "--workers", 1, "--keep-checkpoints", 3, "--name", "run"]


def place(name):
    """A working folder of its own, so that all runs have the same settings."""
    shutil.rmtree(name, ignore_errors=True)
    os.makedirs(name)
    return name


def traced(cwd, *arguments, **how):
    """-> exit code, calls, what it said"""
    output = os.path.abspath("said.txt")
    write(output, "")
    code, calls = syscalls.trace([PROGRAM, *arguments], dict(environment(), ASAN_OPTIONS=os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"), os.path.join(cwd, "logs"), output, cwd=cwd, **how)
    return code, calls, read(output).decode(errors="replace")


def files(cwd):
    """The names of all files of a run, and the contents of its checkpoints."""
    names = sorted(os.path.relpath(os.path.join(folder, f), cwd) for folder, _, found in os.walk(cwd) for f in found)
    return names, {f: read(os.path.join(cwd, f)) for f in names if f.startswith(NAME)}


def records(cwd):
    os.chdir(cwd)
    try:
        return curve("run")
    finally:
        os.chdir("..")


def expect_whole(cwd, what, log=True):
    """The run in `cwd` is resumed to its end, and has the files of the run in `whole`."""
    code, out, err = run("--resume", "latest", "--name", "run", cwd=cwd)
    if code == 2 and ("no complete checkpoint" in err or "has no checkpoint" in err or "is not a run folder" in err):
        left = os.path.isdir(f"{cwd}/{NAME}") and [f for f in os.listdir(f"{cwd}/{NAME}") if f.endswith(".state")]
        check(not left, f"{what}: {left} there, and nothing to resume from")
        return False
    check(code == 0 and not err, f"{what}: resumed with exit {code}, {err[-300:]!r}")
    names, contents = files("whole")
    its_names, its_contents = files(cwd)
    check(names == its_names, f"{what}: files that are missing {sorted(set(names) - set(its_names))}, that are too many {sorted(set(its_names) - set(names))}")
    differ = [f for f in contents if contents[f] != its_contents.get(f)]
    check(not differ, f"{what}: other contents in {differ}")
    if log:
        check(records("whole") == records(cwd), f"{what}: other records")
    return True


def sample(points, seed):
    return points if ALL else sorted(random.Random(seed).sample(points, min(SAMPLE, len(points))))


def undisturbed():
    """The run that the others are compared with; -> its calls"""
    code, calls, said = traced(place("whole"), *OPTIONS)
    check(code == 0, f"exit {code}: {said[-300:]}")
    return calls


def test_killed_before_any_call_nothing_is_torn_or_lost():
    if not syscalls.available():
        return check(True, "no ptrace here")
    calls = undisturbed()
    check(len(calls) > 300 and {"write", "fsync", "rename", "link", "unlink", "open"} <= set(calls), f"calls: {len(calls)}, {set(calls)}")
    points = [i for i, name in enumerate(calls) if ALL or name != "write" and i > len(calls) // 4]
    resumed = 0
    for point in sample(points, 1):
        code, _, said = traced(place("killed"), *OPTIONS, kill_at=point)
        check(code == -signal.SIGKILL, f"kill before call {point}: exit {code}: {said[-300:]}")
        resumed += expect_whole("killed", f"killed before call {point} of {len(calls)}, {calls[point]}")
    check(resumed >= SAMPLE // 2, f"only {resumed} of the killed runs had saved")
    if ALL:
        print(f"{len(points)} kill points, {resumed} of them after the first save")


def test_killed_while_it_recovers_nothing_is_torn_or_lost():
    """Killed in the middle of a set, then before each call of the resumed run up to its first step."""
    if not syscalls.available():
        return check(True, "no ptrace here")
    calls = undisturbed()
    renames = [i for i, name in enumerate(calls) if name == "rename"]
    middle = [i for i in renames if calls[i - 3:i] == ["rename"] * 3 and calls[i + 1] == "rename"][-1]
    traced(place("begun"), *OPTIONS, kill_at=middle)
    check(os.path.exists(f"begun/{NAME}manifest") and any(f.endswith(".part") for f in os.listdir(f"begun/{NAME}")), f"{os.listdir('begun/' + NAME)}")
    shutil.copytree("begun", place("killed"), dirs_exist_ok=True)
    code, again, said = traced("killed", "--resume", "latest", "--name", "run")
    check(code == 0 and expect_whole("killed", "resumed in the middle of a set"), f"exit {code}: {said[-300:]}")
    for point in sample(list(range(min(len(again), 40))), 2)[:None if ALL else SAMPLE // 2]:
        shutil.copytree("begun", place("killed"), dirs_exist_ok=True)
        traced("killed", "--resume", "latest", "--name", "run", kill_at=point)
        expect_whole("killed", f"killed before call {point} of the recovery, {again[point]}")


def test_any_call_that_fails_leaves_a_run_that_goes_on():
    """Each call fails once. The run ends with 1 and one line, or goes on; what it leaves resumes to all files."""
    if not syscalls.available() or not syscalls.CAN_FAIL:
        return check(True, "no ptrace here")
    calls = undisturbed()
    errors = {"write": errno.ENOSPC, "fsync": errno.EIO, "rename": errno.EIO, "link": errno.EPERM, "unlink": errno.EACCES, "open": errno.EMFILE, "mkdir": errno.ENOSPC}
    points = [i for i, name in enumerate(calls) if ALL or name != "write" and i > len(calls) // 4]
    for point in sample(points, 3):
        name = calls[point]
        code, _, said = traced(place("failed"), *OPTIONS, fail=lambda index, name: errors[name] if index == point else 0)
        what = f"call {point} of {len(calls)} failing, {name}"
        lines = [line for line in said.splitlines() if line.startswith("train_clip: ")]
        check(code in (0, 1, 2) and len(lines) <= 1 and (code == 0 or len(lines) == 1), f"{what}: exit {code}, {lines}")
        if os.path.isdir("failed/" + NAME):
            expect_whole("failed", what, log=code != 0 or not lines)


def test_best_and_latest_are_links_or_else_copies():
    undisturbed()
    def inode(cwd, name):
        return os.stat(f"{cwd}/{NAME}{name}").st_ino
    for ending in (".bin", ".state", "_ema.bin"):
        check(inode("whole", "best" + ending) == inode("whole", "step_10" + ending), f"best{ending} is no link to step_10{ending}")
    check(inode("whole", "latest.bin") == inode("whole", "step_10.bin"), "latest.bin is no link")
    if not syscalls.available() or not syscalls.CAN_FAIL:
        return
    for error in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP):
        code, _, said = traced(place("copies"), *OPTIONS, fail=lambda _, name: error if name == "link" else 0)
        check(code == 0 and files("copies") == files("whole"), f"without links: exit {code}, {said[-300:]}")
        check(inode("copies", "best.bin") != inode("copies", "step_10.bin"), "links in spite of all")
        if not ALL:
            break


def test_a_damaged_save_that_was_under_way_is_left_out():
    """A manifest or part that is not what was written, or that leads elsewhere, is not used; the checkpoint before it is."""
    if not syscalls.available():
        return check(True, "no ptrace here")
    calls = undisturbed()
    before = next(i for i, name in reversed(list(enumerate(calls))) if name == "rename" and calls[i - 3:i] == ["rename"] * 3)
    first = before - max(n for n in range(12) if calls[before - n:before] == ["rename"] * n)
    for what in ("manifest", "step_10.bin.part", "best.state.part", "stranger"):
        traced(place("damaged"), *OPTIONS, kill_at=first)
        path = f"damaged/{NAME}{'manifest' if what == 'stranger' else what}"
        data = bytearray(read(path))
        data[len(data) // 3] ^= 1
        if what == "stranger":
            data = f"{0:016x} 1 ../../../escaped\n".encode()
        write(path, bytes(data))
        write("damaged/escaped.part", "x")
        code, out, err = run("--resume", "latest", "--name", "run", cwd="damaged")
        check(code == 0 and "is damaged; that save is left out" in err and err.count("\n") == 1, f"{what}: exit {code}, {err!r}")
        check(os.path.exists("damaged/escaped.part"), f"{what}: a manifest led out of the folder")
        os.unlink("damaged/escaped.part")
        check(files("damaged") == files("whole"), f"{what}: other files")


def test_one_process_in_a_run_folder():
    steps = OPTIONS + ["--steps", 1000000]
    del steps[steps.index(10) - 1:steps.index(10) + 1]
    process = start(*steps, cwd=place("busy"))
    wait_for(process, lambda: os.path.exists(f"busy/{NAME}step_4.state"))
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.05)
    for arguments in (["latest", "--name", "run"], [NAME + "step_4.bin"]):
        before = tree()
        code, _, err = run("--resume", *arguments, cwd="busy")
        check(code == 2 and f"logs/run: process {process.pid} trains there" in err and err.count("\n") == 1, f"a second process: exit {code}, {err!r}")
        check(tree() == before, "a second process wrote")
    process.send_signal(signal.SIGKILL)
    finish(process)
    first = start("--resume", "latest", "--name", "run", cwd="busy")  # the lock went with the process
    check(wait_for(first, lambda: b"\nresumed " in read("busy/logs/run/out.log")), "a killed process still has the folder")
    first.kill()
    finish(first)


def test_states_and_checkpoints_that_are_kept():
    plain = ["--model", "../small.json", "--train-data", "synthetic", "--train-num-samples", 50, "--batch-size", 8, "--epochs", 5, "--name", "run"]
    numbers = range(1, 6)
    for options, weights, states in (([], numbers, (4, 5)), (["--keep-states", 0], numbers, numbers), (["--keep-states", 1], numbers, (5,)), (["--keep-checkpoints", 3], (3, 4, 5), (4, 5)),
                                     (["--keep-checkpoints", 1, "--keep-states", 4], (5,), (5,)), (["--delete-previous-checkpoint"], (5,), (5,))):
        works(*plain, *options, cwd=place("kept"))
        want = sorted([f"epoch_{n}.bin" for n in weights] + [f"epoch_{n}.state" for n in states])
        check(sorted(os.listdir("kept/" + NAME)) == want, f"{options}: {sorted(os.listdir('kept/' + NAME))} instead of {want}")
    works(*plain, "--val-data", "synthetic", "--val-num-samples", 16, "--lr", 0.5, cwd=place("kept"))
    best = read(f"kept/{NAME}best.state")
    check(read(f"kept/{NAME}epoch_1.bin") and len(best) > 0, "best")
    works("--resume", NAME + "best.state", cwd="kept")
    code, _, err = run("--resume", NAME + "epoch_1.bin", cwd="kept")
    check(code == 2 and "epoch_1.state: is not there (--keep-states keeps the newest alone)" in err, f"exit {code}: {err}")
    for name in ("epoch_x.bin", "epoch_01.bin", "epoch_1.bin.bin", "step_.bin", "mine.bin"):  # not the run's
        write(f"kept/{NAME}{name}", "mine")
    works("--resume", NAME + "epoch_4.bin", "--keep-checkpoints", 1, cwd="kept")
    check({"epoch_5.bin", "epoch_5.state", "best.bin", "best.state", "epoch_x.bin", "epoch_01.bin", "epoch_1.bin.bin", "step_.bin", "mine.bin"} == set(os.listdir("kept/" + NAME)), f"{os.listdir('kept/' + NAME)}")


def test_a_run_begun_before_there_was_the_option_keeps_its_states():
    works("--model", "../small.json", "--train-data", "synthetic", "--train-num-samples", 50, "--batch-size", 8, "--epochs", 4, "--keep-states", 0, "--name", "run", cwd=place("old"))
    for n in range(1, 5):
        data = unsealed(read(f"old/{NAME}epoch_{n}.state"))
        end, length = header_bytes(data)
        text = b"".join(line for line in data[end:end + length].splitlines(True) if not line.startswith(b"keep-states "))
        write(f"old/{NAME}epoch_{n}.state", sealed(data[:end - 24] + struct.pack("<q", len(text)) + data[end - 16:end] + text + data[end + length:]))
    os.unlink(f"old/{NAME}epoch_4.state")
    names = files("old")[0]
    works("--resume", "latest", "--name", "run", cwd="old")
    check(files("old")[0] == sorted(names + [NAME + "epoch_4.state"]), f"{files('old')[0]}")
    works("--resume", "latest", "--name", "run", "--keep-states", 1, cwd="old")
    check([f for f in files("old")[0] if f.endswith(".state")] == [NAME + "epoch_4.state"], f"{files('old')[0]}")


def test_a_checkpoint_that_is_not_finite_is_not_saved():
    place("bad")
    works(*OPTIONS, "--delete-previous-checkpoint", cwd="bad")
    names, contents = files("bad")
    code, _, err = run("--resume", "latest", "--name", "run", "--resume-override", "--steps", 11, "--lr", "3e38", "--wd", "1e6", "--warmup", 0, cwd="bad")
    check(code == 1 and "not finite" in err and err.count("\n") == 1, f"exit {code}: {err}")
    check(files("bad")[1] == contents, f"{files('bad')[0]} instead of {names}")


def test_the_disk_that_a_run_needs():
    """The line at the start is what the run then has, with one more checkpoint that is being written; too little is a warning."""
    out = works(*OPTIONS, "--keep-states", 0, cwd=place("disk"))
    line = re.search(r"^disk  +at most ([\d.]+) MB for checkpoints of ([\d.]+) MB; [\d.]+ [MG]B are free$", out, re.M)
    if check(line, f"{[line for line in out.splitlines() if line.startswith('disk')]}"):
        most, one = map(float, line.groups())
        has = sum(os.stat(f"disk/{NAME}{f}").st_size / os.stat(f"disk/{NAME}{f}").st_nlink for f in os.listdir("disk/" + NAME)) / 1e6
        check(has + one - 0.2 < most < has + 2 * one + 0.2, f"{most} MB were announced for checkpoints of {one} MB, and the run has {has} MB")
    endless = [str(o) for o in OPTIONS if o not in ("--keep-checkpoints", 3)]
    endless[endless.index("--steps") + 1] = "900000000000"
    endless[endless.index("--save-steps") + 1] = "1"
    process = start(*endless, "--keep-states", 0, cwd=place("disk"))
    wait_for(process, lambda: os.path.exists(f"disk/{NAME}step_2.state"))
    process.kill()
    code, out, err = finish(process)
    check(" of disk are free, and the run needs up to " in err and err.count("\n") == 1, f"warned {err.count(chr(10))} times: {err!r}")


if __name__ == "__main__":
    if os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"  # where fsync takes no time
    sys.exit(main(globals(), count=16))
