#!/usr/bin/env python3
"""Seeds for `make fuzz` that are text, and dictionaries: FOLDER/HARNESS/NAME, FOLDER/HARNESS.dict. The first
character or two of most inputs choose the harness's settings. dev/fuzz/seeds.c makes the binary formats.

  dev/fuzz/seeds.py FOLDER
"""
import io
import json
import os
import re
import struct
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "dev"), os.path.join(ROOT, "dev", "test")]
import vocabularies  # noqa: E402
import vocabulary_forms as forms  # noqa: E402

MODEL = {"embed_dim": 4, "quick_gelu": True,
         "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 6, "head_width": 3, "layers": 1,
                        "mlp_ratio": 2.5, "norm_kwargs": {"eps": 1e-6}},
         "text_cfg": {"context_length": 4, "vocab_size": 9, "width": 4, "heads": 2, "layers": 1}}
HUB = {"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "fill_color": 0,
                                              "interpolation": "bilinear", "resize_mode": "squash"}}

# Of each kind of character that cleaning and splitting treat in its own way.
CAPTIONS = ["a photo of a cat", "It's 3 o'clock &amp; we&#39;ll go, they've 42%", "schÃ¶n â€œquotedâ€\x9d Ã\xa0 cÃ´tÃ©",
            "ﬁne ＡＢＣ ½ Å ǆ İ ΑΣ ß ́ e\u0301", "日本語 한국어 العربية 😀🏳️‍🌈 \u200b\ufeff", "<|startoftext|>x<|endoftext|>",
            "tab\tline\nbreak\r\x85\u2028 \x1b[31mred\x1b[0m \x7f", "it's we're I'd you'll I'm he'S 'RE"]

METRICS = [{"step": 0, "val_loss": 3, "zeroshot_top1": 0.5, "zeroshot_top1/general": 0.6, "image_to_text_R@1": 0.1},
           *({"step": i, "loss": 3 - 0.1 * i, "lr": 1e-3 / i, "grad_norm": i * 0.3} for i in range(1, 26)),
           {"step": 25, "val_loss": 3.5, "zeroshot_top1": 0.4, "zeroshot_top5": 0.5, "zeroshot_top1/general": 0.1,
            "image_to_text_R@1": 0.2, "val_loss/b": None}]


def npz(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def image_seeds():
    """The stored images of test_image_forms, whole, cut off, and with a wrong byte; seeds.c makes the other forms."""
    seeds = [b"00", b"00GIF89a", b"10\xff\xd8\xff"]
    with np.load(os.path.join(ROOT, "dev", "test", "image_forms.npz")) as stored:
        for i, name in enumerate(n for n in stored.files if n.endswith("|file")):
            image = stored[name].tobytes()
            mode = bytes([48 + 7 * i % 64, 50 + 11 * i % 64])
            wrong = bytearray(image)
            wrong[13 * i % 60] ^= 255
            seeds += [mode + image, mode + image[:len(image) * 2 // 3], mode + bytes(wrong)]
    # YCbCr without compression: no stored image has it
    tags = [(256, 2), (257, 2), (258, 8), (259, 1), (262, 6), (273, 200), (277, 3), (278, 2), (279, 12), (530, 1 << 16 | 1)]
    ycbcr = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(
        struct.pack("<HHII", tag, 3, 2 if tag == 530 else 1, value) for tag, value in tags)
    return [*seeds, b"00" + ycbcr.ljust(200, b"\0") + bytes(range(0, 240, 20))]


def vocabulary_seeds():
    """Each form of a packed vocabulary with captions of its test, and a table of characters with a few keys."""
    seeds, charsmap = [], forms.charsmap({"º": "o", "ﬁ": "fi", "\t": " ", "\u0001": ""})
    forms.PRECOMPILED["precompiled_charsmap"] = charsmap
    for i, form in enumerate(forms.FORMS.values()):
        data = form()
        data["added_tokens"] += [*data["added_tokens"][:1], {"id": 0, "content": "\u0001", "normalized": True}]
        for clean in vocabularies.CLEANINGS:
            packed = vocabularies.packed_json("seed", data, {}, clean)
            for text in (" ".join(forms.TEXTS[2 + i:40:7]), "".join(forms.TEXTS[3 + i:40:5]), "the <mask>  dog"):
                caption = text.encode()[:255]
                seeds.append(bytes([len(caption)]) + packed + caption)
    return [*seeds, seeds[0][:200], b"\0VOC\0"]


def csv_seeds():
    plain = "filepath\ttitle\tlabel\na.jpg\ta cat\t1\nb.jpg\t\"two \"\"words\"\"\"\tdog\n\n,\n"
    return ["00" + plain, "\x20\x02" + plain, "\udc98\x01" + plain, "\x48\x00" + plain.replace("\t", ","),
            "\x10\x00\ufeff" + plain.replace("\t", ";").replace("\n", "\r\n"), "\x18\x00filepath,title\n\"open,x\n/a,y\n",
            "\x00\x00" + 'filepath,title,x\na,"b" c,1\nd,e,f,g\nh\ni,"j\nk,l,m",n\no,"p\n', "\x00\x02filepath,title,x\na,b\n", "\x18\x20filepath,title\na,b\n", "\x18\x00file_name,text,key\na,b,c\n",
            "\x00\x00" + 'filepath,title\na,"b\nc,d\n"\ne,"f\n', "\x00\x02filepath,x,y\na\n",
            "\x00\x00filepath,title\na,caf\udce9\nb,\udcff\udcfe\nc, \nd,\udc93x\udc94\n", "\x08\x00filepath|title\nimages/a.png|" + "x" * 99 + "\r|\n", "00filepath\n", "00", "00title,label\na,b\n",
            *("\udca0" + chr(2 + 4 * names) + "filepath,label\n" + "".join(f"a,{label}\n" for label in labels) for names, labels in
              ((0, ["cat", " big_dog ", ""]), (0, ["cat", "owl"]), (0, [0, 1, 2]), (0, [1, 2, 3]), (0, [0, 1]), (0, [7, 0]), (1, [0, 1]), (1, [0, 5]),
               (1, ["2", "x"]), (2, ["n01440764", "n01443537"]), (2, ["n01440764", "n99999999"]), (3, [0, 1, 2]), (1, ["x", "y"])))]


def caption_seeds():
    """Caption files; /dev/null is an image that is there."""
    image = {"filename": "/dev/null", "filepath": "val", "split": "test", "sentences": [{"raw": "a cat"}, {"raw": 3}, {}]}
    karpathy = {"images": [image, {**image, "split": "train"}, {**image, "filename": "b"}, {"sentences": []}]}
    coco = {"images": [{"id": 2, "file_name": "/dev/null"}, {"id": 1, "file_name": "b.jpg"}, {"id": "x"}],
            "annotations": [{"image_id": 2, "caption": "a"}, {"image_id": 1, "caption": "b"}, {"image_id": 9, "caption": "c"}, {"image_id": 2}]}
    texts = [json.dumps(karpathy), json.dumps(coco), json.dumps({"images": [{**image, "split": "val"}]}), json.dumps({"images": []}),
             "/dev/null#0\ta cat\n/dev/null#1\ta dog\r\nno caption\n", "\ufeff/dev/null#0\ta cat", "x.jpg#0\ta cat", "image,caption\n/dev/null,a cat\n,b\n",
             "image_name| comment_number| comment\n/dev/null| 0| two dogs\n", "image,caption\nx.jpg,a cat\n", "image\n", "{", "filepath,title\na,b\n"]
    return [chr(8 * (i % 3)) + mode + text for i, text in enumerate(texts) for mode in "\x10\x30"]


def json_table_seeds():
    rows = [{"filepath": "a.jpg", "title": "a cat", "label": 1, "x": [1]}, {"filepath": 3, "title": None}, [1], {}]
    other = [{"file_name": "a.jpg", "text": "a\0 cat"}, {"file_name": "b"}]
    texts = [json.dumps(rows), json.dumps(other), "[]", "[1", "{", "\ufeff[{}]", json.dumps([{"filepath": "a"}]), json.dumps([{"y": 1, "z\t": 2}]),
             *("".join(json.dumps(r) + "\r\n\n" for r in table) + end for table in (rows, other) for end in ("", "{\n", '{"x": "caf\udce9"}', "\udc93\n"))]
    return [chr(mode) + "@" + text for text in texts for mode in (0, 0x10, 0x60, 0x18)]


def option_names():
    """The names of all options, and the words that some of them take."""
    with open(os.path.join(ROOT, "clipc", "base", "option_table.h"), encoding="utf-8") as f:
        return re.findall(r'X\([A-Z]+, [A-Z]+, \w+, "([\w-]+)"', f.read())


def option_seeds():
    names = option_names()
    settings = "".join(f"{name:<28} {value}\n" for name, value in
                       (("train-data", "a\\tb\\n.csv"), ("lr", "0.001"), ("warmup", "10%"), ("epochs", "3"),
                        ("save-every", "2"), ("beta2", "0.98"), ("report-to", "tensorboard"), ("lr", "auto")))
    values = ("1", "0.5", "a.csv", "true", "10%", "0.5,0.5,0.5", "0.1 0.2 0.3", "cosine", "auto")
    lines = [f"--{name}\n{values[i % len(values)]}" for i, name in enumerate(names)]
    return ["0" + settings + "\0--lr\n0.01\n--epochs=4", "1" + settings + "\0--lr\n0.01\n--lock-image",
            "0\0--help", "0\0a.csv", "0\0--train-dta\nx", "0\0--lr=", "0\0--zeroshot-data\na\nb\n--classnames\nc",
            "0\0--lr\n1\n--lr\n2", "0\0--horovod\n--dist-url\nx", "1unknown x\nlr  nan\nepochs", "1train-data pipe:rm\n",
            "1save-features a'b\\x1b[31m\\t\\n\\\\\nfeature-cache f\u202e'\nreport-to wandb\nlogs \x1b\nval-data {pipe,x}:y\nname it's\n",
            *("1\0" + line for line in lines), *(f"1{name} {values[i % len(values)]}\0" for i, name in enumerate(names))]


# By the kinds of text that fuzz_lines.c reads, in the order of its cases (the first character modulo 5; "2" is 0).
LINES = {
    "templates": ["a photo of a {}.\n\n \ta {c} in {c}\r\n", "\ufeff{}", "no slot\n", '["a {}", "b {c}"]', "{\"names\": ['x']}", "a {dog} b\n",
                  "classes = [\n    \"a bad photo of a {}.\",  # good\n    f'the {c}',\n]\n", "[lambda c: f'a {c}', lambda c : 'b %s' % c,]",
                  "t = ('a {}.'.format(c), \"b {class}\")\n", '"""x"""', "x = lambda cls: 'a {cls}' % (cls)\n", "'it\\'s {}'\n"],
    "class names": ["cat\ndog\r\n cat \n\ufeffx", "\ufeffcat", "\n", "n01440764\nn01443537\n", "n99999999\n", "0, a\n1, b\n", "1\n2\n",
                    "n01440764 tench\n", "[1]", "{}", '{"a": ["x", "y"]}', '{"a": 1, "b": 2}', "3", "['a',", "'a',\nb\n", "a\0"],
    "folders": [chr(len(folders)) + "\n".join(folders + classes) for folders, classes in (
        (["big_cat", "DOG"], ["x", "big  cat", "dog"]), (["cat", "owl"], ["cat", "dog"]), (["a_b", "A b"], ["c"]), (["a"], ["A", "a_"]),
        (["0", "1"], ["x", "y"]), (["1", "2"], ["x", "y"]), (["0", "2"], ["x", "y", "z", "w"]), (["0", "1"], ["1", "0"]), (["00", "1"], ["0", "x"]),
        (["n01440764", "n01443537"], ["tench", "goldfish"]), (["n01440764", "n01443537"], ["goldfish", "tench", "cat"]),
        (["n01440764", "n01443537"], ["tench", "cat"]), (["n01440764", "n99999999"], ["a", "b"]), (["n99999999", "n99999998"], ["a", "b", "c"]),
        (["a2", "a10"], ["x", "y"]), (["a2", "a3"], ["x", "y"]), (["a", "b", "c"], ["x"]), (["a01b", "a1b"], ["x", "y"]))],
    "sources": ["a-{000..003}.tar::b{x,{y,z}}.tgz", "a{9..1}", "a{1,2", "a}", "{a..b}", "{x}", "::", "{a,b}" * 9, "{0..9999999}"],
    "augmentation": ["scale=[0.5,1.0] color_jitter=[0.4,0.4,0.4,0.1] re_prob=0", "none", "color_jitter_prob=2 gray_scale_prob=x", "use_timm=False"],
}

SEEDS = {
    "csv": lambda: csv_seeds() + caption_seeds() + json_table_seeds(),
    "caption": lambda: ["K" + c for c in CAPTIONS] + ["\x05" + " ".join(CAPTIONS), "K"],
    "tar": lambda: ["0no archive", "1", b"2" + bytes(1024)],
    "image": image_seeds,
    "merges": lambda: ["a b\nab c</w>\n", "t h\nth e</w>\ni n\nin g</w>", "a b\na b\n", "a\n", "x y z\n", "q qq\n", ""],
    "options": option_seeds,
    "lines": lambda: [chr(50 + kind) + text for kind, texts in enumerate(LINES.values()) for text in texts],
    "json": lambda: ["0" + json.dumps(MODEL), "0" + json.dumps(HUB), "0" + json.dumps({**MODEL, "surprise": 1}),
                     "0" + json.dumps({**MODEL, "vision_cfg": {**MODEL["vision_cfg"], "timm_model_name": "x"}}), "0[]", "0{",
                     "0" + json.dumps({**HUB, "preprocess_cfg": {"mean": [1], "interpolation": "random", "fill_color": 3}}),
                     "0" + json.dumps({**MODEL, "vision_cfg": {"layers": [3, 4], "mlp_ratio": 99, "norm_kwargs": {"x": 1}}}),
                     '1{"caption": "a cat \\u00e9\\ud83d\\ude00\\u0000"}', '1{"caption": " ", "text": "b"}', '1{"x": [1]}', "1[", "1[]"],
    "metrics": lambda: ["2" + "".join(json.dumps(r) + "\n" for r in METRICS), "2" + json.dumps({"step": 1, "loss": 1e308}),
                        '2{"step": 3, "loss": null, "lr": -1}\n[1]\n{"step": "x"}\n{"loss": 2', "2",
                        "2" + "".join(json.dumps({"step": s, "loss": x, "grad_norm": 1e9, "val_loss": x, "zeroshot_top1": 0.1}) + "\n"
                                      for s, x in enumerate([0.1] * 60 + [4.0] * 60))],
    "manifest": lambda: ["1" + "0123456789abcdef 1234 epoch_1.bin\nfedcba9876543210 99 epoch_1.state\n", "0x", "10 0 ../x\n", "1", "10 0 .x\n", "1x\n"],
    "vocabulary": vocabulary_seeds,
    "npz": lambda: [npz(a=np.zeros((2, 3), "<f4"), b=np.array(7, "<i8")), npz(f=np.asfortranarray(np.ones((2, 2), "u1"))),
                    npz(o=np.zeros((0, 4))), npz(c=np.array(["x"]))],
}

DICTIONARIES = {
    "csv": ["\\x0d\\x0a", "\\\"\\\"", "filepath", "title", "label", ",", ";", "|", "\\x09", "\\xef\\xbb\\xbf"],
    "caption": ["&amp;", "&#x27;", "&lt;", "\\xc3\\x83\\xc2", "\\xe2\\x82\\xac", "\\xc2\\xa0", "'ll", "<|endoftext|>", "\\xed\\xa0\\x80",
                "\\xef\\xbf\\xbd", "\\xe2\\x80", "\\xcc\\x81", "\\xef\\xac\\x81", "\\xf0\\x9f\\x98\\x80", "\\xc4\\xb0"],
    "lines": ["{}", "{c}", "{0..9}", "{a,b}", "::", "..", "scale=", "[", "]", ",", "color_jitter=", "_prob=", "ratio="],
    "json": ["model_cfg", "preprocess_cfg", "vision_cfg", "text_cfg", "norm_kwargs", "\\\"", "null", "true", "1e309", "\\\\u0000",
             "embed_dim", "caption", "text", "timm_model_name", "hf_model_name"],
    "metrics": ["\\\"step\\\":", "\\\"loss\\\":", "val_loss", "zeroshot_top1", "grad_norm", "_R@1", "null", "1e308", "-0", "{", "}\\x0a"],
    "tar": ["ustar\\x00", "00000000000", "path=", "size=", "GNU.sparse", ".jpg", ".txt", ".json", ".cls", "\\x1f\\x8b\\x08"],
    "image": ["\\xff\\xd8\\xff", "\\xff\\xda", "\\xff\\xc0", "\\xff\\xc2", "\\xff\\xc4", "\\xff\\xdb", "\\xff\\xe1", "Exif\\x00\\x00II*\\x00",
              "IHDR", "IDAT", "PLTE", "tRNS", "eXIf", "GIF89a", "BM", "II*\\x00", "MM\\x00*", "\\xff\\x4f\\xff\\x51", "ftypavif", "ftypheic",
              "RIFF", "WEBPVP8 ", "VP8L", "VP8X", "ANIM", "ANMF", "ALPH"],
    "vocabulary": ["\\xe2\\x96\\x81", "<mask>", "</s>", "[MASK]", "<0x41>", "\\xcc\\x81", "\\xef\\xac\\x81", "VOC\\x00", "\\xff\\xff\\xff\\xff"],
    "npz": ["PK\\x03\\x04", "PK\\x01\\x02", "\\x93NUMPY", "'descr': '<f4'", "'fortran_order': True", "'shape': (", ".npy"],
}


def main(folder):
    for harness, make in SEEDS.items():
        os.makedirs(os.path.join(folder, harness), exist_ok=True)
        for i, seed in enumerate(make()):
            with open(os.path.join(folder, harness, f"{i:02}"), "wb") as f:
                f.write(seed.encode("utf-8", "surrogateescape") if isinstance(seed, str) else seed)
    words = {**DICTIONARIES, "options": [f"--{n}" for n in option_names()] + option_names() + ["=", "\\x00", "auto", "%"]}
    for harness, tokens in words.items():
        with open(os.path.join(folder, harness + ".dict"), "w", encoding="utf-8") as f:
            f.writelines(f'"{token}"\n' for token in tokens)


if __name__ == "__main__":
    main(sys.argv[1])
