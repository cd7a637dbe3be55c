#!/usr/bin/env bash
# Full fine-tuning: every weight of both towers.
# When:  ten thousand pairs or more, or a domain unlike CLIP's. Gains most on the target, and forgets most.
# Watch: GENERAL. If it falls: a lower rate, conservative.sh, mix_general.sh, or wise_ft on the result.
. "$(dirname "$0")/common.sh"
recipe=(--lr "$(rate 1e-5)" --epochs 5 --warmup 10% --wd 0.2 --grad-clip-norm 1)
finetune "$@"
