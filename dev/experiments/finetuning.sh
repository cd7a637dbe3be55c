#!/usr/bin/env bash
# Compares the recipes: a small CLIP is pretrained on CIFAR-10 and drawn shapes, then fine-tuned by each
# recipe of scripts/ on two targets.
#
#   dev/experiments/finetuning.sh CIFAR10 [OUT]
#
# CIFAR10 holds train-*.tar, test-00000.tar and classnames.txt; next to it is the folder emoji/ (or EMOJI=DIR)
# with train.csv and val.csv. OUT is build/experiments/finetuning by default.
#
# Targets: 1,500 CIFAR-10 images turned into photographic negatives (zero-shot accuracy on 1,000 others), and
# the emoji with their names (mean of recall@10 in both directions among the 163 validation pairs). General:
# zero-shot accuracy on 1,000 unchanged CIFAR-10 test images. Each recipe takes 5 epochs. All start from one
# pretrained model; SEEDS="0 1 2" are the seeds of fine-tuning: order, crops, prompts. RATE multiplies the
# recipes' rates, which are meant for models that were pretrained for weeks. After that come time and memory
# of each strategy's steps with a ViT-B/32 (random weights, synthetic pairs), and the number of tokens by
# language. PARTS="recipes cost tokens" picks some of these. PROGRAMS is the folder of train_clip and wise_ft.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
cifar=$(cd "${1:?which folder holds the images? see the head of this script}" && pwd)
emoji=${EMOJI:-$(dirname "$cifar")/emoji}
mkdir -p "${2:-$here/build/experiments/finetuning}"
out=$(cd "${2:-$here/build/experiments/finetuning}" && pwd)
export PROGRAMS=${PROGRAMS:-$here} PYTHON=${PYTHON:-python3} OMP_WAIT_POLICY=passive
export RATE=${RATE:-20} LOGS=$out/runs
seeds=${SEEDS:-0 1 2}

prepare() {
    local shards shifts=${SHIFTS:-$out/make_shifts}
    shards=$(printf '%s::' "$cifar"/train-*.tar)
    [ -x "$shifts" ] || (cd "$here" && $(make -s flags | sed -n 1p) -o "$shifts" dev/data/make_shifts.c $(make -s flags | sed -n 2p))
    image_set() { [ -s "$out/$1" ] || "$shifts" "$2" "$cifar/classnames.txt" "$out/$1" "${@:3}"; }
    image_set pretrain.tar "${shards%::}" 0 20000 2 clean gray blur:1
    image_set general.tar "${shards%::}" 0 1500 0 clean
    image_set target.tar "${shards%::}" 20000 1500 0 invert
    image_set test-clean.tar "$cifar/test-00000.tar" 0 1000 0 clean
    image_set test-invert.tar "$cifar/test-00000.tar" 0 1000 0 invert
    image_set val-invert.tar "$cifar/test-00000.tar" 2000 300 0 invert
    [ -e "$out/shapes/train.csv" ] || "$PYTHON" "$here/dev/data/make_shapes.py" --out "$out/shapes" --count 4000
    printf '%s\n' "a photo of a {}." "a negative of a photo of a {}." > "$out/templates.txt"
    cat > "$out/model.json" <<'JSON'
{"embed_dim": 64, "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4},
 "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}}
JSON
    [ -e "$out/start.bin" ] && return
    rm -rf "$out/runs/pretrain"
    "$PROGRAMS/train_clip" --model "$out/model.json" --train-data "$out/pretrain.tar::$out/shapes/train.csv" --batch-size 128 \
        --lr 1e-3 --warmup 50 --steps 700 --aug-cfg none --logs "$out/runs" --name pretrain --save-frequency 0 --log-every-n-steps 100
    mv "$out/runs/pretrain/checkpoints/step_700.bin" "$out/start.bin"
}

# run TARGET LABEL SEED RECIPE OPTION...: fine-tunes once, unless that run is complete already
run() {
    export NAME=$1-$2-$3
    local recipe=$4 seed=$3
    shift 4
    [ ! -e "$LOGS/$NAME/done" ] || return 0
    rm -rf "${LOGS:?}/$NAME"
    mkdir -p "$LOGS"
    "$here/scripts/$recipe.sh" --seed "$seed" --epochs 5 --zeroshot-frequency 1000 --save-frequency 0 \
        --log-every-n-steps 10 "$@" > "$LOGS/$NAME.out" 2>&1 ||
        { cat "$LOGS/$NAME.out"; exit 1; }
    touch "$LOGS/$NAME/done"
}

recipes() { # target, seed: runs each recipe for the same 5 epochs, with options that suit so small a set
    local each
    for each in full quick text_only partial image_only mix_general small_data; do run "$1" $each "$2" $each; done
    run "$1" conservative "$2" conservative --ema-decay 0.98
    run "$1" production "$2" production
    [ "$1" = emoji ] && return
    run "$1" full_mask "$2" full --positives mask
    run "$1" flyp "$2" flyp
}

compare_recipes() {
    prepare
    export PRETRAINED=$out/start.bin CLASSNAMES=$cifar/classnames.txt GENERAL=$out/test-clean.tar GENERAL_TRAIN=$out/general.tar FACTORS=1::1
    for seed in $seeds; do
        (export TRAIN=$out/target.tar VAL=$out/val-invert.tar TARGET=$out/test-invert.tar TEMPLATES=$out/templates.txt; recipes cifar "$seed")
        (export TRAIN=$emoji/train.csv VAL=$emoji/val.csv TARGET=; recipes emoji "$seed")
    done
    "$PYTHON" - "$LOGS" $seeds <<'PY'
import json, os, statistics, sys
logs, seeds = sys.argv[1], sys.argv[2:]

def read(run, key, at, scale=100):
    rows = [json.loads(line) for line in open(f"{logs}/{run}/metrics.jsonl")]
    return scale * [row[key] for row in rows if key in row][at]

def cell(values):
    if len(values) == 1: return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"

recall = lambda run, at: (read(run, "image_to_text_R@10", at) + read(run, "text_to_image_R@10", at)) / 2
measures = {"cifar": (lambda run, at: read(run, "zeroshot_top1/target", at), lambda run, at: read(run, "zeroshot_top1/general", at)),
            "emoji": (recall, lambda run, at: read(run, "zeroshot_top1/general", at))}
print("| recipe | negatives: target % | general % | emoji: recall@10 % | general % |\n|---|---|---|---|---|")
names = ["start", "full", "production", "quick", "partial", "text_only", "image_only", "small_data", "conservative", "mix_general", "flyp", "full_mask"]
for name in names:
    cells = []
    for target, functions in measures.items():
        runs = [f"{target}-{'full' if name == 'start' else name}-{seed}" for seed in seeds]
        there = all(os.path.exists(f"{logs}/{run}/done") for run in runs)
        for f in functions:
            cells.append(cell([f(run, 0 if name == "start" else -1) for run in (runs[:1] if name == "start" else runs)]) if there else "")
    print("|", "pretrained model" if name == "start" else name, "|", " | ".join(cells), "|")
PY
}

# Steps of a ViT-B/32 on synthetic pairs with one thread: CPU seconds, since other work may run on the machine
# (medians over the 3 steps of the first epoch, and of the second, in which features come from the cache), and
# the peak memory of the process.
cost() {
    local model=$out/b32.bin
    [ -e "$model" ] || "$PYTHON" "$here/dev/convert.py" --model ViT-B-32 --random 1 -o "$model"
    rm -rf "$out/cost"
    mkdir -p "$out/cost"
    echo "| ViT-B/32, batch 8 | step of the first epoch, CPU s | second epoch | relative to full | peak memory, GiB |"
    echo "|---|---|---|---|---|"
    measure() { # name, batch, options
        local name=$1 batch=$2
        shift 2
        OMP_NUM_THREADS=1 "$PYTHON" - "$out/cost" "$name" "$PROGRAMS/train_clip" --pretrained "$model" --train-data synthetic --train-num-samples 24 \
            --batch-size "$batch" --steps 6 --warmup 0 --lr 1e-6 --aug-cfg none --save-frequency 1000000 --logs "$out/cost" --name "$name" "$@" <<'PY'
import os, resource, statistics, subprocess, sys
folder, name = sys.argv[1:3]
run, seconds = subprocess.Popen(sys.argv[3:], stdout=subprocess.PIPE, text=True), []
for line in run.stdout:
    if line.startswith(("run folder", "step ")):
        fields = open(f"/proc/{run.pid}/stat").read().rsplit(")", 1)[1].split()
        seconds.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
if run.wait(): sys.exit(f"{name}: exit {run.returncode}")
steps = [b - a for a, b in zip(seconds, seconds[1:])]
first, second = statistics.median(steps[:3]), statistics.median(steps[3:])
if name == "full": open(f"{folder}/full.seconds", "w").write(str(second))
share = second / float(open(f"{folder}/full.seconds").read())
print(f"| {name} | {first:.2f} | {second:.2f} | {share:.2f} | {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} |", flush=True)
PY
        rm -rf "$out/cost/$name/checkpoints"
    }
    measure full 8
    measure checkpointing 8 --grad-checkpointing
    measure accumulation 4 --accum-freq 2
    measure ema 8 --ema-decay 0.999
    measure partial 8 --lock-image --lock-image-unlocked-groups 3 --lock-text --lock-text-unlocked-layers 3
    measure quick 8 --lock-image --lock-image-unlocked-groups 2
    measure image_only 8 --lock-text
    measure text_only 8 --lock-image
}

# Number of tokens of the same names in 14 languages, without the start and end tokens
tokens() {
    cat > "$out/tokens.c" <<'C'
#include "clipc/base/utils.h"
#include "clipc/data/tokenizer.h"

int main(void) {
    char error[256], line[65536];
    int ids[512];
    Tokenizer *t = tokenizer_create(tokenizer_builtin_merges, (size_t)tokenizer_builtin_merges_length, error);
    while (t && fgets(line, sizeof line, stdin)) {
        char *rest = line, *path = strsep(&rest, "\t"), *title = strsep(&rest, "\t"), *lang = strsep(&rest, "\t\n");
        if (path && lang) printf("%s %d\n", lang, tokenizer_encode(t, title, strlen(title), ids, 512) - 2);
    }
    tokenizer_free(t);
}
C
    (cd "$here" && $(make -s flags | sed -n 1p) -o "$out/tokens" "$out/tokens.c" $(make -s flags | sed -n 2p))
    echo "language, mean tokens, most"
    tail -n +2 "$emoji/train_multilingual.csv" | "$out/tokens" |
        awk '{ sum[$1] += $2; n[$1]++; if ($2 > most[$1]) most[$1] = $2 } END { for (l in sum) printf "%s %.1f %d\n", l, sum[l] / n[l], most[l] }' | sort -k2n
}

for part in ${PARTS:-recipes cost tokens}; do
    case $part in
        recipes) compare_recipes ;;
        cost) cost ;;
        tokens) tokens ;;
        *) echo "finetuning.sh: $part: no such part (recipes, cost, tokens)" >&2; exit 2 ;;
    esac
done
