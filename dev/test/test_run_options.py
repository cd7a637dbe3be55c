#!/usr/bin/env python3
"""Options of the real program: wrong ones are refused with one line before anything is written, unusual ones work."""
import json
import sys

from train_runs import (IMAGES, LABELLED, SYNTHETIC, check, main, records, refused, run, stems, works, write)


VALUES = [("--lr", "fast"), ("--lr", "nan"), ("--lr", "-1"), ("--lr", "1e-5x"), ("--batch-size", "0"),
          ("--batch-size", "2.5"), ("--batch-size", "1e30"), ("--epochs", "-3"),
          ("--epochs", "9999999999999999999999"), ("--steps", "0"), ("--seed", "-1"), ("--warmup", "101%"),
          ("--warmup", "x%"), ("--beta2", "1"), ("--eps", "0"), ("--workers", "0"), ("--workers", "100000"),
          ("--lr-scheduler", "cosin"), ("--precision", "fp8"), ("--val-split", "1"), ("--image-mean", "0.5"),
          ("--image-std", "0"), ("--csv-separator", "ab"), ("--log-every-n-steps", "0"),
          ("--accum-freq", "0"), ("--dataset-type", "parquet")]


def test_wrong_values_are_refused():
    for option, value in VALUES:
        given = SYNTHETIC if option not in SYNTHETIC else ["--model", "small.json"]
        refused(f"{option} {value}", *given, f"{option}={value}")


def test_wrong_usage_is_refused():
    refused("no model; give", )
    refused("does not belong to an option", "shapes/train.csv", *SYNTHETIC)
    refused("--train-data shapes", "shapes", *SYNTHETIC)
    refused("did you mean --epochs?", *SYNTHETIC, "--epoch", 3)
    refused("did you mean --batch-size?", *SYNTHETIC, "--batchsize", 3)
    refused("needs a value", *SYNTHETIC, "--name")
    refused("is given twice", *SYNTHETIC, "--batch-size", 4)
    refused("takes no value", *SYNTHETIC, "--lock-image=yes")
    refused("--siglip", *SYNTHETIC, "--siglip")
    refused("no data; give --train-data", "--model", "small.json")
    refused("no such model", "--model", "ViT-B-23", "--train-data", "synthetic")
    refused("did you mean ViT-B-32?", "--model", "ViT-B-3", "--train-data", "synthetic")
    refused("no such file", "--pretrained", "nothing.bin", "--train-data", "synthetic")
    refused("dev/convert.py --model ViT-B-32 --pretrained openai -o", "--model", "ViT-B-32", "--pretrained", "openai", "--train-data", "synthetic")
    refused("no such file or folder", *IMAGES[:2], "--train-data", "nothing.csv")
    refused("no such shard", *IMAGES[:2], "--train-data", "shapes/{000..003}.tar")
    refused("--aug-cfg", *SYNTHETIC, "--aug-cfg", "scale=2")
    refused("--val-data and --val-split", *SYNTHETIC, "--val-split", 0.5, "--val-data", "synthetic")
    refused("--val-split 0.001", *SYNTHETIC, "--val-split", 0.001)
    refused("--val-split 0.99", *SYNTHETIC, "--val-split", 0.99)
    refused("has no tokenizer", "--model", "small.json", "--train-data", "shapes/train.csv", "--batch-size", 8)
    refused("--save-features", "--model", "words.json", *LABELLED, "--save-features", "f.safetensors", "--eval-only")
    works(*SYNTHETIC, "--steps", 1, "--name", "exists")
    refused("logs/exists: exists already", *SYNTHETIC, "--steps", 1, "--name", "exists")
    write("plain_file", "x")
    refused("plain_file", *SYNTHETIC, "--logs", "plain_file", code=1)
    refused("/dev/null", *SYNTHETIC, "--logs", "/dev/null/x", code=1)
    refused("/proc/", *SYNTHETIC, "--logs", "/proc/no_such_place", code=1)
    out = works("--help")
    check(out.count("\n") > 60 and "--train-data PATH" in out and all(len(line) <= 150 for line in out.splitlines()), "--help is not what it was")


def test_small_and_odd_runs_work():
    """Small and odd, yet right."""
    works(*SYNTHETIC, "--steps", 1, "--name", "one_step")
    check(stems("one_step") == ["step_1"], f"--steps 1: {stems('one_step')}")
    for begin, epochs in ((SYNTHETIC[:2], 32), (["--pretrained", "logs/one_step/checkpoints/step_1.bin"], 10)):
        name = f"epochs_{epochs}"
        works(*begin, "--train-data", "synthetic", "--train-num-samples", 8, "--batch-size", 8, "--save-frequency", 0, "--name", name)
        check(records(name)[-1]["step"] == epochs, f"{epochs} epochs are the default: {records(name)[-1]}")
    works(*SYNTHETIC, "--epochs", 1, "--warmup", "100%", "--name", "all_warmup")
    rates = [r["lr"] for r in records("all_warmup")]
    check(len(rates) == 6 and all(abs(r - 5e-4 * (i + 1) / 6) < 1e-9 for i, r in enumerate(rates)), f"all of it warmup: {rates}")
    works(*SYNTHETIC, "--steps", 20, "--warmup", 10000, "--name", "short", says="--warmup 10000: the run has 20 steps; the warmup is 10% of them: 2")
    check([r["lr"] for r in records("short")][:2] == [2.5e-4, 5e-4], f"a warmup of two steps: {[r['lr'] for r in records('short')]}")
    works("--model", "small.json", "--train-data", "synthetic", "--train-num-samples", 2, "--epochs", 2, "--name", "two", says="the batch shrinks")
    works(*SYNTHETIC, "--accum-freq", 100, "--steps", 2, "--name", "accum", says="it shrinks")
    refused("1 samples, at least 2", "--model", "small.json", "--train-data", "synthetic", "--train-num-samples", 1)
    for size, patch in ((32, 32), (33, 16), (7, 7), (40, 13)):
        write("odd.json", json.dumps({"embed_dim": 3, "vision_cfg": {"image_size": size, "patch_size": patch, "width": 6, "head_width": 3, "layers": 1},
                                      "text_cfg": {"context_length": 2 + size % 3, "vocab_size": 3 + size, "width": 5, "heads": 5, "layers": 1}}))
        works("--model", "odd.json", "--train-data", "synthetic", "--train-num-samples", 9, "--batch-size", 3, "--steps", 2, "--name", f"size{size}")
    works(*SYNTHETIC, "--steps", 2, "--lock-image", "--lock-text", "--name", "all_locked")
    works(*SYNTHETIC, "--steps", 2, "--lr", 0, "--wd", 0, "--name", "no_rate")
    code, _, err = run(*SYNTHETIC, "--steps", 60, "--lr", 1e30, "--name", "diverges")
    check(code == 1 and err.count("\n") == 1 and "not finite" in err, f"--lr 1e30: exit {code}, {err[-300:]!r}")
    check(run(*SYNTHETIC, "--steps", 2, "--name", "a/b/c")[0] == 0, "--name with folders")


if __name__ == "__main__":
    sys.exit(main(globals()))
