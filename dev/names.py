"""Names of tensors in open_clip, Hugging Face and timm. Ours are open_clip's, which are also OpenAI's."""
import re
import typing

import numpy as np

from checkpoints import WEIGHT_DTYPES, Entry, Refused, product


class Form(typing.NamedTuple):
    """How another library names and lays out the tensors; every table is ours -> theirs."""
    plain: dict            # outside of the blocks
    towers: dict           # our tower -> the prefix of its blocks
    block: dict            # layers of a block; three names: query, key and value apart
    transposed: tuple = () # stored transposed there
    batched: dict = {}     # with leading axes of size 1 there: how many axes they have here
    heads: tuple = ()      # prefixes of what follows the tower and is not wanted


def layer(ours, theirs):
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}


VIT_BATCHED = {"visual.class_embedding": 1, "visual.positional_embedding": 2}
HF_CLIP = Form(plain={"visual.class_embedding": "vision_model.embeddings.class_embedding",
                      "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
                      "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
                      **layer("visual.ln_pre", "vision_model.pre_layrnorm"),
                      **layer("visual.ln_post", "vision_model.post_layernorm"),
                      "visual.proj": "visual_projection.weight",
                      "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
                      "positional_embedding": "text_model.embeddings.position_embedding.weight",
                      **layer("ln_final", "text_model.final_layer_norm"),
                      "text_projection": "text_projection.weight", "logit_scale": "logit_scale"},
               towers={"visual.": "vision_model.encoder.layers.", "": "text_model.encoder.layers."},
               block={"ln_1": "layer_norm1", "ln_2": "layer_norm2",
                      "attn.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                      "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"},
               transposed=("visual.proj", "text_projection"))  # their spelling
TIMM_VIT = Form(plain={"visual.class_embedding": "cls_token", "visual.positional_embedding": "pos_embed",
                       **layer("visual.conv1", "patch_embed.proj"), **layer("visual.ln_pre", "norm_pre"),
                       **layer("visual.ln_post", "norm")}, towers={"visual.": "blocks."},
                block={"ln_1": "norm1", "ln_2": "norm2", "attn.in_proj": "attn.qkv",
                       "attn.out_proj": "attn.proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"},
                batched=VIT_BATCHED, heads=("head.", "pre_logits."))
HF_VIT = Form(plain={"visual.class_embedding": "embeddings.cls_token",
                     "visual.positional_embedding": "embeddings.position_embeddings",
                     **layer("visual.conv1", "embeddings.patch_embeddings.projection"),
                     **layer("visual.ln_post", "layernorm")}, towers={"visual.": "encoder.layer."},
              block={"ln_1": "layernorm_before", "ln_2": "layernorm_after",
                     "attn.in_proj": tuple(f"attention.attention.{x}" for x in ("query", "key", "value")),
                     "attn.out_proj": "attention.output.dense", "mlp.c_fc": "intermediate.dense",
                     "mlp.c_proj": "output.dense"}, batched=VIT_BATCHED,
              heads=("pooler.", "classifier.", "embeddings.mask_token"))
HF_VIT_5 = HF_VIT._replace(  # the model's own names since transformers 5, which still saves the older ones
    towers={"visual.": "layers."},
    block={**HF_VIT.block, "attn.in_proj": tuple(f"attention.{x}_proj" for x in "qkv"),
           "attn.out_proj": "attention.o_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"})

# no parameters; older versions of transformers and OpenAI's files hold them
CONSTANT_TENSORS = ("position_ids", "attn_mask")
OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")
BLOCK = "transformer.resblocks."


def block_keys(form):
    """The tensors of a block, theirs -> ours, and which third of in_proj each is (None: the whole tensor)."""
    keys = {}
    for ours, theirs in form.block.items():
        for kind in ("weight", "bias"):
            key = f"{ours}{'_' if ours == 'attn.in_proj' else '.'}{kind}"
            if isinstance(theirs, tuple):
                keys.update({f"{name}.{kind}": (key, third) for third, name in enumerate(theirs)})
            else:
                keys[f"{theirs}.{kind}"] = (key, None)
    return keys


# ---------------------------------------------------------------- to ours

def transposed(entry):
    return Entry(entry.dtype, entry.shape[::-1], lambda: entry.read().T)


def stacked(entries):
    """Several tensors one below the other."""
    def read():
        first = entries[0]
        out, row = np.empty((first.shape[0] * len(entries), *first.shape[1:]),
                            WEIGHT_DTYPES.get(first.dtype, "<i8")), 0
        for e in entries:
            out[row:row + e.shape[0]] = e.read()
            row += e.shape[0]
        return out
    return Entry(entries[0].dtype, (sum(e.shape[0] for e in entries), *entries[0].shape[1:]), read)


def last_axes(entry, ndim, name, path):
    """The same numbers with `ndim` axes; leading ones of size 1 are dropped."""
    extra = len(entry.shape) - ndim
    if extra < 0 or product(entry.shape[:extra]) != 1:
        raise Refused(f"{path}: {name} has shape {list(entry.shape)}, its first size must be 1")
    return Entry(entry.dtype, entry.shape[extra:], lambda: entry.read().reshape(entry.shape[extra:]))


def joined(names, left, path):
    """Query, key and value, taken out of `left`, as one tensor."""
    parts = [left.pop(n, None) for n in names]
    if None in parts:
        raise Refused(f"{path}: {names[parts.index(None)]} is missing")
    if len({(p.dtype, p.shape) for p in parts}) > 1 or not parts[0].shape:
        raise Refused(f"{path}: {', '.join(names)} differ in shape or type")
    return stacked(parts)


def to_ours(entries, form, path):
    """Entries named as in `form`, with our names. Those without a counterpart keep their names; heads are
    dropped."""
    left, out, keys = ({n: e for n, e in entries.items() if not n.startswith(form.heads or "\0")}, {},
                       block_keys(form))
    for ours, theirs in form.plain.items():
        if theirs in left:
            entry = left.pop(theirs)
            out[ours] = (transposed(entry) if ours in form.transposed
                         else last_axes(entry, form.batched[ours], theirs, path) if ours in form.batched
                         else entry)
    for tower, prefix in form.towers.items():
        for name in list(left):
            match = re.fullmatch(rf"({re.escape(prefix)}\d+\.)(.+)", name)
            if not match or match[2] not in keys or name not in left:
                continue
            key, third = keys[match[2]]
            thirds = [match[1] + n for n, k in keys.items() if k[0] == key]
            ours = f"{tower}{BLOCK}{match[1][len(prefix):]}{key}"
            out[ours] = left.pop(name) if third is None else joined(thirds, left, path)
    for name in left:
        if name in out:
            raise Refused(f"{path}: {name} is present in two forms")
    return {**out, **left}


def fact(entry):
    """One of OPENAI_FACTS: a whole number in a tensor."""
    return entry.read().item() if entry.dtype.startswith("I") and product(entry.shape) == 1 else None


def vit_form(entries):
    """-> for an ImageNet ViT its entries without a wrapper's prefix, and their form; else None, None."""
    if "patch_embed.proj.weight" in entries:
        return entries, TIMM_VIT
    for prefix in ("", "vit."):
        if f"{prefix}embeddings.patch_embeddings.projection.weight" in entries:
            entries = {n[len(prefix):] if n.startswith(prefix) else n: e for n, e in entries.items()}
            return entries, HF_VIT_5 if any(n.startswith("layers.") for n in entries) else HF_VIT
    return None, None


def normalise(checkpoint):
    """Renames the entries of a checkpoint to ours: wrappers' prefixes, Hugging Face's and timm's names,
    `text.` of open_clip's CustomTextCLIP. Sets checkpoint.facts (OpenAI's three numbers),
    checkpoint.openai, and checkpoint.vit (the Form of an ImageNet ViT, else None)."""
    entries, path = {name: e for name, e in checkpoint.entries.items()
                     if name.split(".")[-1] not in CONSTANT_TENSORS}, checkpoint.path
    for prefix in ("module.", "_orig_mod.", "module."):
        if entries and all(name.startswith(prefix) for name in entries):
            entries = {name[len(prefix):]: e for name, e in entries.items()}
    tower, checkpoint.vit = vit_form(entries)
    if checkpoint.vit:
        entries = to_ours(tower, checkpoint.vit, path)
    elif any(name.startswith(("vision_model.", "text_model.")) for name in entries):
        entries = to_ours(entries, HF_CLIP, path)
    for name in [n for n in entries if n.startswith("text.")]:
        if name[len("text."):] in entries:
            raise Refused(f"{path}: holds both {name} and {name[len('text.'):]}")
        entries[name[len("text."):]] = entries.pop(name)
    facts = {name: fact(entries.pop(name)) for name in OPENAI_FACTS if name in entries}
    types = checkpoint.module_types
    checkpoint.entries, checkpoint.facts = entries, {k: v for k, v in facts.items() if v is not None}
    checkpoint.openai = ("QuickGELU" in types or ("GELU" not in types) if types is not None
                         else len(facts) == len(OPENAI_FACTS))
    return checkpoint


# ---------------------------------------------------------------- from ours

def third_of(entry, third):
    rows = entry.shape[0] // 3
    return Entry(entry.dtype, (rows, *entry.shape[1:]), lambda: entry.read()[third * rows:(third + 1) * rows])


def from_ours(entries, form):
    """The inverse of to_ours() for a whole model (Hugging Face's CLIP)."""
    out, keys = {}, block_keys(form)
    for name, entry in entries.items():
        if name in form.plain:
            out[form.plain[name]] = transposed(entry) if name in form.transposed else entry
            continue
        tower, place = name.split(BLOCK)
        number, ours = place.split(".", 1)
        for theirs, (key, third) in keys.items():
            if key == ours:
                whole = third is None
                out[f"{form.towers[tower]}{number}.{theirs}"] = entry if whole else third_of(entry, third)
    return out
