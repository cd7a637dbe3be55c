#!/usr/bin/env bash
# FLYP: fine-tune like you pretrain (Goyal et al. 2023). Class folders become pairs: a prompt with the class
#       name is drawn for each sample.
# When:  you have labels instead of captions. More accurate out of distribution than training a classifier on
#        top of the features, and the model remains a CLIP.
# Own:   TRAIN=photos (one folder per class) TEMPLATES=templates.txt CLASSNAMES=names.txt scripts/flyp.sh
#        A CSV with labels or tars with .cls members work as well.
# Watch: images of the same class in a step are positives of each other, and --positives soft counts them as
#        such. With few classes a larger batch only repeats them.
. "$(dirname "$0")/common.sh"
if [ $is_trial = yes ]; then
    TRAIN=$trial/classes TEMPLATES=$trial/card/templates.txt
    tail -n +2 "$trial/card/train.csv" | while IFS=, read -r path _ label; do
        mkdir -p "$TRAIN/$label"
        cp "$trial/card/$path" "$TRAIN/$label/"
    done
fi
recipe=(--train-templates "${TEMPLATES:?a file of prompts, one per line, with {\} for the class name}" --positives soft
    --lr "$(rate 1e-5)" --epochs 10 --warmup 10% --wd 0.1 --grad-clip-norm 1)
finetune "$@"
