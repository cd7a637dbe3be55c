#!/usr/bin/env bash
# Production: all weights, a large batch, the best checkpoint kept (--preset production).
# When:  a hundred thousand pairs and more, a model that will be used for long.
# Does:  a step is 4 micro-batches of 64, with the loss over all 256 pairs in the memory of 64; evaluates twice an epoch.
# Watch: checkpoints/best.bin is the one to use, not the last. The rate is the guides' upper end for a set of this size: measure it
#        first (--lr auto, or lr_find), and on small sets take a tenth.
. "$(dirname "$0")/common.sh"
recipe=(--preset production --lr "$(rate 5e-5)" --batch-size 64 --accum-freq 4)
finetune "$@"
