#!/usr/bin/env python3
"""Every relative link in the pages, and every path of a source file that they quote, names a file that exists."""
import glob
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
QUOTED = re.compile(r"`((?:clipc|dev|doc|scripts|data)/[\w/.-]+\.\w+)")


def missing(page, text):
    """-> links (relative to the page) and quoted paths (relative to the root) without a file"""
    links = [link for link in LINK.findall(text) if "://" not in link]
    return [p for p in links if not os.path.exists(os.path.join(os.path.dirname(page), p))] + \
        [p for p in QUOTED.findall(text) if not os.path.exists(os.path.join(ROOT, p))]


pages = [os.path.join(ROOT, name) for name in ("README.md", "MODEL.md", "HACKING.md")] + glob.glob(os.path.join(ROOT, "doc/*.md"))
broken = [f"{os.path.relpath(page, ROOT)}: {p}" for page in pages for p in missing(page, open(page, encoding="utf-8").read())]
if len(missing(pages[0], "[x](no/file.md) ![y](README.md#z) `dev/no_file.c` `doc/matmul.md`")) != 2:
    broken.append("the check itself does not find what is missing")
for line in broken:
    print("FAILED", line)
print(f"{len(pages)} passed, {len(broken)} failed")
sys.exit(bool(broken))
