#!/usr/bin/env python3
"""Writes Parquet files of images and captions as WebDataset tars, which clip.c reads.

    python3 dev/data/parquet_to_tar.py DIR-or-FILE... --out shards [--samples-per-shard 10000]
    ./train_clip … --train-data 'shards/{00000..00009}.tar'

The forms of img2dataset (bytes in jpg, caption, status) and of the Hugging Face hub (image: {bytes, path}, text) are found by
their columns; others are named with --image-column and --caption-column. A caption column of lists becomes one caption a line
(--caption-lines). Needs pyarrow. Prints how many rows were found, written and passed over, and why. A tar is whole or absent.
"""
import argparse
import collections
import glob
import io
import os
import sys
import tarfile

IMAGE_COLUMNS = ("image", "jpg", "png", "webp", "jpeg", "image_bytes", "img", "bytes")
CAPTION_COLUMNS = ("text", "caption", "TEXT", "title", "sentence", "captions", "sentences", "txt")
KINDS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tif"), (b"MM\0*", "tif"))


def stop(message):
    print(f"parquet_to_tar.py: {message}", file=sys.stderr)
    sys.exit(2)


def kind_of(data):
    for sign, kind in KINDS:
        if data.startswith(sign):
            return kind
    if data[4:8] == b"ftyp":
        return "avif" if data[8:11] == b"avi" else "heic"
    return "jp2" if data[4:6] == b"jP" else "jpg"


def choose(names, wanted, usual, what, path):
    if wanted:
        if wanted not in names:
            stop(f"{path}: no column {wanted!r} (there are: {', '.join(names)})")
        return wanted
    found = [name for name in usual if name in names]
    if not found:
        stop(f"{path}: no column that is known for the {what} (there are: {', '.join(names)}); name it with --{what}-column")
    return found[0]


def image_bytes(value):
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) and value else None


def caption_text(value):
    if isinstance(value, list):
        value = "\n".join(" ".join(v.split()) for v in value if isinstance(v, str) and v.strip())
    return value if isinstance(value, str) and value.strip() else None


class Shards:
    """Tars of so many samples each; a name appears when its tar is whole."""

    def __init__(self, folder, samples):
        self.folder, self.samples, self.shard, self.written, self.tar = folder, samples, 0, 0, None

    def path(self):
        return os.path.join(self.folder, f"{self.shard:05d}.tar")

    def add(self, image, caption):
        if self.written and self.written % self.samples == 0:
            self.close()
            self.shard += 1
        if not self.tar:
            self.tar = tarfile.open(self.path() + ".part", "w", format=tarfile.USTAR_FORMAT)
        key = f"{self.shard:05d}{self.written % self.samples:05d}"
        for name, data in ((f"{key}.{kind_of(image)}", image), (f"{key}.txt", caption.encode("utf-8", "surrogatepass"))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            self.tar.addfile(member, io.BytesIO(data))
        self.written += 1

    def close(self):
        if self.tar:
            self.tar.close()
            self.tar = None
            os.replace(self.path() + ".part", self.path())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="Parquet files, or folders with them")
    parser.add_argument("--out", required=True, help="folder for the tars, new or empty")
    parser.add_argument("--samples-per-shard", type=int, default=10000)
    parser.add_argument("--image-column")
    parser.add_argument("--caption-column")
    o = parser.parse_args()
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        stop("needs pyarrow; install it with: python3 -m venv .venv && .venv/bin/python3 -m pip install pyarrow, then run .venv/bin/python3 dev/data/parquet_to_tar.py")
    if not 1 <= o.samples_per_shard <= 99999:
        stop("--samples-per-shard: give 1 to 99999")
    files = [f for path in o.inputs for f in (sorted(glob.glob(os.path.join(glob.escape(path), "**", "*.parquet"), recursive=True)) if os.path.isdir(path) else [path])]
    if not files:
        stop(f"{o.inputs[0]}: no .parquet files in it")
    os.makedirs(o.out, exist_ok=True)
    if any(name.endswith(".tar") for name in os.listdir(o.out)):
        stop(f"{o.out}: holds tars already; give another folder")
    shards, found, passed = Shards(o.out, o.samples_per_shard), 0, collections.OrderedDict()
    for path in files:
        try:
            table = parquet.ParquetFile(path)
        except Exception as error:  # pyarrow has many kinds
            stop(f"{path}: cannot be read ({str(error).splitlines()[0]})")
        names = table.schema_arrow.names
        image_column = choose(names, o.image_column, IMAGE_COLUMNS, "image", path)
        caption_column = choose(names, o.caption_column, CAPTION_COLUMNS, "caption", path)
        for batch in table.iter_batches(batch_size=256, columns=[image_column, caption_column]):
            for image, caption in zip(batch.column(0 if batch.schema.names[0] == image_column else 1).to_pylist(), batch.column(batch.schema.names.index(caption_column)).to_pylist()):
                found += 1
                image, caption = image_bytes(image), caption_text(caption)
                reason = "without the bytes of an image (img2dataset: not downloaded)" if image is None else "without caption" if caption is None else None
                if reason:
                    passed.setdefault(reason, [0, f"{path}, row {found}"])[0] += 1
                else:
                    shards.add(image, caption)
    shards.close()
    print(f"{found} rows found, {shards.written} written to {o.out} in {shards.shard + 1 if shards.written else 0} tars, {found - shards.written} passed over")
    for reason, (count, first) in passed.items():
        print(f"  passed over: {count} {reason} (the first: {first})")
    return 0 if shards.written else 2


if __name__ == "__main__":
    sys.exit(main())
