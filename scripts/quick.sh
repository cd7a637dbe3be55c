#!/usr/bin/env bash
# Quick: a first fine-tuning that is hard to get wrong (--preset quick).
# When:  a few hundred to some ten thousand pairs, close to what CLIP has seen; a result within the hour.
# Does:  trains the text tower, the image projection and the last image block; low rate, five epochs.
# Watch: val_loss. If it is still falling at the end: more --epochs, or full.sh. If it rises: fewer.
. "$(dirname "$0")/common.sh"
recipe=(--preset quick --lr "$(rate 1e-5)")
finetune "$@"
