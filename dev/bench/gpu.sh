#!/usr/bin/env bash
# The GPU program on this machine's GPU, one table after the other (make bench-gpu); PARTS='kernels steps feeding' picks some, MODELS= and
# BATCHES= (separated by commas) what the steps are taken with, PEAK= TFLOP/s of bf16. open_clip takes part where PyTorch finds the GPU.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
. dev/test/parts.sh
. dev/test/gpu_here.sh "make bench-gpu" || exit 1
unset OMP_WAIT_POLICY
build "${BIN}train_clipcu" "$BUILD/labcu" "$BUILD/bench_stepcu" || exit 1
python=$BUILD/parity/bin/python
"$python" -c 'import torch' 2>/dev/null || python=$PYTHON
exec "$python" dev/bench/gpu.py ${PARTS:-} ${MODELS:+--models "$MODELS"} ${BATCHES:+--batches "$BATCHES"} ${PEAK:+--peak "$PEAK"}
