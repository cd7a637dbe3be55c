#!/usr/bin/env bash
# Image only: the text tower is frozen.
# When:  ordinary words for unusual pictures (drawings, satellite, microscope); prompts and text features made elsewhere stay valid.
# Does:  each caption is encoded once and kept; the rest costs what the image tower costs.
# Watch: few different captions (class names) are learned by heart fast: val_loss; --early-stop 3.
. "$(dirname "$0")/common.sh"
recipe=(--lock-text --lr "$(rate 1e-4)" --epochs 10 --warmup 10% --wd 0.1 --grad-clip-norm 1)
finetune "$@"
