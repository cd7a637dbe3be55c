#!/usr/bin/env python3
"""Checks how the C and CUDA files are written, and which header includes which.

  dev/test/check_house.py [format] [lengths] [layers]      these checks, or all; a line for each rule that is broken
"""
import glob
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CLANG_FORMAT = 14  # the major version that .clang-format is written for; others format otherwise
LINE, FUNCTION, HEADER, HEADERS = 110, 80, 600, 90
PROGRAM_LINES = {"train_clip.c": 1500}
FLOORS = {"base": 0, "data": 1, "math": 1, "model": 2, "train": 3}  # the folders of clipc/; math and data do not see each other; programs include all

passed = failed = 0


def expect(ok, what):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print("FAILED", what)


def sources():
    found = [f for ending in ("c", "h", "cu") for f in glob.glob(f"*.{ending}") + glob.glob(f"clipc/**/*.{ending}", recursive=True)
             + glob.glob(f"dev/**/*.{ending}", recursive=True) + glob.glob(f"doc/**/*.{ending}", recursive=True)]
    return sorted(set(found))  # not data/text_tables.h, which is generated


def lines(path):
    with open(path, encoding="utf-8") as f:
        return f.read().splitlines()


# ---------------------------------------------------------------- format

def check_format():
    program = shutil.which(f"clang-format-{CLANG_FORMAT}") or shutil.which("clang-format")
    version = program and re.search(r"version \d+", subprocess.check_output([program, "--version"], text=True)).group()
    if version != f"version {CLANG_FORMAT}":
        print(f"clang-format {CLANG_FORMAT} is not here (found: {version or 'none'}); the format was not checked")
        expect(True, "")
        return
    errors = subprocess.run([program, "--dry-run", "-Werror", *sources()], stderr=subprocess.PIPE, text=True).stderr
    wrong = dict(re.findall(r"^(.+?):(\d+):\d+: error:", errors, re.M)[::-1])  # the first line of each file
    for path in sources():
        expect(path not in wrong, f"{path}:{wrong.get(path)}: run clang-format -i on it")


# ---------------------------------------------------------------- lengths

def functions(path):
    """-> (name, lines) of each. In formatted code a function begins in the first column and ends with a brace there."""
    name = None
    for number, line in enumerate(lines(path), 1):
        if line == "}" and name:
            yield name, number - begin + 1
        if re.match(r"[\w}](?!\w*:$)", line):  # not a label
            called = re.search(r"(\w+)\(", re.sub(r"PRINTF_LIKE\([^)]*\)|__\w+__\(.*?\)", "", line))
            name, begin = called and called.group(1), number


def check_lengths():
    for path in sources():
        text = lines(path)
        long = [i for i, line in enumerate(text, 1) if len(line) > LINE]
        expect(not long, f"{path}: {len(long)} lines over {LINE} characters, the first is line {long[0] if long else 0}")
        for name, length in functions(path):
            expect(length <= FUNCTION, f"{path}: {name}() has {length} lines, at most {FUNCTION}")
        if path.endswith(".h"):
            expect(len(text) < HEADER, f"{path}: {len(text)} lines, a header has fewer than {HEADER}")
        if path in PROGRAM_LINES:
            expect(len(text) < PROGRAM_LINES[path], f"{path}: {len(text)} lines, fewer than {PROGRAM_LINES[path]} are allowed")
    headers = glob.glob("clipc/*/*.h")
    expect(len(headers) <= HEADERS, f"clipc/ has {len(headers)} headers, at most {HEADERS}")


# ---------------------------------------------------------------- layers

def check_layers():
    floor = {path: FLOORS[path.split("/")[1]] for path in glob.glob("clipc/*/*.h")}
    includes = {path: re.findall(r'^#include "(clipc/[^"]+)"', "\n".join(lines(path)), re.M) for path in floor}
    for path in includes:
        for header in includes[path]:
            neighbours = os.path.dirname(header) == os.path.dirname(path)
            expect(neighbours or floor[header] < floor[path], f"{path} includes {header}, which is not on a floor below")
    while True:  # takes away what includes, or is included by, nothing that is left; only cycles stay
        included = {header for path in includes for header in includes[path] if header != path}
        ends = [path for path in includes if path not in included or not any(h in includes for h in includes[path] if h != path)]
        if not ends:
            break
        for path in ends:
            del includes[path]
    expect(not includes, f"headers that include each other: {sorted(includes)}")


if __name__ == "__main__":
    os.chdir(ROOT)
    checks = {"format": check_format, "lengths": check_lengths, "layers": check_layers}
    for name in sys.argv[1:] or checks:
        checks[name]()
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed != 0 or passed == 0)
