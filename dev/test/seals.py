"""For tests that alter a sealed file (clipc/base/safe_file.h): its contents, and the file of other contents."""
import io
import os
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from packed import seal_of  # noqa: E402


def sealed(contents):
    return bytes(contents) + seal_of(io.BytesIO(contents), len(contents))


def unsealed(data):
    blocks = struct.unpack_from("<4I", data, len(data) - 16)[1]
    return data[:len(data) - 16 - 4 * blocks]
