#!/usr/bin/env python3
"""wise_ft against numpy: weights to the last bit, greedy soups decided again from separate evaluations, sweeps against train_clip
--eval-only of the saved files, bad input.

  python3 dev/test/test_wise_ft.py [--large]      --large: also two files of ViT-B/32 (1.2 GB in the temporary folder), and the memory they take
"""
import csv
import glob
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "dev"))
import checks
from checks import check as expect
import convert
from seals import sealed, unsealed

BIN = os.path.join(ROOT, os.environ.get("BIN", ""))
folder = tempfile.TemporaryDirectory(prefix="test_wise_ft_")
os.chdir(folder.name)

TINY = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 12, "layers": 3},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 12, "heads": 2, "layers": 2}}


def run(program, *args, env=None):
    """-> exit code, stdout, stderr"""
    p = subprocess.run([program if os.path.isabs(program) else BIN + program, *map(str, args)], capture_output=True, text=True, env={**os.environ, **(env or {})})
    return p.returncode, p.stdout, p.stderr


def must(program, *args, **more):
    code, out, err = run(program, *args, **more)
    expect(code == 0, f"{program} {' '.join(map(str, args))}: {code} {err}")
    return out


def converter(*args):
    return must(sys.executable, os.path.join(ROOT, "dev", "convert.py"), *args)


def read(path):
    """-> name -> float32 array"""
    return {name: np.asarray(e.read(), dtype=np.float32) if e.dtype == "F32" else (np.asarray(e.read()).astype(np.uint32) << 16).view(np.float32)
            for name, e in convert.open_packed(path).entries.items()}


def data(path):
    with open(path, "rb") as f:
        return f.read()


def write_like(path, like, arrays):
    """A copy of the fp32 file `like` with other tensors."""
    blob, old = bytearray(unsealed(data(like))), read(like)
    at = len(blob)
    for name in reversed(list(old)):
        at -= -(-old[name].nbytes // 64) * 64
        blob[at:at + old[name].nbytes] = np.ascontiguousarray(arrays[name], dtype="<f4").tobytes()
    with open(path, "wb") as f:
        f.write(sealed(blob))


def equal(path, want, what, ulps=0):
    got = read(path)
    expect(list(got) == list(want), f"{what}: other tensors")
    for name in want:
        a, b = got[name].reshape(-1), np.asarray(want[name], dtype=np.float32).reshape(-1)
        same = a.view(np.uint32) == b.view(np.uint32) if ulps == 0 else np.abs(a - b) <= ulps * np.spacing(np.maximum(np.abs(a), np.abs(b)))
        expect(same.all(), f"{what}: {name}: {(~same).sum()} of {same.size} entries differ")


def wise(a, b, alpha):
    if alpha in (0, 1):
        return b if alpha else a
    return np.float32(1 - alpha) * a + np.float32(alpha) * b


def depth(name, layers):
    """LiNeS: the depth of a tensor in its tower, 0 … 1"""
    block = re.search(r"resblocks\.(\d+)\.", name)
    if block:
        return int(block[1]) / (layers - 1)
    return 1 if "ln_post" in name or "ln_final" in name or "proj" in name else 0


# ---------------------------------------------------------------- weights

def test_weights(files):
    a, b, c = (read(f) for f in files[:3])
    pair = ("--zeroshot", files[0], "--finetuned", files[1])
    must("wise_ft", *pair, "--alpha", "0,0.1,...,1", "--save", "line")
    for i in range(11):
        equal(f"line/alpha_{i / 10:.12g}.bin", {n: wise(a[n], b[n], i / 10) for n in a}, f"alpha {i / 10}")
    expect(data("line/alpha_0.bin") == data(files[0]) and data("line/alpha_1.bin") == data(files[1]), "the ends are copies")
    expect(sorted(os.listdir("line")) == sorted(f"alpha_{i / 10:.12g}.bin" for i in range(11)), os.listdir("line"))

    must("wise_ft", *pair, "--alpha", 0.3, "--save", "one", env={"OMP_NUM_THREADS": "1"})
    expect(data("one/alpha_0.3.bin") == data("line/alpha_0.3.bin"), "the number of threads changes nothing")

    tower = lambda n: "scale" if n == "logit_scale" else "image" if n.startswith("visual.") else "text"
    must("wise_ft", *pair, "--alpha", 0.3, "--alpha-image", 0.7, "--alpha-text", 0, "--save", "towers")
    equal("towers/alpha_0.3.bin", {n: wise(a[n], b[n], {"image": 0.7, "text": 0, "scale": 0.3}[tower(n)]) for n in a}, "alpha of each tower")

    layers = {"image": 3, "text": 2}
    must("wise_ft", *pair, "--method", "lines", "--alpha", 0.9, "--first-block", 0.25, "--save", "lines")
    factor = lambda n: 1 if n == "logit_scale" else 0.25 + (1 - 0.25) * depth(n, layers[tower(n)])
    equal("lines/lines_0.9.bin", {n: wise(a[n], b[n], 0.9 * factor(n)) for n in a}, "LiNeS")

    must("wise_ft", "--models", *files, "--soup", "uniform", "--save", "many")
    all_read = [read(f) for f in files]
    equal("many/soup_uniform.bin", {n: sum((x[n].astype(np.float64) for x in all_read[1:]), all_read[0][n].astype(np.float64)) / len(files) for n in a}, "uniform soup")

    must("wise_ft", "--zeroshot", files[0], "--models", *files[1:3], "--method", "task-arithmetic", "--lambda", "0.4", "-0.3", "--save", "many")
    f8 = lambda x: x.astype(np.float64)
    equal("many/task_arithmetic.bin", {n: f8(a[n]) + 0.4 * (f8(b[n]) - f8(a[n])) + -0.3 * (f8(c[n]) - f8(a[n])) for n in a}, "task arithmetic")

    must("wise_ft", "--zeroshot", files[0], "--models", *files[1:], "--method", "model-stock", "--save", "many")
    equal("many/model_stock.bin", {n: stock(f8(a[n]), [f8(x[n]) for x in all_read[1:]]) for n in a}, "Model Stock", ulps=1)


def stock(base, runs):
    updates = [(x - base).reshape(-1) for x in runs]
    length = lambda x: np.sqrt(x @ x)
    pairs = [x @ y / (length(x) * length(y)) if length(x) and length(y) else 0 for x, y in itertools.combinations(updates, 2)]
    c, N = sum(pairs) / len(pairs), len(runs)
    t = N * c / (1 + (N - 1) * c) if c > 0 else 0
    return t * (sum(runs) / N) + (1 - t) * base


def test_stock_on_constructed_vectors(files):
    """Updates of 60 degrees in every tensor: t = 2/3 in all of them."""
    a = read(files[0])
    rng = np.random.default_rng(5)
    x, y = {}, {}
    for n, w in a.items():
        if w.size < 2:
            x[n] = y[n] = w + np.float32(0.5)  # one direction: t = 1
            continue
        u, v = rng.standard_normal((2, w.size))
        u /= np.linalg.norm(u)
        v -= u * (u @ v)
        v /= np.linalg.norm(v)
        x[n], y[n] = (w + u.reshape(w.shape)).astype(np.float32), (w + (0.5 * u + np.sqrt(0.75) * v).reshape(w.shape)).astype(np.float32)
    write_like("x.bin", files[0], x)
    write_like("y.bin", files[0], y)
    out = must("wise_ft", "--zeroshot", files[0], "--models", "x.bin", "y.bin", "--method", "model-stock", "--save", "constructed")
    expect(re.search(r"takes 0\.667 of the mean of 2 models and 0\.333 of the model before fine-tuning \(per tensor 0\.66[67] to 1\.000\)", out), out)
    got = read("constructed/model_stock.bin")
    for n, w in a.items():
        t = 2 / 3 if w.size > 1 else 1
        want = t * (x[n].astype(np.float64) + y[n]) / 2 + (1 - t) * w
        expect(np.abs(got[n] - want).max() < 2e-6, f"Model Stock at 60 degrees: {n}")


def test_bf16(files):
    for k in (0, 1):
        converter(files[k], "-o", f"half{k}.bin", "--dtype", "bf16")
    a, b = read("half0.bin"), read("half1.bin")
    must("wise_ft", "--zeroshot", "half0.bin", "--finetuned", "half1.bin", "--alpha", "0.3 1", "--save", "half")
    equal("half/alpha_0.3.bin", {n: wise(a[n], b[n], 0.3) for n in a}, "bf16")
    expect(data("half/alpha_1.bin") == data("half1.bin"), "a bf16 end is a copy")
    must("wise_ft", "--zeroshot", files[0], "--finetuned", "half1.bin", "--alpha", "0.3", "--save", "mixed")
    mine = read(files[0])
    equal("mixed/alpha_0.3.bin", {n: wise(mine[n], b[n], 0.3) for n in a}, "fp32 with bf16")


def test_sizes(files):
    """A at 32 pixels and 16 tokens, B at 48 and 20: A's positions are brought to B's."""
    larger = json.loads(json.dumps(TINY))
    larger["vision_cfg"]["image_size"], larger["text_cfg"]["context_length"] = 48, 20
    with open("larger.json", "w") as f:
        json.dump(larger, f)
    converter("--model", "larger.json", "--random", 9, "-o", "larger.bin")
    code, _, err = run("wise_ft", "--zeroshot", files[0], "--finetuned", "larger.bin", "--save", "no")
    expect(code == 2 and "image_size is 32 and 48; --interpolate-positions" in err and not os.path.exists("no"), err)
    must("wise_ft", "--zeroshot", files[0], "--finetuned", "larger.bin", "--interpolate-positions", "--alpha", "0 0.3 1", "--save", "sized")
    expect(data("sized/alpha_1.bin") == data("larger.bin"), "alpha 1 is still a copy")
    a, b, start = read(files[0]), read("larger.bin"), read("sized/alpha_0.bin")
    for n in a:
        if "positional_embedding" not in n:
            expect((start[n] == a[n]).all(), f"{n} is that of A")
            continue
        expect(start[n].shape == b[n].shape, f"{n} has the size of B's")
        if n.startswith("visual."):
            expect((start[n][0] == a[n][0]).all(), "the class row stays")
    rows = a["positional_embedding"]
    at = np.clip((np.arange(20) + 0.5) * 16 / 20 - 0.5, 0, None)
    low = at.astype(int)
    share = (at - low)[:, None]
    want = rows[low] * (1 - share) + rows[np.minimum(low + 1, 15)] * share
    expect(np.abs(start["positional_embedding"] - want).max() < 1e-6, "text positions are interpolated linearly")
    equal("sized/alpha_0.3.bin", {n: wise(start[n], b[n], 0.3) for n in b}, "interpolated")


def test_formats(files):
    must("wise_ft", "--zeroshot", files[0], "--finetuned", files[1], "--format", "open_clip", "--save", "format", env={"PYTHON": sys.executable})
    converter("format/alpha_0.5-open_clip", "-o", "back.bin")
    equal("back.bin", read("format/alpha_0.5.bin"), "open_clip's form and back")
    code, _, err = run("wise_ft", "--zeroshot", files[0], "--finetuned", files[1], "--format", "open_clip", "--save", "format", env={"PYTHON": "/no/python"})
    expect(code == 1 and err.count("\n") == 1 and "needs /no/python" in err, err)


# ---------------------------------------------------------------- evaluation

def accuracies(weights, sets, classnames):
    """train_clip --eval-only: name -> top-1 to four digits"""
    args = [x for name, path in sets.items() for x in ("--zeroshot-data", f"{name}={path}")]
    out = must("train_clip", "--pretrained", weights, "--eval-only", "--classnames", classnames, *args)
    return {name: float(re.search(rf"zeroshot_top1/{name} (\S+)", out)[1]) for name in sets}


def jsonl(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def make_runs():
    """A start and four models trained from it (one with a locked image tower), and three sets of images."""
    shapes = os.path.join(ROOT, "dev", "data", "make_shapes.py")
    must(sys.executable, shapes, "--out", "plain", "--count", 480)
    must(sys.executable, shapes, "--out", "chalk", "--count", 320, "--domain", "shifted")
    must(sys.executable, shapes, "--out", "other", "--count", 320, "--seed", 3)
    with open("tiny.json", "w") as f:
        json.dump(TINY, f)

    def train(name, *args):
        must("train_clip", *args, "--steps", 40, "--batch-size", 32, "--save-frequency", 0, "--logs", "logs", "--name", name)
        os.rename(glob.glob(f"logs/{name}/checkpoints/*_*.bin")[0], f"{name}.bin")
        return f"{name}.bin"
    start = train("start", "--model", "tiny.json", "--train-data", "plain/train.csv", "--lr", "3e-3")
    files = [start]
    for k, more in enumerate((("--lr", "3e-3"), ("--lr", "1e-2", "--seed", 1), ("--lr", "1e-3", "--seed", 2), ("--lr", "3e-3", "--lock-image"))):
        files.append(train(f"run{k}", "--pretrained", start, "--train-data", "chalk/train.csv", *more))
    return files, {"chalk": "chalk/train.csv", "plain": "plain/train.csv", "other": "other/train.csv"}


def test_sweep(files, sets, locked):
    classnames = "plain/classnames.txt"
    evals = [x for name, path in sets.items() for x in ("--eval", f"{name}={path}")]
    for name, tuned in (("sweep", files[1]), ("locked", locked)):
        out = must("wise_ft", "--zeroshot", files[0], "--finetuned", tuned, "--alpha", "0:1:0.25", *evals, "--classnames", classnames, "--save", name)
        expect(("the image tower is the same in all files" in out) == (name == "locked"), out)
        rows = jsonl(f"{name}/wise_ft.jsonl")
        expect(len(rows) == 15, f"{len(rows)} rows")
        for alpha in ("0", "0.25", "0.5", "0.75", "1"):
            want = accuracies(f"{name}/alpha_{alpha}.bin", sets, classnames)
            got = {r["set"]: r for r in rows if r["model"] == alpha}
            expect(all(float(f"{got[s]['top1']:.4g}") == want[s] for s in sets), f"{name} {alpha}: {got} {want}")
            expect(all(r["alpha"] == float(alpha) and r["samples"] > 200 and r["top5"] >= r["top1"] for r in got.values()), got)
        expect([r["role"] for r in rows[:3]] == ["target", "shift", "shift"], rows[:3])
        with open(f"{name}/wise_ft.csv") as f:
            table = list(csv.DictReader(f))
        expect(list(table[0]) == ["alpha", "chalk", "plain", "other", "shift", "mean"], table[0])
        for row in table:
            chalk, plain, other, shift, mean = (float(row[k]) for k in list(row)[1:])
            expect(abs(shift - (plain + other) / 2) < 1e-9 and abs(mean - (chalk + shift) / 2) < 1e-9, row)
        svg = data(f"{name}/wise_ft.svg").decode()
        expect("<svg" in svg and "nan" not in svg and "best for chalk: " in svg, "the plot")
    out = must("wise_ft", "--zeroshot", files[0], "--finetuned", files[1], "--alpha-image", 0.5, "--alpha", "0,1", *evals, "--classnames", classnames, "--eval-only")
    expect("alpha" in out and not os.path.exists("alpha_0.bin") and os.path.exists("wise_ft.csv"), "nothing but tables without --save")


def test_select(files, sets):
    evals = [x for name, path in sets.items() for x in ("--eval", f"{name}={path}")]
    args = ("--zeroshot", files[0], "--finetuned", files[1], *evals, "--classnames", "plain/classnames.txt")
    for what in ("target", "shift", "mean"):
        out = must("wise_ft", *args, "--select", what, "--select-steps", 3, "--alpha", "0.3,0.6", "--save", f"select_{what}")
        found = re.search(rf"chosen +alpha = (\S+) by {what}: ([\d.]+)%.*alpha = 0: ([\d.]+)%, alpha = 1: ([\d.]+)%\ngain +(.*)", out)
        expect(found, out)
        rows = list(csv.DictReader(open(f"select_{what}/wise_ft.csv")))
        column = {"target": "chalk"}.get(what, what)
        best = max(float(r[column]) for r in rows)
        alphas = [float(r["alpha"]) for r in rows]
        expect(len(rows) == 7 and alphas == sorted(alphas) and alphas[0] == 0 and alphas[-1] == 1, rows)
        expect(found and abs(float(found[2]) - 100 * best) < 0.01, f"{found and found[2]}% {best}")
        ends = found and max(float(found[3]), float(found[4]))
        expect(found and (found[5].startswith("none:") == (100 * best - ends < 0.005)), out)
        expect([f for f in os.listdir(f"select_{what}") if f.endswith(".bin")] == [f"alpha_{found and found[1]}.bin"], os.listdir(f"select_{what}"))


def test_greedy(files, sets):
    """The soup decided again: means by numpy, their accuracy by train_clip --eval-only."""
    members, classnames, target = files[1:], "plain/classnames.txt", {"chalk": sets["chalk"]}
    out = must("wise_ft", "--models", *members, "--soup", "greedy", "--eval", f"chalk={sets['chalk']}", "--classnames", classnames, "--save", "greedy")

    def mean(names):
        arrays = [read(n) for n in names]
        return {n: (sum((x[n].astype(np.float64) for x in arrays[1:]), arrays[0][n].astype(np.float64)) / len(arrays)).astype(np.float32) for n in arrays[0]}
    alone = {m: accuracies(m, target, classnames)["chalk"] for m in members}
    order = sorted(members, key=lambda m: -alone[m])  # stable
    soup, best, decisions = [], -1, []
    for m in order:
        write_like("try.bin", files[0], mean(soup + [m]))
        value = accuracies("try.bin", target, classnames)["chalk"]
        decisions.append(value >= best)
        if value >= best:
            soup, best = soup + [m], value
    logged = re.findall(r"greedy +(\d+)\. (\S+) (begins|stays|is left out): ([\d.]+)%", out)
    expect([x[1] for x in logged] == [os.path.basename(m) for m in order], f"order: {logged} {order}")
    expect([x[2] != "is left out" for x in logged] == decisions, f"decisions: {logged} {decisions}")
    expect(len(set(decisions)) == 2, f"a soup where all are alike shows little: {decisions}")
    equal("greedy/soup_greedy.bin", mean(soup), "greedy soup")


# ---------------------------------------------------------------- bad input

def test_bad_input(files, sets):
    a, b = files[:2]
    pair = ("--zeroshot", a, "--finetuned", b)
    some = ("--eval", f"chalk={sets['chalk']}", "--classnames", "plain/classnames.txt")
    with open("short.bin", "wb") as f:
        f.write(data(b)[:-1000])
    nan = read(b)
    nan["text_projection"][3, 2] = np.nan
    write_like("nan.bin", b, nan)
    converter(b, "-o", "quick.bin", "--force-quick-gelu")
    wider = json.loads(json.dumps(TINY))
    wider["vision_cfg"]["layers"] = 4
    with open("wider.json", "w") as f:
        json.dump(wider, f)
    converter("--model", "wider.json", "--random", 1, "-o", "wider.bin")
    blob = bytearray(unsealed(data(b)))
    at = blob.index(b"\nt h\n")
    blob[at:at + 5] = b"\nt j\n"
    with open("words.bin", "wb") as f:
        f.write(sealed(blob))
    os.symlink(b, "link.bin")
    os.makedirs("over", exist_ok=True)
    with open("over/alpha_0.5.bin", "wb") as f:
        f.write(data(b))
    cases = [
        ((), 2, "give --zeroshot A.bin --finetuned B.bin"),
        (("--zeroshot", a, "--finetuned", "nowhere.bin", "--save", "bad"), 2, "nowhere.bin: cannot open"),
        (("--zeroshot", a, "--finetuned", "short.bin", "--save", "bad"), 2, "short.bin: file is 1000 bytes short of"),
        (("--zeroshot", a, "--finetuned", "tiny.json", "--save", "bad"), 2, "tiny.json: "),
        (("--zeroshot", a, "--finetuned", "nan.bin", "--save", "bad"), 2, "nan.bin: text_projection holds a number that is not finite"),
        (("--zeroshot", a, "--finetuned", "quick.bin", "--save", "bad"), 2, "do not match: quick_gelu is 0 and 1"),
        (("--zeroshot", a, "--finetuned", "wider.bin", "--save", "bad"), 2, "do not match: image_layers is 3 and 4"),
        (("--zeroshot", a, "--finetuned", "words.bin", "--save", "bad"), 2, "their tokenizers differ"),
        (("--zeroshot", b, "--finetuned", b, "--save", "bad"), 2, "the same file"),
        (("--zeroshot", b, "--finetuned", "link.bin", "--save", "bad"), 2, "the same file"),
        (("--models", a, b, a, "--soup", "uniform", "--save", "bad"), 2, "the same file"),
        ((*pair, "--alpha", "1.5", "--save", "bad"), 2, "--alpha 1.5: is out of range; give 0 to 1"),
        ((*pair, "--alpha", "-0.1", "--save", "bad"), 2, "--alpha -0.1: is out of range; give 0 to 1"),
        ((*pair, "--alpha", "0,half", "--save", "bad"), 2, "--alpha half: is not a number"),
        ((*pair, "--alpha", "1:0:0.1", "--save", "bad"), 2, "does not rise"),
        ((*pair, "--alpha", "0:1:0", "--save", "bad"), 2, "does not rise"),
        ((*pair, "--alpha", "...,1", "--save", "bad"), 2, "does not rise"),
        ((*pair, "--alpha-text", "2", "--save", "bad"), 2, "out of range"),
        (pair, 2, "nothing to do; give --save DIR"),
        ((*pair, "--select", "mean", "--save", "bad"), 2, "--select: nothing to choose by"),
        ((*pair, *some, "--select", "shift"), 2, "--select shift: only one set"),
        ((*pair, "--eval-only"), 2, "--eval-only: nothing to evaluate on"),
        ((*pair, *some, "--target", "sketch"), 2, "--target sketch: no set"),
        ((*pair, *some, "--eval", "chalk=plain/train.csv"), 2, "another set is called chalk"),
        ((*pair, "--eval", "chalk=nowhere", "--classnames", "plain/classnames.txt"), 2, "nowhere"),
        ((*pair, "--eval", "chalk=plain/train.csv"), 2, "--eval plain/train.csv: its classes have no names"),
        ((*pair, "--eval", "=plain/train.csv"), 2, "--eval =plain/train.csv: the name before the ="),
        (("--models", a, b, "--soup", "greedy", "--save", "bad"), 2, "--soup greedy: nothing to choose by"),
        (("--models", a, "--soup", "uniform", "--save", "bad"), 2, "--models: too few"),
        (("--models", a, b, "--method", "model-stock", "--save", "bad"), 2, "--method model-stock: give the model before fine-tuning with --zeroshot"),
        (("--zeroshot", a, "--models", b, "--method", "task-arithmetic", "--lambda", "1,2", "--save", "bad"), 2, "2 numbers for 1 models"),
        (("--models", a, b, "--soup", "uniform", "--alpha", "0.5", "--save", "bad"), 2, "--alpha: is for"),
        ((*pair, "--train-data", "plain/train.csv", "--save", "bad"), 2, "--train-data: unknown option"),
        (("--zeroshot", a, "--finetuned", "over/alpha_0.5.bin", "--save", "over"), 2, "is one of the models that are averaged"),
    ]
    for args, want, says in cases:
        code, out, err = run("wise_ft", *args)
        expect(code == want and says in err and err.count("\n") == 1, f"{args}: {code} {err!r}")
    expect(not [f for f in os.listdir("bad") if not f.endswith(".part")] if os.path.exists("bad") else True, "nothing was written")
    expect(data("over/alpha_0.5.bin") == data(b), "an input is not overwritten")
    write_like("same.bin", b, read(b))
    code, _, err = run("wise_ft", "--zeroshot", b, "--finetuned", "same.bin", *some)
    expect(code == 2 and "hold the same weights" in err, err)


# ---------------------------------------------------------------- size

def test_large():
    for seed in (1, 2):
        converter("--model", "ViT-B-32", "--random", seed, "-o", f"large{seed}.bin")
    size = os.path.getsize("large1.bin")
    must("wise_ft", "--zeroshot", "large1.bin", "--finetuned", "large2.bin", "--save", "large")
    equal("large/alpha_0.5.bin", (lambda a, b: {n: wise(a[n], b[n], 0.5) for n in a})(read("large1.bin"), read("large2.bin")), "ViT-B/32")
    child = subprocess.run(["/usr/bin/env", sys.executable, "-c", "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
                            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)", BIN + "wise_ft", "--zeroshot", "large1.bin", "--finetuned", "large2.bin", "--save", "large"],
                           capture_output=True, text=True)
    peak = 1024 * int(child.stdout)
    expect(peak < 0.2 * size, f"peak memory {peak / 1e6:.0f} MB for files of {size / 1e6:.0f} MB")
    print(f"peak memory {peak / 1e6:.0f} MB")


def main():
    files, sets = make_runs()
    checks.run(test_weights, files[:4])
    checks.run(test_stock_on_constructed_vectors, files)
    checks.run(test_bf16, files)
    checks.run(test_sizes, files)
    checks.run(test_formats, files)
    checks.run(test_sweep, files, sets, files[4])
    checks.run(test_select, files, sets)
    checks.run(test_greedy, files, sets)
    checks.run(test_bad_input, files, sets)
    if "--large" in sys.argv:
        checks.run(test_large)
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
