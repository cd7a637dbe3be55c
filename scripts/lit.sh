#!/usr/bin/env bash
# LiT: a good image tower, locked, and a text tower from random weights that learns to read it (Zhai et al. 2022).
# When:  an image tower without a text tower (an ImageNet ViT of timm or Hugging Face, by dev/convert.py), or captions in a language
#        or tokenization that makes the old text tower worthless; a million pairs and more.
# Own:   IMAGE_TOWER=vit.bin MODEL=ViT-B-16 (its architecture, with the text tower to be made) TRAIN=pairs.csv scripts/lit.sh
# Watch: it is a pretraining: far more pairs and epochs than a fine-tuning, rates of 1e-3. Features are kept in FEATURES, checked
#        against weights and data, so that only the first run pays for the image tower.
. "$(dirname "$0")/common.sh"
if [ $is_trial = yes ]; then IMAGE_TOWER=$PRETRAINED MODEL=$trial/tiny.json FEATURES=$trial/lit.features RATE=2; fi
start=(--model "${MODEL:?which architecture? see the head of this script}" --pretrained-image "${IMAGE_TOWER:?a weight file of the image tower}")
recipe=(--lock-image --aug-cfg none --feature-cache "${FEATURES:-lit.features}" --lr "$(rate 1e-3)" --epochs 20 --warmup 10% --wd 0.1 --grad-clip-norm 1)
finetune "$@"
