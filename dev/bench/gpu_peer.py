#!/usr/bin/env python3
"""open_clip on a GPU, as dev/bench/gpu.py asks for it.

  gpu_peer.py train MODEL BATCH [--compile]   BATCH: a file of peer.py. Each line of stdin, a number of steps, is answered by their seconds, the
                                              loss before the last, and the bytes of GPU memory in use. amp_bf16, as open_clip's main.py trains.
  gpu_peer.py attention                       prints, for each of lab.cu's shapes, the ms of scaled_dot_product_attention forward and backward
"""
import sys
import time

import numpy as np
import torch

from peer import read_batch

# name, sequences, tokens, heads, head size, causal: as in dev/cuda/lab.cu; captions are padded to their longest, as PyTorch needs them
ATTENTION = (("images of 50 tokens", 1024, 50, 12, 64, False), ("images of 257 tokens", 128, 257, 16, 64, False), ("captions of 8 to 24 tokens", 1024, 24, 8, 64, True))


def train(name, batch, compiled):
    import open_clip
    model = open_clip.create_model(name).cuda().train()
    forward = torch.compile(model) if compiled else model
    trained = list(model.named_parameters())
    still = [p for n, p in trained if p.ndim < 2 or any(x in n for x in ("bn", "ln", "bias", "logit_scale"))]
    rest = [p for n, p in trained if not (p.ndim < 2 or any(x in n for x in ("bn", "ln", "bias", "logit_scale")))]
    optimizer = torch.optim.AdamW([{"params": still, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}], lr=1e-5, betas=(0.9, 0.98), eps=1e-6)
    loss_of = open_clip.ClipLoss()
    pixels, captions = read_batch(batch)
    mean, std = (torch.tensor(x).view(3, 1, 1).cuda() for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    images, texts = (torch.tensor(pixels).cuda() / 255 - mean) / std, torch.tensor(captions).long().cuda()

    def step():
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            image, text, scale = forward(images, texts)
            loss = loss_of(image, text, scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, float(np.log(100)))
        return loss

    for line in sys.stdin:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(int(line)):
            loss = float(step())  # as its log does: waits for the GPU
        seconds, (free, total) = time.perf_counter() - begin, torch.cuda.mem_get_info()
        print(f"{seconds:.6f} {loss:.6f} {total - free}", flush=True)


def milliseconds(run):
    begin, end, times = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True), []
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for i in range(24):
        flush.zero_()
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[3:])[10]


def attention():
    for name, sequences, tokens, heads, size, causal in ATTENTION:
        q, k, v = (torch.randn(sequences, heads, tokens, size, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        gradient = torch.randn_like(out)
        forward = milliseconds(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal))
        backward = milliseconds(lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True))
        print(f"{name}|{forward:.3f}|{backward:.3f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["attention"]:
        attention()
    else:
        train(sys.argv[2], sys.argv[3], "--compile" in sys.argv)
