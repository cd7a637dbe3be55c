#!/usr/bin/env bash
# Production: all weights, a large batch, the best checkpoint is kept (--preset production).
# When:  a hundred thousand pairs or more, and a model that will be used for a long time.
# Does:  takes steps of 4 micro-batches of 64, with the loss over all 256 pairs in the memory of 64; evaluates
#        twice per epoch.
# Watch: use checkpoints/best.bin, not the last one. The rate is the upper end of what is usual for a set of
#        this size: measure it first (--lr auto, or lr_find), and on small sets use a tenth of it.
. "$(dirname "$0")/common.sh"
recipe=(--preset production --lr "$(rate 5e-5)" --batch-size 64 --accum-freq 4)
finetune "$@"
