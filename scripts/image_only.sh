#!/usr/bin/env bash
# Image only: the text tower is frozen.
# When:  ordinary words for unusual images (drawings, satellite, microscope). Prompts and text features that
#        were made with the original model stay valid.
# Does:  each caption is encoded once and its features are kept; a step costs what the image tower costs.
# Watch: val_loss, since a small set of captions (class names) is soon memorized; --early-stop 3.
. "$(dirname "$0")/common.sh"
recipe=(--lock-text --lr "$(rate 1e-4)" --epochs 10 --warmup 10% --wd 0.1 --grad-clip-norm 1)
finetune "$@"
