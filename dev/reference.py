#!/usr/bin/env python3
"""CLIP, forward and backward, in float64 numpy: the definition of the model that the C and CUDA programs are
checked against.

  dev/reference.py --config CONFIG.json --weights WEIGHTS.npz -o DEBUG.bin
                                                 draw a random model and inputs, compute everything
  dev/reference.py --golden DIR -o DEBUG.bin     pack the arrays of DIR (layout below), unchanged
  dev/reference.py --golden DIR --check          recompute every array of DIR and compare

layer_forward(inputs) -> output, layer_backward(gradient of the output, inputs) -> gradients of the inputs;
"dx" is the derivative of the loss by x. Parameters are a dict by open_clip's state-dict names, activations
one by the names below. B batch, T tokens, C channels, NH heads, HS head size, L layers, V vocabulary,
E embedding.

DEBUG.bin, little-endian, nothing aligned: int32 magic 0x47424443 ("CDBG"), int32 version 1, int32 count, then
`count` records of int32 name length, name (UTF-8, no NUL), int32 dtype (0 float32, 1 float64, 2 int32),
int32 ndim, int64 shape[ndim], data (C order). A record is named FILE/ARRAY after the file of the folder that
holds it; a scalar has ndim 0. Inputs are float32 and int32; results are float64 when computed here, and as
stored (mostly float32) when packed.
  weights/NAME            the model
  batch/                  images (B,3,H,H) normalised, tokens (B,T)
  activations/            vision.* and text.*: embed,
                          block0.{ln_1,attn_heads,attn,resid1,ln_2,mlp_hidden,mlp_act,mlp},
                          block{i}, pooled, features, normalized; vision.{patch_embed,ln_pre};
                          text.{token_embed,ln_final,eot_index}; logits_per_image, loss_image, loss_text, loss
  grads/                  param.NAME; image_features, text_features (normalised)
  adamw_batches/          images (steps,B,3,H,H), tokens (steps,B,T): one batch a step
  adamw_{noclip,clip1}/   loss, grad_norm (before clipping), lr, logit_scale (after the step), each (steps);
                          final.NAME, m.NAME, v.NAME
  adamw_clamp/            images, tokens_high, tokens_low, start_high, start_low; {high,low}.{loss,...}
                          as above, only logit_scale trains
  accum/                  images, tokens, loss, grad.NAME of one bigger batch
  val/                    rows (of accum), batch_size, clip_val_loss, num_samples,
                          {image_to_text,text_to_image}_{R@1,mean_rank,...}
  multipos/               image_features, text_features, logit_scale, tokens, groups;
                          {equal,groups,masked}.{targets,loss,grad_...}
  weight_decay/NAME       float64; layer_decay/CASE/NAME float64; locked/CASE/NAME int32 1 for what trains
  bf16/                   loss, grad.NAME: how far rounding to bf16 moves them (bf16_noise)
  hyper/                  lr, warmup, beta1, beta2, eps, weight_decay, clip_norm
"""
import argparse
import json
import math
import os
import re
import struct
import sys
import zipfile
import zlib

import numpy as np

LN_EPS = 1e-5
MAX_LOGIT_SCALE = math.log(100)
HYPER = {"lr": 1e-3, "warmup": 2.0, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "weight_decay": 0.2,
         "clip_norm": 1.0}
VISION_DEFAULTS = {"image_size": 224, "patch_size": 16, "width": 768, "head_width": 64, "layers": 12,
                   "mlp_ratio": 4.0}  # open_clip's
TEXT_DEFAULTS = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12,
                 "mlp_ratio": 4.0}

class Failure(Exception):
    """Wrong input: main() prints it as one line and exits with 2."""

class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Failure(message)

# ---------------------------------------------------------------- operands of products

class Rounding:
    """While active, the operands of products are rounded to bf16: up or down at random, more often to the
    nearer, so that several draws tell how much of a result is due to rounding."""
    rng = None

    def __init__(self, seed):
        self.seed = seed

    def __enter__(self):
        Rounding.rng = np.random.default_rng(self.seed)

    def __exit__(self, *_):
        Rounding.rng = None

def operand(x):
    """x as a product reads it: exactly, or rounded to bf16, the upper half of a float32"""
    if Rounding.rng is None:
        return x
    bits = np.asarray(x, np.float32).view(np.uint32) + Rounding.rng.integers(0, 1 << 16, np.shape(x), np.uint32)
    return (bits & np.uint32(0xffff0000)).view(np.float32).astype(np.float64)

# ---------------------------------------------------------------- layers

def linear_forward(x, weight, bias=0.0):
    """y = x Wᵀ + b.   x (...,I), weight (O,I), bias (O) -> (...,O)"""
    return operand(x) @ operand(weight).T + bias

def linear_backward(dy, x, weight):
    # dx = dy W,  dW = Σ_rows dyᵀ x,  db = Σ_rows dy
    dy = operand(dy)
    rows_dy, rows_x = dy.reshape(-1, dy.shape[-1]), operand(x).reshape(-1, x.shape[-1])
    return dy @ operand(weight), rows_dy.T @ rows_x, rows_dy.sum(0)

def layernorm_forward(x, gain, bias):
    """y = gain · x̂ + bias with x̂ = (x - mean) / sqrt(var + eps) over the last axis, biased variance (Ba
    et al. 2016, eq. 4)."""
    return gain * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + LN_EPS) + bias

def layernorm_backward(dy, x, gain):
    # dx̂ = dy · gain,  dx = (dx̂ - mean(dx̂) - x̂ · mean(dx̂ · x̂)) / sqrt(var + eps),  dgain = Σ dy · x̂,
    # dbias = Σ dy
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + LN_EPS)
    xhat = (x - x.mean(-1, keepdims=True)) * rstd
    dxhat = dy * gain
    dx = rstd * (dxhat - dxhat.mean(-1, keepdims=True) - xhat * (dxhat * xhat).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return dx, (dy * xhat).sum(rows), dy.sum(rows)

erf = np.vectorize(math.erf, otypes=[np.float64])  # numpy has none

def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))

def gelu_forward(x, quick):
    """x · Φ(x), Φ the normal distribution (Hendrycks & Gimpel 2016); quick: x · sigmoid(1.702 x), as
    OpenAI trained CLIP."""
    return x * sigmoid(1.702 * x) if quick else x * 0.5 * (1 + erf(x / math.sqrt(2)))

def gelu_backward(dy, x, quick):
    if quick:  # s = sigmoid(1.702 x):  dx = dy · (s + 1.702 x s (1 - s))
        s = sigmoid(1.702 * x)
        return dy * (s + 1.702 * x * s * (1 - s))
    # dx = dy · (Φ(x) + x φ(x)),  φ(x) = exp(-x²/2) / sqrt(2π)
    return dy * (0.5 * (1 + erf(x / math.sqrt(2))) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))

def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)

def split_heads(qkv, NH):
    """(B,T,3C), q then k then v -> q, k, v, each (B,NH,T,HS)"""
    B, T, C3 = qkv.shape
    return qkv.reshape(B, T, 3, NH, C3 // (3 * NH)).transpose(2, 0, 3, 1, 4)

def attention_weights(q, k, causal):
    """P[i][j] = softmax_j(q_i · k_j / sqrt(HS)), without j > i where causal.   -> (B,NH,T,T)"""
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    return softmax(scores + np.triu(np.full(scores.shape[-2:], -np.inf), 1) if causal else scores)

def attention_forward(qkv, NH, causal):
    """Multi-head attention (Vaswani et al. 2017) without its projections: o_i = Σ_j P[i][j] v_j.
    (B,T,3C) -> (B,T,C), heads joined"""
    B, T, C3 = qkv.shape
    q, k, v = split_heads(operand(qkv), NH)
    return (operand(attention_weights(q, k, causal)) @ v).swapaxes(1, 2).reshape(B, T, C3 // 3)

def attention_backward(do, qkv, NH, causal):
    # dv = Pᵀ do,  dP = do vᵀ,  dS = P ∘ (dP - Σ_j dP ∘ P),  dq = dS k / sqrt(HS),  dk = dSᵀ q / sqrt(HS)
    B, T, C3 = qkv.shape
    HS = C3 // (3 * NH)
    q, k, v = split_heads(operand(qkv), NH)
    P = attention_weights(q, k, causal)
    do = operand(do).reshape(B, T, NH, HS).swapaxes(1, 2)
    dv = operand(P).swapaxes(-1, -2) @ do
    dP = do @ v.swapaxes(-1, -2)
    dS = operand(P * (dP - (dP * P).sum(-1, keepdims=True)) / math.sqrt(HS))
    return np.stack([dS @ k, dS.swapaxes(-1, -2) @ q, dv]).transpose(1, 3, 0, 2, 4).reshape(B, T, C3)

def normalize_forward(x):
    """n = x / |x|, row by row."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

def normalize_backward(dn, x):
    # dx = (dn - n (n · dn)) / |x|: the component along n changes only the length
    n = normalize_forward(x)
    return (dn - n * (n * dn).sum(-1, keepdims=True)) / np.linalg.norm(x, axis=-1, keepdims=True)

# ---------------------------------------------------------------- the residual block and the two towers

def under(prefix, values):
    """The entries whose names begin with prefix, under their names without it."""
    return {k[len(prefix):]: v for k, v in values.items() if k.startswith(prefix)}

def prefixed(prefix, values):
    return {prefix + k: v for k, v in values.items()}

def block_forward(x, p, NH, causal, quick):
    """Pre-LN residual block: r = x + attention(ln_1(x)), out = r + mlp(ln_2(r)).   x (B,T,C) -> every
    activation by name"""
    a = {}
    a["ln_1"] = layernorm_forward(x, p["ln_1.weight"], p["ln_1.bias"])
    a["qkv"] = linear_forward(a["ln_1"], p["attn.in_proj_weight"], p["attn.in_proj_bias"])
    a["attn_heads"] = attention_forward(a["qkv"], NH, causal)
    a["attn"] = linear_forward(a["attn_heads"], p["attn.out_proj.weight"], p["attn.out_proj.bias"])
    a["resid1"] = x + a["attn"]
    a["ln_2"] = layernorm_forward(a["resid1"], p["ln_2.weight"], p["ln_2.bias"])
    a["mlp_hidden"] = linear_forward(a["ln_2"], p["mlp.c_fc.weight"], p["mlp.c_fc.bias"])
    a["mlp_act"] = gelu_forward(a["mlp_hidden"], quick)
    a["mlp"] = linear_forward(a["mlp_act"], p["mlp.c_proj.weight"], p["mlp.c_proj.bias"])
    a["out"] = a["resid1"] + a["mlp"]
    return a

def block_backward(dout, x, p, a, NH, causal, quick):
    """-> dx, gradients by parameter name. The gradient of a residual sum goes to both of its terms."""
    g = {}
    dact, g["mlp.c_proj.weight"], g["mlp.c_proj.bias"] = linear_backward(
        dout, a["mlp_act"], p["mlp.c_proj.weight"])
    dhidden = gelu_backward(dact, a["mlp_hidden"], quick)
    dln_2, g["mlp.c_fc.weight"], g["mlp.c_fc.bias"] = linear_backward(
        dhidden, a["ln_2"], p["mlp.c_fc.weight"])
    dresid1, g["ln_2.weight"], g["ln_2.bias"] = layernorm_backward(dln_2, a["resid1"], p["ln_2.weight"])
    dresid1 = dout + dresid1
    dheads, g["attn.out_proj.weight"], g["attn.out_proj.bias"] = linear_backward(
        dresid1, a["attn_heads"], p["attn.out_proj.weight"])
    dqkv = attention_backward(dheads, a["qkv"], NH, causal)
    dln_1, g["attn.in_proj_weight"], g["attn.in_proj_bias"] = linear_backward(
        dqkv, a["ln_1"], p["attn.in_proj_weight"])
    dx, g["ln_1.weight"], g["ln_1.bias"] = layernorm_backward(dln_1, x, p["ln_1.weight"])
    return dresid1 + dx, g

def transformer_forward(x, p, a, L, **kind):
    """L blocks; adds block{i} and block{i}.NAME to a.   kind: NH, causal, quick (the activation)"""
    for i in range(L):
        block = block_forward(x, under(f"transformer.resblocks.{i}.", p), **kind)
        x = block.pop("out")
        a.update({f"block{i}": x}, **prefixed(f"block{i}.", block))
    return x

def transformer_backward(dx, x, p, a, g, L, **kind):
    """x: the first block's input. -> its gradient"""
    for i in reversed(range(L)):
        name = f"transformer.resblocks.{i}."
        dx, block = block_backward(dx, a[f"block{i - 1}"] if i else x, under(name, p), under(f"block{i}.", a),
                                   **kind)
        g.update(prefixed(name, block))
    return dx

def patches_of(images, size):
    """(B,3,H,H) -> (B, grid², 3·size²), row by row; grid = floor(H/size), pixels beyond the grid are
    unused."""
    B, G = len(images), images.shape[-1] // size
    x = images[:, :, :G * size, :G * size].reshape(B, 3, G, size, G, size)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(B, G * G, 3 * size * size)

def image_transformer(cfg):
    v = cfg["vision_cfg"]
    return {"L": v["layers"], "NH": v["width"] // v["head_width"], "causal": False,
            "quick": cfg["quick_gelu"]}

def text_transformer(cfg):
    return {"L": cfg["text_cfg"]["layers"], "NH": cfg["text_cfg"]["heads"], "causal": True,
            "quick": cfg["quick_gelu"]}

def image_forward(images, p, cfg):
    """ViT (Dosovitskiy et al. 2020): patches, class token, positions, ln_pre, blocks, ln_post of the class
    token, projection. p: the parameters under visual."""
    a = {}
    a["patch_embed"] = linear_forward(patches_of(images, cfg["vision_cfg"]["patch_size"]),
                                      p["conv1.weight"].reshape(len(p["conv1.weight"]), -1))
    class_token = np.broadcast_to(p["class_embedding"], (len(images), 1, len(p["class_embedding"])))
    a["embed"] = np.concatenate([class_token, a["patch_embed"]], 1) + p["positional_embedding"]
    a["ln_pre"] = layernorm_forward(a["embed"], p["ln_pre.weight"], p["ln_pre.bias"])
    x = transformer_forward(a["ln_pre"], p, a, **image_transformer(cfg))
    a["pooled"] = layernorm_forward(x[:, 0], p["ln_post.weight"], p["ln_post.bias"])
    a["features"] = linear_forward(a["pooled"], p["proj"].T)
    a["normalized"] = normalize_forward(a["features"])
    return a

def image_backward(dnormalized, images, p, a, cfg):
    g = {}
    dfeatures = normalize_backward(dnormalized, a["features"])
    dpooled, dproj_t, _ = linear_backward(dfeatures, a["pooled"], p["proj"].T)
    g["proj"] = dproj_t.T
    x = a[f"block{cfg['vision_cfg']['layers'] - 1}"]
    dx = np.zeros_like(x)  # of the last block only the class token is used
    dx[:, 0], g["ln_post.weight"], g["ln_post.bias"] = layernorm_backward(
        dpooled, x[:, 0], p["ln_post.weight"])
    dln_pre = transformer_backward(dx, a["ln_pre"], p, a, g, **image_transformer(cfg))
    dembed, g["ln_pre.weight"], g["ln_pre.bias"] = layernorm_backward(dln_pre, a["embed"], p["ln_pre.weight"])
    g["positional_embedding"] = dembed.sum(0)
    g["class_embedding"] = dembed[:, 0].sum(0)
    patches, weight = patches_of(images, cfg["vision_cfg"]["patch_size"]), p["conv1.weight"]
    _, dconv1, _ = linear_backward(dembed[:, 1:], patches, weight.reshape(len(weight), -1))
    g["conv1.weight"] = dconv1.reshape(weight.shape)
    return g

def text_forward(tokens, p, cfg):
    """Causal transformer; the feature is taken at the first end-of-text, which is the largest id. Padding
    after it is not masked: no position up to end-of-text depends on it."""
    a = {}
    a["token_embed"] = p["token_embedding.weight"][tokens]
    a["embed"] = a["token_embed"] + p["positional_embedding"]
    x = transformer_forward(a["embed"], p, a, **text_transformer(cfg))
    a["ln_final"] = layernorm_forward(x, p["ln_final.weight"], p["ln_final.bias"])
    a["eot_index"] = tokens.argmax(1).astype(np.int32)
    a["pooled"] = a["ln_final"][np.arange(len(tokens)), a["eot_index"]]
    a["features"] = linear_forward(a["pooled"], p["text_projection"].T)
    a["normalized"] = normalize_forward(a["features"])
    return a

def text_backward(dnormalized, tokens, p, a, cfg):
    g = {}
    dfeatures = normalize_backward(dnormalized, a["features"])
    dpooled, dprojection_t, _ = linear_backward(dfeatures, a["pooled"], p["text_projection"].T)
    g["text_projection"] = dprojection_t.T
    dln_final = np.zeros_like(a["ln_final"])
    dln_final[np.arange(len(tokens)), a["eot_index"]] = dpooled
    x = a[f"block{cfg['text_cfg']['layers'] - 1}"]
    dx, g["ln_final.weight"], g["ln_final.bias"] = layernorm_backward(dln_final, x, p["ln_final.weight"])
    dembed = transformer_backward(dx, a["embed"], p, a, g, **text_transformer(cfg))
    g["positional_embedding"] = dembed.sum(0)
    g["token_embedding.weight"] = np.zeros_like(p["token_embedding.weight"])
    # a token that occurs twice gets the sum of both gradients
    np.add.at(g["token_embedding.weight"], tokens, dembed)
    return g

# ---------------------------------------------------------------- loss and model

def loss_forward(x, y, logit_scale, S=None, masked=False):
    """CLIP loss (Radford et al. 2021, fig. 3): l = exp(logit_scale) x yᵀ, mean of the cross-entropies of
    the rows and of the columns. x, y (B,E) normalised. S (B,B), symmetric, is 1 where caption j also
    belongs to image i (default: only on the diagonal). The target of a row is S / its sum; or, masked, the
    diagonal, and the other positives are left out of both softmaxes."""
    logits = math.exp(logit_scale) * x @ y.T
    only = np.eye(len(x)) if S is None or masked else S
    targets = only / only.sum(1, keepdims=True)
    kept = np.where((S == 1) & (np.eye(len(x)) == 0), -np.inf, logits) if masked else logits
    a = {"logits_per_image": logits, "kept": kept, "targets": targets}
    for name, l in (("loss_image", kept), ("loss_text", kept.T)):
        log_sum = np.log(np.exp(l - l.max(1, keepdims=True)).sum(1, keepdims=True)) + l.max(1, keepdims=True)
        a[name] = (targets * np.where(targets > 0, log_sum - l, 0)).sum(1).mean()
    a["loss"] = (a["loss_image"] + a["loss_text"]) / 2
    return a

def loss_backward(x, y, logit_scale, a):
    # dl = (softmax_rows(l) - T + (softmax_rows(lᵀ) - T)ᵀ) / 2B,  dx = e^s dl y,  dy = e^s dlᵀ x,  ds = Σ dl ∘
    # l
    dl = (softmax(a["kept"], 1) - a["targets"] + softmax(a["kept"], 0) - a["targets"].T) / (2 * len(x))
    scale = math.exp(logit_scale)
    return scale * dl @ y, scale * dl.T @ x, (dl * a["logits_per_image"]).sum()

def clip_forward(p, cfg, images, tokens):
    """images (B,3,H,H), tokens (B,T) -> every activation by name, loss among them"""
    image, text = (image_forward(images.astype(np.float64), under("visual.", p), cfg),
                   text_forward(tokens, p, cfg))
    return {**prefixed("vision.", image), **prefixed("text.", text),
            **loss_forward(image["normalized"], text["normalized"], p["logit_scale"])}

def clip_backward(p, cfg, images, tokens, a):
    """-> gradients by parameter name, gradients of the normalised image and text features"""
    dimage, dtext, dscale = loss_backward(a["vision.normalized"], a["text.normalized"], p["logit_scale"], a)
    g = {"logit_scale": dscale, **text_backward(dtext, tokens, p, under("text.", a), cfg)}
    g.update(prefixed("visual.", image_backward(dimage, images.astype(np.float64), under("visual.", p),
                                                under("vision.", a), cfg)))
    return g, dimage, dtext

# ---------------------------------------------------------------- training

def weight_decay(name, shape):
    """open_clip: no decay for vectors and scalars (biases, gains, class_embedding, logit_scale) nor for
    position embeddings."""
    return 0.0 if len(shape) <= 1 or name.endswith("positional_embedding") else HYPER["weight_decay"]

def groups_above(name, cfg):
    """-> the tower of a parameter, and how many lock groups are nearer the output: projection 0, last
    block with the final LayerNorm 1, ..., embeddings L+1."""
    if name == "logit_scale":
        return None, 0
    tower, L = (("image", cfg["vision_cfg"]["layers"]) if name.startswith("visual.")
                else ("text", cfg["text_cfg"]["layers"]))
    block = re.search(r"resblocks\.(\d+)\.", name)
    if block:
        return tower, L - int(block.group(1))
    return (tower, 0 if name in ("visual.proj", "text_projection") else 1
            if re.match(r"visual\.ln_post|ln_final", name) else L + 1)

def learning_rate(step, steps):
    """open_clip's cosine after a linear warmup."""
    warmup = HYPER["warmup"]
    return HYPER["lr"] * ((step + 1) / warmup if step < warmup
                          else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))

def adamw_step(p, g, m, v, t, lr):
    """AdamW (Loshchilov & Hutter 2017) in place, t from 1, for the parameters in g; then logit_scale is
    clamped to [0, ln 100]."""
    for k in g:
        m[k] = HYPER["beta1"] * m[k] + (1 - HYPER["beta1"]) * g[k]
        v[k] = HYPER["beta2"] * v[k] + (1 - HYPER["beta2"]) * g[k] ** 2
        mhat, vhat = m[k] / (1 - HYPER["beta1"] ** t), v[k] / (1 - HYPER["beta2"] ** t)
        p[k] = p[k] * (1 - lr * weight_decay(k, np.shape(p[k]))) - lr * mhat / (np.sqrt(vhat) + HYPER["eps"])
    p["logit_scale"] = np.clip(p["logit_scale"], 0, MAX_LOGIT_SCALE)

def train(p, cfg, batches, clip_norm=None, trainable=None):
    """One AdamW step for each batch, gradients scaled by min(1, clip_norm / (norm + 1e-6)) when clipping
    -> the adamw_* arrays"""
    p = dict(p)
    m, v = ({k: np.zeros(np.shape(p[k])) for k in trainable or p} for _ in "mv")
    log = {"loss": [], "grad_norm": [], "lr": [], "logit_scale": []}
    for step, (images, tokens) in enumerate(batches):
        a = clip_forward(p, cfg, images, tokens)
        g, _, _ = clip_backward(p, cfg, images, tokens, a)
        g = {k: g[k] for k in m}
        norm = math.sqrt(sum((x ** 2).sum() for x in g.values()))
        if clip_norm:
            g = {k: x * min(1, clip_norm / (norm + 1e-6)) for k, x in g.items()}
        lr = learning_rate(step, len(batches))
        adamw_step(p, g, m, v, step + 1, lr)
        for k, value in (("loss", a["loss"]), ("grad_norm", norm), ("lr", lr),
                         ("logit_scale", p["logit_scale"])):
            log[k].append(float(value))
    return {**log, **prefixed("final.", p), **prefixed("m.", m), **prefixed("v.", v)}

def retrieval(scores):
    """Ranks of the diagonal among the scores (N,N) of its row; in a tie the lower index comes first."""
    target, index = np.diag(scores)[:, None], np.arange(len(scores))
    rank = ((scores > target) | ((scores == target) & (index < index[:, None]))).sum(1)
    return {"mean_rank": rank.mean() + 1, "median_rank": np.floor(np.median(rank)) + 1,
            **{f"R@{k}": (rank < k).mean() for k in (1, 5, 10)}}

def validate(p, cfg, images, tokens, batch_size):
    """open_clip's evaluate: losses within batches weighted by their size, retrieval over all pairs."""
    batches = [clip_forward(p, cfg, images[i:i + batch_size], tokens[i:i + batch_size])
               for i in range(0, len(images), batch_size)]
    x, y = (np.concatenate([a[k] for a in batches]) for k in ("vision.normalized", "text.normalized"))
    loss = sum(a["loss"] * len(a["vision.normalized"]) for a in batches) / len(images)
    return {"clip_val_loss": loss, "num_samples": float(len(images)),
            **prefixed("image_to_text_", retrieval(x @ y.T)),
            **prefixed("text_to_image_", retrieval(y @ x.T))}

# ---------------------------------------------------------------- everything of one folder

INPUT = re.compile(r"(weights|batch|adamw_batches)/|accum/(images|tokens)$|adamw_clamp/(images|tokens|start)"
                   r"|val/(rows|batch_size)$|multipos/groups$")
INTERNAL = re.compile(r"\.qkv$|block[1-9]\d*\.|^kept$|^targets$")  # activations that are not written

def by_case(table, d):
    """The cases of a table as {case: {tower: number}}: "image_1_text_2" -> {"image": 1, "text": 2}"""
    parts = {case: case.split("_")
             for case in sorted({k.split("/")[1] for k in d if k.startswith(table + "/")})}
    return {case: dict(zip(part[::2], map(float, part[1::2]))) for case, part in parts.items()}

def compute(cfg, d):
    """d: the inputs by name (INPUT; also the cases of locked and layer_decay) -> all results by name"""
    p = {k: v.astype(np.float64) for k, v in under("weights/", d).items()}
    r = {}

    def forward_backward(images, tokens):
        a = clip_forward(p, cfg, images, tokens)
        return (a, *clip_backward(p, cfg, images, tokens, a))

    a, g, dimage, dtext = forward_backward(d["batch/images"], d["batch/tokens"])
    r.update(prefixed("activations/", {k: v for k, v in a.items() if not INTERNAL.search(k)}))
    r.update(prefixed("grads/param.", g), **{"grads/image_features": dimage, "grads/text_features": dtext})

    batches = list(zip(d["adamw_batches/images"], d["adamw_batches/tokens"]))
    r.update(prefixed("adamw_noclip/", train(p, cfg, batches)))
    r.update(prefixed("adamw_clip1/", train(p, cfg, batches, HYPER["clip_norm"])))
    for case in ("high", "low"):
        start = {**p, "logit_scale": d[f"adamw_clamp/start_{case}"]}
        run = train(start, cfg, [(d["adamw_clamp/images"], d[f"adamw_clamp/tokens_{case}"])] * len(batches),
                    trainable=["logit_scale"])
        r.update(prefixed(f"adamw_clamp/{case}.",
                          {k: v for k, v in run.items() if not k.startswith("final.")}))

    images, tokens = d["accum/images"], d["accum/tokens"]
    a, g, _, _ = forward_backward(images, tokens)
    r.update({"accum/loss": a["loss"]}, **prefixed("accum/grad.", g))
    # open_clip adds it once a micro-batch
    for name, n in re.findall(r"(accum/open_clip_grad_logit_scale_accum(\d+))", "\n".join(d)):
        r[name] = int(n) * g["logit_scale"]
    rows = d["val/rows"]
    r.update(prefixed("val/", validate(p, cfg, images[rows], tokens[rows], int(d["val/batch_size"]))))

    if "multipos/groups" in d:
        x, y, s = a["vision.normalized"], a["text.normalized"], p["logit_scale"]
        r.update({"multipos/image_features": x, "multipos/text_features": y, "multipos/logit_scale": s,
                  "multipos/tokens": tokens})
        same_caption = (tokens[:, None] == tokens).all(2).astype(float)
        same_group = (d["multipos/groups"][:, None] == d["multipos/groups"]).astype(float)
        for case, S in (("equal", same_caption), ("groups", same_group), ("masked", same_group)):
            a = loss_forward(x, y, s, S, case == "masked")
            r.update({f"multipos/{case}.{k}": a[k] for k in ("targets", "loss_image", "loss_text", "loss")})
            grads = zip(("image_features", "text_features", "logit_scale"), loss_backward(x, y, s, a))
            r.update({f"multipos/{case}.grad_{k}": gradient for k, gradient in grads})

    for k, v in p.items():
        tower, above = groups_above(k, cfg)
        r["weight_decay/" + k] = weight_decay(k, v.shape)
        r.update({f"locked/{case}/{k}": np.int32(1) for case, unlocked in by_case("locked", d).items()
                  if above < unlocked.get(tower, math.inf)})
        r.update({f"layer_decay/{case}/{k}": decay.get(tower, 1.0) ** above
                  for case, decay in by_case("layer_decay", d).items()})
    return r

def bf16_noise(cfg, d, draws=16):
    """What rounding the operands of products to bf16 does to the loss and the gradients of the batch, over
    several draws -> bf16/loss: the root of the mean squared error; bf16/grad.NAME (2): of the gradient's
    distance and of its length along the exact gradient, both as a share of its norm"""
    p = {k: v.astype(np.float64) for k, v in under("weights/", d).items()}
    loss, distance, length = [], [], []
    exact = under("grads/param.", d)
    for seed in range(draws):
        with Rounding(seed):
            a = clip_forward(p, cfg, d["batch/images"], d["batch/tokens"])
            g, _, _ = clip_backward(p, cfg, d["batch/images"], d["batch/tokens"], a)
        loss.append(a["loss"] - d["activations/loss"])
        error = {k: (np.asarray(g[k] - exact[k]), np.asarray(exact[k])) for k in exact}
        distance.append({k: (e ** 2).sum() / (x.astype(float) ** 2).sum() for k, (e, x) in error.items()})
        length.append({k: ((e * x).sum() / (x.astype(float) ** 2).sum()) ** 2 for k, (e, x) in error.items()})

    def root_mean(values):
        return math.sqrt(np.mean(values))
    return {"bf16/loss": root_mean(np.square(loss)),
            **{f"bf16/grad.{k}": np.array([root_mean([x[k] for x in kind]) for kind in (distance, length)])
               for k in exact}}

# ---------------------------------------------------------------- a random model

def parameter_shapes(cfg):
    v, t, E = cfg["vision_cfg"], cfg["text_cfg"], cfg["embed_dim"]

    def blocks(prefix, C, L, mlp_ratio):
        H = int(C * mlp_ratio)
        one = {"ln_1.weight": (C,), "ln_1.bias": (C,), "attn.in_proj_weight": (3 * C, C),
               "attn.in_proj_bias": (3 * C,), "attn.out_proj.weight": (C, C), "attn.out_proj.bias": (C,),
               "ln_2.weight": (C,), "ln_2.bias": (C,), "mlp.c_fc.weight": (H, C), "mlp.c_fc.bias": (H,),
               "mlp.c_proj.weight": (C, H), "mlp.c_proj.bias": (C,)}
        return {f"{prefix}transformer.resblocks.{i}.{k}": shape for i in range(L) for k, shape in one.items()}

    C, P, D = v["width"], v["patch_size"], t["width"]
    return {"positional_embedding": (t["context_length"], D), "text_projection": (D, E), "logit_scale": (),
            "visual.class_embedding": (C,),
            "visual.positional_embedding": ((v["image_size"] // P) ** 2 + 1, C), "visual.proj": (C, E),
            "visual.conv1.weight": (C, 3, P, P), "visual.ln_pre.weight": (C,), "visual.ln_pre.bias": (C,),
            **blocks("visual.", C, v["layers"], v["mlp_ratio"]), "visual.ln_post.weight": (C,),
            "visual.ln_post.bias": (C,), **blocks("", D, t["layers"], t["mlp_ratio"]),
            "token_embedding.weight": (t["vocab_size"], D), "ln_final.weight": (D,), "ln_final.bias": (D,)}

def draw_weights(cfg, rng):
    """Random weights for which leaving out any of them changes the result: no bias is zero, no gain is
    one."""
    def draw(name, shape):
        if name == "logit_scale":
            return 2.8
        if re.search(r"ln_\w+\.weight$", name):
            return 1 + 0.25 * rng.standard_normal(shape)
        fan_in = shape[0] if name.endswith("proj") or name == "text_projection" else math.prod(shape[1:])
        std = 0.15 if name.endswith("bias") else 0.5 if "embedding" in name else fan_in ** -0.5
        return std * rng.standard_normal(shape)
    return {f"weights/{k}": np.asarray(draw(k, shape), np.float32)
            for k, shape in parameter_shapes(cfg).items()}

def draw_pairs(cfg, rng, B):
    """Images, and captions [start, ..., end, 0...]: row 0 is empty, row 1 fills the context, rows 2 and 3
    are equal, row 4 holds a token with id 0."""
    H, T, V = (cfg["vision_cfg"]["image_size"], cfg["text_cfg"]["context_length"],
               cfg["text_cfg"]["vocab_size"])
    tokens = np.zeros((B, T), np.int32)
    for i in range(B):
        n = 0 if i == 0 else T - 2 if i == 1 else rng.integers(min(1, T - 2), T - 1)
        tokens[i, :n + 2] = [V - 2, *rng.integers(1, V - 2, n), V - 1]
        if i == 3:
            tokens[3] = tokens[2]
        if i == 4 and n > 1:
            tokens[4, 2] = 0
    return rng.standard_normal((B, 3, H, H)).astype(np.float32), tokens

def draw_clamp(cfg, rng, p):
    """Two pairs for which training raises logit_scale, and lowers it when their captions are exchanged."""
    for _ in range(200):
        images, tokens = (x[1:] for x in draw_pairs(cfg, rng, 3))
        l = clip_forward(p, cfg, images, tokens)["logits_per_image"]
        if l[0, 0] + l[1, 1] < l[0, 1] + l[1, 0]:
            tokens, l = tokens[::-1], l[:, ::-1]
        if min(l[0, 0], l[1, 1]) > max(l[0, 1], l[1, 0]):
            return {"images": images, "tokens_high": tokens, "tokens_low": tokens[::-1],
                    "start_high": MAX_LOGIT_SCALE - 0.0012, "start_low": 0.001}
    raise Failure("no two pairs found that raise and lower logit_scale; try another --seed or a larger model")

def draw_inputs(cfg, seed, B, steps):
    rng = np.random.default_rng(seed)
    d = draw_weights(cfg, rng)
    p = {k: v.astype(np.float64) for k, v in under("weights/", d).items()}
    for name, size in (("batch", B), ("accum", max(12, 2 * B))):
        d[name + "/images"], d[name + "/tokens"] = draw_pairs(cfg, rng, size)
    batches = [draw_pairs(cfg, rng, B) for _ in range(steps)]
    d["adamw_batches/images"], d["adamw_batches/tokens"] = map(np.stack, zip(*batches))
    d.update(prefixed("adamw_clamp/", draw_clamp(cfg, rng, p)))
    N = len(d["accum/images"])
    # of equal captions, rounding would decide the rank
    distinct = np.unique(d["accum/tokens"], axis=0, return_index=True)[1]
    rows = np.sort(rng.permutation(distinct)[1:]).astype(np.int32)
    d.update({"val/rows": rows, "val/batch_size": np.int32(len(rows) // 2 + 1),
              "multipos/groups": rng.integers(0, N // 2, N).astype(np.int32)})
    locks = [f"{tower}_{n}" for tower in ("image", "text")
             for n in range(cfg[{"image": "vision", "text": "text"}[tower] + "_cfg"]["layers"] + 3)]
    d.update({f"locked/{case}/logit_scale": np.int32(1)
              for case in [*locks, "image_0_text_0", "image_1_text_1", "image_2_text_0"]})
    d.update({f"layer_decay/{case}/logit_scale": 1.0
              for case in ("image_0.7_text_0.8", "image_0.7", "text_0.8")})
    return d

# ---------------------------------------------------------------- files

def load_config(path):
    """A configuration in open_clip's form, its defaults filled in. Models of other kinds are refused."""
    with open(path, encoding="utf-8") as f:
        cfg = json.load(f)
    if (not isinstance(cfg, dict) or set(cfg) - {"quick_gelu"} != {"embed_dim", "vision_cfg", "text_cfg"}
        or type(cfg.get("quick_gelu", False)) is not bool):
        raise Failure(f"{path}: not the configuration of a plain CLIP; it may hold only embed_dim, "
                      "vision_cfg, text_cfg and quick_gelu (true or false)")
    for part, defaults in (("vision_cfg", VISION_DEFAULTS), ("text_cfg", TEXT_DEFAULTS)):
        if not isinstance(cfg[part], dict) or set(cfg[part]) - set(defaults):
            raise Failure(f"{path}: {part} must hold only {', '.join(defaults)}")
        cfg[part] = {**defaults, **cfg[part]}
        for k, value in {**cfg[part], "embed_dim": cfg["embed_dim"]}.items():
            if type(value) not in ((int, float) if k == "mlp_ratio" else (int,)) or value <= 0:
                raise Failure(f"{path}: {part}.{k} is {value!r}; give a number above 0")
    v, t = cfg["vision_cfg"], cfg["text_cfg"]
    if (v["width"] % v["head_width"] or t["width"] % t["heads"] or v["patch_size"] > v["image_size"]
        or t["context_length"] < 2 or t["vocab_size"] < 4):
        raise Failure(f"{path}: width must be a multiple of the head size, image_size >= patch_size, "
                      "context_length >= 2, vocab_size >= 4")
    return {"quick_gelu": False, **cfg}

def flatten(name, value):
    """A JSON table as records: numbers as they are, a list of names as a 1 for each."""
    if isinstance(value, dict):
        return {k: x for key, inner in value.items() for k, x in flatten(f"{name}/{key}", inner).items()}
    return ({f"{name}/{x}": np.int32(1) for x in value} if isinstance(value, list)
            else {name: np.float64(value)})

def load_folder(folder):
    """-> the configuration, every array of the folder's .npz and .json files by name"""
    cfg, d = load_config(os.path.join(folder, "config.json")), {}
    for file in sorted(os.listdir(folder)):
        stem, ext = os.path.splitext(file)
        if ext == ".npz":
            with np.load(os.path.join(folder, file)) as arrays:
                d.update({f"{stem}/{k}": arrays[k] for k in arrays.files})
        elif ext == ".json" and stem not in ("config", "float32_gap"):  # the latter: of PyTorch's float32
            with open(os.path.join(folder, file), encoding="utf-8") as f:
                d.update(flatten(stem, json.load(f)))
    for stem in ("weights batch activations grads adamw_batches adamw_noclip adamw_clip1 adamw_clamp accum "
                 "val weight_decay").split():
        if not any(k.startswith(stem + "/") for k in d):
            raise Failure(f"{folder}: {stem}.npz or .json is missing or empty")
    given, wanted = {k: v.shape for k, v in under("weights/", d).items()}, parameter_shapes(cfg)
    wrong = sorted(k for k in given.keys() | wanted.keys() if given.get(k) != wanted.get(k))
    if wrong:
        raise Failure(f"{folder}: weights.npz: {wrong[0]} is {given.get(wrong[0])}, config.json asks for "
                      f"{wanted.get(wrong[0])}")
    return cfg, d

def write_whole(path, write):
    """Writes a temporary file and renames it: the file is whole or absent."""
    try:
        with open(path + ".tmp", "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(path + ".tmp", path)
    finally:
        if os.path.exists(path + ".tmp"):
            os.remove(path + ".tmp")

def write_records(path, d):
    def write(f):
        f.write(struct.pack("<3i", 0x47424443, 1, len(d)))
        for name, value in d.items():
            x = np.asarray(value)
            if x.dtype.kind in "iu" and (x.size == 0 or np.abs(x).max() < 2 ** 31):
                x = x.astype("<i4")
            codes = {"<f4": 0, "<f8": 1, "<i4": 2}
            if x.dtype.str not in codes:
                raise Failure(f"{name} has type {x.dtype}; float32, float64 and int32 can be written")
            f.write(struct.pack("<i", len(name.encode())) + name.encode()
                    + struct.pack(f"<2i{x.ndim}q", codes[x.dtype.str], x.ndim, *x.shape))
            f.write(x.tobytes())
    write_whole(path, write)

# ---------------------------------------------------------------- check, command line

def check(cfg, d):
    """Compares the arrays stored in d with those computed from its inputs; an array that only one side has
    fails.
    -> whether all agree"""
    computed = compute(cfg, d)
    passed = failed = 0
    for name in sorted({*d, *computed}):
        # bf16/ is an estimate; moments are stored for a few tensors only
        if INPUT.match(name) or name.startswith("bf16/") or (name not in d and re.search(r"^adamw\w+/(\w+\.)?[mv]\.", name)):
            continue
        error, tolerance = math.inf, 0.0
        if name in d and name in computed and np.shape(d[name]) == np.shape(computed[name]):
            stored, ours = np.asarray(d[name]), np.asarray(computed[name])
            # what storing rounds; order of summation
            tolerance = {"float32": 1e-7, "float64": 1e-11}.get(str(stored.dtype), 0.0)
            largest = np.abs(stored).max(initial=0)
            error = np.abs(stored.astype(np.float64) - ours).max(initial=0) / (largest if largest > 0 else 1)
        ok = error <= tolerance  # NaN compares false
        passed, failed = passed + bool(ok), failed + (not ok)
        note = ("" if math.isfinite(error) else " (only stored)" if name not in computed else " (not "
                "stored)" if name not in d else " (shape or NaN)")
        print(f"{'ok    ' if ok else 'FAILED'} {name:70s} error {error:.1e}, tolerance {tolerance:.0e}{note}")
    print(f"{passed} passed, {failed + (passed == 0)} failed")
    return passed and not failed

def main(argv):
    parser = Parser(prog="reference.py",
                    description="CLIP in float64 numpy; writes or checks reference tensors.",
                    allow_abbrev=False)
    parser.add_argument("--config", help="open_clip configuration (JSON) of a model to draw at random")
    parser.add_argument("--golden", help="folder of stored arrays to pack (-o) or to compare with (--check)")
    parser.add_argument("--check", action="store_true",
                        help="recompute every array of --golden; exit 1 when any differs")
    parser.add_argument("-o", "--output", help="DEBUG.bin to write")
    parser.add_argument("--weights", help="with --config: .npz state dict to write, for dev/convert.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=5, help="pairs in a batch (5)")
    parser.add_argument("--steps", type=int, default=6, help="AdamW steps (6)")
    try:
        o = parser.parse_args(argv)
        if (bool(o.config) == bool(o.golden) or bool(o.config) != bool(o.weights) or bool(o.output) == o.check
            or (o.check and o.config)):
            raise Failure("give --config, --weights and -o, or --golden with either -o or --check")
        if o.batch < 2 or o.steps < 1 or o.seed < 0:
            raise Failure("--batch must be at least 2, --steps at least 1, --seed at least 0")
        if o.golden:
            cfg, d = load_folder(o.golden)
            if o.check:
                return 0 if check(cfg, d) else 1
        else:
            cfg = load_config(o.config)
            d = draw_inputs(cfg, o.seed, o.batch, o.steps)
            d.update(compute(cfg, d))
            write_whole(o.weights, lambda f: np.savez(f, **under("weights/", d)))
        write_records(o.output, {**bf16_noise(cfg, d), **d, **prefixed("hyper/", HYPER)})
    except Failure as e:
        return complain(e)
    except OSError as e:
        return complain(f"{e.filename}: {e.strerror}" if e.filename else e)
    except (ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile, zlib.error) as e:
        # an array or table of the wrong kind
        return complain(f"{o.config or o.golden}: {type(e).__name__}: {e}")
    return 0

def complain(what):
    print(f"reference.py: {what}", file=sys.stderr)
    return 2

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
