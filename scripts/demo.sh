#!/usr/bin/env bash
# CLIP from random weights in 3 to 4 minutes (make demo): draws captioned images, trains a tiny CLIP on them,
# fine-tunes it on a second domain, and shows how accurate each model is on both. All output goes to build/demo.
cd "$(dirname "$0")/.." || exit 1
set -eu
python=${PYTHON:-$(dev/setup.sh --python)}
out=build/demo
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # waiting threads leave the cores to those that decode images

headline() { printf '\n== %s\n' "$*"; }

# metric RUN KEY INDEX: a value of a key in the run's metrics, in percent; index 0 is the first, -1 the last
metric() { "$python" -c 'import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
values = [row[sys.argv[2]] for row in rows if sys.argv[2] in row]
print(f"{100 * values[int(sys.argv[3])]:.1f}")' "$out/logs/$1/metrics.jsonl" "$2" "$3"; }

headline "1. Build"
env -u MAKEFLAGS -u MAKELEVEL make -s train_clip lr_find wise_ft

headline "2. Draw two sets of captioned images"
rm -rf "$out"
"$python" dev/data/make_shapes.py --out "$out/paper" --count 10000
"$python" dev/data/make_shapes.py --out "$out/card" --count 4000 --domain shifted
cat "$out"/paper/templates.txt "$out"/card/templates.txt > "$out/templates.txt"
cat > "$out/tiny.json" <<'JSON'
{"embed_dim": 64,
 "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4},
 "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2}}
JSON
# the first set is the target: best and advice go by it
paper=(--zeroshot-data "paper=$out/paper/val.csv")
card=(--zeroshot-data "card=$out/card/val.csv")
evaluate=(--classnames "$out/paper/classnames.txt"
    --templates "$out/templates.txt" --logs "$out/logs" --save-frequency 0 --grad-clip-norm 1)

headline "3. Train a CLIP of 3M parameters from random weights: filled shapes on paper"
./train_clip --model "$out/tiny.json" --train-data "$out/paper/train.csv" "${paper[@]}" "${card[@]}" "${evaluate[@]}" --name train --epochs 8 --lr 2e-3 --zeroshot-frequency 4 --log-every-n-steps 40
pretrained=$out/logs/train/checkpoints/epoch_8.bin

headline "4. Find a learning rate for the second domain, crayon outlines on cardboard: a range test"
./lr_find --pretrained "$pretrained" --train-data "$out/card/train.csv" --epochs 12 --grad-clip-norm 1 --output "$out/lr_find" | tee "$out/lr_find.log"
rate=$(sed -n 's/.*train_clip .*--lr \([0-9.e-]*\).*/\1/p' "$out/lr_find.log" | head -n 1)

headline "5. Fine-tune at that rate, $rate"
./train_clip --pretrained "$pretrained" --train-data "$out/card/train.csv" "${card[@]}" "${paper[@]}" "${evaluate[@]}" --name finetune --epochs 12 --lr "$rate" --lr-measured --zeroshot-frequency 4 --log-every-n-steps 40
finetuned=$out/logs/finetune/checkpoints/epoch_12.bin

headline "6. Average the weights before and after: learn the new domain without losing the old one"
./wise_ft --zeroshot "$pretrained" --finetuned "$finetuned" --alpha 0:1:0.1 --select mean --eval "card=$out/card/val.csv" --eval "paper=$out/paper/val.csv" \
    --classnames "$out/paper/classnames.txt" --templates "$out/templates.txt" --save "$out/wise_ft"

headline "7. Use it: what do these images show?"
images=()
while IFS=, read -r path caption label; do
    images+=("$out/card/$path")
    echo "${images[${#images[@]} - 1]}: $caption"
done < <(sed -n 5,7p "$out/card/val.csv")
./train_clip --pretrained "$finetuned" --classify "${images[@]}" --classnames "$out/paper/classnames.txt" --templates "$out/card/templates.txt"

"$python" dev/doc/demo_figure.py "$out" "$out/demo.svg"
{
    echo '<!doctype html><meta charset="utf-8"><title>clip.c: the demo</title><style>:root { color-scheme: light dark } body { font: 16px sans-serif; max-width: 60em; margin: 2em auto } svg { width: 100%; height: auto }</style>'
    echo '<h1>The demo</h1>'
    figure() { echo "<h2>$1</h2>"; sed 's/<?xml[^>]*>//' "$2"; }
    figure "The demo in one figure" "$out/demo.svg"
    figure "Training from random weights" "$out/logs/train/curves.svg"
    figure "The range test for the second domain" "$out/lr_find/lr_find.svg"
    figure "Fine-tuning on the second domain" "$out/logs/finetune/curves.svg"
    figure "The weights averaged" "$out/wise_ft/wise_ft.svg"
} > "$out/report.html"

headline "Results"
row() { printf '  %-48s %6s%% %10s%%\n' "$1" "$(metric "$2" zeroshot_top1/paper "$3")" "$(metric "$2" zeroshot_top1/card "$3")"; }
printf '  %-48s %7s %11s\n' "Zero-shot accuracy, 64 classes (chance: 1.6%)" paper cardboard
row "random weights" train 0
row "trained on paper" train -1
row "then fine-tuned on cardboard" finetune -1
"$python" - "$out/wise_ft/wise_ft.csv" <<'PYTHON'
import csv, sys
best = max(csv.DictReader(open(sys.argv[1])), key=lambda row: float(row["mean"]))
print(f"  {'weights averaged, alpha ' + best['alpha']:<48} {100 * float(best['paper']):6.1f}% {100 * float(best['card']):10.1f}%")
PYTHON
cat <<SCREEN
  Fine-tuning gains accuracy on the new domain and loses some on the old one: forgetting. Averaging the weights
  lets you choose a point between the two.

Made in $out, in $SECONDS seconds:
  report.html                                                               all plots on one page, for a browser
  logs/train/report.html, logs/finetune/report.html                         a report on each run
  demo.svg                                                                  accuracy on both domains in training
  lr_find/lr_find.svg, wise_ft/wise_ft.svg                                  plots of the range test and of the averages
  logs/train/checkpoints/epoch_8.bin, logs/finetune/checkpoints/epoch_12.bin the two models
  paper/train.csv, card/train.csv                                           filepath, title and label of each image

Next, with your own images: put them into a folder, each with its caption in a text file of the same name (cat.jpg,
cat.txt), then
  dev/convert.py --model ViT-B-32 --pretrained laion2b_s34b_b79k -o weights/ViT-B-32-laion2b_s34b_b79k.bin
  ./train_clip --model ViT-B-32 --pretrained laion2b_s34b_b79k --train-data my_images --val-split 0.1 --epochs 5
  ./train_clip --help
SCREEN
