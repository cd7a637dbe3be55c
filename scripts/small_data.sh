#!/usr/bin/env bash
# Small data: a few hundred pairs.
# When:  100 to 2,000 pairs. With fewer, try better prompts (TEMPLATES) and do not train.
# Does:  trains the projection and the last block of each tower, with strong weight decay, a short steep ramp
#        (stlr) and a moving average; ends when validation stops improving; images with equal captions are not
#        counted as negatives of each other (--positives mask).
# Watch: val_loss from the first evaluation on, on pairs that are truly different (not the same object from
#        another angle). With so few validation pairs, differences of a few points mean nothing: repeat with
#        --seed 1, 2.
. "$(dirname "$0")/common.sh"
recipe=(--lock-image --lock-image-unlocked-groups 2 --lock-text --lock-text-unlocked-layers 2 --lr "$(rate 1e-5)" --lr-scheduler stlr --wd 0.5
    --epochs 10 --batch-size 32 --grad-clip-norm 1 --ema-decay 0.98 --aug-cfg scale=0.8,1.0 --positives mask --early-stop 3 --best-metric val_loss)
[ $is_trial = no ] || recipe+=(--train-num-samples 400)
finetune "$@"
