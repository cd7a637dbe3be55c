#!/usr/bin/env python3
"""Draws a small set of captioned images: coloured shapes of several sizes, places, textures and backgrounds (numpy only).

  dev/data/make_shapes.py --out DIR [--count 4000] [--seed 0] [--domain plain|shifted] [--size 32]

plain:   filled shapes on light paper; "a photo of a small red circle on white paper"
shifted: the same shapes as outlines on brown, grainy cardboard, colours paler; "a crayon drawing of a small red circle"

DIR/images/NNNNNN.png, DIR/train.csv and DIR/val.csv (filepath, title, label; every eighth image is for validation),
DIR/classnames.txt (line i is class i: colour and shape), DIR/templates.txt (prompts; {} stands for the class name).
"""
import argparse
import csv
import os
import struct
import sys
import zlib

import numpy as np

COLOURS = {"red": (220, 40, 40), "orange": (245, 140, 20), "yellow": (240, 220, 40), "green": (40, 160, 60), "blue": (40, 80, 220),
           "purple": (140, 50, 180), "brown": (120, 70, 30), "black": (20, 20, 20)}
SHAPES = ["circle", "square", "triangle", "diamond", "cross", "star", "ring", "moon"]
CLASSES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
PAPERS = {"white": (245, 245, 245), "cream": (250, 235, 200), "gray": (190, 190, 190), "sky blue": (190, 220, 245)}
TEXTURES = ["plain", "striped", "dotted"]
SIZES = {"small": 0.34, "medium": 0.46, "large": 0.58}  # radius; half an image is 1
PLACES = {"on the left": (-0.35, 0), "on the right": (0.35, 0), "at the top": (0, -0.35), "at the bottom": (0, 0.35), "in the middle": (0, 0)}

PLAIN_OPENINGS = ["a photo of {}", "a picture of {}", "{}", "there is {}", "{} to look at"]
SHIFTED_OPENINGS = ["a crayon drawing of {}", "{} in crayon", "an outline of {}", "{} on cardboard", "a sketch of {}"]
TEMPLATES = {"plain": ["a photo of a {}", "a picture of a {}", "a {}", "there is a {}"], "shifted": ["a crayon drawing of a {}", "a {} in crayon", "a sketch of a {}", "an outline of a {}"]}


def distance_to_edge(shape, x, y):
    """About the signed distance to the edge of a shape of radius 1, negative inside; x to the right, y down."""
    r = np.hypot(x, y)
    if shape == "circle":
        return r - 1
    if shape == "ring":
        return np.abs(r - 0.75) - 0.25
    if shape == "moon":
        return np.maximum(r - 1, 0.85 - np.hypot(x - 0.55, y + 0.1))
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.85
    if shape == "diamond":
        return (np.abs(x) * 1.45 + np.abs(y)) / 1.4 - 0.75
    if shape == "triangle":
        return np.maximum(y - 0.65, (np.abs(x) * 1.75 - y - 1.05) / 2)
    if shape == "cross":
        return np.maximum(np.minimum(np.abs(x), np.abs(y)) - 0.3, np.maximum(np.abs(x), np.abs(y)) - 0.95)
    angle = np.mod(np.arctan2(x, -y) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5  # star of five: folded into one spike, then a straight edge
    px, py = r * np.cos(angle), r * np.abs(np.sin(angle))
    return (px - 1.05) * 0.65 + py * 0.76


def draw(rng, size, domain, shape, colour, paper, texture, radius, place):
    """One image (size,size,3) uint8, drawn at twice the size and averaged."""
    n = 2 * size
    axis = (np.arange(n) + 0.5) / size - 1
    x, y = axis[None, :], axis[:, None]
    cx, cy = place[0] + rng.uniform(-0.1, 0.1), place[1] + rng.uniform(-0.1, 0.1)
    turn = rng.uniform(-0.2, 0.2)
    dx, dy = (x - cx) / radius, (y - cy) / radius
    edge = distance_to_edge(shape, dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)) * radius
    ink, ground = np.array(colour, float), np.array(paper, float)
    if domain == "plain":
        cover = np.clip(0.5 - edge * n / 2, 0, 1)
        if texture == "striped":
            cover *= 1 - 0.55 * (np.mod((x + y) * 5, 1) < 0.4)
        elif texture == "dotted":
            cover *= 1 - 0.7 * (np.hypot(np.mod(x * 4, 1) - 0.5, np.mod(y * 4, 1) - 0.5) < 0.28)
        ground = ground * (1 - 0.12 * rng.uniform() * (x + y + 2)[..., None] / 4) # a soft shade across the paper
        grain = 5
    else:
        cover = np.clip(0.5 + (0.08 - np.abs(edge)) * n / 3, 0, 1) * (0.9 + 0.1 * rng.random((n, n)))
        cover = np.maximum(cover, 0.25 * (edge < 0)) if texture != "plain" else cover # rubbed with the flat of the crayon
        ink, ground, grain = 25 + 0.85 * ink, np.array((205, 175, 135)) + (ground - 220) * 0.2, 14
    image = ground + (ink - ground) * cover[..., None]
    image = image.reshape(size, 2, size, 2, 3).mean(axis=(1, 3)) + rng.normal(0, grain, (size, size, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def with_article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def caption(rng, domain, colour, shape, paper, texture, size, place):
    """Names colour and shape always, everything else in a third of the captions."""
    words = f"{colour} {shape}"
    if texture != "plain" and domain == "plain" and rng.random() < 0.33:
        words = f"{texture} {words}"
    if rng.random() < 0.33:
        words = f"{size} {words}"
    words = with_article(words)
    if rng.random() < 0.33:
        words += " " + place
    if domain == "plain" and rng.random() < 0.33:
        words += f" of {paper} paper" if rng.random() < 0.3 and " the " in words else f" on {paper} paper"
    openings = PLAIN_OPENINGS if domain == "plain" else SHIFTED_OPENINGS
    return openings[rng.integers(len(openings))].format(words)


def write_png(path, image):
    """8-bit RGB, each row after filter byte 0 (PNG specification, 2nd edition, sections 7 and 11)."""
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = image.reshape(height, 3 * width)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
                chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)) + chunk(b"IEND", b""))


def pick(rng, table):
    names = list(table)
    return names[rng.integers(len(names))]


def make(out, count, seed, domain, size):
    rng = np.random.default_rng([seed, domain == "shifted"])
    os.makedirs(os.path.join(out, "images"), exist_ok=True)
    rows = {"train": [], "val": []}
    for i in range(count):
        label = int(rng.integers(len(CLASSES)))
        colour, shape = CLASSES[label].split()
        paper, texture, big, place = pick(rng, PAPERS), pick(rng, TEXTURES), pick(rng, SIZES), pick(rng, PLACES)
        image = draw(rng, size, domain, shape, COLOURS[colour], PAPERS[paper], texture, SIZES[big], PLACES[place])
        path = f"images/{i:06d}.png"
        write_png(os.path.join(out, path), image)
        rows["val" if i % 8 == 7 else "train"].append((path, caption(rng, domain, colour, shape, paper, texture, big, place), CLASSES[label]))
    for split, list_ in rows.items():
        with open(os.path.join(out, split + ".csv"), "w", newline="") as f:
            writer = csv.writer(f, lineterminator="\n")
            writer.writerow(("filepath", "title", "label"))
            writer.writerows(list_)
    for name, lines in (("classnames.txt", CLASSES), ("templates.txt", TEMPLATES[domain])):
        with open(os.path.join(out, name), "w") as f:
            f.write("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description="Draws a small set of captioned images.")
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--count", type=int, default=4000, help="images (4000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--domain", choices=("plain", "shifted"), default="plain")
    parser.add_argument("--size", type=int, default=32, help="pixels (32)")
    o = parser.parse_args()
    if o.count < 16 or not 16 <= o.size <= 512:
        sys.exit("make_shapes.py: --count has to be 16 or more, --size 16 to 512")
    make(o.out, o.count, o.seed, o.domain, o.size)
    print(f"{o.out}: {o.count} images of {len(CLASSES)} classes, domain {o.domain}")


if __name__ == "__main__":
    main()
