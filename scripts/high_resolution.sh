#!/usr/bin/env bash
# High resolution: more pixels than in pretraining.
# When:  the details that matter are small: text in images, lesions, parts.
#        SIZE=384 TRAIN=pairs.csv scripts/high_resolution.sh
# Does:  interpolates the position embedding (SIZE must be a multiple of the patch size), then trains all
#        weights at a low rate, the lower blocks at lower ones; recomputes activations in the backward pass,
#        so that memory grows less than the number of patches.
# Watch: time and memory grow with the number of patches, attention with its square: twice the side means four
#        times the patches. Zero-shot accuracy before the first step is lower than at the old size and should
#        recover within an epoch. Images smaller than SIZE gain nothing.
. "$(dirname "$0")/common.sh"
if [ $is_trial = yes ]; then
    draw large 1600 --domain shifted --size 64
    TRAIN=$trial/large/train.csv VAL=$trial/large/val.csv TARGET=$trial/large/val.csv SIZE=${SIZE:-64}
fi
recipe=(--force-image-size "${SIZE:-384}" --lr "$(rate 1e-5)" --image-layer-decay 0.8 --epochs 3 --warmup 10% --wd 0.1 --grad-clip-norm 1
    --batch-size 32 --accum-freq 2 --grad-checkpointing)
finetune "$@"
