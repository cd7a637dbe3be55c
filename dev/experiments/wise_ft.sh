#!/usr/bin/env bash
# WiSE-FT on CIFAR-10 from random weights: pretrains a small CLIP on six styles, fine-tunes it on clean
# images, sweeps α; three seeds.
#
#   dev/experiments/wise_ft.sh CIFAR10 [OUT]
#
# CIFAR10 holds train-*.tar, test-00000.tar and classnames.txt; OUT is build/experiments/wise_ft by default.
# SEEDS="0 1 2" sets the seeds, TARGET=50000 the number of clean images to fine-tune on, PROGRAMS the folder
# of train_clip and wise_ft. Near shifts (except gray) occur in neither training; far shifts are styles of the
# pretraining, so a loss there is forgetting. --select uses the first 3,000 test images, the curve is measured
# on the next 3,000.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
data=$(cd "${1:?which folder holds the images? see the head of this script}" && pwd)
mkdir -p "${2:-$here/build/experiments/wise_ft}"
out=$(cd "${2:-$here/build/experiments/wise_ft}" && pwd)
bin=${PROGRAMS:-$here}
target=${TARGET:-50000}

cat > "$out/model.json" <<'JSON'
{"embed_dim": 64, "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4},
 "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}}
JSON
near="gray blur:0.6 contrast:0.5 noise:15 dark:0.6 bright:40 warm:1.2"
far="blur:1 contrast:0.3 noise:30 invert"
shards=$(printf '%s::' "$data"/train-*.tar)

shifts=${SHIFTS:-$out/make_shifts}
[ -x "$shifts" ] || (cd "$here" && $(make -s flags | sed -n 1p) -o "$shifts" dev/data/make_shifts.c $(make -s flags | sed -n 2p))
image_set() { [ -s "$out/$1" ] || "$shifts" "$2" "$data/classnames.txt" "$out/$1" "${@:3}"; }
image_set pretrain.tar "${shards%::}" 0 50000 3 clean gray blur:1 contrast:0.3 noise:30 invert
image_set "clean-$target.tar" "${shards%::}" 0 "$target" 1 clean
sets=()
for style in clean $near $far; do
    image_set "val-$style.tar" "$data/test-00000.tar" 0 3000 0 "$style"
    image_set "test-$style.tar" "$data/test-00000.tar" 3000 3000 0 "$style"
done

evaluate() { # val|test, styles: sets the --eval options
    local which=$1 style
    shift
    sets=()
    for style in "$@"; do sets+=(--eval "$style=$out/$which-$style.tar"); done
}

for seed in ${SEEDS:-0 1 2}; do
    run=$out/seed$seed
    tuned=$run/target$target
    common=(--classnames "$data/classnames.txt" --precision fp32)
    if [ ! -e "$run/zeroshot.bin" ]; then
        rm -rf "$run"
        "$bin/train_clip" --model "$out/model.json" --train-data "$out/pretrain.tar" --steps 1400 --batch-size 128 --lr 1e-3 --warmup 60 --wd 0.2 \
            --seed "$seed" --aug-cfg none --precision fp32 --logs "$run" --name pretrain --save-frequency 0 --log-every-n-steps 100
        cp "$run"/pretrain/checkpoints/step_1400.bin "$run/zeroshot.bin"
    fi
    if [ ! -e "$tuned/finetuned.bin" ]; then
        rm -rf "$tuned"
        "$bin/train_clip" --pretrained "$run/zeroshot.bin" --train-data "$out/clean-$target.tar" --steps 300 --batch-size 128 --lr 5e-4 --warmup 20 --wd 0.1 \
            --seed "$seed" --aug-cfg none --precision fp32 --logs "$tuned" --name finetune --save-frequency 0 --log-every-n-steps 100
        cp "$tuned"/finetune/checkpoints/step_300.bin "$tuned/finetuned.bin"
    fi
    models=(--zeroshot "$run/zeroshot.bin" --finetuned "$tuned/finetuned.bin")
    for shift in near far; do
        evaluate test clean ${!shift}
        mkdir -p "$tuned/$shift"
        (cd "$tuned/$shift" && "$bin/wise_ft" "${models[@]}" --alpha 0:1:0.1 "${sets[@]}" "${common[@]}")
    done
    evaluate val clean $near
    "$bin/wise_ft" "${models[@]}" --select mean "${sets[@]}" "${common[@]}" --save "$tuned/select"
done

# one line per α: mean over the seeds and its standard error
"${PYTHON:-python3}" - "$out" "$target" ${SEEDS:-0 1 2} <<'PYTHON'
import csv, statistics, sys
out, target, seeds = sys.argv[1], sys.argv[2], sys.argv[3:]
rows = {shift: [list(csv.DictReader(open(f"{out}/seed{seed}/target{target}/{shift}/wise_ft.csv"))) for seed in seeds] for shift in ("near", "far")}
def cell(values):
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{100 * statistics.mean(values):5.1f} ± {100 * error:.1f}"
print("| α | clean % | mean near % | mean far % |\n|---|---|---|---|")
columns = (("near", "clean"), ("near", "shift"), ("far", "shift"))
for i, row in enumerate(rows["near"][0]):
    print("|", row["alpha"], "|", " | ".join(cell([float(r[i][key]) for r in rows[shift]]) for shift, key in columns), "|")
gains = [max(float(r["shift"]) for r in run[1:-1]) - max(float(run[0]["shift"]), float(run[-1]["shift"])) for run in rows["near"]]
print("gain of the best α strictly between 0 and 1 over the better of the two models, mean near, points by seed:", " ".join(f"{100 * g:+.2f}" for g in gains))
PYTHON
