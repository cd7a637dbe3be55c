#!/usr/bin/env python3
"""Tokenizers of Hugging Face towers to the packed vocabulary of clip.c (clipc/data/vocabulary.h).

  dev/vocabularies.py FOLDER -o OUT [--clean whitespace|canonicalize]

FOLDER holds tokenizer.json (or BERT's vocab.txt alone) and, for the padding token, tokenizer_config.json. The
forms that XLM-R, XLM-V, T5, SigLIP, Gemma and BERT have are packed; a step of any other is refused by its name:
there is no engine for regular expressions, only those that these forms hold are known.
"""
import argparse
import base64
import binascii
import json
import math
import os
import re
import struct
import sys

import numpy as np

from checkpoints import Refused
from models import SCHEMA, load_json

LIMITS = {f["name"]: (f["low"], f["high"]) for f in SCHEMA["vocabulary"]["fields"]}
C = SCHEMA["vocabulary"]["constants"]
CLEANINGS = {"whitespace": C["CLEAN_WHITESPACE"], "canonicalize": C["CLEAN_CANONICALIZE"]}
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
LARGEST_TEXT = 1 << 26  # bytes of a vocab.txt


class Vocabulary:
    """What is packed: the fields of the header, pieces as (bytes, id, score), merges as three ids, steps as
    (kind, flag, pattern, content), added tokens as (id, flags, text), and the charsmap's two parts."""

    def __init__(self, where):
        self.where, self.fields = where, dict.fromkeys(LIMITS, 0)
        self.pieces, self.merges, self.steps, self.added = [], [], [], []
        self.trie = self.replacements = b""

    def refuse(self, text):
        raise Refused(f"{self.where}: {text}")

    def step(self, kind, flag=0, pattern="", content=""):
        self.steps.append((C["STEP_" + kind], flag, as_bytes(self, pattern), as_bytes(self, content)))


def as_bytes(v, text):
    if not isinstance(text, str):
        v.refuse(f"holds {str(text)[:60]!r} where a text is expected")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        v.refuse(f"{ascii(text)[:60]} is not a text")


def as_id(v, value, what):
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LIMITS["vocabulary"][1] - 1:
        v.refuse(f"the id of {what} is {str(value)[:40]}")
    return value


def parts_of(v, step, name, singular):
    """The steps of a normalizer or pre-tokenizer: those of a Sequence, or itself; none for null."""
    if step is None:
        return []
    if not isinstance(step, dict):
        v.refuse(f"its {singular} is not an object")
    if step.get("type") != "Sequence":
        return [step]
    parts = step.get(name)
    if not isinstance(parts, list):
        v.refuse(f"its {singular} is a Sequence of nothing")
    return [p for part in parts for p in parts_of(v, part, name, singular)]


def unknown_step(v, what, step):
    v.refuse(f"the {what} {str(step.get('type'))[:40]} {json.dumps(step)[:120]} is not one that clip.c has")


# ---------------------------------------------------------------- patterns

def alternatives(regex):
    """The texts of a regular expression that lists texts, as ["a", "b"] for `a|b`; None for any other."""
    found, i = [""], 0
    while i < len(regex):
        c = regex[i]
        if c == "\\":
            i += 1
            if i == len(regex) or (regex[i].isalnum() and regex[i].isascii()) or regex[i] == "_":
                return None
            found[-1] += regex[i]
        elif c == "|":
            found.append("")
        elif c in ".^$*+?{}[]()":
            return None
        else:
            found[-1] += c
        i += 1
    return found if all(found) and not any("\0" in text for text in found) else None


def pattern_of(step):
    """-> kind ("String", "Regex" or None), text."""
    pattern = step.get("pattern")
    if isinstance(pattern, dict) and len(pattern) == 1:
        (kind, text), = pattern.items()
        if kind in ("String", "Regex") and isinstance(text, str) and text:
            return kind, text
    return None, ""


# ---------------------------------------------------------------- normalizers

def charsmap_walk(v, units, texts):
    """Refuses a double-array trie with a cycle, or one that points outside itself or its texts."""
    def children(unit):
        return (unit >> 10) << ((unit & 512) >> 6)

    def base(place, ends):
        if (place | 255) >= len(units):
            v.refuse("its charsmap points outside itself")
        if ends:
            value = int(units[place]) & 0x7FFFFFFF
            if value >= len(texts) or texts[value] & 0xC0 == 0x80:
                v.refuse("its charsmap has no such replacement")
        return place
    labels, low = units & np.uint32(0x800000FF), np.arange(1, 256, dtype=np.uint32)

    def below(place):
        found = low[labels[place ^ low] == low]
        return iter([(place ^ int(b), int(b)) for b in found])
    start = base(children(int(units[0])), False)
    on_path, done, path = {start}, set(), [(start, below(start))]
    while path:
        place, rest = path[-1]
        unit = next(rest, None)
        if unit is None:
            path.pop()
            on_path.discard(place)
            done.add(place)
            continue
        at, byte = unit
        value = int(units[at])
        child = base(place ^ byte ^ children(value), value >> 8 & 1)
        if child in on_path:
            v.refuse("its charsmap has a cycle")
        if child not in done:
            if len(path) > C["CHARSMAP_KEY_BYTES"]:
                v.refuse("a key of its charsmap is too long")
            on_path.add(child)
            path.append((child, below(child)))


def read_charsmap(v, text):
    if v.trie:
        v.refuse("has two charsmaps")
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        v.refuse("its precompiled_charsmap is not base64")
    size = int.from_bytes(data[:4], "little")
    v.trie, v.replacements = data[4:4 + size], data[4 + size:]
    if len(data) < 4 or size < 4 or size % 4 or len(v.trie) != size or not v.replacements.endswith(b"\0"):
        v.refuse(f"its precompiled_charsmap of {len(data)} bytes announces a trie of {size}")
    v.fields["charsmap_units"], v.fields["charsmap_bytes"] = size // 4, len(v.replacements)
    check_field(v, "charsmap_units")
    check_field(v, "charsmap_bytes")
    try:
        v.replacements.decode("utf-8")
    except UnicodeDecodeError:
        v.refuse("the replacements of its charsmap are not UTF-8")
    charsmap_walk(v, np.frombuffer(v.trie, "<u4"), v.replacements)


def add_replace(v, step):
    kind, text = pattern_of(step)
    content = step.get("content")
    if kind == "String":
        return v.step("REPLACE", 0, text, content)
    if text == " {2,}":
        return v.step("REPLACE_BLANKS", 0, "", content)
    if text == r"\A +| +\z":
        return v.step("REPLACE_ENDS", 0, "", content)
    start = alternatives(text[2:]) if text.startswith(r"\A") else None
    if start is None or len(start) > 1:
        unknown_step(v, "normalizer", step)
    return v.step("REPLACE_START", 0, start[0], content)


def add_bert(v, step):
    lower = step.get("lowercase", True)
    accents = step.get("strip_accents")
    wanted = {"BERT_CLEAN": step.get("clean_text", True), "BERT_LOWER": lower,
              "BERT_IDEOGRAPHS": step.get("handle_chinese_chars", True),
              "BERT_STRIP_ACCENTS": lower if accents is None else accents}
    v.step("BERT", sum(C[name] for name, on in wanted.items() if on))


def add_normalizer(v, step):
    kind = step.get("type")
    if kind == "Precompiled":
        if not step.get("precompiled_charsmap"):
            return
        read_charsmap(v, step["precompiled_charsmap"])
        v.step("CHARSMAP")
    elif kind == "Replace":
        add_replace(v, step)
    elif kind == "Strip":
        v.step("STRIP", int(bool(step.get("strip_left"))) + 2 * bool(step.get("strip_right")))
    elif kind == "Lowercase":
        v.step("LOWER")
    elif kind == "BertNormalizer":
        add_bert(v, step)
    else:
        unknown_step(v, "normalizer", step)


# ---------------------------------------------------------------- pre-tokenizers, template

def add_metaspace(v, step):
    schemes = {"always": C["METASPACE_ALWAYS"], "first": C["METASPACE_FIRST"], "never": 0}
    scheme = step.get("prepend_scheme", "always")
    if step.get("add_prefix_space") is False:  # what files of before `prepend_scheme` say
        scheme = "never"
    if scheme not in schemes or len(str(step.get("replacement"))) != 1:
        unknown_step(v, "pre_tokenizer", step)
    split = step.get("split", True) is not False
    v.step("METASPACE", schemes[scheme] + split * C["METASPACE_SPLIT"], "", step["replacement"])


def add_pre_tokenizer(v, step):
    kind = step.get("type")
    if kind == "WhitespaceSplit":
        v.step("SPLIT_SPACE")
    elif kind == "Metaspace":
        add_metaspace(v, step)
    elif kind == "BertPreTokenizer":
        v.step("SPLIT_BERT")
    elif kind == "Split":
        form, text = pattern_of(step)
        texts = [text] if form == "String" and "\0" not in text else alternatives(text) if form == "Regex" else None
        behavior = ("Isolated", "MergedWithPrevious")
        if texts is None or step.get("behavior") not in behavior or step.get("invert"):
            unknown_step(v, "pre_tokenizer", step)
        v.step("SPLIT", behavior.index(step["behavior"]), "\0".join(texts))
    else:
        unknown_step(v, "pre_tokenizer", step)


def read_template(v, template):
    """The ids before and after a caption."""
    single = template.get("single") if isinstance(template, dict) else None
    if not isinstance(single, list) or template.get("type") != "TemplateProcessing":
        unknown_step(v, "post_processor", template if isinstance(template, dict) else {})
    places, known = [], template.get("special_tokens")
    for part in single:
        name = part.get("SpecialToken", {}).get("id") if isinstance(part, dict) else None
        ids = known.get(name, {}).get("ids") if isinstance(known, dict) and name is not None else None
        if isinstance(ids, list) and len(ids) == 1:
            places.append(as_id(v, ids[0], f"the special token {name}"))
        elif name is None and isinstance(part, dict) and part.get("Sequence", {}).get("id") == "A":
            places.append(None)
        else:
            unknown_step(v, "post_processor", template)
    if places.count(None) != 1 or places[-1] is None or len(places) > 3 or places.index(None) != len(places) - 2:
        v.refuse("its template is not a caption with one token after it and at most one before it")
    v.fields["start"] = places[0] if places[0] is not None else -1
    v.fields["end"] = places[-1]


# ---------------------------------------------------------------- models

def put_pieces(v, table, scores):
    """table: piece -> id; scores: id -> score, or None."""
    v.pieces = sorted((as_bytes(v, text), as_id(v, i, f"the piece {ascii(text)[:40]}"), scores[i] if scores else 0.0)
                      for text, i in table.items() if text)
    longest = max((text for text, _, _ in v.pieces), key=len, default=b"")
    if len(longest) > C["VOCABULARY_PIECE_BYTES"]:
        v.refuse(f"a piece of {len(longest)} bytes ({longest[:20]!r} …) is longer than "
                 f"{C['VOCABULARY_PIECE_BYTES']}")


def read_unigram(v, model):
    rows = model.get("vocab")
    if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 2 for r in rows):
        v.refuse("its vocabulary is not a list of pieces with scores")
    table, scores = {}, []
    for i, (text, score) in enumerate(rows):
        if not isinstance(text, str):
            v.refuse(f"piece {i} is not a text")
        if not isinstance(score, (int, float)) or not math.isfinite(score) or abs(score) > 1e30:
            v.refuse(f"the score of piece {i} ({ascii(text)[:40]}) is {score}")
        table[text] = i  # of equal ones the last counts, as in tokenizers
        scores.append(float(score))
    if not scores or min(scores) < min(scores[i] for i in table.values()):
        v.refuse("has no pieces, or one of them twice with the least score first")
    v.fields.update(model=C["MODEL_UNIGRAM"], unknown=as_id(v, model.get("unk_id"), "the unknown piece"),
                    byte_fallback=int(bool(model.get("byte_fallback"))), fuse_unknown=1)
    put_pieces(v, table, scores)


def read_table(v, model):
    table = model.get("vocab")
    if not isinstance(table, dict) or not table:
        v.refuse("its vocabulary is not a table of pieces and ids")
    unknown = model.get("unk_token")
    if unknown is not None and unknown not in table:
        v.refuse(f"its unknown token {str(unknown)[:40]} is not in its vocabulary")
    v.fields["unknown"] = -1 if unknown is None else as_id(v, table[unknown], "the unknown token")
    return table


def read_bpe(v, model):
    table = read_table(v, model)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            v.refuse(f"its model BPE has {key} {str(model[key])[:40]}, which clip.c has not")
    merges = {}
    for rank, merge in enumerate(model.get("merges") or []):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):
            v.refuse(f"merge {rank} is not two pieces")
        ids = [table.get(x) for x in (*pair, "".join(pair))]
        if None in ids:
            v.refuse(f"merge {rank} ({ascii(pair)[:60]}) names a piece that is not in the vocabulary")
        merges.pop((ids[0], ids[1]), None)  # of equal ones the last counts
        merges[ids[0], ids[1]] = [as_id(v, i, "a merge") for i in ids]
    v.merges = list(merges.values())
    v.fields.update(model=C["MODEL_BPE"], **{name: int(bool(model.get(key))) for name, key in (
        ("byte_fallback", "byte_fallback"), ("fuse_unknown", "fuse_unk"), ("ignore_merges", "ignore_merges"))})
    put_pieces(v, table, None)


def read_wordpiece(v, model):
    table = read_table(v, model)
    if model.get("continuing_subword_prefix", "##") != "##":
        v.refuse(f"its model WordPiece continues words by {str(model['continuing_subword_prefix'])[:20]}, not by ##")
    most = model.get("max_input_chars_per_word", 100)
    v.fields.update(model=C["MODEL_WORDPIECE"], word_characters=most if isinstance(most, int) else -1)
    put_pieces(v, table, None)


MODELS = {"Unigram": read_unigram, "BPE": read_bpe, "WordPiece": read_wordpiece}


# ---------------------------------------------------------------- files

def read_json(path):
    data = load_json(path)
    if not isinstance(data, dict):
        raise Refused(f"{path}: is not a JSON object")
    return data


def bert_json(path, settings):
    """The tokenizer.json that BERT's vocab.txt stands for."""
    with open(path, "rb") as f:
        lines = f.read(LARGEST_TEXT).decode("utf-8", "replace").split("\n")
    table = {line.rstrip("\r"): i for i, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    special = [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in table]
    if not {"[UNK]", "[CLS]", "[SEP]"} <= set(special):
        raise Refused(f"{path}: has no [UNK], [CLS] or [SEP]: not a vocabulary of BERT")
    return {"added_tokens": [{"id": table[name], "content": name} for name in special],
            "normalizer": {"type": "BertNormalizer", "lowercase": settings.get("do_lower_case", True),
                           "strip_accents": settings.get("strip_accents"),
                           "handle_chinese_chars": settings.get("tokenize_chinese_chars", True)},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "TemplateProcessing",
                               "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}},
                                          {"SpecialToken": {"id": "[SEP]"}}],
                               "special_tokens": {n: {"ids": [table[n]]} for n in ("[CLS]", "[SEP]")}},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": table}}


def read_added(v, tokens):
    for token in tokens if isinstance(tokens, list) else []:
        if not isinstance(token, dict):
            v.refuse("an added token is not an object")
        text = as_bytes(v, token.get("content"))
        if token.get("single_word"):
            v.refuse(f"the added token {ascii(token['content'])[:40]} is only for single words, which clip.c has not")
        if not 0 < len(text) <= C["VOCABULARY_PIECE_BYTES"]:
            v.refuse(f"an added token has {len(text)} bytes")
        flags = (("ADDED_NORMALIZED", "normalized"), ("ADDED_STRIP_LEFT", "lstrip"), ("ADDED_STRIP_RIGHT", "rstrip"))
        v.added.append((as_id(v, token.get("id"), f"the token {ascii(token['content'])[:40]}"),
                        sum(C[name] for name, key in flags if token.get(key)), text))


def padding_id(v, data, settings):
    """The id of the padding token: as tokenizer_config.json names it, else as tokenizer.json does, else 0."""
    name = settings.get("pad_token")
    name = name.get("content") if isinstance(name, dict) else name
    ids = {text.decode(): i for text, i, _ in v.pieces} if name is not None else {}
    ids.update((text.decode(), i) for i, _, text in v.added)
    if name is not None and name not in ids:
        v.refuse(f"the padding token {str(name)[:40]} is not in the vocabulary")
    if name is not None:
        return ids[name]
    padding = data.get("padding")
    if isinstance(padding, dict) and "pad_id" in padding:
        return as_id(v, padding["pad_id"], "the padding")
    return ids.get("<pad>", ids.get("[PAD]", 0))


def check_field(v, name):
    low, high = LIMITS[name]
    if not low <= v.fields[name] <= high:
        v.refuse(f"{name} is {v.fields[name]}, allowed are {low} to {high}")


def pack(v):
    texts = [text for text, _, _ in v.pieces] + [x for step in v.steps for x in step[2:]]
    texts += [text for _, _, text in v.added]
    ids = [i for _, i, _ in v.pieces] + [i for i, _, _ in v.added]
    v.fields.update(magic=C["VOCABULARY_MAGIC"], version=C["VOCABULARY_VERSION"], vocabulary=max(ids, default=0) + 1,
                    pieces=len(v.pieces), merges=len(v.merges), steps=len(v.steps), added=len(v.added),
                    text_bytes=sum(map(len, texts)))
    for name in LIMITS:
        check_field(v, name)
    for name in ("start", "end", "padding", "unknown"):
        if v.fields[name] >= v.fields["vocabulary"]:
            v.refuse(f"its {name} token has the id {v.fields[name]}, its vocabulary {v.fields['vocabulary']}")
    header = [v.fields[name] for name in LIMITS]
    header += [0] * (C["VOCABULARY_HEADER_INTS"] - len(header))
    scores = [score for _, _, score in v.pieces] if v.fields["model"] == C["MODEL_UNIGRAM"] else []
    tables = [np.array(header, "<i4"), np.array(scores, "<f8"), np.array([i for _, i, _ in v.pieces], "<i4"),
              np.array([len(text) for text, _, _ in v.pieces], "<i4"), np.array(v.merges, "<i4"),
              np.array([(kind, flag, len(a), len(b)) for kind, flag, a, b in v.steps], "<i4"),
              np.array([(i, flags, len(text)) for i, flags, text in v.added], "<i4")]
    packed = b"".join(table.tobytes() for table in tables) + v.trie + b"".join(texts) + v.replacements
    if len(packed) > C["VOCABULARY_MOST_BYTES"]:
        v.refuse(f"its vocabulary is {len(packed)} bytes, more than {C['VOCABULARY_MOST_BYTES']}")
    return packed


def has_vocabulary(folder):
    return any(os.path.isfile(os.path.join(folder, name)) for name in VOCABULARY_FILES[:2])


def packed_json(where, data, settings, clean):
    """The tokenizer of a tokenizer.json, beside which tokenizer_config.json holds `settings`."""
    v = Vocabulary(where)
    v.fields["cleaning"] = CLEANINGS[clean]
    for step in parts_of(v, data.get("normalizer"), "normalizers", "normalizer"):
        add_normalizer(v, step)
    for step in parts_of(v, data.get("pre_tokenizer"), "pretokenizers", "pre_tokenizer"):
        add_pre_tokenizer(v, step)
    read_template(v, data.get("post_processor"))
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") not in MODELS:
        name = str(model.get("type"))[:40] if isinstance(model, dict) else "none"
        v.refuse(f"its model is {name}; known are {', '.join(MODELS)}")
    MODELS[model["type"]](v, model)
    read_added(v, data.get("added_tokens"))
    v.fields["padding"] = padding_id(v, data, settings)
    return pack(v)


def packed_vocabulary(folder, clean="whitespace"):
    """The tokenizer of a folder as the tokenizer section of a weight file. clean: open_clip's name of what is done
    to a caption first."""
    if clean not in CLEANINGS:
        raise Refused(f"{folder}: captions cleaned by {str(clean)[:40]}; known are {', '.join(CLEANINGS)}")
    config, path = (os.path.join(folder, name) for name in ("tokenizer_config.json", "tokenizer.json"))
    settings = read_json(config) if os.path.isfile(config) else {}
    if os.path.isfile(path):
        return packed_json(path, read_json(path), settings, clean)
    path = os.path.join(folder, "vocab.txt")
    if not os.path.isfile(path):
        raise Refused(f"{folder}: holds neither tokenizer.json nor vocab.txt")
    return packed_json(path, bert_json(path, settings), settings, clean)


def check_fits(path, packed, config):
    """Refuses a vocabulary that a model has no rows for, or that ends a caption with another id."""
    fields = dict(zip(LIMITS, struct.unpack_from(f"<{len(LIMITS)}i", packed)))
    rows, end = config["vocab_size"], config["eot_id"]
    if fields["vocabulary"] > rows or fields["end"] != end:
        raise Refused(f"{path}: its tokenizer has {fields['vocabulary']} tokens and ends a text with "
                      f"{fields['end']}, the model has {rows} and ends with {end}")


def main(argv):
    parser = argparse.ArgumentParser(prog="vocabularies.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--clean", choices=CLEANINGS, default="whitespace")
    args = parser.parse_args(argv)
    try:
        packed = packed_vocabulary(args.folder, args.clean)
        with open(args.output, "wb") as f:
            f.write(packed)
    except (Refused, OSError) as e:
        line = re.sub(r"[\x00-\x1f\x7f]+", " ", str(e)).encode("utf-8", "replace").decode("utf-8")
        print(f"vocabularies.py: {line[:2000]}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}: {len(packed):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
