#!/usr/bin/env bash
# Text only: the image tower is frozen.
# When:  CLIP already sees this kind of image well, but the words are new: names, jargon, another language,
#        long captions.
# Does:  without augmentation each image is encoded once; from the second epoch on only the text tower costs
#        time.
# Watch: image features do not improve, and no caption can separate what they do not separate. In that case:
#        image_only.sh or full.sh.
. "$(dirname "$0")/common.sh"
recipe=(--lock-image --aug-cfg none --lr "$(rate 1e-4)" --epochs 10 --warmup 10% --wd 0.1 --grad-clip-norm 1)
finetune "$@"
