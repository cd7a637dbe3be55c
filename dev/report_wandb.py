#!/usr/bin/env python3
"""Reports a run of clip.c to Weights & Biases: follows RUN_FOLDER/metrics.jsonl as it grows.

train_clip --report-to wandb starts it and holds its standard input open; when that is closed, the run is
over: the rest is sent and the program ends. Started by hand it reports a run that has ended:

    python3 dev/report_wandb.py logs/my_run < /dev/null

Needs the wandb package (pip install wandb); WANDB_MODE=offline keeps everything in the run folder.
RUN_FOLDER/wandb.json holds the run's id and what was sent, so that a resumed run continues in the same place
and nothing is sent twice.
"""
import argparse
import json
import os
import pathlib
import select
import sys
import uuid

POLL_SECONDS = 1.0


class Metrics:
    """Reads metrics.jsonl from where the last call ended; a line that is still being written is left for
    the next."""

    def __init__(self, path):
        self.path, self.offset = path, 0

    def new(self):
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[:data.rfind(b"\n") + 1]
        self.offset += len(whole)
        records = []
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # cut off when the run was killed
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), (int, float)):
                records.append(record)
        return records


class Memory:
    """What earlier processes sent of this run: the last step of each kind of record."""

    def __init__(self, path):
        self.path = path
        try:
            state = json.loads(path.read_text())
            self.id, self.sent = (str(state["id"]),
                                  {str(kind): int(step) for kind, step in state["sent"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.id, self.sent = uuid.uuid4().hex[:12], {}

    @staticmethod
    def kind(record):
        return "step" if "loss" in record else "evaluation"

    def is_new(self, record):
        return record["step"] > self.sent.get(self.kind(record), -1)

    def add(self, record):
        self.sent[self.kind(record)] = record["step"]

    def save(self):
        aside = self.path.with_suffix(".json.part")
        aside.write_text(json.dumps({"id": self.id, "sent": self.sent}) + "\n")
        os.replace(aside, self.path)


def settings(path):
    """params.txt as a dictionary; options that occur more than once have lists."""
    config = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition(" ")
        value = value.strip()
        if name in config:
            config[name] = (config[name] if isinstance(config[name], list) else [config[name]]) + [value]
        elif name:
            config[name] = value
    return config


def run_is_over(seconds):
    """Waits up to `seconds` for the end of standard input."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)


def follow(run, metrics, memory):
    over = False
    while True:
        records = [record for record in metrics.new() if memory.is_new(record)]
        for record in records:
            run.log({name: float("nan") if value is None else value for name, value in record.items()})
            memory.add(record)
        if records:
            memory.save()
        if over:
            return
        over = run_is_over(POLL_SECONDS)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path,
                        help="the run's folder, with metrics.jsonl and params.txt")
    parser.add_argument("--project", default="clip.c", help="name of the project (%(default)s)")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder}: is not a run folder")
    folder = arguments.folder.resolve()
    name = "report_wandb.py"
    try:
        import wandb
    except ImportError:
        sys.exit(f"{name}: the wandb package is not installed; pip install wandb")
    memory, config = Memory(folder / "wandb.json"), settings(folder / "params.txt")
    try:
        run = wandb.init(project=arguments.project, name=folder.name, id=memory.id, resume="allow",
                         dir=str(folder), notes=config.get("wandb-notes"), config=config,
                         settings=wandb.Settings(silent=True, console="off"))
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        memory.save()
        follow(run, Metrics(folder / "metrics.jsonl"), memory)
        run.finish()
    except Exception as error:  # whatever wandb raises: the reason in one line
        reason = " ".join(str(error).split()) or type(error).__name__
        sys.exit(f"{name}: {reason[:300]}")


if __name__ == "__main__":
    main()
