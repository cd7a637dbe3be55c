#!/usr/bin/env python3
"""A training run of train_clip against the losses that open_clip's training program recorded (golden/train: losses.json).

  dev/test/check_losses.py --options LOSSES.json                   one line a recorded run: its key, then the options that repeat it
  dev/test/check_losses.py LOSSES.json KEY METRICS.jsonl [WEIGHTS.safetensors]   compare a finished run, and its final weights

--precision amp_bf16: of a run in bf16 the losses alone are compared; --fp32 METRICS.jsonl is the same run in fp32, whose distances say
how much this run amplifies rounding. --steps N: the first N steps of the recorded run.
losses.json: steps, batch; lists of one number a step: lr, logit_scale, loss_float64 and its variants; step0_gradient_norms and
final_weights_float64 of the plain run.
"""
import argparse
import json
import math
import re
import struct
import sys

import numpy as np

LOSS = 1e-5  # absolute; PyTorch's own float32 stays within 5e-7 of its float64
LOSS_BF16 = 3e-2  # absolute; PyTorch's own amp_bf16 stays within 3.5e-3
# Clipping makes a run amplify rounding: where it takes fp32 away from float64, it takes bf16, which rounds 2^15 times as coarsely, away as much
# further, in a single run up to 3 times that (measured; the order in which sums are taken makes a tenth of it).
BF16_AMPLIFIED = 4 * 2 ** 15
GRADIENT_NORM = 1e-5  # relative
WEIGHT_NORM = 1e-4  # relative; several times what float32 does to 40 steps of AdamW
KEY_BIAS_NORM = 2e-2  # relative; the true gradient of a key bias is 0, so AdamW divides rounding noise by itself there

passed = failed = 0


def expect(ok, what):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok and failed <= 20:
        print("FAILED", what)


def variant_options(key):
    """The options that a variant's key names; None where another program computed it or the key is not known here."""
    rules = [(r"loss_float64", ""), (r"loss_float64_grad_clip_([0-9.]+)", "--grad-clip-norm {0}"),
             (r"loss_float64_lock_image_(\d+)_groups", "--lock-image --lock-image-unlocked-groups {0}"),
             (r"loss_float64_lock_text_(\d+)_layers", "--lock-text --lock-text-unlocked-layers {0}")]
    for pattern, options in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return options.format(*match.groups())
    return None


def print_options(losses, steps):
    """The learning rate and the warmup follow from the recorded rates: warmup W reaches the highest rate at step W - 1, cosine holds it at W.

    A shorter run has the same rates only within the warmup."""
    rates = losses["lr"]
    warmup = max(i for i, rate in enumerate(rates) if rate >= max(rates) * (1 - 1e-12))
    if steps != losses["steps"] and steps > warmup:
        sys.exit(f"check_losses.py: --steps {steps}: at most {warmup}, the warmup, after which the rate depends on the length of the run")
    for key in losses:
        if key.startswith("loss_float64"):
            options = variant_options(key)
            if options is None:
                print(f"check_losses.py: {key}: not compared, the options of this run are not known", file=sys.stderr)
            else:
                print(key, "--steps", steps, "--batch-size", losses["batch"], "--lr", repr(max(rates)), "--warmup", warmup, options)


def read_steps(path):
    with open(path) as f:
        return [row for row in map(json.loads, f) if "loss" in row]


def tolerances(losses, key, steps, fp32_rows):
    """In bf16, of each step: LOSS_BF16, or more once the run has taken fp32 away from float64."""
    bounds, farthest = [], 0.0
    for i in range(steps):
        if i < len(fp32_rows):
            farthest = max(farthest, min(abs(fp32_rows[i]["loss"] - losses[key][i]), LOSS))
        bounds.append(max(LOSS_BF16, BF16_AMPLIFIED * farthest))
    return bounds


def check_steps(losses, key, rows, bounds, steps):
    expect([row["step"] for row in rows] == list(range(rows[0]["step"], rows[0]["step"] + steps)) if rows else False, f"{len(rows)} logged steps instead of {steps}")
    worst = 0.0
    for i, (row, loss, lr, bound) in enumerate(zip(rows, losses[key], losses["lr"], bounds)):
        expect(abs(row["loss"] - loss) <= bound, f"step {i}: loss {row['loss']!r} instead of {loss!r}, {bound:.1e} is allowed")  # NaN compares false, so it fails
        expect(abs(row["lr"] - lr) <= 1e-6 * lr + 1e-12, f"step {i}: lr {row['lr']!r} instead of {lr!r}")
        worst = max(worst, abs(row["loss"] - loss))
    if key == "loss_float64" and max(bounds) == LOSS:
        for i, (row, scale) in enumerate(zip(rows, losses["logit_scale"])):
            expect(abs(row["logit_scale"] - scale) <= 1e-5 * scale, f"step {i}: logit_scale {row['logit_scale']!r} instead of {scale!r}")
    print(f"{key}: largest distance of a loss {worst:.1e}, at most {max(bounds):.1e} is allowed")


def check_gradient_norm(norms, row):
    norm = math.sqrt(sum(x * x for x in norms.values()))
    expect(abs(row["grad_norm"] - norm) <= GRADIENT_NORM * norm, f"gradient norm at the first step {row['grad_norm']!r} instead of {norm!r}")


def read_safetensors(path):
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    header.pop("__metadata__", None)
    return {name: np.frombuffer(data[slice(*x["data_offsets"])], "<f4").astype(np.float64) for name, x in header.items()}


def check_weights(expected, weights):
    worst = 0.0
    for name, x in expected.items():
        if name not in weights:
            expect(False, f"{name}: not among the final weights")
            continue
        norm = np.sqrt(np.sum(weights[name] ** 2))
        error = abs(norm - x["norm"]) / max(x["norm"], 1e-3)
        tolerance = KEY_BIAS_NORM if name.endswith("in_proj_bias") else WEIGHT_NORM
        expect(error <= tolerance, f"{name}: norm of the final weights {norm!r} instead of {x['norm']!r}")
        worst = max(worst, error / tolerance)
    print(f"final weights: largest distance of a norm {worst:.2f} of its tolerance")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("losses", metavar="LOSSES.json")
    parser.add_argument("--options", action="store_true")
    parser.add_argument("key", metavar="KEY", nargs="?")
    parser.add_argument("metrics", metavar="METRICS.jsonl", nargs="?")
    parser.add_argument("weights", metavar="WEIGHTS.safetensors", nargs="?")
    parser.add_argument("--precision", choices=["fp32", "amp_bf16"], default="fp32")
    parser.add_argument("--fp32", metavar="METRICS.jsonl")
    parser.add_argument("--steps", type=int)
    given = parser.parse_args()
    with open(given.losses) as f:
        losses = json.load(f)
    steps = given.steps or losses["steps"]
    if given.options:
        print_options(losses, steps)
        return 0
    if not given.metrics:
        parser.error("needs LOSSES.json KEY METRICS.jsonl")
    rows = read_steps(given.metrics)
    fp32 = given.precision == "fp32"
    check_steps(losses, given.key, rows, [LOSS] * steps if fp32 else tolerances(losses, given.key, steps, read_steps(given.fp32) if given.fp32 else []), steps)
    if given.key == "loss_float64" and rows and fp32:
        check_gradient_norm(losses["step0_gradient_norms"], rows[0])
    if given.weights and fp32:
        check_weights(losses["final_weights_float64"], read_safetensors(given.weights))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
