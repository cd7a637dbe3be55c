#!/usr/bin/env bash
# Everything that `make test` runs: builds, checks each header alone, makes reference tensors, runs each test program and script,
# and compares with the stored results of open_clip where ../shared/golden holds them (GOLDEN names another folder).
#   dev/test/run.sh              all of it
#   dev/test/run.sh --c          what is written in C only (.ci/run: the second compiler)
#   dev/test/run.sh --sanitize   the same under AddressSanitizer and UBSan, and a short training run (make sanitize)
# T=text runs only the parts whose name contains the text, and builds only what they need; TEST=text, which the test programs and
# scripts read, only the tests with such a name.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
GOLDEN=${GOLDEN:-../shared/golden}
if [ "${1:-}" = --sanitize ]; then
    export BUILD=build/sanitize BIN=build/sanitize/ DEBUG=1 OMP_NUM_THREADS=2 UBSAN_OPTIONS=print_stacktrace=1
    CFLAGS="-O1 -g1 -fno-omit-frame-pointer -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all"
fi
. "$PWD/dev/test/golden.sh"

build_all() {
    begin_checks
    check "build" build -k tests # as far as it goes: a program that does not build leaves the others to be tested
    end_checks
}

# Every header with an include guard compiles by itself, in both languages that include it (gpu*.h: CUDA, which is C++). The others are
# texts that another header includes several times.
headers() {
    local header flags cxx=g++
    case ${CC:-} in *clang*) cxx=clang++ ;; esac
    command -v $cxx >/dev/null || cxx=c++
    flags=$(build flags | sed -n 1p)
    begin_checks
    for header in $(grep -l '^#ifndef CLIPC_' clipc/*/*.h); do
        case $header in
        clipc/math/gpu*) check "$header, emulated" $cxx -std=c++17 -DCLIPC_EMULATE ${flags#*-std=c11} -fsyntax-only -x c++ "$header" ;;
        *)
            $flags -fsyntax-only -x c "$header" & # both at once
            check "$header as C++17" $cxx -std=c++17 ${flags#*-std=c11} -fsyntax-only -x c++ "$header"
            check "$header as C11" wait $!
            ;;
        esac
    done
    end_checks
}

house_parts() {
    local name
    for name in format lengths layers; do part "house, $name" "$PYTHON" dev/test/check_house.py $name; done
}

# A random model of each activation, sizes that are not multiples of anything, against the definition in float64.
reference_config() { # NAME
    case $1 in
    gelu) echo '{"embed_dim": 21,
        "vision_cfg": {"image_size": 26, "patch_size": 5, "width": 39, "head_width": 13, "layers": 3, "mlp_ratio": 3.3},
        "text_cfg": {"context_length": 11, "vocab_size": 131, "width": 28, "heads": 4, "layers": 3, "mlp_ratio": 4.0}}' ;;
    quickgelu) echo '{"embed_dim": 13, "quick_gelu": true,
        "vision_cfg": {"image_size": 19, "patch_size": 6, "width": 34, "head_width": 17, "layers": 1},
        "text_cfg": {"context_length": 7, "vocab_size": 97, "width": 15, "heads": 3, "layers": 2}}' ;;
    esac
}

reference_files() { # NAME
    local out=$BUILD/reference/$1
    mkdir -p "$BUILD/reference"
    reference_config "$1" > "$out.json"
    "$PYTHON" dev/reference.py --config "$out.json" --weights "$out.npz" -o "$out.debug.bin" &&
        "$PYTHON" dev/convert.py "$out.npz" --model "$out.json" -o "$out.bin"
}

reference_model() { # NAME PROGRAM
    once reference_files "$1" && built "$2" && limited "./$2" "$BUILD/reference/$1.bin" "$BUILD/reference/$1.debug.bin"
}

reference_parts() {
    local name
    for name in gelu quickgelu; do
        part "reference $name" reference_model $name "${BIN}test_clip"
        part "reference $name, plain loops" with_plain_loops reference_model $name "${BIN}test_clip"
        part "reference $name, emulated GPU" reference_model $name "$BUILD/test_clip_emulated"
    done
}

c_test() { # NAME OPTION…
    local program=$BUILD/$1
    shift
    built "$program" && limited "$program" "$@"
}

# A run from random weights over files, with evaluation and a checkpoint, then one from that checkpoint. Its results are
# checked elsewhere; here it must end well under the sanitizers.
short_training() {
    local out=$BUILD/short
    rm -rf "$out"
    built "${BIN}train_clip" || return
    "$PYTHON" dev/data/make_shapes.py --out "$out/data" --count 64 || return
    echo '{"embed_dim": 16, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}}' > "$out/tiny.json"
    set -- --train-data "$out/data/train.csv" --val-data "$out/data/val.csv" --zeroshot-data "$out/data/val.csv" --classnames "$out/data/classnames.txt" \
        --templates "$out/data/templates.txt" --batch-size 8 --epochs 1 --workers 2 --logs "$out/logs"
    begin_checks
    check "random start" limited "./${BIN}train_clip" --model "$out/tiny.json" --name one "$@"
    check "fine-tuning" limited "./${BIN}train_clip" --pretrained "$out/logs/one/checkpoints/epoch_1.bin" --accum-freq 2 --lock-image --name two "$@"
    end_checks
}

# The loader's threads under ThreadSanitizer; without OpenMP, whose threads it does not understand.
thread_test() ( # TEST
    export BUILD=build/thread OPENMP='' CFLAGS="-O1 -g1 -Wall -Wextra -Wno-unknown-pragmas -fsanitize=thread"
    build "$BUILD/$1" && limited "$BUILD/$1"
)

c_parts() {
    local test name
    reference_parts
    part "kernel laboratory, emulated GPU" c_test lab
    for test in dev/test/test_*.c dev/test/test_*.cu; do
        name=$(basename "${test%.*}")
        part "$name" c_test "$name"
    done
}

# A script, and the programs that it runs.
script() { # TEST.py
    local programs=
    if runs_programs "$1"; then programs="${BIN}train_clip ${BIN}lr_find ${BIN}wise_ft"; fi
    if grep -q train_clip_emulated "$1"; then programs="$programs $BUILD/train_clip_emulated"; fi
    if grep -q '"test_vocabulary"' "$1"; then programs="$programs $BUILD/test_vocabulary"; fi
    if [ -n "$programs" ]; then built $programs || return; fi
    limited "$PYTHON" "$1"
}
runs_programs() { grep -lE 'environ.*"BIN"|^from train_runs' "$@"; } # TEST.py…: prints those that do

script_parts() { # TEST.py…
    local test
    for test in "$@"; do part "$(basename "$test")" script "$test"; done
}

build_part() {
    if [ -z "$T" ]; then part build build_all; fi
}

case ${1:-} in
'')
    house_parts
    build_part
    part headers headers
    c_parts
    script_parts dev/test/test_*.py
    if [ -d "$GOLDEN" ]; then golden_parts "$GOLDEN"; fi
    if [ -d "$GOLDEN/../data" ]; then part "test_dataloader, data sets" c_test test_dataloader "$GOLDEN/../data"; fi
    ;;
--c)
    build_part
    part headers headers
    c_parts
    ;;
--sanitize)
    build_part
    c_parts
    part "short training" short_training
    for test in test_dataloader test_image_cache; do part "$test, threads" thread_test $test; done
    # shellcheck disable=SC2046 # names without spaces
    script_parts $(runs_programs dev/test/test_*.py | grep -v test_gpu_run) # the emulated kernels have tests of their own above
    if [ -d "$GOLDEN" ]; then golden_parts "$GOLDEN" model tokenizer image sentencepiece; fi
    ;;
*) echo "run.sh: $1: no such option (--c, --sanitize)" >&2 && exit 2 ;;
esac
slowest
total
