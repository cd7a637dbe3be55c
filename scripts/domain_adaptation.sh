#!/usr/bin/env bash
# Domain adaptation: a field with pictures and words of its own; medical images are the worked case (doc/finetuning.md says more).
# Data:  TRAIN=train.csv with the columns filepath,title[,label]: one row a picture, the finding in a sentence ("chest X-ray showing a
#        right-sided pleural effusion"), 8-bit PNG or JPEG (of DICOM: the window a reader would choose; gray is read as RGB).
#        Split by patient, not by picture: VAL=val.csv of other patients, TARGET=test.csv with labels, CLASSNAMES (the findings),
#        TEMPLATES ("chest X-ray showing {}"), GENERAL= a set of everyday photographs, to see what is lost.
# Does:  all weights, lower blocks least; mild crops, no colour changes, no mirroring (left and right are findings; there is none in
#        any recipe); equal reports ("no acute abnormality") are no wrong answers to each other; ends when validation gets worse.
# Try:   the start without training (--eval-only), then text_only.sh, this, high_resolution.sh for small findings, mix_general.sh.
# Watch: val_loss and TARGET accuracy by class, not over all (most pictures are normal); captions beyond the context length are cut, so
#        the impression goes first. A model trained so is material for research, not for diagnosis.
. "$(dirname "$0")/common.sh"
recipe=(--lr "$(rate 1e-5)" --image-layer-decay 0.8 --text-layer-decay 0.8 --epochs 10 --warmup 10% --wd 0.2 --grad-clip-norm 1 --aug-cfg scale=0.9,1.0
    --positives mask --positives-key caption --early-stop 3 --best-metric val_loss)
finetune "$@"
