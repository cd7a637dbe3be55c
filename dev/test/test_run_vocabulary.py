#!/usr/bin/env python3
"""A model with a packed vocabulary: its tokenizer.json is found beside its configuration, travels in the weight file through training,
resuming and back, and must fit the model."""
import json
import os
import shutil
import struct
import subprocess
import sys

import train_runs
import vocabulary_forms as forms
from checks import check
from train_runs import ROOT, checkpoint, newest, read, works, write


def convert(*arguments):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "dev/convert.py"), *arguments], capture_output=True, text=True)
    return done.returncode, done.stderr


def tokenizer(end):
    """XLM-R's form; a caption ends with the token `end`."""
    data = forms.xlmr()
    last = next(t["id"] for t in data["added_tokens"] if t["content"] == end)
    data["post_processor"]["single"][-1]["SpecialToken"]["id"] = end
    data["post_processor"]["special_tokens"][end] = {"id": end, "ids": [last], "tokens": [end]}
    return data, last


def make_hub(more_rows=0, end="<mask>"):
    """hub/: a model that ends its captions with its last token, as open_clip keeps it, and a tokenizer."""
    data, last = tokenizer("<mask>")
    size = {"context_length": 12, "vocab_size": last + 1 + more_rows, "width": 16, "heads": 2, "layers": 1}
    write("model.json", json.dumps({**train_runs.WORDS, "text_cfg": size}))
    shutil.rmtree("hub", ignore_errors=True)
    for arguments in (["--model", "model.json", "--random", "1", "-o", "random.bin"], ["random.bin", "-o", "hub", "--format", "open_clip"]):
        code, err = convert(*arguments)
        check(code == 0 and not err, f"{arguments}: exit {code}, {err!r}")
    write("hub/tokenizer.json", json.dumps(tokenizer(end)[0]))


def section(path):
    """The kind and the bytes of a weight file's tokenizer."""
    data = read(path)
    return struct.unpack_from("<i", data, 24)[0], data[1024:1024 + struct.unpack_from("<i", data, 16)[0]]


def test_captions_train_and_the_vocabulary_travels():
    make_hub()
    code, err = convert("hub", "-o", "a.bin")
    check(code == 0 and not err, f"exit {code}, {err!r}")
    kind, packed = section("a.bin")
    check(kind == 1 and packed.startswith(b"VOC\0"), f"kind {kind}, {packed[:8]}")
    code, err = convert("a.bin", "-o", "b.bin")
    check(code == 0 and read("a.bin") == read("b.bin"), f"not the same again: {err!r}")
    out = works("--pretrained", "a.bin", "--train-data", "shapes/train.csv", "--batch-size", 8, "--steps", 4, "--keep-states", 0, "--name", "voc")
    check("captions cut at the context length" in out, out)
    check(section(checkpoint("voc", newest("voc") + ".bin")) == (kind, packed), "the checkpoint has another tokenizer")


def test_a_vocabulary_that_does_not_fit_is_refused():
    make_hub(more_rows=-1)
    code, err = convert("hub", "-o", "c.bin")
    check(code == 2 and "the model has" in err and err.count("\n") == 1 and not os.path.exists("c.bin"), f"exit {code}, {err!r}")
    make_hub(end="</s>")
    code, err = convert("hub", "-o", "c.bin")
    check(code == 2 and "ends a text with 2, the model has" in err, f"exit {code}, {err!r}")
    make_hub()
    write("hub/tokenizer.json", json.dumps({**forms.xlmr(), "normalizer": {"type": "NFKC"}}))
    code, err = convert("hub", "-o", "c.bin")
    check(code == 2 and "hub/tokenizer.json: the normalizer NFKC" in err, f"exit {code}, {err!r}")


if __name__ == "__main__":
    sys.exit(train_runs.main(globals()))
