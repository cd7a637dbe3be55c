#!/usr/bin/env bash
# Comparison with the libraries themselves (make parity): installs open_clip, transformers, timm, torch, tensorboard and wandb into a virtual
# environment in build/parity, has them load what dev/convert.py writes, and compares their results with ours. Optional: the first time it
# needs the network and some gigabytes of disk; without them it prints one line and ends.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
. dev/test/parts.sh
parity=$BUILD/parity

give_up() { # REASON: nothing was compared, which is not a failure
    echo "make parity: $1; nothing was compared" >&2
    exit 0
}

if ! "$parity/bin/python" -c 'import open_clip, transformers, timm, torch, tensorboard, wandb' 2>/dev/null; then
    "$PYTHON" -m venv "$parity" || give_up "cannot make a virtual environment (Debian: apt-get install python3-venv)"
    echo "make parity: installing open_clip, transformers, timm, torch, tensorboard and wandb into $parity (some gigabytes)"
    "$parity/bin/pip" install -q --no-cache-dir open_clip_torch transformers torch timm tensorboard wandb > "$BUILD/log/parity-install.log" 2>&1 ||
        give_up "cannot install the packages ($(tail -n 1 "$BUILD/log/parity-install.log" | cut -c 1-150))"
fi

build train_clip "$BUILD/test_vocabulary" || exit 1
rm -rf "$parity/work"
long_part "parity: open_clip, transformers, timm, wandb" "$parity/bin/python" dev/test/parity.py "$parity/work"
long_part "parity: tokenizers" "$parity/bin/python" dev/test/test_vocabularies.py --library 20000
if [ -e dev/test/parity_tensorboard.py ]; then
    long_part "parity: tensorboard" "$parity/bin/python" dev/test/parity_tensorboard.py "./${BIN}train_clip"
fi
total
