"""dev/report_wandb.py with a stand-in for the wandb package: what is sent, in which order, once; and each way it can fail is one line."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import checks
from checks import check as expect

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "report_wandb.py"
FAKE = '''
import json, os
Settings = dict
class Run:
    def __init__(self, arguments): self.write({"init": arguments})
    def write(self, entry):
        with open(os.environ["FAKE_LOG"], "a") as file: file.write(json.dumps(entry) + "\\n")
    def define_metric(self, *names, **more): pass
    def log(self, values):
        if values["step"] == int(os.environ.get("FAKE_DIES_AT", -1)): raise RuntimeError("no\\nnetwork")
        self.write({"log": values})
    def finish(self): self.write({"finish": True})
def init(**arguments): return Run({key: arguments[key] for key in ("project", "name", "id", "resume", "notes", "config")})
'''


class Bench:
    """A run folder, a fake package, and the script running over them."""

    def __init__(self, root, package=FAKE):
        self.folder, self.log = root / "my_run", root / "sent.jsonl"
        self.folder.mkdir()
        (root / "wandb.py").write_text(package)
        self.environment = {**os.environ, "PYTHONPATH": str(root), "FAKE_LOG": str(self.log)}
        (self.folder / "params.txt").write_text("lr                           0.001\nzeroshot-data                a=x y\nzeroshot-data                b=z\n")

    def write(self, *records, mode="a"):
        with open(self.folder / "metrics.jsonl", mode) as file:
            for record in records:
                file.write(record if isinstance(record, str) else json.dumps(record) + "\n")

    def start(self, **more):
        return subprocess.Popen([sys.executable, str(SCRIPT), str(self.folder), "--project", "tests"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**self.environment, **more})

    def sent(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def steps(self):
        return [(entry["log"]["step"], "loss" in entry["log"]) for entry in self.sent() if "log" in entry]

    def wait_for(self, count):
        end = time.time() + 20
        while len(self.steps()) < count and time.time() < end:
            time.sleep(0.05)
        return len(self.steps())


def test_follows_and_resumes(root):
    bench = Bench(root)
    bench.write({"step": 0, "val_loss": 2.0}, {"step": 1, "loss": 3.0, "grad_norm": None})
    process = bench.start()
    expect(bench.wait_for(2) == 2, "what is there at the start is sent")
    bench.write({"step": 2, "loss": 2.5}, {"step": 2, "val_loss": 1.5}, '{"step": 3, "lo')  # a line still being written
    expect(bench.wait_for(4) == 4, "what comes while it runs is sent")
    bench.write('ss": 2.0}\n', "garbage\n", {"no_step": 1})
    _, error = process.communicate(timeout=30)  # closes its input
    expect(process.returncode == 0 and error == "", f"ends well: {process.returncode} {error}")
    expect(bench.steps() == [(0, False), (1, True), (2, True), (2, False), (3, True)], f"all records, once, in order: {bench.steps()}")
    first = bench.sent()
    expect(first[0]["init"]["name"] == "my_run" and first[0]["init"]["project"] == "tests", "named as the folder")
    expect(first[0]["init"]["config"] == {"lr": "0.001", "zeroshot-data": ["a=x y", "b=z"]}, f"settings: {first[0]['init']['config']}")
    expect(first[2]["log"]["grad_norm"] != first[2]["log"]["grad_norm"], "null is NaN")
    expect(first[-1] == {"finish": True}, "finished")
    bench.write({"step": 0, "val_loss": 2.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}, {"step": 2, "val_loss": 1.5}, mode="w")  # resumed from step 2
    process = bench.start()
    bench.write({"step": 3, "loss": 2.0}, {"step": 4, "loss": 1.9}, {"step": 4, "val_loss": 1.4})
    _, error = process.communicate(timeout=30)
    expect(process.returncode == 0, f"ends well again: {error}")
    expect(bench.steps()[5:] == [(4, True), (4, False)], f"nothing is sent twice: {bench.steps()[5:]}")
    second = [entry for entry in bench.sent() if "init" in entry]
    expect(len(second) == 2 and second[0]["init"]["id"] == second[1]["init"]["id"], "the same run goes on")


def test_failures(root, package, what, expected, **more):
    bench = Bench(root, package)
    bench.write({"step": 1, "loss": 3.0}, {"step": 2, "loss": 3.0})
    _, error = bench.start(**more).communicate(timeout=30)
    expect(error.count("\n") == 1 and expected in error, f"{what}: one line: {error!r}")


def main():
    with tempfile.TemporaryDirectory() as folder:
        roots = [pathlib.Path(folder) / str(i) for i in range(4)]
        for root in roots:
            root.mkdir()
        checks.run(test_follows_and_resumes, roots[0])
        checks.run(test_failures, roots[1], "raise ImportError('none')", "no package", "report_wandb.py: the wandb package is not installed; pip install wandb")
        checks.run(test_failures, roots[2], FAKE, "dies on the way", "report_wandb.py: no network", FAKE_DIES_AT="2")
        checks.run(test_failures, roots[3], FAKE + "\ndef init(**a): raise ValueError('not\\nlogged in')", "cannot begin", "report_wandb.py: not logged in")
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
