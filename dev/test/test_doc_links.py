#!/usr/bin/env python3
"""Every relative link in the pages, and every path in the source tree that they quote, exists; so do the functions of HACKING.md's walk,
and the tests that keep the promises of doc/trust.md."""
import glob
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
QUOTED = re.compile(r"`([^`\n]+)`")
SOURCE = re.compile(r"(?:clipc|dev|doc|scripts|data)/[\w/.-]*")


def missing(page, text):
    """-> links (relative to the page) and quoted paths (relative to the root) without a file"""
    links = [os.path.join(os.path.dirname(page), link) for link in LINK.findall(text) if "://" not in link]
    words = [word for quoted in QUOTED.findall(text) for word in quoted.split() if SOURCE.fullmatch(word)]
    return [path for path in links + words if not os.path.exists(path)]


def missing_functions(table):
    """-> of each row `| n | `file` | `f()`, … |` the functions that the file does not have"""
    for path, functions in re.findall(r"^\| \d+ \| `([^`]+)` \| ([^|]+)\|", table, re.M):
        with open(path, encoding="utf-8") as f:
            text = f.read()
        yield from (f"{name}() in {path}" for name in re.findall(r"`(\w+)\(\)`", functions) if not re.search(rf"\b{name}\(", text))


os.chdir(ROOT)
passed, failed = 0, 0
for page in ["README.md", "MODEL.md", "HACKING.md", *sorted(glob.glob("doc/*.md"))]:
    broken = missing(page, open(page, encoding="utf-8").read()) if os.path.exists(page) else ["the page itself"]
    for path in broken:
        print(f"FAILED {page}: {path} does not exist")
    passed, failed = passed + (not broken), failed + len(broken)
for function in missing_functions(open("HACKING.md", encoding="utf-8").read()):
    failed += 1
    print(f"FAILED HACKING.md: {function} does not exist")
tests = "".join(open(path, encoding="utf-8").read() for path in glob.glob("dev/test/test_*"))
for name in re.findall(r"`(test_\w+)`", open("doc/trust.md", encoding="utf-8").read()):
    defined = re.search(rf"(def|void) {name}\(", tests) is not None
    passed, failed = passed + defined, failed + (not defined)
    if not defined:
        print(f"FAILED doc/trust.md: no test is called {name}")
found = missing("doc/page.md", "[x](no_page.md) ![y](../README.md#z) [u](https://host/a) `X=1 dev/no_file.c` `doc/matmul.md`")
if found != ["doc/no_page.md", "dev/no_file.c"]:
    failed += 1
    print(f"FAILED: of two missing files and three good ones, this check reports {found}")
print(f"{passed} passed, {failed} failed")
sys.exit(failed > 0)
