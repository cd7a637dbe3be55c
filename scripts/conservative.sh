#!/usr/bin/env bash
# Conservative: learn the domain, but keep what the model can already do (--preset conservative, then
#               wise_ft).
# When:  the model will also be used on general images.
# Does:  trains the last 4 groups of both towers, with rates that fall by a factor of 0.75 per group, and
#        keeps a moving average of the weights. Then it blends that average with the pretrained weights, at
#        the α that is best for the mean of TARGET and GENERAL; LOGS/NAME/wise_ft has the result, a table and
#        a plot.
# Watch: target and general accuracy side by side. α is chosen on TARGET and GENERAL, so report accuracy on
#        other images. The average spans about 1000 steps: for a shorter run give --ema-decay 0.98.
. "$(dirname "$0")/common.sh"
recipe=(--preset conservative --lr "$(rate 5e-6)")
[ $is_trial = no ] || recipe+=(--ema-decay 0.95 --epochs 10)
finetune "$@"

[ -n "${TARGET:-}" ] && [ -n "${GENERAL:-}" ] && [ -n "${PRETRAINED:-}" ] || {
    echo "conservative: set TARGET, GENERAL and PRETRAINED to blend the result with the pretrained weights"
    exit
}
build wise_ft
averages=("$LOGS/$NAME"/checkpoints/*_ema.bin)
options=(--zeroshot "$PRETRAINED" --finetuned "${averages[${#averages[@]} - 1]}" --select mean
    --eval "target=$TARGET" --eval "general=$GENERAL" --save "$LOGS/$NAME/wise_ft")
[ -z "${CLASSNAMES:-}" ] || options+=(--classnames "$CLASSNAMES")
[ -z "${TEMPLATES:-}" ] || options+=(--templates "$TEMPLATES")
"$programs/wise_ft" "${options[@]}"
