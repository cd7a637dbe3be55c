#!/usr/bin/env python3
"""Tests of what dev/convert.py writes for other programs (open_clip, transformers, OpenAI's readers), and
of ImageNet ViTs as image towers: conversion, and LiT training on them by train_clip. `make parity` reads
the same files with those programs themselves. BIN= names the folder of train_clip.

"""
import json
import math
import os
import pickle
import pickletools
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np

import checkpoint_files
from checkpoint_files import (CONFIG, ROOT, bf16_bits, check, convert, convert_and_expect, expect_packed,
                              hf_tensors, put, refused, run, shapes, tensors, torch_zip, weights,
                              write_safetensors)
import models
import packed as packed_form

PROGRAM = os.path.join(ROOT, os.environ.get("BIN", ""), "train_clip")
OPENAI_SHAPES = {"E": 9, "P": 5, "C": 128, "T": 5, "F": 512, "L": 1, "V": 30, "W": 64, "N": 6, "G": 256}


def data(path):
    with open(path, "rb") as f:
        return f.read()


def exported(path, form, *options, output="out"):
    """-> exit code, warnings."""
    shutil.rmtree(output, ignore_errors=True)
    code, _, err = run(path, "-o", output, "--format", form, *options)
    return code, err


def read_all(path):
    return {name: e for name, e in convert.open_checkpoint(path).entries.items()}


# ---------------------------------------------------------------- exports

def make_tiny(quick=False, dtype="fp32", **image):
    put("config.json", {**CONFIG, "quick_gelu": quick, "vision_cfg": {**CONFIG["vision_cfg"], **image},
                        "text_cfg": {**CONFIG["text_cfg"], "norm_kwargs": {"eps": 1e-6}}})
    w = weights(8)
    write_safetensors("x.safetensors", w)
    code, _, err = run("x.safetensors", "-o", "tiny.bin", "--dtype", dtype)
    check(code == 0, err)
    return w


def test_every_format_comes_back_byte_for_byte():
    """Every form, activation and number format: forth and back, the same bytes, the name included."""
    for quick in (False, True):
        for dtype in ("fp32", "bf16"):
            make_tiny(quick, dtype)
            for form in ("open_clip", "hf", "openai-state"):
                code, err = exported("tiny.bin", form)
                again, _, more = run("out", "-o", "again.bin", "--dtype", dtype)
                check(code == again == 0 and data("tiny.bin") == data("again.bin"),
                      f"{form}, {dtype}, quick {quick}: {err}{more}")
            for dtype_out, code_out in (("fp32", "F32"), ("bf16", "BF16"), ("fp16", "F16")):
                for form, file in (("open_clip", "open_clip_model.safetensors"), ("hf", "model.safetensors")):
                    code, err = exported("tiny.bin", form, "--dtype", dtype_out)
                    check(code == 0 and {e.dtype for e in read_all(f"out/{file}").values()} == {code_out},
                          f"{form} in {dtype_out}: {err}")
    refused(["tiny.bin", "--dtype", "fp16"], "fp32 or bf16", "fp16 in a .bin")
    check(exported("tiny.bin", "hf", output="new/folder")[0] == 0, "the folder is made with those above it")
    code, _, err = run("tiny.bin", "-o", "x.safetensors", "--format", "hf")
    check(code == 2 and "x.safetensors" in err and os.path.isfile("x.safetensors"),
          f"a file where the folder should be: {err}")


def test_fp16_is_written_where_it_is_asked_for():
    w = make_tiny()
    w["visual.proj"][:2, 0] = [65519, -65519]
    write_safetensors("x.safetensors", w)
    run("x.safetensors", "-o", "tiny.bin")
    exported("tiny.bin", "open_clip", "--dtype", "fp16")
    back = read_all("out/open_clip_model.safetensors")
    check(all(np.array_equal(e.read(), np.reshape(w[n], e.shape).astype("<f2")) for n, e in back.items()),
          "fp16 is rounded as numpy rounds")
    exported("tiny.bin", "hf", "--dtype", "bf16")
    back = read_all("out/model.safetensors")
    check(np.array_equal(back["visual_projection.weight"].read(), bf16_bits(w["visual.proj"].T.copy())),
          "bf16, transposed")
    w["visual.proj"][1, 0] = 65520
    write_safetensors("x.safetensors", w)
    run("x.safetensors", "-o", "tiny.bin")
    for form in ("open_clip", "hf", "openai-state"):
        place = "visual_projection.weight[0][1]" if form == "hf" else "visual.proj[1][0]"
        refused(["tiny.bin", "--format", form, "--dtype", "fp16"], place + " is 65520, too large for F16",
                f"{form}: beyond fp16", "no")


def test_the_folder_is_as_hugging_face_reads_it():
    w = make_tiny(quick=True)
    code, err = exported("tiny.bin", "hf")
    check(code == 0 and "no tokenizer" in err, f"a small vocabulary has no tokenizer: {err}")
    theirs = {n: v for n, v in hf_tensors(w).items() if not n.endswith("position_ids")}
    back = read_all("out/model.safetensors")
    check(set(back) == set(theirs) and back["logit_scale"].shape == (), "names")
    check(all(back[n].shape == np.shape(v) and back[n].read().tobytes() == np.ascontiguousarray(v).tobytes()
              for n, v in theirs.items()), "tensors")
    c, p = (json.loads(data(f"out/{name}.json")) for name in ("config", "preprocessor_config"))
    check(c["vision_config"]["hidden_act"] == c["text_config"]["hidden_act"] == "quick_gelu"
          and c["text_config"]["eos_token_id"] == 18, "config.json")
    check(c["vision_config"]["layer_norm_eps"] == 1e-5 and c["text_config"]["layer_norm_eps"] == 1e-6
          and c["projection_dim"] == 7, "eps of each tower")
    check(p["size"] == {"shortest_edge": 11} and p["crop_size"] == {"height": 11, "width": 11}
          and p["resample"] == 3, "image processor")
    packed = convert.open_packed("tiny.bin")
    packed.config.update(resize_mode=1, interpolation=1)
    packed_form.write_packed(packed_form.Model("x", packed.config, packed.entries, None, "F32"), "squash.bin")
    exported("squash.bin", "hf")
    p = json.loads(data("out/preprocessor_config.json"))
    check(p["size"] == {"height": 11, "width": 11} and p["do_center_crop"] is False and p["resample"] == 2,
          "an image processor that squashes")
    check(run("out", "-o", "again.bin")[0] == 0 and data("again.bin") == data("squash.bin"),
          "squash comes back")
    packed.config["resize_mode"] = 2
    packed_form.write_packed(packed_form.Model("x", packed.config, packed.entries, None, "F32"),
                             "longest.bin")
    refused(["longest.bin", "--format", "hf"], "longest side", "what CLIPImageProcessor cannot", "no")
    packed.config.update(resize_mode=0, eot_id=3)
    packed_form.write_packed(packed_form.Model("x", packed.config, packed.entries, None, "F32"), "eot.bin")
    for form in ("hf", "open_clip", "openai-state"):
        refused(["eot.bin", "--format", form], "end of text", f"{form}: another end of text", "no")


class Unpickler(pickle.Unpickler):
    """Python's own, which knows nothing of convert.py: -> name -> (storage class, key, count), offset,
    shape, strides."""

    def find_class(self, module, name):
        known = {("torch._utils", "_rebuild_tensor_v2"): lambda *a: a, ("collections", "OrderedDict"): dict}
        return known[module, name] if (module, name) in known else f"{module}.{name}"

    def persistent_load(self, pid):
        return pid


OPENAI_ORDER = """positional_embedding text_projection logit_scale input_resolution context_length vocab_size
    visual.class_embedding visual.positional_embedding visual.proj visual.conv1.weight visual.ln_pre.weight
    visual.ln_pre.bias {visual.} visual.ln_post.weight visual.ln_post.bias {}
    token_embedding.weight ln_final.weight ln_final.bias"""
OPENAI_BLOCK = ("attn.in_proj_weight attn.in_proj_bias attn.out_proj.weight attn.out_proj.bias ln_1.weight "
                "ln_1.bias mlp.c_fc.weight mlp.c_fc.bias mlp.c_proj.weight mlp.c_proj.bias ln_2.weight "
                "ln_2.bias")


def expected_order():
    out = []
    for name in OPENAI_ORDER.split():
        out += ([f"{name[1:-1]}transformer.resblocks.0.{key}" for key in OPENAI_BLOCK.split()]
                if name[0] == "{" else [name])
    return out


def is_half(name):
    return ("ln_" not in name and "embedding" not in name
            and name not in ("logit_scale", "input_resolution", "context_length", "vocab_size"))


def make_openai(half):
    w = weights(5, of=shapes(**OPENAI_SHAPES))
    w = {k: v.astype("<f2").astype("<f4") if half and is_half(k) else v for k, v in w.items()}
    torch_zip("x.pt", tensors(w))
    if os.path.exists("config.json"):
        os.unlink("config.json")  # of another model
    check(run("x.pt", "-o", "openai.bin", "--force-quick-gelu")[0] == 0, "a model of OpenAI's kind")
    return w


def test_the_state_dict_is_as_openai_wrote_it():
    for half in (True, False):
        w = make_openai(half)
        for asked in ([], ["--dtype", "fp16"]):
            code, err = exported("openai.bin", "openai-state", *asked)
            check(code == 0 and not err
                  and sorted(os.listdir("out")) == ["open_clip_config.json", "openai_state_dict.pt"],
                  f"a folder: {err}")
            with zipfile.ZipFile("out/openai_state_dict.pt") as z:
                check(z.testzip() is None and z.read("archive/version") == b"3\n"
                      and z.read("archive/byteorder") == b"little", "a whole torch zip")
                state = Unpickler(z.open("archive/data.pkl")).load()
                pickletools.dis(z.read("archive/data.pkl"), open(os.devnull, "w"))
                check(list(state) == expected_order(), "OpenAI's order of keys")
                for name, (storage, offset, shape, strides, grad, hooks) in state.items():
                    narrow = is_half(name) and (half or asked)
                    kind = {"Half": "<f2", "Float": "<f4", "Long": "<i8"}[storage[1].split(".")[1][:-7]]
                    array = np.frombuffer(z.read("archive/data/" + storage[2]), kind)
                    facts = {"input_resolution": 10, "context_length": 6, "vocab_size": 30}
                    want = np.asarray(facts.get(name, w.get(name)))
                    check(storage[0] == "storage" and storage[3] == "cpu" and array.size == storage[4]
                          and offset == 0 and not grad and not hooks, name)
                    check(array.dtype == ("<i8" if name not in w else "<f2" if narrow else "<f4")
                          and shape == want.shape, f"{name}: type, shape")
                    check(np.array_equal(array.reshape(shape), want.astype(array.dtype))
                          and strides == tuple(s // want.itemsize for s in want.strides), name)
                for info in z.infolist():
                    with open("out/openai_state_dict.pt", "rb") as f:
                        f.seek(info.header_offset + 26)
                        at = info.header_offset + 30 + sum(struct.unpack("<HH", f.read(4)))
                    check("data/" not in info.filename or at % 64 == 0,
                          f"{info.filename}: numbers at a multiple of 64")
            if half or not asked:
                check(run("out", "-o", "again.bin")[0] == 0
                      and data("again.bin")[1024:] == data("openai.bin")[1024:], "comes back")
        check(exported("openai.bin", "openai-state", output="alone.pt")[0] == 0
              and os.path.isfile("alone.pt"), "a file alone")
        convert_and_expect(["alone.pt"], w, "known by itself", quick_gelu=1, image_heads=2, image_size=10)
    w = make_tiny()
    code, err = exported("tiny.bin", "openai-state")
    check(code == 0 and "readers assume" in err and "quick_gelu" in err and "heads of 64" in err,
          f"another kind of model is reported: {err}")
    check("input_resolution" not in read_all("out/openai_state_dict.pt"),
          "and the file is not taken for one of OpenAI's")
    w = make_openai(True)
    code, err = exported("openai.bin", "openai-state", "--dtype", "bf16")
    check(code == 0
          and {e.dtype for n, e in read_all("out/openai_state_dict.pt").items() if n in w} == {"BF16"},
          f"bf16: {err}")


# ---------------------------------------------------------------- ImageNet ViTs

# 23 pixels in patches of 5 (3 are left over), 36 wide, 3 heads, MLP of 50, 2 layers
SIZE, PATCH, WIDTH, HEADS, HIDDEN, LAYERS = 23, 5, 36, 3, 50, 2
GRID = SIZE // PATCH


def timm_shapes(norm_pre=False):
    block = {"norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH),
             "attn.qkv.bias": (3 * WIDTH,), "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
             "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,), "mlp.fc1.weight": (HIDDEN, WIDTH),
             "mlp.fc1.bias": (HIDDEN,), "mlp.fc2.weight": (WIDTH, HIDDEN), "mlp.fc2.bias": (WIDTH,)}
    first = ({"norm_pre.weight": (WIDTH,), "norm_pre.bias": (WIDTH,)} if norm_pre
             else {"patch_embed.proj.bias": (WIDTH,)})
    return {"cls_token": (1, 1, WIDTH), "pos_embed": (1, GRID * GRID + 1, WIDTH),
            "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), **first,
            **{f"blocks.{i}.{key}": shape for i in range(LAYERS) for key, shape in block.items()},
            "norm.weight": (WIDTH,), "norm.bias": (WIDTH,), "head.weight": (10, WIDTH), "head.bias": (10,)}


def timm_weights(seed=3):
    return {n: v * np.float32(0.3) if v.ndim > 1 else v for n, v in weights(seed, of=timm_shapes()).items()}


def hf_vit(w, five=False):
    """timm's names to those of transformers' ViTForImageClassification; five: those of its own modules
    since 5.0."""
    out = {}
    for name, a in w.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            layer, key, kind = (f"vit.layers.{parts[1]}." if five else f"vit.encoder.layer.{parts[1]}.",
                                ".".join(parts[2:-1]), parts[-1])
            if key == "attn.qkv":
                for x, part in zip(("query", "key", "value"), np.split(a, 3)):
                    out[f"{layer}attention.{x[0]}_proj.{kind}" if five
                        else f"{layer}attention.attention.{x}.{kind}"] = part
            else:
                old = {"norm1": "layernorm_before", "norm2": "layernorm_after",
                       "attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense",
                       "mlp.fc2": "output.dense"}
                new = {**old, "attn.proj": "attention.o_proj", "mlp.fc1": key, "mlp.fc2": key}
                out[f"{layer}{(new if five else old)[key]}.{kind}"] = a
        else:
            known = {"cls_token": "vit.embeddings.cls_token",
                     "pos_embed": "vit.embeddings.position_embeddings"}
            other = name.replace("patch_embed.proj", "vit.embeddings.patch_embeddings.projection")
            name = known.get(name, other.replace("head.", "classifier."))
            out["vit.layernorm." + parts[-1] if parts[0] == "norm" else name] = a
    return out


def as_ours(w):
    """timm's names to open_clip's."""
    out = {}
    for name, a in w.items():
        if name.startswith("head."):
            continue
        for theirs, ours in (("blocks.", "transformer.resblocks."), ("norm1", "ln_1"), ("norm2", "ln_2"),
                             ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"),
                             ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
                             ("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"),
                             ("cls_token", "class_embedding"), ("pos_embed", "positional_embedding"),
                             ("norm.", "ln_post.")):
            name = name.replace(theirs, ours)
        out["visual." + name] = a
    return {**out, "logit_scale": np.float32(math.log(1 / 0.07))}


def vit_features(images, w, eps):
    """The ViT in float64, from timm's tensors: images (B,3,H,W) normalised -> class token's features after
    the last LayerNorm (B,C)."""
    w = {n: v.astype(np.float64) for n, v in w.items()}
    erf = np.vectorize(math.erf)

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]
    out = []
    for image in images.astype(np.float64):
        patches = [np.tensordot(w["patch_embed.proj.weight"],
                                image[:, y * PATCH:(y + 1) * PATCH, x * PATCH:(x + 1) * PATCH], 3)
                   + w["patch_embed.proj.bias"] for y in range(GRID) for x in range(GRID)]
        h = np.concatenate([w["cls_token"][0], patches]) + w["pos_embed"][0]
        for i in range(LAYERS):
            q, k, v = np.split(linear(norm(h, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv"), 3, 1)
            joined = []
            for part in np.split(np.arange(WIDTH), HEADS):
                scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(WIDTH // HEADS))
                joined.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
            h = h + linear(np.concatenate(joined, 1), f"blocks.{i}.attn.proj")
            hidden = linear(norm(h, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
            h = h + linear(hidden * 0.5 * (1 + erf(hidden / math.sqrt(2))), f"blocks.{i}.mlp.fc2")
        out.append(norm(h[0], "norm"))
    return np.array(out)


def timm_json(**changes):
    look = {"tag": "augreg", "input_size": [3, SIZE, SIZE], "interpolation": "bicubic", "crop_pct": 0.9,
            "crop_mode": "center", "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.5, 0.75]}
    return {"architecture": "vit_small_patch5_23", "num_classes": 10, "global_pool": "token",
            "model_args": {"num_heads": HEADS}, "pretrained_cfg": look, **changes}


def vit_json(**changes):
    return {"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": HIDDEN,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": SIZE, "patch_size": PATCH, **changes}


def test_imagenet_vits_are_read_in_every_form():
    w = timm_weights()
    ours, bits = as_ours(w), models.CONSTANTS["ABSENT_TEXT"] | models.CONSTANTS["ABSENT_IMAGE_PROJ"]
    common = {"ln_pre": 0, "patch_bias": 1, "absent": bits, "image_heads": HEADS, "image_mlp": HIDDEN,
              "image_size": SIZE, "quick_gelu": 0, "image_layers": LAYERS}
    put("timm/config.json", timm_json())
    look = {"mean_g": 0.4, "std_b": 0.75, "interpolation": 0, "resize_mode": 0, "image_ln_eps": 1e-6,
            "name": "vit_small_patch5_23.augreg"}
    for name, write, wrap in (("model.safetensors", write_safetensors, dict),
                              ("pytorch_model.bin", lambda p, x: torch_zip(p, x), tensors),
                              ("pytorch_model.bin", lambda p, x: torch_zip(p, {"model": x, "epoch": 3}),
                               tensors)):
        write(f"timm/{name}", wrap(w))
        for given in ("timm", f"timm/{name}"):
            out, err = convert_and_expect([given], ours, f"timm's {given}", **common, **look)
            check(not err and "from timm/config.json" in out, f"what was taken is said: {out}{err}")
        os.unlink(f"timm/{name}")
    write_safetensors("timm/model.safetensors", w)
    convert_and_expect(["timm", "--dtype", "bf16"], ours, "timm's in bf16", **common)
    put("timm/config.json", timm_json(pretrained_cfg={"mean": [0.485, 0.456, 0.406],
                                                      "std": [0.229, 0.224, 0.225], "crop_mode": "squash",
                                                      "interpolation": "bilinear"}))
    convert_and_expect(["timm"], ours, "ImageNet's statistics", mean_r=0.485, std_b=0.225, interpolation=1,
                       resize_mode=1, image_size=GRID * PATCH)
    for changes, says in (({"global_pool": "avg"}, "global_pool"),
                          ({"model_args": {"act_layer": "relu"}}, "act_layer"),
                          ({"model_args": {"num_heads": 5}}, "multiple"),
                          ({"pretrained_cfg": {"mean": [1, 2]}}, "three numbers")):
        put("timm/config.json", timm_json(**changes))
        refused(["timm"], says, f"timm's configuration with {changes}")

    put("hf/config.json", vit_json())
    eps = {**common, "image_ln_eps": 1e-12}
    for five in (False, True):
        write_safetensors("hf/model.safetensors", hf_vit(w, five))
        out, err = convert_and_expect(["hf"], ours, f"ViTForImageClassification, five {five}", **eps,
                                      mean_r=0.5, std_g=0.5, interpolation=1, resize_mode=1, name="hf")
        check("which no file states" in err and err.count("\n") == 1,
              f"assumed statistics are reported: {err}")
        bare = {n.removeprefix("vit."): a for n, a in hf_vit(w, five).items()
                if not n.startswith("classifier")}
        write_safetensors("hf/model.safetensors", {**bare, "pooler.dense.weight": np.ones((2, 2), "<f4"),
                                                   "pooler.dense.bias": np.ones(2, "<f4")})
        convert_and_expect(["hf"], ours, f"ViTModel, five {five}", **eps)
    for size in (SIZE, {"height": SIZE, "width": SIZE}):
        put("hf/preprocessor_config.json", {"image_mean": [0.485, 0.456, 0.406],
                                            "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": size})
        out, err = convert_and_expect(["hf"], ours, "a processor", mean_r=0.485, std_b=0.225, interpolation=0,
                                      resize_mode=1)
        check(not err, f"given statistics need no warning: {err}")
    put("hf/config.json", vit_json(hidden_act="gelu_new"))
    refused(["hf"], "hidden_act", "another activation")


def test_a_vit_without_configuration_is_read_or_refused():
    """Without a configuration: heads by --model or by the usual width of a head; what is not a plain ViT is
    refused by name."""
    w = timm_weights()
    write_safetensors("vit.safetensors", w)
    refused(["vit.safetensors"], "number of heads", "heads that no file states")
    put("lit.json", {**CONFIG, "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 24,
                                              "head_width": WIDTH // HEADS, "layers": 1}})
    out, err = convert_and_expect(["vit.safetensors", "--model", "lit.json"], as_ours(w),
                                  "heads from --model", image_heads=HEADS, image_size=GRID * PATCH,
                                  mean_r=0.5, text_width=10, embed_dim=7, image_ln_eps=1e-6, ln_pre=0,
                                  name="vit")
    check("DeiT" in err, f"assumed statistics: {err}")
    refused(["vit.safetensors", "--model", "ViT-B-32", "--pretrained", "openai"], "is for CLIPs",
            "a tag with a ViT")
    pre = {n: np.full_like(v, 0.1) for n, v in weights(0, of=timm_shapes(norm_pre=True)).items()}
    write_safetensors("pre.safetensors", pre)
    convert_and_expect(["pre.safetensors", "--model", "lit.json"], as_ours(pre),
                       "timm's form of a CLIP's tower", ln_pre=1, patch_bias=0, image_ln_eps=1e-5)
    for change, says in (({"blocks.0.ls1.gamma": np.ones(WIDTH, "<f4")},
                          "blocks.0.ls1.gamma is not a tensor of the model"),
                         ({"norm.weight": None, "fc_norm.weight": w["norm.weight"]}, "pools by average"),
                         ({"blocks.1.attn.qkv.bias": None}, "in_proj_bias is missing"),
                         ({"pos_embed": w["pos_embed"][:, 1:]}, "not a square and a class token"),
                         ({"cls_token": np.ones((2, 1, WIDTH), "<f4")}, "first size must be 1"),
                         ({"dist_token": w["cls_token"]}, "dist_token")):
        write_safetensors("bad.safetensors", {n: v for n, v in {**w, **change}.items() if v is not None})
        refused(["bad.safetensors", "--model", "lit.json"], says, f"a ViT with {list(change)}")
    run("vit.safetensors", "-o", "vit.bin", "--model", "lit.json")
    for form in ("open_clip", "hf", "openai-state"):
        refused(["vit.bin", "--format", form], "holds only an image tower", f"{form} of an image tower "
                "alone", "no")


def png(pixels):
    """(H,W,3) uint8"""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def trained(*arguments):
    p = subprocess.run([PROGRAM, "--precision", "fp32", *map(str, arguments)], capture_output=True, text=True,
                       timeout=300)
    check(p.returncode == 0,
          f"train_clip {' '.join(map(str, arguments))}: exit {p.returncode}: {p.stderr[-500:]}")
    return p.stdout + p.stderr


def test_a_locked_vit_trains_as_lit():
    """Training with a locked ViT: its features are those of the float64 ViT, its projection trains,
    nothing else of it changes; the result goes on in open_clip's form."""
    w = timm_weights()
    put("vit/config.json", timm_json())
    write_safetensors("vit/model.safetensors", w)
    check(run("vit", "-o", "vit.bin")[0] == 0, "vit.bin")
    put("lit.json", {"embed_dim": 24, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32,
                                                     "head_width": 16, "layers": 1},
                     "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2,
                                  "layers": 1}})
    pixels = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3)).astype("u1")
    for i, p in enumerate(pixels):
        put(f"images/{i}.png", png(p))
    put("train.csv",
        ("filepath,title\n" + "".join(f"images/{i}.png,picture number {i}\n" for i in range(8))).encode())
    text = trained("--pretrained-image", "vit.bin", "--model", "lit.json", "--lock-image", "--aug-cfg",
                   "none", "--train-data", "train.csv", "--val-data", "train.csv", "--batch-size", 4,
                   "--steps", 4, "--lr", "1e-3", "--warmup", 0, "--save-steps", 1, "--save-features",
                   "f.safetensors", "--logs", "logs", "--name", "lit")
    check("has no projection" in text, "train_clip says that the projection is new")
    folder = "logs/lit/checkpoints/"
    last = max((n for n in os.listdir(folder) if n.endswith(".bin")),
               key=lambda n: os.path.getmtime(folder + n))
    first, last, given = (convert.open_packed(p) for p in (folder + "step_1.bin", folder + last, "vit.bin"))
    check([last.config[k] for k in ("absent", "patch_bias", "ln_pre", "image_ln_eps")] == [0, 1, 0, 1e-6],
          "fields of the saved model")
    check(all(last.entries[n].read().tobytes() == e.read().tobytes() for n, e in given.entries.items()
              if n != "logit_scale"), "the locked ViT is unchanged, bit for bit")
    for name in ("visual.proj", "text_projection"):
        check(not np.array_equal(first.entries[name].read(), last.entries[name].read()), f"{name} trains")
    features = read_all("f.safetensors")
    order, got = features["indices"].read(), features["image_features"].read()
    mean, std = ([given.config[f"{key}_{x}"] for x in "rgb"] for key in ("mean", "std"))
    images = ((pixels[order] / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    want = vit_features(images, w, 1e-6) @ last.entries["visual.proj"].read().astype(np.float64)
    want /= np.sqrt((want * want).sum(1, keepdims=True))
    error = np.abs(got - want).max()
    check(got.shape == (8, 24) and error <= 2e-6, f"features of the ViT are off by {error:.2e}")

    for form in ("hf", "openai-state"):
        refused([last.path, "--format", form], "use --format open_clip", f"{form} of an ImageNet ViT", "no")
    code, err = exported(last.path, "open_clip")
    check(code == 0 and "conv1 has no bias" in err, f"a ViT in open_clip's form: {err}")
    vision = json.loads(data("out/open_clip_config.json"))["model_cfg"]["vision_cfg"]
    check(vision["no_ln_pre"] is True and vision["norm_kwargs"] == {"eps": 1e-6}, "the configuration says so")
    moved = {n: np.array(e.read()) for n, e in last.entries.items()}
    moved["visual.positional_embedding"][1:] += moved.pop("visual.conv1.bias")
    check(run("out", "-o", "moved.bin")[0] == 0, "and comes back")
    expect_packed("moved.bin", moved, "open_clip's form of a ViT", patch_bias=0, ln_pre=0, image_heads=HEADS)
    trained("--pretrained", "moved.bin", "--eval-only", "--val-data", "train.csv", "--save-features",
            "g.safetensors", "--logs", "logs", "--name", "moved")
    check(np.abs(read_all("g.safetensors")["image_features"].read() - got).max() < 1e-5,
          "the moved bias means the same")
    exported("moved.bin", "open_clip")
    check(run("out", "-o", "again.bin")[0] == 0 and data("again.bin") == data("moved.bin"),
          "no_ln_pre comes back byte for byte")


if __name__ == "__main__":
    sys.exit(checkpoint_files.run_tests(globals()))
