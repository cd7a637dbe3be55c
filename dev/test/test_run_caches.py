#!/usr/bin/env python3
"""Runs that keep decoded images and features of locked towers in files (--cache-images, --feature-cache): each is the run without these files, to the bit, whatever changed
since the files were made; or it is refused. The C tests test_image_cache*.c and test_feature_cache.c change what a run cannot."""
import os
import re
import shutil
import signal
import sys

import train_runs
from checks import check
from train_runs import IMAGES, checkpoint, expect_same, finish, folder, newest, read, refused, run, start, wait_for, works, write

LOCKED = {"--pretrained": "base.bin", "--train-data": "pairs.csv", "--batch-size": 8, "--epochs": 2, "--aug-cfg": "none", "--precision": "fp32", "--lr": "1e-2"}
LOCKS = ["--lock-image", "--lock-image-unlocked-groups", 1, "--lock-text", "--lock-text-unlocked-layers", 1]
CACHES = ["--cache-images", "images.cache", "--feature-cache", "features.cache"]
FILES = ("images.cache", "features.cache", "features.cache.text")


def line(name, caches=(), more=()):
    """A run of both towers locked but for their projections. more: options that replace or follow those of LOCKED."""
    more = list(more)
    own = [word for option, value in LOCKED.items() if option not in more for word in (option, value)]
    return [*own, *LOCKS, *more, *caches, "--name", name]


def make_base():
    """base.bin, and pairs.csv with the images of shapes/, which the tests may change, in pairs/."""
    if not os.path.exists("base.bin"):
        works(*IMAGES, "--precision", "fp32", "--steps", 1, "--name", "base")
        shutil.copy(checkpoint("base", newest("base") + ".bin"), "base.bin")
        works(*IMAGES, "--precision", "fp32", "--steps", 1, "--seed", 9, "--name", "other")
        shutil.copy(checkpoint("other", newest("other") + ".bin"), "other.bin")
    shutil.rmtree("pairs", ignore_errors=True)
    shutil.copytree("shapes", "pairs")
    lines = read("shapes/train.csv").decode().splitlines()
    table([re.sub(r"^", "pairs/", line) for line in lines[1:25]])
    for name in FILES:
        if os.path.exists(name):
            os.remove(name)


def table(rows):
    write("pairs.csv", "\n".join(["filepath,title,label", *rows]) + "\n")


def rows():
    return read("pairs.csv").decode().splitlines()[1:]


def image_path(i):
    return rows()[i].split(",")[0]


def cached(name):
    """-> how many images and captions the run found in its files"""
    return [int(n) for n in re.findall(r"encoded once; (\d+) are cached already", read(f"logs/{name}/out.log").decode())]


# ---------------------------------------------------------------- what changes between two runs

def reorder():
    table(reversed(rows()))


def exchange_images():
    changed = rows()
    first, second = (row.split(",", 1) for row in changed[:2])
    changed[:2] = [f"{second[0]},{first[1]}", f"{first[0]},{second[1]}"]
    table(changed)


def replace_image():
    """By another one of the same size in bytes, whose time is set back."""
    path, times, old, other = image_path(0), os.stat(image_path(0)), read(image_path(0)), read(image_path(5))
    write(path, other + bytes(max(0, len(old) - len(other))))  # what follows the end of an image does not count
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    check(old[:len(other)] != other, "the images are equal")


def edit_captions():
    table(row + " and more" for row in rows())


def add_and_drop():
    lines = read("shapes/train.csv").decode().splitlines()
    table(rows()[4:] + ["pairs/" + line for line in lines[25:29]])


def remove_image():
    os.remove(image_path(2))


# what, how, options, and how many images and captions are found of the 24 (None: not stated)
CHANGES = [("order", reorder, [], 24), ("rows exchange their images", exchange_images, [], 24), ("an image", replace_image, [], 24),
           ("captions", edit_captions, [], 24), ("rows", add_and_drop, [], 24), ("a missing image", remove_image, [], 24),
           ("split", None, ["--val-split", 0.3, "--seed", 4], 24), ("seed and batch", None, ["--seed", 5, "--batch-size", 6], 24)]
# what, options, environment, what is said
REFUSED = [("weights", ["--pretrained", "other.bin"], None, "features.cache: holds features made with other weights"),
           ("mean", ["--image-mean", "0.4", "0.5", "0.5"], None, "features.cache: holds features made with other weights"),
           ("instruction set", [], "avx2", "features.cache: holds features made with other kernels"),
           ("precision", ["--precision", "amp_bf16"], None, "features.cache: holds features made with another --precision"),
           ("--exif-rotate", ["--exif-rotate"], None, "images.cache: holds images made with another --exif-rotate"),
           ("--max-image-pixels", ["--max-image-pixels", 1000000], None, "images.cache: holds images made with another --max-image-pixels"),
           ("--image-interpolation", ["--image-interpolation", "bilinear"], None, "images.cache: holds images made with another interpolation"),
           ("--image-resize-mode", ["--image-resize-mode", "squash"], None, "images.cache: holds images made with another resize mode"),
           ("--aug-cfg", ["--aug-cfg", "scale=0.5,1"], None, "images.cache: holds images made with another image size or --aug-cfg")]


def test_each_change_gives_the_run_without_caches():
    for what, change, options, found in CHANGES:
        make_base()
        works(*line("before", CACHES))
        if change:
            change()
        for name, caches in (("without", []), ("with", CACHES)):
            code, _, err = run(*line(name, caches, options))
            check(code == 0 and (not err or what == "a missing image"), f"{what}: exit {code}, {err!r}")
        expect_same("without", "with", what)
        check(found in cached("with"), f"{what}: {cached('with')} were found")
        shutil.rmtree("logs")


def test_other_settings_are_refused_and_leave_no_folder():
    make_base()
    works(*line("before", CACHES))
    for what, options, isa, says in REFUSED:
        if isa and "avx512" not in read("logs/before/out.log").decode():
            continue
        before = [read(name) for name in FILES]
        code, _, err = run(*line("refused", CACHES, options), isa=isa)
        slow = [line for line in err.splitlines() if "no instructions for it" not in line]
        check(code == 2 and len(slow) == 1 and says in slow[0] and "; remove it, or give" in slow[0], f"{what}: exit {code}, {err!r}")
        check(not os.path.exists(folder("refused")) and before == [read(name) for name in FILES], f"{what}: something was written")


def test_files_of_other_versions_and_damaged_ones_are_refused():
    make_base()
    works(*line("before", CACHES))
    for name, magic in (("images.cache", b"CLIM"), ("features.cache", b"CLFT"), ("features.cache.text", b"CLFT")):
        good = read(name)
        for data, says in ((magic + b"\1" + bytes(99), "was written by another version of the program; remove it"), (good[:9], "is damaged; remove it"),
                           (good[:20] + bytes([good[20] ^ 1]) + good[21:], "is damaged; remove it"), (b"else" + good[4:], "another name")):
            write(name, data)
            check(f"train_clip: {name}: " in refused(says, *line("refused", CACHES)), f"{name}: should be named")
        write(name, good)


# ---------------------------------------------------------------- under the run

def test_files_emptied_under_a_run_do_not_end_it():
    long = ["--epochs", 40]
    make_base()
    works(*line("without", more=long))
    process = start(*line("with", CACHES, long))
    check(wait_for(process, lambda: train_runs.lines_in("logs/with/metrics.jsonl") > 4), "the run was over too soon")
    for name in FILES:
        os.truncate(name, 0)
    code, _, err = finish(process)
    check(code == 0 and err.count("\n") == 1 and "images.cache: is damaged, or was changed while this run uses it" in err, f"exit {code}, {err!r}")
    expect_same("without", "with", "files emptied under the run")
    works(*line("after", CACHES, long))
    expect_same("without", "after", "after files were emptied")


def test_killed_and_interrupted_runs_keep_what_they_computed():
    make_base()
    works(*line("without"))
    for stop in (signal.SIGINT, signal.SIGKILL):
        for name in FILES:
            if os.path.exists(name):
                os.remove(name)
        process = start(*line(f"stopped{stop}", CACHES, ["--epochs", 5000]))
        wait_for(process, lambda: train_runs.lines_in(f"logs/stopped{stop}/metrics.jsonl") > 8)
        process.send_signal(stop)
        finish(process)
        works(*line(f"after{stop}", CACHES))
        expect_same("without", f"after{stop}", f"after signal {stop}")
        check(cached(f"after{stop}")[0] == 24, f"after signal {stop}: {cached(f'after{stop}')}")


def test_runs_at_the_same_time_share_the_files():
    make_base()
    works(*line("without"))
    both = [start(*line(f"at-once-{i}", CACHES)) for i in range(3)]
    for i, process in enumerate(both):
        code, _, err = finish(process)
        told = [line for line in err.splitlines() if "another run writes to it; waiting" not in line]
        check(code == 0 and not told, f"run {i}: exit {code}, {err!r}")
        expect_same("without", f"at-once-{i}", f"run {i} of three at the same time")
    works(*line("after", CACHES))
    expect_same("without", "after", "after three runs")


if __name__ == "__main__":
    sys.exit(train_runs.main(globals()))
