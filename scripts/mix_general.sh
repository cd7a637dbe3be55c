#!/usr/bin/env bash
# Mixing in general data: pairs of the kind the model was pretrained on stay in training, so that it does not
# forget them.
# When:  the target is narrow, general accuracy matters, and general pairs are available (CC3M, COCO, a sample
#        of the pretraining data).
# Own:   TRAIN=target.csv GENERAL_TRAIN='cc3m/{00000..00009}.tar' FACTORS=1::0.5 scripts/mix_general.sh
# Does:  an epoch contains each target pair once, and each general pair with the probability FACTORS gives it
#        (doc/mixing.md).
# Watch: general accuracy, which should stay level. Start with as many general pairs as target pairs; a narrow
#        target needs more of them.
. "$(dirname "$0")/common.sh"
TRAIN=$TRAIN::${GENERAL_TRAIN:?pairs of the old kind; see the head of this script}
recipe=(--train-data-upsampling-factors "${FACTORS:-1::0.4}" --lr "$(rate 1e-5)" --epochs 5 --warmup 10% --wd 0.2 --grad-clip-norm 1)
finetune "$@"
