#!/usr/bin/env python3
"""Checkpoints of CLIP to the packed weight file of clip.c, and back. Needs numpy only.

  dev/convert.py IN -o OUT.bin                a checkpoint, or the folder that holds it, to the packed form
  dev/convert.py ORG/NAME -o OUT.bin          the same from the model hub (also hf-hub:ORG/NAME)
  dev/convert.py --model ViT-B-32 --pretrained TAG -o OUT.bin     a known tag, downloaded from there
  dev/convert.py --model ViT-B-32 --random SEED -o OUT.bin        random weights as open_clip draws them
  dev/convert.py IN.bin -o DIR --format open_clip     back: open_clip_model.safetensors, open_clip_config.json
  dev/convert.py IN.bin -o DIR --format hf            back: a folder for CLIPModel.from_pretrained, with its
                                                      tokenizer and image processor
  dev/convert.py IN.bin -o DIR --format openai-state  back: OpenAI's state dict (.pt) and the configuration;
                                                      -o FILE.pt: the .pt alone
  dev/convert.py --list                               every known model and tag

IN is one of: open_clip's state dict or training checkpoint (.pt), .safetensors, OpenAI's TorchScript .pt, a
folder of Hugging Face's CLIPModel, a hub folder of open_clip, an .npz state dict, a packed .bin; or an
ImageNet ViT (timm's file or hub folder, a folder of Hugging Face's ViTModel), which becomes an image tower
for train_clip --pretrained-image. A round trip changes no bit, unless --dtype rounds. The tables of tensors,
fields and models are read from data/schema.json, which train_clip --schema prints.
"""
import argparse
import math
import os
import re
import struct
import sys

import need_numpy  # noqa: F401  before all that needs it
import numpy as np

import hub
from checkpoints import WEIGHT_DTYPES, Entry, Refused, open_checkpoint, open_shards, product
from exports import write_hf, write_open_clip, write_openai
from models import (CLIP_VOCABULARY, CONSTANTS, HALF, INTERPOLATIONS, MODEL_ROWS, OPENAI_MEAN, OPENAI_STD,
                    QUICKGELU, RESIZE_MODES, ROOT, TAGS, base_name, config_from_shapes, config_of_row,
                    is_clip_config, is_vit_config, load_config, load_json, load_model_argument,
                    set_preprocess, similar_row, tensor_shapes, vit_config)
from names import normalise
from packed import Model, open_packed, write_packed
from vocabularies import VOCABULARY_FILES, check_fits, has_vocabulary, packed_vocabulary

MERGES = os.path.join(ROOT, "data", "bpe_merges.txt")
FORMATS = {"bin": write_packed, "open_clip": write_open_clip, "hf": write_hf, "openai-state": write_openai}
DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


# ---------------------------------------------------------------- random weights

def initial(config, name, shape):
    """How open_clip initialises a tensor: its own scheme in the text tower, torch's defaults in the image
    tower.
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
    sizes = {"token_embedding.weight": 0.02, "positional_embedding": 0.01, "attn.out_proj.weight": out,
             "mlp.c_proj.weight": out, "mlp.c_fc.weight": (2 * C) ** -0.5}
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
    """The numbers of a tensor depend only on the seed and its place in the table."""
    def reader(place, name, shape):
        return lambda: draw(seed, place, shape, *initial(config, name, shape))
    return {name: Entry("F32", shape, reader(place, name, shape))
            for place, (name, shape) in enumerate(tensor_shapes(config).items())}


# ---------------------------------------------------------------- where checkpoints come from

WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
                "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "model.safetensors",
                "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
                "openai_state_dict.pt")
CONFIG_FILES = ("open_clip_config.json", "config.json")


def weights_among(names):
    """Of the files of a folder or repository: the weights (the index, for shards)."""
    return next((n for n in WEIGHT_FILES if n in names), None)


def config_next_to(folder, names, suits):
    """The first of `names` that is in the folder and suits the weights, as a path; else None."""
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path) and suits(load_json(path)):
            return path
    return None


def open_source(path, named):
    """A file or folder: -> Checkpoint in open_clip's names, and the path of its configuration or None.
    named: --model is given; then a config.json that happens to be in the folder of the file is ignored."""
    if not os.path.isdir(path):
        with open(path, "rb") as f:
            if f.read(4) == struct.pack("<I", CONSTANTS["WEIGHTS_MAGIC"]):
                return open_packed(path), None
        folder, checkpoint = os.path.dirname(path), open_checkpoint(path)
    else:
        folder, weights = path, weights_among(os.listdir(path))
        if weights is None:
            raise Refused(f"{path}: holds none of {', '.join(WEIGHT_FILES)}; give the file itself")
        checkpoint = (open_shards(path, weights) if weights.endswith(".index.json")
                      else open_checkpoint(os.path.join(path, weights)))
    checkpoint = normalise(checkpoint)
    if checkpoint.module_types is not None:  # OpenAI's archive needs no configuration
        return checkpoint, None
    if checkpoint.vit:
        return checkpoint, config_next_to(folder, CONFIG_FILES[1:], is_vit_config)
    return checkpoint, config_next_to(folder,
                                      CONFIG_FILES[:1] if named and not os.path.isdir(path) else CONFIG_FILES,
                                      is_clip_config)


def find_tag(model, tag):
    """--model and --pretrained: -> (activation, repository, what else differs)."""
    row, _ = base_name(model or "")
    known = [t for t in TAGS if row and t[0] == row.name]
    if not row:
        raise Refused(f"--pretrained {tag}: give its model by --model NAME (--list shows all)")
    found = next((t for t in known if t[1] == tag.replace("-", "_").lower()), None)
    if found is None:
        tags = f"the tags {', '.join(t[1] for t in known)}" if known else "no tag"
        raise Refused(f"--pretrained {tag}: {row.name} has {tags}; a file is given as IN")
    return found[2:]


def download(repository):
    """Downloads what is needed of a repository of the model hub; -> the folder that holds it."""
    there, fetch = hub.open_repository(repository, complain)
    weights = weights_among(there)
    if weights is None:
        raise Refused(f"{repository}: holds none of {', '.join(WEIGHT_FILES)} "
                      f"({hub.endpoint()}/{repository})")
    beside = (*CONFIG_FILES, "preprocessor_config.json", *VOCABULARY_FILES)
    place = [fetch(name) for name in (*(n for n in beside if n in there), weights)][-1]
    if weights.endswith(".index.json"):
        for name in sorted(set(map(str, load_json(place).get("weight_map", {}).values()))):
            fetch(name)
    return os.path.dirname(place)


def local_path(args):
    """A local path: IN, or the folder into which --pretrained or a hub id was downloaded."""
    if args.input is None:
        return download(find_tag(args.model, args.pretrained)[1])
    if os.path.exists(args.input) and not args.input.startswith("hf-hub:"):
        return args.input
    name = args.input.removeprefix("hf-hub:")
    file = re.search(r"\.(pt|pth|bin|safetensors|npz|json)$", name)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not file:
        return download(name)
    raise Refused(f"{args.input}: no such file or folder")


# ---------------------------------------------------------------- decisions

def choose_activation(args, own, given, tag, checkpoint):
    """-> quick_gelu, where that comes from, whether it is a guess. The first source that says it wins."""
    voices = [(args.force_quick_gelu or None, "--force-quick-gelu"),
              (given.quick if given and args.model.endswith(QUICKGELU) else None, f"--model {args.model}"),
              (True if checkpoint.openai else None, "the file is OpenAI's"),
              (tag and tag[0], f"the tag {args.pretrained}"),
              (own.quick if own else None, own.source if own else ""),
              (given.quick if given else None, given.source if given else "")]
    for quick, why in voices:
        if quick is not None:
            return quick, why, False
    return False, "by default", True


def activation(quick):
    return "quick_gelu" if quick else "gelu"


def described(config):
    c = config
    image, text = (", ".join(f"{x} {c[f'{tower}_{x}']}" for x in ("width", "layers", "heads", "mlp"))
                   for tower in ("image", "text"))
    return (f"{c['image_size']} pixels in patches of {c['patch_size']}, image {image}; context "
            f"{c['context_length']}, vocabulary {c['vocab_size']}, text {text}; embedding {c['embed_dim']}")


def stem_of(path):
    """The name of a model that has no other: that of its file without the ending, or of its folder."""
    return re.sub(r"\.[a-z]+$", "", os.path.basename(os.path.abspath(path or "")))


def decide_vit(args, checkpoint, own_path):
    """decide() for an ImageNet ViT, an image tower alone."""
    if args.pretrained:
        raise Refused(f"{checkpoint.path}: an ImageNet ViT; --pretrained TAG is for CLIPs")
    given = load_model_argument(args.model) if args.model else None
    known, stated = vit_config(checkpoint, own_path, given)
    config = known.config
    config["quick_gelu"] |= int(args.force_quick_gelu)
    config["name"] = config["name"] or stem_of(args.input)
    mean, std = (", ".join(f"{config[f'{key}_{x}']:g}" for x in "rgb") for key in ("mean", "std"))
    look = (f"mean {mean}, std {std}, {INTERPOLATIONS[config['interpolation']]}, "
            f"{RESIZE_MODES[config['resize_mode']]}")
    source = f"{own_path} or next to it" if stated else "timm's and Hugging Face's default for ViTs"
    notes = [f"an ImageNet ViT, for --pretrained-image; architecture from {known.source}: "
             f"{described(config).split('; ')[0]}, eps {config['image_ln_eps']:g}",
             f"activation: {activation(config['quick_gelu'])}", f"preprocessing: {look} (from {source})"]
    warnings = [] if stated else [f"{checkpoint.path}: assumed {look}, which no file states; DeiT, DINO and "
                                "MAE weights need --image-mean 0.485,0.456,0.406 --image-std "
                                "0.229,0.224,0.225 in training"]
    return config, known, notes, warnings


def decide(args, checkpoint, own_path):
    """-> the configuration of the output, its Known, notes that say where it comes from, and warnings."""
    if checkpoint.vit:
        return decide_vit(args, checkpoint, own_path)
    own = load_config(own_path) if own_path else None
    given = load_model_argument(args.model) if args.model else None
    tag = find_tag(args.model, args.pretrained) if args.pretrained else None
    known = given or own or config_from_shapes(checkpoint)
    config = dict(known.config)
    look = own or known
    config.update({k: v for k, v in look.config.items()
                   if re.match(r"(mean|std)_[rgb]$|interpolation$|resize_mode$", k)})
    if tag:
        mean, std = (HALF, HALF) if "mean/std=0.5" in tag[2] else (OPENAI_MEAN, OPENAI_STD)
        set_preprocess(config, mean, std, "bicubic", "squash" if "squash" in tag[2] else "shortest")
    quick, why, guessed = choose_activation(args, own, given, tag, checkpoint)
    config["quick_gelu"] = int(quick)
    row = similar_row(config)
    if row and (given or not config["name"]):
        config["name"] = config["name"] or row.name
        if quick and row.quickgelu and config["name"] == row.name:
            config["name"] += QUICKGELU
    config["name"] = config["name"] or stem_of(args.input)
    notes = [f"architecture from {known.source}: {described(config)}",
             f"activation: {activation(quick)} ({why})"]
    warnings = []
    if guessed:
        warnings.append(f"{checkpoint.path}: assumed gelu, since no configuration, tag or name says which "
                        "activation the weights were trained with; those of OpenAI, MetaCLIP and DFN need "
                        "--force-quick-gelu, and a wrong choice costs accuracy without any other sign")
    elif own and own.quick != quick:
        warnings.append(f"{checkpoint.path}: took {activation(quick)} ({why}), although {own.source} says "
                        f"{activation(own.quick)}")
    return config, known, notes, warnings


def matched(where, entries, shapes, known):
    """The entries in the order of `shapes`. One that is missing, extra, of another shape or not
    floating-point is refused by name."""
    def more(names):
        return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    hint = f"the configuration is from {known.source}; another one is given by --model"
    missing, extra = [n for n in shapes if n not in entries], sorted(n for n in entries if n not in shapes)
    if missing:
        instead = f", found {extra[0]} instead" if extra else ""
        raise Refused(f"{where}: {missing[0]} is missing{more(missing)}{instead}; {hint}")
    if extra:
        raise Refused(f"{where}: {extra[0]} is not a tensor of the model{more(extra)}; {hint}")
    for name, shape in shapes.items():
        entry = entries[name]
        if entry.shape != shape and not (name == "logit_scale" and entry.shape == ()):
            raise Refused(f"{where}: {name} has shape {list(entry.shape)} instead of {list(shape)}; {hint}")
        if entry.dtype not in WEIGHT_DTYPES:
            raise Refused(f"{where}: {name} holds {entry.dtype}, not floating-point numbers")
    return {name: entries[name] for name in shapes}


def tokenizer_for(config, own_path=None):
    """The tokenizer section: CLIP's merges for its own vocabulary; for another one the vocabulary that lies
    beside its configuration, packed; or None."""
    if config["absent"] & CONSTANTS["ABSENT_TEXT"]:
        return None
    if config["vocab_size"] == CLIP_VOCABULARY:
        with open(MERGES, "rb") as f:
            return f.read()
    folder = os.path.dirname(own_path) if own_path else ""
    if not has_vocabulary(folder):
        return None
    text_cfg = load_json(own_path).get("model_cfg", {}).get("text_cfg", {})
    packed = packed_vocabulary(folder, text_cfg.get("tokenizer_kwargs", {}).get("clean", "whitespace"))
    check_fits(folder, packed, config)
    return packed


def build(args):
    """-> the Model to write, and notes and warnings for the user."""
    dtype = args.dtype and DTYPES[args.dtype]
    if args.random is not None:
        config = dict(load_model_argument(args.model).config)
        config["quick_gelu"] |= args.force_quick_gelu
        model = Model("random weights", config, random_entries(config, args.random), tokenizer_for(config),
                      dtype or "F32", bool(dtype))
        return model, [f"random weights: {described(config)}",
                       f"activation: {activation(config['quick_gelu'])}"], []
    checkpoint, own_path = open_source(local_path(args), bool(args.model))
    if hasattr(checkpoint, "config"):
        if args.model or args.pretrained:
            raise Refused(f"{checkpoint.path}: a packed file holds its configuration; leave out --model "
                          "and --pretrained")
        config = checkpoint.config
        config["quick_gelu"] |= args.force_quick_gelu
        notes = [f"from {config['name']}: {described(config)}",
                 f"activation: {activation(config['quick_gelu'])}"]
        return Model(checkpoint.path, config, checkpoint.entries, checkpoint.merges,
                     dtype or checkpoint.dtype, bool(dtype)), notes, []
    config, known, notes, warnings = decide(args, checkpoint, own_path)
    if checkpoint.vit:
        if "visual.ln_post.weight" not in checkpoint.entries:
            raise Refused(f"{checkpoint.path}: has no LayerNorm after its last block: a ViT that pools by "
                          "average; only class tokens are supported")
        # every packed file has one
        checkpoint.entries["logit_scale"] = Entry("F32", (1,), lambda: np.full(1, math.log(1 / 0.07), "<f4"))
    entries = matched(checkpoint.path, checkpoint.entries, tensor_shapes(config), known)
    notes.insert(0, f"read {checkpoint.path} ({checkpoint.kind})")
    return (Model(checkpoint.path, config, entries, tokenizer_for(config, own_path), dtype or "F32",
                  bool(dtype)), notes, warnings)


# ---------------------------------------------------------------- command line

class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Refused(f"{message}; --help shows the usage")


def parse(argv):
    parser = Parser(prog="convert.py", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("input", nargs="?", metavar="IN",
                        help="a checkpoint, the folder that holds it, or a hub id")
    parser.add_argument("-o", "--output", metavar="OUT",
                        help="what to write: a .bin, or a folder for the other formats")
    parser.add_argument("--format", choices=FORMATS, default="bin", help="output format (bin)")
    parser.add_argument("--dtype", choices=DTYPES, help="number format of the output (default fp32, from a "
                        ".bin that of the .bin); fp16: not for --format bin")
    parser.add_argument("--model", metavar="NAME|config.json",
                        help="the architecture, where the input does not state it")
    parser.add_argument("--pretrained", metavar="TAG", help="open_clip's tag of the weights: download "
                        "them, or with IN take its activation and preprocessing")
    parser.add_argument("--force-quick-gelu", action="store_true",
                        help="the activation is quick_gelu, whatever the input says")
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
        parser.error("IN is missing: a checkpoint, a folder, a hub id, or --model NAME with --pretrained "
                     "TAG or --random SEED")
    return args


def print_list():
    for row in MODEL_ROWS:
        config = config_of_row(row)
        millions = sum(map(product, tensor_shapes(config).values())) / 1e6
        also = f" (also {row.name}{QUICKGELU})" if row.quickgelu else ""
        print(f"{row.name}{also}: {millions:.1f}M parameters, {config['image_size']} pixels")
        for _, tag, quick, repository, extra in (t for t in TAGS if t[0] == row.name):
            print(f"    {tag}: {', '.join(['quick_gelu' if quick else 'gelu', *extra])}, {repository}")


def complain(text):
    """One line on stderr, whatever control characters a hostile file put into a name."""
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
        dtype = next(name for name, code in DTYPES.items() if code == model.dtype)
        print(f"wrote {' and '.join(written)}: {count:,} parameters in {len(model.entries)} tensors, {dtype}")
        for warning in warnings + model.warnings:
            complain(f"warning: {warning}")
        return 0
    except Refused as e:
        complain(e)
        return 2
    except MemoryError:
        complain("out of memory; close other programs")
        return 1
    except BrokenPipeError:  # the reader of --list closed the pipe, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as e:
        complain(f"{str(e.filename or args.output).removesuffix('.part')}: {e.strerror or e}")
        return 2 if isinstance(e, (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError,
                                   PermissionError)) else 1
    except KeyboardInterrupt:
        complain("interrupted; nothing was written")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
