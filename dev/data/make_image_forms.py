#!/usr/bin/env python3
"""Writes dev/test/image_forms.npz: small image files of every form beside JPEG, PNG and WebP, and their pixels as Pillow decodes them.

    python3 dev/data/make_image_forms.py [--out FILE.npz]

Needs Pillow (13.0 made the file at hand), numpy and tifffile, with pillow_heif also a HEIC file. Keys: NAME|file (bytes), NAME|rgb (H,W,3): the pixels
of Image.open(NAME).convert("RGB"). dev/test/test_image_forms.c compares.
"""
import argparse
import io
import os
import struct

import numpy as np
import tifffile
from PIL import Image

draw = np.random.default_rng(11)
files = {}


def add(name, data):
    files[name] = bytes(data)


def picture(mode, width, height):
    """Smooth, with some noise: red and green are ramps."""
    y, x = np.mgrid[:height, :width]
    rgba = np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x * y * 7) % 256, 255 - (x * 9) % 200], -1)
    rgba = (rgba + draw.integers(0, 9, rgba.shape)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(rgba)
    if mode == "I;16":
        return Image.fromarray((rgba[..., 0].astype(np.uint16) * 2))
    if mode == "P":
        return image.convert("RGB").quantize(19)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode) if mode != "LA" else image.convert("LA")


def save(name, mode, form, size=(21, 13), **options):
    out = io.BytesIO()
    picture(mode, *size).save(out, form, **options)
    add(name, out.getvalue())


def gif_files():
    for mode in ("1", "L", "P", "RGB"):
        save(f"{mode}.gif", mode, "GIF", interlace=mode == "P")
    frames = [picture("P", 20, 12) for _ in range(2)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], transparency=3)
    add("animated.gif", out.getvalue())
    # a frame that covers a part of its canvas, around which the transparent colour is
    data = bytearray(out.getvalue())
    data[6:10] = struct.pack("<HH", 27, 17)
    at = data.index(b"\x2c\0\0\0\0")
    data[at + 1:at + 5] = struct.pack("<HH", 5, 4)
    add("part.gif", data)


def bmp(width, height, bits, data, compression=0, palette=b"", masks=b"", size=40, colors=0, down=False):
    if size == 12:
        header = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        header = struct.pack("<IiiHHIIiiII", size, width, -height if down else height, 1, bits, compression, len(data), 0, 0, colors, 0)
    if size > 40:
        header += masks + b"\0" * (size - 40 - len(masks))
        masks = b""
    offset = 14 + len(header) + len(masks) + len(palette)
    return struct.pack("<2sIHHI", b"BM", offset + len(data), 0, 0, offset) + header + masks + palette + data


def bmp_files():
    width, height = 13, 7
    noise = lambda n: draw.integers(0, 256, n).astype(np.uint8).tobytes()
    rows = lambda bits: noise((width * bits + 31) // 32 * 4 * height)
    for bits in (1, 4, 8):
        add(f"{bits}bit.bmp", bmp(width, height, bits, rows(bits), palette=noise(4 << bits), down=bits == 4))
        add(f"{bits}bit_os2.bmp", bmp(width, height, bits, rows(bits), palette=noise(3 << bits), size=12))
    for bits in (16, 24, 32):
        add(f"{bits}bit.bmp", bmp(width, height, bits, rows(bits), size=124 if bits == 24 else 40))
    add("565.bmp", bmp(width, height, 16, rows(16), compression=3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)))
    add("xbgr.bmp", bmp(width, height, 32, rows(32), compression=3, masks=struct.pack("<IIII", 0xFF000000, 0xFF0000, 0xFF00, 0), size=108))
    add("ten_colors.bmp", bmp(width, height, 8, rows(8), palette=noise(40), colors=10))
    for four in (False, True):
        for ends in (False, True):
            data = b""
            while len(data) < 150:
                kind = draw.integers(0, 5)
                if kind < 2:
                    data += bytes([draw.integers(1, 19), draw.integers(0, 256)])
                elif kind == 2:
                    n = int(draw.integers(3, 12))
                    body = noise((n + 1) // 2 if four else n)
                    data += bytes([0, n]) + body + b"\0" * (len(body) % 2)
                else:
                    data += b"\0\0" if kind == 3 else bytes([0, 2, draw.integers(0, 4), draw.integers(0, 2)])
            data += b"\5\x77\0\0" * 2 * height + b"\0\1" * ends
            add(f"rle{4 if four else 8}_{int(ends)}.bmp", bmp(width, height, 4 if four else 8, data, compression=2 if four else 1, palette=noise(64 if four else 1024)))


def tiff_files():
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I;16"):
        save(f"{mode}.tif", mode, "TIFF", compression={"1": "group4", "L": "packbits", "RGB": "jpeg", "P": "tiff_lzw"}.get(mode, "tiff_adobe_deflate"))
    save("turned.tif", "RGB", "TIFF", compression="tiff_lzw", tiffinfo={274: 6})
    save("big.tif", "RGB", "TIFF", big_tiff=True)
    for name, shape, dtype, options in (
            ("rgb16_tiled", (21, 37, 3), np.uint16, dict(photometric="rgb", tile=(16, 16), compression="zlib")),
            ("rgb16_big_endian", (13, 21, 3), np.uint16, dict(photometric="rgb", byteorder=">")),
            ("gray16", (13, 21), np.uint16, dict(photometric="minisblack", compression="lzw", predictor=True)),
            ("tiled", (21, 37, 3), np.uint8, dict(photometric="rgb", tile=(16, 32), compression="lzw")),
            ("planes", (3, 21, 37), np.uint8, dict(photometric="rgb", planarconfig="separate", tile=(16, 16))),
            ("strips", (13, 21, 3), np.uint8, dict(photometric="rgb", rowsperstrip=5, compression="packbits")),
            ("white_is_zero", (13, 21), np.uint8, dict(photometric="miniswhite")),
            ("multiplied_alpha", (13, 21, 4), np.uint8, dict(photometric="rgb", extrasamples=["assocalpha"]))):
        out = io.BytesIO()
        most = 600 if name == "gray16" else np.iinfo(dtype).max
        tifffile.imwrite(out, draw.integers(0, most, shape).astype(dtype), **options)
        add(f"{name}.tif", out.getvalue())


def other_files():
    for mode in ("L", "LA", "RGB", "RGBA", "I;16"):
        save(f"{mode}.jp2", mode, "JPEG2000", irreversible=False)
    save("tiled.j2k", "RGB", "JPEG2000", irreversible=False, tile_size=(16, 16), no_jp2=True)
    for mode, subsampling in (("RGB", "4:4:4"), ("RGBA", "4:2:0"), ("L", "4:2:0")):
        save(f"{mode}.avif", mode, "AVIF", quality=80, subsampling=subsampling)
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()
    save("RGB.heic", "RGB", "HEIF", size=(64, 48), quality=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "../test/image_forms.npz"))
    out = parser.parse_args().out
    for make in (gif_files, bmp_files, tiff_files, other_files):
        make()
    arrays = {}
    for name, data in files.items():
        arrays[f"{name}|file"] = np.frombuffer(data, np.uint8)
        arrays[f"{name}|rgb"] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.savez_compressed(out, **arrays)
    print(f"{out}: {len(files)} files, {os.path.getsize(out)} bytes")


if __name__ == "__main__":
    main()
