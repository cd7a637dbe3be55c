"""The packed weight file of clip.c (clipc/model/weight_file.h), and what all outputs share: rounding, and
files that are whole or absent."""
import math
import os
import struct
import zlib

import numpy as np

from checkpoints import CHUNK, WEIGHT_DTYPES, Checkpoint, Entry, Refused, itemsize, product, reader_of
from models import ALIGNMENT, CONFIG_FIELDS, CONSTANTS, HEADER_INTS, NAME_BYTES, check_config, tensor_shapes

SEAL_BLOCK, SEAL_MAGIC = CONSTANTS["SEAL_BLOCK"], CONSTANTS["SEAL_MAGIC"]
DTYPE_CODES = {"F32": CONSTANTS["DTYPE_FP32"], "BF16": CONSTANTS["DTYPE_BF16"]}


def float_bits(value):
    return struct.unpack("<i", struct.pack("<f", value))[0]


def tokenizer_kind(section):
    """What a tokenizer section holds: the text of CLIP's merges, or a packed vocabulary."""
    return CONSTANTS["TOKENIZER_VOCABULARY" if section.startswith(b"VOC\0") else "TOKENIZER_MERGES"]


def header_of(config, dtype, merges, tensors):
    header = [0] * HEADER_INTS
    for key, value in (("MAGIC", CONSTANTS["WEIGHTS_MAGIC"]), ("VERSION", CONSTANTS["WEIGHTS_VERSION"]),
                       ("DTYPE", DTYPE_CODES[dtype]), ("FIELDS", len(CONFIG_FIELDS)),
                       ("MERGES_BYTES", len(merges)), ("TENSORS", tensors),
                       ("TOKENIZER", tokenizer_kind(merges))):
        header[CONSTANTS["HEADER_" + key]] = value
    for i, (kind, name, _, _) in enumerate(CONFIG_FIELDS):
        value = config[name]
        header[CONSTANTS["HEADER_CONFIG"] + i] = float_bits(value) if kind == "float" else int(value)
    packed = bytearray(struct.pack(f"<{HEADER_INTS}i", *header))
    name = config["name"].encode("utf-8", "replace")[:NAME_BYTES - 1]
    name = name.decode("utf-8", "ignore").encode("utf-8")  # cut between characters
    start = 4 * CONSTANTS["HEADER_NAME"]
    packed[start:start + len(name)] = name
    return bytes(packed)


def padding(length):
    return -length % ALIGNMENT


def seal_bytes(contents):
    """How many bytes the seal of a file adds to that many bytes of contents."""
    return -(-contents // SEAL_BLOCK) * 4 + 16


def seal_of(file, contents):
    """The checksums that end a sealed file (clipc/base/safe_file.h), of its first `contents` bytes."""
    file.seek(0)
    checksums = b""
    for start in range(0, contents, SEAL_BLOCK):
        checksums += struct.pack("<I", zlib.crc32(file.read(min(SEAL_BLOCK, contents - start))))
    return checksums + struct.pack("<4I", zlib.crc32(checksums), len(checksums) // 4, SEAL_BLOCK, SEAL_MAGIC)


def shortest(value):
    """The shortest decimal that reads back as this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def open_packed(path):
    """A packed .bin: -> Checkpoint with config, merges (the tokenizer section, or None) and dtype. Checked as in
    weight_file_open()."""
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        raw = f.read(4 * HEADER_INTS)
        if len(raw) < 4 * HEADER_INTS:
            raise Refused(f"{path}: shorter than the {4 * HEADER_INTS} bytes of a header")
        header = struct.unpack(f"<{HEADER_INTS}i", raw)
        version, code, stored, merges, count = (header[CONSTANTS["HEADER_" + k]]
                                                for k in ("VERSION", "DTYPE", "FIELDS", "MERGES_BYTES",
                                                          "TENSORS"))
        dtype = next((d for d, c in DTYPE_CODES.items() if c == code), None)
        tokenizer = header[CONSTANTS["HEADER_TOKENIZER"]]
        if (not 1 <= version <= CONSTANTS["WEIGHTS_VERSION"]
            or tokenizer not in (CONSTANTS["TOKENIZER_MERGES"], CONSTANTS["TOKENIZER_VOCABULARY"])
            or dtype is None or not 1 <= stored <= len(CONFIG_FIELDS)
            or not 0 <= merges <= CONSTANTS["TOKENIZER_MOST_BYTES"]):
            raise Refused(f"{path}: version {version}, number format {code}, {stored} fields, a tokenizer of "
                          f"kind {tokenizer} and {merges} bytes: not a packed file that this program can read")
        config = {}
        for i, (kind, name, _, _) in enumerate(CONFIG_FIELDS):
            bits = header[CONSTANTS["HEADER_CONFIG"] + i] if i < stored else 0
            config[name] = (shortest(struct.unpack("<f", struct.pack("<i", bits))[0]) if kind == "float"
                            else bits)
        name = raw[4 * CONSTANTS["HEADER_NAME"]:][:NAME_BYTES].split(b"\0")[0]
        config["name"] = name.decode("utf-8", "replace")
        shapes = tensor_shapes(check_config(config, path))
        offset = len(raw) + merges + padding(merges)
        places = {}
        for name, shape in shapes.items():
            places[name] = offset
            offset += product(shape) * itemsize(dtype)
            offset += padding(offset)
        announced = offset + (seal_bytes(offset) if version > 1 else 0)
        if count != len(shapes) or size != announced:
            raise Refused(f"{path}: {size} bytes and {count} tensors, its header announces {announced} and "
                          f"{len(shapes)}; is it complete?")
        if version > 1 and seal_of(f, offset) != f.read():
            raise Refused(f"{path}: is damaged (its checksums differ); take another copy")
        f.seek(len(raw))
        text = f.read(merges) if merges else None
        if tokenizer_kind(text or b"") != tokenizer:
            raise Refused(f"{path}: its tokenizer is not of the kind {tokenizer} that its header names")
    entries = {name: Entry(dtype, shape, reader_of(path, places[name], dtype, shape))
               for name, shape in shapes.items()}
    packed = Checkpoint(path, "packed .bin", entries)
    packed.config, packed.merges, packed.dtype = config, text, dtype
    return packed


def to_float32(x, dtype):
    if dtype == "BF16":
        return (x.astype("<u4") << 16).view("<f4")
    with np.errstate(over="ignore"):
        return x.astype("<f4")


def to_bf16(x):
    """float32 to the bits of bf16, to the nearest, ties to even."""
    bits = np.ascontiguousarray(x, "<f4").view("<u4")
    return ((bits + (0x7FFF + (bits >> 16 & 1)).astype("<u4")) >> 16).astype("<u2")


def rounded(source, dtype, to):
    """Numbers of one of WEIGHT_DTYPES in another, to the nearest, ties to even; too large ones become
    infinite."""
    if to == dtype:
        return source
    values = to_float32(source, dtype)
    with np.errstate(over="ignore"):
        return to_bf16(values) if to == "BF16" else values.astype(WEIGHT_DTYPES[to])


def is_finite(numbers, dtype):
    return (numbers & 0x7F80) != 0x7F80 if dtype == "BF16" else np.isfinite(numbers)


def converted_chunks(where, name, entry, dtype):
    """Yields the numbers of a tensor in `dtype` ("F32", "BF16", "F16"), some millions at a time; refuses
    numbers that are not finite or too large for it."""
    array = entry.read()
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK // 4):
        source = flat[start:start + CHUNK // 4]
        out = rounded(source, entry.dtype, dtype)
        finite = is_finite(out, dtype)
        if not finite.all():
            bad = int(np.argmin(finite))
            place = "".join(f"[{i}]" for i in np.unravel_index(start + bad, array.shape))
            value = float(to_float32(source[bad:bad + 1], entry.dtype)[0] if entry.dtype == "BF16"
                          else source[bad])
            raise Refused(f"{where}: {name}{place} is {value:g}"
                          + (f", too large for {dtype}" if math.isfinite(value) else ""))
        yield out


class Aside:
    """A file that is whole or absent: written as PATH.part, then fsync and rename."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        self.file = open(self.path + ".part", "w+b")
        return self.file

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
            self.file.close()
            if kind is None:
                os.replace(self.path + ".part", self.path)
        finally:
            if os.path.exists(self.path + ".part"):
                os.unlink(self.path + ".part")


class Model:
    """What an output format needs: the configuration, entries in the table's order (open_clip's names),
    the tokenizer section (merges), the dtype to write and whether the user asked for it. Writers add to `warnings` what they
    had to change or leave out."""

    def __init__(self, where, config, entries, merges, dtype, asked=False):
        self.where, self.config, self.entries, self.merges = where, config, entries, merges
        self.dtype, self.asked, self.warnings = dtype, asked, []


def write_packed(model, path):
    if model.dtype not in DTYPE_CODES:
        raise Refused("--dtype fp16: a packed .bin holds fp32 or bf16; fp16 is for the other formats")
    merges = model.merges or b""
    with Aside(path) as f:
        f.write(header_of(model.config, model.dtype, merges, len(model.entries)))
        f.write(merges + bytes(padding(len(merges))))
        for name, entry in model.entries.items():
            for chunk in converted_chunks(model.where, name, entry, model.dtype):
                f.write(chunk)
            f.write(bytes(padding(product(entry.shape) * itemsize(model.dtype))))
        f.write(seal_of(f, f.tell()))
    return [path]
