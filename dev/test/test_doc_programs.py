#!/usr/bin/env python3
"""The programs that belong to pages of doc/: they compile without a warning (gcc and clang, where installed), as plain `cc FILE.c -lm`
too, run in about a second, and print exactly what the page quotes in its ```text blocks, all of it, in the same order. And the functions
that these pages and MODEL.md name exist.

  dev/test/test_doc_programs.py
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAGES = ["clip_loss", "backward"]
COMPILERS = [["cc"], ["gcc", "-std=c11", "-Wall", "-Wextra", "-O0"], ["gcc", "-std=c11", "-Wall", "-Wextra", "-O3"],
             ["clang", "-std=c11", "-Wall", "-Wextra", "-O2"]]
LIMIT = 5  # seconds; on an idle machine each takes a tenth of one
passed = failed = 0


def check(condition, what):
    global passed, failed
    passed, failed = passed + bool(condition), failed + (not condition)
    if not condition:
        print("FAILED", what, flush=True)
    return condition


def lines_of(text):
    """-> the lines that are not blank, without blanks at their ends"""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def quoted(page):
    """-> the lines of all ```text blocks of a page"""
    with open(page, encoding="utf-8") as file:
        return lines_of("\n".join(re.findall(r"^```text\n(.*?)^```$", file.read(), re.DOTALL | re.MULTILINE)))


def test_page(name, folder):
    source, page = f"doc/{name}.c", f"doc/{name}.md"
    numbers = quoted(os.path.join(ROOT, page))
    check(len(numbers) > 10 and any(re.search(r"\d\.\d", line) for line in numbers), f"{page} quotes numbers")
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        check(f"cc {source} -lm -o {name} && ./{name}" in file.read(), f"{page} says how to run {source}")
    for compiler in COMPILERS:
        if compiler[0] != "cc" and not shutil.which(compiler[0]):
            continue
        program, words = os.path.join(folder, name), " ".join(compiler)
        build = subprocess.run([*compiler, source, "-lm", "-o", program], cwd=ROOT, capture_output=True, text=True)
        if not check(build.returncode == 0 and not build.stderr, f"{words} {source} -lm, without a warning: {build.stderr}"):
            continue
        start = time.monotonic()
        run = subprocess.run([program], capture_output=True, text=True, encoding="utf-8", timeout=60)
        seconds = time.monotonic() - start
        check(run.returncode == 0 and not run.stderr, f"{source} ({words}) ends with {run.returncode}: {run.stderr}")
        check(seconds < LIMIT, f"{source} ({words}) takes {seconds:.1f} s")
        printed = lines_of(run.stdout)
        for number, (a, b) in enumerate(zip(numbers, printed)):
            if a != b:
                check(False, f"{page} quotes, as line {number + 1}\n    {a}\n  but {source} ({words}) prints\n    {b}")
                break
        else:
            check(len(numbers) == len(printed), f"{page} quotes {len(numbers)} lines, {source} ({words}) prints {len(printed)}")


def test_names(page, source):
    """Every function that a page names, as `name()` or in MODEL.md's equations, is a word of the C sources."""
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        text = file.read()
    names = set(re.findall(r"`([a-z0-9_]+)\(\)", text))
    if page == "MODEL.md":
        names |= set(re.findall(r"\b[a-z0-9_]+_(?:forward|backward)(?:_[a-z]+)?\b|\bclip_[a-z]+\b|\bclear_[a-z_]+\b", text))
    check(len(names) > 3, f"{page} names functions")
    for name in sorted(names):
        check(re.search(rf"\b{name}\b", source), f"{page} names {name}(), which is not in the sources")


def main():
    sources = glob.glob(os.path.join(ROOT, "clipc", "*", "*.h")) + [os.path.join(ROOT, "train_clip.c")]
    source = "".join(open(path, encoding="utf-8").read() for path in sources)
    for page in ["MODEL.md", "doc/matmul.md", *(f"doc/{name}.md" for name in PAGES)]:
        test_names(page, source)
    with tempfile.TemporaryDirectory() as folder:
        for name in PAGES:
            test_page(name, folder)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
