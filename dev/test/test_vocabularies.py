#!/usr/bin/env python3
"""dev/vocabularies.py: every form of tokenizer.json that is known is packed, and C gives the ids of Hugging Face's
tokenizers (dev/test/vocabulary_ids.json, or with --library N [FOLDER] the package itself, on N random texts); any other form,
and a hostile one, is refused by one line that names what it is."""
import base64
import glob
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

import checks
import vocabulary_forms as forms
from checks import check

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "dev"))
import vocabularies  # noqa: E402
from checkpoints import Refused  # noqa: E402

PROGRAM = os.path.join(ROOT, os.environ.get("BUILD") or "build", "test_vocabulary")  # make test builds it first


def write_json(path, data):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(data, f)


def pack(folder, *options):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "dev/vocabularies.py"), folder, "-o", folder + ".packed", *options],
                          capture_output=True, text=True)
    return done.returncode, done.stderr


def packed_form(name, data, **files):
    folder = f"hf_{name}"
    os.makedirs(folder, exist_ok=True)
    write_json(f"{folder}/tokenizer.json", data)
    for file, content in files.items():
        write_json(f"{folder}/{file}.json", content)
    code, err = pack(folder)
    check(code == 0, f"{name}: exit {code}, {err!r}")
    return folder + ".packed"


def compare(name, packed, texts, ids):
    """In C, as `make golden` compares stored texts."""
    folder = f"texts_{name}"
    os.makedirs(folder, exist_ok=True)
    file, key = ("wordpiece", "ids") if name == "wordpiece" else ("texts", f"{name}.context")
    with open(f"{folder}/{file}.jsonl", "w", encoding="ascii") as f:
        for text, row in zip(texts, ids):
            f.write(json.dumps({"cleaned": text, key: row}) + "\n")
    done = subprocess.run([PROGRAM, folder, name, packed], capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith(f"{name}: ")]
    check(done.returncode == 0 and found == [f"{name}: {len(texts)} texts, 0 differ"], f"{name}: {done.stdout[-600:]}{done.stderr[-600:]}")


def test_every_form_gives_the_ids_of_the_library():
    with open(forms.IDS, encoding="ascii") as f:
        stored = json.load(f)
    check(set(stored) == {"texts", *forms.FORMS}, f"{forms.IDS}: holds {sorted(stored)}")
    for name, form in forms.FORMS.items():
        compare(name, packed_form(name, form()), stored["texts"], stored[name])


def test_vocab_txt_alone_is_read():
    with open(forms.IDS, encoding="ascii") as f:
        stored = json.load(f)
    os.makedirs("hf_wordpiece_txt", exist_ok=True)
    table = forms.wordpiece()["vocab"]
    with open("hf_wordpiece_txt/vocab.txt", "w", encoding="utf-8") as f:
        f.write("".join(f"{text}\n" for text in sorted(table, key=table.get)))
    code, err = pack("hf_wordpiece_txt")
    check(code == 0, f"vocab.txt: exit {code}, {err!r}")
    rows = [(text, ids) for text, ids in zip(stored["texts"], stored["wordpiece"]) if len(max(text.split(), key=len, default="")) <= 20]
    compare("wordpiece", "hf_wordpiece_txt.packed", *zip(*rows))


def test_padding_is_what_the_configuration_names():
    for settings, expected in (({}, 1), ({"pad_token": "</s>"}, 2), ({"pad_token": {"content": "<unk>"}}, 3)):
        with open(packed_form("pads", forms.xlmr(), tokenizer_config=settings), "rb") as f:
            check(struct.unpack("<32i", f.read(128))[11] == expected, f"{settings}: not {expected}")


# ---------------------------------------------------------------- refusals

def changed(form, **changes):
    return {**form(), **changes}


def with_model(form, **changes):
    data = form()
    return {**data, "model": {**data["model"], **changes}}


def with_charsmap(raw):
    return changed(forms.xlmr, normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()})


def hostile_charsmap(cycle=False, outside=False, value=False, size=None):
    """A small table: "a" becomes "b". With a cycle: "a" leads back to the root."""
    units = [0] * 768
    units[0] = 256 << 10
    units[256 ^ 97] = ((256 ^ 97) ^ (256 if cycle else 1 << 20 if outside else 512)) << 10 | 1 << 8 | 97
    units[512] = units[256] = 1 << 31 | (99 if value else 0)
    raw = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(raw) if size is None else size) + raw + b"b\0"


def split(regex):
    return changed(forms.gemma, pre_tokenizer={"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False})


REFUSED = {
    "normalizer NFKC": changed(forms.xlmr, normalizer={"type": "NFKC"}),
    "normalizer Prepend": changed(forms.gemma, normalizer=forms.sequence("normalizers", {"type": "Prepend", "prepend": "▁"})),
    "normalizer Replace": changed(forms.xlmr, normalizer=forms.replace("Regex", "[a-z]+", "x")),
    "pre_tokenizer ByteLevel": changed(forms.gemma, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False}),
    "pre_tokenizer Split": split("\\p{L}+| "),
    "'s|\\\\s": split("'s|\\s"),
    "a[bc]": split("a[bc]"),
    "behavior": changed(forms.gemma, pre_tokenizer={"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}),
    "pre_tokenizer Metaspace": changed(forms.xlmr, pre_tokenizer={"type": "Metaspace", "replacement": "ab"}),
    "post_processor ByteLevel": changed(forms.xlmr, post_processor={"type": "ByteLevel"}),
    "post_processor None": changed(forms.xlmr, post_processor=None),
    "at most one before it": changed(forms.xlmr, post_processor={**forms.xlmr()["post_processor"], "single": [{"Sequence": {"id": "A", "type_id": 0}}]}),
    "model is WordLevel": with_model(forms.xlmr, type="WordLevel"),
    "end_of_word_suffix": with_model(forms.gemma, end_of_word_suffix="</w>"),
    "continuing_subword_prefix": with_model(forms.gemma, continuing_subword_prefix="##"),
    "names a piece that is not in the vocabulary": with_model(forms.gemma, merges=["t q"]),
    "is not two pieces": with_model(forms.gemma, merges=[["t"]]),
    "NaN is not allowed": with_model(forms.xlmr, vocab=[["<s>", 0.0], ["a", float("nan")]]),
    "score of piece 1": with_model(forms.xlmr, vocab=[["<s>", 0.0], ["a", "x"]]),
    "id of the unknown piece": with_model(forms.xlmr, unk_id=None),
    "is not a text": with_model(forms.xlmr, vocab=[*forms.xlmr()["model"]["vocab"], ["\ud800", -1.0]]),
    "a piece of 2000 bytes": with_model(forms.xlmr, vocab=[*forms.xlmr()["model"]["vocab"], ["a" * 2000, -1.0]]),
    "only for single words": changed(forms.xlmr, added_tokens=[{"id": 0, "content": "<s>", "single_word": True}]),
    "the id of the token": changed(forms.xlmr, added_tokens=[{"id": -1, "content": "<s>"}]),
    "is not base64": changed(forms.xlmr, normalizer={"type": "Precompiled", "precompiled_charsmap": "?"}),
    "charsmap has a cycle": with_charsmap(hostile_charsmap(cycle=True)),
    "points outside itself": with_charsmap(hostile_charsmap(outside=True)),
    "no such replacement": with_charsmap(hostile_charsmap(value=True)),
    "announces a trie of 8000000": with_charsmap(hostile_charsmap(size=8000000)),
    "are not UTF-8": with_charsmap(hostile_charsmap() + b"\xff\0"),
    "not a JSON object": [],
}


def test_other_forms_and_hostile_ones_are_refused():
    packed_form("charsmap", with_charsmap(hostile_charsmap()))
    os.makedirs("refused", exist_ok=True)
    for says, data in REFUSED.items():
        write_json("refused/tokenizer.json", data)
        try:
            vocabularies.packed_vocabulary("refused")
            err = "nothing"
        except Refused as e:
            err = str(e)
        check(says in err and err.startswith("refused/tokenizer.json: ") and len(err) < 400, f"{says}: {err!r}")
    code, err = pack("refused")
    check(code == 2 and err.startswith("vocabularies.py: refused/") and err.count("\n") == 1, f"exit {code}, {err!r}")
    code, err = pack("nowhere")
    check(code == 2 and "neither tokenizer.json nor vocab.txt" in err, f"exit {code}, {err!r}")


def compare_with_library(count, folder=None):
    """The forms, and the tokenizers in FOLDER/hf_NAME, on random texts."""
    from tokenizers import Tokenizer  # pylint: disable=import-outside-toplevel
    rng = random.Random(2)
    texts = [forms.random_text(rng) for _ in range(count)]
    known = {name: form() for name, form in forms.FORMS.items()}
    for path in sorted(glob.glob(os.path.join(folder, "hf_*", "tokenizer.json"))) if folder else []:
        with open(path, encoding="utf-8") as f:
            known[os.path.basename(os.path.dirname(path))[3:]] = json.load(f)
    for name, data in known.items():
        library = Tokenizer.from_str(json.dumps(data))
        compare(name, packed_form(name, data), texts, [forms.encoded(library, text, 77) for text in texts])


def main(argv):
    argv = argv[:2] + [os.path.abspath(folder) for folder in argv[2:]]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if argv[:1] == ["--library"]:
            checks.run(compare_with_library, int(argv[1]), *argv[2:])
        else:
            for test in checks.tests_of(globals()):
                checks.run(test)
        os.chdir("/")
    return checks.report()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
