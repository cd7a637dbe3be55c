#!/usr/bin/env bash
# The recipes compared: a small CLIP is pretrained on CIFAR-10 and drawn shapes, then fine-tuned by each recipe of scripts/ on two targets.
#
#   dev/experiments/finetuning.sh CIFAR10 [OUT]      CIFAR10 holds train-*.tar, test-00000.tar, classnames.txt; beside it lies emoji/ with
#                                                    train.csv and val.csv (or EMOJI=DIR); OUT: build/experiments/finetuning
#
# Targets: 1,500 CIFAR-10 pictures as negatives (zero-shot accuracy on 1,000 others), and the emoji with their names (mean of recall@10
# in both directions among the 163 validation pairs). General: zero-shot accuracy on 1,000 CIFAR-10 test pictures as they are. Each recipe
# takes 5 epochs. The pretrained model is one; SEEDS="0 1 2" are those of fine-tuning: order, crops, prompts. RATE multiplies the recipes'
# rates, which are made for models that were pretrained for weeks. Then steps of a ViT-B/32 (random weights, synthetic pairs): time and
# memory of each strategy. PROGRAMS is the folder of train_clip and wise_ft. PARTS="recipes cost" chooses.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
cifar=$(cd "${1:?which folder holds the pictures? see the head of this script}" && pwd)
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
    picture_set() { [ -s "$out/$1" ] || "$shifts" "$2" "$cifar/classnames.txt" "$out/$1" "${@:3}"; }
    picture_set pretrain.tar "${shards%::}" 0 20000 2 clean gray blur:1
    picture_set general.tar "${shards%::}" 0 1500 0 clean
    picture_set target.tar "${shards%::}" 20000 1500 0 invert
    picture_set test-clean.tar "$cifar/test-00000.tar" 0 1000 0 clean
    picture_set test-invert.tar "$cifar/test-00000.tar" 0 1000 0 invert
    picture_set val-invert.tar "$cifar/test-00000.tar" 2000 300 0 invert
    [ -e "$out/shapes/train.csv" ] || "$PYTHON" "$here/dev/data/make_shapes.py" --out "$out/shapes" --count 4000
    printf '%s\n' "a photo of a {}." "a negative of a photo of a {}." > "$out/templates.txt"
    cat > "$out/model.json" <<'JSON'
{"embed_dim": 64, "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4},
 "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}}
JSON
    [ -e "$out/start.bin" ] && return
    rm -rf "$out/runs/pretrain"
    "$PROGRAMS/train_clip" --model "$out/model.json" --train-data "$out/pretrain.tar::$out/shapes/train.csv" --batch-size 128 --lr 1e-3 --warmup 50 --steps 700 \
        --aug-cfg none --logs "$out/runs" --name pretrain --save-frequency 0 --log-every-n-steps 100
    mv "$out/runs/pretrain/checkpoints/step_700.bin" "$out/start.bin"
}

# run TARGET LABEL SEED RECIPE OPTION...: one fine-tuning, unless it was done
run() {
    export NAME=$1-$2-$3
    local recipe=$4 seed=$3
    shift 4
    [ ! -e "$LOGS/$NAME/done" ] || return 0
    rm -rf "${LOGS:?}/$NAME"
    mkdir -p "$LOGS"
    "$here/scripts/$recipe.sh" --seed "$seed" --epochs 5 --zeroshot-frequency 1000 --save-frequency 0 --log-every-n-steps 10 "$@" > "$LOGS/$NAME.out" 2>&1 || { cat "$LOGS/$NAME.out"; exit 1; }
    touch "$LOGS/$NAME/done"
}

recipes() { # target, seed: each recipe, for the same 5 epochs; what follows are options for so small a set
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
    print("|", name, "|", " | ".join(cells), "|")
PY
}

# Steps of a ViT-B/32 on synthetic pairs: medians over the 4 steps of the first epoch and of the second, when features are kept; peak of the process
cost() {
    local model=$out/b32.bin
    [ -e "$model" ] || "$PYTHON" "$here/dev/convert.py" --model ViT-B-32 --random 1 -o "$model"
    rm -rf "$out/cost"
    mkdir -p "$out/cost"
    measure() { # name, options
        local name=$1 batch=8
        [ "$name" != accumulation ] || batch=4
        shift
        "$PYTHON" - "$out/cost/$name.peak" "$PROGRAMS/train_clip" --pretrained "$model" --train-data synthetic --train-num-samples 32 --steps 8 --warmup 0 \
            --lr 1e-6 --batch-size $batch --aug-cfg none --save-frequency 1000000 --logs "$out/cost" --name "$name" "$@" > "$out/cost/$name.out" 2>&1 <<'PY'
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20))
sys.exit(code)
PY
        rm -rf "$out/cost/$name/checkpoints"
    }
    measure full
    measure checkpointing --grad-checkpointing
    measure partial --lock-image --lock-image-unlocked-groups 3 --lock-text --lock-text-unlocked-layers 3
    measure quick --lock-image --lock-image-unlocked-groups 2
    measure image_only --lock-text
    measure text_only --lock-image
    measure accumulation --accum-freq 2
    measure ema --ema-decay 0.999
    "$PYTHON" - "$out/cost" <<'PY'
import json, statistics, sys
folder, full = sys.argv[1], None
print("| ViT-B/32, batch 8 | step of the first epoch, s | second epoch, s | of full | peak memory, GiB |\n|---|---|---|---|---|")
for name in ("full", "checkpointing", "accumulation", "ema", "partial", "quick", "image_only", "text_only"):
    times = [row["batch_time"] for row in map(json.loads, open(f"{folder}/{name}/metrics.jsonl")) if "batch_time" in row]
    first, second = statistics.median(times[:4]), statistics.median(times[4:])
    full = full or second
    print(f"| {name} | {first:.2f} | {second:.2f} | {second / full:.2f} | {float(open(f'{folder}/{name}.peak').read()):.2f} |")
PY
}

for part in ${PARTS:-recipes cost}; do
    case $part in
        recipes) compare_recipes ;;
        cost) cost ;;
        *) echo "finetuning.sh: $part: no such part (recipes, cost)" >&2; exit 2 ;;
    esac
done
