#!/usr/bin/env bash
# CLIP from nothing in three minutes (make demo): draws a captioned picture set, trains a tiny CLIP on it, fine-tunes that on a
# second domain, and shows what each model knows of both. Everything it makes lies in build/demo.
cd "$(dirname "$0")/.." || exit 1
set -eu
python=${PYTHON:-$(dev/setup.sh --python)}
out=build/demo
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # threads that wait leave the cores to those that decode pictures

headline() { printf '\n== %s\n' "$*"; }

# the last value of a key in a run's metrics, in percent
metric() { "$python" -c 'import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
values = [row[sys.argv[2]] for row in rows if sys.argv[2] in row]
print(f"{100 * values[int(sys.argv[3])]:.1f}")' "$out/logs/$1/metrics.jsonl" "$2" "$3"; }

headline "1. Build"
env -u MAKEFLAGS -u MAKELEVEL make -s train_clip

headline "2. Draw two captioned picture sets"
rm -rf "$out"
"$python" dev/data/make_shapes.py --out "$out/paper" --count 10000
"$python" dev/data/make_shapes.py --out "$out/card" --count 2400 --domain shifted
cat "$out"/paper/templates.txt "$out"/card/templates.txt > "$out/templates.txt"
cat > "$out/tiny.json" <<'JSON'
{"embed_dim": 64,
 "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4},
 "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2}}
JSON
evaluate=(--zeroshot-data "paper=$out/paper/val.csv" --zeroshot-data "card=$out/card/val.csv" --classnames "$out/paper/classnames.txt"
    --templates "$out/templates.txt" --logs "$out/logs" --save-frequency 0 --grad-clip-norm 1)

headline "3. Train a CLIP of 3M parameters from random weights: filled shapes on paper"
./train_clip --model "$out/tiny.json" --train-data "$out/paper/train.csv" "${evaluate[@]}" --name train --epochs 8 --lr 2e-3 --zeroshot-frequency 4 --log-every-n-steps 40
pretrained=$out/logs/train/checkpoints/epoch_8.bin

headline "4. Fine-tune it on the second domain: crayon outlines on cardboard"
./train_clip --pretrained "$pretrained" --train-data "$out/card/train.csv" "${evaluate[@]}" --name finetune --epochs 8 --lr 5e-4 --zeroshot-frequency 4 --log-every-n-steps 40
finetuned=$out/logs/finetune/checkpoints/epoch_8.bin

headline "5. Put it to use: what is on these pictures?"
pictures=()
while IFS=, read -r path caption label; do
    pictures+=("$out/card/$path")
    echo "${pictures[${#pictures[@]} - 1]}: $caption"
done < <(sed -n 2,4p "$out/card/val.csv")
./train_clip --pretrained "$finetuned" --classify "${pictures[@]}" --classnames "$out/paper/classnames.txt" --templates "$out/card/templates.txt"

headline "What came out"
row() { printf '  %-48s %6s%% %10s%%\n' "$1" "$(metric "$2" zeroshot_top1/paper "$3")" "$(metric "$2" zeroshot_top1/card "$3")"; }
printf '  %-48s %7s %11s\n' "Zero-shot accuracy, 64 classes (chance: 1.6%)" paper cardboard
row "random weights" train 0
row "trained on paper" train -1
row "then fine-tuned on cardboard" finetune -1
cat <<SCREEN
  Fine-tuning teaches the new domain; what it costs on the old one is the forgetting to watch for.

Made in $out, in $SECONDS seconds:
  logs/train/curves.svg, logs/finetune/curves.svg                           loss and accuracy, for a browser
  logs/train/checkpoints/epoch_8.bin, logs/finetune/checkpoints/epoch_8.bin the two models
  paper/train.csv, card/train.csv                                           filepath, title, label of each picture

Next, with your own pictures: put each into a folder beside a text file of the same name (cat.jpg, and its caption in cat.txt), then
  dev/convert.py --model ViT-B-32 --pretrained laion2b_s34b_b79k -o weights/ViT-B-32-laion2b_s34b_b79k.bin
  ./train_clip --model ViT-B-32 --pretrained laion2b_s34b_b79k --train-data my_pictures --val-split 0.1 --epochs 5
  ./train_clip --help
SCREEN
