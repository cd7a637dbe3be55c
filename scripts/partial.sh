#!/usr/bin/env bash
# Partial: the last groups of both towers; what lies below is frozen and costs a forward pass only.
# When:  some thousand pairs; a machine with little memory; a middle way between one frozen tower and full fine-tuning.
# Watch: too few groups show as underfitting: both losses stay high. A group is a block; the first that counts is the projection.
. "$(dirname "$0")/common.sh"
recipe=(--lock-image --lock-image-unlocked-groups "${GROUPS_OPEN:-3}" --lock-text --lock-text-unlocked-layers "${GROUPS_OPEN:-3}"
    --lr "$(rate 5e-5)" --epochs 5 --warmup 10% --wd 0.1 --grad-clip-norm 1)
finetune "$@"
