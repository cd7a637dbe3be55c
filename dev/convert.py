#!/usr/bin/env python3
"""Checkpoints of CLIP to the packed weight file of clip.c, and back. Needs numpy only.

  dev/convert.py IN -o OUT.bin                        a checkpoint, or the folder that holds it, to the packed form
  dev/convert.py ORG/NAME -o OUT.bin                  the same from the model hub (hf-hub:ORG/NAME too); needs huggingface_hub
  dev/convert.py --model ViT-B-32 --pretrained TAG -o OUT.bin        a known tag, downloaded likewise
  dev/convert.py --model ViT-B-32 --random SEED -o OUT.bin           random weights, drawn as open_clip draws them
  dev/convert.py IN.bin -o DIR --format open_clip     back: open_clip_model.safetensors and open_clip_config.json
  dev/convert.py --list                               every known model and tag

IN is one of: open_clip's state dict or training checkpoint (.pt), .safetensors, OpenAI's TorchScript .pt, a folder of Hugging Face's
CLIPModel, a hub folder of open_clip, an .npz state dict, a packed .bin. The tables of tensors, fields and models are those of
clipc/weights.h and clipc/models.h, read from there.
"""
import argparse
import json
import math
import os
import re
import struct
import sys

import numpy as np

from checkpoints import CHUNK, WEIGHT_DTYPES, Checkpoint, Entry, Refused, itemsize, open_checkpoint, open_shards, product, read_range
from models import (ALIGNMENT, CLIP_VOCABULARY, CONFIG_FIELDS, CONSTANTS, HALF, HEADER_INTS, INTERPOLATIONS, MODEL_ROWS, NAME_BYTES, OPENAI_MEAN, OPENAI_STD,
                    QUICKGELU, RESIZE_MODES, ROOT, TAGS, base_name, check_config, config_from_shapes, config_of_row, is_clip_config, load_config, load_json,
                    load_model_argument, set_preprocess, similar_row, tensor_shapes)

MERGES = os.path.join(ROOT, "data", "bpe_merges.txt")
DTYPE_CODES = {"F32": CONSTANTS["DTYPE_FP32"], "BF16": CONSTANTS["DTYPE_BF16"]}


# ---------------------------------------------------------------- names of tensors

# ours (open_clip's, OpenAI's) -> Hugging Face's; True: a projection, stored transposed there
HF_NAMES = {
    "visual.class_embedding": ("vision_model.embeddings.class_embedding", False),
    "visual.conv1.weight": ("vision_model.embeddings.patch_embedding.weight", False),
    "visual.positional_embedding": ("vision_model.embeddings.position_embedding.weight", False),
    "visual.ln_pre.weight": ("vision_model.pre_layrnorm.weight", False),  # spelt so
    "visual.ln_pre.bias": ("vision_model.pre_layrnorm.bias", False),
    "visual.ln_post.weight": ("vision_model.post_layernorm.weight", False),
    "visual.ln_post.bias": ("vision_model.post_layernorm.bias", False),
    "visual.proj": ("visual_projection.weight", True),
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight", False),
    "positional_embedding": ("text_model.embeddings.position_embedding.weight", False),
    "ln_final.weight": ("text_model.final_layer_norm.weight", False),
    "ln_final.bias": ("text_model.final_layer_norm.bias", False),
    "text_projection": ("text_projection.weight", True),
}
HF_BLOCK_NAMES = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
HF_TOWERS = {"visual.": "vision_model.encoder.layers.", "": "text_model.encoder.layers."}
CONSTANT_TENSORS = ("position_ids", "attn_mask")  # stored by older versions of transformers and OpenAI's, no parameters
OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")


def transposed(entry):
    return Entry(entry.dtype, entry.shape[::-1], lambda: entry.read().T)


def stacked(entries):
    """Several tensors one below the other."""
    def read():
        first = entries[0]
        out, row = np.empty((first.shape[0] * len(entries), *first.shape[1:]), WEIGHT_DTYPES.get(first.dtype, "<i8")), 0
        for e in entries:
            out[row:row + e.shape[0]] = e.read()
            row += e.shape[0]
        return out
    return Entry(entries[0].dtype, (sum(e.shape[0] for e in entries), *entries[0].shape[1:]), read)


def from_hf(entries, path):
    """Hugging Face's names to ours: projections transposed, q, k and v stacked. What has no counterpart keeps its name."""
    left, out = dict(entries), {}
    for ours, (theirs, flip) in HF_NAMES.items():
        if theirs in left:
            entry = left.pop(theirs)
            out[ours] = transposed(entry) if flip else entry
    for name in list(left):
        match = re.fullmatch(r"((?:vision|text)_model\.encoder\.layers\.)(\d+)\.(.+)\.(weight|bias)", name)
        prefix = next((f"{p}transformer.resblocks.{match[2]}." for p, t in HF_TOWERS.items() if t == match[1]), None) if match else None
        ours = next((o for o, t in HF_BLOCK_NAMES.items() if match and t == match[3]), None)
        if ours:
            out[f"{prefix}{ours}.{match[4]}"] = left.pop(name)
        elif match and match[3] == "self_attn.q_proj":
            names = [name.replace(".q_proj.", f".{x}_proj.") for x in "qkv"]
            parts = [left.get(n) for n in names]
            if None in parts:
                raise Refused(f"{path}: {names[parts.index(None)]} is missing")
            if len({(p.dtype, p.shape) for p in parts}) > 1:
                raise Refused(f"{path}: {', '.join(names)} differ in shape or type")
            out[f"{prefix}attn.in_proj_{match[4]}"] = stacked(parts)
            for n in names:
                del left[n]
    for name in left:
        if name in out:
            raise Refused(f"{path}: {name} is there in two forms")
    return {**out, **left}


def fact(entry):
    """One of OPENAI_FACTS: a whole number in a tensor."""
    return entry.read().item() if entry.dtype.startswith("I") and product(entry.shape) == 1 else None


def normalise(checkpoint):
    """Brings the names of a checkpoint to open_clip's: wrappers' prefixes, Hugging Face's names, `text.` of open_clip's CustomTextCLIP.
    Sets checkpoint.facts (OpenAI's three numbers) and checkpoint.openai."""
    entries, path = {name: e for name, e in checkpoint.entries.items() if name.split(".")[-1] not in CONSTANT_TENSORS}, checkpoint.path
    for prefix in ("module.", "_orig_mod.", "module."):
        if entries and all(name.startswith(prefix) for name in entries):
            entries = {name[len(prefix):]: e for name, e in entries.items()}
    if any(name.startswith(("vision_model.", "text_model.")) for name in entries):
        entries = from_hf(entries, path)
    for name in [n for n in entries if n.startswith("text.")]:
        if name[len("text."):] in entries:
            raise Refused(f"{path}: both {name} and {name[len('text.'):]} are there")
        entries[name[len("text."):]] = entries.pop(name)
    facts = {name: fact(entries.pop(name)) for name in OPENAI_FACTS if name in entries}
    types = checkpoint.module_types
    checkpoint.entries, checkpoint.facts = entries, {k: v for k, v in facts.items() if v is not None}
    checkpoint.openai = "QuickGELU" in types or ("GELU" not in types) if types is not None else len(facts) == len(OPENAI_FACTS)
    return checkpoint


# ---------------------------------------------------------------- the packed form

def float_bits(value):
    return struct.unpack("<i", struct.pack("<f", value))[0]


def header_of(config, dtype, merges_bytes, tensors):
    header = [0] * HEADER_INTS
    for key, value in (("MAGIC", CONSTANTS["WEIGHTS_MAGIC"]), ("VERSION", CONSTANTS["WEIGHTS_VERSION"]), ("DTYPE", DTYPE_CODES[dtype]),
                       ("FIELDS", len(CONFIG_FIELDS)), ("MERGES_BYTES", merges_bytes), ("TENSORS", tensors)):
        header[CONSTANTS["HEADER_" + key]] = value
    for i, (kind, name, _, _) in enumerate(CONFIG_FIELDS):
        header[CONSTANTS["HEADER_CONFIG"] + i] = float_bits(config[name]) if kind == "float" else int(config[name])
    packed = bytearray(struct.pack(f"<{HEADER_INTS}i", *header))
    name = config["name"].encode("utf-8", "replace")[:NAME_BYTES - 1]
    start = 4 * CONSTANTS["HEADER_NAME"]
    packed[start:start + len(name)] = name
    return bytes(packed)


def padding(length):
    return -length % ALIGNMENT


def shortest(value):
    """The float32 as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def open_packed(path):
    """A packed .bin: -> Checkpoint with config, merges (bytes or None) and dtype. Checked as clipc/weights.h does."""
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        raw = f.read(4 * HEADER_INTS)
        if len(raw) < 4 * HEADER_INTS:
            raise Refused(f"{path}: shorter than the {4 * HEADER_INTS} bytes of a header")
        header = struct.unpack(f"<{HEADER_INTS}i", raw)
        version, code, stored, merges, count = (header[CONSTANTS["HEADER_" + k]] for k in ("VERSION", "DTYPE", "FIELDS", "MERGES_BYTES", "TENSORS"))
        dtype = next((d for d, c in DTYPE_CODES.items() if c == code), None)
        if version != CONSTANTS["WEIGHTS_VERSION"] or dtype is None or not 1 <= stored <= len(CONFIG_FIELDS) or not 0 <= merges <= 1 << 24:
            raise Refused(f"{path}: version {version}, number format {code}, {stored} fields, {merges} bytes of merges: not a packed file this program knows")
        config = {}
        for i, (kind, name, _, _) in enumerate(CONFIG_FIELDS):
            bits = header[CONSTANTS["HEADER_CONFIG"] + i] if i < stored else 0
            config[name] = shortest(struct.unpack("<f", struct.pack("<i", bits))[0]) if kind == "float" else bits
        config["name"] = raw[4 * CONSTANTS["HEADER_NAME"]:][:NAME_BYTES].split(b"\0")[0].decode("utf-8", "replace")
        shapes = tensor_shapes(check_config(config, path))
        offset = len(raw) + merges + padding(merges)
        places = {}
        for name, shape in shapes.items():
            places[name] = offset
            offset += product(shape) * itemsize(dtype)
            offset += padding(offset)
        if count != len(shapes) or size != offset:
            raise Refused(f"{path}: {size} bytes and {count} tensors, its header announces {offset} and {len(shapes)}; is it complete?")
        text = f.read(merges) if merges else None
    entries = {name: Entry(dtype, shape, lambda o=places[name], s=shape: read_range(path, o, dtype, product(s)).reshape(s)) for name, shape in shapes.items()}
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


def converted_chunks(where, name, entry, dtype):
    """The numbers of a tensor in `dtype` ("F32", "BF16"), some millions at a time; refuses what is not finite, or becomes so."""
    array = entry.read()
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK // 4):
        source = flat[start:start + CHUNK // 4]
        values = to_float32(source, entry.dtype)
        out = (source if entry.dtype == "BF16" else to_bf16(values)) if dtype == "BF16" else values
        finite = np.isfinite(values) if dtype == "F32" else (out & 0x7F80) != 0x7F80
        if not finite.all():
            bad = int(np.argmin(finite))
            place = "".join(f"[{i}]" for i in np.unravel_index(start + bad, array.shape))
            value = float(values[bad] if entry.dtype == "BF16" else source[bad])
            raise Refused(f"{where}: {name}{place} is {value:g}" + (f", too large for {dtype}" if math.isfinite(value) else ""))
        yield out


class Aside:
    """A file that is whole or absent: written as PATH.part, then fsync and rename."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        self.file = open(self.path + ".part", "wb")
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
    """All that an output format needs: configuration, entries in the table's order (open_clip's names), the merges, the dtype to write."""

    def __init__(self, where, config, entries, merges, dtype):
        self.where, self.config, self.entries, self.merges, self.dtype = where, config, entries, merges, dtype

    def chunks(self, name):
        return converted_chunks(self.where, name, self.entries[name], self.dtype)


def write_packed(model, path):
    merges = model.merges or b""
    with Aside(path) as f:
        f.write(header_of(model.config, model.dtype, len(merges), len(model.entries)))
        f.write(merges + bytes(padding(len(merges))))
        for name, entry in model.entries.items():
            for chunk in model.chunks(name):
                f.write(chunk)
            f.write(bytes(padding(product(entry.shape) * itemsize(model.dtype))))
    return [path]


def ratio_of(hidden, width):
    """The shortest mlp_ratio with int(width * ratio) == hidden."""
    for digits in range(1, 18):
        for ratio in (round(hidden / width, digits), round(hidden / width + 0.5 * 10.0 ** -digits, digits)):
            if int(width * ratio) == hidden:
                return ratio
    return (hidden + 0.5) / width


def open_clip_json(config):
    """The configuration in open_clip's form, as open_clip_config() reads it."""
    c = config
    image = {"image_size": c["image_size"], "layers": c["image_layers"], "width": c["image_width"], "head_width": c["image_width"] // c["image_heads"],
             "patch_size": c["patch_size"], "mlp_ratio": ratio_of(c["image_mlp"], c["image_width"])}
    text = {"context_length": c["context_length"], "vocab_size": c["vocab_size"], "width": c["text_width"], "heads": c["text_heads"],
            "layers": c["text_layers"], "mlp_ratio": ratio_of(c["text_mlp"], c["text_width"])}
    for part, eps in ((image, c["image_ln_eps"]), (text, c["text_ln_eps"])):
        if np.float32(eps) != np.float32(1e-5):
            part["norm_kwargs"] = {"eps": shortest(eps)}
    return {"model_cfg": {"embed_dim": c["embed_dim"], "quick_gelu": bool(c["quick_gelu"]), "vision_cfg": image, "text_cfg": text},
            "preprocess_cfg": {**{key: [shortest(c[f"{key}_{x}"]) for x in "rgb"] for key in ("mean", "std")},
                               "interpolation": INTERPOLATIONS[c["interpolation"]], "resize_mode": RESIZE_MODES[c["resize_mode"]]}}


def write_safetensors(model, path, tensors):
    """tensors: name in the file -> (shape, iterable of chunks)."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, _) in tensors.items():
        end = offset + product(shape) * itemsize(model.dtype)
        header[name] = {"dtype": model.dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with Aside(path) as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, chunks in tensors.values():
            for chunk in chunks:
                f.write(chunk)


def write_open_clip(model, folder):
    if model.config["absent"] or model.config["patch_bias"] or not model.config["ln_pre"]:
        raise Refused(f"{model.where}: not a whole CLIP (a tower alone, or one of ImageNet's): open_clip's form has no place for it")
    made = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    weights, config = (os.path.join(folder, name) for name in ("open_clip_model.safetensors", "open_clip_config.json"))
    try:
        write_safetensors(model, weights, {name: (() if name == "logit_scale" else e.shape, model.chunks(name)) for name, e in model.entries.items()})
    except BaseException:
        if made:
            os.rmdir(folder)
        raise
    with Aside(config) as f:
        f.write((json.dumps(open_clip_json(model.config), indent=2) + "\n").encode("utf-8"))
    return [weights, config]


FORMATS = {"bin": write_packed, "open_clip": write_open_clip}


# ---------------------------------------------------------------- random weights

def initial(config, name, shape):
    """How open_clip draws a tensor at first: its own scheme for the text tower, torch's defaults of the layers in the image tower.
    -> "constant", "uniform" (in ±size) or "normal", and the size."""
    tower = "image" if name.startswith("visual.") else "text"
    C, L, F = (config[f"{tower}_{x}"] for x in ("width", "layers", "mlp"))
    key = re.sub(r"^(visual\.)?(transformer\.resblocks\.\d+\.)?", "", name)
    if key == "logit_scale":
        return "constant", math.log(1 / 0.07)
    if key.startswith("ln_") or key in ("attn.in_proj_bias", "attn.out_proj.bias"):
        return "constant", float(key.endswith(".weight"))
    if key in ("mlp.c_fc.bias", "mlp.c_proj.bias"):
        return "uniform", (C if key == "mlp.c_fc.bias" else F) ** -0.5
    if tower == "image":
        if key == "attn.in_proj_weight":  # Xavier
            return "uniform", math.sqrt(6 / (shape[0] + shape[1]))
        if key in ("conv1.weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"):
            return "uniform", product(shape[1:]) ** -0.5
        return "normal", C ** -0.5
    out = (2 * L * C) ** -0.5
    sizes = {"token_embedding.weight": 0.02, "positional_embedding": 0.01, "attn.out_proj.weight": out, "mlp.c_proj.weight": out,
             "mlp.c_fc.weight": (2 * C) ** -0.5}
    return "normal", sizes.get(key, C ** -0.5)


def draw(seed, place, shape, kind, size):
    if kind == "constant":
        return np.full(shape, size, "<f4")
    rng = np.random.default_rng([seed, place])
    if kind == "normal":
        out = rng.standard_normal(shape, np.float32)
    else:
        out = rng.random(shape, np.float32)
        out *= np.float32(2)
        out -= np.float32(1)
    out *= np.float32(size)
    return out


def random_entries(config, seed):
    """A tensor's numbers depend on the seed and its place in the table only."""
    return {name: Entry("F32", shape, lambda place=place, name=name, shape=shape: draw(seed, place, shape, *initial(config, name, shape)))
            for place, (name, shape) in enumerate(tensor_shapes(config).items())}


# ---------------------------------------------------------------- where checkpoints come from

WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth",
                "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CONFIG_FILES = ("open_clip_config.json", "config.json")


def weights_among(names):
    """Of the files of a folder or repository: the weights (the index, for shards)."""
    return next((n for n in WEIGHT_FILES if n in names), None)


def config_beside(folder, only):
    """The configuration that lies in a folder, if any of `only` is there and describes a CLIP."""
    for name in only:
        path = os.path.join(folder, name)
        if os.path.isfile(path) and is_clip_config(load_json(path)):
            return path
    return None


def open_source(path, named):
    """A file or folder: -> Checkpoint in open_clip's names, and the path of the configuration beside it or None. named: --model is given;
    then a config.json that merely lies in the same folder as a file has no say."""
    if not os.path.isdir(path):
        with open(path, "rb") as f:
            if f.read(4) == struct.pack("<I", CONSTANTS["WEIGHTS_MAGIC"]):
                return open_packed(path), None
        folder, checkpoint = os.path.dirname(path), open_checkpoint(path)
    else:
        folder, weights = path, weights_among(os.listdir(path))
        if weights is None:
            raise Refused(f"{path}: holds none of {', '.join(WEIGHT_FILES)}; give the file itself")
        checkpoint = open_shards(path, weights) if weights.endswith(".index.json") else open_checkpoint(os.path.join(path, weights))
    checkpoint = normalise(checkpoint)
    if checkpoint.module_types is not None:  # OpenAI's archive stands for itself
        return checkpoint, None
    return checkpoint, config_beside(folder, CONFIG_FILES[:1] if named and not os.path.isdir(path) else CONFIG_FILES)


def find_tag(model, tag):
    """--model and --pretrained: -> (activation, repository, what else differs)."""
    row, _ = base_name(model or "")
    known = [t for t in TAGS if row and t[0] == row[0]]
    if not row:
        raise Refused(f"--pretrained {tag}: say of which model by --model NAME (--list shows all)")
    found = next((t for t in known if t[1] == tag.replace("-", "_").lower()), None)
    if found is None:
        tags = f"the tags {', '.join(t[1] for t in known)}" if known else "no tag"
        raise Refused(f"--pretrained {tag}: {row[0]} has {tags}; a file goes in place of IN")
    return found[2:]


def download(repository, output):
    """Brings what is needed of a repository of the model hub; -> its folder."""
    address = f"https://huggingface.co/{repository}"
    try:
        import huggingface_hub
    except ImportError:
        weights = "open_clip_pytorch_model.bin" if repository.startswith("apple/") else "open_clip_model.safetensors"
        folder = repository.split("/")[1]
        files = f" open_clip_config.json {weights}" if any(repository == t[3] for t in TAGS) else ""
        raise Refused(f"{repository}: huggingface_hub is not installed; run `pip install huggingface_hub` and this again, or elsewhere "
                      f"`hf download {repository}{files} --local-dir {folder}` (by hand: {address}/resolve/main/{weights} and open_clip_config.json "
                      f"into the folder {folder}), then `dev/convert.py {folder} -o {output}`") from None
    try:
        there = huggingface_hub.list_repo_files(repository)
        weights = weights_among(there)
        if weights is None:
            raise Refused(f"{repository}: holds none of {', '.join(WEIGHT_FILES)} ({address}/tree/main)")
        wanted = [weights, *(n for n in (*CONFIG_FILES, "preprocessor_config.json") if n in there)]
        place = [huggingface_hub.hf_hub_download(repository, name) for name in wanted][0]
        if weights.endswith(".index.json"):
            shards = load_json(place).get("weight_map", {}).values()
            for name in sorted(set(map(str, shards))):
                huggingface_hub.hf_hub_download(repository, name)
    except Refused:
        raise
    except Exception as e:  # whatever the network and that library raise
        raise Refused(f"{repository}: cannot be downloaded ({' '.join(str(e).split())[:200]}); see {address}") from None
    return os.path.dirname(place)


def local_path(args):
    """IN, or what --pretrained or a hub id stands for, as a path of this machine."""
    if args.input is None:
        return download(find_tag(args.model, args.pretrained)[1], args.output)
    if os.path.exists(args.input) and not args.input.startswith("hf-hub:"):
        return args.input
    hub = args.input.removeprefix("hf-hub:")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", hub) and not re.search(r"\.(pt|pth|bin|safetensors|npz|json)$", hub):
        return download(hub, args.output)
    raise Refused(f"{args.input}: no such file or folder")


# ---------------------------------------------------------------- decisions

def choose_activation(args, own, given, tag, checkpoint):
    """-> quick_gelu, where that comes from, whether it is a guess. The first that knows wins."""
    voices = [(args.force_quick_gelu or None, "--force-quick-gelu"),
              (given.quick if given and args.model.endswith(QUICKGELU) else None, f"--model {args.model}"),
              (True if checkpoint.openai else None, "the file is OpenAI's"), (tag and tag[0], f"the tag {args.pretrained}"),
              (own.quick if own else None, own.source if own else ""), (given.quick if given else None, given.source if given else "")]
    for quick, why in voices:
        if quick is not None:
            return quick, why, False
    return False, "nothing says which", True


def activation(quick):
    return "quick_gelu" if quick else "gelu"


def described(config):
    c = config
    image, text = (", ".join(f"{x} {c[f'{tower}_{x}']}" for x in ("width", "layers", "heads", "mlp")) for tower in ("image", "text"))
    return (f"{c['image_size']} pixels in patches of {c['patch_size']}, image {image}; context {c['context_length']}, vocabulary {c['vocab_size']}, "
            f"text {text}; embedding {c['embed_dim']}")


def decide(args, checkpoint, own_path):
    """The configuration of the output, and the lines that say what was taken and why."""
    own = load_config(own_path) if own_path else None
    given = load_model_argument(args.model) if args.model else None
    tag = find_tag(args.model, args.pretrained) if args.pretrained else None
    known = given or own or config_from_shapes(checkpoint)
    config = dict(known.config)
    look = own or known
    config.update({k: v for k, v in look.config.items() if re.match(r"(mean|std)_[rgb]$|interpolation$|resize_mode$", k)})
    if tag:
        mean, std = (HALF, HALF) if "mean/std=0.5" in tag[2] else (OPENAI_MEAN, OPENAI_STD)
        set_preprocess(config, mean, std, "bicubic", "squash" if "squash" in tag[2] else "shortest")
    quick, why, guessed = choose_activation(args, own, given, tag, checkpoint)
    config["quick_gelu"] = int(quick)
    row = similar_row(config)
    if row and not (given and given.config["name"]):
        config["name"] = row[0] + QUICKGELU * (quick and row[-1])
    config["name"] = config["name"] or re.sub(r"\.[a-z]+$", "", os.path.basename(os.path.abspath(args.input or "")))
    if quick and row and row[-1] and config["name"] == row[0]:
        config["name"] += QUICKGELU
    notes = [f"architecture from {known.source}: {described(config)}", f"activation: {activation(quick)} ({why})"]
    warnings = []
    if guessed:
        warnings.append(f"{checkpoint.path}: took gelu because neither a configuration, a tag nor the name says which activation it was trained with; "
                        "weights of OpenAI, MetaCLIP and DFN need --force-quick-gelu, a wrong choice loses accuracy silently")
    elif own and own.quick != quick:
        warnings.append(f"{checkpoint.path}: took {activation(quick)} by {why}, although {own.source} says {activation(own.quick)}")
    return config, known, notes, warnings


def matched(where, entries, shapes, known):
    """The entries in the order of `shapes`; a missing, extra, misshapen one or one of another type than floating point is refused by name."""
    def more(names):
        return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    hint = f"the configuration is from {known.source}; another one is given by --model"
    missing, extra = [n for n in shapes if n not in entries], sorted(n for n in entries if n not in shapes)
    if missing:
        raise Refused(f"{where}: {missing[0]} is missing{more(missing)}" + (f", {extra[0]} is there instead" if extra else "") + f"; {hint}")
    if extra:
        raise Refused(f"{where}: {extra[0]} has no place in the model{more(extra)}; {hint}")
    for name, shape in shapes.items():
        entry = entries[name]
        if entry.shape != shape and not (name == "logit_scale" and entry.shape == ()):
            raise Refused(f"{where}: {name} has shape {list(entry.shape)} instead of {list(shape)}; {hint}")
        if entry.dtype not in WEIGHT_DTYPES:
            raise Refused(f"{where}: {name} holds {entry.dtype}, not floating-point numbers")
    return {name: entries[name] for name in shapes}


def merges_for(config):
    """The text of the BPE merges: only the vocabulary of CLIP has any."""
    if config["vocab_size"] != CLIP_VOCABULARY:
        return None
    with open(MERGES, "rb") as f:
        return f.read()


def build(args):
    """-> the Model to write, and notes and warnings for the user."""
    dtype = {"fp32": "F32", "bf16": "BF16", None: None}[args.dtype]
    if args.random is not None:
        config = dict(load_model_argument(args.model).config)
        config["quick_gelu"] |= args.force_quick_gelu
        model = Model("random weights", config, random_entries(config, args.random), merges_for(config), dtype or "F32")
        return model, [f"random weights: {described(config)}", f"activation: {activation(config['quick_gelu'])}"], []
    checkpoint, own_path = open_source(local_path(args), bool(args.model))
    if hasattr(checkpoint, "config"):
        if args.model or args.pretrained:
            raise Refused(f"{checkpoint.path}: a packed file tells its configuration itself; leave out --model and --pretrained")
        config = checkpoint.config
        config["quick_gelu"] |= args.force_quick_gelu
        notes = [f"from {config['name']}: {described(config)}", f"activation: {activation(config['quick_gelu'])}"]
        return Model(checkpoint.path, config, checkpoint.entries, checkpoint.merges, dtype or checkpoint.dtype), notes, []
    config, known, notes, warnings = decide(args, checkpoint, own_path)
    entries = matched(checkpoint.path, checkpoint.entries, tensor_shapes(config), known)
    notes.insert(0, f"read {checkpoint.path} ({checkpoint.kind})")
    return Model(checkpoint.path, config, entries, merges_for(config), dtype or "F32"), notes, warnings


# ---------------------------------------------------------------- command line

class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Refused(f"{message}; --help shows the usage")


def parse(argv):
    parser = Parser(prog="convert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("input", nargs="?", metavar="IN", help="a checkpoint, the folder that holds it, or a hub id")
    parser.add_argument("-o", "--output", metavar="OUT", help="the .bin to write (a folder with --format open_clip)")
    parser.add_argument("--format", choices=FORMATS, default="bin", help="what to write (bin)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="numbers of the output (fp32; from a .bin: as there)")
    parser.add_argument("--model", metavar="NAME|config.json", help="the architecture, where the input does not tell it")
    parser.add_argument("--pretrained", metavar="TAG", help="the weights by open_clip's tag: downloaded, or with IN: what is known of them")
    parser.add_argument("--force-quick-gelu", action="store_true", help="the activation is quick_gelu, whatever the input says")
    parser.add_argument("--random", type=int, metavar="SEED", help="random weights for --model")
    parser.add_argument("--list", action="store_true", help="print every known model and tag")
    args = parser.parse_args(argv)
    if args.list:
        return args
    if not args.output:
        parser.error("-o OUT is missing")
    if args.random is not None and (not args.model or args.input or args.pretrained or args.random < 0):
        parser.error("--random SEED takes --model NAME and no input; SEED is 0 or more")
    if args.random is None and not args.input and not args.pretrained:
        parser.error("IN is missing: a checkpoint, a folder, a hub id, or --model NAME with --pretrained TAG or --random SEED")
    return args


def print_list():
    for row in MODEL_ROWS:
        config = config_of_row(row)
        millions = sum(map(product, tensor_shapes(config).values())) / 1e6
        print(f"{row[0]}{f' (also {row[0]}{QUICKGELU})' if row[-1] else ''}: {millions:.1f}M parameters, {config['image_size']} pixels")
        for _, tag, quick, repository, extra in (t for t in TAGS if t[0] == row[0]):
            print(f"    {tag}: {', '.join(['quick_gelu' if quick else 'gelu', *extra])}, {repository}")


def complain(text):
    """One line on stderr, whatever names a hostile file brought into it."""
    line = re.sub(r"[\x00-\x1f\x7f]+", " ", str(text)).encode("utf-8", "replace").decode("utf-8")
    print(f"convert.py: {line[:2000]}", file=sys.stderr)


def main(argv):
    try:
        args = parse(argv)
        if args.list:
            print_list()
            return 0
        model, notes, warnings = build(args)
        for note in notes:
            print(note)
        written = FORMATS[args.format](model, args.output)
        count = sum(product(e.shape) for e in model.entries.values())
        print(f"wrote {' and '.join(written)}: {count:,} parameters in {len(model.entries)} tensors, {'fp32' if model.dtype == 'F32' else 'bf16'}")
        for warning in warnings:
            complain(f"warning: {warning}")
        return 0
    except Refused as e:
        complain(e)
        return 2
    except MemoryError:
        complain("out of memory; close other programs")
        return 1
    except BrokenPipeError:  # the reader of --list left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as e:
        complain(f"{str(e.filename or args.output).removesuffix('.part')}: {e.strerror or e}")
        return 2 if isinstance(e, (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)) else 1
    except KeyboardInterrupt:
        complain("interrupted; nothing was written")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
