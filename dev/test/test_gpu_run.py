#!/usr/bin/env python3
"""The GPU program compared with the CPU program: the same losses with every strategy, the same bits twice, files with which each resumes the other's run.

  GPU_PROGRAM=./train_clipcu dev/test/test_gpu_run.py     on a GPU; by default the emulated program, in which two runs also differ in the
                                                          order in which threads and blocks run
"""
import os
import shutil
import sys

import train_runs
from train_runs import IMAGES, LABELLED, ROOT, SYNTHETIC, check, checkpoint, expect_same, folder, records

CPU = train_runs.PROGRAM
GPU = os.path.join(ROOT, os.environ.get("GPU_PROGRAM") or os.path.join(os.environ.get("BUILD", "build"), "train_clip_emulated"))
EMULATED = "GPU_PROGRAM" not in os.environ
FP32 = [*SYNTHETIC, "--precision", "fp32"]


def on(program, *arguments):
    """Ends with 0, and with nothing on stderr but the emulation's line about its speed; -> stdout"""
    train_runs.PROGRAM = program
    code, out, err = train_runs.run(*arguments)
    check(code == 0 and (not err or EMULATED and "correct but slow" in err and err.count("\n") == 1), f"{program} {arguments}: exit {code}, stderr {err[-600:]!r}")
    return out


def train(program, name, *arguments):
    on(program, *arguments, "--name", name)


def other_order(seed):
    """The order of threads and blocks; on a GPU it differs from run to run anyway."""
    os.environ["CLIPC_EMULATE_SEED"] = str(seed)


def losses(name):
    return [r["loss"] for r in records(name) if "loss" in r]


def compare(one, other, tolerance, what):
    a, b = losses(one), losses(other)
    check(a and len(a) == len(b) and all(abs(x - y) <= tolerance * max(1, abs(x)) for x, y in zip(a, b)), f"{what}: losses {a} and {b}")


def test_strategies_train_as_on_a_cpu():
    for name, options in {
            "plain": ["--epochs", 2, "--grad-clip-norm", 1],
            "accumulated": ["--steps", 4, "--accum-freq", 2, "--grad-checkpointing"],
            "locked": ["--steps", 4, "--lock-image", "--lock-text", "--lock-text-unlocked-layers", 2],
            "layer-wise": ["--steps", 4, "--image-layer-decay", 0.7, "--text-layer-decay", 0.8, "--ema-decay", 0.9, "--wd-exclude", "*bias"],
            "dropout": ["--steps", 4, "--force-patch-dropout", 0.5],
            "positives": ["--steps", 3, "--positives", "soft"],
    }.items():
        train(CPU, name, *FP32, *options)
        train(GPU, f"{name}-gpu", *FP32, *options)
        compare(name, f"{name}-gpu", 5e-6, name)
    train(GPU, "bf16", *SYNTHETIC, "--precision", "amp_bf16", "--epochs", 2, "--grad-clip-norm", 1)
    compare("plain", "bf16", 3e-2, "amp_bf16")


def test_a_seed_gives_the_same_bits():
    for precision in ("fp32", "amp_bf16"):
        run = [*SYNTHETIC, "--precision", precision, "--epochs", 2, "--save-steps", 5, "--ema-decay", 0.9]
        names = [f"{precision}-{what}" for what in ("one", "two", "resumed", "checkpointed")]
        train(GPU, names[0], *run)
        other_order(2)
        train(GPU, names[1], *run)
        expect_same(names[0], names[1], f"{precision}, twice")
        shutil.copytree(folder(names[0]), folder(names[2]))
        train(GPU, names[2], *run, "--resume", checkpoint(names[2], "step_5.bin"))
        expect_same(names[0], names[2], f"{precision}, resumed in the middle")
        train(GPU, names[3], *run, "--grad-checkpointing")
        expect_same(names[0], names[3], f"{precision}, --grad-checkpointing")
        other_order(1)


def test_each_program_resumes_runs_of_the_other():
    run = [*FP32, "--epochs", 2, "--save-steps", 5]
    train(CPU, "cpu", *run)
    train(GPU, "gpu", *run)
    for program, begun, name in ((GPU, "cpu", "cpu-gpu"), (CPU, "gpu", "gpu-cpu")):
        shutil.copytree(folder(begun), folder(name))
        train_runs.PROGRAM = program
        code, _, err = train_runs.run(*run, "--name", name, "--resume", checkpoint(name, "step_5.state"))
        check(code == 0 and err.count("\n") <= 1, f"{name}: exit {code}, {err!r}") # one line: other kernels round differently
        compare("cpu", name, 5e-6, name)


def test_image_files_and_evaluation_as_on_a_cpu():
    """Image files, a locked tower with cached features, evaluation, the classes of an image."""
    files = [*IMAGES, "--precision", "fp32", "--steps", 2, "--lock-image", "--feature-cache", "features.bin", *LABELLED]
    for program, name in ((CPU, "files"), (GPU, "files-gpu")):
        train(program, name, *files)
        if os.path.exists("features.bin"):
            os.remove("features.bin")
    compare("files", "files-gpu", 5e-6, "files")
    results = [next(r for r in records(name) if "zeroshot_top1" in r) for name in ("files", "files-gpu")]
    check(results[0]["zeroshot_top1"] == results[1]["zeroshot_top1"], f"zero-shot: {results}")
    image = next(os.path.join(path, name) for path, _, names in os.walk("shapes") for name in sorted(names) if name.endswith(".png"))
    said = [on(program, "--pretrained", checkpoint("files", train_runs.newest("files") + ".bin"), "--precision", "fp32", "--classnames", "shapes/classnames.txt", "--classify", image)
            for program in (CPU, GPU)]
    check(said[0] == said[1] and said[0], f"--classify: {said}")


def test_too_little_memory_says_what_to_lower():
    if not EMULATED:
        return
    os.environ["CLIPC_EMULATE_MEMORY"] = "300000"
    train_runs.PROGRAM = GPU
    code, _, err = train_runs.run(*FP32, "--steps", 2, "--name", "small")
    del os.environ["CLIPC_EMULATE_MEMORY"]
    check(code == 1 and err.count("\n") == 1 and "out of GPU memory" in err and "--batch-size" in err and "--grad-checkpointing" in err, f"exit {code}, {err!r}")


if __name__ == "__main__":
    if not os.path.exists(GPU):
        sys.exit(f"FAILED {GPU} is not built; run make\n0 passed, 1 failed")
    sys.exit(train_runs.main(globals(), count=32))
