#!/usr/bin/env bash
# The GPU program on a GPU (make test-gpu): every kernel and every version of it at odd sizes, references in fp32 by its own layers, runs beside
# the CPU program with the same bits twice and after a resume, stored results (GOLDEN names their folder) in fp32 and bf16, and the tests
# of the kernels under compute-sanitizer's four tools.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
. dev/test/golden.sh
. dev/test/gpu_here.sh "make test-gpu" || exit 1
GOLDEN=${GOLDEN:-../shared/golden}

sanitized() { # TOOL PROGRAM
    compute-sanitizer --tool "$1" --error-exitcode 9 "$2"
}

build_gpu() {
    begin_checks
    check "build" build "${BIN}train_clip" "${BIN}train_clipcu" "${BIN}test_clipcu" "${BIN}lr_findcu" "${BIN}wise_ftcu" "$BUILD/labcu" "$BUILD/test_gpu_kernelscu" "$BUILD/test_gpu_stepcu"
    end_checks
}

# The stored results of a model by the GPU program in fp32.
golden_values() { # DIR NAME
    local out=$BUILD/golden/$2
    mkdir -p "$BUILD/golden"
    "$PYTHON" dev/reference.py --golden "$1" -o "$out.debug.bin" && "$PYTHON" dev/convert.py "$1/weights.npz" --model "$1/config.json" -o "$out.bin" &&
        limited "./${BIN}test_clipcu" "$out.bin" "$out.debug.bin"
}

# The recorded training steps: in fp32 as on a CPU, in bf16 within 3e-2 of each loss.
golden_steps() { # DIR PRECISION KEY OPTION…
    local dir=$1 precision=$2
    shift 2
    TRAIN_PROGRAM="./${BIN}train_clipcu" TRAIN_PRECISION=$precision train_run "$dir/train" "$dir/../data/cifar10" "$@"
}

part "build" build_gpu || { total; exit 1; }
part "kernels" "$BUILD/test_gpu_kernelscu"
part "steps" "$BUILD/test_gpu_stepcu"
part "kernel laboratory" "$BUILD/labcu"
part "runs beside the CPU program" env GPU_PROGRAM="${BIN}train_clipcu" "$PYTHON" dev/test/test_gpu_run.py
if [ -d "$GOLDEN" ]; then
    for folder in "$GOLDEN"/model/*/activations.npz; do
        name=$(basename "$(dirname "$folder")")
        part "model/$name, GPU" golden_values "$(dirname "$folder")" "$name"
    done
    mkdir -p "$BUILD/golden/train"
    if [ -d "$GOLDEN/train" ] && part "train, weights and options" train_begin "$GOLDEN/train" "$GOLDEN/../data/cifar10"; then
        while read -r key options; do
            for precision in fp32 amp_bf16; do part "train/$key, GPU, $precision" golden_steps "$GOLDEN" $precision "$key" $options; done
        done < "$BUILD/golden/train/variants"
    fi
fi
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        part "compute-sanitizer $tool" sanitized $tool "$BUILD/test_gpu_kernelscu"
    done
else
    part "compute-sanitizer is missing" false
fi
total
