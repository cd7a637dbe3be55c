#!/usr/bin/env bash
# Text only: the image tower is frozen.
# When:  the pictures are of a kind that CLIP sees well, the words are new: names, jargon, another language, long captions.
# Does:  without augmentation every picture is encoded once; from the second epoch on only the text tower costs time.
# Watch: the image side can gain nothing: what the features do not separate, no caption will. Then image_only.sh or full.sh.
. "$(dirname "$0")/common.sh"
recipe=(--lock-image --aug-cfg none --lr "$(rate 1e-4)" --epochs 10 --warmup 10% --wd 0.1 --grad-clip-norm 1)
finetune "$@"
