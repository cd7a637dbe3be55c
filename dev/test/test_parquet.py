#!/usr/bin/env python3
"""dev/data/parquet_to_tar.py: the forms of img2dataset and of the Hugging Face hub become tars, every row accounted for. Without pyarrow only what it
says then is tested."""
import io
import os
import subprocess
import sys
import tarfile
import tempfile

import checks
from checks import check

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
try:
    import pyarrow
    import pyarrow.parquet
except ImportError:
    pyarrow = None

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 50
JPEG = b"\xff\xd8\xff\xe0" + b"1" * 70


def convert(*arguments):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "dev/data/parquet_to_tar.py"), *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def members(folder):
    out = {}
    for name in sorted(os.listdir(folder)):
        with tarfile.open(os.path.join(folder, name)) as tar:
            out.update({m.name: tar.extractfile(m).read() for m in tar})
    return out


def refused(says, *arguments):
    code, out, err = convert(*arguments)
    check(code == 2 and says in err and err.count("\n") == 1, f"{arguments}: exit {code}, {err!r} should say {says!r}")


def test_what_is_missing_is_said():
    if not pyarrow:
        refused("needs pyarrow", "x.parquet", "--out", "out")
        return
    refused("cannot be read", __file__, "--out", "out")
    os.makedirs("none")
    refused("no .parquet files", "none", "--out", "out")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1], "b": ["x"]}), "other.parquet")
    refused("name it with --image-column", "other.parquet", "--out", "out")


def test_both_forms_become_tars():
    if not pyarrow:
        return
    os.makedirs("hf")
    rows = [{"bytes": PNG if i % 2 else JPEG, "path": f"{i}.x"} for i in range(16)]
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"caption é {i}" for i in range(16)], "image": rows}), "hf/0.parquet")
    code, out, _ = convert("hf", "--out", "hf_tars", "--samples-per-shard", 5)
    found = members("hf_tars")
    check(code == 0 and "16 rows found, 16 written to hf_tars in 4 tars, 0 passed over" in out, f"exit {code}: {out}")
    check(len(found) == 32 and found["0000000000.jpg"] == JPEG and found["0000000001.png"] == PNG, f"{sorted(found)[:4]}")
    check(found["0000300000.txt"].decode() == "caption é 15", f"{sorted(found)[-2:]}")
    images = [JPEG, None, b"", JPEG]
    pyarrow.parquet.write_table(pyarrow.table({"key": list("abcd"), "jpg": images, "caption": ["x", "y", "z", None], "status": ["success"] * 4}), "i2d.parquet")
    code, out, _ = convert("i2d.parquet", "--out", "i2d_tars")
    check(code == 0 and "4 rows found, 1 written" in out and "2 without the bytes" in out and "1 without caption" in out, f"exit {code}: {out}")
    refused("holds tars already", "i2d.parquet", "--out", "i2d_tars")
    pyarrow.parquet.write_table(pyarrow.table({"png": [PNG], "captions": [["one\nline", "two"]]}), "lists.parquet")
    convert("lists.parquet", "--out", "list_tars")
    check(members("list_tars")["0000000000.txt"] == b"one line\ntwo", "a list becomes lines")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="test_parquet.") as scratch:
        os.chdir(scratch)
        for test in checks.tests_of(globals()):
            checks.run(test)
        os.chdir(ROOT)
    sys.exit(checks.report())
