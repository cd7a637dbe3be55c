"""TensorBoard's own reader finds in a run's event files what metrics.jsonl holds: each value once, also after a resume in the middle
of the run. Needs the tensorboard package; part of `make parity`.

    python3 dev/test/parity_tensorboard.py [./train_clip]
"""
import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event

import checks
from checks import check as expect

TINY = {"embed_dim": 16, "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}}


def metrics(folder):
    """name → [(step, value as a float32)], null as NaN"""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name != "step":
                value = math.nan if value is None else struct.unpack("f", struct.pack("f", value))[0]
                found.setdefault(name, []).append((record["step"], value))
    return found


def shown(folder):
    """What TensorBoard would draw."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    found = {}
    for name in reader.Tags()["scalars"]:
        found[name] = [(event.step, event.value) for event in reader.Scalars(name)]
    for name in reader.Tags()["tensors"]:  # newer versions turn simple values into tensors
        found[name] = [(event.step, event.tensor_proto.float_val[0]) for event in reader.Tensors(name)]
    return found


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


def compare(folder, what):
    expected, found = metrics(folder), shown(folder)
    expect(set(expected) == set(found), f"{what}: names {set(expected) ^ set(found)}")
    for name, points in expected.items():
        got = found.get(name, [])
        expect([step for step, _ in points] == [step for step, _ in got], f"{what}: steps of {name}: {got}")
        expect(len(points) == len(got) and all(same(a[1], b[1]) for a, b in zip(points, got)), f"{what}: values of {name}: {got} instead of {points}")


def messages_round_trip(folder):
    """Every record is what the protobuf library would have written for it."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length, = struct.unpack_from("<Q", data, at)
            message = data[at + 12:at + 12 + length]
            event = Event.FromString(message)
            expect(Event.FromString(event.SerializeToString()) == event and event.ByteSize() >= length - 2, f"{path.name}: message at {at}")
            at += 16 + length
        expect(at == len(data), f"{path.name}: bytes after the last record")


def main():
    program = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "./train_clip").resolve()
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        (root / "tiny.json").write_text(json.dumps(TINY))
        folder = root / "logs" / "run"
        command = [str(program), "--logs", str(root / "logs"), "--name", "run", "--report-to", "tensorboard"]
        train = ["--model", str(root / "tiny.json"), "--train-data", "synthetic", "--train-num-samples", "48", "--batch-size", "8", "--epochs", "3", "--val-split", "0.2",
                 "--save-steps", "3", "--workers", "1"]
        subprocess.run(command + train, check=True, capture_output=True)
        compare(folder, "a run")
        subprocess.run(command + ["--resume", str(folder / "checkpoints" / "step_3.bin")], check=True, capture_output=True)
        expect(len(list(folder.glob("events.out.tfevents.*"))) == 2, "resuming writes a second file")
        compare(folder, "a resumed run")
        messages_round_trip(folder)
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
