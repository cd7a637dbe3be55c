#!/usr/bin/env python3
"""Retrieval with several captions an image: build/test_retrieval against the definition in numpy, and the program's numbers against its own features."""
import csv
import json
import os
import struct
import subprocess
import sys
import tempfile

import numpy as np

import checks
import train_runs
from checks import check
from train_runs import ROOT, checkpoint, read, works, write

NAMES = ["mean_rank", "median_rank", "R@1", "R@5", "R@10"]


def metrics(scores, query_group, candidate_group):
    """Scores (queries, candidates): the rank of the first candidate of the query's group, sorted by score and in a tie by index."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = (candidate_group[order] == query_group[:, None]).argmax(1)
    return [ranks.mean() + 1, np.floor(np.median(ranks)) + 1, *((ranks < k).mean() for k in (1, 5, 10))]


def retrieval(image, text, image_group, text_group):
    """-> ten metrics and the mean of the six recalls; in float64, each score by itself, so that equal features tie"""
    scores = np.array([[(x * y).sum() for y in text] for x in image.astype(np.float64)])
    both = metrics(scores, image_group, text_group) + metrics(scores.T, text_group, image_group)
    return both + [np.mean(both[2:5] + both[7:10])]


def expect_equal(got, expected, what):
    check(len(got) == len(expected) and np.allclose(got, expected, rtol=0, atol=1e-12), f"{what}: {got} instead of {expected}")


def test_random_groupings_are_equal_to_the_definition():
    random = np.random.default_rng(3)
    cases = []
    with open("cases", "wb") as f:
        for i in range(200):
            groups = random.integers(1, 25)
            M, N, E = groups + (random.integers(0, 20) if i % 3 == 0 else 0), groups + random.integers(0, 90), random.integers(2, 9)
            image_group = np.concatenate([np.arange(groups), random.integers(0, groups, M - groups)]).astype(np.int32)
            text_group = random.permutation(np.concatenate([np.arange(groups), random.integers(0, groups, N - groups)])).astype(np.int32)
            image, text = (random.integers(-1, 2, (n, E)).astype(np.float32) for n in (M, N))
            cases.append(retrieval(image, text, image_group, text_group))
            f.write(struct.pack("<4i", M, N, E, random.integers(0, 120)) + image_group.tobytes() + text_group.tobytes() + image.tobytes() + text.tobytes())
    program = os.path.join(ROOT, os.environ.get("BUILD", "build"), "test_retrieval")
    lines = subprocess.run([program, "cases"], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    check(len(lines) == 200, f"{len(lines)} lines")
    for i, (line, expected) in enumerate(zip(lines, cases)):
        expect_equal([float(x) for x in line.split()], expected, f"grouping {i}")


def tensors(path):
    """A .safetensors file -> {name: array}"""
    data = read(path)
    end = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:end])
    kinds = {"F32": np.float32, "I64": np.int64}
    return {name: np.frombuffer(data[end + t["data_offsets"][0]:end + t["data_offsets"][1]], kinds[t["dtype"]]).reshape(t["shape"])
            for name, t in header.items() if name != "__metadata__"}


def measured(out):
    """What the program printed, with four digits -> the eleven numbers of retrieval, the loss"""
    words = next(line for line in out.splitlines() if line.startswith("validation ")).split()
    numbers = {name: float(value) for name, value in zip(words[1::2], words[2::2])}
    return [numbers[f"{way}_{metric}"] for way in ("image_to_text", "text_to_image") for metric in NAMES] + [numbers["mean_recall"]], numbers["val_loss"]


def expected(name, rows, key):
    """The definition over the features that the run saved; rows of one key are one image."""
    t = tensors(f"{name}.safetensors")
    keys = [key(rows[i]) for i in t["indices"]]
    first = {k: i for i, k in reversed(list(enumerate(keys)))}
    order = sorted(first.values())
    number = {keys[i]: n for n, i in enumerate(order)}
    group = np.array([number[k] for k in keys])
    return retrieval(t["image_features"][order], t["text_features"].astype(np.float64), np.arange(len(order)), group)


def test_program_counts_every_caption_of_an_image():
    works(*train_runs.IMAGES, "--steps", 1, "--name", "model")
    with open("shapes/val.csv", newline="") as f:
        rows = [{"filepath": r["filepath"], "title": f"{r['title']}, said in way {j}", "id": str(i)} for i, r in enumerate(csv.DictReader(f)) for j in range(5)][:60]
    random = np.random.default_rng(1)
    rows = [rows[i] for i in random.permutation(len(rows))]
    for r in rows[::7]:
        r["title"] = rows[0]["title"]  # equal captions tie
    pairs = write("shapes/five.csv", "filepath,title,id\n" + "".join(f"{r['filepath']},\"{r['title']}\",{r['id']}\n" for r in rows))
    evaluate = ["--pretrained", checkpoint("model", "step_1.bin"), "--eval-only", "--val-data", pairs]
    numbers = {}
    for name, more in (("path", []), ("chunks", ["--val-retrieval-chunk-size", 7]), ("column", ["--positives-key", "id"]), ("rows", ["--val-num-samples", 31])):
        numbers[name], loss = measured(works(*evaluate, "--name", name, "--save-features", f"{name}.safetensors", *more))
        expect_equal(numbers[name], [float(f"{x:.4g}") for x in expected(name, rows, lambda r: r["filepath"])], name)
        numbers[name].append(loss)
    check(numbers["path"] == numbers["chunks"] == numbers["column"], f"groups by path and by column, whole and in chunks: {numbers}")
    check(numbers["path"][2] > 0, f"{numbers['path']}")


def test_training_on_captions_of_one_image_is_said():
    """The loss takes the other captions of a pair's image for wrong ones, as it does with equal captions."""
    with open("shapes/train.csv", newline="") as f:
        images = [r["filepath"] for r in csv.DictReader(f)][:8]
    pairs = write("shapes/eight.csv", "filepath,title\n" + "".join(f"{path},said {i} in way {j}\n" for i, path in enumerate(images) for j in range(5)))
    train = ["--model", "words.json", "--train-data", pairs, "--batch-size", 20, "--epochs", 1]
    note = "a step a pair meets 1.9 others with the same image"
    for name, more, says in (("all", [], True), ("image", ["--positives-key", "image", "--positives", "mask"], False), ("one", ["--train-num-samples", 2], False)):
        check((note in works(*train, *more, "--name", name, **({"says": "the batch shrinks"} if name == "one" else {}))) == says, f"{name}: a note, or none")


if __name__ == "__main__":
    sys.exit(train_runs.main(globals()))
