"""The models that dev/convert.py knows: the tables of the C programs (data/schema.json), open_clip's tags,
and configurations as open_clip and Hugging Face write them. A configuration is a dict of the fields in
CONFIG_FIELDS and a name.

"""
import collections
import difflib
import math
import os
import re

import numpy as np

from checkpoints import LARGEST_HEADER, Refused, parse_json, product

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# ---------------------------------------------------------------- the tables of the C programs

def read_schema(path):
    with open(path, "rb") as f:
        return parse_json(f.read(), path)


SCHEMA = read_schema(os.path.join(ROOT, "data", "schema.json"))  # what train_clip --schema prints
CONSTANTS = SCHEMA["constants"]
CONFIG_FIELDS = [(f["type"], f["name"], float(f["low"]), float(f["high"])) for f in SCHEMA["fields"]]
ModelRow = collections.namedtuple("ModelRow", SCHEMA["models"][0])
MODEL_ROWS = [ModelRow(**row) for row in SCHEMA["models"]]
CONFIG_KEYS = {(row["section"], row["key"]): row["may_hold"] for row in SCHEMA["config_keys"]}
HEADER_INTS, NAME_BYTES, ALIGNMENT, CLIP_VOCABULARY = (
    CONSTANTS[name] for name in ("HEADER_INTS", "NAME_BYTES", "WEIGHTS_ALIGNMENT", "CLIP_VOCABULARY"))
INTERPOLATIONS, RESIZE_MODES = ("bicubic", "bilinear"), ("shortest", "squash", "longest")
QUICKGELU = "-quickgelu"

HALF = (0.5, 0.5, 0.5)
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# model, tag, whether its activation is quick_gelu, repository of the model hub, what else differs
TAGS = [(t["model"], t["tag"], t["activation"] == "quick", t["repository"], t["extra"].split())
        for t in SCHEMA["tags"]]


# ---------------------------------------------------------------- configurations

def set_preprocess(config, mean=None, std=None, interpolation=None, resize_mode=None):
    for key, values in (("mean", mean), ("std", std)):
        if values is not None:
            config.update({f"{key}_{channel}": value for channel, value in zip("rgb", values)})
    for key, value, known in (("interpolation", interpolation, INTERPOLATIONS),
                              ("resize_mode", resize_mode, RESIZE_MODES)):
        if value is not None:
            config[key] = known.index(value)


def new_config(**fields):
    """A configuration with open_clip's defaults, the image statistics of OpenAI's data and the fields
    given."""
    config = {name: 0 for _, name, _, _ in CONFIG_FIELDS}
    config.update(ln_pre=1, image_ln_eps=1e-5, text_ln_eps=1e-5, name="")
    set_preprocess(config, OPENAI_MEAN, OPENAI_STD)
    config.update(fields, eot_id=fields["vocab_size"] - 1)
    return config


def check_config(config, where):
    """Refuses what config_check() in clipc/model/weights.h refuses; -> the configuration."""
    for kind, name, low, high in CONFIG_FIELDS:
        value = config[name]
        if not (np.float32(low) <= np.float32(value) <= np.float32(high) if kind == "float"
                else low <= value <= high):
            raise Refused(f"{where}: {name} is {value:g}, allowed are {low:g} to {high:g}")
    c = config
    for wrong, why in ((c["patch_size"] > c["image_size"], "patch_size is larger than image_size"),
                       (c["image_width"] % c["image_heads"], "image_width is not a multiple of image_heads"),
                       (c["text_width"] % c["text_heads"], "text_width is not a multiple of text_heads"),
                       (c["eot_id"] >= c["vocab_size"], "eot_id is outside the vocabulary"),
                       ((c["image_size"] // c["patch_size"]) ** 2 > 1 << 20, "more than 2^20 patches")):
        if wrong:
            raise Refused(f"{where}: {why}")
    return config


def evaluate(expression, sizes):
    """A sum of products of numbers and names, e.g. "grid * grid + 1"."""
    terms = [term.split(" * ") for term in expression.split(" + ")]
    return sum(product(sizes[x] if x in sizes else int(x) for x in factors) for factors in terms)


def is_present(entry, config):
    """Whether a model has this tensor, or this tower."""
    condition = entry.get("present")
    return condition is None or config[condition["field"]] & condition["bits"] == condition["value"]


def tower_sizes(config, tower):
    """The letters of a tower's shapes: C, L, F, E, P, V, T."""
    known = {**config, "grid": config["image_size"] // config["patch_size"]}
    return {letter: evaluate(size, known) for letter, size in tower["sizes"].items()}


def tensor_shapes(config):
    """name -> shape of every tensor, in the order of the file: a tower's tensors, its blocks, the next
    tower."""
    shapes = {}

    def add(name, entry, sizes):
        if is_present(entry, config):
            shapes[name] = tuple(evaluate(size, sizes) for size in entry["shape"])

    def add_tower(name, sizes):
        for entry in SCHEMA["tensors"]:
            if entry["tower"] == name:
                add(entry["key"], entry, sizes)

    for name, tower in SCHEMA["towers"].items():
        if is_present(tower, config):
            sizes = tower_sizes(config, tower)
            add_tower(name, sizes)
            for layer in range(sizes["L"]):
                for entry in SCHEMA["blocks"]:
                    add(f"{tower['prefix']}transformer.resblocks.{layer}.{entry['key']}", entry, sizes)
    add_tower("none", {})
    return shapes


def config_of_row(row, quick=False):
    r = row
    return new_config(
        embed_dim=r.embed_dim, image_size=r.image_size, patch_size=r.patch_size, image_width=r.image_width,
        image_layers=r.image_layers, image_heads=r.image_width // r.head_width,
        image_mlp=int(r.image_width * r.mlp_ratio), text_width=r.text_width, text_heads=r.text_heads,
        text_layers=r.text_layers, text_mlp=4 * r.text_width, context_length=77, vocab_size=CLIP_VOCABULARY,
        quick_gelu=int(quick), name=r.name + QUICKGELU * quick)


def base_name(name):
    """-> the row of the table for a name with or without -quickgelu, whether it had that; None, False for an
    unknown model."""
    name = name.replace("/", "-")
    for row in MODEL_ROWS:
        if name == row.name or (row.quickgelu and name == row.name + QUICKGELU):
            return row, name != row.name
    return None, False


def suggestion(word, known):
    near = difflib.get_close_matches(word, known, 1, 0.3)
    return f"; did you mean {near[0]}?" if near else ""


def is_off(value):
    return value is None or value is False or value in (0, 0.0, "") or value == [] or value == {}


class Json:
    """Typed access to one object of a configuration file; a value of the wrong kind is refused with its
    place."""

    def __init__(self, path, section, value):
        self.path, self.section, self.object = path, section, value
        if not isinstance(value, dict):
            raise Refused(f"{path}: has no {section or 'object at its top'}; give a configuration in "
                          "open_clip's form")

    def refuse(self, key, what):
        raise Refused(f"{self.path}: {self.section}{'.' if self.section else ''}{key} {what}")

    def check_keys(self):
        """Every key is one of CONFIG_KEYS in clipc/model/architectures.h and holds what that allows."""
        for key, value in self.object.items():
            rule = CONFIG_KEYS.get((self.section, key))
            if rule is None:
                self.refuse(key, "is not a known key")
            if (rule == "off" and not is_off(value)) or (rule[0] == "=" and value not in (None, rule[1:])):
                self.refuse(key, "is set: not the plain ViT and causal text transformer that is supported")
        return self

    def get(self, key, fallback, kinds, what):
        value = self.object.get(key)
        if value is None:
            value = fallback
        if value is None:
            self.refuse(key, "is missing")
        if type(value) not in kinds or (type(value) is float and not math.isfinite(value)):
            self.refuse(key, f"must be {what}")
        return value

    def int(self, key, fallback=None):
        value = self.object.get(key)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            return Json(self.path, self.section, {key: value[0]}).int(key)
        if isinstance(value, list):
            self.refuse(key, "is a list: a ResNet; only ViT image towers are supported" if key == "layers"
                        else "must be one number: only square images and patches are supported")
        value = self.get(key, fallback, (int,), "a whole number")
        if not 0 <= value <= 1 << 24:
            self.refuse(key, "is out of range")
        return value

    def number(self, key, fallback):
        return float(self.get(key, fallback, (int, float), "a number"))

    def ratio(self, key):
        value = self.number(key, 4.0)
        if not 0 < value <= 64:
            self.refuse(key, "must be above 0 and at most 64")
        return value

    def choice(self, key, known):
        value = self.object.get(key)
        if value is not None and value not in known:
            self.refuse(key, f"must be one of {', '.join(known)}")
        return value

    def triple(self, key):
        value = self.object.get(key)
        if value is not None and (not isinstance(value, list) or len(value) != 3
                                  or not all(type(x) in (int, float) and math.isfinite(x) for x in value)):
            self.refuse(key, "must be three numbers")
        return value

    def ln_eps(self):
        value = self.object.get("norm_kwargs")
        if is_off(value):
            return 1e-5
        if not isinstance(value, dict) or set(value) != {"eps"}:
            self.refuse("norm_kwargs", "may hold eps only")
        return Json(self.path, self.section + ".norm_kwargs", value).number("eps", 1e-5)


def written_name(data):
    """The model's name, which files written by exports.py hold."""
    name = data.get("name") if isinstance(data, dict) else None
    return name if isinstance(name, str) else ""


class Known:
    """A configuration, whether its activation is quick_gelu (None: unknown), and where both come from."""

    def __init__(self, config, quick, source):
        self.config, self.quick, self.source = config, quick, source


def open_clip_config(path, data):
    """open_clip's model configuration, or the hub's {model_cfg, preprocess_cfg}."""
    hub = isinstance(data, dict) and "model_cfg" in data
    top = Json(path, "", data["model_cfg"] if hub else data).check_keys()
    image, text = (Json(path, section, top.object.get(section)).check_keys()
                   for section in ("vision_cfg", "text_cfg"))
    width, text_width = image.int("width", 768), text.int("width", 512)
    head_width = image.int("head_width", 64)
    config = new_config(embed_dim=top.int("embed_dim"), image_size=image.int("image_size", 224),
                        patch_size=image.int("patch_size", 16), image_width=width,
                        image_layers=image.int("layers", 12),
                        image_heads=width // head_width if head_width else 0,
                        image_mlp=int(width * image.ratio("mlp_ratio")),
                        context_length=text.int("context_length", 77),
                        vocab_size=text.int("vocab_size", CLIP_VOCABULARY), text_width=text_width,
                        text_layers=text.int("layers", 12), text_heads=text.int("heads", 8),
                        text_mlp=int(text_width * text.ratio("mlp_ratio")),
                        ln_pre=int(not image.get("no_ln_pre", False, (bool,), "true or false")),
                        name=written_name(data), image_ln_eps=image.ln_eps(), text_ln_eps=text.ln_eps(),
                        quick_gelu=int(top.get("quick_gelu", False, (bool,), "true or false")))
    if hub and not is_off(data.get("preprocess_cfg")):
        look = Json(path, "preprocess_cfg", data["preprocess_cfg"])
        if not is_off(look.object.get("fill_color")):
            look.refuse("fill_color", "must be 0")
        set_preprocess(config, look.triple("mean"), look.triple("std"),
                       look.choice("interpolation", INTERPOLATIONS), look.choice("resize_mode", RESIZE_MODES))
    return Known(check_config(config, path), bool(config["quick_gelu"]), path)


# Hugging Face's own defaults: its older files leave out the values that equal them
HF_DEFAULTS = {"vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                                 "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
                                 "num_channels": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
               "text_config": {"vocab_size": CLIP_VOCABULARY, "hidden_size": 512, "intermediate_size": 2048,
                               "num_hidden_layers": 12, "num_attention_heads": 8,
                               "max_position_embeddings": 77, "hidden_act": "quick_gelu",
                               "layer_norm_eps": 1e-5}}


def hf_config(path, data):
    """Hugging Face's CLIPConfig, with the image processor's file in the same folder. eos_token_id is not
    used: older files have a wrong one."""
    if data.get("model_type", "clip") != "clip":
        raise Refused(f"{path}: a model of type {data['model_type']}; supported are clip, and vit as an "
                      "image tower")
    parts = {}
    for section, defaults in HF_DEFAULTS.items():
        given = {}
        for name in (section, section + "_dict"):  # the older name; it wins where a file has both
            given.update({k: v for k, v in Json(path, name, data.get(name) or {}).object.items()
                          if v is not None})
        parts[section] = Json(path, section, {**defaults, **given})
        parts[section].choice("hidden_act", ("quick_gelu", "gelu"))
    image, text = parts["vision_config"], parts["text_config"]
    if image.int("num_channels") != 3:
        image.refuse("num_channels", "must be 3")
    if image.object["hidden_act"] != text.object["hidden_act"]:
        text.refuse("hidden_act", "differs from that of vision_config; both towers must have the same")
    quick = image.object["hidden_act"] == "quick_gelu"
    config = new_config(embed_dim=Json(path, "", data).int("projection_dim", 512),
                        image_size=image.int("image_size"), patch_size=image.int("patch_size"),
                        image_width=image.int("hidden_size"), image_layers=image.int("num_hidden_layers"),
                        image_heads=image.int("num_attention_heads"),
                        image_mlp=image.int("intermediate_size"),
                        context_length=text.int("max_position_embeddings"), vocab_size=text.int("vocab_size"),
                        text_width=text.int("hidden_size"), text_layers=text.int("num_hidden_layers"),
                        text_heads=text.int("num_attention_heads"), text_mlp=text.int("intermediate_size"),
                        image_ln_eps=image.number("layer_norm_eps", 1e-5),
                        text_ln_eps=text.number("layer_norm_eps", 1e-5), quick_gelu=int(quick),
                        name=written_name(data))
    processor = os.path.join(os.path.dirname(path), "preprocessor_config.json")
    if os.path.isfile(processor):
        hf_preprocess(config, processor)
    return Known(check_config(config, path), quick, path)


def hf_preprocess(config, path, crops=True):
    """Sets the preprocessing by the image processor's file; crops: the default of do_center_crop."""
    look = Json(path, "", load_json(path))
    if look.object.get("do_normalize", True):
        set_preprocess(config, look.triple("image_mean"), look.triple("image_std"))
    else:
        set_preprocess(config, (0, 0, 0), (1, 1, 1))
    if look.object.get("resample") is not None:
        if look.object["resample"] not in (2, 3):
            look.refuse("resample", "must be 2 (bilinear) or 3 (bicubic)")
        set_preprocess(config, interpolation="bilinear" if look.object["resample"] == 2 else "bicubic")
    size = look.object.get("size")
    to_square = (not look.object.get("do_center_crop", crops)
                 and (not crops or isinstance(size, dict) and "height" in size))
    # to the model's image_size, as open_clip does
    set_preprocess(config, resize_mode="squash" if to_square else "shortest")


def load_json(path):
    with open(path, "rb") as f:
        return parse_json(f.read(LARGEST_HEADER), path)


def is_hf(data):
    return isinstance(data, dict) and bool({"model_type", "vision_config", "vision_config_dict"} & set(data))


def is_timm(data):
    return (isinstance(data, dict) and isinstance(data.get("architecture"), str)
            and bool({"pretrained_cfg", "num_classes"} & set(data)))


def is_vit_config(data):
    return is_timm(data) or (isinstance(data, dict) and "model_type" in data and data["model_type"] != "clip")


def is_clip_config(data):
    """Whether a JSON file describes a CLIP at all: any program may have a config.json."""
    return is_hf(data) or (isinstance(data, dict)
                           and bool({"model_cfg", "vision_cfg", "text_cfg"} & set(data)))


def load_config(path):
    data = load_json(path)
    return hf_config(path, data) if is_hf(data) else open_clip_config(path, data)


def load_model_argument(name):
    """--model: a name of the table, or a configuration file. quick is None for a name without -quickgelu."""
    row, quick = base_name(name)
    if row:
        return Known(config_of_row(row, quick), True if quick else None, f"--model {name}")
    if not os.path.isfile(name):
        raise Refused(f"--model {name}: no such model, and no such "
                      f"file{suggestion(name, [row.name for row in MODEL_ROWS])} (--list shows all)")
    known = load_config(name)
    known.config["name"] = re.sub(r"\.json$", "", os.path.basename(name))
    return known


SAME_SHAPES = ("embed_dim", "patch_size", "image_width", "image_layers", "image_mlp", "context_length",
               "vocab_size", "text_width", "text_layers", "text_mlp")


def similar_row(config):
    """The row of the table that has this configuration's shapes, if any."""
    for row in MODEL_ROWS:
        c = config_of_row(row)
        if (all(c[k] == config[k] for k in SAME_SHAPES)
            and c["image_size"] // c["patch_size"] == config["image_size"] // config["patch_size"]):
            return row
    return None


def shape_of(checkpoint, name, ndim):
    if name not in checkpoint.entries:
        raise Refused(f"{checkpoint.path}: {name} is missing: incomplete, or not a CLIP with a ViT image "
                      "tower and a text transformer in a known form")
    shape = checkpoint.entries[name].shape
    if len(shape) != ndim:
        raise Refused(f"{checkpoint.path}: {name} has {len(shape)} dimensions instead of {ndim}")
    return shape


def layers_of(checkpoint, prefix):
    """-> number of blocks of a tower, width of their MLP."""
    numbers = [int(m[1]) for m in (re.match(rf"{re.escape(prefix)}transformer\.resblocks\.(\d{{1,4}})\.",
                                            name) for name in checkpoint.entries) if m]
    return (1 + max(numbers, default=-1),
            shape_of(checkpoint, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0])


def image_fields(checkpoint):
    """The fields of an image tower that shapes determine: all but its heads. image_size is a multiple of
    the patch size; pixels beyond the last whole patch do not show."""
    width, _, patch, _ = shape_of(checkpoint, "visual.conv1.weight", 4)
    positions = shape_of(checkpoint, "visual.positional_embedding", 2)[0]
    grid = math.isqrt(max(positions - 1, 0))
    if grid < 1 or grid * grid != positions - 1:
        raise Refused(f"{checkpoint.path}: {positions} positions are not a square and a class token; give "
                      "--model NAME or --model config.json")
    layers, mlp = layers_of(checkpoint, "visual.")
    return {"image_size": grid * patch, "patch_size": patch, "image_width": width, "image_layers": layers,
            "image_mlp": mlp}


def usual_head_width(width):
    return next((row.head_width for row in MODEL_ROWS if row.image_width == width), 64)


def config_from_shapes(checkpoint):
    """The architecture by the shapes of the tensors. The number of heads does not show in them: it is that
    of the known model with these shapes; else heads are 64 wide, as in OpenAI's models and in all text
    towers, and those of an image tower are as wide as in a known model of its width."""
    where, image = checkpoint.path, image_fields(checkpoint)
    vocab, text_width = shape_of(checkpoint, "token_embedding.weight", 2)
    layers, mlp = layers_of(checkpoint, "")
    config = new_config(embed_dim=shape_of(checkpoint, "text_projection", 2)[1],
                        context_length=shape_of(checkpoint, "positional_embedding", 2)[0], vocab_size=vocab,
                        text_width=text_width, text_layers=layers, text_mlp=mlp, **image)
    if "input_resolution" in checkpoint.facts:
        config["image_size"] = checkpoint.facts["input_resolution"]  # OpenAI's files state it
    row, width = similar_row(config), config["image_width"]
    head_width = 64 if checkpoint.openai else usual_head_width(width)
    if row is None and (width % head_width or text_width % 64):
        raise Refused(f"{where}: the shapes do not determine the number of heads (widths {width} and "
                      f"{text_width}); give --model NAME or --model config.json")
    config.update(image_heads=width // head_width, text_heads=text_width // 64)
    return Known(check_config(config, where), None, "the shapes of the tensors")


# ---------------------------------------------------------------- ImageNet ViTs

def timm_facts(path, data):
    """The fields in timm's config.json that shapes do not determine."""
    args, look = (Json(path, section, data.get(section) or {})
                  for section in ("model_args", "pretrained_cfg"))
    look = look if look.object else Json(path, "", data)  # older files have these keys at the top
    for key in ("act_layer", "norm_layer", "block_fn", "mlp_layer"):
        if not is_off(args.object.get(key)):
            args.refuse(key, "is set: not the plain ViT that is supported")
    if data.get("global_pool") not in (None, "", "token"):
        Json(path, "", data).refuse("global_pool", "must be token: the class token's features are taken")
    facts = {"quick_gelu": int("quickgelu" in data["architecture"]),
             "name": ".".join(filter(None, (data["architecture"], written_tag(look))))}
    if args.object.get("num_heads") is not None:
        facts["image_heads"] = args.int("num_heads")
    size = look.object.get("input_size")
    if isinstance(size, list) and len(size) == 3:
        facts["image_size"] = Json(path, look.section, {"input_size": size[1:]}).int("input_size")
    modes = {"center": "shortest", "squash": "squash", "border": "longest"}
    mode = look.choice("crop_mode", modes)
    set_preprocess(facts, look.triple("mean"), look.triple("std"),
                   look.choice("interpolation", INTERPOLATIONS), mode and modes[mode])
    return facts


def written_tag(look):
    tag = look.object.get("tag")
    return tag if isinstance(tag, str) else ""


def hf_vit_facts(path, data):
    """The fields that shapes do not determine, in Hugging Face's config.json of a ViT and the image
    processor's file in the same folder. Defaults are ViTConfig's."""
    look = Json(path, "", data)
    quick = (look.choice("hidden_act", ("gelu", "quick_gelu")) or "gelu") == "quick_gelu"
    facts = {"image_size": look.int("image_size", 224), "image_heads": look.int("num_attention_heads", 12),
             "image_ln_eps": look.number("layer_norm_eps", 1e-12), "quick_gelu": int(quick)}
    set_preprocess(facts, None, None, "bilinear", "squash")
    processor = os.path.join(os.path.dirname(path), "preprocessor_config.json")
    if os.path.isfile(processor):
        hf_preprocess(facts, processor, crops=False)
    return facts


def vit_config(checkpoint, path, given):
    """The configuration of an image tower without a text tower. Heads, LayerNorm's eps, activation and
    preprocessing come from config.json at `path` (None: what timm's ViTs have in common), the rest from
    the shapes. The text tower's fields, which have no effect, are those of --model, or of ViT-B-32.
    -> Known, and whether a file gives mean and std."""
    data = load_json(path) if path else {}
    facts = timm_facts(path, data) if is_timm(data) else hf_vit_facts(path, data) if path else {}
    fields, shapes = image_fields(checkpoint), checkpoint.entries
    config = dict(given.config) if given else config_of_row(base_name("ViT-B-32")[0])
    config.update(fields, ln_pre=int("visual.ln_pre.weight" in shapes),
                  patch_bias=int("visual.conv1.bias" in shapes), quick_gelu=0, name="",
                  absent=CONSTANTS["ABSENT_TEXT"] | CONSTANTS["ABSENT_IMAGE_PROJ"])
    width = fields["image_width"]
    head_width = (given.config["image_width"] // given.config["image_heads"] if given
                  else usual_head_width(width))
    if "image_heads" not in facts and width % head_width:
        raise Refused(f"{checkpoint.path}: the shapes do not determine the number of heads (width "
                      f"{width}); put timm's config.json with model_args.num_heads into its folder, or "
                      "give --model config.json with the same head_width")
    # timm's CLIPs have torch's eps, its others 1e-6
    config.update(image_heads=width // head_width, image_ln_eps=1e-5 if config["ln_pre"] else 1e-6)
    set_preprocess(config, HALF, HALF, "bicubic", "shortest")
    config.update(facts)
    return (Known(check_config(config, path or checkpoint.path), None, path or "the shapes of the tensors"),
            "mean_r" in facts)
