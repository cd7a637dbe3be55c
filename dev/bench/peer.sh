#!/usr/bin/env bash
# Compares train_clip with open_clip (make bench-peer): both run interleaved on the same batches, the result
# is a table of ratios. ROWS='train-b32* start' picks rows, ROUNDS=5 sets the number of turns. open_clip and
# PyTorch are installed into build/parity, as make parity does.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
. dev/test/parts.sh
unset OMP_WAIT_POLICY # set for the tests; both programs are measured with their defaults
parity=$BUILD/parity

if ! "$parity/bin/python" -c 'import open_clip, torch' 2>/dev/null; then
    echo "make bench-peer: installing open_clip and torch into $parity (some gigabytes)"
    "$PYTHON" -m venv "$parity" && "$parity/bin/pip" install -q --no-cache-dir open_clip_torch torch > "$BUILD/log/parity-install.log" 2>&1 ||
        { echo "make bench-peer: open_clip cannot be installed; see $BUILD/log/parity-install.log" >&2; exit 1; }
fi
build train_clip "$BUILD/bench_step" "$BUILD/bench_stages" || exit 1
set -f # ROWS holds patterns for peer.py, not for the shell
exec "$parity/bin/python" dev/bench/peer.py ${ROWS:-} --rounds "${ROUNDS:-5}"
