#!/usr/bin/env bash
# What `make torture` runs: a save that is killed before each of its system calls or has each of them fail, kills at random moments,
# each call of the C library failing once, files that change under a run, clocks that jump; then valgrind where it is installed.
# `make test` runs a sample of all but the last; ThreadSanitizer is in `make sanitize`.
#   KILLS=100 dev/test/torture.sh      fewer random kills than 1,000
#   T=faults dev/test/torture.sh       only the parts whose name contains the text
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
PART_LIMIT=${PART_LIMIT:-14400}
. dev/test/parts.sh

# Wrong addresses, and decisions that depend on memory which nothing has written. valgrind knows no AVX-512: CLIPC_ISA chooses
# other kernels. Nor does it know that pages given back to the kernel are zeros: this build writes them (aligned_calloc_check).
memory_check() {
    local out=$BUILD/torture
    rm -rf "$out" && mkdir -p "$out" || return
    "$PYTHON" dev/data/make_shapes.py --out "$out/data" --count 24 || return
    echo '{"embed_dim": 8, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 24, "head_width": 12, "layers": 1},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 1}}' > "$out/tiny.json"
    BUILD=$out BIN=$out/ CFLAGS='-O1 -g -DCLIPC_WRITE_ZEROS' build "$out/train_clip" || return
    begin_checks
    local isa
    for isa in plain portable avx2; do
        check "memcheck, $isa" env CLIPC_ISA=$isa OMP_NUM_THREADS=2 valgrind -q --error-exitcode=9 "$out/train_clip" --model "$out/tiny.json" --precision fp32 \
            --train-data "$out/data/train.csv" --val-data "$out/data/val.csv" --batch-size 4 --steps 2 --workers 2 --cache-images "$out/images.cache" --logs "$out/logs" --name $isa
    done
    end_checks
}

build "${BIN}train_clip" || exit 1
part "every system call of a save" env ALL=1 "$PYTHON" dev/test/test_run_set.py
part "kills at random moments" env KILLS="${KILLS:-1000}" TEST=kill_anywhere "$PYTHON" dev/test/test_run_kill.py
part "faults: every call of the C library" env ALL=1 "$PYTHON" dev/test/test_run_faults.py
if command -v valgrind >/dev/null; then part "valgrind" memory_check; else echo "valgrind is not installed; left out"; fi
total
