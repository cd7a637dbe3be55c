#!/usr/bin/env python3
"""Bad input to the real program: data, evaluation sets and weight files that are empty, cut off, altered or of another kind."""
import glob
import io
import os
import random
import struct
import sys
import tarfile

import numpy as np

from seals import sealed, unsealed
from train_runs import (IMAGES, LABELLED, SYNTHETIC, check, checkpoint, lines_in, main, read, refused, run,
                        works, write)


def add_member(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def shards(path, samples):
    with tarfile.open(path, "w") as tar:
        for i, image in enumerate(samples):
            add_member(tar, f"{i:04d}.png", image)
            add_member(tar, f"{i:04d}.txt", b"a photo of something")
            add_member(tar, f"{i:04d}.cls", b"%d" % (i % 3))


TRAIN = ["--model", "words.json", "--batch-size", 4, "--steps", 2, "--train-data"]


def images():
    return [read(path) for path in sorted(glob.glob("shapes/images/*.png"))[:12]]


def runs_or_is_refused(what, *arguments):
    """Altered data may still hold pairs enough; either way each line on stderr comes from the program."""
    code, _, err = run(*TRAIN, *arguments)
    check(code in (0, 2) and all(line.startswith("train_clip: ") for line in err.splitlines()), f"{what}: exit {code}, {err[-300:]!r}")


def test_bad_tables_are_refused():
    lines = read("shapes/train.csv").decode().splitlines()
    write("empty.csv", "")
    refused("empty.csv: is empty", *TRAIN, "empty.csv")
    write("header.csv", lines[0] + "\n")
    refused("header.csv: the data set is empty", *TRAIN, "header.csv")
    write("columns.csv", "image,words\n" + "\n".join(lines[1:]) + "\n")
    refused("no column 'filepath' (there are: image, words)", *TRAIN, "columns.csv")
    write("one.csv", lines[0] + "\nshapes/" + lines[1] + "\n")
    refused("one.csv: 1 samples, at least 2", *TRAIN, "one.csv")
    write("binary.csv", os.urandom(999) + b"\0")
    refused("binary.csv", *TRAIN, "binary.csv", "--dataset-type", "csv")
    write("paths.csv", lines[0] + "\n" + "nowhere.png,a,b\n" * 5)
    refused("can be used", *TRAIN, "paths.csv", "--name", "paths", writes=True)


def test_two_good_pairs_among_broken_ones_are_enough():
    good = images()
    os.makedirs("broken", exist_ok=True)
    for i in range(6):
        write(f"broken/{i}.png", good[i][:len(good[i]) // 2] if i % 2 else b"not an image")
        write(f"broken/{i}.txt", "a caption")
    refused("can be used", *TRAIN, "broken", "--name", "broken", writes=True)
    os.makedirs("nothing_here", exist_ok=True)
    refused("the data set is empty", *TRAIN, "nothing_here")
    write("broken/1.png", good[1])
    refused("fewer than two", *TRAIN, "broken", "--name", "broken1", writes=True)
    write("broken/3.png", good[3])
    code, out, err = run(*TRAIN[:2], "--batch-size", 2, "--epochs", 2, "--train-data", "broken", "--name", "broken2")
    check(code == 0 and "6 samples found, 2 used, 4 passed over" in out, f"two good pairs among broken ones: exit {code}, {err[-300:]!r}")
    check(lines_in("logs/broken2/skipped.txt") == 4, "skipped.txt does not name four samples")


def test_broken_tars_are_refused_or_read_as_far_as_they_are_whole():
    shards("good.tar", images())
    works(*TRAIN, "good.tar", "--name", "tar")
    data = read("good.tar")
    for share in (0.01, 0.3, 0.5, 0.77):
        write("cut.tar", data[:int(len(data) * share)])
        runs_or_is_refused(f"tar cut to {share}", "cut.tar", "--name", f"cut{share}")
    write("empty.tar", "")
    write("no.tar", os.urandom(5000))
    for name in ("empty.tar", "no.tar"):  # one line says what is wrong with the shard, the last one that nothing is left
        code, _, err = run(*TRAIN, name)
        check(code == 2 and err.count("\n") <= 2 and err.splitlines()[-1].startswith(f"train_clip: {name}: the data set is empty"), f"{name}: exit {code}, {err!r}")


def test_altered_bytes_do_not_crash():
    shards("good.tar", images())
    draw = random.Random(3)
    for path, altered, first, low, count in (("good.tar", "altered.tar", 0, 0, 30), ("shapes/train.csv", "shapes/altered.csv", 60, 1, 40)):
        for i in range(6):
            data = bytearray(read(path))
            for _ in range(count):
                data[draw.randrange(first, len(data))] = draw.randrange(low, 256)
            write(altered, data)
            runs_or_is_refused(f"{altered} {i}", altered, "--name", f"{os.path.basename(altered)}{i}")
    os.unlink("shapes/altered.csv")


def test_bad_evaluation_sets_are_refused():
    works(*IMAGES, "--steps", 1, "--name", "model")
    model = ["--pretrained", checkpoint("model", "step_1.bin"), "--eval-only"]
    rows = [line.split(",") for line in read("shapes/val.csv").decode().splitlines()]

    def labels(path, make):
        return write("shapes/" + path, "filepath,label\n" + "".join(f"{r[0]},{make(i)}\n" for i, r in enumerate(rows[1:])))

    def classes(n):
        return write(f"classes{n}.txt", "".join(f"class {i}\n" for i in range(n)))

    refused("nothing to evaluate on", *model)
    refused("give --classnames", *model, "--zeroshot-data", "shapes/val.csv")
    refused("missing.txt", *model, "--zeroshot-data", "shapes/val.csv", "--classnames", "missing.txt")
    refused("another set has the same name; write NAME=PATH", *model, *LABELLED, "--zeroshot-data", "shapes/train.csv")
    write("blank.txt", "\n\n")
    refused("blank.txt: no class names", *model, "--zeroshot-data", "shapes/val.csv", "--classnames", "blank.txt")
    write("no_slot.txt", "a photo\n")
    refused("no {} in", *model, *LABELLED, "--templates", "no_slot.txt")
    refused("have no label", *model, "--zeroshot-data", labels("wrong.csv", lambda i: 99), "--classnames", classes(3))
    refused("have no label", *model, "--zeroshot-data", labels("negative.csv", lambda i: -1), "--classnames", classes(3))
    refused("have no label", *model, "--zeroshot-data", labels("one_wrong.csv", lambda i: 3 if i == 2 else 0), "--classnames", classes(3))
    out = works(*model, "--zeroshot-data", labels("one.csv", lambda i: 0), "--classnames", classes(1))
    check("zeroshot_top1 1\n" in out, f"one class: {out[-200:]!r}")
    out = works(*model, "--zeroshot-data", labels("three.csv", lambda i: i % 3), "--classnames", classes(3))
    check("zeroshot_top1" in out and "top5" not in out, f"three classes: {out[-200:]!r}")
    out = works(*model, "--zeroshot-data", "NAME=" + labels("five.csv", lambda i: i % 5), "--classnames", classes(5))
    check("zeroshot_top5/NAME 1" in out, f"five classes: {out[-200:]!r}")
    refused("val.csv", *model, "--val-data", "missing/val.csv")
    refused("which classes? give --classnames", "--pretrained", model[1], "--classify", "shapes/images/000000.png")
    out = works("--pretrained", model[1], "--classify", "shapes/images/000000.png", "--classnames", classes(1))
    check("class 0" in out, f"--classify: {out!r}")
    code, out, err = run("--pretrained", model[1], "--classify", "shapes/images/000000.png", "nothing.png", "shapes/val.csv", "--classnames", classes(3))
    check(code == 0 and "nothing.png" in err and "val.csv" in err and out.count("class") >= 3, f"--classify of one image and two files that are none: exit {code}, {err!r}")


def test_labels_are_matched_by_name_or_not_at_all():
    """Class folders whose names fit the class names in part, are numbers, or WordNet ids. (dev/test/test_labels.c tries more.)"""
    works(*IMAGES, "--steps", 1, "--name", "labels")
    with open("shapes/val.csv", newline="") as f:
        image = os.path.abspath(os.path.join("shapes", f.read().splitlines()[1].split(",")[0]))

    def folders(root, *names):
        for name in names:
            os.makedirs(f"{root}/{name}")
            os.symlink(image, f"{root}/{name}/0{os.path.splitext(image)[1]}")
        return root

    def names(*lines):
        return write("names.txt", "\n".join(lines) + "\n")

    use = ["--pretrained", checkpoint("labels", "step_1.bin"), "--eval-only", "--zeroshot-data"]
    words, numbers = folders("words", "polar_bear", "red"), folders("numbers", "0", "1", "10")
    works(*use, words, "--classnames", names("red", "polar_bear"))
    works(*use, words, "--classnames", names("red", "polar bear"), says="'polar_bear' is 'polar bear'")
    works(*use, words, "--classnames", names("cat", "dog"), says="'polar_bear' is 'cat'")
    refused("'polar_bear' is not one of the 2 class names", *use, words, "--classnames", names("red", "brown bear"))
    works(*use, numbers, "--classnames", names(*(f"class {i}" for i in range(11))), says="by number: '0' is 'class 0'")
    refused("are numbers, such as '0', not names", *use, numbers)
    works(*use, folders("imagenet", "n01440764", "n01443537"), says="'n01440764' is 'tench'")
    refused("'n01440765' is not an id of ImageNet-1k", *use, folders("other", "n01440764", "n01440765"))


def test_bad_weight_files_are_refused():
    """A weight file cut off, altered, or of another kind: one line, nothing written. (dev/test/test_weights.c tries every field.)"""
    works(*SYNTHETIC, "--steps", 1, "--name", "weights")
    works(*IMAGES, "--steps", 1, "--name", "words")
    whole = read(checkpoint("weights", "step_1.bin"))
    data = unsealed(whole)
    use = ["--pretrained", "w.bin", "--train-data", "synthetic", "--train-num-samples", 4, "--steps", 1, "--batch-size", 2]
    for length in (0, 100, 1023, 1024, 2000, len(whole) - 1, len(whole) - 64):
        write("w.bin", whole[:length])
        refused("w.bin: ", *use)
    write("w.bin", whole + b"\0")
    refused("1 bytes longer than", *use)
    refused("shapes: is not a packed .bin; make one with: python3 dev/convert.py shapes -o ", "--pretrained", "shapes", *use[2:])
    write("w.bin", b"PK\x03\x04" + os.urandom(4000))
    refused("dev/convert.py", *use)
    for value in (float("nan"), float("inf")):
        altered = bytearray(data)
        altered[-64:-60] = struct.pack("<f", value)
        write("w.bin", sealed(altered))
        refused("not finite", *use)
    # finite but absurd numbers do not crash it
    altered = np.frombuffer(data, np.float32).copy()
    altered[256:] = np.where(np.arange(len(altered) - 256) % 7 == 0, 3e38, altered[256:])
    write("w.bin", sealed(altered.tobytes()))
    code, _, err = run(*use, "--name", "absurd")
    check(code in (0, 1) and err.count("\n") <= 1, f"weights of 3e38: exit {code}, {err[-300:]!r}")
    # a tokenizer of another vocabulary, and text that is not a list of merges
    words = unsealed(read(checkpoint("words", "step_1.bin")))
    header = np.frombuffer(words[:1024], np.int32).copy()
    merges = int(header[4])
    padded = (merges + 63) // 64 * 64
    for text in (words[1024:1024 + merges], b"a b\n" * 9, bytes(range(256)) * 4, b"\n" * 5000):
        small = np.frombuffer(data[:1024], np.int32).copy()
        small[4] = len(text)
        write("w.bin", sealed(small.tobytes() + text + b"\0" * (-len(text) % 64) + data[1024:]))
        refused("dev/convert.py", *use)
    fewer = words[1024:1024 + merges - 200].rsplit(b"\n", 1)[0] + b"\n"
    header[4] = len(fewer)
    write("w.bin", sealed(header.tobytes() + fewer + b"\0" * (-len(fewer) % 64) + words[1024 + padded:]))
    refused("dev/convert.py", *use)
    eot = np.frombuffer(words[:1024], np.int32).copy()
    eot[16 + 14] = 5
    write("w.bin", sealed(eot.tobytes() + words[1024:]))
    refused("dev/convert.py", *use)
    # a name with control characters and slashes
    named = bytearray(data)
    named[192 * 4:1024] = (b"..\n/\x1b[2J\xff" * 40)[:256]
    write("w.bin", sealed(named))
    code, out, err = run(*use, "--logs", "named")
    check(code == 0 and len(os.listdir("named")) == 1 and "\n" not in os.listdir("named")[0] and "\x1b" not in out, f"a hostile name: exit {code}, {err[-300:]!r}")


if __name__ == "__main__":
    sys.exit(main(globals()))
