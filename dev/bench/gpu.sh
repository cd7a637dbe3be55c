#!/usr/bin/env bash
# Measures the GPU program on this machine's GPU and prints one table after the other (make bench-gpu).
# PARTS='kernels steps feeding' picks some; MODELS= and BATCHES= (comma-separated lists) set what the steps
# are measured with, PEAK= the GPU's bf16 peak in TFLOP/s. open_clip is measured too if PyTorch finds the GPU.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
. dev/test/parts.sh
. dev/test/gpu_here.sh "make bench-gpu" || exit 1
unset OMP_WAIT_POLICY
build "${BIN}train_clipcu" "$BUILD/labcu" "$BUILD/bench_stepcu" || exit 1
python=$BUILD/parity/bin/python
"$python" -c 'import torch' 2>/dev/null || python=$PYTHON
exec "$python" dev/bench/gpu.py ${PARTS:-} ${MODELS:+--models "$MODELS"} ${BATCHES:+--batches "$BATCHES"} ${PEAK:+--peak "$PEAK"}
