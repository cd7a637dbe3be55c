#!/usr/bin/env python3
"""dev/reference.py against finite differences, loops and itself; with folders as arguments, also
`--golden DIR --check` of each.

  python3 dev/test/test_reference.py [GOLDEN_MODEL_DIR ...]
"""
import contextlib
import io
import itertools
import json
import math
import os
import struct
import sys
import tempfile

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import checks
from checks import check as expect
import reference as ref

rng = np.random.default_rng(1)

# Sizes are not multiples of one another; 11 pixels leave two rows and columns beyond the grid of 3 × 3; the
# MLP is int(10 · 2.57) = 25 wide.
CONFIG = {"embed_dim": 7, "quick_gelu": False, "vision_cfg": {"image_size": 11, "patch_size": 3, "width": 10,
                                                              "head_width": 5, "layers": 2,
                                                              "mlp_ratio": 2.57},
          "text_cfg": {"context_length": 6, "vocab_size": 19, "width": 9, "heads": 3, "layers": 2,
                       "mlp_ratio": 4.0}}

def expect_close(a, b, tolerance, what):
    a, b = np.asarray(a), np.asarray(b)
    error = np.abs(a - b).max() / max(1e-2, np.abs(b).max()) if a.shape == b.shape else math.inf
    expect(error <= tolerance, f"{what}: {error:.1e} off")  # NaN compares false, so it fails

def run(*argv):
    """-> exit code, standard output, standard error of the command line"""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = ref.main(list(map(str, argv)))
    return code, out.getvalue(), err.getvalue()

# ---------------------------------------------------------------- finite differences

def slope(f, x, direction, h=2e-4):
    """d/ds f(x + s·direction) at 0, five points: its error falls with h⁴."""
    return (8 * (f(x + h * direction) - f(x - h * direction))
            - (f(x + 2 * h * direction) - f(x - 2 * h * direction))) / (12 * h)

def expect_gradient(f, x, gradient, what):
    """Along random directions (every entry takes part) and along the axes of a few entries; f: array ->
    number"""
    expect(np.shape(gradient) == np.shape(x),
           f"{what}: shape {np.shape(gradient)} of the gradient, {np.shape(x)} of the array")
    directions = [rng.standard_normal(np.shape(x)) for _ in range(2)]
    for i in rng.permutation(np.size(x))[:4]:
        directions.append((np.arange(np.size(x)) == i).reshape(np.shape(x)).astype(float))
    directions = [x / np.linalg.norm(x) for x in directions]
    numeric = [slope(f, x, direction) for direction in directions]
    expect_close([(gradient * direction).sum() for direction in directions], numeric, 1e-8, what)

def expect_layer(what, forward, backward, **inputs):
    """The gradients that backward returns, in the order of the inputs, of Σ weights · forward(inputs)"""
    weights = rng.standard_normal(forward(**inputs).shape)
    for name, gradient in zip(inputs, backward(weights, **inputs)):
        expect_gradient(lambda x: (weights * forward(**{**inputs, name: x})).sum(), inputs[name], gradient,
                        f"{what}, d{name}")

def test_gradients_of_layers_match_finite_differences():
    normal = rng.standard_normal
    expect_layer("linear", ref.linear_forward, lambda dy, x, weight, bias: ref.linear_backward(dy, x, weight),
                 x=normal((3, 5, 7)), weight=normal((11, 7)), bias=normal(11))
    expect_layer("layernorm",
                 ref.layernorm_forward, lambda dy, x, gain, bias: ref.layernorm_backward(dy, x, gain),
                 x=normal((3, 5, 7)), gain=normal(7), bias=normal(7))
    expect_layer("normalize", ref.normalize_forward, lambda dn, x: (ref.normalize_backward(dn, x),),
                 x=normal((5, 7)))
    for quick, causal in ((False, False), (True, True)):
        expect_layer(f"gelu, quick={quick}", lambda x: ref.gelu_forward(x, quick),
                     lambda dy, x: (ref.gelu_backward(dy, x, quick),), x=3 * normal((5, 7)))
        expect_layer(f"attention, causal={causal}", lambda qkv: ref.attention_forward(qkv, 5, causal),
                     lambda do, qkv: (ref.attention_backward(do, qkv, 5, causal),),
                     qkv=normal((3, 7, 3 * 5 * 9)))
    expect_close(ref.gelu_forward(np.array([1.0, -2.0]), False), [0.8413447460685429, -0.04550026389635842],
                 1e-15, "gelu at 1 and -2")
    expect_close(ref.gelu_forward(np.array([1.0, -2.0]), True),
                 [1 / (1 + math.exp(-1.702)), -2 / (1 + math.exp(3.404))], 1e-15, "quick gelu at 1 and -2")

def test_gradients_of_a_block_match_finite_differences():
    C, H = 10, 13
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "width": C, "mlp_ratio": H / C, "layers": 1}}
    shapes = {k[len("transformer.resblocks.0."):]: shape for k, shape in ref.parameter_shapes(config).items()
              if k.startswith("transformer.")}
    p = {k: 0.5 * rng.standard_normal(shape) + k.startswith("ln") for k, shape in shapes.items()}
    x = rng.standard_normal((3, 7, C))
    for causal, quick in ((False, False), (True, True)):
        kind = {"NH": 2, "causal": causal, "quick": quick}
        dout = rng.standard_normal(x.shape)
        dx, g = ref.block_backward(dout, x, p, ref.block_forward(x, p, **kind), **kind)
        expect_gradient(lambda x: (dout * ref.block_forward(x, p, **kind)["out"]).sum(), x, dx, "block, dx")
        for k in p:
            expect_gradient(lambda w: (dout * ref.block_forward(x, {**p, k: w}, **kind)["out"]).sum(), p[k],
                            g[k], f"block, d{k}")

def test_the_loss_is_its_definition_and_has_its_gradient():
    B, s = 6, 1.3
    x, y = (ref.normalize_forward(rng.standard_normal((B, 7))) for _ in "xy")
    groups = np.array([0, 1, 0, 2, 1, 0])
    S = (groups[:, None] == groups).astype(float)
    for what, args in (("plain", ()), ("soft", (S,)), ("masked", (S, True))):
        a = ref.loss_forward(x, y, s, *args)
        total = 0
        # the definition, entry by entry: image i, caption j
        for i, j in itertools.product(range(B), range(B)):
            keep = lambda i, j: what != "masked" or i == j or groups[i] != groups[j]
            target = ((groups[i] == groups[j]) / (groups == groups[i]).sum() if what == "soft"
                      else float(i == j))
            logit = lambda i, j: math.exp(s) * float(x[i] @ y[j])
            row = sum(math.exp(logit(i, n)) for n in range(B) if keep(i, n))
            column = sum(math.exp(logit(n, j)) for n in range(B) if keep(n, j))
            total += target * (math.log(row) + math.log(column) - 2 * logit(i, j)) / (2 * B)
        expect_close(a["loss"], total, 1e-14, f"{what} loss against loops")
        dx, dy, ds = ref.loss_backward(x, y, s, a)
        expect_gradient(lambda x: ref.loss_forward(x, y, s, *args)["loss"], x, dx, f"{what} loss, dx")
        expect_gradient(lambda y: ref.loss_forward(x, y, s, *args)["loss"], y, dy, f"{what} loss, dy")
        expect_gradient(lambda s: ref.loss_forward(x, y, float(s), *args)["loss"], np.array(s), ds,
                        f"{what} loss, dlogit_scale")
    expect_close(ref.loss_forward(x, y, 50.0)["loss"] / math.exp(50.0),
                 ref.loss_forward(x, y, 49.0)["loss"] / math.exp(49.0), 1e-14, "loss of huge logits")

def drawn(cfg):
    """-> parameters, images, tokens"""
    p = {k: v.astype(np.float64) for k, v in ref.under("weights/", ref.draw_weights(cfg, rng)).items()}
    return (p, *ref.draw_pairs(cfg, rng, 5))

def test_gradients_of_the_model_match_finite_differences():
    for quick in (False, True):
        cfg = {**CONFIG, "quick_gelu": quick}
        p, images, tokens = drawn(cfg)
        a = ref.clip_forward(p, cfg, images, tokens)
        g, dimage, dtext = ref.clip_backward(p, cfg, images, tokens, a)
        expect(g.keys() == p.keys() == ref.parameter_shapes(cfg).keys(), "a gradient for every parameter")
        for k in p:
            expect_gradient(lambda w: ref.clip_forward({**p, k: w}, cfg, images, tokens)["loss"], p[k], g[k],
                            f"model, d{k}")
        x, y, s = a["vision.normalized"], a["text.normalized"], p["logit_scale"]
        expect_gradient(lambda x: ref.loss_forward(x, y, s)["loss"], x, dimage, "model, dimage_features")
        expect_gradient(lambda y: ref.loss_forward(x, y, s)["loss"], y, dtext, "model, dtext_features")

# ---------------------------------------------------------------- what the towers look at

def test_towers_pool_class_token_and_end_of_text():
    p, images, tokens = drawn(CONFIG)
    image_p = ref.under("visual.", p)
    moved = images.copy()
    moved[:, :, 9:, :], moved[:, :, :, 9:] = 7, 7
    same = (ref.image_forward(moved, image_p, CONFIG)["features"]
            == ref.image_forward(images, image_p, CONFIG)["features"])
    expect(same.all(), "pixels beyond the grid are not seen")
    moved = images.copy()
    moved[:, 2, 8, 8] += 1
    before, after = (ref.image_forward(x, image_p, CONFIG)["features"] for x in (images, moved))
    other = after != before
    expect(other.all(), "the last pixel of the grid is seen")
    ramp = np.arange(2 * 3 * 11 * 11).reshape(2, 3, 11, 11)
    expect((ref.patches_of(ramp, 3)[1, 5].reshape(3, 3, 3) == ramp[1, :, 3:6, 6:9]).all(),
           "patch 5 of 3 x 3 is row 1, column 2, channels first")
    before = ref.text_forward(tokens, p, CONFIG)
    changed = tokens.copy()
    changed[:, 4] = 3
    after = ref.text_forward(changed, p, CONFIG)
    expect_close(after["ln_final"][:, :4], before["ln_final"][:, :4], 1e-15,
                 "a later token does not reach earlier ones")
    expect(np.abs(after["ln_final"][:, 5] - before["ln_final"][:, 5]).max() > 1e-3,
           "an earlier token reaches later ones")
    expect(before["eot_index"].tolist()[:2] == [1, 5], "an empty and a full caption end where they should")
    expect(ref.text_forward(np.array([[17, 2, 18, 4, 18, 18]]), p, CONFIG)["eot_index"][0] == 2,
           "the first end-of-text counts")

# ---------------------------------------------------------------- training

def test_adamw_is_its_definition():
    p, images, tokens = drawn(CONFIG)
    start = {k: v.copy() for k, v in p.items()}
    g = {k: rng.standard_normal(np.shape(v)) for k, v in p.items()}
    m, v = ({k: np.zeros(np.shape(x)) for k, x in p.items()} for _ in "mv")
    ref.adamw_step(p, g, m, v, 1, 0.01)
    # in the first step m̂ = g and v̂ = g²: each weight moves by lr against the sign of its gradient, after the decay
    for k in p:
        decayed = 1 - 0.01 * (0.2 if start[k].ndim > 1 and not k.endswith("positional_embedding") else 0)
        expect_close(p[k], start[k] * decayed - 0.01 * g[k] / (np.abs(g[k]) + 1e-6), 1e-12,
                     f"first AdamW step of {k}")
    previous, second = dict(p), {k: rng.standard_normal(np.shape(x)) for k, x in p.items()}
    ref.adamw_step(p, second, m, v, 2, 0.0)
    expect(all((p[k] == previous[k]).all() for k in p), "a rate of 0 moves nothing")
    expect_close(m["ln_final.bias"], 0.09 * g["ln_final.bias"] + 0.1 * second["ln_final.bias"], 1e-14,
                 "first moment")
    expect_close(v["ln_final.bias"], 0.0196 * g["ln_final.bias"] ** 2 + 0.02 * second["ln_final.bias"] ** 2,
                 1e-14, "second moment")
    expect(sorted(k for k in p if "embedding" in k and ref.weight_decay(k, p[k].shape) == 0)
           == ["positional_embedding", "visual.class_embedding", "visual.positional_embedding"],
           "embeddings without decay")
    for scale, sign, clamped in ((4.6045, -1, math.log(100)), (0.0005, 1, 0.0)):
        q = {"logit_scale": np.float64(scale)}
        ref.adamw_step(q, {"logit_scale": np.float64(sign)}, {"logit_scale": 0.0}, {"logit_scale": 0.0}, 1,
                       0.001)
        expect(q["logit_scale"] == clamped, f"logit_scale is clamped to {clamped}")
    cosine = [5e-4, 1e-3, 1e-3, 1e-3 * (0.5 + 0.25 * math.sqrt(2)), 5e-4, 1e-3 * (0.5 - 0.25 * math.sqrt(2))]
    expect_close([ref.learning_rate(t, 6) for t in range(6)], cosine, 1e-14, "cosine after warmup")
    free, clipped = (ref.train(start, CONFIG, [(images, tokens)], clip) for clip in (None, 0.5))
    expect_close(clipped["grad_norm"], free["grad_norm"], 0, "grad_norm is taken before clipping")
    norm = math.sqrt(sum((m ** 2).sum() for m in ref.under("m.", clipped).values())) / (1 - 0.9)
    expect(free["grad_norm"][0] > 0.5 and abs(norm - 0.5) < 1e-6,
           "the clipped gradient has the norm that was asked for")
    only = ref.train(start, CONFIG, [(images, tokens)], trainable=["logit_scale"])
    expect(all((only["final." + k] == start[k]).all() == (k != "logit_scale") for k in start),
           "only what trains moves")

def test_lock_groups_and_ranks_are_those_of_open_clip():
    for name, wanted in (("visual.proj", ("image", 0)), ("visual.ln_post.bias", ("image", 1)),
                         ("visual.transformer.resblocks.1.ln_1.bias", ("image", 1)),
                         ("visual.transformer.resblocks.0.ln_1.bias", ("image", 2)),
                         ("visual.ln_pre.bias", ("image", 3)), ("visual.conv1.weight", ("image", 3)),
                         ("text_projection", ("text", 0)), ("ln_final.bias", ("text", 1)),
                         ("transformer.resblocks.0.mlp.c_fc.bias", ("text", 2)),
                         ("positional_embedding", ("text", 3)), ("logit_scale", (None, 0))):
        expect(ref.groups_above(name, CONFIG) == wanted, f"groups above {name}")
    # ranks 0, 1 (a tie with the lower index 0), 1 (with 1)
    scores = np.array([[1.0, 1, 0], [2, 2, 1], [0, 1, 1]])
    expect(ref.retrieval(scores)
           == {"mean_rank": 2 / 3 + 1, "median_rank": 2.0, "R@1": 1 / 3, "R@5": 1.0, "R@10": 1.0},
           "retrieval with ties")

# ---------------------------------------------------------------- files and the command line

def content(path):
    with open(path, "rb") as f:
        return f.read()

def read_records(path):
    with open(path, "rb") as f:
        magic, version, count = struct.unpack("<3i", f.read(12))
        d = {}
        for _ in range(count):
            name = f.read(struct.unpack("<i", f.read(4))[0]).decode()
            code, ndim = struct.unpack("<2i", f.read(8))
            shape, dtype = struct.unpack(f"<{ndim}q", f.read(8 * ndim)), np.dtype(["<f4", "<f8", "<i4"][code])
            d[name] = np.frombuffer(f.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
        expect((magic, version) == (0x47424443, 1) and len(d) == count and not f.read(),
               f"{path} is whole and holds each record once")
    return d

def write_folder(folder, d):
    """A folder as --golden takes it, from records"""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(CONFIG, f)
    nested = {"locked": {}, "layer_decay": {}}
    for k, v in d.items():
        if k.split("/")[0] in nested:
            table, case, name = k.split("/")
            nested[table].setdefault(case, {})[name] = float(v)
    tables = {"weight_decay": {k: float(v) for k, v in ref.under("weight_decay/", d).items()},
              "layer_decay": nested["layer_decay"],
              "locked": {case: list(names) for case, names in nested["locked"].items()}}
    for table, value in tables.items():
        with open(os.path.join(folder, table + ".json"), "w", encoding="utf-8") as f:
            json.dump(value, f)
    for stem in {k.split("/")[0] for k in d} - {*tables, "hyper"}:
        np.savez(os.path.join(folder, stem + ".npz"), **ref.under(stem + "/", d))

def test_files_hold_every_array(tmp):
    config, weights, debug, again, folder = (os.path.join(tmp, x)
                                             for x in ("c.json", "w.npz", "d.bin", "e.bin", "golden"))
    with open(config, "w", encoding="utf-8") as f:
        json.dump(CONFIG, f)
    make = ("--config", config, "--weights", weights, "--batch", 4, "--steps", 3)
    expect(run(*make, "--seed", 5, "-o", debug) == (0, "", ""), "a random model is written")
    run(*make, "--seed", 5, "-o", again)
    expect(content(debug) == content(again), "same seed, same bytes")
    run(*make, "--seed", 6, "-o", again)
    expect(content(debug) != content(again), "another seed, another model")
    run(*make, "--seed", 5, "-o", again)
    d = read_records(debug)
    with np.load(weights) as w:
        expect(set(w.files) == ref.under("weights/", d).keys(), "the state dict holds every weight")
        expect(all((w[k] == d["weights/" + k]).all() and w[k].dtype == np.float32 for k in w.files),
               "the state dict's weights are the records'")
    for kind, trivial in (("bias", 0), (".weight", 1)):
        vectors = [v for k, v in d.items() if k.startswith("weights/") and k.endswith(kind) and v.ndim == 1]
        expect(vectors and all((v != trivial).all() for v in vectors), f"no {kind} vector holds a {trivial}")
    expect((d["adamw_batches/images"].shape, d["batch/tokens"].shape, d["activations/loss"].shape)
           == ((3, 4, 3, 11, 11), (4, 6), ()), "shapes")
    expect(all(np.isfinite(v).all() for v in d.values()), "every record is finite")
    captions = d["accum/tokens"][d["val/rows"]]
    expect(len(np.unique(captions, axis=0)) == len(captions), "val: distinct captions")
    expect(2 <= len(captions) % d["val/batch_size"] < len(captions), "val: the last batch is smaller")
    expect(d["adamw_clamp/high.logit_scale"][-1] == math.log(100)
           and d["adamw_clamp/low.logit_scale"][-1] == 0, "the clamp is reached at both ends")
    expect_close(d["hyper/beta2"], 0.98, 0, "hyper-parameters are recorded")

    write_folder(folder, d)
    code, out, _ = run("--golden", folder, "--check")
    expect(code == 0 and out.endswith(" 0 failed\n"),
           "what was written passes the check:\n" + "\n".join(x for x in out.splitlines() if "FAILED" in x))
    expect(run("--golden", folder, "-o", again) == (0, "", ""), "a folder is packed")
    packed = read_records(again)
    expect(packed.keys() == d.keys()
           and all(packed[k].dtype == d[k].dtype and packed[k].tobytes() == d[k].tobytes() for k in d),
           "packing changes nothing")

    table_entry = "layer_decay/image_0.7/visual.conv1.weight"
    for what, change in (("altered", lambda x: x + 1e-3), ("not a number", lambda x: x * math.nan),
                         ("misshapen", lambda x: x[None]), ("missing", None)):
        for name in ("activations/vision.block1", "grads/param.ln_final.bias",
                     "adamw_clip1/final.visual.proj", "multipos/masked.grad_text_features",
                     *([table_entry] if what == "altered" else [])):
            wrong = {k: v for k, v in d.items() if k != name}
            if change:
                wrong[name] = change(d[name])
            write_folder(folder, wrong)
            code, out, _ = run("--golden", folder, "--check")
            lines = [x for x in out.splitlines() if x.startswith("FAILED")]
            expect(code == 1 and len(lines) == 1 and lines[0].split()[1] == name,
                   f"the check names {name} when it is {what}")
    write_folder(folder,
                 {**d, "grads/param.unknown": np.ones(3), "locked/image_1/visual.conv1.weight": np.int32(1)})
    expect(run("--golden", folder, "--check")[1].endswith(" 2 failed\n"), "what cannot be recomputed fails")

def test_bad_input_is_refused_in_one_line(tmp):
    config, output, folder = (os.path.join(tmp, x) for x in ("bad.json", "bad.bin", "bad"))
    weights = output + ".npz"
    os.makedirs(folder)
    def refused(what, *argv):
        code, out, err = run(*argv)
        expect(code == 2 and not out and err.startswith("reference.py: ") and err.count("\n") == 1,
               f"{what} is refused with one line: {err}")
        expect(not any(x.startswith("bad.bin") for x in os.listdir(tmp)), f"{what}: nothing is written")
    vision, text = CONFIG["vision_cfg"], CONFIG["text_cfg"]
    for what, text_of_config in (
            ("a file that is not JSON", "{"), ("a list", "[]"), ("an empty configuration", "{}"),
            ("another kind of tower", json.dumps({**CONFIG, "vision_cfg": {"timm_model_name": "x"}})),
            ("a word for an activation", json.dumps({**CONFIG, "quick_gelu": "no"})),
            ("an unknown option", json.dumps({**CONFIG, "custom_text": True})),
            ("a width the heads do not divide", json.dumps({**CONFIG, "text_cfg": {**text, "heads": 4}})),
            ("no layers", json.dumps({**CONFIG, "vision_cfg": {**vision, "layers": 0}})),
            ("a string for a number", json.dumps({**CONFIG, "vision_cfg": {**vision, "width": "10"}})),
            ("a patch above the image", json.dumps({**CONFIG, "vision_cfg": {**vision, "patch_size": 12}}))):
        with open(config, "w", encoding="utf-8") as f:
            f.write(text_of_config)
        refused(what, "--config", config, "--weights", weights, "-o", output)
    refused("a missing configuration", "--config", config + "x", "--weights", weights, "-o", output)
    refused("an unknown option on the command line", "--config", config, "--bogus")
    refused("half a command line", "--config", config, "-o", output)
    refused("a batch of one", "--config", config, "--weights", weights, "-o", output, "--batch", 1)
    refused("an empty folder", "--golden", folder, "-o", output)
    p = {k: np.zeros(shape, np.float32) for k, shape in ref.parameter_shapes(CONFIG).items()}
    write_folder(folder, {"weights/" + k: v for k, v in p.items()})
    refused("a folder of weights alone", "--golden", folder, "-o", output)
    with open(os.path.join(folder, "weights.npz"), "r+b") as f:
        f.truncate(1000)
    refused("a truncated file", "--golden", folder, "-o", output)

def main():
    for test in checks.tests_of(globals()):
        if not test.__code__.co_argcount:  # the others take a folder
            checks.run(test)
    with tempfile.TemporaryDirectory() as tmp:
        checks.run(test_files_hold_every_array, tmp)
        checks.run(test_bad_input_is_refused_in_one_line, tmp)
    for folder in sys.argv[1:]:
        code, out, err = run("--golden", folder, "--check")
        expect(code == 0,
               f"{folder}: {err}" + "\n".join(x for x in out.splitlines() if not x.startswith("ok")))
        if out:
            print(f"{folder}: {out.splitlines()[-1]}")
    return checks.report()

if __name__ == "__main__":
    sys.exit(main())
