"""Readers of checkpoints for dev/convert.py: torch.save files (zip and the older plain form), TorchScript
archives, safetensors, npz.

Each gives a Checkpoint: entries by name, of which only shapes, dtypes and places are read. Files are not
trusted: no name in a pickle is imported, every length is checked against the file before it is used, time
and memory are in proportion to the size of the file (doc/limits.md), and whatever is wrong raises Refused
with one line.
"""
import ast
import collections
import io
import json
import os
import struct
import zipfile

import numpy as np

from pickles import (LONGEST_NAME, MOST_AXES, Malformed, Pickle, ScriptModule, Tensor, is_count, product,
                     span_of)

# dtype -> numpy's; bf16 as its bits, since numpy has no such type
WEIGHT_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
OTHER_DTYPES = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4",
                "U16": "<u2", "U8": "u1", "BOOL": "?", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1"}
DTYPES = {**WEIGHT_DTYPES, **OTHER_DTYPES}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save before 1.6: first pickle of the file
LARGEST_HEADER = 100_000_000  # bytes of a safetensors header or of a pickle; real ones are below 1 MB
SMALL_PICKLE = 1 << 20  # bytes of a deflated pickle that may be more than the whole file has
LONGEST_NPY_HEADER = 512  # bytes; numpy's own have 118
LONGEST_JSON_NUMBER = 40  # characters; the digits of a float64 and its exponent are below 30
# tensors of a file may have this many bytes, and this many times as many as the file: deflated zeros, or
# many tensors in the same storage
SMALL_TENSORS, MOST_INFLATION = 1 << 25, 16
CHUNK = 1 << 24


class Refused(Exception):
    """Wrong input; the text is the line that the user sees."""


class Entry:
    """A tensor of a file, not read yet. read() gives an array of WEIGHT_DTYPES[dtype] (or of
    OTHER_DTYPES)."""

    def __init__(self, dtype, shape, read):
        self.dtype, self.shape, self.read = dtype, tuple(shape), read


def check_inflation(path, amount):
    """amount: how many bytes reading all tensors of the file goes through."""
    size = os.path.getsize(path)
    if amount > SMALL_TENSORS + MOST_INFLATION * size:
        raise Refused(f"{path}: its {size} bytes describe tensors of {amount}; real weights do not shrink "
                      "like that")


class Checkpoint:
    """entries: name -> Entry. kind: the form of the file, in words. module_types: the class names in a
    TorchScript archive, else None."""

    def __init__(self, path, kind, entries, module_types=None):
        self.path, self.kind, self.entries, self.module_types = path, kind, entries, module_types


def itemsize(dtype):
    return np.dtype(DTYPES[dtype]).itemsize


def read_range(path, offset, dtype, count):
    """`count` numbers at byte `offset` of a file."""
    with open(path, "rb") as f:
        f.seek(offset)
        data = np.fromfile(f, DTYPES[dtype], count)
    if data.size != count:
        raise Refused(f"{path}: ends early; is it complete?")
    return data


def reader_of(path, offset, dtype, shape):
    """The read() of a tensor whose numbers are at byte `offset` of a file."""
    return lambda: read_range(path, offset, dtype, product(shape)).reshape(shape)


# ---------------------------------------------------------------- safetensors

def no_duplicates(pairs):
    seen = dict(pairs)
    if len(seen) != len(pairs):
        twice = collections.Counter(k for k, _ in pairs).most_common(1)[0][0]
        raise Refused(f"{twice} appears twice")
    return seen


def no_constant(word):
    raise ValueError(f"{word} is not allowed in JSON")


def short_number(kind):
    """int or float of a JSON number; the time that int() takes grows with the square of the digits."""
    def parse(digits):
        if len(digits) > LONGEST_JSON_NUMBER:
            raise ValueError(f"a number of {len(digits)} characters")
        return kind(digits)
    return parse


def parse_json(data, path):
    """Strict: UTF-8, no key twice, no NaN, no depth that exhausts the stack."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constant,
                          parse_int=short_number(int), parse_float=short_number(float))
    except Refused as e:
        raise Refused(f"{path}: {e}") from None
    except RecursionError:
        raise Refused(f"{path}: its JSON is nested too deeply") from None
    except UnicodeDecodeError:
        raise Refused(f"{path}: its JSON is not UTF-8") from None
    except ValueError as e:
        raise Refused(f"{path}: not valid JSON ({e})") from None


def safetensors_range(path, name, entry, data_bytes):
    """Checks one entry of the header; -> dtype, shape, begin, end."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"{path}: {name}: its header entry must hold dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Refused(f"{path}: {name}: unknown dtype {dtype!r}")
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(map(is_count, shape)):
        raise Refused(f"{path}: {name}: shape {str(shape)[:60]} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise Refused(f"{path}: {name}: data_offsets {str(offsets)[:60]} are not two positions")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise Refused(f"{path}: {name}: bytes {begin} to {end} are outside the {data_bytes} bytes of data; "
                      "is the file complete?")
    if product(shape) * itemsize(dtype) != end - begin:
        raise Refused(f"{path}: {name}: shape {shape} of {dtype} needs {product(shape) * itemsize(dtype)} "
                      f"bytes, has {end - begin}")
    return dtype, shape, begin, end


def open_safetensors(path):
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        first = f.read(8)
        if len(first) < 8:
            raise Refused(f"{path}: {size} bytes are too few for a safetensors file")
        length = struct.unpack("<Q", first)[0]
        if length > min(size - 8, LARGEST_HEADER):
            raise Refused(f"{path}: announces a header of {length} bytes, the file has {size}; is it "
                          "complete, and safetensors?")
        header = parse_json(f.read(length), path)
    if not isinstance(header, dict):
        raise Refused(f"{path}: the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Refused(f"{path}: __metadata__ must hold only strings")
    data = 8 + length
    ranges = {name: safetensors_range(path, name, entry, size - data) for name, entry in header.items()}
    entries, reached, before = {}, 0, ""
    for name, (dtype, shape, begin, end) in sorted(ranges.items(), key=lambda r: r[1][2:]):
        if begin != reached:
            what = (f"overlap those of {before}" if begin < reached
                    else f"leave {begin - reached} bytes unused before them")
            raise Refused(f"{path}: {name}: its data {what}")
        reached, before = end, name
        entries[name] = Entry(dtype, shape, reader_of(path, data + begin, dtype, shape))
    if reached != size - data:
        raise Refused(f"{path}: {size - data - reached} bytes after the last tensor; were files joined?")
    return Checkpoint(path, "safetensors", entries)


# ---------------------------------------------------------------- zip archives

def read_member(archive, path, name, offset, dtype, count):
    """`count` numbers at byte `offset` of a member, stored or deflated. The checksum is verified when the
    member is read to its end."""
    out = np.empty(count, DTYPES[dtype])
    left = memoryview(out.reshape(-1)).cast("B") if count else memoryview(b"")
    try:
        with archive.open(name) as f:
            f.seek(offset)
            while len(left):
                part = f.read(min(len(left), CHUNK))
                if not part:
                    raise Refused(f"{path}: {name} ends early")
                left[:len(part)] = part
                left = left[len(part):]
            f.read(1)  # at the end of the member this compares its checksum
    except Refused:
        raise
    except Exception as e:  # zlib.error, BadZipFile, RuntimeError (encrypted), NotImplementedError (method) …
        raise Refused(f"{path}: {name} is damaged ({e})") from None
    return out


def open_zip(path):
    try:
        archive = zipfile.ZipFile(path)
        members = {i.filename: i for i in archive.infolist()}
    except Exception as e:  # a forged directory can raise nearly anything
        raise Refused(f"{path}: not a whole zip archive ({e}); is it complete?") from None
    for name, member in members.items():  # others (bzip2, LZMA) inflate further and reserve more memory
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(f"{path}: {name} is neither stored nor deflated; save the checkpoint again")
    pickles = [n for n in members if n.split("/")[-1] == "data.pkl" and n.count("/") <= 1]
    if len(pickles) == 1:
        return open_torch_zip(path, archive, members, pickles[0][:-len("data.pkl")])
    if members and not pickles and all(n.endswith(".npy") for n in members):
        return open_npz(path, archive, members)
    raise Refused(f"{path}: a zip archive, but neither torch's (data.pkl) nor numpy's (.npy)")


def npy_header(file):
    """-> shape, whether in Fortran order, numpy's dtype, bytes of the header. numpy's own reader has no
    bound for the header, nor for the time that it takes."""
    start = {(1, 0): "<H", (2, 0): "<I"}[np.lib.format.read_magic(file)]
    length = struct.unpack(start, file.read(struct.calcsize(start)))[0]
    if length > LONGEST_NPY_HEADER:
        raise ValueError(f"a header of {length} bytes")
    header = ast.literal_eval(file.read(length).decode("latin-1").strip())
    shape, kind = header["shape"], header["descr"]
    if not isinstance(shape, tuple) or len(shape) > MOST_AXES or not all(map(is_count, shape)):
        raise ValueError("its shape is not a tuple of sizes")
    if not isinstance(kind, str):
        raise ValueError("it holds records")
    return shape, bool(header["fortran_order"]), np.dtype(kind), file.tell()


def open_npz(path, archive, members):
    entries = {}
    for name, info in members.items():
        try:
            with archive.open(name) as f:
                shape, fortran, kind, offset = npy_header(f)
        except Exception as e:
            raise Refused(f"{path}: {name}: not a readable numpy array ({e})") from None
        text = "<V2" if kind.str == "|V2" else kind.str  # numpy's name for the bf16 of other packages
        dtype = "BF16" if text == "<V2" else next((d for d, s in DTYPES.items() if d != "BF16"
                                                   and np.dtype(s) == kind and not kind.hasobject), None)
        if dtype is None:
            raise Refused(f"{path}: {name}: holds {kind}, which is not a known type of numbers")
        if info.file_size - offset != product(shape) * itemsize(dtype):
            raise Refused(f"{path}: {name}: {info.file_size - offset} bytes, its shape {shape} needs "
                          f"{product(shape) * itemsize(dtype)}")
        order = "F" if fortran else "C"
        entries[name[:-len(".npy")]] = Entry(
            dtype, shape, lambda n=name, o=offset, d=dtype, s=shape, order=order:
            read_member(archive, path, n, o, d, product(s)).reshape(s, order=order))
    check_inflation(path, sum(info.file_size for info in members.values()))
    return Checkpoint(path, "numpy .npz", entries)


# ---------------------------------------------------------------- pickles of torch

def unpickle(path, pickle):
    try:
        return pickle.load()
    except Malformed as e:
        raise Refused(f"{path}: {e}") from None


def flatten_script(path, root):
    """The tensors of a tree of script modules by their dotted names; other attributes (training, …) are
    ignored. The length of names bounds the depth: each level repeats the names above it."""
    found, todo, seen = {}, [("", root)], set()
    while todo:
        prefix, module = todo.pop()
        if id(module) in seen:
            raise Refused(f"{path}: its tree of modules contains itself")
        seen.add(id(module))
        if len(prefix) > LONGEST_NAME:
            raise Refused(f"{path}: a module's name has {len(prefix)} characters")
        for key, value in module.attributes.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{key}"] = value
            elif isinstance(value, ScriptModule):
                todo.append((f"{prefix}{key}.", value))
    return found


def state_dict(path, root):
    if isinstance(root, ScriptModule):
        return flatten_script(path, root)
    wrapped = ([root[key] for key in ("state_dict", "model") if isinstance(root.get(key), dict)]
               if isinstance(root, dict) else [])
    if wrapped:
        root = wrapped[0]  # a training checkpoint, open_clip's or DeiT's
    if not isinstance(root, dict):
        raise Refused(f"{path}: holds a {type(root).__name__} instead of a state dict")
    for key, value in root.items():
        if not isinstance(value, Tensor):
            raise Refused(f"{path}: {str(key)[:80]} is {type(value).__name__.lower()}, not a tensor; give "
                          "the state dict, or a checkpoint with a state_dict")
    return root


def tensor_entry(tensor, read_storage):
    """read_storage(storage, first, count) -> flat numbers."""
    shape, strides, contiguous = tensor.shape, tensor.strides, 1
    plain = True
    for n, s in zip(reversed(shape), reversed(strides)):
        plain &= n == 1 or s == contiguous
        contiguous *= n
    span = span_of(shape, strides)

    def read():
        flat = read_storage(tensor.storage, tensor.offset, span)
        if plain or not span:
            return flat.reshape(shape)
        return np.lib.stride_tricks.as_strided(flat, shape, [s * flat.itemsize for s in strides],
                                               writeable=False)
    return Entry(tensor.storage.dtype, shape, read)


def torch_entries(path, tensors, read_storage, deflated=()):
    """The entries of a state dict. deflated: keys of storages that must be inflated up to a tensor's end."""
    amount = 0
    for storage, offset, shape, strides in tensors.values():
        numbers = max(product(shape), span_of(shape, strides) + (offset if storage.key in deflated else 0))
        amount += numbers * itemsize(storage.dtype)
    check_inflation(path, amount)
    return {name: tensor_entry(tensor, read_storage) for name, tensor in tensors.items()}


def open_torch_zip(path, archive, members, prefix):
    file_size, pickle_size = os.path.getsize(path), members[prefix + "data.pkl"].file_size
    if pickle_size > min(LARGEST_HEADER, max(SMALL_PICKLE, file_size)):
        raise Refused(f"{path}: a pickle of {pickle_size} bytes in a file of {file_size}; real ones are far "
                      "smaller")
    byteorder = members.get(prefix + "byteorder")
    if (byteorder and byteorder.file_size < 16
        and bytes(read_member(archive, path, byteorder.filename, 0, "U8", byteorder.file_size)) != b"little"):
        raise Refused(f"{path}: its numbers are not little-endian; save it again on a common machine")
    data = read_member(archive, path, prefix + "data.pkl", 0, "U8", pickle_size)
    pickle = Pickle(io.BytesIO(data.tobytes()), pickle_size)
    root = unpickle(path, pickle)
    deflated = set()
    for s in pickle.storages.values():
        member = members.get(f"{prefix}data/{s.key}")
        if member is None:
            raise Refused(f"{path}: data/{s.key} is missing from the archive")
        if member.file_size != s.count * itemsize(s.dtype):
            raise Refused(f"{path}: data/{s.key} has {member.file_size} bytes, its tensor needs "
                          f"{s.count * itemsize(s.dtype)}")
        if member.compress_type != zipfile.ZIP_STORED:
            deflated.add(s.key)
        elif member.header_offset + member.file_size > file_size:
            raise Refused(f"{path}: data/{s.key} reaches beyond the end of the file; is it complete?")

    def read_storage(s, first, count):
        return read_member(archive, path, f"{prefix}data/{s.key}", first * itemsize(s.dtype), s.dtype, count)
    entries = torch_entries(path, state_dict(path, root), read_storage, deflated)
    if isinstance(root, ScriptModule):
        return Checkpoint(path, "TorchScript archive", entries, pickle.script_types)
    return Checkpoint(path, "torch checkpoint", entries)


def open_torch_legacy(path):
    """Before torch 1.6: pickles of a magic number, a version, the machine's properties, the object and the
    storages' keys, one after the other; then for each key its number of entries (int64) and the numbers."""
    size = os.path.getsize(path)
    if size == 0:
        raise Refused(f"{path}: is empty")
    with open(path, "rb") as f:
        if unpickle(path, Pickle(f, size)) != LEGACY_MAGIC or unpickle(path, Pickle(f, size)) != 1001:
            raise Refused(f"{path}: a pickle, but not one that torch.save wrote")
        machine = unpickle(path, Pickle(f, size))
        if isinstance(machine, dict) and machine.get("little_endian") is False:
            raise Refused(f"{path}: its numbers are not little-endian; save it again on a common machine")
        pickle = Pickle(f, size)
        root = unpickle(path, pickle)
        keys = unpickle(path, Pickle(f, size))
        offset = f.tell()
        places = {}
        for key in keys if isinstance(keys, list) else []:
            s = pickle.storages.get(key) if isinstance(key, str) else None
            f.seek(offset)
            count = f.read(8)
            if s is None or len(count) != 8 or struct.unpack("<q", count)[0] != s.count:
                raise Refused(f"{path}: the numbers of its storages do not fit its tensors; is the file "
                              "complete?")
            places[s.key] = offset + 8
            offset += 8 + s.count * itemsize(s.dtype)
    if offset != size:
        raise Refused(f"{path}: {size} bytes, its storages end at {offset}; is it complete?")
    if set(pickle.storages) - set(places):
        raise Refused(f"{path}: the numbers of storage {min(set(pickle.storages) - set(places))} are "
                      "missing")

    def read_storage(s, first, count):
        return read_range(path, places[s.key] + first * itemsize(s.dtype), s.dtype, count)
    return Checkpoint(path, "torch checkpoint of the older form",
                      torch_entries(path, state_dict(path, root), read_storage))


# ---------------------------------------------------------------- any file

def open_checkpoint(path):
    """Opened by content, not by name. The name only selects the error message where the content is of no
    known form."""
    with open(path, "rb") as f:
        first = f.read(16)
    if first[:4] == b"PK\3\4":
        return open_zip(path)
    if path.endswith(".safetensors") or first[8:9] == b"{":
        return open_safetensors(path)
    if first[:1] == b"\x80" or not first:
        return open_torch_legacy(path)
    raise Refused(f"{path}: not a torch, safetensors, npz or packed .bin file; give a checkpoint or the "
                  "folder that holds it")


def open_shards(folder, index_name):
    """Several files and a JSON index: weight_map says which file holds which tensor."""
    index_path = os.path.join(folder, index_name)
    with open(index_path, "rb") as f:
        index = parse_json(f.read(LARGEST_HEADER), index_path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if (not isinstance(names, dict) or not names
        or not all(isinstance(v, str) and os.path.basename(v) == v != "" for v in names.values())):
        raise Refused(f"{index_path}: weight_map must name files of this folder")
    for file in sorted(set(names.values())):
        if not os.path.isfile(os.path.join(folder, file)):
            raise Refused(f"{os.path.join(folder, file)}: is missing; {index_name} names it")
    shards = {file: open_checkpoint(os.path.join(folder, file)) for file in sorted(set(names.values()))}
    entries = {}
    for file, shard in shards.items():
        for name, entry in shard.entries.items():
            if names.get(name) != file:
                raise Refused(f"{shard.path}: holds {name}, which {index_name} assigns to "
                              f"{names.get(name, 'no file')}")
            entries[name] = entry
    for name, file in names.items():
        if name not in entries:
            raise Refused(f"{shards[file].path}: {name} is missing; {index_name} assigns it to this file")
    return Checkpoint(folder, f"{len(shards)} shards of {next(iter(shards.values())).kind}", entries)
