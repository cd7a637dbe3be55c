#!/usr/bin/env python3
"""Does the rate that lr_find recommends train well? Fine-tunes a small CLIP on CIFAR-10 at a grid of rates and at the
recommended one, for several strategies and seeds, and compares the final zero-shot accuracy.

  dev/experiments/range_test.py --data DIR [-o OUT]     7 rates, 3 strategies, 3 seeds, 600 steps: hours on 2 cores
  dev/experiments/range_test.py --data DIR --quick      3 rates, 1 seed, 40 steps: minutes, only shows that it runs

DIR holds CIFAR-10 as tar shards: train-*.tar, test-00000.tar (with .cls), classnames.txt, templates.txt. The model is
first trained on gray images of half of the shards, then fine-tuned on colour images of the other half. The table is
written to OUT/range_test.md. Complete runs are not repeated, so an interrupted experiment can be continued.
"""
import argparse
import glob
import json
import os
import re
import subprocess
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL = {"embed_dim": 64, "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4},
         "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}}
STRATEGIES = {"full": [], "image tower locked": ["--lock-image"],
              "partial": ["--lock-image", "--lock-image-unlocked-groups", "2", "--lock-text", "--lock-text-unlocked-layers", "2"]}
RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]


def run(*command):
    r = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True)
    if r.returncode:
        sys.exit(f"range_test.py: {' '.join(map(str, command))}: exit code {r.returncode}\n{r.stdout[-2000:]}{r.stderr}")
    return r.stdout


def train(o, name, start, shards, steps, options):
    """-> the .bin of the run and its last zero-shot accuracy in %"""
    name = f"{name}-{steps}x{o.batch}"
    folder = f"{o.out}/logs/{name}"
    numbered = lambda: [f for f in glob.glob(f"{folder}/checkpoints/*_[0-9]*.bin") if not f.endswith("_ema.bin")]
    if not numbered():
        subprocess.run(["rm", "-rf", folder], check=True)
        run("./train_clip", *start, "--train-data", "::".join(shards), "--dataset-type", "webdataset", "--batch-size", o.batch, "--steps", steps,
            "--precision", "fp32", "--logs", f"{o.out}/logs", "--name", name, "--save-frequency", 0, "--log-every-n-steps", 10,
            "--zeroshot-data", f"{o.data}/test-00000.tar", "--classnames", f"{o.data}/classnames.txt", "--templates", f"{o.data}/templates.txt",
            "--zeroshot-frequency", 1000000, *options)
    with open(f"{folder}/metrics.jsonl") as f:
        return numbered()[0], [100 * json.loads(line)["zeroshot_top1"] for line in f if "zeroshot_top1" in line][-1]


def recommend(o, strategy, pretrained, shards):
    """-> the rate that lr_find recommends; its plot and curves are left in OUT"""
    found = run("./lr_find", "--pretrained", pretrained, "--train-data", "::".join(shards), "--dataset-type", "webdataset", "--batch-size", o.batch,
                "--precision", "fp32", "--repeats", 1 if o.quick else 3, "--output", f"{o.out}/{strategy.replace(' ', '_')}", *STRATEGIES[strategy])
    return float(re.search(r"Take --lr (\S+) ", found).group(1))


def row(strategy, rates, recommended, results):
    """-> the strategy's line of the table; results: {rate: [accuracy of each seed]}"""
    mean = {rate: np.mean(a) for rate, a in results.items()}
    error = {rate: np.std(a, ddof=1) / np.sqrt(len(a)) if len(a) > 1 else 0.0 for rate, a in results.items()}
    cell = lambda rate: f"{mean[rate]:.1f} ± {error[rate]:.1f}"
    best = max(rates, key=lambda r: mean[r])
    below, allowed = mean[best] - mean[recommended], 1 + 2 * np.hypot(error[best], error[recommended])
    return (f"| {strategy} | " + " | ".join(cell(r) for r in rates) +
            f" | {recommended:g}: {cell(recommended)} | {below:+.1f} below the best, {'within' if below <= allowed else 'beyond'} {allowed:.1f} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("-o", "--out", default=os.path.join(ROOT, "build", "experiments", "range_test"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    o = parser.parse_args()
    o.data = os.path.abspath(o.data)
    if o.quick:
        o.seeds, o.steps, o.batch, o.rates = 1, 40, 32, [1e-5, 3e-4, 1e-2]
    shards = sorted(glob.glob(f"{o.data}/train-*.tar"))
    if len(shards) < 2:
        sys.exit(f"range_test.py: {o.data}: holds no train-*.tar; give --data a folder of CIFAR-10 shards")
    half = len(shards) // 2
    os.makedirs(o.out, exist_ok=True)
    run("make", "-s", "train_clip", "lr_find")
    with open(f"{o.out}/model.json", "w") as f:
        json.dump(MODEL, f)
    pretrained, before = train(o, "pretrain", ["--model", f"{o.out}/model.json"], shards[:half], 3 * o.steps,
                               ["--lr", 1e-3, "--aug-cfg", "scale=0.9,1", "gray_scale_prob=1"])
    recommended = {strategy: recommend(o, strategy, pretrained, shards[half:]) for strategy in o.strategies}
    results = {strategy: {rate: [] for rate in [*o.rates, recommended[strategy]]} for strategy in o.strategies}
    for seed in range(o.seeds): # finish one seed before the next, so that an interrupted experiment has complete tables
        for strategy in o.strategies:
            for rate, accuracies in results[strategy].items():
                accuracies.append(train(o, f"{strategy.replace(' ', '_')}-{rate:g}-{seed}", ["--pretrained", pretrained], shards[half:], o.steps,
                                        ["--lr", rate, "--seed", seed, *STRATEGIES[strategy]])[1])
                print(f"seed {seed}, {strategy}, {rate:g}: {accuracies[-1]:.1f}", flush=True)
        lines = [f"Accuracy in %, mean of {seed + 1} seeds ± standard error; {o.steps} steps × {o.batch} from a model trained for {3 * o.steps} "
                 f"({before:.1f}%).",
                 f"`dev/experiments/range_test.py --data CIFAR10 --steps {o.steps} --batch {o.batch} --seeds {seed + 1}`", "",
                 "| strategy | " + " | ".join(f"{r:g}" for r in o.rates) + " | recommended | verdict |", "|---|" + "---|" * (len(o.rates) + 2)]
        lines += [row(strategy, o.rates, recommended[strategy], results[strategy]) for strategy in o.strategies]
        with open(f"{o.out}/range_test.md", "w") as f:
            f.write("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"{o.out}/range_test.md")


if __name__ == "__main__":
    main()
