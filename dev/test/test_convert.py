#!/usr/bin/env python3
"""Tests of dev/convert.py: every form of checkpoint (made here), round trips, refusals, decisions, memory.

  dev/test/test_convert.py                 all of that, in a temporary folder
  dev/test/test_convert.py --golden DIR    DIR/formats: every file gives its expected logits; DIR/bad: every file but good* is refused
"""
import argparse
import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import types
import zipfile
from collections import OrderedDict

import numpy as np

import checks
from checks import check

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "dev"))
import convert  # noqa: E402
import exports  # noqa: E402
import models  # noqa: E402
import packed as packed_form  # noqa: E402
import reference  # noqa: E402


def run(*arguments):
    """dev/convert.py in this process: -> exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = convert.main([str(a) for a in arguments])
    return code, out.getvalue(), err.getvalue()


def refused(arguments, says, what, output="x.bin"):
    """Exit code 2, one line that holds `says`, no output file, nothing run."""
    code, _, err = run(*arguments, "-o", output)
    check(code == 2 and err.count("\n") == 1 and says in err, f"{what}: exit {code}: {err.strip()[:300]!r} should say {says!r}")
    left = [name for name in (output, output + ".part", "pwned.txt") if os.path.exists(name)]
    check(not left, f"{what}: left {left}")


# ---------------------------------------------------------------- a tiny model and files of it

CONFIG = {"embed_dim": 7, "quick_gelu": False,
          "vision_cfg": {"image_size": 11, "patch_size": 4, "width": 12, "head_width": 6, "layers": 2, "mlp_ratio": 2.6},
          "text_cfg": {"context_length": 5, "vocab_size": 19, "width": 10, "heads": 2, "layers": 1}}


def shapes(E=7, P=4, C=12, T=5, F=31, L=2, V=19, W=10, N=5, G=40, M=1):
    """Names and shapes written out once more, from open_clip and not from clipc/model/weights.h."""
    def blocks(prefix, layers, c, hidden):
        block = {"ln_1.weight": (c,), "ln_1.bias": (c,), "attn.in_proj_weight": (3 * c, c), "attn.in_proj_bias": (3 * c,), "attn.out_proj.weight": (c, c),
                 "attn.out_proj.bias": (c,), "ln_2.weight": (c,), "ln_2.bias": (c,), "mlp.c_fc.weight": (hidden, c), "mlp.c_fc.bias": (hidden,),
                 "mlp.c_proj.weight": (c, hidden), "mlp.c_proj.bias": (c,)}
        return {f"{prefix}transformer.resblocks.{i}.{key}": shape for i in range(layers) for key, shape in block.items()}
    return {"positional_embedding": (N, W), "text_projection": (W, E), "logit_scale": (), "visual.class_embedding": (C,), "visual.positional_embedding": (T, C),
            "visual.proj": (C, E), "visual.conv1.weight": (C, 3, P, P), "visual.ln_pre.weight": (C,), "visual.ln_pre.bias": (C,),
            **blocks("visual.", L, C, F), "visual.ln_post.weight": (C,), "visual.ln_post.bias": (C,), **blocks("", M, W, G),
            "token_embedding.weight": (V, W), "ln_final.weight": (W,), "ln_final.bias": (W,)}


def weights(seed=0, dtype="<f4", of=None):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in (of or shapes()).items()}


def bf16_bits(x):
    """float32 to bf16 the slow way: the nearer of the two neighbours, the even one in a tie."""
    shape, x = np.shape(x), np.asarray(x, "<f4").reshape(-1)
    low = (x.view("<u4") >> 16).astype("<u2")
    down = (low.astype("<u4") << 16).view("<f4").astype("f8")
    up = ((low.astype("<u4") + 1) << 16).view("<f4").astype("f8")
    below, above = np.abs(x - down), np.abs(up - x)
    return np.where((above < below) | ((above == below) & (low % 2 == 1)), low + 1, low).astype("<u2").reshape(shape)


def bf16_values(bits):
    return (np.asarray(bits, "<u2").reshape(-1).astype("<u4") << 16).view("<f4").reshape(np.shape(bits))


def write_safetensors(path, tensors, names={"<f8": "F64", "<f4": "F32", "<f2": "F16", "<u2": "BF16", "<i8": "I64"}):
    header, data = {}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": names[array.dtype.str], "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def put(path, data):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


# What torch writes, imitated: modules and classes of its names, so that pickle itself writes the same opcodes.

def fake(module, name, value=None):
    if value is None:
        value = type(name, (), {})
    value.__module__, value.__qualname__, value.__name__ = module, name, name
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[:i + 1]), types.ModuleType(parts[i]))
    setattr(sys.modules[module], name, value)
    return value


def rebuild(*arguments):
    raise AssertionError("only named in pickles")


REBUILD = fake("torch._utils", "_rebuild_tensor_v2", rebuild)
PARAMETER = fake("torch._utils", "_rebuild_parameter", lambda *a: None)
STORAGES = {"<f8": fake("torch", "DoubleStorage"), "<f4": fake("torch", "FloatStorage"), "<f2": fake("torch", "HalfStorage"),
            "<u2": fake("torch", "BFloat16Storage"), "<i8": fake("torch", "LongStorage")}


class TorchStorage:
    def __init__(self, array):
        self.array = np.ascontiguousarray(array).reshape(-1)


class TorchTensor:
    """shape and strides over a storage (of the array alone, unless one is given)."""

    def __init__(self, array, storage=None, offset=0, strides=None, parameter=False):
        self.storage, self.offset, self.parameter = storage or TorchStorage(array), offset, parameter
        self.shape = np.shape(array)
        self.strides = strides or tuple(int(s) for s in np.cumprod((1,) + self.shape[:0:-1])[::-1])[:len(self.shape)]

    def __reduce__(self):
        tensor = (REBUILD, (self.storage, self.offset, self.shape, self.strides, False, OrderedDict()))
        return tensor if not self.parameter else (PARAMETER, (TorchTensor.raw(self), True, OrderedDict()))

    def raw(self):
        plain = TorchTensor.__new__(TorchTensor)
        plain.__dict__.update(self.__dict__, parameter=False)
        return plain


class TorchPickler(pickle.Pickler):
    def __init__(self, file, legacy=False):
        super().__init__(file, 2)
        self.storages, self.legacy = {}, legacy

    def persistent_id(self, obj):
        if not isinstance(obj, TorchStorage):
            return None
        key = str(list(self.storages).index(id(obj)) if id(obj) in self.storages else len(self.storages))
        self.storages[id(obj)] = obj
        return ("storage", STORAGES[obj.array.dtype.str], key, "cpu", obj.array.size) + ((None,) if self.legacy else ())


def torch_zip(path, obj, compression=zipfile.ZIP_STORED, align=True, drop=(), extra_members=(), pickled=None, zip64=False):
    out = io.BytesIO()
    pickler = TorchPickler(out)
    pickler.dump(obj)
    with zipfile.ZipFile(path, "w", compression) as z:
        z.writestr("archive/data.pkl", pickled or out.getvalue())
        z.writestr("archive/byteorder", b"little")
        for name in extra_members:
            z.writestr(f"archive/{name}", b"")
        for key, storage in enumerate(pickler.storages.values()):
            if key in drop:
                continue
            info = zipfile.ZipInfo(f"archive/data/{key}")
            info.compress_type = compression
            if align:  # torch pads by an extra field, so that numbers begin at a multiple of 64
                space = -(z.fp.tell() + 30 + len(info.filename) + 4) % 64
                info.extra = b"FB" + struct.pack("<H", space) + b"Z" * space
            with z.open(info, "w", force_zip64=zip64) as f:
                f.write(storage.array.tobytes())
        z.writestr("archive/version", b"3\n")


def torch_legacy(path, obj, keys=None, cut=0):
    with open(path, "wb") as f:
        pickle.dump(0x1950A86A20F9469CFC6C, f, 2)
        pickle.dump(1001, f, 2)
        pickle.dump({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}, f, 2)
        pickler = TorchPickler(f, legacy=True)
        pickler.dump(obj)
        storages = list(pickler.storages.values())
        order = list(reversed(range(len(storages))))
        pickle.dump(keys or [str(k) for k in order], f, 2)
        for k in order:
            f.write(struct.pack("<q", storages[k].array.size) + storages[k].array.tobytes())
        f.truncate(f.tell() - cut)


def tensors(arrays):
    return {name: TorchTensor(a) for name, a in arrays.items()}


def script(arrays, classes=("QuickGELU",)):
    """The tree of modules of a TorchScript archive."""
    def module(name="Module"):
        known = sys.modules.get("__torch__.model")
        return (getattr(known, name, None) or fake("__torch__.model", name))()
    root = module("CLIP")
    for name, array in arrays.items():
        *path, last = name.split(".")
        at = root
        for part in path:
            if not hasattr(at, part):
                setattr(at, part, module())
            at = getattr(at, part)
        setattr(at, last, TorchTensor(array))
    root.training = True
    for i, name in enumerate(classes):
        setattr(root, f"activation{i}", module(name))
    return root


def hf_tensors(arrays):
    """Our names to those of transformers' CLIPModel, written out from its source."""
    out = {}
    for name, a in arrays.items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        parts = name.replace("visual.", "").split(".")
        if name == "logit_scale":
            out[name] = a
        elif name in ("visual.proj", "text_projection"):
            out[{"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}[name]] = np.ascontiguousarray(a.T)
        elif "resblocks" in name:
            layer = f"{tower}.encoder.layers.{parts[2]}."
            rest = ".".join(parts[3:])
            if rest.startswith("attn.in_proj"):
                for letter, part in zip("qkv", np.split(a, 3)):
                    out[f"{layer}self_attn.{letter}_proj.{rest[13:]}"] = part
            else:
                for ours, theirs in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"),
                                     ("mlp.c_proj", "mlp.fc2")):
                    rest = rest.replace(ours, theirs)
                out[layer + rest] = a
        else:
            key = ".".join(parts)
            key = {"class_embedding": "embeddings.class_embedding", "conv1.weight": "embeddings.patch_embedding.weight",
                   "token_embedding.weight": "embeddings.token_embedding.weight",
                   "positional_embedding": "embeddings.position_embedding.weight", "ln_pre.weight": "pre_layrnorm.weight", "ln_pre.bias": "pre_layrnorm.bias",
                   "ln_post.weight": "post_layernorm.weight", "ln_post.bias": "post_layernorm.bias", "ln_final.weight": "final_layer_norm.weight",
                   "ln_final.bias": "final_layer_norm.bias"}[key]
            out[f"{tower}.{key}"] = a
    out["text_model.embeddings.position_ids"] = np.arange(5, dtype="<i8").reshape(1, 5)
    out["vision_model.embeddings.position_ids"] = np.arange(5, dtype="<i8").reshape(1, 5)
    return out


def hf_json(act="gelu", eps=1e-5):
    return {"model_type": "clip", "projection_dim": 7,
            "vision_config": {"hidden_size": 12, "intermediate_size": 31, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 11, "patch_size": 4,
                              "hidden_act": act, "layer_norm_eps": eps},
            "text_config": {"hidden_size": 10, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 5,
                            "vocab_size": 19, "hidden_act": act, "layer_norm_eps": eps, "eos_token_id": 2}}


def expect_packed(path, arrays, what, **fields):
    """The packed file holds these tensors, rounded to its type, bit for bit, and these fields."""
    packed = convert.open_packed(path)
    want = {k: np.reshape(v, -1) for k, v in arrays.items()}
    check(set(want) == set(packed.entries), f"{what}: names differ")
    for name, entry in packed.entries.items():
        x = want[name].astype("<f4")
        bits = bf16_bits(x) if packed.dtype == "BF16" else x
        check(np.array_equal(entry.read().reshape(-1).view("u1"), bits.view("u1")), f"{what}: {name} differs")
    for key, value in fields.items():
        check(packed.config[key] == value, f"{what}: {key} is {packed.config[key]!r} instead of {value!r}")


def convert_and_expect(arguments, arrays, what, **fields):
    code, out, err = run(*arguments, "-o", "out.bin")
    check(code == 0, f"{what}: exit {code}: {err.strip()}")
    if code == 0:
        expect_packed("out.bin", arrays, what, **fields)
        os.unlink("out.bin")
    return out, err


# ---------------------------------------------------------------- the tests

def test_tables():
    check([f[1] for f in models.CONFIG_FIELDS][:2] == ["embed_dim", "image_size"], "CONFIG_FIELDS begins as it must")
    check(models.CONFIG_FIELDS[25] == ("float", "std_b", 1e-4, 10.0), "kinds and limits of CONFIG_FIELDS")
    check(len(models.CONFIG_FIELDS) <= models.CONSTANTS["HEADER_NAME"] - models.CONSTANTS["HEADER_CONFIG"], "the fields fit the header")
    config = models.open_clip_config("tiny", CONFIG).config
    ours = {k: v if k != "logit_scale" else () for k, v in models.tensor_shapes(config).items()}
    check(ours == shapes(), "the table of tensors is open_clip's list")
    check(list(ours)[0] == "visual.conv1.weight" and list(ours)[-1] == "logit_scale", "order of the tensors")
    without = models.tensor_shapes({**config, "ln_pre": 0})
    check(set(ours) - set(without) == {"visual.ln_pre.weight", "visual.ln_pre.bias"}, "ln_pre is optional")
    for row in models.MODEL_ROWS:
        config = models.check_config(models.config_of_row(row), row[0])
        check(config["image_width"] // config["image_heads"] == row[6] and config["text_width"] == 64 * config["text_heads"], f"{row[0]}: heads")
        check(row[0].split("-")[2] == str(config["patch_size"]), f"{row[0]}: patch size")
    known = {row[0]: models.config_of_row(row) for row in models.MODEL_ROWS}
    check(len(known) == len(models.MODEL_ROWS) == 24, f"{len(known)} models")
    count = {name: sum(int(np.prod(s)) for s in models.tensor_shapes(c).values()) for name, c in known.items()}
    check(count["ViT-B-32"] == 151277313 and len(models.tensor_shapes(known["ViT-B-32"])) == 302, "parameters of ViT-B-32")
    check([known[n]["image_mlp"] for n in ("ViT-H-14", "ViT-g-14", "ViT-bigG-14", "ViT-e-14")] == [5120, 6144, 8192, 15360], "MLP widths")
    check([known[n]["image_heads"] for n in ("ViT-H-14", "ViT-g-14", "ViT-bigG-14", "ViT-e-14")] == [16, 16, 16, 16], "heads")
    suffixed = " ".join(row[0] for row in models.MODEL_ROWS if row[-1])
    check(suffixed == "ViT-B-32 ViT-B-16 ViT-L-14 ViT-L-14-336 ViT-H-14 ViT-H-14-378 ViT-bigG-14", "names that open_clip also has with -quickgelu")
    check(len(models.TAGS) == 41 and all(t[0] in known for t in models.TAGS), f"{len(models.TAGS)} tags")
    quick = {(t[0], t[1]): t[2] for t in models.TAGS}
    check(quick["ViT-B-32", "laion400m_e32"] and not quick["ViT-B-16", "laion400m_e32"] and not quick["ViT-H-14", "metaclip_altogether"], "activations of tags")
    check(all(t[2] for t in models.TAGS if t[1] in ("openai", "dfn2b", "dfn5b", "metaclip_400m", "metaclip_fullcc")), "quick tags")
    code, out, _ = run("--list")
    check(code == 0 and all(name in out for name in known) and all(t[1] in out for t in models.TAGS) and "ViT-B-32-quickgelu" in out, "--list")


def test_formats():
    put("config.json", CONFIG)
    w = weights()
    for dtype in ("<f8", "<f4", "<f2"):
        x = weights(1, dtype)
        write_safetensors("x.safetensors", x)
        convert_and_expect(["x.safetensors"], x, f"safetensors {dtype}", image_heads=2, image_mlp=31, eot_id=18, quick_gelu=0, name="x", image_size=11)
        torch_zip("x.pt", tensors(x))
        convert_and_expect(["x.pt", "--model", "config.json"], x, f"torch {dtype}", name="config")
        torch_zip("x.pt", tensors(x), zipfile.ZIP_DEFLATED, align=False)
        convert_and_expect(["x.pt", "--dtype", "bf16"], x, f"torch deflated {dtype}")
        torch_legacy("x.pth", tensors(x))
        convert_and_expect(["x.pth"], x, f"legacy torch {dtype}")
        np.savez("x.npz", **x)
        convert_and_expect(["x.npz"], x, f"npz {dtype}")
    os.makedirs("bf16", exist_ok=True)
    put("bf16/config.json", CONFIG)
    bits = {k: bf16_bits(v) for k, v in w.items()}
    exact = {k: bf16_values(v) for k, v in bits.items()}
    write_safetensors("bf16/x.safetensors", bits)
    torch_zip("bf16/x.pt", tensors(bits))
    for name in ("x.safetensors", "x.pt"):
        for dtype in ("fp32", "bf16"):
            convert_and_expect([f"bf16/{name}", "--dtype", dtype], exact, f"bf16 {name} to {dtype}")
    np.savez_compressed("x.npz", **{k: np.asfortranarray(v) for k, v in w.items()})
    convert_and_expect(["x.npz"], w, "npz in Fortran order, deflated")
    torch_zip("x.pt", tensors(w), zip64=True)
    convert_and_expect(["x.pt"], w, "zip64")
    torch_zip("x.pt", {k: TorchTensor(v, parameter=True) for k, v in w.items()})
    convert_and_expect(["x.pt"], w, "parameters instead of tensors")
    write_safetensors("x.safetensors", {**w, "logit_scale": w["logit_scale"].reshape(1)})
    convert_and_expect(["x.safetensors"], w, "logit_scale of shape [1]")
    text = {k if k.startswith("visual.") or k == "logit_scale" else "text." + k: v for k, v in w.items()}
    write_safetensors("x.safetensors", text)
    convert_and_expect(["x.safetensors"], w, "text. prefix")
    optimizer = {"state": {0: {"step": TorchTensor(np.ones((), "<f4"))}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.98), "params": [0]}]}
    wrapped = tensors({"module." + k: v for k, v in text.items()})
    training = {"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": optimizer, "scaler": {}, "global_step": 17}
    torch_zip("x.pt", training)
    convert_and_expect(["x.pt"], w, "training checkpoint with module. and text.")
    torch_legacy("x.pt", {**training, "state_dict": OrderedDict(training["state_dict"])})
    convert_and_expect(["x.pt"], w, "training checkpoint of the older form")


def test_views():
    """Tensors over shared storages: offsets, transposed strides."""
    put("config.json", CONFIG)
    w = weights(3)
    flat = TorchStorage(np.concatenate([v.reshape(-1) for v in w.values()]))
    views, at = {}, 0
    for name, v in w.items():
        views[name] = TorchTensor(v, flat, at)
        at += v.size
    transposed = w["visual.proj"].T
    views["visual.proj"] = TorchTensor(w["visual.proj"], TorchStorage(transposed), strides=(1, 12))
    for write, kind in ((torch_zip, "zip"), (torch_legacy, "legacy"), (lambda p, o: torch_zip(p, o, zipfile.ZIP_DEFLATED), "deflated")):
        write("x.pt", views)
        convert_and_expect(["x.pt"], w, f"views, {kind}")
    views["visual.proj"] = TorchTensor(w["visual.proj"], flat, at - 83)
    torch_zip("x.pt", views)
    refused(["x.pt"], "beyond its storage", "a view beyond its storage")


def test_folders():
    w = weights(4)
    theirs = hf_tensors(w)
    put("hf/config.json", hf_json("quick_gelu", 2e-5))
    write_safetensors("hf/model.safetensors", theirs)
    convert_and_expect(["hf"], w, "Hugging Face", quick_gelu=1, image_ln_eps=2e-5, text_ln_eps=2e-5, eot_id=18, image_heads=2, image_mlp=31, name="hf")
    convert_and_expect(["hf/model.safetensors"], w, "Hugging Face's file", quick_gelu=1)
    put("hf/preprocessor_config.json", {"image_mean": [0.5, 0.25, 0.125], "image_std": [1, 2, 3], "resample": 2, "do_center_crop": False,
                                        "size": {"height": 11, "width": 11}})
    convert_and_expect(["hf"], w, "Hugging Face with a processor", mean_g=0.25, std_b=3, interpolation=1, resize_mode=1)
    put("hf/config.json", {**hf_json(), "text_config_dict": {"eos_token_id": 1}})
    os.unlink("hf/model.safetensors")
    torch_zip("hf/pytorch_model.bin", tensors(theirs))
    convert_and_expect(["hf"], w, "Hugging Face's pytorch_model.bin", quick_gelu=0)
    os.unlink("hf/pytorch_model.bin")
    names = sorted(theirs)
    half = {k: theirs[k] for k in names[:30]}, {k: theirs[k] for k in names[30:]}
    for write, suffix in ((write_safetensors, "safetensors"), (lambda p, x: torch_zip(p, tensors(x)), "bin")):
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        for i, part in enumerate(half):
            write(f"hf/{stem}-{i}.{suffix}", part)
        index = {"weight_map": {k: f"{stem}-{i}.{suffix}" for i, part in enumerate(half) for k in part}}
        put(f"hf/{stem}.{suffix}.index.json", index)
        convert_and_expect(["hf"], w, f"shards of {suffix}")
        put(f"hf/{stem}.{suffix}.index.json", {"weight_map": {**index["weight_map"], names[0]: f"{stem}-1.{suffix}"}})
        refused(["hf"], names[0], "an index that names the wrong shard")
        put(f"hf/{stem}.{suffix}.index.json", {"weight_map": {**index["weight_map"], names[0]: "../model-0.safetensors"}})
        refused(["hf"], "files of this folder", "an index that leaves its folder")
        put(f"hf/{stem}.{suffix}.index.json", {"weight_map": {**index["weight_map"], "more": f"{stem}-9.{suffix}"}})
        refused(["hf"], f"{stem}-9.{suffix}: is missing", "a shard that is missing")
        os.unlink(f"hf/{stem}.{suffix}.index.json")
    refused(["hf"], "holds none of", "a folder without weights")

    look = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1], "interpolation": "bilinear", "resize_mode": "longest", "size": [11, 11], "fill_color": 0}
    put("hub/open_clip_config.json", {"model_cfg": {**CONFIG, "quick_gelu": True, "custom_text": True}, "preprocess_cfg": look})
    torch_zip("hub/open_clip_pytorch_model.bin", tensors(w))
    for given in ("hub", "hub/open_clip_pytorch_model.bin"):
        convert_and_expect([given], w, "hub folder", quick_gelu=1, mean_r=0.5, std_r=0.25, interpolation=1, resize_mode=2)
    less = {k: v for k, v in theirs.items() if not k.endswith("layers.1.self_attn.k_proj.bias")}
    write_safetensors("hf/model.safetensors", less)
    refused(["hf"], "vision_model.encoder.layers.1.self_attn.k_proj.bias is missing", "a missing third of qkv")


def openai_like(head=64):
    C, W = 2 * head, head
    of = shapes(E=9, P=5, C=C, T=5, F=4 * C, L=1, V=30, W=W, N=6, G=4 * W)
    return {k: v.astype("<f2") if "ln_" not in k and k != "logit_scale" else v for k, v in weights(5, of=of).items()}


def test_torchscript_and_shapes():
    w = openai_like()
    facts = {k: np.array(v, "<i8") for k, v in (("input_resolution", 12), ("context_length", 6), ("vocab_size", 30))}
    mask = {"transformer.resblocks.0.attn_mask": np.full((6, 6), -np.inf, "<f4")}
    torch_zip("jit.pt", script({**w, **facts, **mask}), extra_members=["constants.pkl", "code/__torch__/model.py"])
    for extra in ((), ("config.json",)):
        for name in extra:
            put(name, CONFIG)  # of another model: OpenAI's archive stands for itself
        out, err = convert_and_expect(["jit.pt"], w, "TorchScript", quick_gelu=1, image_heads=2, text_heads=1, image_size=12, patch_size=5, context_length=6)
        check("OpenAI" in out and not err, "the activation of OpenAI's file is known")
    os.unlink("config.json")
    torch_zip("jit.pt", script({**w, **facts}, ["GELU"]), extra_members=["constants.pkl"])
    convert_and_expect(["jit.pt"], w, "TorchScript with GELU", quick_gelu=0)
    torch_zip("plain.pt", tensors({**w, **facts}))
    convert_and_expect(["plain.pt"], w, "OpenAI's state dict", quick_gelu=1, image_size=12)
    torch_zip("plain.pt", tensors(w))
    out, err = convert_and_expect(["plain.pt"], w, "by shapes alone", quick_gelu=0, image_size=10, image_heads=2)
    check("shapes" in out and "warning" in err and "--force-quick-gelu" in err and err.count("\n") == 1, f"a guessed activation is said: {err!r}")
    out, err = convert_and_expect(["plain.pt", "--force-quick-gelu"], w, "--force-quick-gelu", quick_gelu=1)
    check(not err, "a forced activation is no guess")
    torch_zip("odd.pt", tensors(weights()))
    refused(["odd.pt"], "--model", "shapes that do not tell the heads")
    torch_zip("odd.pt", tensors({k: v for k, v in w.items() if not k.startswith("visual.conv1")}))
    refused(["odd.pt"], "visual.conv1.weight is missing", "not a CLIP")
    wide = shapes(E=1024, P=14, C=1280, T=257, F=5120, L=32, V=49408, W=1024, N=77, G=4096, M=24)
    entries = {k: convert.Entry("F32", s, None) for k, s in wide.items()}
    checkpoint = types.SimpleNamespace(entries=entries, path="h", facts={}, openai=False)
    config = models.config_from_shapes(checkpoint).config
    check(config["image_heads"] == 16 and config["text_heads"] == 16 and models.similar_row(config)[0] == "ViT-H-14", "the heads of a known model are its own")


def test_activation():
    put("quick.json", {**CONFIG, "quick_gelu": True})
    put("config.json", CONFIG)
    w = weights()
    write_safetensors("x.safetensors", w)
    for arguments, quick in (([], 0), (["--model", "quick.json"], 1), (["--model", "config.json"], 0), (["--force-quick-gelu"], 1)):
        convert_and_expect(["x.safetensors", *arguments], w, f"activation with {arguments}", quick_gelu=quick)
    tag = models.TAGS[0]
    parsed = types.SimpleNamespace(force_quick_gelu=False, model="ViT-B-32", pretrained="openai")
    plain, nothing = types.SimpleNamespace(openai=False), None
    own = models.Known({}, False, "own.json")
    named, suffixed = (models.load_model_argument(n) for n in ("ViT-B-32", "ViT-B-32-quickgelu"))
    check(convert.choose_activation(parsed, own, named, tag[2:], plain)[0] is True, "the tag stands above the file's configuration")
    check(convert.choose_activation(parsed, nothing, named, nothing, plain)[2] is True, "a bare name says nothing")
    check(convert.choose_activation(parsed, own, named, nothing, plain)[::2] == (False, False), "the file's configuration stands above a bare name")
    parsed.model = "ViT-B-32-quickgelu"
    check(convert.choose_activation(parsed, own, suffixed, nothing, plain)[0] is True, "the suffix stands above the file's configuration")
    check(models.base_name("ViT-B/32")[0][0] == "ViT-B-32" and models.base_name("ViT-L-16-quickgelu")[0] is None, "names")


def test_round_trip():
    put("config.json", {**CONFIG, "quick_gelu": True, "text_cfg": {**CONFIG["text_cfg"], "mlp_ratio": 3.33, "norm_kwargs": {"eps": 1e-6}}})
    w = weights(6, of=shapes(G=33))
    w["ln_final.bias"][:4] = [0.0, -0.0, 1e-45, 3.3e38]
    write_safetensors("x.safetensors", w)
    for dtype in ("fp32", "bf16"):
        run("x.safetensors", "--dtype", dtype, "-o", "one.bin")
        shutil.rmtree("back", ignore_errors=True)
        code, _, err = run("one.bin", "-o", "back", "--format", "open_clip")
        check(code == 0 and sorted(os.listdir("back")) == ["open_clip_config.json", "open_clip_model.safetensors"], f"export {dtype}: {err}")
        back = convert.open_checkpoint("back/open_clip_model.safetensors")
        packed = convert.open_packed("one.bin")
        for name, entry in back.entries.items():
            check(entry.dtype == {"fp32": "F32", "bf16": "BF16"}[dtype] and entry.shape == shapes(G=33)[name], f"export {dtype}: {name}: type or shape")
            check(entry.read().tobytes() == packed.entries[name].read().tobytes(), f"export {dtype}: {name}: bits")
        run("back", "--dtype", dtype, "-o", "two.bin")
        one, two = convert.open_packed("one.bin"), convert.open_packed("two.bin")
        check(one.config == two.config, f"the configuration comes back, {dtype}")
        with open("one.bin", "rb") as a, open("two.bin", "rb") as b:
            check(a.read() == b.read(), f"all comes back, {dtype}")
        run("one.bin", "-o", "three.bin", "--force-quick-gelu")
        with open("one.bin", "rb") as a, open("three.bin", "rb") as b:
            check(a.read() == b.read(), ".bin to .bin is the same file")
    for hidden, width in ((6144, 1408), (8192, 1664), (15360, 1792), (261, 60), (3072, 768), (1, 7), (65535, 16383)):
        check(int(width * exports.ratio_of(hidden, width)) == hidden, f"mlp_ratio of {hidden} at {width}")


def test_bf16_rounding():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1 << 32, 200000, dtype=np.uint64).astype("<u4")
    ties = (rng.integers(0, 1 << 16, 2000).astype("<u4") << 16) | 0x8000
    x = np.concatenate([x, ties, ties - 1, ties + 1]).view("<f4")
    x = x[np.isfinite(x) & (np.abs(x) < 3.38e38)]
    check(np.array_equal(packed_form.to_bf16(x), bf16_bits(x)), "bf16 rounds to nearest, ties to even")
    put("config.json", CONFIG)
    w = weights()
    for value, dtype, says in ((np.nan, "fp32", "nan"), (-np.inf, "bf16", "-inf"), (3.4e38, "bf16", "3.4e+38, too large for BF16")):
        w["visual.proj"][2, 3] = value
        write_safetensors("x.safetensors", w)
        refused(["x.safetensors", "--dtype", dtype], "visual.proj[2][3] is " + says, f"{value} in {dtype}")
    d = weights(0, "<f8")
    d["ln_final.bias"][9] = 1e39
    write_safetensors("x.safetensors", d)
    refused(["x.safetensors"], "ln_final.bias[9] is 1e+39, too large for F32", "a double beyond float")


# section ("." is the top), key, value
REFUSED_KEYS = """
    vision_cfg timm_model_name "vit_base"
    vision_cfg layers [3, 4, 6, 3]
    vision_cfg attentional_pool true
    vision_cfg no_ln_pre 1
    vision_cfg pool_type "avg"
    vision_cfg ls_init_value 1e-4
    vision_cfg image_size [10, 12]
    vision_cfg width "12"
    vision_cfg width 12.0
    vision_cfg width true
    vision_cfg surprise 0
    vision_cfg mlp_ratio -1
    vision_cfg norm_kwargs {"eps": 1e-6, "other": 1}
    vision_cfg head_width 0
    vision_cfg patch_size 12
    text_cfg hf_model_name "roberta-base"
    text_cfg hf_tokenizer_name "bert-base-uncased"
    text_cfg pool_type "eos"
    text_cfg no_causal_mask true
    text_cfg proj_bias true
    text_cfg vocab_size 1000000000
    text_cfg heads 3
    . init_logit_bias -10
    . embed_dim null
    . quick_gelu 1
    . vision_cfg [1]
"""
HARMLESS_KEYS = """
    vision_cfg patch_dropout 0.5
    vision_cfg image_size [11, 11]
    vision_cfg pool_type "tok"
    vision_cfg attentional_pool false
    vision_cfg norm_kwargs {"eps": 1e-5}
    text_cfg hf_model_name null
    . init_logit_scale 1.0
"""


def test_configurations():
    def altered(section, key, value):
        c = json.loads(json.dumps(CONFIG))
        (c[section] if section else c)[key] = value
        return put("c.json", c)
    np.savez("x.npz", **weights())
    for line in REFUSED_KEYS.strip().splitlines():
        section, key, value = line.strip().split(" ", 2)
        name = {"head_width": "image_heads", "heads": "text_heads"}.get(key, key)
        refused(["x.npz", "--model", altered(section.strip("."), key, json.loads(value))], name, f"configuration with {line}")
    for line in HARMLESS_KEYS.strip().splitlines():
        section, key, value = line.strip().split(" ", 2)
        code, _, err = run("x.npz", "--model", altered(section.strip("."), key, json.loads(value)), "-o", "y.bin")
        check(code == 0, f"configuration with {line}: {err}")
    refused(["x.npz", "--model", "ViT-B-23"], "did you mean ViT-B-32?", "a misspelt model")
    refused(["x.npz", "--model", "ViT-B-32"], "the configuration is from --model ViT-B-32", "another model's weights")
    refused(["x.npz", "--model", put("c.json", b'{"embed_dim": 7, "embed_dim": 8}')], "embed_dim is there twice", "a key twice")
    refused(["x.npz", "--model", put("c.json", b"[" * 100000)], "nested too deep", "deep JSON")
    refused(["x.npz", "--model", put("c.json", b'{"embed_dim": NaN}')], "no valid JSON", "NaN in JSON")
    os.makedirs("other", exist_ok=True)
    put("other/config.json", {"editor": "unrelated"})
    np.savez("other/x.npz", **weights())
    refused(["other/x.npz"], "give --model", "an unrelated config.json has no say")


def test_command_line():
    np.savez("x.npz", **weights())
    put("config.json", CONFIG)
    for arguments, says in (([], "IN is missing"), (["nothing.pt"], "nothing.pt: no such file"), (["x.npz", "--dtype", "fp16"], "--dtype"),
                            (["x.npz", "--random", "1"], "--random"),
                            (["--model", "ViT-B-32", "--pretrained", "nonsense"], "openai, laion400m_e31"), (["--pretrained", "openai"], "--model NAME"),
                            (["x.npz", "--modle", "y"], "--modle"), (["--model", "ViT-M-32", "--pretrained", "openai"], "no tag")):
        refused(arguments, says, f"command line {arguments}")
    code, _, err = run("x.npz")
    check(code == 2 and "-o OUT is missing" in err, "no output named")
    code, _, err = run("x.npz", "-o", "new/folder/y.bin")
    check(code == 0 and os.path.exists("new/folder/y.bin"), f"the folder of the output is made: {err}")
    code, _, err = run("x.npz", "-o", "new/folder")
    check(code == 2 and "new/folder: Is a directory" in err and not os.path.exists("new/folder.part"), f"the output is a folder: {err}")
    with open("new/folder/y.bin", "rb") as f:
        good = f.read()
    for what, bad in (("short", good[:-1]), ("long", good + b"x"), ("header only", good[:1024]), ("cut header", good[:1000]),
                      ("version", good[:4] + b"\7" + good[5:]),
                      ("field", good[:64] + b"\xff\xff\xff\xff" + good[68:]), ("fields", good[:12] + b"\xff" + good[13:])):
        put("bad.bin", bad)
        refused(["bad.bin"], "bad.bin", f"packed file, {what}", "bad-out.bin")
    code, _, _ = run("new/folder/y.bin", "-o", "y")
    check(code == 0, "a .bin to another place")


def test_downloads():
    """Without huggingface_hub, what to do by hand; with it (imitated), files come from there."""
    hidden = {k: sys.modules.pop(k) for k in list(sys.modules) if k.split(".")[0] == "huggingface_hub"}
    sys.modules["huggingface_hub"] = None  # import fails
    address = "huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K/resolve/main/open_clip_model.safetensors"
    refused(["--model", "ViT-B-32", "--pretrained", "laion2b_s34b_b79k"], address, "a tag without huggingface_hub")
    refused(["hf-hub:some/model"], "hf download some/model", "a hub id without huggingface_hub")
    refused(["some/model"], "hf download some/model", "a bare hub id without huggingface_hub")
    refused(["some/model.pt"], "no such file", "a missing file is no hub id")
    put("hub/config.json", hf_json())
    write_safetensors("hub/model.safetensors", hf_tensors(weights(4)))
    hub = types.ModuleType("huggingface_hub")
    hub.list_repo_files = lambda repository: ["README.md", "config.json", "model.safetensors"]
    hub.hf_hub_download = lambda repository, name: os.path.join("hub", name)
    sys.modules["huggingface_hub"] = hub
    convert_and_expect(["some/model"], weights(4), "a hub id", quick_gelu=0)

    def fail(repository):
        raise RuntimeError("offline\nfor a while")
    hub.list_repo_files = fail
    refused(["some/model"], "cannot be downloaded (offline for a while)", "the hub fails")
    sys.modules.pop("huggingface_hub")
    sys.modules.update(hidden)


def test_tag_with_file():
    """A known tag tells the activation, the image statistics and the resize mode of a local file. (The real model is too large here.)"""
    for tag, want in (("laion2b_s32b_b82k", {"mean_r": 0.5, "std_b": 0.5, "quick_gelu": 0}),
                      ("openai", {"mean_r": 0.48145466, "std_b": 0.27577711, "quick_gelu": 1})):
        args = types.SimpleNamespace(force_quick_gelu=False, model="ViT-L-14", pretrained=tag, input="x.pt")
        config, *_ = convert.decide(args, types.SimpleNamespace(openai=False, vit=None, path="x.pt"), None)
        check(all(config[k] == v for k, v in want.items()), f"what the tag {tag} tells")
        check(config["name"] == "ViT-L-14" + "-quickgelu" * want["quick_gelu"], f"name with the tag {tag}: {config['name']}")
    args = types.SimpleNamespace(force_quick_gelu=False, model="ViT-H-14-378-quickgelu", pretrained="dfn5b", input="x.pt")
    config, *_ = convert.decide(args, types.SimpleNamespace(openai=False, vit=None, path="x.pt"), None)
    check(config["resize_mode"] == 1 and config["quick_gelu"] == 1, "dfn5b squashes")


# Pickles that try to run something: by every opcode that calls or names anything.
COMMAND = b"X\x16\x00\x00\x00echo pwned > pwned.txt"
HOSTILE = {
    "GLOBAL and REDUCE": b"\x80\x02cposix\nsystem\n" + COMMAND + b"\x85R.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + COMMAND + b"\x85R.",
    "INST": b"(" + COMMAND + b"iposix\nsystem\n.",
    "OBJ": b"(cposix\nsystem\n" + COMMAND + b"o.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n" + COMMAND + b"\x85\x81.",
    "eval": b"\x80\x02cbuiltins\neval\nX\x31\x00\x00\x00__import__('os').system('echo pwned > pwned.txt')\x85R.",
    "getattr": b"\x80\x02cbuiltins\ngetattr\n(cos\nsystem\nX\x08\x00\x00\x00__call__tR.",
    "torch's own loader": b"\x80\x02ctorch.storage\n_load_from_bytes\n" + COMMAND + b"\x85R.",
    "a dotted name": b"\x80\x04\x8c\x0ctorch._utils\x8c\x1c_rebuild_tensor_v2.__class__\x93.",
    "an extension": b"\x80\x02\x82\x01.",
    "a huge memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a huge text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a dict in itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "no end": b"\x80\x02}",
    "an unhashable key": b"\x80\x02}]]s.",
    "a module in itself": b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.",
}


def test_hostile_pickles():
    put("config.json", CONFIG)
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    for what, data in HOSTILE.items():
        says = "which is no part of a tensor" if any(name in data for name in (b"posix", b"cos\n", b"Popen", b"eval", b"_load_from", b"__class__")) else "x.pt"
        put("x.pt", data)
        refused(["x.pt"], says if data[:1] == b"\x80" else "x.pt", f"{what}, bare")
        torch_zip("x.pt", {}, pickled=data)
        refused(["x.pt"], says, f"{what}, in a zip")
        put("x.pt", magic + data)
        refused(["x.pt"], says, f"{what}, in the older form")
    # what was checked cannot be altered afterwards: BUILD sets attributes
    out = io.BytesIO()
    TorchPickler(out).dump({"a": TorchTensor(np.ones((2, 3), "<f4"))})
    check(out.getvalue().endswith(b"s."), "the pickle ends with putting the tensor into its dict")
    altered = out.getvalue()[:-2] + b"}X\x05\x00\x00\x00shapeK\x05\x85sbs."  # before that: {"shape": (5,)}, BUILD
    torch_zip("x.pt", {"a": TorchTensor(np.ones((2, 3), "<f4"))}, pickled=altered)
    refused(["x.pt"], "damaged", "a tensor altered by BUILD")


def test_malformed_safetensors():
    put("config.json", CONFIG)
    write_safetensors("x.safetensors", weights())
    with open("x.safetensors", "rb") as f:
        length = struct.unpack("<Q", f.read(8))[0]
        header, data = json.loads(f.read(length)), f.read()
    names = list(header)
    first, second = names[0], names[1]
    begin, end = header[second]["data_offsets"]
    size = end - begin

    def entry(**changes):
        return json.dumps({**header, second: {**header[second], **changes}}).encode()
    whole = json.dumps(header).encode()
    cases = {
        "nothing": (None, b""), "seven bytes": (None, b"1234567"), "a huge header": (None, struct.pack("<Q", 1 << 63) + whole),
        "a header beyond the file": (None, struct.pack("<Q", len(whole) + 1) + whole), "trailing data": (whole, data + b"123"),
        "missing data": (whole, data[:-3]),
        "no JSON": (b"{hello", data), "an array": (b"[1]", data), "not UTF-8": (whole.replace(b"logit", b"\xff\xfe\xff"), data), "deep": (b"[" * 60000, data),
        "a key twice": (whole[:-1] + b", " + whole[1:], data), "not closed": (whole[:-1], data), "NaN": (entry(shape=[float("nan")]), data),
        "unknown dtype": (entry(dtype="F77"), data), "dtype is no text": (entry(dtype=[1]), data), "shape is text": (entry(shape="8"), data),
        "negative size": (entry(shape=[-size // 4]), data), "true as a size": (entry(shape=[True, size // 4]), data),
        "overflow": (entry(shape=[1 << 62, 4, 1 << 62]), data),
        "other size": (entry(shape=[size // 4 + 1]), data), "one offset": (entry(data_offsets=[begin]), data),
        "negative offset": (entry(data_offsets=[-size, 0]), data),
        "offsets reversed": (entry(data_offsets=[end, begin]), data), "huge offset": (entry(data_offsets=[begin, (1 << 64) + end]), data),
        "overlap": (entry(data_offsets=[begin - 4, end - 4]), data), "a gap": (json.dumps({k: v for k, v in header.items() if k != first}).encode(), data),
        "more in an entry": (entry(more=1), data), "an entry that is none": (json.dumps({**header, second: 3}).encode(), data),
        "metadata": (json.dumps({**header, "__metadata__": {"a": 1}}).encode(), data)}
    for what, (text, rest) in cases.items():
        put("x.safetensors", rest if text is None else struct.pack("<Q", len(text)) + text + rest)
        says = {"overlap": "overlap", "a gap": "unused before", "trailing data": "behind the last tensor", "a key twice": "twice"}.get(what, "x.safetensors: ")
        refused(["x.safetensors"], says, f"safetensors, {what}")
    put("x.safetensors", struct.pack("<Q", len(whole) + 3) + whole + b"   " + data)
    convert_and_expect(["x.safetensors"], weights(), "safetensors padded with spaces")


def test_malformed_torch():
    put("config.json", CONFIG)
    w = weights()
    torch_zip("x.pt", tensors(w), drop=[3])
    refused(["x.pt"], "data/3 is missing", "a missing storage")
    torch_zip("x.pt", [TorchTensor(v) for v in w.values()])
    refused(["x.pt"], "list", "a list")
    torch_zip("x.pt", {**tensors(w), "epoch": 3})
    refused(["x.pt"], "epoch is int", "a number among tensors")
    torch_legacy("x.pt", tensors(w), cut=3)
    refused(["x.pt"], "complete", "older form, cut")
    torch_legacy("x.pt", tensors(w), keys=["0"])
    refused(["x.pt"], "x.pt", "older form, keys missing")
    torch_zip("x.pt", tensors({**w, "ln_final.bias": np.ones(10, "<i8")}))
    refused(["x.pt"], "ln_final.bias holds I64", "whole numbers")
    x = dict(w)
    x["surprise.\nweight"] = np.ones(2, "<f4")
    write_safetensors("x.safetensors", x)
    refused(["x.safetensors"], "surprise. weight has no place", "an extra tensor with a line break in its name")
    np.savez("x.npz", **{**w, "ln_final.bias": np.array(["text"] * 10)})
    refused(["x.npz"], "ln_final.bias", "texts in npz")
    np.savez("x.npz", **{**w, "ln_final.bias": np.array([None] * 10)})
    refused(["x.npz"], "ln_final.bias", "objects in npz")
    write_safetensors("x.safetensors", {**{"text." + k: v for k, v in w.items() if "visual" not in k and k != "logit_scale"}, **w})
    refused(["x.safetensors"], "are there", "with and without text.")
    with zipfile.ZipFile("x.zip", "w") as z:
        z.writestr("readme.txt", "text")
    refused(["x.zip"], "neither torch's", "some other zip")


def test_damaged_files():
    """Cut and altered copies: always exit 0 or 2 with at most one line, never an exception."""
    put("config.json", CONFIG)
    w = weights()
    rng = np.random.default_rng(7)
    write_safetensors("x.safetensors", w)
    torch_zip("x.pt", tensors(w))
    torch_legacy("x.pth", tensors(w))
    np.savez_compressed("x.npz", **w)
    run("x.npz", "-o", "x.bin")
    for name in ("x.safetensors", "x.pt", "x.pth", "x.npz", "x.bin"):
        with open(name, "rb") as f:
            good = f.read()
        for i in range(60):
            bad = bytearray(good)
            if i < 20:
                bad = bad[:int(rng.integers(0, len(good)))]
            else:
                region = len(good) if i % 2 else min(len(good), 6000)  # headers and pickles lie at the beginning, the zip's directory at the end
                for at in rng.integers(0, region, 1 + i % 5):
                    bad[at if i % 3 else -1 - at] = int(rng.integers(0, 256))
            put("damaged" + os.path.splitext(name)[1], bytes(bad))
            try:
                code, _, err = run("damaged" + os.path.splitext(name)[1], "-o", "y.out")
                check(code in (0, 2) and err.count("\n") <= 1 and (code == 0) == os.path.exists("y.out"), f"damaged {name}, {i}: exit {code}: {err[:200]}")
            except Exception as e:
                check(False, f"damaged {name}, {i}: {type(e).__name__}: {e}")
            if os.path.exists("y.out"):
                os.unlink("y.out")


# Started by a small process, since a child's figure begins with the memory of the one that forked it.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def measured(*arguments):
    """A run in a process of its own: -> exit code, peak memory in MB."""
    command = [sys.executable, "-c", MEASURE, sys.executable, os.path.join(ROOT, "dev", "convert.py"), *arguments]
    code, peak = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.split()
    return int(code), int(peak) / (1024 if sys.platform != "darwin" else 1 << 20)


def random_statistics(packed):
    def deviation(name):
        return float(packed.entries[name].read().std())
    C, W, L = 768, 512, 12
    image, text = "visual.transformer.resblocks.3.", "transformer.resblocks.5."
    out = (2 * L * W) ** -0.5
    for name, want in (("visual.class_embedding", C ** -0.5), ("visual.positional_embedding", C ** -0.5), ("visual.proj", C ** -0.5),
                       ("visual.conv1.weight", (9 * 32 * 32) ** -0.5), (image + "mlp.c_fc.weight", (3 * C) ** -0.5),
                       (image + "mlp.c_proj.weight", (12 * C) ** -0.5), (image + "mlp.c_proj.bias", (12 * C) ** -0.5),
                       (image + "attn.out_proj.weight", (3 * C) ** -0.5), (image + "attn.in_proj_weight", (2 * C) ** -0.5),
                       ("token_embedding.weight", 0.02), ("positional_embedding", 0.01),
                       (text + "attn.in_proj_weight", W ** -0.5), (text + "attn.out_proj.weight", out), (text + "mlp.c_proj.weight", out),
                       (text + "mlp.c_fc.weight", (2 * W) ** -0.5), (text + "mlp.c_fc.bias", (3 * W) ** -0.5), ("text_projection", W ** -0.5)):
        size = packed.entries[name].read().size
        check(abs(deviation(name) / want - 1) < 5 / np.sqrt(size), f"random weights: {name} deviates by {deviation(name):.5f}, {want:.5f} is right")
    zeros = [packed.entries[tower + bias].read() for tower in (image, text) for bias in ("attn.in_proj_bias", "attn.out_proj.bias", "ln_1.bias")]
    check(not any(z.any() for z in zeros), "attention and LayerNorm biases are 0")
    check((packed.entries["visual.ln_post.weight"].read() == 1).all(), "gains are 1")
    check(packed.entries["logit_scale"].read()[0] == np.float32(np.log(1 / 0.07)), "logit_scale")


def test_full_size():
    """ViT-B/32 in every direction within twice its largest tensor + 300 MB."""
    limit = 2 * 49408 * 512 * 4 / 1e6 + 300

    def bounded(what, *arguments):
        code, peak = measured(*arguments)
        check(code == 0 and peak < limit, f"{what}: exit {code}, peak of {peak:.0f} MB, {limit:.0f} allowed")
    bounded("random weights", "--model", "ViT-B-32", "--random", "3", "-o", "b32.bin")
    packed = convert.open_packed("b32.bin")
    check(packed.config["name"] == "ViT-B-32" and len(packed.merges) > 400000 and packed.merges.count(b"\n") >= 48893, "name and merges of ViT-B/32")
    random_statistics(packed)
    torch_zip("b32.pt", {k: TorchTensor(e.read().astype("<f2") if k != "logit_scale" else e.read().reshape(())) for k, e in packed.entries.items()})
    bounded("torch fp16", "b32.pt", "-o", "b32h.bin", "--dtype", "bf16")
    half = convert.open_packed("b32h.bin")
    check(half.config["name"] == "ViT-B-32" and half.config["image_heads"] == 12, "ViT-B/32 is known by its shapes")
    os.unlink("b32.pt"), os.unlink("b32h.bin")
    bounded("to open_clip", "b32.bin", "-o", "b32", "--format", "open_clip")
    bounded("from open_clip", "b32", "-o", "again.bin")
    check(subprocess.run(["cmp", "b32.bin", "again.bin"]).returncode == 0, "ViT-B/32 comes back byte for byte")
    shutil.rmtree("b32")
    bounded("to Hugging Face", "b32.bin", "-o", "b32", "--format", "hf")
    words = json.loads(open("b32/vocab.json", encoding="utf-8").read())
    known = {"!": 0, "a</w>": 320, "photo</w>": 1125, "of</w>": 539, "cat</w>": 2368, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    check(len(words) == 49408 and all(words[w] == i for w, i in known.items()), "vocab.json numbers the words as OpenAI's")
    bounded("to OpenAI", "b32.bin", "-o", "b32.pt", "--format", "openai-state")
    os.unlink("again.bin"), os.unlink("b32.pt")


# ---------------------------------------------------------------- golden files

def logits(packed, images, tokens):
    """By dev/reference.py in float64, with the eps of each tower."""
    cfg = exports.open_clip_json(packed.config)["model_cfg"]
    p = {k: np.float64(packed_form.to_float32(e.read(), e.dtype)) for k, e in packed.entries.items()}
    reference.LN_EPS = float(np.float32(packed.config["image_ln_eps"])) if packed.config["image_ln_eps"] != 1e-5 else 1e-5
    x = reference.image_forward(images.astype(np.float64), reference.under("visual.", p), cfg)["normalized"]
    reference.LN_EPS = packed.config["text_ln_eps"]
    y = reference.text_forward(tokens, p, cfg)["normalized"]
    return np.exp(p["logit_scale"].reshape(-1)[0]) * x @ y.T


def round_trips(what, path):
    """.bin -> each other form -> .bin: the same bytes."""
    with open(path, "rb") as f:
        want = f.read()
    for form in convert.FORMATS:
        back = "back.bin" if form == "bin" else "back"
        codes = [run(path, "-o", back, "--format", form), run(back, "-o", "again.bin")]
        check([c[0] for c in codes] == [0, 0], f"{what} through {form}: {codes}")
        with open("again.bin", "rb") as f:
            check(f.read() == want, f"{what} through {form}: other bytes")
        os.unlink("again.bin")
        os.unlink(back) if form == "bin" else shutil.rmtree(back)


def golden_formats(folder, out):
    expected = dict(np.load(os.path.join(folder, "expected.npz")))
    batches = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".npz") and name != "expected.npz":
            arrays = dict(np.load(os.path.join(folder, name)))
            if set(arrays) == {"images", "tokens"}:
                batches[arrays["images"].shape[-1], arrays["tokens"].shape[1]] = arrays
    done = set()
    entries = [n for n in sorted(os.listdir(folder)) if os.path.isdir(os.path.join(folder, n)) or n.endswith((".pt", ".pth", ".bin", ".safetensors", ".npz"))]
    for name in entries:
        keys = [k for k in expected if k == name or k.startswith(name + "/")]
        if name == "expected.npz" or (name.endswith(".npz") and not keys):
            continue
        check(keys, f"{name}: no expected values")
        for given in {name, *keys}:
            code, text, err = run(os.path.join(folder, given), "-o", out)
            check(code == 0, f"{given}: exit {code}: {err.strip()}")
            if code or not keys:
                continue
            packed = convert.open_packed(out)
            batch = batches.get((packed.config["image_size"], packed.config["context_length"]))
            check(batch is not None, f"{given}: no batch of its size")
            if batch is not None:
                got, want = logits(packed, batch["images"], batch["tokens"]), expected[keys[0]]
                error = np.abs(got - want).max() / np.abs(want).max()
                check(got.shape == want.shape and error <= 1e-5, f"{given}: logits off by {error:.2e}")
                print(f"{given}: logits within {error:.1e}")
                round_trips(given, out)
            done.update(keys)
    check(set(expected) == done and done, f"not converted: {sorted(set(expected) - done)}")


def golden_bad(folder, out):
    names = [n for n in sorted(os.listdir(folder)) if n not in ("README.md", "config.json")]
    config = os.path.join(folder, "config.json")
    check(any(n.startswith("good") for n in names) and any(not n.startswith("good") for n in names), "bad/ holds good and bad files")
    for name in names:
        for extra in (["--model", config], []):
            command = [sys.executable, os.path.join(ROOT, "dev", "convert.py"), os.path.join(folder, name), "-o", out, *extra]
            process = subprocess.run(command, capture_output=True, text=True)
            left = [p for p in (out, out + ".part", "pwned.txt", os.path.join(folder, "pwned.txt")) if os.path.exists(p)]
            if name.startswith("good"):
                check(process.returncode == 0 and left == [out], f"{name}: exit {process.returncode}: {process.stderr}")
                if os.path.exists(out):
                    os.unlink(out)
            else:
                one_line = process.stderr.count("\n") == 1 and name in process.stderr
                check(process.returncode == 2 and one_line, f"{name}: exit {process.returncode}: {process.stderr[:300]}")
                check(not left, f"{name}: left {left}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", metavar="DIR")
    golden = parser.parse_args().golden
    golden = golden and os.path.abspath(golden)
    tests = [(test,) for test in checks.tests_of(globals())]
    if golden:
        tests = [(test, os.path.join(golden, part), "out.bin") for test, part in ((golden_formats, "formats"), (golden_bad, "bad"))
                 if os.path.isdir(os.path.join(golden, part))]
    for test in tests:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            checks.run(*test)
            os.chdir(ROOT)
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
