#!/usr/bin/env bash
# train_clip beside open_clip (make bench-peer): both interleaved on the same batches, a table of ratios. ROWS='train-b32* start' picks rows,
# ROUNDS=5 says how many turns each takes. open_clip and PyTorch come into build/parity, as make parity has them.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
. dev/test/parts.sh
unset OMP_WAIT_POLICY # of the tests; each program waits as it likes best
parity=$BUILD/parity

if ! "$parity/bin/python" -c 'import open_clip, torch' 2>/dev/null; then
    echo "make bench-peer: installing open_clip and torch into $parity (some gigabytes)"
    "$PYTHON" -m venv "$parity" && "$parity/bin/pip" install -q --no-cache-dir open_clip_torch torch > "$BUILD/log/parity-install.log" 2>&1 ||
        { echo "make bench-peer: open_clip cannot be installed; see $BUILD/log/parity-install.log" >&2; exit 1; }
fi
build train_clip "$BUILD/bench_step" "$BUILD/bench_stages" || exit 1
set -f # the rows are patterns for peer.py
exec "$parity/bin/python" dev/bench/peer.py ${ROWS:-} --rounds "${ROUNDS:-5}"
