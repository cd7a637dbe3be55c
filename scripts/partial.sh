#!/usr/bin/env bash
# Partial: trains the last groups of both towers. Everything below is frozen and costs only a forward pass.
# When:  some thousand pairs; a machine with little memory; a compromise between one frozen tower and full
#        fine-tuning.
# Watch: too few groups show as underfitting: both losses stay high. Groups count from the output: the
#        projection is the first, then each block is one.
. "$(dirname "$0")/common.sh"
recipe=(--lock-image --lock-image-unlocked-groups "${GROUPS_OPEN:-3}" --lock-text --lock-text-unlocked-layers "${GROUPS_OPEN:-3}"
    --lr "$(rate 5e-5)" --epochs 5 --warmup 10% --wd 0.1 --grad-clip-norm 1)
finetune "$@"
