"""The output formats of dev/convert.py other than the packed one: open_clip's and Hugging Face's folders,
OpenAI's state dict. Each writer is f(model, path): it refuses what the format cannot hold, and returns the
paths it wrote."""
import json
import os
import shutil
import struct
import zipfile

import numpy as np

from checkpoints import Entry, Refused, itemsize, product
from models import CLIP_VOCABULARY, INTERPOLATIONS, RESIZE_MODES
from names import HF_CLIP, from_ours
from packed import Aside, converted_chunks, rounded, shortest, to_float32
from pickles import TORCH_STORAGES

END_OF_TEXT = "<|endoftext|>"
CLIP_MERGES = CLIP_VOCABULARY - 2 * 256 - 2  # without the bytes, alone and as ends of words, and two marks


# ---------------------------------------------------------------- what all formats share

def check_whole(model, form):
    """Refuses what is not a CLIP with both towers whose end of text is the largest id, as all these
    formats imply."""
    c = model.config
    if c["absent"]:
        raise Refused(f"{model.where}: holds only an image tower, which {form} cannot represent; train it "
                      "with --pretrained-image first")
    if c["eot_id"] != c["vocab_size"] - 1:
        raise Refused(f"{model.where}: its end of text is {c['eot_id']}, not the largest id "
                      f"{c['vocab_size'] - 1} as {form} implies")


def check_plain(model, form):
    """Like check_whole(); also refuses an image tower of another kind than OpenAI's."""
    check_whole(model, form)
    if model.config["patch_bias"] or not model.config["ln_pre"]:
        raise Refused(f"{model.where}: its image tower is an ImageNet ViT (no LayerNorm before the first "
                      f"block), which {form} cannot represent; use --format open_clip")


class Folder:
    """A folder to write into; if it was created here and writing fails, it is removed."""

    def __init__(self, path):
        self.path, self.made = path, not os.path.isdir(path)

    def __enter__(self):
        os.makedirs(self.path, exist_ok=True)
        return lambda name: os.path.join(self.path, name)

    def __exit__(self, kind, error, trace):
        if kind and self.made:
            shutil.rmtree(self.path)


def write_json(path, value):
    with Aside(path) as f:
        f.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return path


def scalar(entries):
    """The entries with logit_scale as a number without axes."""
    e = entries["logit_scale"]
    return {**entries, "logit_scale": Entry(e.dtype, (), lambda: e.read().reshape(()))}


def write_safetensors(model, path, entries):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, entry in entries.items():
        end = offset + product(entry.shape) * itemsize(model.dtype)
        header[name] = {"dtype": model.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with Aside(path) as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, entry in entries.items():
            for chunk in converted_chunks(model.where, name, entry, model.dtype):
                f.write(chunk)
    return path


# ---------------------------------------------------------------- open_clip

def ratio_of(hidden, width):
    """The shortest mlp_ratio with int(width * ratio) == hidden."""
    for digits in range(1, 18):
        for ratio in (round(hidden / width, digits), round(hidden / width + 0.5 * 10.0 ** -digits, digits)):
            if int(width * ratio) == hidden:
                return ratio
    return (hidden + 0.5) / width


def open_clip_json(config):
    """The configuration in open_clip's form, as open_clip_config() reads it; open_clip itself ignores
    `name`."""
    c = config
    image = {"image_size": c["image_size"], "layers": c["image_layers"], "width": c["image_width"],
             "head_width": c["image_width"] // c["image_heads"], "patch_size": c["patch_size"],
             "mlp_ratio": ratio_of(c["image_mlp"], c["image_width"])}
    text = {"context_length": c["context_length"], "vocab_size": c["vocab_size"], "width": c["text_width"],
            "heads": c["text_heads"], "layers": c["text_layers"],
            "mlp_ratio": ratio_of(c["text_mlp"], c["text_width"])}
    if not c["ln_pre"]:
        image["no_ln_pre"] = True
    for part, eps in ((image, c["image_ln_eps"]), (text, c["text_ln_eps"])):
        if np.float32(eps) != np.float32(1e-5):
            part["norm_kwargs"] = {"eps": shortest(eps)}
    return {"name": c["name"], "model_cfg": {"embed_dim": c["embed_dim"], "quick_gelu": bool(c["quick_gelu"]),
                                             "vision_cfg": image, "text_cfg": text},
            "preprocess_cfg": {**{key: [shortest(c[f"{key}_{x}"]) for x in "rgb"] for key in ("mean", "std")},
                               "interpolation": INTERPOLATIONS[c["interpolation"]],
                               "resize_mode": RESIZE_MODES[c["resize_mode"]]}}


def without_patch_bias(model):
    """open_clip's conv1 has no bias: it is added to the patches' position embeddings, which are added to
    conv1's output."""
    entries = dict(model.entries)
    bias, positions = entries.pop("visual.conv1.bias"), entries["visual.positional_embedding"]

    def read():
        out = to_float32(positions.read(), positions.dtype).copy()
        out[1:] += to_float32(bias.read(), bias.dtype)
        return out
    entries["visual.positional_embedding"] = Entry("F32", positions.shape, read)
    model.warnings.append(f"{model.where}: open_clip's conv1 has no bias; the bias was added to "
                          "visual.positional_embedding, which computes the same")
    return entries


def write_open_clip(model, path):
    check_whole(model, "open_clip's form")
    entries = without_patch_bias(model) if model.config["patch_bias"] else model.entries
    with Folder(path) as place:
        return [write_safetensors(model, place("open_clip_model.safetensors"), scalar(entries)),
                write_json(place("open_clip_config.json"), open_clip_json(model.config))]


# ---------------------------------------------------------------- Hugging Face

def hf_json(config, dtype):
    """transformers' CLIPConfig, as hf_config() reads it; transformers itself ignores `name`."""
    c = config
    act = "quick_gelu" if c["quick_gelu"] else "gelu"
    image, text = ({"hidden_size": c[f"{tower}_width"], "intermediate_size": c[f"{tower}_mlp"],
                    "num_hidden_layers": c[f"{tower}_layers"], "num_attention_heads": c[f"{tower}_heads"],
                    "hidden_act": act, "layer_norm_eps": shortest(c[f"{tower}_ln_eps"]),
                    "projection_dim": c["embed_dim"]} for tower in ("image", "text"))
    image.update(model_type="clip_vision_model", image_size=c["image_size"], patch_size=c["patch_size"],
                 num_channels=3)
    text.update(model_type="clip_text_model", max_position_embeddings=c["context_length"],
                vocab_size=c["vocab_size"], bos_token_id=c["eot_id"] - 1, eos_token_id=c["eot_id"],
                pad_token_id=c["eot_id"])
    return {"name": c["name"], "architectures": ["CLIPModel"], "model_type": "clip",
            "projection_dim": c["embed_dim"], "logit_scale_init_value": 2.6592,
            "torch_dtype": {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[dtype],
            "vision_config": image, "text_config": text}


def hf_preprocessor(config):
    """CLIPImageProcessor, as hf_preprocess() reads it."""
    c, size = config, config["image_size"]
    square, cropped = {"height": size, "width": size}, RESIZE_MODES[c["resize_mode"]] == "shortest"
    return {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
            "size": {"shortest_edge": size} if cropped else square,
            "resample": {"bilinear": 2, "bicubic": 3}[INTERPOLATIONS[c["interpolation"]]],
            "do_center_crop": cropped, "crop_size": square, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True,
            **{f"image_{key}": [shortest(c[f"{key}_{x}"]) for x in "rgb"] for key in ("mean", "std")}}


def bpe_symbols():
    """The 256 characters for the bytes in CLIP's vocabulary, in its order (GPT-2's table): printable bytes as
    themselves, the others as the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def write_hf_tokenizer(model, place):
    """The files of transformers' CLIPTokenizer."""
    try:
        lines = model.merges.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise Refused(f"{model.where}: its merges are not UTF-8") from None
    if len(lines) != CLIP_MERGES:
        raise Refused(f"{model.where}: holds {len(lines)} merges; CLIP's vocabulary has {CLIP_MERGES}")
    symbols = bpe_symbols()
    words = (symbols + [s + "</w>" for s in symbols] + ["".join(line.split()) for line in lines]
             + ["<|startoftext|>", END_OF_TEXT])
    special = {"bos_token": "<|startoftext|>", "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT,
               "pad_token": END_OF_TEXT}
    tokenizer = {"tokenizer_class": "CLIPTokenizer", **special,
                 "model_max_length": model.config["context_length"], "do_lower_case": True,
                 "add_prefix_space": False, "errors": "replace"}
    merges = place("merges.txt")
    with Aside(merges) as f:
        f.write(("#version: 0.2\n" + "\n".join(lines) + "\n").encode("utf-8"))
    return [write_json(place("vocab.json"), {word: i for i, word in enumerate(words)}), merges,
            write_json(place("special_tokens_map.json"), special),
            write_json(place("tokenizer_config.json"), tokenizer)]


def write_hf(model, path):
    check_plain(model, "Hugging Face's CLIPModel")
    if RESIZE_MODES[model.config["resize_mode"]] == "longest":
        raise Refused(f"{model.where}: images are resized by their longest side, which CLIPImageProcessor "
                      "cannot do; use --format open_clip")
    with Folder(path) as place:
        written = [write_safetensors(model, place("model.safetensors"),
                                     from_ours(scalar(model.entries), HF_CLIP)),
                   write_json(place("config.json"), hf_json(model.config, model.dtype)),
                   write_json(place("preprocessor_config.json"), hf_preprocessor(model.config))]
        if model.merges and model.config["vocab_size"] == CLIP_VOCABULARY:
            return written + write_hf_tokenizer(model, place)
        model.warnings.append(f"{model.where}: its tokenizer is not written; copy the tokenizer.json it was "
                              "made from into the folder" if model.merges else
                              f"{model.where}: has no tokenizer, so the folder has none either")
        return written


# ---------------------------------------------------------------- OpenAI

OPENAI_TEXT_FIRST = ("positional_embedding", "text_projection", "logit_scale")
OPENAI_IMAGE = ("class_embedding", "positional_embedding", "proj", "conv1.weight", "ln_pre.weight",
                "ln_pre.bias")
OPENAI_BLOCK = ("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias",
                "ln_1.weight", "ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight",
                "mlp.c_proj.bias", "ln_2.weight", "ln_2.bias")


def openai_order(config):
    """Names as the modules of OpenAI's model register them."""
    def blocks(tower, layers):
        return [f"{tower}transformer.resblocks.{i}.{key}" for i in range(layers) for key in OPENAI_BLOCK]
    return [*OPENAI_TEXT_FIRST, *(f"visual.{key}" for key in OPENAI_IMAGE),
            *blocks("visual.", config["image_layers"]), "visual.ln_post.weight", "visual.ln_post.bias",
            *blocks("", config["text_layers"]), "token_embedding.weight", "ln_final.weight", "ln_final.bias"]


def is_half(name):
    """Whether OpenAI's convert_weights() makes it fp16: convolution, linear layers, attention,
    projections."""
    return (any(part in name for part in (".conv1.", ".attn.", ".mlp."))
            or name in ("visual.proj", "text_projection"))


def openai_dtypes(model, entries):
    """name -> dtype: fp16 where OpenAI's files have it, if asked for or if no number changes; else one
    dtype for all."""
    def exact(entry):
        numbers = to_float32(entry.read(), entry.dtype)
        return np.array_equal(rounded(numbers, "F32", "F16").astype("<f4"), numbers)
    if model.dtype == "F32" and not model.asked and all(exact(e) for n, e in entries.items() if is_half(n)):
        model.dtype = "F16"
    return {name: "F32" if model.dtype == "F16" and not is_half(name) else model.dtype for name in entries}


def openai_implies(config):
    """What readers of OpenAI's files assume and this model is not: they would compute something else."""
    c = config
    facts = ((c["quick_gelu"], "quick_gelu"), (c["image_width"] == 64 * c["image_heads"]
                                               and c["text_width"] == 64 * c["text_heads"], "heads of 64"),
             (c["image_mlp"] == 4 * c["image_width"] and c["text_mlp"] == 4 * c["text_width"],
              "an MLP of 4 times the width"), (all(np.float32(c[f"{x}_ln_eps"]) == np.float32(1e-5)
                                                   for x in ("image", "text")), "LayerNorm with eps 1e-5"))
    return [what for holds, what in facts if not holds]


def pickled(value):
    """A str or an int >= 0 in pickle's protocol 2."""
    if isinstance(value, str):
        data = value.encode("utf-8")
        return b"X" + struct.pack("<I", len(data)) + data
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def pickled_tuple(values):
    return b"(" + b"".join(map(pickled, values)) + b"t"


def pickled_state(tensors):
    """data.pkl of torch.save: a dict of tensors. tensors: name -> (class of the storage, shape); each
    tensor has its own storage, numbered in order."""
    out = [b"\x80\x02}("]
    for key, (name, (storage, shape)) in enumerate(tensors.items()):
        strides = [product(shape[i + 1:]) for i in range(len(shape))]
        out += [pickled(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", pickled("storage"),
                f"ctorch\n{storage}\n".encode(), pickled(str(key)), pickled("cpu"), pickled(product(shape)),
                b"tQ", pickled(0), pickled_tuple(shape), pickled_tuple(strides),
                b"\x89ccollections\nOrderedDict\n)RtR"]
    return b"".join(out) + b"u."


def write_torch(path, tensors):
    """What torch.save writes for a dict of tensors: a zip with the numbers at multiples of 64 bytes.
    tensors: name -> (dtype, shape, chunks)."""
    classes = {dtype: storage for storage, dtype in TORCH_STORAGES.items()}
    with Aside(path) as f, zipfile.ZipFile(f, "w") as z:
        z.writestr(zipfile.ZipInfo("archive/data.pkl"),
                   pickled_state({n: (classes[dtype], shape) for n, (dtype, shape, _) in tensors.items()}))
        z.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        for key, (dtype, shape, chunks) in enumerate(tensors.values()):
            info = zipfile.ZipInfo(f"archive/data/{key}")
            space = -(f.tell() + 30 + len(info.filename) + 4) % 64
            info.extra = b"FB" + struct.pack("<H", space) + b"Z" * space
            with z.open(info, "w", force_zip64=product(shape) * itemsize(dtype) >= 1 << 31) as member:
                for chunk in chunks:
                    member.write(chunk)
        z.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
    return path


def write_openai(model, path):
    """OpenAI's state dict, and where `path` is a folder also the configuration: OpenAI's readers assume
    it, others need it. The three numbers that mark such a file are written only when what they imply is
    true."""
    check_plain(model, "OpenAI's state dict")
    entries, config = scalar(model.entries), model.config
    order, dtypes, other = openai_order(config), openai_dtypes(model, entries), openai_implies(config)
    tensors = {n: (dtypes[n], entries[n].shape, converted_chunks(model.where, n, entries[n], dtypes[n]))
               for n in order}
    if other:
        model.warnings.append(f"{model.where}: OpenAI's readers assume {', '.join(other)}, which this "
                              "model does not have; load it with its configuration")
    else:
        facts = {name: ("I64", (), [struct.pack("<q", config[field])])
                 for name, field in (("input_resolution", "image_size"), ("context_length", "context_length"),
                                     ("vocab_size", "vocab_size"))}
        tensors = {**{n: tensors[n] for n in OPENAI_TEXT_FIRST}, **facts, **tensors}
    if path.endswith((".pt", ".pth")):
        return [write_torch(path, tensors)]
    with Folder(path) as place:
        return [write_torch(place("openai_state_dict.pt"), tensors),
                write_json(place("open_clip_config.json"), open_clip_json(config))]
