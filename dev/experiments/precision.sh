#!/usr/bin/env bash
# Does training in amp_bf16 reach the accuracy of fp32? A small CLIP (9.7 million parameters) learns CIFAR-10
# from random weights, 600 steps of 64 pairs, three seeds in both precisions. Reported: how far the losses
# diverge in the first 60 steps, and the final zero-shot accuracy.
#
#   dev/experiments/precision.sh CIFAR10 [OUT]
#
# CIFAR10 holds train-*.tar, test-00000.tar and classnames.txt; OUT is build/experiments/precision by default.
# Complete runs are not repeated. PROGRAMS: the folder of train_clip; PYTHON: python3.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
data=$(cd "${1:?which folder holds the images? see the head of this script}" && pwd)
mkdir -p "${2:-$here/build/experiments/precision}"
out=$(cd "${2:-$here/build/experiments/precision}" && pwd)
bin=${PROGRAMS:-$here}

cat > "$out/model.json" <<'JSON'
{"embed_dim": 128, "vision_cfg": {"image_size": 32, "patch_size": 4, "width": 192, "layers": 6},
 "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3}}
JSON
shards=$(printf '%s::' "$data"/train-*.tar)
for seed in 0 1 2; do
    for precision in fp32 amp_bf16; do
        name=$precision-$seed
        grep -q zeroshot_top1 "$out/$name/metrics.jsonl" 2>/dev/null && continue
        rm -rf "${out:?}/$name"
        "$bin/train_clip" --model "$out/model.json" --train-data "${shards%::}" --dataset-type webdataset --precision "$precision" --seed "$seed" --steps 600 --batch-size 64 --lr 5e-4 --warmup 50 \
            --save-frequency 0 --zeroshot-data "$data/test-00000.tar" --classnames "$data/classnames.txt" --zeroshot-frequency 1000000 --logs "$out" --name "$name" > /dev/null
    done
done
"${PYTHON:-python3}" - "$out" << 'PYTHON'
import json, statistics, sys
out = sys.argv[1]
print("| seed | fp32 | amp_bf16 | largest difference of the loss in 60 steps |\n|---|---|---|---|")
accuracy = {"fp32": [], "amp_bf16": []}
for seed in range(3):
    losses = {}
    for precision in accuracy:
        records = [json.loads(line) for line in open(f"{out}/{precision}-{seed}/metrics.jsonl")]
        losses[precision] = [r["loss"] for r in records if "loss" in r]
        accuracy[precision].append(100 * [r["zeroshot_top1"] for r in records if "zeroshot_top1" in r][-1])
    worst = max(abs(a - b) for a, b in zip(losses["fp32"][:60], losses["amp_bf16"][:60]))
    print(f"| {seed} | {accuracy['fp32'][seed]:.2f} % | {accuracy['amp_bf16'][seed]:.2f} % | {worst:.4f} |")
means = {p: (statistics.mean(a), statistics.stdev(a)) for p, a in accuracy.items()}
print("| mean ± standard deviation | " + " | ".join(f"{m:.2f} ± {s:.2f} %" for m, s in means.values()) + " | |")
PYTHON
