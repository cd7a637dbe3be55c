#!/usr/bin/env bash
# CLIP from nothing in three minutes (make demo): draws a captioned picture set, trains a tiny CLIP on it, fine-tunes that on a
# second domain, and shows what each model knows of both. Everything it makes lies in build/demo.
cd "$(dirname "$0")/.." || exit 1
set -eu
python=${PYTHON:-$(dev/setup.sh --python)}
out=build/demo

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
"$python" dev/data/make_shapes.py --out "$out/paper" --count 6400
"$python" dev/data/make_shapes.py --out "$out/chalk" --count 1600 --domain shifted
cat "$out"/paper/templates.txt "$out"/chalk/templates.txt > "$out/templates.txt"
cat > "$out/tiny.json" <<'JSON'
{"embed_dim": 64,
 "vision_cfg": {"image_size": 32, "patch_size": 4, "width": 96, "head_width": 32, "layers": 4},
 "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2}}
JSON
evaluate=(--zeroshot-data "paper=$out/paper/val.csv" --zeroshot-data "chalk=$out/chalk/val.csv" --classnames "$out/paper/classnames.txt"
    --templates "$out/templates.txt" --logs "$out/logs")

headline "3. Train a CLIP of 3M parameters from random weights: filled shapes on paper"
./train_clip --model "$out/tiny.json" --train-data "$out/paper/train.csv" "${evaluate[@]}" --name train --epochs 10 --lr 1e-3 --zeroshot-frequency 5 \
    --log-every-n-steps 20 --save-frequency 0
pretrained=$(ls "$out"/logs/train/checkpoints/*.bin | tail -n 1)

headline "4. Fine-tune it on the second domain: chalk outlines on a board"
./train_clip --pretrained "$pretrained" --train-data "$out/chalk/train.csv" "${evaluate[@]}" --name finetune --epochs 4 --lr 3e-4 --zeroshot-frequency 4 \
    --log-every-n-steps 20 --save-frequency 0
finetuned=$(ls "$out"/logs/finetune/checkpoints/*.bin | tail -n 1)

headline "5. Put it to use: what is on this picture?"
sample=$(sed -n 2p "$out/chalk/val.csv")
echo "$out/chalk/${sample%%,*} (its label: ${sample##*,})"
./train_clip --pretrained "$finetuned" --classify "$out/chalk/${sample%%,*}" --classnames "$out/paper/classnames.txt" --templates "$out/chalk/templates.txt"

headline "What came out"
cat <<SCREEN
Zero-shot accuracy over 64 classes (chance: 1.6%)     paper     chalk
  random weights                                   $(printf '%7s%% %7s%%' "$(metric train zeroshot_top1/paper 0)" "$(metric train zeroshot_top1/chalk 0)")
  trained on paper                                 $(printf '%7s%% %7s%%' "$(metric train zeroshot_top1/paper -1)" "$(metric train zeroshot_top1/chalk -1)")
  then fine-tuned on chalk                         $(printf '%7s%% %7s%%' "$(metric finetune zeroshot_top1/paper -1)" "$(metric finetune zeroshot_top1/chalk -1)")
Fine-tuning teaches the new domain, and what it costs on the old one is the forgetting to watch for.

Made in $out (in $SECONDS seconds):
  logs/train/curves.svg, logs/finetune/curves.svg    loss and accuracy; open them in a browser
  ${pretrained#"$out"/}, ${finetuned#"$out"/}    the two models
  paper/, chalk/                                     pictures with train.csv: filepath, title, label

Next, with your own pictures: put each beside a text file of the same name (cat.jpg, cat.txt with its caption) in a folder, then
  dev/convert.py --model ViT-B-32 --pretrained laion2b_s34b_b79k -o weights/ViT-B-32-laion2b_s34b_b79k.bin
  ./train_clip --model ViT-B-32 --pretrained laion2b_s34b_b79k --train-data my_pictures --val-split 0.1 --epochs 5
  ./train_clip --help
SCREEN
