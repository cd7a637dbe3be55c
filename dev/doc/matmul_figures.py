#!/usr/bin/env python3
"""Draws the figures of doc/matmul.md: dev/doc/matmul_figures.py [FOLDER], doc/img by default. Python's standard library only.

Measured speeds are read from the tables in the page itself; colours and type are those of clipc/base/plot.h.
"""
import math
import os
import re
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")

COLORS = ["#2563eb", "#d9480f", "#0d8a5f", "#9333ea", "#b0186e", "#4b5563"]
DARK = ["#6ea8fe", "#ff9d5c", "#45c99a", "#c08bfa", "#f57bbd", "#a3adba"]

M, N, K = 1600, 3072, 768  # c_fc of ViT-B/32 at batch 32
ROWS, COLUMNS, K_BLOCK, UNIT_BLOCK = 12, 32, 256, 16  # tile, panel, blocks: clipc/math/isa.h, clipc/math/matmul.h
A_BYTES = 512 << 10
BLOCK_ROWS = A_BYTES // (4 * K) // ROWS * ROWS


def palette(colors):
    return "".join(f".c{i}{{stroke:{c}}}.f{i}{{fill:{c}}}" for i, c in enumerate(colors))


STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:11px}"
    ".p{fill:#fff}.t{font-size:16px;font-weight:600}.h{font-size:12px;font-weight:600}.t,.h{fill:#1c2128}.l{fill:#5b6472}"
    ".g{stroke:#e6e9ee}.a{stroke:#9aa3af;fill:none}.e{fill:#5b6472;fill-opacity:.07;stroke:#9aa3af}.s{fill-opacity:.22;stroke-width:1.5}.v{stroke:none}"
    + palette(COLORS)
    + "@media(prefers-color-scheme:dark){.p{fill:#0f141b}.t,.h{fill:#e8ebf0}.l{fill:#98a2b0}.g{stroke:#252c36}.a,.e{stroke:#5d6776}.e{fill:#98a2b0}"
    + palette(DARK) + "}"
)


class Figure:
    def __init__(self, name, height, title):
        self.name, self.parts = name, []
        self.parts.append(f'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="{height}" viewBox="0 0 800 {height}" role="img">\n<title>{title}</title>\n'
                          f'<style>{STYLE}</style>\n<rect class="p" width="100%" height="100%"/>')
        self.text(40, 32, title, "t")

    def text(self, x, y, text, kind="l", anchor="start"):
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}"' + (f' text-anchor="{anchor}"' if anchor != "start" else "") + f">{text}</text>")

    def box(self, x, y, w, h, color=None, label=None, kind="l"):
        """An empty frame, or one of a colour; the label in its middle."""
        shape = "e" if color is None else f"s f{color} c{color}"
        self.parts.append(f'<rect class="{shape}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"/>')
        if label:
            self.text(x + w / 2, y + h / 2 + 4, label, kind, "middle")

    def line(self, x1, y1, x2, y2, kind="a"):
        self.parts.append(f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>')

    def arrow(self, x1, y1, x2, y2):
        """From (x1,y1) to (x2,y2), along one axis."""
        self.line(x1, y1, x2, y2)
        length = math.hypot(x2 - x1, y2 - y1)
        dx, dy = (x2 - x1) / length * 6, (y2 - y1) / length * 6
        self.parts.append(f'<path class="a" d="M{x2 - dx - dy / 2:g} {y2 - dy + dx / 2:g}L{x2:g} {y2:g}L{x2 - dx + dy / 2:g} {y2 - dy - dx / 2:g}"/>')

    def write(self, folder):
        with open(os.path.join(folder, f"matmul_{self.name}.svg"), "w", encoding="utf-8") as file:
            file.write("\n".join(self.parts) + "\n</svg>\n")


def loops():
    f = Figure("loops", 280, "Down a column of B: of 64 bytes that memory brings, 4 are used")
    a, b, c = (M / 10, K / 10), (K / 10, N / 10), (M / 10, N / 10)  # heights and widths in pixels
    x, y = 60, 88
    f.text(x, y - 10, "A (1600, 768)", "h")
    f.box(x, y, a[1], a[0])
    f.box(x, y + 60, a[1], 4, 0)
    f.text(x + a[1] / 2, y + a[0] + 16, "along a row", "l", "middle")
    f.text(x + a[1] + 14, y + 66, "·", "t")
    x += a[1] + 36
    f.text(x, y - 10, "B (768, 3072)", "h")
    f.box(x, y, b[1], b[0])
    f.box(x + 120, y, 16, b[0], 5)
    f.box(x + 126, y, 4, b[0], 1)
    f.text(x + b[1] / 2, y + b[0] + 16, "down a column: 12 KB from one number to the next,", "l", "middle")
    f.text(x + b[1] / 2, y + b[0] + 31, "each in a cache line with 15 that wait for other columns", "l", "middle")
    f.text(x + b[1] + 10, y + 66, "=", "t")
    x += b[1] + 30
    c = (c[0], 800 - 40 - x)
    f.text(x, y - 10, "C (1600, 3072)", "h")
    f.box(x, y, c[1], c[0])
    f.box(x + c[1] * 126 / b[1], y + 60, 4, 4, 2)
    f.text(x + c[1] / 2, y + c[0] + 16, "one entry", "l", "middle")
    return f


def tile():
    f = Figure("tile", 330, "A step of the register tile: 14 loads feed 24 multiply-adds of 16 lanes")
    x, y, w, h = 170, 96, 150, 15
    f.text(x, 62, "unit k of a panel of B: two loads", "h")
    for half in range(2):
        f.box(x + half * (w + 6), 70, w, h, 1, "16 columns")
    f.text(40, y + 12, "A, row 0", "l")
    f.text(40, y + 11 * (h + 2) + 12, "A, row 11", "l")
    for r in range(ROWS):
        f.box(120, y + r * (h + 2), 30, h, 0)
        for half in range(2):
            f.box(x + half * (w + 6), y + r * (h + 2), w, h, 2)
    f.text(135, y + ROWS * (h + 2) + 16, "12 broadcasts", "l", "middle")
    f.text(x + w + 3, y + ROWS * (h + 2) + 16, "24 registers of sums, each += a · b", "l", "middle")
    x = 520
    f.text(x, 82, "registers of a tile", "h")
    rows = [("", "tile", "sums", "B", "A", "of"), ("AVX-512", "12 x 32", 24, 2, 1, 32), ("AVX2", "6 x 16", 12, 2, 1, 16), ("portable", "4 x 8", 8, 2, 1, 16)]
    for i, row in enumerate(rows):
        for cell, at in zip(row, (0, 64, 120, 152, 180, 208)):
            f.text(x + at, 104 + 20 * i, str(cell), "l")
    f.text(x, 212, "24 sums on 2 ports", "h")
    f.text(x, 232, "each is due again after 12 cycles,")
    f.text(x, 247, "ready after 4: 8 would keep the ports busy,")
    f.text(x, 262, "24 also keep the loads few")
    return f


def panels():
    f = Figure("panels", 330, "A micro-panel is B in the order in which the micro-kernel reads it")
    x, y = 40, 84
    f.text(x, y - 12, "B (K, N)", "h")
    for p in range(6):
        f.box(x + p * 36, y, 36, 110, p % 2 if p < 2 else None)
    f.text(x + 18, y + 126, "32 wide", "l", "middle")
    for row in range(3):
        f.box(x, y + 14 * row, 36, 14, 0)
    f.arrow(270, y + 50, 312, y + 50)
    x = 326
    f.text(x, y - 12, "panel 0 in memory, one unit after another", "h")
    for row in range(3):
        f.box(x + row * 100, y, 98, 24, 0, f"unit {row}: 128 bytes")
    f.text(x + 310, y + 16, "…")
    f.text(x, y + 50, "panel 1", "h")
    f.box(x, y + 60, 98, 24, 1, "unit 0")
    f.text(x + 110, y + 76, "…")
    y = 244
    f.text(40, y - 8, "a unit of 32 bits, column j", "h")
    f.text(40, y + 19, "fp32")
    f.box(90, y, 190, 28, 2, "B[u][j]")
    f.text(40, y + 55, "bf16")
    f.box(90, y + 36, 95, 28, 2, "B[2u][j]")
    f.box(185, y + 36, 95, 28, 3, "B[2u + 1][j]")
    f.text(310, y + 19, "times the same unit of a row of A, broadcast: one product")
    f.text(310, y + 55, "the same loads, the same loop: two products, added to the sum of column j in fp32")
    return f


def blocks():
    f = Figure("blocks", 350, "Needed soonest, kept nearest: 32 KB of a panel in L1, %d KB of A in L2" % (BLOCK_ROWS * K * 4 // 1024))
    x, y, k, m = 40, 108, 210, 190  # pixels: K, M
    block = m * BLOCK_ROWS / M * 2.4
    f.text(x, y - 34, "A: mc = %d rows" % BLOCK_ROWS, "h")
    f.text(x, y - 18, "met by all panels: L2")
    f.box(x, y, k, m)
    f.box(x, y, k, block, 0)
    f.box(x, y + 12, k / 3, 7, 1)
    f.text(x, y + m + 18, "12 rows by 256 units: 12 KB")
    f.text(x, y + m + 33, "that pass through L1, one tile after another")
    x += k + 60
    f.text(x, y - 34, "B: kc x nr of a panel", "h")
    f.text(x, y - 18, "met by the %d tiles of those rows: L1" % (BLOCK_ROWS // ROWS))
    f.box(x, y, 150, k * .78)
    f.box(x + 32, y, 22, k * .78)
    f.box(x + 32, y, 22, k * .26, 2)
    f.text(x, y + m + 18, "256 units by 32 columns")
    f.text(x, y + m + 33, "= 32 KB; then the next 256")
    x += 150 + 70
    f.text(x, y - 34, "C: sums of %d x 128" % BLOCK_ROWS, "h")
    f.text(x, y - 18, "of four panels, %d KB, until K is done" % (BLOCK_ROWS * 128 * 4 // 1024))
    f.box(x, y, 230, m)
    f.box(x + 60, y, 88, block, 3)
    f.box(x + 60, y + 12, 22, 7, 4)
    f.text(x, y + m + 18, "12 x 32 of them are in registers;")
    f.text(x, y + m + 33, "after the last block of K all are stored in C")
    return f


def turning():
    """The five states of a 16 x 16 block, as transpose_avx512() moves it; an entry is (row, column) of where it was."""
    def unpack(p, q, size, high):  # fours of p and q: of each its lower or upper half, by turns in pieces of `size`
        out = []
        for four in range(0, 16, 4):
            for at in range(four + 2 * high, four + 2 * high + 2, size):
                out += p[at:at + size] + q[at:at + size]
        return out

    def shuffle(p, q, odd):  # every second four of p, then of q
        return [v for row in (p, q) for four in (odd, odd + 2) for v in row[4 * four:4 * four + 4]]

    whole = [[(r, c) for c in range(16)] for r in range(16)]
    single, pairs, fours, eights = ([None] * 16 for _ in range(4))
    for i in range(0, 16, 2):
        for high in range(2):
            single[i + high] = unpack(whole[i], whole[i + 1], 1, high)
    for i in range(0, 16, 4):
        for h in range(2):
            for high in range(2):
                pairs[i + 2 * h + high] = unpack(single[i + h], single[i + h + 2], 2, high)
    for i in range(4):
        for half in (0, 8):
            for odd in range(2):
                fours[i + half + 4 * odd] = shuffle(pairs[i + half], pairs[i + half + 4], odd)
    for i in range(8):
        for odd in range(2):
            eights[i + 8 * odd] = shuffle(fours[i], fours[i + 8], odd)
    assert all(eights[r][c] == (c, r) for r in range(16) for c in range(16))
    return [whole, single, pairs, fours, eights]


def transposition():
    f = Figure("strips", 250, "Four rounds of 16 instructions transpose a block of 16 x 16 units")
    labels = ["as in memory", "single units change", "pairs change", "fours change", "eights: transposed"]
    for s, (state, label) in enumerate(zip(turning(), labels)):
        x, y, cell = 40 + 148 * s, 64, 8
        f.text(x + 64, y + 148, label, "l", "middle")
        f.box(x, y, 16 * cell, 16 * cell)
        for shade in range(16):
            d = ""
            for r in range(16):
                run = 0
                for c in range(17):
                    if c < 16 and state[r][c][0] == shade:
                        run += 1
                    elif run:
                        d += f"M{x + (c - run) * cell} {y + r * cell}h{run * cell}v{cell}h-{run * cell}z"
                        run = 0
            f.parts.append(f'<path class="f0" fill-opacity="{.08 + .055 * shade:.3g}" d="{d}"/>')
        if s < 4:
            f.arrow(x + 130, y + 64, x + 146, y + 64)
    f.text(40, 238, "a shade: 16 units of one row of a weight, neighbours in memory. Transposed, unit k of all 16 rows is contiguous, as in the panels of Wᵀ")
    return f


def amx():
    f = Figure("amx", 330, "2 x 2 tiles: 32 cycles of loads are hidden by 64 of products")
    x, y, t = 108, 128, 66
    for i, name in enumerate(("6", "7")):
        f.box(x + i * (t + 6), y - t - 12, t, t, 1, f"tile {name}", "h")
    for i, name in enumerate(("4", "5")):
        f.box(x - t - 12, y + i * (t + 6), t, t, 0, f"tile {name}", "h")
    for i in range(4):
        f.box(x + i % 2 * (t + 6), y + i // 2 * (t + 6), t, t, 2, f"tile {i}", "h")
    f.text(x + 2 * t + 14, y - 46, "B: 16 units")
    f.text(x + 2 * t + 14, y - 31, "x 16 columns")
    f.text(x - t - 12, y + 2 * t + 24, "A: 16 rows x 16 units (32 bf16)")
    f.text(x - t - 12, y + 2 * t + 40, "C: 16 x 16 sums in fp32")
    x, y, cycle = 400, 128, 5.6
    f.text(x, y - 28, "a step of 16 units, in cycles", "h")
    f.text(x - 8, y + 17, "loads", "l", "end")
    f.text(x - 8, y + 67, "products", "l", "end")
    for i, name in enumerate((6, 4, 7, 5)):
        f.box(x + 8 * i * cycle, y, 8 * cycle, 26, 1 if name > 5 else 0, str(name), "h")
    for i in range(4):
        f.box(x + 16 * i * cycle, y + 50, 16 * cycle, 26, 2, f"{i} += {4 + i // 2} · {6 + i % 2}", "h")
    f.line(x, y + 92, x + 64 * cycle, y + 92)
    for i in range(0, 65, 16):
        f.line(x + i * cycle, y + 92, x + i * cycle, y + 96)
        f.text(x + i * cycle, y + 110, str(i), "l", "middle")
    f.text(x, y + 140, "the next step's loads run while this step's products do;")
    f.text(x, y + 155, "one product alone would need two loads for its 16 cycles")
    return f


def bars(f, rows, x, y, scale, height=24, gap=12):
    """Stacked bars: (label, [(amount, color, label)], text after them)."""
    for label, parts, after in rows:
        f.text(x - 10, y + height / 2 + 4, label, "l", "end")
        at = x
        for amount, color, name in parts:
            f.box(at, y, amount * scale, height, color, name)
            at += amount * scale
        f.text(at + 8, y + height / 2 + 4, after, "h")
        y += height + gap


def end():
    c = M * N * 4 / 1e6
    f = Figure("end", 200, "Bias and GELU as an epilogue move %.0f MB; as separate passes, %.0f MB" % (2 * c, 5 * c))
    write, read = (c, 1, "C out"), (c, 0, "C in")
    rows = [("bias, GELU: two passes", [write, read, write, read, (c, 2, "GELU out")], "%.0f MB" % (5 * c)),
            ("one pass", [write, read, write, (c, 2, "GELU out")], "%.0f MB" % (4 * c)),
            ("epilogue", [write, (c, 2, "GELU out")], "%.0f MB" % (2 * c))]
    bars(f, rows, 190, 58, 4.9)
    f.text(190, 182, "c_fc of ViT-B/32, batch 32, fp32: C is %.1f MB. What is read was in L2 before" % c)
    return f


def update():
    f = Figure("update", 300, "AdamW writes both packed copies while the new weights are in the cache")
    y = 84
    for i, (name, size) in enumerate((("gradient", 4), ("weights", 4), ("m", 4), ("v", 4))):
        f.box(40, y + 40 * i, 120, 30, 0, f"{name}: {size} bytes")
        f.arrow(160, y + 40 * i + 15, 236, y + 40 * i + 15)
    f.text(40, 68, "read, a weight", "h")
    f.box(240, y, 250, 150)
    f.text(365, y + 24, "32 rows of a weight or more", "h", "middle")
    for i, line in enumerate(("about 65,536 numbers of one thread:", "sum of squares of the gradient", "m, v, weight", "moving average, if there is one", "blocks of 16 x 16, transposed or not")):
        f.text(365, y + 50 + 18 * i, line, "l", "middle")
    f.text(574, 68, "written", "h")
    for i, (name, color) in enumerate((("weights: 4 bytes", 0), ("m, v: 8", 0), ("panels of Wᵀ: 4, or 2 in bf16", 2), ("panels of W: 4, or 2 in bf16", 3))):
        f.arrow(490, y + 40 * i + 15, 566, y + 40 * i + 15)
        f.box(570, y + 40 * i, 190, 30, color, name)
    f.text(574, y + 172, "forward: out = inp · Wᵀ")
    f.text(574, y + 187, "backward: dinp = dout · W")
    return f


def threads():
    f = Figure("threads", 300, "Threads take items in any order; each sum is one thread's, in one order")
    x, y, w, h = 40, 84, 150, 17
    f.text(x, y - 12, "C: 10 blocks of rows x 2 groups of panels", "h")
    owner = [0, 1, 2, 3, 1, 0, 3, 2, 0, 2, 1, 3, 3, 0, 2, 1, 0, 1, 3, 2]
    for item, who in enumerate(owner):
        f.box(x + item % 2 * (w + 4), y + item // 2 * (h + 2), w, h, who, f"thread {who}")
    x = 430
    f.text(x, y - 12, "any sum, whichever thread computes its tile", "h")
    for i in range(3):
        f.box(x + i * 105, y + 6, 95, 26, 5, f"k = {256 * i} … {256 * i + 255}")
        if i < 2:
            f.text(x + i * 105 + 100, y + 23, "+", "h", "middle")
    f.text(x, y + 58, "K is cut at fixed places, and added from the left: within a")
    f.text(x, y + 73, "block by the tile, across blocks by loading the partial sums")
    f.text(x, y + 106, "no sum is split between threads, none is added atomically:")
    f.text(x, y + 121, "the same bits with 1, 2 or 64 of them")
    return f


def rounding():
    f = Figure("rounding", 280, "amp_bf16 rounds before and after a product, not inside")
    y = 78
    f.text(40, y - 10, "in: rounded once", "h")
    for i, (left, right) in enumerate((("weights, fp32", "panels, bf16"), ("LayerNorm, fp32", "inp, bf16"))):
        f.box(40, y + 62 * i, 110, 34, 5, left)
        f.arrow(150, y + 62 * i + 17, 180, y + 62 * i + 17)
        f.box(184, y + 62 * i, 96, 34, 1, right)
        f.arrow(280, y + 62 * i + 17, 316, y + 62 * i + 17)
    f.text(320, y - 10, "inside: fp32", "h")
    f.box(320, y, 200, 96, 5)
    for i, line in enumerate(("products of two bf16: exact,", "8 + 8 bits of 24", "sums: fp32", "bias, residual, GELU: fp32")):
        f.text(420, y + 24 + 18 * i, line, "l", "middle")
    f.text(560, y - 10, "out", "h")
    f.arrow(520, y + 17, 556, y + 17)
    f.box(560, y, 200, 34, 1, "read by products: bf16, once")
    f.arrow(520, y + 79, 556, y + 79)
    f.box(560, y + 62, 200, 34, 5, "all else: fp32")
    f.text(560, y + 116, "above: qkv, hidden, their gradients;")
    f.text(560, y + 131, "below: residual stream, its gradient,")
    f.text(560, y + 146, "weights and theirs, m, v, the loss")
    f.text(40, y + 160, "rounding to bf16 moves a number by at most 1/256 of itself; the test allows a product")
    f.text(40, y + 175, "1e-6 of the sum of |a b|, plus the rounding of what it writes")
    return f


def steps(page):
    table = re.search(r"\| step \| GFLOP/s \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", page)
    if not table:
        sys.exit("matmul_figures.py: no table of steps (doc/matmul.md); put the output of build/bench_matmul_steps there")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.group(1).splitlines()]
    amx_row = re.search(r"\| amx, bf16 \| *\d+ \| *(\d+) \|", page)
    if amx_row:
        rows.append(["the same in bf16, AMX", amx_row.group(1)])
    values = [(name, float(speed)) for name, speed in rows]
    f = Figure("steps", 70 + 30 * len(values) + 44, "One layer, one thread: from %g to %g GFLOP/s, and %g in bf16" % (values[0][1], values[-2 if amx_row else -1][1], values[-1][1]))
    x, low, decade, y = 236, .1, 118, 60
    for d in range(5):
        f.line(x + d * decade, y, x + d * decade, y + 30 * len(values), "g")
        f.text(x + d * decade, y + 30 * len(values) + 16, f"{10 ** (d - 1):g}", "l", "middle")
    f.text(x, y + 30 * len(values) + 34, "GFLOP/s, logarithmic")
    for i, (name, speed) in enumerate(values):
        width = decade * math.log10(speed / low)
        f.text(x - 10, y + 30 * i + 19, name, "l", "end")
        f.box(x, y + 30 * i + 4, width, 21, 2 if "bf16" in name else 0)
        f.text(x + width + 8, y + 30 * i + 19, f"{speed:g}", "h")
    return f


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "doc", "img")
    with open(os.path.join(ROOT, "doc", "matmul.md"), encoding="utf-8") as file:
        page = file.read()
    for figure in (loops(), tile(), panels(), blocks(), transposition(), amx(), end(), update(), threads(), rounding(), steps(page)):
        figure.write(folder)


if __name__ == "__main__":
    main()
