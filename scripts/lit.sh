#!/usr/bin/env bash
# LiT: a good image tower, locked, and a text tower that learns from random weights to match it (Zhai et al.
#      2022).
# When:  an image tower without a text tower (an ImageNet ViT of timm or Hugging Face, by dev/convert.py), or
#        a language or tokenization for which the old text tower is useless; a million pairs or more.
# Own:   IMAGE_TOWER=vit.bin MODEL=ViT-B-16 (the architecture of both towers) TRAIN=pairs.csv scripts/lit.sh
# Watch: this is pretraining: it needs far more pairs and epochs than fine-tuning, and rates of 1e-3. Image
#        features are kept in FEATURES and checked against weights and data, so that only the first run
#        computes them.
. "$(dirname "$0")/common.sh"
if [ $is_trial = yes ]; then IMAGE_TOWER=$PRETRAINED MODEL=$trial/tiny.json FEATURES=$trial/lit.features RATE=2; fi
start=(--model "${MODEL:?which architecture? see the head of this script}" --pretrained-image "${IMAGE_TOWER:?a weight file of the image tower}")
recipe=(--lock-image --aug-cfg none --feature-cache "${FEATURES:-lit.features}" --lr "$(rate 1e-3)" --epochs 20 --warmup 10% --wd 0.1 --grad-clip-norm 1)
finetune "$@"
