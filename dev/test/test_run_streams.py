#!/usr/bin/env python3
"""Signals, streams and limits of the real programs: what ends a run saves it first, a console that is full or gone does not end it, a
result that cannot be written is an error, a small stack and a long name are enough."""
import io
import os
import resource
import signal
import subprocess
import sys
import tarfile

from train_runs import (IMAGES, LABELLED, LIMIT, PROGRAM, SYNTHETIC, check, checkpoint, environment, expect_same, finish, lines_in, main,
                        moments, read, refused, run, start, stems, wait_for, works, write)

FOLDER = os.path.dirname(PROGRAM)
FULL = os.path.exists("/dev/full")


def program(name, *arguments, **how):
    """Runs any of the programs; -> exit code, stdout, stderr"""
    given = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment(), timeout=LIMIT)
    done = subprocess.run([os.path.join(FOLDER, name), *map(str, arguments)], **{**given, **how})
    return done.returncode, done.stdout, done.stderr


def two_weights():
    """Two models that read words."""
    for seed in (1, 2):
        works(*IMAGES, "--steps", 1, "--seed", seed, "--name", f"words{seed}")
    return checkpoint("words1", "step_1.bin"), checkpoint("words2", "step_1.bin")


# ---------------------------------------------------------------- signals

def test_signals_that_end_a_run_save_it_first():
    """SIGTERM, SIGUSR1 and SIGHUP, each sent twice: the step is finished, saved, exit 128 + the signal."""
    works(*SYNTHETIC, "--steps", 40, "--name", "whole")
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        name = f"signal{number}"
        process = start(*SYNTHETIC, "--steps", 40000, "--name", name)
        wait_for(process, lambda: lines_in(f"logs/{name}/metrics.jsonl") > 2)
        for _ in range(2):  # terminals and schedulers send them again
            process.send_signal(number)
        code, out, err = finish(process)
        step = int(out.splitlines()[-1].split()[3].rstrip(";"))
        check(code == 128 + number and not err, f"signal {number}: exit {code}, {err[-300:]!r}")
        check(stems(name)[-1:] != [] and any(moments(checkpoint(name, s + ".state"))[0] == step for s in stems(name)), f"signal {number}: {stems(name)} after step {step}")


def test_nohup_stays_in_force():
    process = start(*SYNTHETIC, "--steps", 60, "--name", "nohup", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(process, lambda: lines_in("logs/nohup/metrics.jsonl") > 1)
    process.send_signal(signal.SIGHUP)
    code, _, err = finish(process)
    check(code == 0 and not err, f"exit {code}, {err[-300:]!r}")


def test_first_interrupt_says_what_the_second_does():
    """The first Ctrl-C says that a second one stops at once, and it does, however long the step."""
    process = start("--model", "small.json", "--train-data", "synthetic", "--train-num-samples", 1000, "--batch-size", 500, "--steps", 1000000, "--name", "twice")
    wait_for(process, lambda: lines_in("logs/twice/out.log") > 70)
    process.send_signal(signal.SIGINT)
    line = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    check("Ctrl-C again ends it at once without saving" in line, f"the first Ctrl-C: {line!r}")
    check(code == -signal.SIGINT or code == 130 and stems("twice"), f"the second Ctrl-C: exit {code}, {err[-300:]!r}")


# ---------------------------------------------------------------- streams

def test_a_run_goes_on_without_its_console():
    """stdout full, closed, or a pipe whose reader is gone: the run ends with 0 and the same weights, its log is whole, one line says so."""
    options = SYNTHETIC + ["--steps", 30]
    works(*options, "--name", "console")
    for name, stdout in (("full", "/dev/full" if FULL else None), ("closed", None), ("gone", None)):
        how = dict(stdout=open(stdout, "wb")) if stdout else {}
        if name == "closed":
            how = dict(stdout=None, preexec_fn=lambda: os.close(1))
        if name == "gone":
            there, here = os.pipe()
            os.close(there)
            how = dict(stdout=here)
        code, _, err = program("train_clip", *options, "--name", name, **how)
        check(code == 0 and err.count("\n") == 1 and "cannot write to the console" in err, f"{name}: exit {code}, {err[-300:]!r}")
        expect_same("console", name, name)
        check(b"\nstep 30/30 " in read(f"logs/{name}/out.log") and b"\ndone " in read(f"logs/{name}/out.log"), f"{name}: the log ends with {read(f'logs/{name}/out.log')[-200:]}")


def test_a_result_that_cannot_be_written_is_an_error():
    """--help, --schema, --print-schedule, --classify, --eval-only, lr_find and wise_ft with a full or closed stdout: exit 1 and a line."""
    words, other = two_weights()
    classify = ["--pretrained", words, "--classnames", "shapes/classnames.txt", "--classify", "shapes/images/" + sorted(os.listdir("shapes/images"))[0]]
    commands = [("train_clip", "--help"), ("train_clip", "--help", "strategies"), ("train_clip", "--schema"), ("lr_find", "--help"), ("wise_ft", "--help"),
                ("train_clip", "--print-schedule", "s.svg", "--steps", 10), ("train_clip", *classify), ("train_clip", "--pretrained", words, "--eval-only", *LABELLED),
                ("wise_ft", "--zeroshot", words, "--finetuned", other, "--save", "averages")]
    for command in commands:
        closed = program(*command, stdout=None, preexec_fn=lambda: os.close(1))
        results = [("closed", closed)]
        if FULL:
            with open("/dev/full", "wb") as full:
                results.append(("full", program(*command, stdout=full)))
        for what, (code, _, err) in results:
            check(code == 1 and err.count("\n") == 1 and "cannot write the output" in err, f"{command}, stdout {what}: exit {code}, {err[-300:]!r}")
        code, out, err = program(*command)
        check(code == 0 and out and not err, f"{command}: exit {code}, {err[-300:]!r}")


def test_no_file_takes_the_place_of_a_closed_stream():
    """All three streams are closed: messages do not go into a checkpoint."""
    options = [*SYNTHETIC, "--steps", 4]
    options[options.index("--batch-size") + 1] = 64
    works(*options, "--name", "open", says="the batch shrinks")
    code, _, _ = program("train_clip", *options, "--name", "shut", stdout=None, stderr=None, preexec_fn=lambda: os.closerange(0, 3))
    check(code == 0, f"exit {code}")
    expect_same("open", "shut", "without streams")


# ---------------------------------------------------------------- limits

def small_stack():
    resource.setrlimit(resource.RLIMIT_STACK, (256 << 10, 256 << 10))


def test_a_stack_of_256_kb_is_enough():
    """`ulimit -s 256`: training with all kinds of evaluation, files and threads; a resumed run; lr_find, wise_ft, --classify."""
    words, _ = two_weights()
    image, nested = read("shapes/images/" + sorted(os.listdir("shapes/images"))[0]), b'{"caption": "a word", "deep": ' + b"[" * 2000 + b"]" * 2000 + b"}"
    with tarfile.open("deep.tar", "w") as tar:
        for i in range(8):
            for kind, data in (("png", image), ("json", nested)):
                info = tarfile.TarInfo(f"{i}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    works(*IMAGES[:2], "--train-data", "deep.tar", "--json-text-key", "caption", "--batch-size", 4, "--steps", 2, "--name", "deep", preexec_fn=small_stack)
    everything = [*LABELLED, "--val-data", "shapes/val.csv", "--report-to", "tensorboard", "--ema-decay", 0.9, "--cache-images", "images.cache", "--aug-cfg", "none", "--lock-image",
                  "--feature-cache", "features.cache", "--save-features", "features.safetensors", "--save-most-recent", "--save-steps", 2, "--keep-checkpoints", 2]
    works(*IMAGES, *everything, "--epochs", 2, "--name", "stack", "--workers", 2, threads=3, preexec_fn=small_stack)
    works("--resume", checkpoint("stack", "latest.bin"), "--cache-images", "images.cache", "--feature-cache", "features.cache", "--save-features", "features.safetensors",
          threads=3, preexec_fn=small_stack)
    classify = ["--classnames", "shapes/classnames.txt", "--classify", "shapes/images/" + sorted(os.listdir("shapes/images"))[0]]
    works("--pretrained", words, *classify, preexec_fn=small_stack)
    code, out, err = program("lr_find", *IMAGES, "--num-steps", 20, "--output", "found", preexec_fn=small_stack)
    check(code in (0, 1) and "The ramp" in out and not err, f"lr_find: exit {code}, {err[-300:]!r}")
    code, out, err = program("wise_ft", "--zeroshot", words, "--finetuned", checkpoint("stack", "latest.bin"), "--eval", "a=shapes/val.csv", "--classnames", "shapes/classnames.txt",
                             "--save", "merged", preexec_fn=small_stack)
    check(code == 0 and not err, f"wise_ft: exit {code}, {err[-300:]!r}")


def test_a_program_may_have_a_name_of_any_length():
    for name, arguments in (("train_clip", ["--nothing"]), ("lr_find", ["--nothing"]), ("wise_ft", ["--nothing"])):
        for length in (300, 8192, 100000):
            done = subprocess.run(["x" * length, *arguments], executable=os.path.join(FOLDER, name), capture_output=True, text=True, timeout=LIMIT)
            lines = done.stderr.splitlines()
            check(done.returncode == 2 and ": --nothing: unknown option" in lines[0] and all(line.startswith("xx") and len(line) < 400 for line in lines),
                  f"{name}, a name of {length} bytes: exit {done.returncode}, {done.stderr[-200:]!r}")


def test_messages_give_the_reason_of_the_system():
    """A file that is there but cannot be opened is not called missing."""
    os.symlink("loop", "loop")
    os.mkdir("holds")
    os.symlink("../loop", "holds/a.tar")
    loop = "Too many levels of symbolic links"
    refused(loop, *IMAGES[:2], "--train-data", "loop")
    refused(loop, *IMAGES[:2], "--train-data", "loop", "--dataset-type", "folder")
    code, _, err = run(*IMAGES[:2], "--train-data", "holds/a.tar")
    check(code == 2 and loop in err, f"a shard: exit {code}, {err!r}")
    refused(loop, "--pretrained", "loop", "--train-data", "synthetic")
    refused(loop, "--model", "loop", "--train-data", "synthetic")
    refused(loop, *IMAGES, "--zeroshot-data", "shapes/val.csv", "--classnames", "loop")
    refused(loop, "--resume", "latest", "--logs", "loop", "--name", "x")
    refused("no such file", *IMAGES[:2], "--train-data", "shapes/train.csv/x")
    for path in ("loop", "holds/a.tar"):
        os.unlink(path)
    os.rmdir("holds")


if __name__ == "__main__":
    sys.exit(main(globals()))
