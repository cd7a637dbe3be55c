"""Small tokenizers of our own in every form of tokenizer.json that dev/vocabularies.py packs, and texts for them.

Run by a Python that has the package tokenizers, it writes their ids to dev/test/vocabulary_ids.json; `make test`
compares with that file, `make parity` with the package itself."""
import base64
import json
import os
import random
import struct
import sys

IDS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vocabulary_ids.json")
CHARSMAP = {"ﬁ": "fi", "º": "o", "Ａ": "A", "\u3000": " ", "\u00a0": " ", "e\u0301": "é", "\u0001": "", "㌔": "キロ", "…": "...", "A\u030a": "Å",
            "\t": " ", "ﷺ": "صلى الله", "２": "2", "ｶ": "カ", "\u2581": " ", "가": "가"}


def charsmap(replacements):
    """SentencePiece's table: a double-array trie, each node in 256 places of its own, and the replacements."""
    units, texts, nodes = [0] * 512, b"", 1

    def link(place, base, byte, ends=False):
        units[place] = (place ^ base) << 10 | ends << 8 | byte
    link(0, 256, 0)
    children = {b"": 256}
    for key, text in sorted(replacements.items()):
        raw = key.encode()
        for i in range(1, len(raw) + 1):
            if raw[:i] in children:
                continue
            nodes += 1
            units.extend([0] * 256)
            children[raw[:i]] = 256 * nodes
            link(children[raw[:i - 1]] ^ raw[i - 1], children[raw[:i]], raw[i - 1])
        base = children[raw]
        units[children[raw[:-1]] ^ raw[-1]] |= 1 << 8
        units[base] = 1 << 31 | len(texts)
        texts += text.encode() + b"\0"
    trie = struct.pack(f"<{len(units)}I", *units)
    return base64.b64encode(struct.pack("<I", len(trie)) + trie + texts).decode()


# ---------------------------------------------------------------- pieces

WORDS = ["▁", "▁a", "▁the", "▁dog", "▁do", "og", "ing", "s", "▁s", "t", "h", "e", "a", "o", "g", "d", "i", "n", "r", "fi", "▁fi", "sh", "キ", "ロ", "日", "本", "日本",
         "▁日本", "é", "▁é", "ö", "A", "1", "2", "12", ".", "...", ",", "!", "-", "क", "्", "ष", "क्ष", "어", "가", "カ", "م", "لى", "🐶", "▁🐶", "🐶🐶", "<", ">",
         "▁▁", "x", "xx", "xxx", "dogs", "▁dogs", "е", "т", "ст"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def score(i):
    return -1.5 - (i * 37 % 101) / 8 - i / 64


def unigram(special, with_bytes=False):
    vocab = [[text, 0.0] for text in special]
    if with_bytes:
        vocab += [[text, 0.0] for text in BYTES]
    vocab += [[text, score(i)] for i, text in enumerate(WORDS)]
    return {"type": "Unigram", "unk_id": special.index("<unk>"), "vocab": vocab, "byte_fallback": with_bytes}


def bpe(special, with_bytes, fuse=True):
    characters = sorted({c for word in WORDS for c in word} - set("日ö"))
    vocab = [*special, *(BYTES if with_bytes else []), *characters]
    merges = []
    for word in [*WORDS, "in", "ing", "th", "the", "▁t", "▁th", "▁the", "ng", "▁d", "og", "▁do", "▁dog"]:
        for cut in range(1, len(word)):
            if word[:cut] in vocab and word[cut:] in vocab and [word[:cut], word[cut:]] not in merges:
                merges.append([word[:cut], word[cut:]])
                if word not in vocab:
                    vocab.append(word)
    return {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": fuse,
            "byte_fallback": with_bytes, "ignore_merges": False, "vocab": {text: i for i, text in enumerate(vocab)}, "merges": merges}


def wordpiece():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    whole = ["a", "the", "dog", "do", "s", "fi", "日", "本", "1", "2", ".", ",", "!", "-", "g", "ö", "o", "e", "x", "ᄀ", "क", "σ", "<", "c"]
    inside = ["s", "g", "og", "ing", "e", "x", "xx", "sh", "ᅡ", "σ", "2", "h", "本", "oo"]
    return {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 20,
            "vocab": {text: i for i, text in enumerate([*special, *whole, *("##" + x for x in inside)])}}


# ---------------------------------------------------------------- forms

def added(model, *tokens, **flags):
    table = model["vocab"] if isinstance(model["vocab"], dict) else {text: i for i, (text, _) in enumerate(model["vocab"])}
    last = len(table) - 1
    out = []
    for text in tokens:
        last += text not in table
        out.append({"id": table.get(text, last), "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True,
                    **flags.get(text.strip("<>[]"), {})})
    return out


def template(model, start, end):
    table = model["vocab"] if isinstance(model["vocab"], dict) else {text: i for i, (text, _) in enumerate(model["vocab"])}
    names = [name for name in (start, end) if name]
    single = [{"SpecialToken": {"id": start, "type_id": 0}}] * bool(start) + [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [table[name]], "tokens": [name]} for name in names}}


def tokenizer(model, tokens, normalizer, pre_tokenizer, start, end):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": template(model, start, end), "decoder": None, "model": model}


def sequence(kind, *steps):
    return {"type": "Sequence", kind: list(steps)}


def replace(form, pattern, content):
    return {"type": "Replace", "pattern": {form: pattern}, "content": content}


def metaspace(**more):
    return {"type": "Metaspace", "replacement": "▁", **more}


PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": charsmap(CHARSMAP)}


def xlmr():
    model = unigram(["<s>", "<pad>", "</s>", "<unk>"])
    tokens = added(model, "<s>", "<pad>", "</s>", "<unk>", "<mask>", mask={"lstrip": True})
    return tokenizer(model, tokens, PRECOMPILED, sequence("pretokenizers", {"type": "WhitespaceSplit"}, metaspace(prepend_scheme="always", split=True)), "<s>", "</s>")


def xlmv():
    model = unigram(["<s>", "<pad>", "</s>", "<unk>"])
    tokens = added(model, "<s>", "<pad>", "</s>", "<unk>", "<mask>", "<fi>", mask={"lstrip": True, "rstrip": True, "normalized": True}, fi={"normalized": True})
    return tokenizer(model, tokens, sequence("normalizers", PRECOMPILED, replace("Regex", " {2,}", " ")), metaspace(add_prefix_space=True), "<s>", "</s>")


def t5():
    model = unigram(["<pad>", "</s>", "<unk>"])
    tokens = added(model, "<pad>", "</s>", "<unk>", "<extra_id_0>")
    steps = sequence("normalizers", PRECOMPILED, {"type": "Strip", "strip_left": False, "strip_right": True}, replace("Regex", " {2,}", "▁"))
    return tokenizer(model, tokens, steps, metaspace(prepend_scheme="first", split=False), None, "</s>")


def gemma():
    model = bpe(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\n", "\n\n", "▁▁▁"], True)
    tokens = added(model, "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\n", "\n\n", "▁▁▁")
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return tokenizer(model, tokens, replace("String", " ", "▁"), split, None, "<eos>")


def byte_unigram():
    model = unigram(["<pad>", "</s>", "<s>", "<unk>", "[@B]", "\n\n"], True)
    split = {"type": "Split", "pattern": {"Regex": "\\[@B\\]|ing|▁▁|\\\n\\\n|🐶"}, "behavior": "Isolated", "invert": False}
    return tokenizer(model, added(model, "<pad>", "</s>", "<s>", "<unk>"), sequence("normalizers", replace("String", " ", "▁")), sequence("pretokenizers", split), None, "</s>")


def llama():
    model = bpe(["<unk>", "<s>", "</s>"], True)
    steps = sequence("normalizers", replace("Regex", "\\A +| +\\z", ""), replace("Regex", " {2,}", " "), replace("String", " ", "▁"), replace("Regex", "\\A▁", "▁▁"))
    return tokenizer(model, added(model, "<unk>", "<s>", "</s>"), steps, sequence("pretokenizers", metaspace(prepend_scheme="always", split=False)), "<s>", "</s>")


def plain_bpe():
    model = bpe(["<unk>", "<s>", "</s>"], False, fuse=False)
    return tokenizer({**model, "ignore_merges": True}, added(model, "<unk>", "<s>", "</s>"), {"type": "Lowercase"}, metaspace(prepend_scheme="never", split=True), "<s>", "</s>")


def bert(**more):
    model = wordpiece()
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True, **more}
    return tokenizer(model, added(model, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), normalizer, {"type": "BertPreTokenizer"}, "[CLS]", "[SEP]")


FORMS = {"xlmr": xlmr, "xlmv": xlmv, "t5": t5, "gemma": gemma, "byte_unigram": byte_unigram, "llama": llama, "plain_bpe": plain_bpe, "wordpiece": bert,
         "cased": lambda: bert(lowercase=False, clean_text=False, handle_chinese_chars=False)}


# ---------------------------------------------------------------- texts

TEXTS = ["", " ", "the dog", "dogs doing things", "  two  blanks  ", "the<mask>dog", "the <mask> dog", "<s>the</s><pad>", "[MASK] dog [mask]", "<FI> <fi> <ﬁ>", "ﬁsh … ２",
         "º\u0301 Aº", "e\u0301 e\u0302\u0301", "Å A\u030a\u0301", "日本 日本語", "㌔ ｶ\u309a", "ﷺ", "क्ष क्\u0308", "가 \u1100\u1161", "🐶🐶🐶 🐶", "▁▁▁ b", "a▁▁▁ the", "\n\nthe\ndog\t",
         "xxxxxxx xx", "xxxxxxxxxxxxxxxxxxxxx", "[@B]ing doing", "\u0001the\u00addog", "ΣΑΣ Σ ÖÉ İ", "a\u0000b", "…!!...", "-1.2,12", "<0x41> <unk>x", "q q qq", "the\u3000dog\u00a0s",
         "🇩🇪 👨‍👩‍👧 ❤️", "e\u0301\u0323\u0301", "\u0344 \u0958", " dog", "ど 日x本", "\ue000a\u200bb\u0085c", "<extra_id_0>a <eos>", "a\u061da a\u166da a\U000111c9a a\u1734a a\u0898a a\u08e2a s\u1734s s\u061ds s\u166ds s\u08e2s", "the dog " * 20]
POOL = ["the", "dog", " ", " ", "  ", "▁", "<mask>", "</s>", "<unk>", "[SEP]", "[MASK]", "ing", "fi", "ﬁ", "º", "e\u0301", "日", "本", "🐶", "xx", "A\u030a", "क्ष", "\u0301", "\u0308", "\n\n",
        "[@B]", "\u3000", "İ", "Σ", "ö", "<0x41>", "㌔", "ｶ", "\u309a", "가", "\u1100", "\u1161", "\u11a8", "ﷺ", "…", "\u200d", "\ufe0f", "👩", "\u00a0", "\u0000", "\t", "\u0001", "\u00ad"]
SCRIPTS = [(0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5F4), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE5B), (0x1100, 0x11FF),
           (0x1E00, 0x1FFE), (0x2000, 0x206F), (0x2100, 0x218B), (0x2460, 0x24FF), (0x3040, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xACFF), (0xFB00, 0xFDFF), (0xFF00, 0xFFEE),
           (0x1D400, 0x1D7FF), (0x1F300, 0x1F64F), (0x1F1E6, 0x1F1FF)]


def random_text(rng):
    out = ""
    while rng.random() < 0.9:
        kind = rng.random()
        if kind < 0.5:
            out += rng.choice(POOL)
        elif kind < 0.8:
            low, high = rng.choice(SCRIPTS)
            out += "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4)))
        else:
            out += rng.choice(WORDS).replace("▁", " ")
    return out


def encoded(library, text, context):
    """Ids as transformers cuts them: the caption's, so that what the template adds fits."""
    library.enable_truncation(context)
    return library.encode(text).ids


def main():
    from tokenizers import Tokenizer  # pylint: disable=import-outside-toplevel
    rng = random.Random(1)
    texts = TEXTS + [random_text(rng) for _ in range(160)]
    lines = []
    for name, form in FORMS.items():
        library = Tokenizer.from_str(json.dumps(form()))
        lines.append(f" {json.dumps(name)}: {json.dumps([encoded(library, text, 77) for text in texts], separators=(',', ':'))}")
    with open(IDS, "w", encoding="ascii") as f:
        f.write('{"texts": ' + json.dumps(texts) + ",\n" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    sys.exit(main())
