#!/usr/bin/env python3
"""Tests of dev/convert.py on files that are hostile, malformed or damaged: nothing runs, one line says
why."""
import io
import json
import os
import pickle
import struct
import sys
import zipfile

import numpy as np

import checkpoint_files
from checkpoint_files import (CONFIG, TorchPickler, TorchTensor, check, convert_and_expect, put, refused,
                              run, tensors, torch_legacy, torch_zip, weights, write_safetensors)
from seals import unsealed


# Pickles that try to run something: by every opcode that calls or names anything.
COMMAND = b"X\x16\x00\x00\x00echo pwned > pwned.txt"
HOSTILE = {"GLOBAL and REDUCE": b"\x80\x02cposix\nsystem\n" + COMMAND + b"\x85R.",
           "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + COMMAND + b"\x85R.",
           "INST": b"(" + COMMAND + b"iposix\nsystem\n.", "OBJ": b"(cposix\nsystem\n" + COMMAND + b"o.",
           "NEWOBJ": b"\x80\x02csubprocess\nPopen\n" + COMMAND + b"\x85\x81.",
           "eval": b"\x80\x02cbuiltins\neval\nX\x31\x00\x00\x00__import__('os').system('echo pwned > "
           b"pwned.txt')\x85R.",
           "getattr": b"\x80\x02cbuiltins\ngetattr\n(cos\nsystem\nX\x08\x00\x00\x00__call__tR.",
           "torch's own loader": b"\x80\x02ctorch.storage\n_load_from_bytes\n" + COMMAND + b"\x85R.",
           "a dotted name": b"\x80\x04\x8c\x0ctorch._utils\x8c\x1c_rebuild_tensor_v2.__class__\x93.",
           "an extension": b"\x80\x02\x82\x01.", "a huge memo": b"\x80\x02}r\xff\xff\xff\x7f.",
           "a huge text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",
           "a list in itself": b"\x80\x02]q\x00h\x00a.",
           "a dict in itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "no end": b"\x80\x02}",
           "an unhashable key": b"\x80\x02}]]s.",
           "a module in itself": b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.",}


def test_hostile_pickles_run_nothing():
    put("config.json", CONFIG)
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    for what, data in HOSTILE.items():
        hostile_names = (b"posix", b"cos\n", b"Popen", b"eval", b"_load_from", b"__class__")
        named = any(name in data for name in hostile_names)
        says = "which is not part of a tensor" if named else "x.pt"
        put("x.pt", data)
        refused(["x.pt"], says if data[:1] == b"\x80" else "x.pt", f"{what}, bare")
        torch_zip("x.pt", {}, pickled=data)
        refused(["x.pt"], says, f"{what}, in a zip")
        put("x.pt", magic + data)
        refused(["x.pt"], says, f"{what}, in the older form")
    # what was checked cannot be altered afterwards: BUILD sets attributes
    out = io.BytesIO()
    TorchPickler(out).dump({"a": TorchTensor(np.ones((2, 3), "<f4"))})
    check(out.getvalue().endswith(b"s."), "the pickle ends with putting the tensor into its dict")
    # before that: {"shape": (5,)}, BUILD
    altered = out.getvalue()[:-2] + b"}X\x05\x00\x00\x00shapeK\x05\x85sbs."
    torch_zip("x.pt", {"a": TorchTensor(np.ones((2, 3), "<f4"))}, pickled=altered)
    refused(["x.pt"], "damaged", "a tensor altered by BUILD")


def test_malformed_safetensors_are_refused():
    put("config.json", CONFIG)
    write_safetensors("x.safetensors", weights())
    with open("x.safetensors", "rb") as f:
        length = struct.unpack("<Q", f.read(8))[0]
        header, data = json.loads(f.read(length)), f.read()
    names = list(header)
    first, second = names[0], names[1]
    begin, end = header[second]["data_offsets"]
    size = end - begin

    def entry(**changes):
        return json.dumps({**header, second: {**header[second], **changes}}).encode()
    whole = json.dumps(header).encode()
    cases = {"nothing": (None, b""), "seven bytes": (None, b"1234567"),
             "a huge header": (None, struct.pack("<Q", 1 << 63) + whole),
             "a header beyond the file": (None, struct.pack("<Q", len(whole) + 1) + whole),
             "trailing data": (whole, data + b"123"), "missing data": (whole, data[:-3]),
             "not JSON": (b"{hello", data), "an array": (b"[1]", data),
             "not UTF-8": (whole.replace(b"logit", b"\xff\xfe\xff"), data), "deep": (b"[" * 60000, data),
             "a key twice": (whole[:-1] + b", " + whole[1:], data), "not closed": (whole[:-1], data),
             "NaN": (entry(shape=[float("nan")]), data), "unknown dtype": (entry(dtype="F77"), data),
             "dtype is not a string": (entry(dtype=[1]), data), "shape is a string": (entry(shape="8"), data),
             "negative size": (entry(shape=[-size // 4]), data),
             "true as a size": (entry(shape=[True, size // 4]), data),
             "overflow": (entry(shape=[1 << 62, 4, 1 << 62]), data),
             "other size": (entry(shape=[size // 4 + 1]), data),
             "one offset": (entry(data_offsets=[begin]), data),
             "negative offset": (entry(data_offsets=[-size, 0]), data),
             "offsets reversed": (entry(data_offsets=[end, begin]), data),
             "huge offset": (entry(data_offsets=[begin, (1 << 64) + end]), data),
             "overlap": (entry(data_offsets=[begin - 4, end - 4]), data),
             "a gap": (json.dumps({k: v for k, v in header.items() if k != first}).encode(), data),
             "more in an entry": (entry(more=1), data),
             "an entry that is not an object": (json.dumps({**header, second: 3}).encode(), data),
             "metadata": (json.dumps({**header, "__metadata__": {"a": 1}}).encode(), data)}
    for what, (text, rest) in cases.items():
        put("x.safetensors", rest if text is None else struct.pack("<Q", len(text)) + text + rest)
        says = {"overlap": "overlap", "a gap": "unused before", "trailing data": "after the last tensor",
                "a key twice": "twice"}.get(what, "x.safetensors: ")
        refused(["x.safetensors"], says, f"safetensors, {what}")
    put("x.safetensors", struct.pack("<Q", len(whole) + 3) + whole + b"   " + data)
    convert_and_expect(["x.safetensors"], weights(), "safetensors padded with spaces")


def test_malformed_torch_and_npz_files_are_refused():
    put("config.json", CONFIG)
    w = weights()
    torch_zip("x.pt", tensors(w), drop=[3])
    refused(["x.pt"], "data/3 is missing", "a missing storage")
    torch_zip("x.pt", [TorchTensor(v) for v in w.values()])
    refused(["x.pt"], "list", "a list")
    torch_zip("x.pt", {**tensors(w), "epoch": 3})
    refused(["x.pt"], "epoch is int", "a number among tensors")
    torch_legacy("x.pt", tensors(w), cut=3)
    refused(["x.pt"], "complete", "older form, cut")
    torch_legacy("x.pt", tensors(w), keys=["0"])
    refused(["x.pt"], "x.pt", "older form, keys missing")
    torch_zip("x.pt", tensors({**w, "ln_final.bias": np.ones(10, "<i8")}))
    refused(["x.pt"], "ln_final.bias holds I64", "whole numbers")
    x = dict(w)
    x["surprise.\nweight"] = np.ones(2, "<f4")
    write_safetensors("x.safetensors", x)
    refused(["x.safetensors"], "surprise. weight is not a tensor of the model",
            "an extra tensor with a line break in its name")
    np.savez("x.npz", **{**w, "ln_final.bias": np.array(["text"] * 10)})
    refused(["x.npz"], "ln_final.bias", "texts in npz")
    np.savez("x.npz", **{**w, "ln_final.bias": np.array([None] * 10)})
    refused(["x.npz"], "ln_final.bias", "objects in npz")
    write_safetensors("x.safetensors", {**{"text." + k: v for k, v in w.items() if "visual" not in k
                                           and k != "logit_scale"}, **w})
    refused(["x.safetensors"], "holds both", "with and without text.")
    with zipfile.ZipFile("x.zip", "w") as z:
        z.writestr("readme.txt", "text")
    refused(["x.zip"], "neither torch's", "some other zip")


def test_a_packed_file_says_when_it_is_damaged():
    """Any flipped bit is noticed; version 1, which had no seal, is still read, and gives the same file."""
    put("config.json", CONFIG)
    write_safetensors("x.safetensors", weights())
    run("x.safetensors", "-o", "good.bin")
    with open("good.bin", "rb") as f:
        good = f.read()
    for at in [*range(0, len(good), len(good) // 40), *range(len(good) - 20, len(good))]:
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        put("bad.bin", bytes(bad))
        refused(["bad.bin"], "bad.bin: ", f"a bit flipped in byte {at} of {len(good)}")
    old = bytearray(unsealed(good))
    struct.pack_into("<i", old, 4, 1)
    put("old.bin", bytes(old))
    run("old.bin", "-o", "new.bin")
    with open("new.bin", "rb") as f:
        check(f.read() == good, "version 1 becomes version 2")


def test_damaged_files_never_raise():
    """Cut and altered copies: exit 0 or 2 with at most one line, no exception."""
    put("config.json", CONFIG)
    w = weights()
    rng = np.random.default_rng(7)
    write_safetensors("x.safetensors", w)
    torch_zip("x.pt", tensors(w))
    torch_legacy("x.pth", tensors(w))
    np.savez_compressed("x.npz", **w)
    run("x.npz", "-o", "x.bin")
    for name in ("x.safetensors", "x.pt", "x.pth", "x.npz", "x.bin"):
        with open(name, "rb") as f:
            good = f.read()
        for i in range(60):
            bad = bytearray(good)
            if i < 20:
                bad = bad[:int(rng.integers(0, len(good)))]
            else:
                # headers and pickles are at the beginning, a zip's directory at the end
                region = len(good) if i % 2 else min(len(good), 6000)
                for at in rng.integers(0, region, 1 + i % 5):
                    bad[at if i % 3 else -1 - at] = int(rng.integers(0, 256))
            put("damaged" + os.path.splitext(name)[1], bytes(bad))
            try:
                code, _, err = run("damaged" + os.path.splitext(name)[1], "-o", "y.out")
                check(code in (0, 2) and err.count("\n") <= 1 and (code == 0) == os.path.exists("y.out"),
                      f"damaged {name}, {i}: exit {code}: {err[:200]}")
            except Exception as e:
                check(False, f"damaged {name}, {i}: {type(e).__name__}: {e}")
            if os.path.exists("y.out"):
                os.unlink("y.out")


if __name__ == "__main__":
    sys.exit(checkpoint_files.run_tests(globals()))
