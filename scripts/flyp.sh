#!/usr/bin/env bash
# FLYP: fine-tune like you pretrain (Goyal et al. 2023): class folders become pairs, with a prompt drawn for each sample.
# When:  labels instead of captions. Better out of distribution than a classifier on top, and the model stays a CLIP.
# Own:   TRAIN=photos (one folder a class) TEMPLATES=templates.txt CLASSNAMES=names.txt scripts/flyp.sh; a CSV with labels or tars with
#        .cls do as well
# Watch: pictures of one class in a step are right answers to each other; they count as such (--positives soft). With few classes a
#        larger batch only repeats them.
. "$(dirname "$0")/common.sh"
if [ $is_trial = yes ]; then
    TRAIN=$trial/classes TEMPLATES=$trial/card/templates.txt
    tail -n +2 "$trial/card/train.csv" | while IFS=, read -r path _ label; do
        mkdir -p "$TRAIN/$label"
        cp "$trial/card/$path" "$TRAIN/$label/"
    done
fi
recipe=(--train-templates "${TEMPLATES:?a file of prompts, one a line, {\} for the class}" --positives soft
    --lr "$(rate 1e-5)" --epochs 10 --warmup 10% --wd 0.1 --grad-clip-norm 1)
finetune "$@"
