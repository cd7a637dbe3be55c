#!/usr/bin/env python3
"""What files of a stranger can do to a run: nothing that is read acts, is shown as more than text, or leads to a file outside the run
folder. Each promise of doc/trust.md names its test; those of the first section are here.
"""
import glob
import html.parser
import io
import os
import re
import shutil
import sys
import tarfile

import test_run_resume
from train_runs import IMAGES, SYNTHETIC, check, checkpoint, folder, main, read, refused, run, tree, works, write

EVIL = "\x1b]0;title\x07\x1b[2J\u009b31m\u202egnp\u2066\nforged: line\r<script>alert(1)</script>\"'&"
RAW = b"\x9b31m\xff"  # CSI as one byte; not UTF-8


# ---------------------------------------------------------------- settings of a checkpoint

def test_every_option_that_acts_is_left_out_of_a_strangers_settings():
    """Each option of the table that acts, with the value of a stranger: nothing runs, nothing is written elsewhere, the run says so."""
    works(*SYNTHETIC, "--steps", 6, "--save-steps", 3, "--name", "acts")
    acting = {"val_data": "pipe:touch ran", "zeroshot_data": "x=pipe:touch ran", "save_features": "ran", "feature_cache": "ran", "cache_images": "ran", "print_schedule": "ran",
              "report_to": "wandb", "wandb_project_name": "theirs"}
    with open(os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "clipc/base/option_table.h")) as f:
        listed = "|".join(re.findall(r'^    A\("([^"]*)"', f.read(), re.M)).replace("-", "_").split("|")
    check(sorted(listed) == sorted([*acting, "train_data", "logs", "name"]), f"ACTING_OPTIONS has {listed}, tested are {sorted(acting)}")
    refused("--train-data: in the settings of the run it runs a command", "--resume", test_run_resume.stranger("sent", train_data="pipe:touch ran"))
    state = test_run_resume.stranger("sent", **acting)
    code, _, err = run("--resume", state, "--train-data", "synthetic", "--resume-override", "--name", "sent")
    left_out = re.findall(r"^train_clip: --([a-z-]*): in the settings of the run it .*; that is left out", err, re.M)
    check(code == 0 and sorted(left_out) == sorted(key.replace("_", "-") for key in acting) and err.count("\n") == len(acting), f"exit {code}, left out {left_out}: {err}")
    check(not os.path.exists("ran"), "the settings of a checkpoint acted")


def test_a_strangers_checkpoint_goes_on_in_a_folder_of_its_own():
    """A checkpoint outside of a run folder does not continue the run whose name is in its settings."""
    works(*SYNTHETIC, "--steps", 6, "--save-steps", 3, "--name", "acts")
    mine = {path: state for path, state in tree().items() if path.startswith("./logs/acts")}
    for place in ({}, dict(logs="elsewhere"), dict(name="../ran"), dict(name="acts", logs="logs")):
        works("--resume", test_run_resume.stranger("sent", **place))
    check({path: state for path, state in tree().items() if path.startswith("./logs/acts")} == mine, "the run of this name was changed")
    check(not os.path.exists("elsewhere") and not os.path.exists("ran"), "a folder elsewhere was made")
    os.makedirs("a/checkpoints/b/checkpoints", exist_ok=True)  # the last folder of this name counts
    for end in ("bin", "state"):
        shutil.copy(checkpoint("acts", f"step_3.{end}"), f"a/checkpoints/b/checkpoints/step_3.{end}")
    works("--resume", "a/checkpoints/b/checkpoints/step_3.bin")
    check(os.path.exists("a/checkpoints/b/out.log") and not os.path.exists("a/out.log"), f"went on in {glob.glob('a/**/out.log', recursive=True)}")


def test_links_in_a_strangers_run_folder_are_not_followed():
    """Files of the run that are links to something else: it is not written to, and not read into the report."""
    write("precious", "precious\n")
    options = SYNTHETIC + ["--steps", 6, "--save-steps", 3, "--val-split", 0.2]
    works(*options, "--name", "links")
    for name in ("out.log", "metrics.jsonl"):
        shutil.rmtree(folder("planted"), ignore_errors=True)
        shutil.copytree(folder("links"), folder("planted"))
        os.unlink(f"logs/planted/{name}")
        os.symlink("../../precious", f"logs/planted/{name}")
        refused(f"{name}: cannot open", "--resume", checkpoint("planted", "step_3.bin"), code=1, writes=True)
        check(read("precious") == b"precious\n", f"{name}: written through a link")
    shutil.rmtree(folder("planted"))
    shutil.copytree(folder("links"), folder("planted"))
    for stem in ("step_6", "epoch_1", "best"):
        for end in ("bin", "state"):
            os.path.lexists(checkpoint("planted", f"{stem}.{end}")) and os.unlink(checkpoint("planted", f"{stem}.{end}"))
            os.symlink("../../../precious", checkpoint("planted", f"{stem}.{end}.part"))
    for name in ("params.txt", "report.html", "curves.svg"):
        os.unlink(f"logs/planted/{name}")
        os.symlink("../../precious", f"logs/planted/{name}")
        os.symlink("../../precious", f"logs/planted/{name}.part")
    works("--resume", checkpoint("planted", "step_3.bin"))
    check(read("precious") == b"precious\n", "written through a link")
    check(not any(os.path.islink(path) for path in glob.glob("logs/planted/*") + glob.glob("logs/planted/checkpoints/*.bin")), "a link is left in the place of a file of the run")
    os.unlink("precious")


# ---------------------------------------------------------------- text

def shown(data):
    """What is wrong with bytes that someone looks at; None for nothing."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error}"
    bad = re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]|(?m:^)forged", text)
    return bad and f"{bad.group()!r} in {text[max(0, bad.start() - 40):bad.end() + 40]!r}"


def hostile_csv():
    images = sorted(os.listdir("shapes/images"))[:24]
    rows = ['filepath,title'] + [f'shapes/images/{name},"{EVIL.replace(chr(34), chr(34) * 2)} {i}"' for i, name in enumerate(images)]
    rows += ['"gone' + EVIL.replace('"', '""') + '.png",a caption']
    write("evil.csv", "\n".join(rows).encode() + b"\n" + RAW + b".png,raw\nshapes/images/" + images[0].encode() + b"," + RAW + b"\n")


def test_text_of_others_is_shown_as_text_everywhere():
    """Escape sequences, line breaks, directions and markup in captions, names of files, classes, sets and models: terminal, logs, pages,
    TensorBoard."""
    hostile_csv()
    write("classes.txt", ("".join(f"{EVIL.splitlines()[0]} {i}\n" for i in range(2)) + "third\n").encode() + RAW + b"\n")
    model = "m\x1b[31m\u202e<b>.json"
    write(model, read("words.json"))
    sets = ["--zeroshot-data", "s\x1b[31m\n<i>\u009b=shapes/val.csv", "--classnames", "shapes/classnames.txt"]
    code, out, err = run("--model", model, "--train-data", "evil.csv", "--batch-size", 8, "--epochs", 1, "--val-data", "v\x1b]0;x\x07=evil.csv", *sets, "--report-to", "tensorboard",
                         "--name", "evil\x1b[31m\u202e")
    check(code == 0, f"exit {code}: {err[-500:]!r}")
    path = "logs/evil\x1b[31m\u202e/"
    streams = {"stdout": out.encode(), "stderr": err.encode(), **{name: read(path + name) for name in ("out.log", "metrics.jsonl", "params.txt", "report.html", "curves.svg")}}
    streams["skipped.txt"] = read(path + "skipped.txt").replace(b"\t", b"")
    for name, data in streams.items():
        check(data and not shown(data), f"{name}: {shown(data)}")
    events = read(glob.glob(glob.escape(path) + "events*")[0])
    check(b"\x1b[31m" not in events and b"\x1b]0;" not in events and b"zeroshot_top1/s?[31m <i>?" in events, "TensorBoard: an escape sequence in a name")
    weights = glob.glob(glob.escape(path) + "checkpoints/epoch_1.bin")[0]
    code, out, err = run("--pretrained", weights, "--classnames", "classes.txt", "--classify", "shapes/images/" + sorted(os.listdir("shapes/images"))[0], "gone\x1b[2J.png")
    check(code == 0 and "third" in out and not shown(out.encode()) and not shown(err.encode()), f"--classify: exit {code}, {shown(out.encode())}, {shown(err.encode())}")
    named = ["--model", "small.json"]
    for arguments in (["--train-data", EVIL], ["--model", "x\x1b[31m"], ["--" + EVIL, *named], ["--lr", EVIL, *named], [EVIL, *named]):
        code, out, err = run(*arguments)
        check(code == 2 and err.count("\n") == 1 and not shown(err.encode()), f"{arguments}: exit {code}, {shown(err.encode())}")
    page_runs_nothing(read(path + "report.html").decode())


def test_names_of_tar_members_are_shown_as_text():
    with tarfile.open("evil.tar", "w") as tar:
        image = read("shapes/images/" + sorted(os.listdir("shapes/images"))[0])
        for i in range(12):
            for kind, data in (("png", image if i < 8 else b"broken"), ("txt", b"a caption")):
                info = tarfile.TarInfo(f"{i}{EVIL.replace('/', '-')}.{kind}".replace("0;title", "title"))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    code, out, err = run(*IMAGES[:2], "--train-data", "evil.tar", "--batch-size", 4, "--epochs", 1, "--name", "members")
    skipped = read("logs/members/skipped.txt")
    check(code == 0 and skipped.count(b"\n") == 4 and not shown(skipped.replace(b"\t", b"")), f"skipped.txt: exit {code}, {shown(skipped.replace(b'	', b''))}")
    check(not shown(out.encode()) and not shown(err.encode()), f"{shown(out.encode())}, {shown(err.encode())}")


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.wrong, self.policy = set(), [], None

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            if name.startswith("on") or (name in ("src", "href", "action", "data") and not value.startswith("data:image/png;base64,")):
                self.wrong.append((tag, name, value))
        values = dict(attributes)
        if tag == "meta" and values.get("http-equiv") == "Content-Security-Policy" and not self.policy:
            self.policy = values["content"]

    handle_startendtag = handle_starttag


def page_runs_nothing(text):
    page = Page()
    page.feed(text)
    check(not page.wrong and not page.tags & {"script", "iframe", "object", "embed", "form", "link", "base", "i\u009b"}, f"report.html: {page.wrong}, {page.tags}")
    rules = dict(rule.split(" ", 1) for rule in (page.policy or "x y").split("; "))
    check(rules == {"default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}, f"report.html: the policy is {rules}")
    check(text.index("Content-Security-Policy") < text.index("<title>") and "&lt;script&gt;alert(1)" in text, "report.html: a policy that comes late, or a caption that is not escaped")


if __name__ == "__main__":
    sys.exit(main(globals()))
