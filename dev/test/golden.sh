#!/usr/bin/env bash
# Every check that a folder of stored results holds data for (make golden GOLDEN=DIR):
#   DIR/model/NAME/        config.json, weights.npz, activations …: values, gradients, AdamW steps of a model
#   DIR/model/formats, bad weight files of every format, and malformed ones
#   DIR/model/*.npz, .csv  retrieval, zero-shot, resized positions, schedules
#   DIR/tokenizer, image   captions and their ids, image files and their pixels
#   DIR/train              losses of a training run over DIR/../data/cifar10
# With names behind DIR only those of model, tokenizer, image and train. A folder without a check that ran is a failure.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
. dev/test/parts.sh

# what a folder with a model's stored values has to hold
MODEL_FILES="config.json weights.npz batch.npz activations.npz grads.npz adamw_batches.npz adamw_noclip.npz adamw_clip1.npz adamw_clamp.npz accum.npz
             val.npz weight_decay.json"

need() { # DIR FILE…: says which are missing
    local dir=$1 file missing=0
    shift
    for file in "$@"; do [ -s "$dir/$file" ] || { echo "$dir/$file: missing"; missing=1; }; done
    return $missing
}

model_values() { # DIR OUT
    need "$1" $MODEL_FILES &&
        "$PYTHON" dev/reference.py --golden "$1" -o "$2.debug.bin" &&
        "$PYTHON" dev/convert.py "$1/weights.npz" --model "$1/config.json" -o "$2.bin" &&
        limited "./${BIN}test_clip" "$2.bin" "$2.debug.bin"
}

golden_model() { # DIR
    local folder name found=
    for folder in "$1"/*; do
        name=$(basename "$folder")
        case $name in formats | bad) continue ;; esac
        [ -d "$folder" ] || continue
        found=1
        part "model/$name" model_values "$folder" "$BUILD/golden/$name"
        part "model/$name, emulated GPU" limited "$BUILD/test_clip_emulated" "$BUILD/golden/$name.bin" "$BUILD/golden/$name.debug.bin"
        part "model/$name, dev/reference.py" "$PYTHON" dev/reference.py --golden "$folder" --check
    done
    if [ -d "$1/formats" ] || [ -d "$1/bad" ]; then found=1 && part "model/formats, bad" "$PYTHON" dev/test/test_convert.py --golden "$1"; fi
    if ls "$1"/retrieval.npz "$1"/zeroshot.npz >/dev/null 2>&1; then found=1 && part "model/retrieval, zeroshot" "$BUILD/test_evaluate" "$1"; fi
    if [ -e "$1/resize.npz" ]; then found=1 && part "model/resize" "$BUILD/test_positions" "$1"; fi
    if [ -e "$1/schedules.csv" ]; then found=1 && part "model/schedules" "$BUILD/test_schedulers" "$1"; fi
    if [ -z "$found" ]; then part model false; fi
}

train_run() { # TRAIN DATA KEY OPTION…: one recorded run, repeated; TRAIN_PROGRAM and TRAIN_PRECISION: by another program, otherwise
    local train=$1 data=$2 key=$3 out=$BUILD/golden/train shards
    shift 3
    shards=$(printf '%s::' "$data"/train-*.tar)
    rm -rf "$out/$key" "$out/$key.weights"
    limited "${TRAIN_PROGRAM:-./${BIN}train_clip}" --pretrained "$out/init.bin" --train-data "${shards%::}" --dataset-type webdataset --no-shuffle --aug-cfg scale=1,1 \
        --precision "${TRAIN_PRECISION:-fp32}" --wd 0.2 --beta1 0.9 --beta2 0.98 --eps 1e-6 --lr-scheduler cosine --log-every-n-steps 1 --logs "$out" --name "$key" "$@" || return
    if [ "$key" = loss_float64 ]; then
        "$PYTHON" dev/convert.py "$(ls "$out/$key"/checkpoints/*.bin | tail -n 1)" -o "$out/$key.weights" --format open_clip || return
        set -- "$out/$key.weights/open_clip_model.safetensors"
    else
        set --
    fi
    "$PYTHON" dev/test/check_losses.py ${TRAIN_PRECISION:+--$TRAIN_PRECISION} "$train/losses.json" "$key" "$out/$key/metrics.jsonl" "$@"
}

train_begin() { # TRAIN DATA
    need "$1" losses.json init.safetensors config.json && need "$2" train-00000.tar &&
        "$PYTHON" dev/test/check_losses.py --options "$1/losses.json" > "$BUILD/golden/train/variants" &&
        "$PYTHON" dev/convert.py "$1/init.safetensors" --model "$1/config.json" -o "$BUILD/golden/train/init.bin" && echo "1 passed, 0 failed"
}

golden_train() { # TRAIN DATA
    local key options
    mkdir -p "$BUILD/golden/train"
    part "train, weights and options" train_begin "$1" "$2" || return
    while read -r key options; do
        part "train/$key" train_run "$1" "$2" "$key" $options
        TRAIN_PRECISION=amp_bf16 part "train/$key, amp_bf16" train_run "$1" "$2" "$key" $options
    done < "$BUILD/golden/train/variants"
}

golden_parts() { # DIR [KIND…]
    local dir=$1 kind known=
    shift
    mkdir -p "$BUILD/golden"
    for kind in ${*:-model tokenizer image train}; do
        [ -d "$dir/$kind" ] || continue
        known=1
        case $kind in
        model) golden_model "$dir/model" ;;
        tokenizer | image) part "$kind" "$BUILD/test_$kind" "$dir/$kind" ;;
        train) golden_train "$dir/train" "$dir/../data/cifar10" ;;
        esac
    done
    if [ -z "$known" ]; then part "$dir holds neither of model tokenizer image train" false; fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    if [ ! -d "${1:-}" ]; then
        echo "golden.sh: '${1:-}' is no folder of stored results; make golden GOLDEN=DIR" >&2
        exit 2
    fi
    build tests || exit 1
    golden_parts "$@"
    total
fi
