#!/usr/bin/env python3
"""What lr_find and wise_ft cost: a ramp compared with as many training steps, a sweep over α with one evaluation,
merging ViT-B/32 files with copying one. Everything is measured N times in turns, and medians are reported.
Processor time is that of one thread; other work on the machine disturbs it less than wall-clock time.

  dev/experiments/costs.py [-n 5] [--large DIR]

DIR is a folder for 9 GB of temporary ViT-B/32 files; without it, merging is not measured.
"""
import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(ROOT, os.environ.get("BIN", ""))
MODEL = """{"embed_dim": 64, "vision_cfg": {"image_size": 32, "patch_size": 4, "width": 128, "head_width": 32, "layers": 4},
 "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}}"""


def run(*command, threads=1):
    """-> processor seconds, wall-clock seconds"""
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="passive")
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    r = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if r.returncode:
        sys.exit(f"costs.py: {' '.join(map(str, command))}: exit code {r.returncode}\n{r.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def in_turns(n, tasks):
    """tasks: name -> function that measures once; -> name -> medians of what it returns"""
    results = {name: [] for name in tasks}
    for _ in range(n):
        for name, task in tasks.items():
            results[name].append(task())
    return {name: [statistics.median(values) for values in zip(*rows)] for name, rows in results.items()}


def compare(title, results):
    """Each line as a multiple of the first."""
    print(f"\n{title}\n| | processor s | times | clock s | times |\n|---|---|---|---|---|")
    base = next(iter(results.values()))
    for name, (cpu, clock) in results.items():
        print(f"| {name} | {cpu:.2f} | {cpu / base[0]:.2f} | {clock:.2f} | {clock / base[1]:.2f} |", flush=True)


def measure_ramp(n):
    common = ["--precision", "fp32", "--workers", 1, "--pretrained", "a.bin", "--train-data", "shapes/train.csv", "--batch-size", 32]

    def train():
        shutil.rmtree("logs/ramp", ignore_errors=True)
        return run(f"{BIN}train_clip", *common, "--steps", 100, "--save-frequency", 0, "--name", "ramp")

    ramp = lambda: run(f"{BIN}lr_find", *common, "--min-lr", 1e-7, "--max-lr", 1e-6) # rates low enough that the ramp does not stop early
    compare("100 steps × 32 of a model of 4.1M parameters", in_turns(n, {"train_clip": train, "lr_find": ramp}))


def measure_sweep(n):
    common = ["--precision", "fp32", "--workers", 1, "--classnames", "shapes/classnames.txt"]
    sweep = lambda other: lambda: run(f"{BIN}wise_ft", "--zeroshot", "a.bin", "--finetuned", other, "--alpha", "0:1:0.1", "--eval", "x=shapes/val.csv", *common)
    one = lambda: run(f"{BIN}train_clip", "--eval-only", "--pretrained", "a.bin", "--zeroshot-data", "shapes/val.csv", *common)
    with open("shapes/val.csv") as f:
        images = len(f.readlines()) - 1
    compare(f"{images} images, 64 classes", in_turns(n, {
        "one evaluation (train_clip --eval-only)": one, "11 alphas": sweep("both.bin"), "11 alphas, image tower the same": sweep("image_locked.bin"),
        "11 alphas, text tower the same": sweep("text_locked.bin")}))


def measure_merge(n, folder):
    path = lambda name: os.path.join(folder, name)
    for seed in (1, 2):
        run(sys.executable, f"{ROOT}/dev/convert.py", "--model", "ViT-B-32", "--random", seed, "-o", path(f"{seed}.bin"))
    for k in range(3, 13):
        shutil.copyfile(path(f"{2 - k % 2}.bin"), path(f"{k}.bin"))
    size = os.path.getsize(path("1.bin"))

    def copy():
        start = time.perf_counter()
        subprocess.run(["cp", path("1.bin"), path("copy.bin")], check=True)
        subprocess.run(["sync", path("copy.bin")], check=True)
        return 2 * size / (time.perf_counter() - start), 0

    def merged(files, *command):
        with open(path("peak"), "w") as f:
            start = time.perf_counter()
            subprocess.run(["/usr/bin/time", "-f", "%M", f"{BIN}wise_ft", *command, "--save", path("out")], check=True, stdout=subprocess.DEVNULL, stderr=f)
            seconds = time.perf_counter() - start
        with open(path("peak")) as f:
            return (files + 1) * size / seconds, 1024 * int(f.read().split()[-1])

    two = lambda: merged(2, "--zeroshot", path("1.bin"), "--finetuned", path("2.bin"), "--alpha", "0.5")
    twelve = lambda: merged(12, "--models", *(path(f"{k}.bin") for k in range(1, 13)), "--soup", "uniform")
    results = in_turns(n, {"cp and sync": copy, "two files, α = 0.5": two, "uniform soup of 12": twelve})
    print(f"\nFiles of {size / 1e6:.0f} MB\n| | GB/s read and written | peak memory |\n|---|---|---|")
    for name, (rate, peak) in results.items():
        print(f"| {name} | {rate / 1e9:.2f} | " + (f"{peak / 1e6:.0f} MB, {peak / size:.2f} files |" if peak else "|"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--large", metavar="DIR")
    o = parser.parse_args()
    if not os.environ.get("BIN"):
        subprocess.run(["make", "-s", "train_clip", "lr_find", "wise_ft"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=o.large) as large:
        os.chdir(folder)
        run(sys.executable, f"{ROOT}/dev/data/make_shapes.py", "--out", "shapes", "--count", 10000)
        with open("model.json", "w") as f:
            f.write(MODEL)
        for name, *options in (["a"], ["both"], ["image_locked", "--lock-image"], ["text_locked", "--lock-text"]):
            start = ["--pretrained", "a.bin"] if name != "a" else ["--model", "model.json"]
            run(f"{BIN}train_clip", *start, "--train-data", "shapes/train.csv", "--batch-size", 16, "--steps", 2, "--name", name, *options)
            shutil.copy(f"logs/{name}/checkpoints/step_2.bin", f"{name}.bin")
        measure_ramp(o.n)
        measure_sweep(o.n)
        if o.large:
            measure_merge(o.n, large)
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
