#!/usr/bin/env python3
"""Runs of several processes (make MPI=1, mpirun) compute the weights of one process, byte for byte; they end together.

Without mpicc or mpirun nothing is tested, in one line; with NEED_MPI=1 (.ci/run) that is a failure.
"""
import os
import shutil
import signal
import subprocess
import sys
import time

import checks
import train_runs
from train_runs import ROOT, check, checkpoint, environment, expect_same, folder, main, newest, records, shown, write

BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"), "mpi")
ONE, MANY = train_runs.PROGRAM, os.path.join(BUILD, "train_clip")
MPIRUN = ["mpirun", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
LIMIT = 60

SMALL = ["--model", "small.json", "--train-data", "synthetic", "--train-num-samples", 60, "--keep-states", 0, "--precision", "fp32", "--lr", 1e-2,
         "--ema-decay", 0.9, "--grad-clip-norm", 0.5, "--seed", 3]
WORDS = ["--model", "words.json", "--train-data", "shapes/train.csv", "--keep-states", 0, "--lr", 1e-2, "--ema-decay", 0.9, "--grad-clip-norm", 0.5,
         "--positives", "mask", "--lock-image", "--lock-image-unlocked-groups", 2, "--seed", 3]


def start(processes, *arguments):
    command = [ONE] if processes == 1 else [*MPIRUN, "-n", processes, MANY]
    return subprocess.Popen([*map(str, [*command, *arguments])], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")


def finish(process):
    return train_runs.finish(process, LIMIT)


def works(processes, *arguments):
    code, out, err = finish(start(processes, *arguments))
    check(code == 0 and not err, f"{processes} processes, {shown(arguments)}: exit {code}, stderr {err[-600:]!r}")
    return out


def refused(processes, says, *arguments, code=2):
    got, out, err = finish(start(processes, *arguments))
    check(got == code and says in err and err.count("train_clip: ") == 1, f"{processes} processes, {shown(arguments)}: exit {got}, stderr {err[-900:]!r} should say {says!r}")


def test_many_processes_have_the_bits_of_one():
    for K in (2, 3, 4):
        works(1, *SMALL, "--batch-size", 3, "--accum-freq", K, "--steps", 7, "--force-patch-dropout", 0.3, "--name", f"one{K}")
        out = works(K, *SMALL, "--batch-size", 3, "--steps", 7, "--force-patch-dropout", 0.3, "--name", f"many{K}")
        check(f"processes    {K}, each 1 x 3 pairs a step; exchange " in out, f"{K} processes are announced: {out[-2000:]!r}")
        expect_same(f"one{K}", f"many{K}", f"{K} processes")


def test_broken_images_are_replaced_as_in_one_process():
    images = sorted(os.path.join(path, f) for path, _, files in os.walk("shapes") for f in files if f.endswith((".png", ".jpg", ".webp")))
    for image in images[3::9]:
        shutil.copy(image, image + ".whole")
        write(image, "not an image")
    works(1, *WORDS, "--batch-size", 5, "--accum-freq", 3, "--steps", 9, "--name", "one")
    works(3, *WORDS, "--batch-size", 5, "--steps", 9, "--name", "many")
    expect_same("one", "many", "broken images")
    skipped = [open(os.path.join(folder(name), "skipped.txt")).read() for name in ("one", "many")]
    check(skipped[0] == skipped[1] and skipped[0].count("\n") > 2, f"skipped samples: {skipped}")
    for image in images[3::9]:
        os.replace(image + ".whole", image)


def test_both_ways_at_once_are_equal_up_to_rounding():
    works(1, *SMALL, "--batch-size", 3, "--accum-freq", 4, "--steps", 5, "--name", "one")
    out = works(2, *SMALL, "--batch-size", 3, "--accum-freq", 2, "--steps", 5, "--name", "both")
    check("equal to one process up to rounding" in out, "2 x 2 is announced as rounded")
    for a, b in zip(records("one"), records("both")):
        check(abs(a["loss"] - b["loss"]) <= 1e-5 * a["loss"], f"losses {a['loss']} and {b['loss']}")


def test_another_number_of_processes_goes_on():
    """A killed run, by SIGKILL to mpirun's children or SIGUSR1 to one: resumed with 1, 2 and 4 processes to the same bits."""
    run = [*SMALL, "--steps", 60, "--save-steps", 7, "--save-frequency", 0, "--batch-size", 3]
    works(1, *run, "--accum-freq", 4, "--name", "whole")
    for processes, then in ((4, 1), (1, 4), (4, 4)):
        shutil.rmtree(folder("cut"), ignore_errors=True)
        p = start(processes, *run, "--accum-freq", 4 // processes, "--name", "cut")
        train_runs.wait_for(p, lambda: os.path.exists(checkpoint("cut", "step_14.state")))
        children = subprocess.run(["pgrep", "-P", str(p.pid)], capture_output=True, text=True).stdout.split()
        begin = time.monotonic()
        os.kill(int(children[-1]) if processes > 1 else p.pid, signal.SIGKILL)
        code, _, err = finish(p)
        check(code != 0 and time.monotonic() - begin < 10, f"a killed process: exit {code} after {time.monotonic() - begin:.1f} s, {err[-300:]!r}")
        out = works(then, "--name", "cut", "--resume", "latest")
        check(then == processes or "with the same bits" in out, f"{processes} to {then}: says what it means: {out[-1500:]!r}")
        expect_same("whole", "cut", f"killed with {processes} processes, resumed with {then}")
    refused(3, "steps of 12 pairs", "--name", "cut", "--resume", "latest", "--batch-size", 5)


def test_a_signal_to_one_process_ends_all_and_saves():
    p = start(2, *SMALL, "--steps", 100000, "--batch-size", 3, "--save-frequency", 0, "--name", "signal")
    train_runs.wait_for(p, lambda: train_runs.lines_in("logs/signal/metrics.jsonl") > 5)
    children = subprocess.run(["pgrep", "-P", str(p.pid)], capture_output=True, text=True).stdout.split()
    begin = time.monotonic()
    os.kill(int(children[-1]), signal.SIGUSR1)
    code, out, err = finish(p)
    check(code == 128 + signal.SIGUSR1 and time.monotonic() - begin < 10, f"SIGUSR1: exit {code} after {time.monotonic() - begin:.1f} s, {err[-300:]!r}")
    check("go on with" in out and newest("signal").startswith("step_"), f"it saves: {out[-300:]!r}")


def test_what_several_processes_cannot_do_is_refused():
    refused(2, "fewer than a step of 2 processes", *SMALL, "--batch-size", 40, "--name", "no")
    refused(2, "--cache-images: works in one process", *WORDS, "--batch-size", 4, "--cache-images", "x", "--name", "no")
    refused(2, "--model none.json", "--model", "none.json", "--train-data", "synthetic")
    check(not os.path.exists(folder("no")), "a refused run leaves no folder")
    process = subprocess.Popen([ONE, *map(str, SMALL)], env=dict(environment(), OMPI_COMM_WORLD_SIZE="3"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    code, out, err = finish(process)
    check(code == 2 and err.startswith("train_clip: started as 3 processes") and err.count("\n") == 1, f"a build without MPI: exit {code}, {err!r}")


if __name__ == "__main__":
    missing = [tool for tool in ("mpicc", "mpirun") if not shutil.which(tool)]
    if missing or "sanitize" in BUILD:
        need = bool(missing) and os.environ.get("NEED_MPI") == "1"
        print(f"{'FAILED ' if need else ''}several processes are not tested: " + (f"{' and '.join(missing)} not found (dev/setup.sh --mpi)" if missing else "MPI's own leaks"))
        print(f"{int(not need)} passed, {int(need)} failed")
        sys.exit(need)
    flags = [] if "CFLAGS" in os.environ else ["CFLAGS=-O1 -Wall -Wextra"]
    subprocess.run(["make", "-s", "--no-print-directory", "MPI=1", f"BUILD={BUILD}", f"BIN={BUILD}/", *flags, MANY], cwd=ROOT, check=True)
    sys.exit(main(globals()))
