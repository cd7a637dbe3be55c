#!/usr/bin/env python3
"""Tests of dev/convert.py: every form of checkpoint is read, round trips, numbers, memory.

  dev/test/test_convert.py                 all of that
  dev/test/test_convert.py --golden DIR    DIR/formats: every file gives its expected logits; DIR/bad: every
                                           file but good* is refused
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np

import checks
import checkpoint_files
from checkpoint_files import (CONFIG, ROOT, TorchStorage, TorchTensor, bf16_bits, bf16_values, check,
                              convert, convert_and_expect, hf_json, hf_tensors, put, refused, run, script,
                              shapes, tensors, torch_legacy, torch_zip, weights, write_safetensors)
import exports
import models
import packed as packed_form
import reference


def test_every_format_and_number_type_is_read():
    put("config.json", CONFIG)
    w = weights()
    for dtype in ("<f8", "<f4", "<f2"):
        x = weights(1, dtype)
        write_safetensors("x.safetensors", x)
        convert_and_expect(["x.safetensors"], x, f"safetensors {dtype}", image_heads=2, image_mlp=31,
                           eot_id=18, quick_gelu=0, name="x", image_size=11)
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
    optimizer = {"state": {0: {"step": TorchTensor(np.ones((), "<f4"))}},
                 "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.98), "params": [0]}]}
    wrapped = tensors({"module." + k: v for k, v in text.items()})
    training = {"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": optimizer, "scaler": {},
                "global_step": 17}
    torch_zip("x.pt", training)
    convert_and_expect(["x.pt"], w, "training checkpoint with module. and text.")
    torch_legacy("x.pt", {**training, "state_dict": OrderedDict(training["state_dict"])})
    convert_and_expect(["x.pt"], w, "training checkpoint of the older form")


def test_views_of_shared_storages_are_read():
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
    for write, kind in ((torch_zip, "zip"), (torch_legacy, "legacy"),
                        (lambda p, o: torch_zip(p, o, zipfile.ZIP_DEFLATED), "deflated")):
        write("x.pt", views)
        convert_and_expect(["x.pt"], w, f"views, {kind}")
    views["visual.proj"] = TorchTensor(w["visual.proj"], flat, at - 83)
    torch_zip("x.pt", views)
    refused(["x.pt"], "beyond its storage", "a view beyond its storage")


def test_folders_and_shards_are_read():
    w = weights(4)
    theirs = hf_tensors(w)
    put("hf/config.json", hf_json("quick_gelu", 2e-5))
    write_safetensors("hf/model.safetensors", theirs)
    convert_and_expect(["hf"], w, "Hugging Face", quick_gelu=1, image_ln_eps=2e-5, text_ln_eps=2e-5,
                       eot_id=18, image_heads=2, image_mlp=31, name="hf")
    convert_and_expect(["hf/model.safetensors"], w, "Hugging Face's file", quick_gelu=1)
    put("hf/preprocessor_config.json", {"image_mean": [0.5, 0.25, 0.125], "image_std": [1, 2, 3],
                                        "resample": 2, "do_center_crop": False,
                                        "size": {"height": 11, "width": 11}})
    convert_and_expect(["hf"], w, "Hugging Face with a processor", mean_g=0.25, std_b=3, interpolation=1,
                       resize_mode=1)
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
        put(f"hf/{stem}.{suffix}.index.json",
            {"weight_map": {**index["weight_map"], names[0]: f"{stem}-1.{suffix}"}})
        refused(["hf"], names[0], "an index that names the wrong shard")
        put(f"hf/{stem}.{suffix}.index.json",
            {"weight_map": {**index["weight_map"], names[0]: "../model-0.safetensors"}})
        refused(["hf"], "files of this folder", "an index that leaves its folder")
        put(f"hf/{stem}.{suffix}.index.json",
            {"weight_map": {**index["weight_map"], "more": f"{stem}-9.{suffix}"}})
        refused(["hf"], f"{stem}-9.{suffix}: is missing", "a shard that is missing")
        os.unlink(f"hf/{stem}.{suffix}.index.json")
    refused(["hf"], "holds none of", "a folder without weights")

    look = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1], "interpolation": "bilinear",
            "resize_mode": "longest", "size": [11, 11], "fill_color": 0}
    put("hub/open_clip_config.json",
        {"model_cfg": {**CONFIG, "quick_gelu": True, "custom_text": True}, "preprocess_cfg": look})
    torch_zip("hub/open_clip_pytorch_model.bin", tensors(w))
    for given in ("hub", "hub/open_clip_pytorch_model.bin"):
        convert_and_expect([given], w, "hub folder", quick_gelu=1, mean_r=0.5, std_r=0.25, interpolation=1,
                           resize_mode=2)
    less = {k: v for k, v in theirs.items() if not k.endswith("layers.1.self_attn.k_proj.bias")}
    write_safetensors("hf/model.safetensors", less)
    refused(["hf"], "vision_model.encoder.layers.1.self_attn.k_proj.bias is missing",
            "a missing third of qkv")


def openai_like(head=64):
    C, W = 2 * head, head
    of = shapes(E=9, P=5, C=C, T=5, F=4 * C, L=1, V=30, W=W, N=6, G=4 * W)
    return {k: v.astype("<f2") if "ln_" not in k and k != "logit_scale" else v
            for k, v in weights(5, of=of).items()}


def test_architectures_are_found_by_archive_and_shapes():
    w = openai_like()
    facts = {k: np.array(v, "<i8")
             for k, v in (("input_resolution", 12), ("context_length", 6), ("vocab_size", 30))}
    mask = {"transformer.resblocks.0.attn_mask": np.full((6, 6), -np.inf, "<f4")}
    torch_zip("jit.pt", script({**w, **facts, **mask}),
              extra_members=["constants.pkl", "code/__torch__/model.py"])
    for extra in ((), ("config.json",)):
        for name in extra:
            put(name, CONFIG)  # of another model: OpenAI's archive needs no configuration
        out, err = convert_and_expect(["jit.pt"], w, "TorchScript", quick_gelu=1, image_heads=2, text_heads=1,
                                      image_size=12, patch_size=5, context_length=6)
        check("OpenAI" in out and not err, "the activation of OpenAI's file is known")
    os.unlink("config.json")
    torch_zip("jit.pt", script({**w, **facts}, ["GELU"]), extra_members=["constants.pkl"])
    convert_and_expect(["jit.pt"], w, "TorchScript with GELU", quick_gelu=0)
    torch_zip("plain.pt", tensors({**w, **facts}))
    convert_and_expect(["plain.pt"], w, "OpenAI's state dict", quick_gelu=1, image_size=12)
    torch_zip("plain.pt", tensors(w))
    out, err = convert_and_expect(["plain.pt"], w, "by shapes alone", quick_gelu=0, image_size=10,
                                  image_heads=2)
    check("shapes" in out and "warning" in err and "--force-quick-gelu" in err and err.count("\n") == 1,
          f"a guessed activation is reported: {err!r}")
    out, err = convert_and_expect(["plain.pt", "--force-quick-gelu"], w, "--force-quick-gelu", quick_gelu=1)
    check(not err, "a forced activation is not a guess")
    torch_zip("odd.pt", tensors(weights()))
    refused(["odd.pt"], "--model", "shapes that do not tell the heads")
    torch_zip("odd.pt", tensors({k: v for k, v in w.items() if not k.startswith("visual.conv1")}))
    refused(["odd.pt"], "visual.conv1.weight is missing", "not a CLIP")
    wide = shapes(E=1024, P=14, C=1280, T=257, F=5120, L=32, V=49408, W=1024, N=77, G=4096, M=24)
    entries = {k: convert.Entry("F32", s, None) for k, s in wide.items()}
    checkpoint = types.SimpleNamespace(entries=entries, path="h", facts={}, openai=False)
    config = models.config_from_shapes(checkpoint).config
    check(config["image_heads"] == 16 and config["text_heads"] == 16
          and models.similar_row(config)[0] == "ViT-H-14", "the heads of a known model are its own")


def test_open_clip_and_back_changes_no_bit():
    put("config.json", {**CONFIG, "quick_gelu": True,
                        "text_cfg": {**CONFIG["text_cfg"], "mlp_ratio": 3.33, "norm_kwargs": {"eps": 1e-6}}})
    w = weights(6, of=shapes(G=33))
    w["ln_final.bias"][:4] = [0.0, -0.0, 1e-45, 3.3e38]
    write_safetensors("x.safetensors", w)
    for dtype in ("fp32", "bf16"):
        run("x.safetensors", "--dtype", dtype, "-o", "one.bin")
        shutil.rmtree("back", ignore_errors=True)
        code, _, err = run("one.bin", "-o", "back", "--format", "open_clip")
        check(code == 0
              and sorted(os.listdir("back")) == ["open_clip_config.json", "open_clip_model.safetensors"],
              f"export {dtype}: {err}")
        back = convert.open_checkpoint("back/open_clip_model.safetensors")
        packed = convert.open_packed("one.bin")
        for name, entry in back.entries.items():
            check(entry.dtype == {"fp32": "F32", "bf16": "BF16"}[dtype] and entry.shape == shapes(G=33)[name],
                  f"export {dtype}: {name}: type or shape")
            check(entry.read().tobytes() == packed.entries[name].read().tobytes(),
                  f"export {dtype}: {name}: bits")
        run("back", "--dtype", dtype, "-o", "two.bin")
        one, two = convert.open_packed("one.bin"), convert.open_packed("two.bin")
        check(one.config == two.config, f"the configuration comes back, {dtype}")
        with open("one.bin", "rb") as a, open("two.bin", "rb") as b:
            check(a.read() == b.read(), f"all comes back, {dtype}")
        run("one.bin", "-o", "three.bin", "--force-quick-gelu")
        with open("one.bin", "rb") as a, open("three.bin", "rb") as b:
            check(a.read() == b.read(), ".bin to .bin is the same file")
    for hidden, width in ((6144, 1408), (8192, 1664), (15360, 1792), (261, 60), (3072, 768), (1, 7),
                          (65535, 16383)):
        check(int(width * exports.ratio_of(hidden, width)) == hidden, f"mlp_ratio of {hidden} at {width}")


def test_bf16_rounds_to_nearest_even_and_overflow_is_refused():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1 << 32, 200000, dtype=np.uint64).astype("<u4")
    ties = (rng.integers(0, 1 << 16, 2000).astype("<u4") << 16) | 0x8000
    x = np.concatenate([x, ties, ties - 1, ties + 1]).view("<f4")
    x = x[np.isfinite(x) & (np.abs(x) < 3.38e38)]
    check(np.array_equal(packed_form.to_bf16(x), bf16_bits(x)), "bf16 rounds to nearest, ties to even")
    put("config.json", CONFIG)
    w = weights()
    for value, dtype, says in ((np.nan, "fp32", "nan"), (-np.inf, "bf16", "-inf"),
                               (3.4e38, "bf16", "3.4e+38, too large for BF16")):
        w["visual.proj"][2, 3] = value
        write_safetensors("x.safetensors", w)
        refused(["x.safetensors", "--dtype", dtype], "visual.proj[2][3] is " + says, f"{value} in {dtype}")
    d = weights(0, "<f8")
    d["ln_final.bias"][9] = 1e39
    write_safetensors("x.safetensors", d)
    refused(["x.safetensors"], "ln_final.bias[9] is 1e+39, too large for F32", "a double beyond float")


# Started by a small process, since a child's figure begins with the memory of the one that forked it.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def measured(*arguments):
    """A run in a process of its own: -> exit code, peak memory in MB."""
    command = [sys.executable, "-c", MEASURE, sys.executable, os.path.join(ROOT, "dev", "convert.py"),
               *arguments]
    code, peak = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.split()
    return int(code), int(peak) / (1024 if sys.platform != "darwin" else 1 << 20)


def random_statistics(packed):
    def deviation(name):
        return float(packed.entries[name].read().std())
    C, W, L = 768, 512, 12
    image, text = "visual.transformer.resblocks.3.", "transformer.resblocks.5."
    out = (2 * L * W) ** -0.5
    for name, want in (("visual.class_embedding", C ** -0.5), ("visual.positional_embedding", C ** -0.5),
                       ("visual.proj", C ** -0.5), ("visual.conv1.weight", (9 * 32 * 32) ** -0.5),
                       (image + "mlp.c_fc.weight", (3 * C) ** -0.5),
                       (image + "mlp.c_proj.weight", (12 * C) ** -0.5),
                       (image + "mlp.c_proj.bias", (12 * C) ** -0.5),
                       (image + "attn.out_proj.weight", (3 * C) ** -0.5),
                       (image + "attn.in_proj_weight", (2 * C) ** -0.5), ("token_embedding.weight", 0.02),
                       ("positional_embedding", 0.01), (text + "attn.in_proj_weight", W ** -0.5),
                       (text + "attn.out_proj.weight", out), (text + "mlp.c_proj.weight", out),
                       (text + "mlp.c_fc.weight", (2 * W) ** -0.5), (text + "mlp.c_fc.bias", (3 * W) ** -0.5),
                       ("text_projection", W ** -0.5)):
        size = packed.entries[name].read().size
        check(abs(deviation(name) / want - 1) < 5 / np.sqrt(size),
              f"random weights: {name} deviates by {deviation(name):.5f}, {want:.5f} is expected")
    zeros = [packed.entries[tower + bias].read() for tower in (image, text)
             for bias in ("attn.in_proj_bias", "attn.out_proj.bias", "ln_1.bias")]
    check(not any(z.any() for z in zeros), "attention and LayerNorm biases are 0")
    check((packed.entries["visual.ln_post.weight"].read() == 1).all(), "gains are 1")
    check(packed.entries["logit_scale"].read()[0] == np.float32(np.log(1 / 0.07)), "logit_scale")


def test_a_full_size_model_converts_within_bounded_memory():
    """ViT-B/32 in every direction within twice its largest tensor + 300 MB."""
    limit = 2 * 49408 * 512 * 4 / 1e6 + 300

    def bounded(what, *arguments):
        code, peak = measured(*arguments)
        check(code == 0 and peak < limit, f"{what}: exit {code}, peak of {peak:.0f} MB, {limit:.0f} allowed")
    bounded("random weights", "--model", "ViT-B-32", "--random", "3", "-o", "b32.bin")
    packed = convert.open_packed("b32.bin")
    check(packed.config["name"] == "ViT-B-32" and len(packed.merges) > 400000
          and packed.merges.count(b"\n") >= 48893, "name and merges of ViT-B/32")
    random_statistics(packed)
    torch_zip("b32.pt", {k: TorchTensor(e.read().astype("<f2") if k != "logit_scale"
                                        else e.read().reshape(())) for k, e in packed.entries.items()})
    bounded("torch fp16", "b32.pt", "-o", "b32h.bin", "--dtype", "bf16")
    half = convert.open_packed("b32h.bin")
    check(half.config["name"] == "ViT-B-32" and half.config["image_heads"] == 12,
          "ViT-B/32 is recognised by its shapes")
    os.unlink("b32.pt"), os.unlink("b32h.bin")
    bounded("to open_clip", "b32.bin", "-o", "b32", "--format", "open_clip")
    bounded("from open_clip", "b32", "-o", "again.bin")
    check(subprocess.run(["cmp", "b32.bin", "again.bin"]).returncode == 0,
          "ViT-B/32 comes back byte for byte")
    shutil.rmtree("b32")
    bounded("to Hugging Face", "b32.bin", "-o", "b32", "--format", "hf")
    words = json.loads(open("b32/vocab.json", encoding="utf-8").read())
    known = {"!": 0, "a</w>": 320, "photo</w>": 1125, "of</w>": 539, "cat</w>": 2368,
             "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    check(len(words) == 49408 and all(words[w] == i for w, i in known.items()),
          "vocab.json numbers the words as OpenAI's")
    bounded("to OpenAI", "b32.bin", "-o", "b32.pt", "--format", "openai-state")
    os.unlink("again.bin"), os.unlink("b32.pt")


# ---------------------------------------------------------------- golden files

def logits(packed, images, tokens):
    """By dev/reference.py in float64, with the eps of each tower."""
    cfg = exports.open_clip_json(packed.config)["model_cfg"]
    p = {k: np.float64(packed_form.to_float32(e.read(), e.dtype)) for k, e in packed.entries.items()}
    reference.LN_EPS = (float(np.float32(packed.config["image_ln_eps"]))
                        if packed.config["image_ln_eps"] != 1e-5 else 1e-5)
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
    entries = [n for n in sorted(os.listdir(folder)) if os.path.isdir(os.path.join(folder, n))
               or n.endswith((".pt", ".pth", ".bin", ".safetensors", ".npz"))]
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
    check(any(n.startswith("good") for n in names) and any(not n.startswith("good") for n in names),
          "bad/ holds good and bad files")
    for name in names:
        for extra in (["--model", config], []):
            command = [sys.executable, os.path.join(ROOT, "dev", "convert.py"), os.path.join(folder, name),
                       "-o", out, *extra]
            process = subprocess.run(command, capture_output=True, text=True)
            left = [p for p in (out, out + ".part", "pwned.txt", os.path.join(folder, "pwned.txt"))
                    if os.path.exists(p)]
            if name.startswith("good"):
                check(process.returncode == 0 and left == [out],
                      f"{name}: exit {process.returncode}: {process.stderr}")
                if os.path.exists(out):
                    os.unlink(out)
            else:
                one_line = process.stderr.count("\n") == 1 and name in process.stderr
                check(process.returncode == 2 and one_line,
                      f"{name}: exit {process.returncode}: {process.stderr[:300]}")
                check(not left, f"{name}: left {left}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", metavar="DIR")
    golden = parser.parse_args().golden
    if not golden:
        return checkpoint_files.run_tests(globals())
    for test, part in ((golden_formats, "formats"), (golden_bad, "bad")):
        folder = os.path.join(os.path.abspath(golden), part)
        if os.path.isdir(folder):
            checkpoint_files.run_in_folder(test, folder, "out.bin")
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
