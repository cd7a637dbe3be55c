#!/usr/bin/env bash
# Mixing general data: pairs of the old kind are kept in training, so that they are not forgotten.
# When:  the target is narrow, the general accuracy matters, and general pairs are at hand (CC3M, COCO, a sample of what came before).
# Own:   TRAIN=target.csv GENERAL_TRAIN='cc3m/{00000..00009}.tar' FACTORS=1::0.5 scripts/mix_general.sh
# Does:  an epoch holds each target pair once and each general pair with the odds of its factor (doc/mixing.md).
# Watch: general accuracy should stay level. As many general pairs as target pairs is a start; a narrow target needs more of them.
. "$(dirname "$0")/common.sh"
TRAIN=$TRAIN::${GENERAL_TRAIN:?pairs of the old kind; see the head of this script}
recipe=(--train-data-upsampling-factors "${FACTORS:-1::0.4}" --lr "$(rate 1e-5)" --epochs 5 --warmup 10% --wd 0.2 --grad-clip-norm 1)
finetune "$@"
