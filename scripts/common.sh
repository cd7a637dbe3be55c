# What the recipes share. They read this file with `.`; it is not a program of its own.
#
# Without any settings a recipe is a trial on drawn images: a tiny CLIP that knows filled shapes on paper
# (drawn and trained once, in build/recipes) learns crayon drawings on cardboard. These variables put your own
# data in their place:
#
#   TRAIN=pairs.csv           pairs to learn from: a CSV, tars, a folder; several are joined by ::
#   PRETRAINED=FILE.bin       the weights to start from (unset: ViT-B-32 laion2b_s34b_b79k in weights/)
#   VAL=pairs.csv             pairs for validation loss and retrieval (unset: a tenth of TRAIN)
#   TARGET=PATH GENERAL=PATH  labelled images: of the domain, and of what must not be forgotten; one or both
#   CLASSNAMES=FILE TEMPLATES=FILE   class names and prompts for these two
#   LOGS=logs NAME=RUN        the run folder is LOGS/NAME
#   RATE=1                    multiplies the recipe's learning rates
#   PROGRAMS=DIR              the folder of train_clip (unset: this repository; it is built first)
#
# Options of train_clip after the recipe's name override the recipe's own:
# TRAIN=pairs.csv scripts/full.sh --epochs 3
set -eu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
programs=${PROGRAMS:-$root}
trial=$root/build/recipes
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # waiting threads leave the cores to those that decode images

build() { [ -n "${PROGRAMS:-}" ] || env -u MAKEFLAGS -u MAKELEVEL make -s -C "$root" "$@"; }
build train_clip

# draw SET COUNT OPTION...: draws images for the trial, if they are not there yet
draw() {
    local set=$trial/$1 count=$2
    shift 2
    [ -e "$set/templates.txt" ] || "${PYTHON:-$("$root/dev/setup.sh" --python)}" "$root/dev/data/make_shapes.py" --out "$set" --count "$count" "$@"
}

# Makes what the trial needs: the image sets paper and card, and start.bin, trained on paper for some seconds.
prepare_trial() {
    draw paper 4000
    draw card 1600 --domain shifted
    cat "$trial/paper/templates.txt" "$trial/card/templates.txt" > "$trial/templates.txt"
    cat > "$trial/tiny.json" <<'JSON'
{"embed_dim": 64,
 "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 96, "head_width": 32, "layers": 4},
 "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 3}}
JSON
    [ -e "$trial/start.bin" ] && return
    echo "recipes: training the model that the trials start from, once"
    rm -rf "$trial/logs/start"
    "$programs/train_clip" --model "$trial/tiny.json" --train-data "$trial/paper/train.csv" --steps 400 --lr 2e-3 --warmup 40 --grad-clip-norm 1 \
        --save-frequency 0 --log-every-n-steps 40 --logs "$trial/logs" --name start > "$trial/start.log"
    mv "$trial/logs/start/checkpoints/step_400.bin" "$trial/start.bin"
}

recipe_name=$(basename "$0" .sh)
is_trial=no
if [ -z "${TRAIN:-}" ]; then
    is_trial=yes
    prepare_trial
    TRAIN=$trial/card/train.csv PRETRAINED=$trial/start.bin GENERAL_TRAIN=$trial/paper/train.csv
    VAL=$trial/card/val.csv TARGET=$trial/card/val.csv GENERAL=$trial/paper/val.csv CLASSNAMES=$trial/paper/classnames.txt TEMPLATES=$trial/templates.txt
    LOGS=$trial/logs NAME=$recipe_name
    RATE=${RATE:-30} # a tiny model trained for seconds takes larger steps than CLIP
    rm -rf "${LOGS:?}/$NAME"
fi
LOGS=${LOGS:-logs} NAME=${NAME:-$recipe_name-$(date +%Y_%m_%d-%H_%M_%S)}
output=(--logs "$LOGS" --name "$NAME")
[ $is_trial = no ] || output+=(--save-frequency 0 --log-every-n-steps 20)

rate() { awk "BEGIN { printf \"%g\", $1 * ${RATE:-1} }"; } # a learning rate of the recipe, times RATE

start=(--model ViT-B-32 --pretrained laion2b_s34b_b79k)
[ -z "${PRETRAINED:-}" ] || start=(--pretrained "$PRETRAINED")

# finetune OPTION...: runs train_clip with the options in the array `recipe`, overridden by those given here
finetune() {
    local options=() word option keep=yes given=" "
    for word in "$@"; do given="$given${word%%=*} "; done
    case $given in *" --steps "*) given="$given--epochs " ;; esac
    for word in "${start[@]}" --train-data "$TRAIN" "${output[@]}" "${recipe[@]}"; do
        case $word in --*) keep=yes option=${word%%=*}; case $given in *" $option "*) keep=no ;; esac ;; esac
        [ $keep = no ] || options+=("$word")
    done
    [ -z "${TARGET:-}" ] || options+=(--zeroshot-data "target=$TARGET")
    [ -z "${GENERAL:-}" ] || options+=(--zeroshot-data "general=$GENERAL")
    case $given in *" --classnames "*) ;; *) [ -z "${CLASSNAMES:-}" ] || options+=(--classnames "$CLASSNAMES") ;; esac
    case $given in *" --templates "*) ;; *) [ -z "${TEMPLATES:-}" ] || options+=(--templates "$TEMPLATES") ;; esac
    case $given in
        *" --val-data "* | *" --val-split "*) ;;
        *) if [ -n "${VAL:-}" ]; then options+=(--val-data "$VAL"); else options+=(--val-split 0.1); fi ;;
    esac
    "$programs/train_clip" "${options[@]}" "$@"
}
