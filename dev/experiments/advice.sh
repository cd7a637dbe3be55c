#!/usr/bin/env bash
# Tests the advice on real runs: a small CLIP learns CIFAR-10 in colour, then is fine-tuned on inverted images
# in four ways, one sound and three made to go wrong. Those three must each print their line of advice, the
# sound one must print none.
#
#   dev/experiments/advice.sh CIFAR10 [OUT]
#
# CIFAR10 holds train-*.tar, test-00000.tar and classnames.txt; OUT is build/experiments/advice by default.
#
# The target set holds inverted images, the general set clean ones. PROGRAMS: the folder of train_clip.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
data=$(cd "${1:?which folder holds the images? see the head of this script}" && pwd)
mkdir -p "${2:-$here/build/experiments/advice}"
out=$(cd "${2:-$here/build/experiments/advice}" && pwd)
bin=${PROGRAMS:-$here}

cat > "$out/model.json" <<'JSON'
{"embed_dim": 64, "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 96, "head_width": 32, "layers": 2},
 "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}
JSON
shifts=${SHIFTS:-$out/make_shifts}
[ -x "$shifts" ] || (cd "$here" && $(make -s flags | sed -n 1p) -o "$shifts" dev/data/make_shifts.c $(make -s flags | sed -n 2p))
shards=$(printf '%s::' "$data"/train-*.tar)
image_set() { [ -s "$out/$1" ] || "$shifts" "$2" "$data/classnames.txt" "$out/$1" "${@:3}"; }
image_set clean.tar "${shards%::}" 0 40000 0 clean
image_set invert.tar "${shards%::}" 40000 10000 0 invert
image_set some.tar "${shards%::}" 0 10000 0 clean
image_set few.tar "${shards%::}" 40000 1024 0 invert
for style in clean invert; do image_set "test-$style.tar" "$data/test-00000.tar" 0 2000 0 "$style"; done
image_set val-invert.tar "$data/test-00000.tar" 2000 1024 0 invert

common=(--batch-size 128 --aug-cfg none --classnames "$data/classnames.txt" --logs "$out/logs" --save-frequency 0 --log-every-n-steps 1)
if [ ! -e "$out/pretrained.bin" ]; then
    rm -rf "$out/logs/pretrain"
    "$bin/train_clip" --model "$out/model.json" --train-data "$out/clean.tar" --steps 600 --lr 2e-3 --warmup 60 --name pretrain "${common[@]}" > /dev/null
    cp "$out"/logs/pretrain/checkpoints/step_600.bin "$out/pretrained.bin"
fi

failed=0
finetune() { # NAME EXPECTED OPTIONS…; EXPECTED: the advice that must appear, or none
    local name=$1 expected=$2 log=$out/logs/$1/out.log signs
    shift 2
    [ -e "$out/logs/$name/report.html" ] || { rm -rf "$out/logs/$name" && "$bin/train_clip" --pretrained "$out/pretrained.bin" --name "$name" "${common[@]}" \
        --zeroshot-data "target=$out/test-invert.tar" --zeroshot-data "general=$out/test-clean.tar" --val-data "$out/val-invert.tar" "$@" > /dev/null || true; }
    signs=$(sed -n 's/^advice  *\([a-z ]*\):.*/\1/p' "$log" | sort | uniq -c | awk '{ $1 = $1 "x"; print }' | paste -sd, -)
    printf '\n%s (%s): %s\n' "$name" "$*" "${signs:-silent}"
    grep '^advice' "$log" | tail -n 1 || true
    if [ "$expected" = none ]; then [ -z "$signs" ] || failed=1; else [ -n "$(grep "^advice  *$expected:" "$log")" ] || failed=1; fi
    python3 - "$out/logs/$name/metrics.jsonl" <<'PYTHON'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
for name in ("zeroshot_top1/target", "zeroshot_top1/general", "val_loss"):
    values = [row[name] for row in rows if name in row]
    print(f"  {name:22} " + " ".join(f"{value:.3f}" for value in values))
PYTHON
}
finetune healthy none --train-data "$out/invert.tar::$out/some.tar" --epochs 4 --lr 5e-4
finetune overfit overfitting --train-data "$out/few.tar" --epochs 25 --lr 1e-3 --zeroshot-frequency 5
finetune forget forgetting --train-data "$out/invert.tar" --epochs 4 --lr 1e-3
finetune rate "rate too high" --train-data "$out/invert.tar" --epochs 2 --lr 0.1 --warmup 0 --lr-scheduler const
printf '\n%s\n' "$([ $failed = 0 ] && echo 'as expected: advice in three runs, none in the sound one' || echo 'NOT as expected')"
exit $failed
