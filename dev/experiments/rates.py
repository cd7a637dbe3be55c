#!/usr/bin/env python3
"""Does the rate that lr_find recommends learn, wherever it is asked? Twelve settings: from random weights, fine-tuning, strange pairs at a
logit_scale of 100, locked towers, batches of 8 to 512, ramps of 20 to 400 steps. In each, a small CLIP trains at a grid of rates and at
the recommended one.

  dev/experiments/rates.py --data DIR [-o OUT] [WORD...]     the settings whose names hold a WORD; some 20 minutes on 2 cores

DIR holds CIFAR-10 as tar shards; the other pairs are drawn (dev/data/make_shapes.py). PROGRAMS: the folder of train_clip and lr_find. The
loss of a run is the mean of its last tenth of steps. A setting passes if the recommended rate ends within 5% of the fall of the best rate
of the grid, or if lr_find says "No rate" and no rate of the grid falls below the loss of equal features by 2%. The table goes to
OUT/rates.md; runs that are complete are not repeated.
"""
import argparse
import json
import math
import os
import re
import subprocess
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = os.environ.get("PROGRAMS", ROOT)
sys.path[:0] = [os.path.join(ROOT, "dev"), os.path.join(ROOT, "dev", "test")]
from packed import open_packed  # noqa: E402
from seals import sealed, unsealed  # noqa: E402

MODEL = {"embed_dim": 48, "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
         "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}}
GRID = [1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
PARTIAL = ["--lock-image", "--lock-image-unlocked-groups", "1", "--lock-text", "--lock-text-unlocked-layers", "1"]
# name, weights, pairs, batch, steps of a run, its options, options of lr_find
SETTINGS = [("random weights", "random", "paper", 64, 250, [], []),
            ("random weights, batch 8", "random", "paper", 8, 800, [], []),
            ("random weights, batch 512", "random", "paper", 512, 60, [], []),
            ("random weights, ramp of 20", "random", "paper", 64, 250, [], ["--num-steps", 20]),
            ("random weights, photographs", "random", "cifar", 64, 250, [], []),
            ("fine-tuning", "paper", "card", 64, 250, [], ["--repeats", 3]),
            ("fine-tuning, ramp of 400", "paper", "card", 64, 250, [], ["--num-steps", 400]),
            ("image tower locked", "paper", "card", 64, 250, ["--lock-image"], []),
            ("partial", "paper", "card", 64, 250, PARTIAL, []),
            ("logit_scale 100, strange pairs", "hot", "cifar", 64, 250, [], ["--repeats", 3]),
            ("logit_scale 100, ramp of 30", "hot", "card", 16, 500, [], ["--num-steps", 30]),
            ("logit_scale 100, text locked", "hot", "card", 64, 250, ["--lock-text"], [])]


def run(program, *arguments, allowed=(0,)):
    command = [os.path.join(PROGRAMS, program), *map(str, arguments)]
    r = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if r.returncode not in allowed:
        sys.exit(f"rates.py: {' '.join(command)}: exit code {r.returncode}\n{r.stdout[-2000:]}{r.stderr}")
    return r.stdout


def train(o, name, options):
    """-> the .bin of the run, or None where it ended early, and the losses of its steps"""
    folder = f"{o.out}/logs/{name}"
    if not os.path.exists(f"{folder}/report.html"):
        subprocess.run(["rm", "-rf", folder], check=True)
        run("train_clip", *options, "--precision", "fp32", "--logs", f"{o.out}/logs", "--name", name, "--save-frequency", 0, allowed=(0, 1))
    with open(f"{folder}/metrics.jsonl") as f:
        losses = [row["loss"] for row in map(json.loads, f) if "loss" in row]
    saved = [f for f in os.listdir(f"{folder}/checkpoints") if re.fullmatch(r"(step|epoch)_\d+\.bin", f)]
    return (f"{folder}/checkpoints/{saved[0]}" if saved else None), losses


def prepare(o):
    """-> name -> options: of the weights, and of the pairs"""
    os.makedirs(o.out, exist_ok=True)
    for name, options in (("paper", []), ("card", ["--domain", "shifted"])):
        if not os.path.exists(f"{o.out}/{name}/train.csv"):
            subprocess.run([sys.executable, f"{ROOT}/dev/data/make_shapes.py", "--out", f"{o.out}/{name}", "--count", "4000", *options], check=True)
    with open(f"{o.out}/model.json", "w") as f:
        json.dump(MODEL, f)
    pairs = {"paper": ["--train-data", f"{o.out}/paper/train.csv"], "card": ["--train-data", f"{o.out}/card/train.csv"],
             "cifar": ["--train-data", f"{o.data}/train-00000.tar"]}
    random = ["--model", f"{o.out}/model.json"]
    paper, _ = train(o, "start", [*random, *pairs["paper"], "--batch-size", 64, "--steps", 500, "--lr", 1e-3])
    contents = bytearray(unsealed(open(paper, "rb").read()))
    scale = np.asarray(open_packed(paper).entries["logit_scale"].read()).tobytes()
    if contents.count(scale) != 1:
        sys.exit("rates.py: logit_scale is not alone in the file; another --seed helps")
    with open(f"{o.out}/hot.bin", "wb") as f: # as the published CLIPs have it
        f.write(sealed(contents.replace(scale, np.float32(math.log(100)).tobytes())))
    return {"random": random, "paper": ["--pretrained", paper], "hot": ["--pretrained", f"{o.out}/hot.bin"]}, pairs


def ends(losses, steps):
    """Mean loss of the last tenth; NaN where the run ended early."""
    return float(np.mean(losses[-max(1, steps // 10):])) if len(losses) == steps else math.nan


def measure(o, setting, weights, pairs):
    """-> the setting's line of the table, whether it passes"""
    name, start, data, batch, steps, options, ramp = setting
    file = re.sub(r"\W+", "_", name)
    common = [*weights[start], *pairs[data], "--batch-size", batch, *options]
    found = run("lr_find", *common, "--precision", "fp32", "--output", o.out, *ramp, allowed=(0, 1))
    said = re.search(r"^(Take --lr (\S+) .*; ((?:fairly |un)?sure)|No rate)", found, re.M)
    runs = {rate: train(o, f"{file}-{rate:g}", [*common, "--steps", steps, "--lr", rate])[1] for rate in GRID}
    results = {rate: ends(losses, steps) for rate, losses in runs.items()}
    best = min(GRID, key=lambda rate: results[rate] if math.isfinite(results[rate]) else math.inf)
    begin = np.mean([losses[0] for losses in runs.values()])
    cells = " | ".join(f"**{loss:.3f}**" if rate == best else f"{loss:.3f}" for rate, loss in results.items())
    head = f"| {name} | {batch} | {begin:.2f} | {cells}"
    if said.group(1) == "No rate":
        passes = results[best] > 0.98 * math.log(batch)
        return f"{head} | no rate | {'passes' if passes else 'FAILS'} |", passes
    rate = float(said.group(2))
    loss = ends(train(o, f"{file}-{rate:g}", [*common, "--steps", steps, "--lr", rate])[1], steps)
    behind = (loss - results[best]) / (begin - results[best])
    passes = behind <= 0.05
    return f"{head} | {rate:g}, {said.group(3)}: {loss:.3f} | {'passes' if passes else 'FAILS'}: {100 * behind:.1f}% |", passes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("-o", "--out", default=os.path.join(ROOT, "build", "experiments", "rates"))
    parser.add_argument("words", nargs="*")
    o = parser.parse_args()
    o.data, o.out = os.path.abspath(o.data), os.path.abspath(o.out)
    weights, pairs = prepare(o)
    lines = ["| setting | batch | first loss | " + " | ".join(f"{rate:g}" for rate in GRID) + " | recommended | |", "|---|" + "---|" * (len(GRID) + 4)]
    passed = 0
    settings = [s for s in SETTINGS if not o.words or any(word in s[0] for word in o.words)]
    for setting in settings:
        line, passes = measure(o, setting, weights, pairs)
        passed += passes
        lines.append(line)
        print(line, flush=True)
        with open(f"{o.out}/rates.md", "w") as f:
            f.write("\n".join(lines) + "\n")
    print(f"{passed} of {len(settings)} settings pass; {o.out}/rates.md")
    return passed < len(settings)


if __name__ == "__main__":
    sys.exit(main())
