#!/usr/bin/env python3
"""Draws what the demo did, for its report and the README: dev/doc/demo_figure.py build/demo OUT.svg

Left: images of both domains. Right: zero-shot accuracy on both, over the steps of training and of fine-tuning.
"""
import base64
import json
import sys

from matmul_figures import STYLE

DOMAINS = (("paper", "filled shapes on paper", 0), ("card", "crayon outlines on cardboard", 1))  # folder, label, colour
LEFT, RIGHT, TOP, BOTTOM = 270, 650, 72, 240  # of the chart, in pixels


def accuracies(demo):
    """-> [(step, {folder: accuracy in %})] of both runs, and the step at which fine-tuning starts"""
    points, start = [], 0
    for run in "train", "finetune":
        start = points[-1][0] if points else 0
        with open(f"{demo}/logs/{run}/metrics.jsonl") as f:
            rows = [row for row in map(json.loads, f) if "zeroshot_top1/paper" in row]
        points += [(start + row["step"], {name: 100 * row[f"zeroshot_top1/{name}"] for name, _, _ in DOMAINS}) for row in rows]
    return points, start


def text(x, y, words, kind="l", anchor="start"):
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{words}</text>'


def samples(demo, name, y):
    """Three images of a domain in a row."""
    with open(f"{demo}/{name}/val.csv") as f:
        paths = [line.split(",")[0] for line in f.readlines()[1:4]]
    for i, path in enumerate(paths):
        with open(f"{demo}/{name}/{path}", "rb") as f:
            data = base64.b64encode(f.read()).decode()
        yield f'<image x="{30 + 58 * i}" y="{y}" width="52" height="52" href="data:image/png;base64,{data}"/>'


def draw(demo):
    points, start = accuracies(demo)
    (_, before), (_, after) = [p for p in points if p[0] == start][-1], points[-1]
    x = lambda step: LEFT + (RIGHT - LEFT) * step / points[-1][0]
    y = lambda percent: BOTTOM - (BOTTOM - TOP) * percent / 100
    title = (f"The new domain is learned ({before['card']:.0f}% → {after['card']:.0f}%), "
             f"the old one forgotten ({before['paper']:.0f}% → {after['paper']:.0f}%)")
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="275" viewBox="0 0 720 275" role="img">\n<title>{title}</title>'
    yield f'<style>{STYLE}.n{{fill:none;stroke-width:2}}</style>\n<rect class="p" width="100%" height="100%"/>'
    yield text(30, 32, title, "t")
    yield text(LEFT, 58, "zero-shot accuracy, 64 classes", "h")
    for percent in (0, 25, 50, 75, 100):
        yield f'<line class="g" x1="{LEFT}" x2="{RIGHT}" y1="{y(percent):g}" y2="{y(percent):g}"/>' + text(LEFT - 8, y(percent) + 4, f"{percent}%", "l", "end")
    yield f'<line class="a" x1="{x(start):g}" x2="{x(start):g}" y1="{TOP}" y2="{BOTTOM}" stroke-dasharray="3 3"/>'
    yield text(x(start / 2), 258, "training on paper", "l", "middle") + text(x((start + points[-1][0]) / 2), 258, "fine-tuning on cardboard", "l", "middle")
    for name, label, color in DOMAINS:
        yield text(30, 88 + 92 * color, label, f"h f{color}")
        yield from samples(demo, name, 98 + 92 * color)
        line = " ".join(f"{x(step):.1f},{y(values[name]):.1f}" for step, values in points)
        yield f'<polyline class="n c{color}" points="{line}"/>'
        for step, values in points:
            yield f'<circle class="f{color}" cx="{x(step):.1f}" cy="{y(values[name]):.1f}" r="3.5"/>'
        yield text(RIGHT + 10, y(after[name]) + 4, f"{after[name]:.1f}%", f"h f{color}")
    yield "</svg>"


demo, out = sys.argv[1:]
with open(out, "w", encoding="utf-8") as file:
    file.write("\n".join(draw(demo)) + "\n")
