#!/usr/bin/env python3
"""The GPU program measured (make bench-gpu): kernels, training steps at growing batches compared with open_clip's, data feeding. Prints Markdown.

  dev/bench/gpu.py [PART...] [--models ViT-B-32,ViT-B-16,ViT-L-14] [--batches 256,...] [--peak 990]   parts: kernels steps feeding; default: all three
  dev/bench/gpu.py limits [--copy 4.3 --product 790]     what a step cannot be faster than on a card of these TB/s and TFLOP/s; needs no GPU
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from models import MODEL_ROWS  # noqa: E402
from peer import BIN, BUILD, ROOT, prepare_batch  # noqa: E402

TOKENS = 16  # of a caption, in the mean
FIELDS = "embed_dim image_size patch_size image_width image_layers head_width mlp_ratio text_width text_heads text_layers".split()


def config(model):
    return next(dict(zip(FIELDS, row[1:])) for row in MODEL_ROWS if row[0] == model)


def tower_flops(layers, width, mlp, tokens):
    """Forward, as a program computes it that pads captions and runs every row through the last block."""
    return layers * (2 * tokens * (4 * width * width + 2 * width * mlp) + 4 * tokens * tokens * width)


def padded_flops(model):
    """Of training on a pair: three times the forward pass. 8.82 + 5.96 GFLOP times three for ViT-B/32, as open_clip's model profile counts."""
    c = config(model)
    patches = (c["image_size"] // c["patch_size"]) ** 2
    forward = tower_flops(c["image_layers"], c["image_width"], round(c["image_width"] * c["mlp_ratio"]), patches + 1)
    forward += 2 * patches * 3 * c["patch_size"] ** 2 * c["image_width"] + tower_flops(c["text_layers"], c["text_width"], 4 * c["text_width"], 77)
    return 3 * (forward + 2 * (c["image_width"] + c["text_width"]) * c["embed_dim"])


def attention_flops(model):
    """The FLOPs of a pair's step outside cuBLASLt's matrix products: 4 forward and 8 backward a query, key and channel; captions spread evenly around TOKENS."""
    c = config(model)
    tokens = (c["image_size"] // c["patch_size"]) ** 2 + 1
    lengths = range(TOKENS // 2, TOKENS * 3 // 2 + 1)
    seen = statistics.mean(n * (n + 1) / 2 for n in lengths)
    return 12 * ((c["image_layers"] - 1) * tokens * tokens * c["image_width"] + (c["text_layers"] - 1) * seen * c["text_width"])


def block_work(rows, batch, width, mlp, layers, pairs):
    """Training a tower in amp_bf16: FLOPs of products and of attention, bytes of LayerNorm, activation, bias gradients and attention. The last
    block computes one row a sequence after its keys and values. pairs: of a query and a key, over all sequences."""
    work = dict.fromkeys(("products", "attention FLOPs", "LayerNorm", "activation", "bias gradients", "attention"), 0)
    for layer in range(layers):
        last = layer == layers - 1
        read = batch if last else rows
        work["products"] += 3 * ((4 * rows + 2 * batch if last else 6 * rows) * width ** 2 + 2 * read * width ** 2 + 4 * read * width * mlp)
        work["attention FLOPs"] += 14 * width * (rows if last else pairs)
        work["LayerNorm"] += (rows + read) * width * (6 + 6 + 10)  # forward, again in the backward pass, backward; the residual stream is fp32
        work["activation"] += read * mlp * (4 + 4 + 6)
        work["bias gradients"] += 2 * (3 * width * rows + 2 * width * read)  # the activation's backward pass sums that of the first MLP layer
        work["attention"] += rows * width * (8 + 16)  # qkv and out; qkv, out, dout and dqkv
    return work


def limits(models, batch, copy, product):
    """No kernel is faster than its bytes or FLOPs; the sum over a step is what remains when every one reaches its limit."""
    print(f"\n## Limits of a step, batch {batch}, captions of {TOKENS} tokens, amp_bf16: {product / 1e12:.0f} TFLOP/s, {copy / 1e12:.1f} TB/s\n")
    print("| model | " + " | ".join(("products", "attention", "LayerNorm", "activation", "bias gradients", "AdamW and norm", "pixels, embeddings, loss")) +
          " | together | pairs/s | MFU, work done | products alone |\n|---|" + "---|" * 11)
    for model in models:
        c = config(model)
        patches = (c["image_size"] // c["patch_size"]) ** 2
        width, mlp, text = c["image_width"], round(c["image_width"] * c["mlp_ratio"]), c["text_width"]
        lengths = range(TOKENS // 2, TOKENS * 3 // 2 + 1)
        towers = (block_work(batch * (patches + 1), batch, width, mlp, c["image_layers"], batch * (patches + 1) ** 2),
                  block_work(batch * TOKENS, batch, text, 4 * text, c["text_layers"], batch * statistics.mean(n * (n + 1) / 2 for n in lengths)))
        work = {key: towers[0][key] + towers[1][key] for key in towers[0]}
        work["products"] += 4 * batch * patches * 3 * c["patch_size"] ** 2 * width + 6 * batch * (width + text) * c["embed_dim"]
        parameters = c["image_layers"] * (4 * width ** 2 + 2 * width * mlp) + c["text_layers"] * 12 * text ** 2 + 49408 * text + 3 * c["patch_size"] ** 2 * width
        ends = 3 * batch * c["image_size"] ** 2 * 3 * 2 + batch * patches * width * 14 + batch * TOKENS * text * 8 + 20 * batch ** 2
        ms = [1e3 * work["products"] / product, 1e3 * max(work["attention FLOPs"] / product, work["attention"] / copy), *(1e3 * work[key] / copy for key in ("LayerNorm", "activation", "bias gradients")),
              1e3 * 34 * parameters / copy, 1e3 * ends / copy]
        done = work["products"] + work["attention FLOPs"]
        print(f"| {model} | " + " | ".join(f"{x:.1f} ms" for x in ms) + f" | {sum(ms):.1f} ms | {1e3 * batch / sum(ms):.0f} | {1e3 * done / sum(ms) / 990e12:.0%} | {ms[0] / sum(ms):.0%} |")


class Steps:
    """A process that takes steps when asked to; raises RuntimeError with its last words when it cannot."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def take(self, line):
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline().split()
        if not answer:
            raise RuntimeError((self.process.stderr.read().strip().splitlines() or ["ended without a word"])[-1])
        return [float(x) for x in answer]

    def close(self):
        try:
            self.process.stdin.close()
        except BrokenPipeError:  # it has ended already
            pass
        self.process.wait()


def measure(command, count, profile):
    """-> seconds a step, memory in GB, of a profiled step: share of the products, their FLOPs"""
    steps = Steps(command)
    try:
        steps.take(3)
        answer = steps.take(count)
        profiled = steps.take("3 profile") if profile else None
    finally:
        steps.close()
    return answer[0] / count, answer[-1] / 1e9, profiled and (profiled[2] / profiled[0], profiled[3] / 3)


def has_torch():
    return subprocess.run([sys.executable, "-c", "import torch, open_clip; assert torch.cuda.is_available()"], stderr=subprocess.DEVNULL).returncode == 0


# ---------------------------------------------------------------- the parts

def kernels():
    print("\n## Kernels\n", flush=True)
    out = subprocess.run([os.path.join(BUILD, "labcu"), "--time"], stdout=subprocess.PIPE, text=True)
    print(out.stdout)
    if out.returncode:
        sys.exit("gpu.py: the kernel laboratory failed")
    if not has_torch():
        print("PyTorch is not there: attention is not compared.")
        return
    ours = {(cells[1], int(cells[2])): float(cells[4]) for cells in ([c.strip() for c in line.split("|")] for line in out.stdout.splitlines() if line.startswith("| attention"))}
    peer = subprocess.run([sys.executable, os.path.join(ROOT, "dev/bench/gpu_peer.py"), "attention"], stdout=subprocess.PIPE, text=True, check=True)
    print("| attention | ours, ms | scaled_dot_product_attention, ms | ratio |\n|---|---|---|---|")
    for line in peer.stdout.splitlines():
        name, *theirs = line.split("|")
        for way, ms in zip(("forward", "backward"), theirs):
            mine = ours[max(key for key in ours if key[0] == f"attention {way}, {name}")]
            print(f"| {way}, {name} | {mine:.3f} | {ms} | {float(ms) / mine:.2f}x |")


def steps_of(model, batches, peak, peer):
    done_attention, padded = attention_flops(model), padded_flops(model)
    best = {}
    for batch in batches:
        rows = {"train_clipcu": [os.path.join(BUILD, "bench_stepcu"), "train", model, f"{batch}:{TOKENS}", "amp_bf16"]}
        if peer:
            path = prepare_batch(os.path.join(BUILD, "bench"), batch, TOKENS)
            command = [sys.executable, os.path.join(ROOT, "dev/bench/gpu_peer.py"), "train", model, path]
            rows.update({"open_clip": command, "open_clip, compiled": command + ["--compile"]})
        for program, command in rows.items():
            if best.get(program) == "ended":
                continue
            try:
                seconds, memory, profile = measure(command, 10, program == "train_clipcu")
            except RuntimeError as error:
                print(f"| {model} | {batch} | {program} | {error} | | | | |", flush=True)
                best[program] = "ended"
                continue
            rate = batch / seconds
            done = f"{(profile[1] + done_attention * batch) / seconds / peak:.0%}" if profile else ""
            share = f"{profile[0]:.0%}" if profile else ""
            print(f"| {model} | {batch} | {program} | {rate:.0f} | {done} | {rate * padded / peak:.0%} | {share} | {memory:.1f} GB |", flush=True)


def steps(models, batches, peak):
    peer = has_torch()
    print(f"\n## Training steps, amp_bf16, captions of {TOKENS} tokens, synthetic input; peak taken as {peak / 1e12:.0f} TFLOP/s\n")
    if not peer:
        print("open_clip and PyTorch are not there: not compared.\n")
    print("| model | batch | program | pairs/s | MFU, work done | MFU, padded work | products' share of the step | memory in use on the card |\n|---|---|---|---|---|---|---|---|", flush=True)
    for model in models:
        steps_of(model, batches, peak, peer)


def feeding():
    """Images on disk compared with synthetic ones: how long the GPU waits for the loader."""
    print("\n## Feeding, ViT-B-32, batch 512\n")
    scratch = os.path.join(BUILD, "bench", "feeding")
    shutil.rmtree(scratch, ignore_errors=True)
    subprocess.run([sys.executable, os.path.join(ROOT, "dev/data/make_shapes.py"), "--out", f"{scratch}/data", "--count", "4096", "--size", "256"], check=True, stdout=subprocess.DEVNULL)
    print("| input | pairs/s | ms a step | of them waiting for data |\n|---|---|---|---|")
    for name, source in (("synthetic", ["synthetic"]), ("PNG files of 256 x 256", [f"{scratch}/data/train.csv"])):
        run = ["--model", "ViT-B-32", "--train-data", *source, "--batch-size", 512, "--steps", 40, "--precision", "amp_bf16", "--logs", f"{scratch}/logs", "--name", name.split()[0]]
        subprocess.run([os.path.join(BIN, "train_clipcu"), *map(str, run)], check=True, stdout=subprocess.DEVNULL)
        with open(f"{scratch}/logs/{name.split()[0]}/metrics.jsonl") as f:
            records = [r for r in map(json.loads, f) if "batch_time" in r][10:]
        batch, data = (statistics.median(r[key] for r in records) for key in ("batch_time", "data_time"))
        print(f"| {name} | {512 / batch:.0f} | {1e3 * batch:.1f} | {1e3 * data:.1f} ms |", flush=True)
    shutil.rmtree(scratch, ignore_errors=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", choices=["kernels", "steps", "feeding", "limits", []], default=[])
    p.add_argument("--models", default="ViT-B-32,ViT-B-16,ViT-L-14")
    p.add_argument("--batches", default="256,512,1024,2048,4096,8192")
    p.add_argument("--copy", type=float, default=4.3, help="limits: TB/s of a copy, read and written ones counted; 4.3 measured on an H200")
    p.add_argument("--product", type=float, default=790, help="limits: TFLOP/s of a large bf16 product; 790 measured on an H200")
    p.add_argument("--peak", type=float, default=990, help="TFLOP/s of bf16 products without sparsity: 990 H100 and H200, 312 A100")
    a = p.parse_args()
    if "limits" in a.parts:
        return limits(a.models.split(","), 1024, a.copy * 1e12, a.product * 1e12)
    os.makedirs(os.path.join(BUILD, "bench"), exist_ok=True)
    card = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"], stdout=subprocess.PIPE, text=True).stdout.strip()
    print(f"# {card}, {time.strftime('%Y-%m-%d')}")
    if not a.parts or "kernels" in a.parts:
        kernels()
    if not a.parts or "steps" in a.parts:
        steps(a.models.split(","), [int(x) for x in a.batches.split(",")], a.peak * 1e12)
    if not a.parts or "feeding" in a.parts:
        feeding()


if __name__ == "__main__":
    main()
