#!/usr/bin/env bash
# Every check that a folder of stored results holds data for (make golden GOLDEN=DIR):
#   DIR/model/NAME/        config.json, weights.npz, activations …: values, gradients, AdamW steps of a model
#   DIR/model/formats, bad weight files of every format, and malformed ones
#   DIR/model/*.npz, .csv  retrieval, zero-shot, resized positions, schedules
#   DIR/tokenizer, image   captions and their ids, image files and their pixels
#   DIR/sentencepiece      hf_NAME: tokenizers of Hugging Face towers; texts and their ids
#   DIR/train              losses of a training run over DIR/../data/cifar10
# Names after DIR choose among model, tokenizer, image, sentencepiece and train. A folder for which no check ran is a failure.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
. dev/test/parts.sh

# The files of a folder with the stored values of a model.
MODEL_FILES="config.json weights.npz batch.npz activations.npz grads.npz adamw_batches.npz adamw_noclip.npz adamw_clip1.npz adamw_clamp.npz accum.npz
             val.npz weight_decay.json"

need() { # DIR FILE…: says which are missing
    local dir=$1 file missing=0
    shift
    for file in "$@"; do [ -s "$dir/$file" ] || { echo "$dir/$file: missing"; missing=1; }; done
    return $missing
}

golden_files() { # DIR OUT
    need "$1" $MODEL_FILES &&
        "$PYTHON" dev/reference.py --golden "$1" -o "$2.debug.bin" &&
        "$PYTHON" dev/convert.py "$1/weights.npz" --model "$1/config.json" -o "$2.bin"
}

model_values() { # DIR OUT PROGRAM
    once golden_files "$1" "$2" && built "$3" && limited "./$3" "$2.bin" "$2.debug.bin"
}

golden_test() { # NAME FOLDER: a test program that compares with stored results when it is given their folder
    built "$BUILD/test_$1" && limited "$BUILD/test_$1" "$2"
}

# Captions are cleaned as the towers with these tokenizers have it.
vocabulary_ids() { # DIR NAME
    local clean=canonicalize out=$BUILD/golden/$2.vocabulary
    case $2 in unigram | wordpiece) clean=whitespace ;; esac
    "$PYTHON" dev/vocabularies.py "$1/hf_$2" --clean "$clean" -o "$out" &&
        built "$BUILD/test_vocabulary" && limited "$BUILD/test_vocabulary" "$1" "$2" "$out"
}

golden_sentencepiece() { # DIR
    local folder found=
    for folder in "$1"/hf_*; do
        [ -d "$folder" ] || continue
        found=1
        part "sentencepiece/$(basename "$folder")" vocabulary_ids "$1" "${folder##*/hf_}"
    done
    if [ -z "$found" ]; then part sentencepiece false; fi
}

golden_model() { # DIR
    local folder name out found=
    for folder in "$1"/*; do
        name=$(basename "$folder")
        case $name in formats | bad) continue ;; esac
        [ -d "$folder" ] || continue
        found=1 out=$BUILD/golden/$name
        part "model/$name" model_values "$folder" "$out" "${BIN}test_clip"
        part "model/$name, plain loops" with_plain_loops model_values "$folder" "$out" "${BIN}test_clip"
        part "model/$name, emulated GPU" model_values "$folder" "$out" "$BUILD/test_clip_emulated"
        part "model/$name, dev/reference.py" "$PYTHON" dev/reference.py --golden "$folder" --check
    done
    if [ -d "$1/formats" ] || [ -d "$1/bad" ]; then found=1 && part "model/formats, bad" "$PYTHON" dev/test/test_convert.py --golden "$1"; fi
    if ls "$1"/retrieval.npz "$1"/zeroshot.npz >/dev/null 2>&1; then found=1 && part "model/retrieval, zeroshot" golden_test metrics "$1"; fi
    if [ -e "$1/resize.npz" ]; then found=1 && part "model/resize" golden_test positions "$1"; fi
    if [ -e "$1/schedules.csv" ]; then found=1 && part "model/schedules" golden_test schedulers "$1"; fi
    if [ -z "$found" ]; then part model false; fi
}

# One recorded run, repeated. TRAIN_PROGRAM and TRAIN_PRECISION: by another program, in another precision; TRAIN_STEPS: its first steps alone.
# In bf16 the bound follows from the same run in fp32, which comes before it.
train_run() { # TRAIN DATA KEY OPTION…
    local train=$1 data=$2 key=$3 out=$BUILD/golden/train shards precision=${TRAIN_PRECISION:-fp32}
    local name=$key-$precision${TRAIN_STEPS:+-$TRAIN_STEPS}
    shift 3
    once train_begin "$train" "$data" && built "${BIN}train_clip" || return
    shards=$(printf '%s::' "$data"/train-*.tar)
    rm -rf "$out/${name:?}" "$out/$name.weights"
    limited "${TRAIN_PROGRAM:-./${BIN}train_clip}" --pretrained "$out/init.bin" --train-data "${shards%::}" --dataset-type webdataset --no-shuffle --aug-cfg scale=1,1 \
        --precision "$precision" --wd 0.2 --beta1 0.9 --beta2 0.98 --eps 1e-6 --lr-scheduler cosine --log-every-n-steps 1 --logs "$out" --name "$name" "$@" || return
    if [ "$name" = loss_float64-fp32 ]; then
        "$PYTHON" dev/convert.py "$(ls "$out/$name"/checkpoints/*.bin | tail -n 1)" -o "$out/$name.weights" --format open_clip || return
        set -- "$out/$name.weights/open_clip_model.safetensors"
    else
        set --
    fi
    if [ "$precision" != fp32 ] && [ -e "$out/$key-fp32/metrics.jsonl" ]; then set -- --fp32 "$out/$key-fp32/metrics.jsonl"; fi
    "$PYTHON" dev/test/check_losses.py --precision "$precision" ${TRAIN_STEPS:+--steps "$TRAIN_STEPS"} "$train/losses.json" "$key" "$out/$name/metrics.jsonl" "$@"
}

train_begin() { # TRAIN DATA
    need "$1" losses.json init.safetensors config.json && need "$2" train-00000.tar &&
        "$PYTHON" dev/convert.py "$1/init.safetensors" --model "$1/config.json" -o "$BUILD/golden/train/init.bin" && echo "1 passed, 0 failed"
}

train_variants() { # TRAIN: one line for each recorded run, its key and options; TRAIN_STEPS: for its first steps
    "$PYTHON" dev/test/check_losses.py --options ${TRAIN_STEPS:+--steps "$TRAIN_STEPS"} "$1/losses.json"
}

golden_train() { # TRAIN DATA
    local key options
    mkdir -p "$BUILD/golden/train"
    part "train, weights" once train_begin "$1" "$2" || return
    while read -r key options; do
        part "train/$key" train_run "$1" "$2" "$key" $options
        TRAIN_PRECISION=amp_bf16 part "train/$key, amp_bf16" train_run "$1" "$2" "$key" $options
    done < <(train_variants "$1")
    # in the warmup the learning rate does not depend on the length of the run
    read -r key options < <(TRAIN_STEPS=5 train_variants "$1" | grep '^loss_float64 ')
    TRAIN_STEPS=5 part "train/$key, plain loops" with_plain_loops train_run "$1" "$2" "$key" $options
}

golden_parts() { # DIR [KIND…]
    local dir=$1 kind known=
    shift
    [ $# -gt 0 ] || set -- model tokenizer image sentencepiece train
    mkdir -p "$BUILD/golden"
    for kind in "$@"; do
        [ -d "$dir/$kind" ] || continue
        known=1
        case $kind in
        model) golden_model "$dir/model" ;;
        tokenizer) part tokenizer golden_test tokenizer "$dir/tokenizer" ;;
        image)
            part "image, decoded and resized" golden_test transform "$dir/image"
            part "image, augmented" golden_test augment "$dir/image"
            ;;
        sentencepiece) golden_sentencepiece "$dir/sentencepiece" ;;
        train) golden_train "$dir/train" "$dir/../data/cifar10" ;;
        esac
    done
    if [ -z "$known" ]; then part "$dir holds none of model, tokenizer, image, sentencepiece, train" false; fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    if [ ! -d "${1:-}" ]; then
        echo "golden.sh: '${1:-}' is not a folder of stored results; make golden GOLDEN=DIR" >&2
        exit 2
    fi
    if [ -z "$T" ]; then build tests || exit 1; fi
    golden_parts "$@"
    total
fi
