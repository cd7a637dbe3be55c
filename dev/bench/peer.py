#!/usr/bin/env python3
"""Compares train_clip with open_clip on this machine's processor (make bench-peer; dev/bench/peer.sh installs open_clip).

  dev/bench/peer.py [ROW...] [--rounds 5] [--threads N] [--folder DIR]      rows by name or pattern; default: all
  dev/bench/peer.py --list

Both programs get the same weights, images, captions and number of threads. For each row, each program is one process
that takes steps on request and sleeps while the other has its turn. The times therefore include neither start-up nor
data loading, the two do not disturb each other, and other load on the machine affects both alike. The peer does what
open_clip's main.py and train.py do at --precision fp32 and amp_bf16. If the two programs differ in the loss of the
first step (when encoding: in the features), they do not do the same work, and the row is an error.
Prints a Markdown table: medians over the rounds, the lowest and highest ratio, and peak resident memory.
"""
import argparse
import fnmatch
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("BUILD") or os.path.join(ROOT, "build")
BIN = os.path.join(ROOT, os.environ.get("BIN", ""))

# name, task, model, pairs, mean tokens per caption (77: the full context), precision, number of trained groups in
# the image and in the text tower (-1: all), whether train_clip caches the features of the image tower, steps
# per round
Row = namedtuple("Row", "name, task, model, pairs, tokens, precision, image, text, cached, steps")


PRODUCTS = {"forward": "forward", "input": "input gradient", "weight": "weight gradient"}


def rows():
    b32, b16 = "ViT-B-32", "ViT-B-16"
    for precision, short in (("fp32", "fp32"), ("amp_bf16", "bf16")):
        yield Row(f"train-b32-{short}", "train", b32, 32, 16, precision, -1, -1, False, 1)
        yield Row(f"train-b32-77-{short}", "train", b32, 32, 77, precision, -1, -1, False, 1)
        yield Row(f"train-b32-64-{short}", "train", b32, 64, 16, precision, -1, -1, False, 1)  # minus the memory with 32 pairs: activations of 32 pairs
        yield Row(f"train-b16-{short}", "train", b16, 16, 16, precision, -1, -1, False, 1)
        yield Row(f"lock-image-{short}", "train", b32, 32, 16, precision, 0, -1, False, 1)
        yield Row(f"lock-text-{short}", "train", b32, 32, 16, precision, -1, 0, False, 1)
        yield Row(f"last-2-groups-{short}", "train", b32, 32, 16, precision, 2, 2, False, 2)
        yield Row(f"lit-cached-{short}", "train", b32, 32, 16, precision, 0, -1, True, 2)
        yield Row(f"image-32-{short}", "image", b32, 32, 16, precision, -1, -1, False, 3)
        yield Row(f"image-1-{short}", "image", b32, 1, 16, precision, -1, -1, False, 30)
        yield Row(f"text-32-{short}", "text", b32, 32, 16, precision, -1, -1, False, 3)
        for part, pairs, width, hidden in ("image", 1600, 768, 3072), ("text", 512, 512, 2048):
            for layer, C, O in ("in_proj", width, 3 * width), ("out_proj", width, width), ("c_fc", width, hidden), ("c_proj", hidden, width):
                for task in "forward", "input", "weight":  # layers of ViT-B/32 at 32 pairs; `model` is R x C x O
                    turn = round((4e10 if precision == "fp32" else 2e11) / (2 * pairs * C * O))  # about a tenth of a second, so that waking the threads does not matter
                    yield Row(f"product-{part}-{layer}-{task}-{short}", task, f"{pairs}x{C}x{O}", 1, 0, precision, -1, -1, False, turn)
    yield Row("start", "start", b32, 32, 16, "fp32", -1, -1, False, 1)


def describe(row):
    if row.task == "start":
        return f"{row.model}, from the command to the first step"
    if row.task in PRODUCTS:
        return f"matrix product {row.model}, {PRODUCTS[row.task]}"
    if row.task != "train":
        return f"{row.model}, {row.pairs} {'image' if row.task == 'image' else 'caption'}{'s' * (row.pairs > 1)} to features"
    names = {-1: "trained", 0: "locked"}
    lock = "" if (row.image, row.text) == (-1, -1) else ", last 2 groups of each tower" if row.image == row.text == 2 else \
        f", image tower {names[row.image]}, text tower {names[row.text]}"
    return f"{row.model}, training, {row.pairs} pairs, {row.tokens} tokens{lock}{', features cached' * row.cached}"


# ---------------------------------------------------------------- weights and batches for both

def prepare_model(folder, model):
    """-> a packed file of random weights, and the same weights for open_clip"""
    packed, exported = os.path.join(folder, f"{model}.bin"), os.path.join(folder, model)
    convert = [sys.executable, os.path.join(ROOT, "dev", "convert.py")]
    if not os.path.exists(os.path.join(exported, "open_clip_model.safetensors")):
        shutil.rmtree(exported, ignore_errors=True)
        subprocess.run(convert + ["--model", model, "--random", "0", "-o", packed], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(convert + [packed, "-o", exported, "--format", "open_clip"], check=True, stdout=subprocess.DEVNULL)
    return packed, os.path.join(exported, "open_clip_model.safetensors")


def prepare_batch(folder, pairs, tokens, size=224, context=77):
    """Images of noise; captions of random tokens, with lengths spread evenly between half and one and a half times the mean."""
    path = os.path.join(folder, f"{pairs}x{tokens}.batch")
    draw = np.random.default_rng(0)
    spread = 0 if tokens == context else tokens // 2
    lengths = np.round(np.linspace(tokens - spread, tokens + spread, pairs)).astype(int) if pairs > 1 else [tokens]
    captions = np.zeros((pairs, context), np.int32)
    for row, n in zip(captions, lengths):
        row[:n] = [49406, *draw.integers(0, 49406, n - 2), 49407]
    with open(path, "wb") as f:
        f.write(struct.pack("<3i", pairs, size, context))
        f.write(draw.integers(0, 256, (pairs, 3, size, size), np.uint8).tobytes())
        f.write(captions.tobytes())
    return path


def read_batch(path):
    with open(path, "rb") as f:
        pairs, size, context = struct.unpack("<3i", f.read(12))
        pixels = np.frombuffer(f.read(pairs * 3 * size * size), np.uint8).reshape(pairs, 3, size, size)
        return pixels, np.frombuffer(f.read(), np.int32).reshape(pairs, context)


# ---------------------------------------------------------------- the peer, in a process of its own

class PeerProduct:
    """A layer's matrix product as in torch.nn.Linear and its backward pass: MKL in fp32, oneDNN in bf16"""

    def __init__(self, row, threads):
        import torch
        torch.set_num_threads(threads)
        R, C, O = map(int, row.model.split("x"))
        self.torch, self.task = torch, row.task
        self.inp, self.out, self.weight = (self.draw(*shape, row.precision) for shape in ((R, C), (R, O), (O, C)))

    def draw(self, rows, columns, precision):
        x = (np.arange(rows * columns, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(1009)).astype(np.float32)
        return self.torch.tensor((x - 504) / np.float32(5e4)).view(rows, columns).to(self.torch.bfloat16 if precision == "amp_bf16" else self.torch.float32)

    def step(self):
        with self.torch.inference_mode():
            if self.task == "forward":
                return 1000 * self.torch.nn.functional.linear(self.inp, self.weight)[0, 0]
            return 1000 * (self.out @ self.weight if self.task == "input" else self.out.t() @ self.inp)[0, 0]


class Peer:
    """open_clip, set up as in its main.py"""

    def __init__(self, row, weights, batch, threads):
        import contextlib
        import open_clip
        import torch
        self.torch, self.row = torch, row
        torch.set_num_threads(threads)
        self.model = open_clip.create_model(row.model, pretrained=weights)
        self.autocast = (lambda: torch.autocast("cpu", dtype=torch.bfloat16)) if row.precision == "amp_bf16" else contextlib.nullcontext
        if row.task == "train" or row.task == "start":
            self.prepare_training(open_clip)
        else:
            self.model.eval()
        pixels, captions = read_batch(batch)
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
        self.images, self.texts = (torch.tensor(pixels) / 255 - mean) / std, torch.tensor(captions).long()

    def prepare_training(self, open_clip):
        if self.row.image >= 0:
            self.model.lock_image_tower(unlocked_groups=self.row.image)
        if self.row.text >= 0:
            self.model.lock_text_tower(unlocked_layers=self.row.text)
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        no_decay = [p for n, p in trained if p.ndim < 2 or any(x in n for x in ("bn", "ln", "bias", "logit_scale"))]
        rest = [p for n, p in trained if not any(p is q for q in no_decay)]
        self.optimizer = self.torch.optim.AdamW([{"params": no_decay, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}], lr=1e-5, betas=(0.9, 0.98), eps=1e-6)
        self.loss = open_clip.ClipLoss()
        self.model.train()

    def train(self):
        self.optimizer.zero_grad()
        with self.autocast():
            image, text, scale = self.model(self.images, self.texts)
            loss = self.loss(image, text, scale)
        loss.backward()
        self.optimizer.step()
        with self.torch.no_grad():
            self.model.logit_scale.clamp_(0, float(np.log(100)))
        return loss

    def encode(self):
        with self.torch.inference_mode(), self.autocast():
            encode, given = (self.model.encode_image, self.images) if self.row.task == "image" else (self.model.encode_text, self.texts)
            return encode(given, normalize=True)[0, 0]

    def step(self):
        return self.train() if self.row.task == "train" else self.encode()


def serve(peer):
    for line in sys.stdin:
        begin = time.perf_counter()
        for _ in range(int(line)):
            result = peer.step()
        print(f"{time.perf_counter() - begin:.6f} {float(result):.6f}", flush=True)


# ---------------------------------------------------------------- turns

class Program:
    """A process that takes steps on request"""

    def __init__(self, command, threads):
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def steps(self, count):
        """-> seconds per step, and the loss (or a feature) by which results are compared"""
        try:
            self.process.stdin.write(f"{count}\n")
            self.process.stdin.flush()
            seconds, result = self.process.stdout.readline().split()
        except (BrokenPipeError, ValueError):
            self.process.kill()
            raise RuntimeError(self.process.stderr.read().strip()[-400:] or "ended without a message") from None
        return float(seconds) / count, float(result)

    def close(self):
        """-> peak resident memory in GB"""
        with open(f"/proc/{self.process.pid}/status") as f:
            peak = next(int(line.split()[1]) for line in f if line.startswith("VmHWM:"))
        self.process.stdin.close()
        self.process.wait()
        return peak * 1024 / 1e9


def measure(row, rounds, threads, folder):
    """-> seconds per step of each round (ours, theirs), peak memory (ours, theirs)"""
    product = row.task in PRODUCTS
    packed, weights = ("", "") if product else prepare_model(folder, row.model)
    batch = "" if product else prepare_batch(folder, row.pairs, row.tokens)
    locks = [f"{tower}={n}" for tower, n in (("image", row.image), ("text", row.text)) if n >= 0] + ["cached"] * row.cached
    step = ["bench_stages", row.task, row.model, row.precision] if product else ["bench_step", row.task, packed, batch, row.precision, *locks]
    ours = Program([os.path.join(BUILD, step[0]), *step[1:]], threads)
    theirs = None
    try:
        ours_first = ours.steps(1)[1]
        theirs = Program([sys.executable, __file__, "--child", row.name, weights, batch, str(threads)], threads)
        theirs_first = theirs.steps(1)[1]
        tolerance = (2e-4 if row.precision == "fp32" else 3e-2) * max(1, abs(theirs_first))
        if not abs(ours_first - theirs_first) <= tolerance:
            raise RuntimeError(f"the programs differ: {ours_first} and {theirs_first}")
        times = []
        for i in range(rounds):
            pair = [None, None]
            for which in ((0, 1), (1, 0))[i % 2]:
                pair[which] = (ours, theirs)[which].steps(row.steps)[0]
            times.append(pair)
        return times, (ours.close(), theirs.close())
    finally:
        for program in (ours, theirs):
            if program:
                program.process.kill()


def run_until(command, sign, threads):
    """-> seconds from the start of the command to the line that begins with `sign`; then the process is killed"""
    begin = time.perf_counter()
    program = Program(command, threads)
    for line in program.process.stdout:
        if line.startswith(sign):
            seconds = time.perf_counter() - begin
            program.process.kill()
            program.process.wait()
            return seconds
    raise RuntimeError(program.process.stderr.read().strip()[-400:])


def measure_start(row, rounds, threads, folder):
    """Until train_clip prints the run folder, its last line before the first step. open_clip has no data to open."""
    packed, weights = prepare_model(folder, row.model)
    batch, logs, times = prepare_batch(folder, row.pairs, row.tokens), os.path.join(folder, "logs"), []
    for _ in range(rounds + 1):
        shutil.rmtree(logs, ignore_errors=True)
        ours = [os.path.join(BIN, "train_clip"), "--pretrained", packed, "--train-data", "synthetic", "--batch-size", str(row.pairs), "--logs", logs]
        theirs = [sys.executable, __file__, "--child", row.name, weights, batch, str(threads)]
        times.append([run_until(ours, "run folder", threads), run_until(theirs, "ready", threads)])
    shutil.rmtree(logs, ignore_errors=True)
    return times[1:], None  # the first round is a warm-up that reads the files into the page cache


# ---------------------------------------------------------------- the table

def table_line(row, times, memory):
    ours, theirs = (statistics.median(t[i] for t in times) for i in (0, 1))
    ratios = [t[1] / t[0] for t in times]
    flops = 2e-9 * np.prod([float(n) for n in row.model.split("x")]) if row.task in PRODUCTS else 0
    rate = [f"{x:.2f} s" if row.task == "start" else f"{flops / x:.0f} GFLOP/s" if flops else f"{1000 * x:.1f} ms" if row.pairs == 1 else f"{row.pairs / x:.1f}/s" for x in (ours, theirs)]
    peaks = [f"{x:.2f} GB" for x in memory] + [f"{memory[0] / memory[1]:.2f}"] if memory and not flops else ["", "", ""]
    spread = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"
    return f"| {row.name} | {describe(row)} | {row.precision} | {rate[0]} | {rate[1]} | {spread} | {peaks[0]} | {peaks[1]} | {peaks[2]} |"


def processor():
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("rows", nargs="*", default=["*"])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--folder", default=os.path.join(BUILD, "bench"))
    p.add_argument("--list", action="store_true")
    a = p.parse_args()
    chosen = [r for r in rows() if any(fnmatch.fnmatch(r.name, pattern) for pattern in a.rows)]
    if not chosen:
        sys.exit(f"peer.py: no row is named {' or '.join(a.rows)}; --list shows them")
    if a.list:
        print("\n".join(f"{r.name:24} {describe(r)}, {r.precision}" for r in chosen))
        return
    os.makedirs(a.folder, exist_ok=True)
    from importlib.metadata import version
    print(f"{processor()}, {a.threads} threads; open_clip {version('open_clip_torch')}, PyTorch {version('torch')}; {time.strftime('%Y-%m-%d')}; median of {a.rounds} rounds\n")
    print("| row | what | precision | train_clip | open_clip | ratio (lowest-highest) | memory | open_clip's | share |\n|---|---|---|---|---|---|---|---|---|")
    failed = 0
    for row in chosen:
        try:
            print(table_line(row, *(measure_start if row.task == "start" else measure)(row, a.rounds, a.threads, a.folder)), flush=True)
        except RuntimeError as error:
            failed += 1
            print(f"| {row.name} | {describe(row)} | {row.precision} | not measured: {error} | | | | | |", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, weights, batch, threads = sys.argv[2:]
        row = next(r for r in rows() if r.name == name)
        peer = PeerProduct(row, int(threads)) if row.task in PRODUCTS else Peer(row, weights, batch, int(threads))
        print("ready", flush=True) if row.task == "start" else serve(peer)
    else:
        main()
