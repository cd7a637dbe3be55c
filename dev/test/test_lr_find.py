#!/usr/bin/env python3
"""The range test as a program: equal to a numpy reading of the same losses, stops soon after a collapse, leaves no trace, says what to
run next, refuses nonsense.

  dev/test/test_lr_find.py           in a temporary folder; BIN= names the folder of the programs
"""
import csv
import glob
import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np

import checks
from checks import check

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(ROOT, os.environ.get("BIN", ""))
SMALL = {"embed_dim": 9, "vision_cfg": {"image_size": 19, "patch_size": 6, "width": 15, "head_width": 5, "layers": 2},
         "text_cfg": {"context_length": 7, "vocab_size": 97, "width": 12, "heads": 3, "layers": 2}}
DATA = ["--model", "small.json", "--train-data", "synthetic", "--train-num-samples", 64, "--workers", 1]


def run(program, *arguments):
    """-> exit code, stdout, stderr"""
    env = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    r = subprocess.run([os.path.join(BIN, program), *map(str, arguments)], env=env, capture_output=True, text=True, errors="replace", timeout=300)
    return r.returncode, r.stdout, r.stderr


def read_csv(folder):
    """-> pass number -> its columns"""
    passes = {}
    with open(f"{folder}/lr_find.csv") as f:
        for row in csv.DictReader(f):
            passes.setdefault(int(row["pass"]), []).append([float(row[k]) for k in ("lr", "loss", "average", "smoothed")])
    return {k: np.array(v).T for k, v in passes.items()}


# ---------------------------------------------------------------- the same reading in numpy

def running_average(loss, beta):
    average, out = 0.0, []
    for i, x in enumerate(loss):
        average = beta * average + (1 - beta) * x
        out.append(average / (1 - beta ** (i + 1)))
    return np.array(out)


def smooth(y, half):
    for _ in range(2):
        n = len(y)
        reach = np.minimum(half, np.minimum(np.arange(n), n - 1 - np.arange(n)))
        y = np.array([y[i - r:i + r + 1].mean() for i, r in enumerate(reach)])
    return y


def suggestions(lr, loss, end, steps):
    """-> name -> rate, from the losses before the collapse"""
    y, x, begin = smooth(loss[:end], max(1, steps // 25)), np.log(lr[:end]), steps // 10
    slope = np.array([(y[min(i + 1, end - 1)] - y[max(i - 1, 0)]) / (x[min(i + 1, end - 1)] - x[max(i - 1, 0)]) for i in range(end)])
    per_step = np.array([(y[min(i + 1, end - 1)] - y[max(i - 1, 0)]) / (min(i + 1, end - 1) - max(i - 1, 0)) for i in range(end)])
    lowest = begin + int(np.argmin(y[begin:]))
    length, start = np.ones(end, int), np.arange(end)
    for i in range(begin, end):
        for j in range(begin, i):
            if y[j] > y[i] and length[j] + 1 > length[i]:
                length[i], start[i] = length[j] + 1, start[j]
    last = begin + int(np.argmax(length[begin:]))
    window = max(1, steps * 15 // 100)
    right = end - 1
    slide = right - window
    while right >= begin + window and abs(per_step[right] - per_step[right - window]) * steps > 0.5:
        slide = right - window
        right -= 1
    return {"steepest": lr[begin + int(np.argmin(slope[begin:lowest + 1]))], "valley": lr[(start[last] + last) // 2], "minimum/10": lr[lowest] / 10,
            "minimum/3": lr[lowest] / 3, "slide": lr[slide]}


def collapse(loss, average, equal):
    """-> steps before the plateau at the end, if the loss ever left it"""
    end = len(loss)
    if average.min() >= 0.98 * equal and average.max() <= 1.02 * equal:
        return end
    while end and abs(loss[end - 1] - equal) < 0.01 * equal:
        end -= 1
    return end


def check_reading(name, steps, batch, *options):
    code, out, err = run("lr_find", *DATA, "--batch-size", batch, "--num-steps", steps, "--output", name, *options)
    check(code == 0, f"{name}: exit code {code}: {err}")
    passes = read_csv(name)
    closer = re.search(r"a closer look: (\d+) steps", out)
    steps = int(closer.group(1)) if closer else steps
    lr, loss, average, smoothed = passes[min(passes)]
    end = collapse(loss, average, math.log(batch)) if 0 not in passes else min(collapse(p[1], p[2], math.log(batch)) for k, p in passes.items() if k)
    for k, p in passes.items():
        check(k == 0 or np.allclose(p[2], running_average(p[1], 0.9), rtol=1e-12, atol=0), f"{name}: running average of pass {k}")
    if 0 in passes:
        n = len(loss)
        check(np.allclose(loss, np.mean([p[1][:n] for k, p in passes.items() if k], axis=0), rtol=1e-12, atol=0), f"{name}: mean of the passes")
    check(np.allclose(smoothed[:end], smooth(loss[:end], max(1, steps // 25)), rtol=1e-12, atol=0), f"{name}: centred smoothing")
    for what, rate in suggestions(lr, loss, end, steps).items() if "No rate" not in out else ():
        line = re.search(rf"^{re.escape(what)} +(\S+)", out, re.M)
        check(line and math.isclose(float(line.group(1)), rate, rel_tol=5e-3), f"{name}: {what} is {line and line.group(1)}, numpy says {rate:.3g}")
    check(os.path.getsize(f"{name}/lr_find.svg") > 2000, f"{name}: the plot")
    lowest = smooth(loss[:end], max(1, steps // 25))[steps // 10:].min()
    check("Take --lr" not in out or lowest < 0.98 * math.log(batch), f"{name}: a rate, and nothing is learned: {lowest}, {out}")
    return out, lr, loss, end


def test_readings_equal_those_of_numpy():
    out, lr, _, _ = check_reading("plain", 100, 8)
    first, last, steps = (1e-6, 0.1, 300) if "closer look" in out else (1e-7, 10, 100)
    check(np.allclose(lr, first * (last / first) ** (np.arange(len(lr)) / (steps - 1)), rtol=1e-12), "rates grow by equal ratios")
    _, lr, _, _ = check_reading("linear", 61, 8, "--linear", "--max-lr", 0.01)
    check(np.allclose(np.diff(lr), (0.01 - 1e-7) / 60, rtol=1e-9), "rates grow by equal distances")
    check_reading("repeated", 80, 16, "--repeats", 3, "--min-lr", 1e-5)
    check_reading("group", 90, 8, "--group", "text", "--accum-freq", 1, "--min-lr", 1e-6)


def test_stops_soon_after_the_collapse():
    for batch in (8, 512):
        lr, loss, end = collapse_of(batch)
        check(end < len(loss) <= end + 20 and lr[-1] < 90, f"batch {batch}: {len(loss)} steps, collapsed after {end}")


def collapse_of(batch):
    """From a model that has learned: the ramp shows a rate and is not followed by a closer look."""
    data = [1024 if a == 64 else a for a in DATA]
    if not os.path.exists("logs/learned"):
        code, out, err = run("train_clip", *data, "--batch-size", 8, "--steps", 1200, "--lr", 2e-3, "--name", "learned")
        check(code == 0, f"exit code {code}: {err}")
    weights = glob.glob("logs/learned/checkpoints/*.bin")[-1]
    code, out, err = run("lr_find", "--pretrained", weights, *data[2:], "--batch-size", batch, "--min-lr", 1e-5, "--max-lr", 100, "--output", "collapse")
    check(code == 0 and "collapsed" in out, f"batch {batch}: exit code {code}: {out} {err}")
    lr, loss, average, _ = read_csv("collapse")[1]
    return lr, loss, collapse(loss, average, math.log(batch))


# --lr auto and the same rate given trains the same bits: the range test left weights, moments, state and data order as they were
def test_auto_leaves_no_trace():
    common = [*DATA, "--batch-size", 8, "--steps", 5, "--aug-cfg", "scale=0.5,1", "--lock-image", "--lock-image-unlocked-groups", 2, "--ema-decay", 0.9]
    code, out, err = run("train_clip", *common, "--lr", "auto", "--name", "auto")
    rate = re.search(r"Take --lr (\S+) ", out)
    check(code == 0 and rate, f"--lr auto: exit code {code}: {out} {err}")
    check(" a rate of" not in out, f"the rate that was found is called unusual: {out}")
    if not rate:
        return
    check(re.search(rf"^lr +{re.escape(rate.group(1))}$", open("logs/auto/params.txt").read(), re.M), "params.txt holds the rate that was found")
    check(os.path.getsize("logs/auto/lr_find.svg") > 2000, "the run folder has no plot")
    code, out, err = run("train_clip", *common, "--lr", rate.group(1), "--name", "given")
    check(code == 0, f"the rate given: exit code {code}: {err}")
    files = [sorted(glob.glob(f"logs/{name}/checkpoints/*.bin")) for name in ("auto", "given")]
    check(len(files[0]) > 0 and [os.path.basename(f) for f in files[0]] == [os.path.basename(f) for f in files[1]], f"checkpoints {files}")
    for a, b in zip(*files):
        check(open(a, "rb").read() == open(b, "rb").read(), f"{a} and {b} differ")
    losses = [[json.loads(line).get("loss") for line in open(f"logs/{name}/metrics.jsonl")] for name in ("auto", "given")]
    check(losses[0] == losses[1] and len(losses[0]) >= 5, f"losses {losses}")
    code, out, err = run("train_clip", "--resume", "latest", "--name", "auto", "--lr", "auto")
    check(code == 0 and "range test" not in out, f"resuming with --lr auto: exit code {code}: {err}")


def test_it_prints_the_commands_to_run():
    code, out, _ = run("lr_find", *DATA, "--batch-size", 8, "--name", "it's", "--group=image", "--lr", 5, "--warmup", 3, "--num-steps=50", "--output", "say")
    commands = [line for line in out.splitlines() if "train_clip" in line]
    check(code == 0 and len(commands) == 3, f"three commands: {out}")
    for command, schedule in zip(commands, ("cosine", "one-cycle", "stlr")):
        check(re.search(rf"--lr \S+ --lr-scheduler {schedule}", command), f"{schedule}: {command}")
        check("--lock-text" in command and "--num-steps" not in command and "--group" not in command and "--lr 5" not in command and "'it'\\''s'" in command, command)
        ran = subprocess.run(["sh", "-c", f"{command} --logs {schedule} --steps 4"], capture_output=True, text=True)
        check(ran.returncode == 0, f"{command}: {ran.stderr}")
        check(" a rate of" not in ran.stdout, f"the rate that was measured is called unusual: {ran.stdout}")
    check("--warmup 3" in commands[0] and "--warmup" not in commands[1] + commands[2], "the warmup belongs to cosine alone")


def test_the_same_command_gives_the_same_curve():
    for name in ("one", "two"):
        run("lr_find", *DATA, "--batch-size", 8, "--num-steps", 40, "--output", name)
    check(open("one/lr_find.csv").read() == open("two/lr_find.csv").read(), "two runs differ")


# equal pairs: nothing can be learned, and the loss is that of guessing at any rate that leaves the model finite
def test_no_rate_where_nothing_is_learned():
    with open("one.png", "wb") as f:
        f.write(png(bytes(3 * 19 * 19), 19))
    with open("equal.csv", "w") as f:
        f.write("filepath\ttitle\n" + "one.png\tthe same\n" * 64)
    common = ["--model", "words.json", "--train-data", "equal.csv", "--workers", 1, "--batch-size", 16]
    for options in ([], ["--num-steps", 20, "--repeats", 2]):
        code, out, err = run("lr_find", *common, *options, "--output", "equal")
        check(code == 1 and re.search(r"^No rate: ", out, re.M) and "Take" not in out and "train_clip --" not in out, f"{options}: exit code {code}: {out} {err}")
        check(out.count("a closer look") == 1, out)
    code, out, err = run("train_clip", *common, "--lr", "auto", "--name", "equal")
    check(code == 1 and "--lr auto: No rate: " in err and err.count("\n") == 1, f"exit code {code}: {err}")


def png(pixels, side):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + pixels[3 * side * y:3 * side * (y + 1)] for y in range(side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_wrong_usage_is_refused():
    for options, words in ([("--min-lr", 1, "--max-lr", 0.1), "not above"], [("--smoothing", 1), "out of range"], [("--group", "both"), "give one of"],
                           [("--resume", "latest"), "--resume"], [("--eval-only",), "--eval-only"], [("--lock-image", "--group", "image"), "is locked"],
                           [("--lr-image", 1e-4), "--group image"], [("--stop-factor", 1), "out of range"]):
        code, out, err = run("lr_find", *DATA, *options)
        check(code == 2 and words in err and err.count("\n") == 1, f"{options}: exit code {code}: {err}")


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with open("small.json", "w") as f:
            json.dump(SMALL, f)
        with open("words.json", "w") as f:
            json.dump({**SMALL, "text_cfg": {**SMALL["text_cfg"], "vocab_size": 49408}}, f)
        for test in checks.tests_of(globals()):
            checks.run(test)
        os.chdir(ROOT)
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
