#!/usr/bin/env bash
# The GPU program on a GPU (make test-gpu): every kernel and every version of it at odd sizes; runs compared with those of the CPU program,
# the same bits twice and after a resume; stored results (GOLDEN names their folder) in fp32 and bf16; and the tests of the kernels under
# the four tools of compute-sanitizer.
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

# The recorded training steps: in fp32 as on a CPU, in bf16 within 3e-2 of each loss.
golden_steps() { # DIR PRECISION KEY OPTION…
    local dir=$1 precision=$2
    shift 2
    TRAIN_PROGRAM="./${BIN}train_clipcu" TRAIN_PRECISION=$precision train_run "$dir/train" "$dir/../data/cifar10" "$@"
}

T='' part "build" build_gpu || { total; exit 1; }
part "kernels" "$BUILD/test_gpu_kernelscu"
part "steps" "$BUILD/test_gpu_stepcu"
part "kernel laboratory" "$BUILD/labcu"
part "runs compared with the CPU program" env GPU_PROGRAM="${BIN}train_clipcu" "$PYTHON" dev/test/test_gpu_run.py
if [ -d "$GOLDEN" ]; then
    mkdir -p "$BUILD/golden/train"
    for folder in "$GOLDEN"/model/*/activations.npz; do
        folder=$(dirname "$folder")
        name=$(basename "$folder")
        part "model/$name, GPU" model_values "$folder" "$BUILD/golden/$name" "${BIN}test_clipcu"
    done
    if [ -d "$GOLDEN/train" ]; then
        while read -r key options; do
            for precision in fp32 amp_bf16; do part "train/$key, GPU, $precision" golden_steps "$GOLDEN" $precision "$key" $options; done
        done < <(train_variants "$GOLDEN/train")
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
