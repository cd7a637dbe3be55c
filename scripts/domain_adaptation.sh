#!/usr/bin/env bash
# Domain adaptation: a field with images and words of its own. Medical images are the example;
# doc/finetuning.md says more.
# Data:  TRAIN=train.csv with the columns filepath,title[,label]: one row per image, the finding as a sentence
#        ("chest X-ray showing a right-sided pleural effusion"), 8-bit PNG or JPEG (from DICOM: the window a
#        radiologist would choose; gray is read as RGB). Split by patient, not by image: VAL=val.csv of other
#        patients, TARGET=test.csv with labels, CLASSNAMES (the findings), TEMPLATES ("chest X-ray showing
#        {}"), GENERAL= a set of everyday photographs, to see what is lost.
# Does:  trains all weights, the lower blocks at lower rates; mild crops, no colour changes, no mirroring
#        (left and right are findings; no recipe mirrors); reports with equal text ("no acute abnormality")
#        are not counted as negatives of each other; the run ends when validation stops improving.
# Try:   the pretrained model (--eval-only), then text_only.sh, this recipe, high_resolution.sh for small
#        findings, mix_general.sh.
# Watch: val_loss, and TARGET accuracy for each class rather than overall (most images are normal). Captions
#        beyond the context length are cut, so put the impression first. A model trained in this way is for
#        research, not for diagnosis.
. "$(dirname "$0")/common.sh"
recipe=(--lr "$(rate 1e-5)" --image-layer-decay 0.8 --text-layer-decay 0.8 --epochs 10 --warmup 10% --wd 0.2 --grad-clip-norm 1 --aug-cfg scale=0.9,1.0
    --positives mask --positives-key caption --early-stop 3 --best-metric val_loss)
finetune "$@"
