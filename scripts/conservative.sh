#!/usr/bin/env bash
# Conservative: learn the domain, keep what the model can do already (--preset conservative, then wise_ft).
# When:  the model goes on to see general pictures, too.
# Does:  the last 4 groups of both towers, rates that fall by 0.75 a group, a moving average of the weights; then blends that average
#        with the start, at the α that is best for the mean of TARGET and GENERAL: LOGS/NAME/wise_ft has the result, table and picture.
# Watch: target and general accuracy side by side. α is chosen on TARGET and GENERAL: for an honest figure measure on other pictures.
#        The average remembers about 1000 steps: with fewer in the run give --ema-decay 0.98.
. "$(dirname "$0")/common.sh"
recipe=(--preset conservative --lr "$(rate 5e-6)")
[ $is_trial = no ] || recipe+=(--ema-decay 0.95 --epochs 10)
finetune "$@"

[ -n "${TARGET:-}" ] && [ -n "${GENERAL:-}" ] && [ -n "${PRETRAINED:-}" ] || {
    echo "conservative: set TARGET, GENERAL and PRETRAINED to have the result blended with the start"
    exit
}
build wise_ft
averages=("$LOGS/$NAME"/checkpoints/*_ema.bin)
options=(--zeroshot "$PRETRAINED" --finetuned "${averages[${#averages[@]} - 1]}" --select mean
    --eval "target=$TARGET" --eval "general=$GENERAL" --save "$LOGS/$NAME/wise_ft")
[ -z "${CLASSNAMES:-}" ] || options+=(--classnames "$CLASSNAMES")
[ -z "${TEMPLATES:-}" ] || options+=(--templates "$TEMPLATES")
"$programs/wise_ft" "${options[@]}"
