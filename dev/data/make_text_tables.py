#!/usr/bin/env python3
"""Writes data/text_tables.h: the data for cleaning captions that no C library has.

    dev/data/make_text_tables.py --classes unicode_classes.tsv > data/text_tables.h

- HTML entities, from Python's html.entities, with the upper-case spellings that only ftfy knows;
- the upper halves of the code pages that ftfy tries, from Python's codecs;
- letters and numbers younger than the Unicode of this Python: ranges of the table given with --classes (a header line, then
  `first last class` in hexadecimal, class L for letters and N for numbers) that unicodedata does not know. utf8proc knows
  those of its own Unicode, which is a different one on every system.
"""
import argparse
import html
import html.entities
import sys
import unicodedata

CODE_PAGES = "cp1252 cp1251 cp1250 cp1253 cp1254 cp1257 iso8859_2 mac_roman cp437".split()
WIDTH = 160


def c_string(text):
    """A C string literal: readable where the character is visible by itself, octal bytes elsewhere (three digits, so a digit may follow)."""
    visible = lambda c: c.isprintable() and unicodedata.category(c)[0] not in "MCZ" and unicodedata.bidirectional(c) not in ("R", "AL")
    return '"' + "".join(
        "\\" + c if c in '"\\' else c if visible(c) else "".join(f"\\{b:03o}" for b in c.encode()) for c in text) + '"'


def entities():
    """Sorted (name, text, kind): kind 0 needs its semicolon, 1 does not, 2 is known to ftfy alone."""
    table = {}
    for name, text in html.entities.html5.items():
        if not name.endswith(";"):
            continue
        bare = name[:-1]
        table[bare] = (text, int(bare in html.entities.html5))
        upper = name.upper()
        if name == name.lower() and html.unescape("&" + upper) == "&" + upper:
            table[upper[:-1]] = (text.upper(), 2)
    return sorted((name, *rest) for name, rest in table.items())


def code_page(name):
    """What bytes 80…FF mean; an unassigned byte means itself."""
    return [ord(text) if (text := bytes([b]).decode(name, "ignore")) else b for b in range(128, 256)]


def younger(path):
    """Ranges [first, last, class] of L and N in the table that are unassigned here."""
    ranges = []
    for line in open(path).read().splitlines()[1:]:
        first, last, kind = line.split()
        for c in range(int(first, 16), int(last, 16) + 1):
            if kind not in "LN" or unicodedata.category(chr(c)) != "Cn":
                continue
            if ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == kind:
                ranges[-1][1] = c
            else:
                ranges.append([c, c, kind])
    return ranges


def emit(cells, indent="    "):
    """Cells, each followed by a comma, as many a line as fit."""
    line = indent[:-1]
    for cell in cells:
        if len(line) + len(cell) + 2 > WIDTH:
            print(line)
            line = indent[:-1]
        line += " " + cell + ","
    print(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", required=True, help="table of letters and numbers of a newer Unicode")
    args = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8")
    print(f"""// Made by dev/data/make_text_tables.py; do not edit.
// clang-format off
#ifndef CLIPC_TEXT_TABLES_H
#define CLIPC_TEXT_TABLES_H

#include <stdint.h>

// HTML entities, sorted by strcmp().
enum {{ ENTITY_SEMICOLON, ENTITY_BARE, ENTITY_UPPER }}; // needs its semicolon; does not; an upper-case spelling that ftfy alone knows
static const struct {{ const char *name, *text; int kind; }} html_entities[] = {{""")
    emit(f'{{"{name}",{c_string(text)},{kind}}}' for name, text, kind in entities())
    print("};\n\n// What bytes 80…FF mean in the code pages; an unassigned byte means itself.")
    print("enum { " + ", ".join(f"PAGE_{name.upper()}" for name in CODE_PAGES) + ", CODE_PAGES };")
    print("static const uint16_t code_pages[CODE_PAGES][128] = {")
    for name in CODE_PAGES:
        print(f"    {{ // {name}")
        emit((f"0x{c:X}" for c in code_page(name)), "        ")
        print("    },")
    print(f"""}};

// Letters (L) and numbers (N) younger than Unicode {unicodedata.unidata_version}, sorted.
static const struct {{ uint32_t first, last; char kind; }} unicode_younger[] = {{""")
    emit(f"{{0x{first:X}, 0x{last:X}, '{kind}'}}" for first, last, kind in younger(args.classes))
    print("};\n\n#endif")


if __name__ == "__main__":
    main()
