#!/usr/bin/env python3
"""Runs of the real program and what watches them: the best checkpoint, --early-stop, --eval-steps, presets, several validation sets,
TensorBoard files, the companion for wandb, report.html, the line of advice.

  dev/test/test_monitor.py [WORD...]     all of it in a temporary folder, or the parts whose name holds a WORD; BIN= names the folder of train_clip
"""
import base64
import glob
import html.parser
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import checks
from checks import check

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = (ROOT / os.environ.get("BIN", "") / "train_clip").resolve()
SMALL = {"embed_dim": 9, "vision_cfg": {"image_size": 19, "patch_size": 6, "width": 15, "head_width": 5, "layers": 2},
         "text_cfg": {"context_length": 7, "vocab_size": 97, "width": 12, "heads": 3, "layers": 2}}
WORDS = {"embed_dim": 8, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 24, "head_width": 12, "layers": 2},
         "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 1}}
SYNTHETIC = "--model small.json --train-data synthetic --train-num-samples 50 --batch-size 8"
IMAGES = "--model words.json --train-data shapes/train.csv --batch-size 8"
LABELLED = "--zeroshot-data target=shapes/val.csv --zeroshot-data shapes/val.csv --classnames shapes/classnames.txt"


def run(arguments, code=0, **environment):
    """Runs train_clip; its output, after a check of the exit code."""
    env = dict(os.environ, OMP_NUM_THREADS="1", **environment)
    done = subprocess.run([str(PROGRAM), *arguments.split(), "--workers", "1"], capture_output=True, text=True, env=env, timeout=120)
    check(done.returncode == code, f"exit code {done.returncode}, not {code}: {arguments}\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout + done.stderr


def metrics(name):
    return [json.loads(line) for line in open(f"logs/{name}/metrics.jsonl")]


def evaluations(name, metric):
    return [(record["step"], record[metric]) for record in metrics(name) if metric in record]


def same_file(a, b):
    return open(a, "rb").read() == open(b, "rb").read()


def checkpoint(name, stem):
    return f"logs/{name}/checkpoints/{stem}"


def test_best():
    """best.bin is the model of the best evaluation; a resumed run keeps the best so far."""
    run(f"{SYNTHETIC} --name best --val-split 0.2 --epochs 6 --lr 3e-3 --keep-states 0")
    losses = [point for point in evaluations("best", "val_loss") if point[0] > 0]
    best = min(losses, key=lambda point: point[1])[0]
    check(same_file(checkpoint("best", "best.bin"), checkpoint("best", f"epoch_{best // 5}.bin")), f"best is that of step {best}: {losses}")
    run(f"{SYNTHETIC} --name other --val-split 0.2 --epochs 6 --lr 3e-3 --best-metric text_to_image_median_rank")
    ranks = [point for point in evaluations("other", "text_to_image_median_rank") if point[0] > 0]
    best = min(ranks, key=lambda point: point[1])[0]
    check(same_file(checkpoint("other", "best.bin"), checkpoint("other", f"epoch_{best // 5}.bin")), f"best by another metric: {ranks}")
    run(f"{SYNTHETIC} --name none --val-split 0.2 --epochs 2 --best-metric none")
    check(not os.path.exists(checkpoint("none", "best.bin")), "none keeps none")
    before = open(checkpoint("best", "best.bin"), "rb").read()
    run(f"--name best --resume {checkpoint('best', 'epoch_3.bin')}")
    check(open(checkpoint("best", "best.bin"), "rb").read() == before, "the best is the same after a resume")
    run(f"--name best --resume {checkpoint('best', 'best.state')}")  # a pair like any other


def test_early_stop():
    text = run(f"{SYNTHETIC} --name stop --val-split 0.2 --epochs 60 --lr 3e-2 --lr-scheduler const --early-stop 2")
    losses = [loss for _, loss in evaluations("stop", "val_loss")]
    check(len(losses) < 61 and min(losses[-2:]) >= min(losses[:-2]), f"ends after two evaluations without a better one: {losses}")
    running, without = losses[0], 0
    for loss in losses[1:-1]:
        running, without = (loss, 0) if loss < running else (running, without + 1)
        check(without < 2, f"and not before: {losses}")
    check("stopped" in text and "done" in text, "it says so")
    last = len(losses) - 1
    check(os.path.exists(checkpoint("stop", f"epoch_{last}.bin")), "the last state is saved")
    run("--name stop --resume latest")
    check(len(evaluations("stop", "val_loss")) == len(losses), "resumed, it is still at its end")
    run("--name stop --resume latest --early-stop 3")
    check(len(evaluations("stop", "val_loss")) > len(losses), "with more patience it continues")
    run(f"{SYNTHETIC} --name steps --val-split 0.2 --epochs 60 --lr 3e-2 --lr-scheduler const --early-stop 2 --eval-steps 2")
    end = metrics("steps")[-1]["step"]
    check(glob.glob(checkpoint("steps", f"*_{end}.bin")) or end % 5 == 0, f"stopped within an epoch, at step {end}, it is saved")
    check("--early-stop 2" in run(f"{SYNTHETIC} --name x --early-stop 2", code=2), "no validation")


def test_eval_steps():
    """Evaluations and checkpoints by steps and by shares of an epoch, and resuming between them."""
    for every, expected in (("2", [0, 2, 4, 5, 6, 8, 10]), ("50%", [0, 2, 5, 7, 10]), ("40%", [0, 2, 5, 7, 10]), ("20%", list(range(11)))):
        run(f"{SYNTHETIC} --name every --val-split 0.2 --epochs 2 --eval-steps {every} --save-steps {every}")
        steps = [step for step, _ in evaluations("every", "val_loss")]
        check(steps == expected, f"--eval-steps {every}: {steps}")
        saved = sorted(int(re.search(r"step_(\d+)", path)[1]) for path in glob.glob(checkpoint("every", "step_*.bin")))
        check(saved == [step for step in expected if step % 5], f"--save-steps {every}: {saved}")
        whole = [{k: v for k, v in record.items() if "time" not in k and "second" not in k} for record in metrics("every")]
        run(f"--name every --resume {checkpoint('every', f'step_{saved[-1]}.bin')}")
        again = [{k: v for k, v in record.items() if "time" not in k and "second" not in k} for record in metrics("every")]
        check(whole == again, f"--eval-steps {every}: a resumed run records the same")
        subprocess.run(["rm", "-rf", "logs/every"], check=True)


def test_sets():
    """Several validation sets, each under its name."""
    text = run(f"{IMAGES} --name sets --val-data one=shapes/val.csv --val-data shapes/few.csv {LABELLED} --epochs 1 --preset quick --lr 1e-3")
    record = [record for record in metrics("sets") if "val_loss" in record][-1]
    for name in ("val_loss/one", "val_loss", "image_to_text_R@1/one", "mean_recall", "text_to_image_median_rank", "zeroshot_top1/target", "zeroshot_top1"):
        check(name in record, f"{name} is measured")
    check(record["val_loss"] != record["val_loss/one"], "the sets differ")
    check("best.bin, zeroshot_top1/target" in text, "the first zero-shot set is the target")
    check("same name" in run(f"{IMAGES} --name x --val-data shapes/val.csv --val-data shapes/few.csv", code=2), "names are needed to tell sets apart")
    check("--best-metric" in run(f"{IMAGES} --name x --best-metric zeroshot_top1 --val-split 0.1", code=2), "a metric that is not measured")
    check("--best-metric" in run(f"{IMAGES} --name x --best-metric loss --val-split 0.1", code=2), "a metric that no evaluation has")


def test_presets():
    params = open("logs/sets/params.txt").read() if os.path.exists("logs/sets/params.txt") else run(f"{IMAGES} --name sets --preset quick --lr 1e-3 --epochs 1") and ""
    params = params or open("logs/sets/params.txt").read()
    values = dict(line.split(None, 1) for line in params.splitlines())
    for name, value in {"lr": "0.001", "epochs": "1", "batch-size": "8", "wd": "0.1", "grad-clip-norm": "1", "lock-image": "true", "lock-image-unlocked-groups": "2"}.items():
        check(values.get(name) == value, f"--preset quick with options: {name} is {values.get(name)}, not {value}")
    run(f"{SYNTHETIC} --name conservative --preset conservative --epochs 1")
    values = dict(line.split(None, 1) for line in open("logs/conservative/params.txt").read().splitlines())
    for name, value in {"lr": "5e-06", "wd": "0.1", "image-layer-decay": "0.75", "text-layer-decay": "0.75", "ema-decay": "0.999", "lock-text-unlocked-layers": "4"}.items():
        check(values.get(name) == value, f"--preset conservative: {name} is {values.get(name)}, not {value}")
    text = run(f"{SYNTHETIC} --name odd --lr 0.5 --steps 6 --warmup 3")
    note = [line for line in text.splitlines() if "the table of --help strategies" in line]
    check(len(note) == 1 and "1e-3 to 5e-3 (here 0.5)" in note[0] and "(here 50%)" in note[0], f"outside the table: {note}")
    check("the table of --help strategies" not in run(f"{SYNTHETIC} --name even"), "what was not given is not compared")
    for topic in ("full fine-tuning", "1e-5 to 1e-4", "--image-layer-decay 0.75", "cosine-restarts", "overfitting"):
        check(topic in run("--help strategies --help")[:6000], f"--help strategies names {topic}")
    run(f"{SYNTHETIC} --name onecycle --preset production --lr-scheduler one-cycle --epochs 1")


class Page(html.parser.HTMLParser):
    """Checks that elements close as they open, and collects what would be loaded from elsewhere."""
    EMPTY = {"meta", "img", "br", "rect", "line", "path", "circle", "link"}

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.images, self.good = [], [], [], True
        self.feed(text)
        self.good &= not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href"):
                (self.images if value.startswith("data:image/png;base64,") else self.loads).append(value)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            self.good &= bool(self.open) and self.open.pop() == tag


def test_report():
    name = "<b>&co"
    run_arguments = f"{IMAGES} --name {name} --val-data shapes/hostile.csv {LABELLED} --epochs 2"
    run(run_arguments)
    text = open(f"logs/{name}/report.html", encoding="utf-8").read()
    page = Page(text)
    check(page.good, f"elements close as they open, left {page.open}")
    check(page.loads == [], f"nothing is loaded: {page.loads}")
    check(len(page.images) == 12, f"{len(page.images)} images")
    for image in page.images:
        check(base64.b64decode(image.partition(",")[2], validate=True)[:8] == b"\x89PNG\r\n\x1a\n", "a PNG")
    check("<script" not in text and "<h1>&lt;b&gt;&amp;co</h1>" in text, "what a caption or a name holds is text")
    check("prefers-color-scheme:dark" in text and "<svg" in text and "Evaluations" in text, "curves and table, for light and dark")
    check(text.count("<tr><td>") == 3, "a row for each evaluation")
    run(f"{SYNTHETIC} --name bare --epochs 1")
    check(Page(open("logs/bare/report.html").read()).good, "a run without evaluation has a page")
    run(f"{IMAGES} --name labelled {LABELLED} --epochs 1")
    check("classes" in open("logs/labelled/report.html").read(), "labelled images where there are no captioned ones")


def test_report_to():
    package = pathlib.Path("fake")
    package.mkdir(exist_ok=True)
    (package / "wandb.py").write_text("raise ImportError('none')")
    text = run(f"{SYNTHETIC} --name tracked --epochs 2 --report-to tensorboard,wandb", PYTHONPATH=str(package.resolve()))
    check(text.count("wandb package is not installed") == 1 and "done" in text, "without wandb the run goes on, and says it once")
    check(len(glob.glob("logs/tracked/events.out.tfevents.*")) == 1, "an event file")
    (package / "wandb.py").write_text((ROOT / "dev/test/test_report_wandb.py").read_text().partition("FAKE = '''")[2].partition("'''")[0].replace("\\\\", "\\"))
    run(f"{SYNTHETIC} --name told2 --epochs 2 --val-split 0.1 --report-to wandb --wandb-project-name mine", PYTHONPATH=str(package.resolve()), FAKE_LOG="sent.jsonl")
    sent = [json.loads(line) for line in open("sent.jsonl")]
    logged = [entry["log"] for entry in sent if "log" in entry]
    check(sent[0]["init"]["project"] == "mine" and sent[-1] == {"finish": True}, "the companion begins and ends with the run")
    check([entry["step"] for entry in logged] == [record["step"] for record in metrics("told2")], f"every record is sent: {[entry['step'] for entry in logged]}")
    check("--report-to mlflow" in run(f"{SYNTHETIC} --name x --report-to mlflow", code=2), "another place")


def test_advice():
    """A rate that makes the loss explode gets its line, in the log and on the page; a sane run gets none."""
    text = run(f"{SYNTHETIC} --name wild --val-split 0.2 --epochs 8 --lr 3 --warmup 0 --lr-scheduler const")
    check(re.search(r"^advice       rate too high: .*--lr", text, re.M), "a rate too high")
    check("rate too high:</b>" in open("logs/wild/report.html").read(), "and on the page")
    check("\nadvice" not in run(f"{IMAGES} --name sane --val-data shapes/val.csv {LABELLED} --epochs 2 --lr 1e-3"), "nothing to say")


def test_a_run_that_has_died_says_so():
    """Without validation, whatever is logged; best is not a dead model without a word; pairs that teach nothing are named."""
    kill = f"{SYNTHETIC} --steps 90 --lr 3 --warmup 0 --lr-scheduler const --log-every-n-steps 80"
    text = run(f"{kill} --name dead")
    check(len(re.findall(r"^advice       rate too high: the training loss has been", text, re.M)) == 1, f"no validation: {text}")
    check("rate too high:</b> the training loss has been" in open("logs/dead/report.html").read(), "the page")
    text = run(f"{kill} --name best_dead --val-split 0.2 --eval-steps 60")
    check(re.search(r"^note         best, after step \d+, is a model that has died", text, re.M), f"best: {text}")
    check("\nadvice" not in run(f"{SYNTHETIC} --name alive --steps 90 --lr 1e-3"), "a run that learns")
    lines = open("shapes/train.csv").read().splitlines()
    separator = "\t" if "\t" in lines[0] else ","
    path, title = (lines[0].split(separator).index(column) for column in ("filepath", "title"))
    for name, column in (("caption", title), ("image", path)):
        rows = [line.split(separator) for line in lines[:17]]
        for row in rows[1:]:
            row[column] = rows[1][column]
        pathlib.Path(f"shapes/equal_{name}.csv").write_text("\n".join(map(separator.join, rows)) + "\n")
        text = run(f"--model words.json --train-data shapes/equal_{name}.csv --batch-size 8 --steps 2 --name equal_{name}")
        check(re.search(rf"^note         all pairs .*same {name}.*nothing is learned", text, re.M), f"equal {name}s: {text}")
    check("a step has one pair" in run("--model small.json --train-data synthetic --train-num-samples 50 --batch-size 1 --steps 2 --name one"), "a batch of one")


def make_data():
    subprocess.run([sys.executable, str(ROOT / "dev/data/make_shapes.py"), "--out", "shapes", "--count", "64"], check=True, capture_output=True)
    rows = open("shapes/val.csv").read().splitlines()
    pathlib.Path("shapes/few.csv").write_text("\n".join(rows[:6]) + "\n")
    rows = open("shapes/train.csv").read().splitlines()
    head, separator = rows[0], "\t" if "\t" in rows[0] else ","
    title = head.split(separator).index("title")
    for i in range(1, 6):
        cells = rows[i].split(separator)
        cells[title] = ("<script>alert(1)</script>", "a & b < c", "ü 日本 🙂 caption", "\"quoted\"".replace('"', '""').join('""'), "x" * 700)[i - 1]
        rows[i] = separator.join(cells)
    pathlib.Path("shapes/hostile.csv").write_text("\n".join(rows[:33]) + "\n")
    for name, config in (("small", SMALL), ("words", WORDS)):
        pathlib.Path(f"{name}.json").write_text(json.dumps(config))


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_data()
        for test in checks.tests_of(globals()):
            checks.run(test)
        os.chdir("/")
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
