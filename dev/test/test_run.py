#!/usr/bin/env python3
"""Runs of the real program: resume after kills and Ctrl-C, the same bits for any number of threads, wrong usage, bad input, a full disk.

  dev/test/test_run.py [WORD...]     all of it in a temporary folder, or the parts whose name holds a WORD; BIN= names the folder of train_clip
"""
import glob
import io
import json
import os
import random
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.join(ROOT, os.environ.get("BIN", ""), "train_clip")
LIMIT = 120  # seconds that no run takes
KILLS = int(os.environ.get("KILLS", 20))

# Sizes that are no multiple of anything. SMALL has no tokenizer, so it trains on synthetic pairs alone.
SMALL = {"embed_dim": 9, "vision_cfg": {"image_size": 19, "patch_size": 6, "width": 15, "head_width": 5, "layers": 2},
         "text_cfg": {"context_length": 7, "vocab_size": 97, "width": 12, "heads": 3, "layers": 2}}
WORDS = {"embed_dim": 8, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 24, "head_width": 12, "layers": 2},
         "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 1}}
SYNTHETIC = ["--model", "small.json", "--train-data", "synthetic", "--train-num-samples", 50, "--batch-size", 8]
PICTURES = ["--model", "words.json", "--train-data", "shapes/train.csv", "--batch-size", 8]
LABELLED = ["--zeroshot-data", "shapes/val.csv", "--classnames", "shapes/classnames.txt"]

passed = failed = 0


def check(condition, what):
    global passed, failed
    if condition:
        passed += 1
    else:
        failed += 1
        print(f"FAILED {what}", flush=True)
    return condition


# ---------------------------------------------------------------- starting the program

def environment(threads=1, isa=None):
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="passive", OMP_DYNAMIC="false")
    env.pop("CLIPC_ISA", None)
    if isa:
        env["CLIPC_ISA"] = isa
    return env


def start(*arguments, threads=1, isa=None, **more):
    return subprocess.Popen([PROGRAM, *map(str, arguments)], env=environment(threads, isa), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", **more)


def finish(process):
    """-> exit code (negative: a signal), stdout, stderr"""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err += "timed out\n"
    return process.returncode, out, err


def run(*arguments, **how):
    return finish(start(*arguments, **how))


def works(*arguments, **how):
    """Ends with 0 and without a word on stderr (`says`: one line that holds it); -> stdout"""
    says = how.pop("says", None)
    code, out, err = run(*arguments, **how)
    lines = err.splitlines()
    right = code == 0 and (len(lines) == 1 and says in err and err.startswith("train_clip: ") if says else not err)
    check(right, f"{shown(arguments)}: exit {code}, stderr {err[-600:]!r}" + (f", should say {says!r}" if says else ""))
    return out


def shown(arguments):
    return "train_clip " + " ".join(map(str, arguments))


def tree():
    """All files with size and time of change: what a refused command must leave alone."""
    found = {}
    for folder, _, files in os.walk("."):
        found[folder] = None
        for name in files:
            path = os.path.join(folder, name)
            state = os.lstat(path)
            found[path] = (state.st_size, state.st_mtime_ns)
    return found


def refused(says, *arguments, code=2, writes=False, **how):
    """Ends with `code` and one line on stderr that begins with the program's name and holds `says`; nothing written."""
    before = tree()
    got, out, err = run(*arguments, **how)
    one = err.startswith("train_clip: ") and err.count("\n") == 1 and err.endswith("\n")
    check(got == code and one and says in err, f"{shown(arguments)}: exit {got} instead of {code}, stderr {err[-600:]!r} should say {says!r}")
    if not writes:
        check(tree() == before, f"{shown(arguments)}: wrote {sorted(set(tree()) ^ set(before)) or 'into a file'}")
    return err


# ---------------------------------------------------------------- what a run leaves

def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "w" if isinstance(data, str) else "wb") as f:
        f.write(data)
    return path


def folder(name):
    return f"logs/{name}"


def checkpoint(name, stem):
    return f"logs/{name}/checkpoints/{stem}"


def stems(name):
    return sorted(f[:-4] for f in os.listdir(checkpoint(name, "")) if f.endswith(".bin") and not f.endswith("_ema.bin"))


def records(name):
    with open(f"logs/{name}/metrics.jsonl") as f:
        return [json.loads(line) for line in f]


def curve(name):
    """What of the records is a function of the settings: all but times."""
    timed = ("samples_per_second", "data_time", "batch_time")
    return [{key: value for key, value in r.items() if key not in timed} for r in records(name)]


def header_bytes(data):
    """Of a state file: its header ends with the bytes of settings, the count of tensors, the count of numbers."""
    for end in range(64, 256, 8):
        settings, _, floats = struct.unpack_from("<3q", data, end - 24)
        if end + settings + 4 * floats == len(data):
            return end, settings
    raise ValueError("no training state")


def moments(path):
    """Steps done, and the numbers (m, v, moving average) of a state file."""
    data = read(path)
    return struct.unpack_from("<q", data, 16)[0], data[sum(header_bytes(data)):]


def newest(name):
    return max(stems(name), key=lambda stem: (moments(checkpoint(name, stem + ".state"))[0], stem))


def expect_same(one, other, what, log=True):
    """Two runs ended with the same weights and optimizer state, and wrote the same records."""
    last, its = newest(one), newest(other)
    check(read(checkpoint(one, last + ".bin")) == read(checkpoint(other, its + ".bin")), f"{what}: weights differ ({last}, {its})")
    check(moments(checkpoint(one, last + ".state")) == moments(checkpoint(other, its + ".state")), f"{what}: steps or optimizer states differ ({last}, {its})")
    if os.path.exists(checkpoint(one, last + "_ema.bin")):
        check(read(checkpoint(one, last + "_ema.bin")) == read(checkpoint(other, its + "_ema.bin")), f"{what}: moving averages differ ({last}, {its})")
    check(not glob.glob(checkpoint(other, "*.part")), f"{what}: left {glob.glob(checkpoint(other, '*.part'))}")
    if log:
        a, b = curve(one), curve(other)
        check(a == b, f"{what}: {len(b)} records instead of {len(a)}, the first that differs: {next((p for p in zip(a, b) if p[0] != p[1]), None)}")


def lines_in(path):
    try:
        return read(path).count(b"\n")
    except FileNotFoundError:
        return 0


def wait_for(process, ready):
    """Until ready() or the process has ended; True: it still runs."""
    end = time.monotonic() + LIMIT
    while process.poll() is None and not ready() and time.monotonic() < end:
        time.sleep(0.0005)
    return process.poll() is None


# ---------------------------------------------------------------- resume

def test_kill_anywhere():
    """SIGKILL at KILLS (20) random moments, some while a checkpoint is being written; on with other threads and workers each time."""
    options = PICTURES + LABELLED + ["--epochs", 4, "--save-steps", 2, "--val-split", 0.1, "--save-most-recent", "--accum-freq", 2, "--grad-clip-norm", 0.7,
                                     "--aug-cfg", "scale=0.5,1.0", "color_jitter=0.3,0.3,0.3,0.1", "color_jitter_prob=0.8", "gray_scale_prob=0.2"]
    works(*options, "--name", "whole", "--workers", 1)
    draw = random.Random(7)
    kills = in_saving = 0
    code = None
    while code is None and kills < 10 * KILLS:
        begun = bool(glob.glob(checkpoint("killed", "*.state")))
        if not begun:
            shutil.rmtree(folder("killed"), ignore_errors=True)
        how = dict(threads=draw.choice([1, 2, 3]))
        workers = draw.choice([1, 2, 3])
        process = start(*(["--resume", "latest", "--name", "killed"] if begun else options + ["--name", "killed"]), "--workers", workers, **how)
        if kills < KILLS:
            lines = lines_in("logs/killed/metrics.jsonl") + draw.choice([0, 1, 2, 3])
            part = draw.choice(["*.bin.part", "*.state.part"]) if draw.random() < 0.5 else None
            alive = wait_for(process, lambda: lines_in("logs/killed/metrics.jsonl") > lines)
            if alive and part:
                alive = wait_for(process, lambda: glob.glob(checkpoint("killed", part)))
            else:
                time.sleep(draw.random() * 0.01)
            if alive:
                process.kill()
        ended, _, err = finish(process)
        in_saving += bool(glob.glob(checkpoint("killed", "*.part"))) and ended == -signal.SIGKILL
        kills += ended == -signal.SIGKILL
        if ended != -signal.SIGKILL:
            check(ended == 0 and not err, f"resumed after {kills} kills: exit {ended}, {err[-300:]!r}")
            if ended or kills >= KILLS:
                code = ended
            else:  # done too early: once more from the beginning
                expect_same("whole", "killed", f"after {kills} kills")
                shutil.rmtree(folder("killed"))
    check(code == 0 and kills >= KILLS, f"{kills} kills, then exit {code}")
    check(in_saving > 0, f"none of {kills} kills fell into the writing of a checkpoint")
    expect_same("whole", "killed", f"after {kills} kills, {in_saving} of them while a checkpoint was written")


def test_files_that_a_kill_leaves():
    """Every state of the folder between the writes of one checkpoint: the last whole pair is found."""
    works(*SYNTHETIC, "--steps", 9, "--save-steps", 3, "--save-most-recent", "--name", "pairs")

    def resumes(step, what, change):
        shutil.rmtree(folder("torn"), ignore_errors=True)
        shutil.copytree(folder("pairs"), folder("torn"))
        for stem in ("step_9", "latest"):
            for end in (".bin", ".state"):
                os.unlink(checkpoint("torn", stem + end))
        change(checkpoint("torn", ""))
        out = works("--resume", "latest", "--name", "torn", says="is damaged" if "damaged" in what else None)
        check(f" after step {step}\n" in out, f"{what}: {[line for line in out.splitlines() if 'resumed' in line]} instead of step {step}")
        expect_same("pairs", "torn", what)

    def part(data):
        return data[:len(data) // 2]

    epoch, weights, state = (checkpoint("pairs", s) for s in ("epoch_1", "step_9.bin", "step_9.state"))
    resumes(6, "only whole pairs", lambda to: None)
    resumes(6, "half of the weights", lambda to: write(to + "step_9.bin.part", part(read(weights))))
    resumes(6, "the weights, no state", lambda to: write(to + "step_9.bin.part", read(weights)))
    resumes(6, "half of the state", lambda to: (write(to + "step_9.bin.part", read(weights)), write(to + "step_9.state.part", part(read(state)))))
    resumes(6, "both aside", lambda to: (write(to + "step_9.bin.part", read(weights)), write(to + "step_9.state.part", read(state))))
    resumes(9, "weights renamed, state aside", lambda to: (write(to + "step_9.bin", read(weights)), write(to + "step_9.state.part", read(state))))
    resumes(6, "weights without state", lambda to: write(to + "step_9.bin", read(weights)))
    resumes(6, "state without weights", lambda to: write(to + "step_9.state", read(state)))
    resumes(9, "latest renewed by half", lambda to: (write(to + "latest.bin", read(weights)), write(to + "latest.state", read(checkpoint("pairs", "step_3.state"))),
                                                     write(to + "latest.state.part", read(state))))
    resumes(6, "a damaged newest pair, cut off", lambda to: (write(to + "step_9.bin", part(read(weights))), write(to + "step_9.state", read(state))))
    flipped = bytearray(read(weights))
    flipped[-7001] ^= 0xff
    resumes(6, "a damaged newest pair, one byte", lambda to: (write(to + "step_9.bin", bytes(flipped)), write(to + "step_9.state", read(state))))
    check(not os.path.exists(epoch + ".part"), "a part left in a whole run")


def test_interrupt():
    """Ctrl-C finishes the step, saves, says how to resume, exits 130; what it says works."""
    for number, options, name in ((signal.SIGINT, PICTURES + ["--epochs", 4], "int"),
                                  (signal.SIGTERM, PICTURES + ["--epochs", 3, "--lock-image", "--no-shuffle", "--delete-previous-checkpoint", "--log-every-n-steps", 3], "term")):
        works(*options, "--name", name + "_whole")
        process = start(*options, "--name", name)
        if check(wait_for(process, lambda: lines_in(f"logs/{name}/metrics.jsonl") > 1), f"{name}: ended before it was interrupted"):
            process.send_signal(number)
        code, out, err = finish(process)
        check(code == 130 and not err, f"{name}: exit {code}, {err[-300:]!r}")
        last = out.splitlines()[-1]
        words = shlex.split(last.partition("go on with: ")[2])
        if not check(last.startswith("interrupted after step ") and words[1:2] == ["--resume"], f"{name}: the last line is {last!r}"):
            continue
        step = int(last.split()[3].rstrip(";"))
        check(moments(words[2][:-4] + ".state")[0] == step, f"{name}: {words[2]} is not of step {step}")
        works(*words[1:], threads=2)
        if "--delete-previous-checkpoint" in options:
            check(len(stems(name)) == 1, f"only the newest checkpoint should be left: {stems(name)}")
        expect_same(name + "_whole", name, f"resumed after signal {number}")


def test_interrupted_evaluation():
    """Ctrl-C in the evaluation at the beginning, behind an epoch, behind the last: what was missed is made up for."""
    options = ["--model", "words.json", "--train-data", "shapes/train.csv", "--batch-size", 20, "--epochs", 2, "--val-data", "shapes/val.csv", "--save-features",
               "features.safetensors", *LABELLED, "--templates", "many.txt"]
    write("many.txt", "".join(f"a photo of a {{}}, number {i}\n" for i in range(200)))
    works(*options, "--name", "evaluated_whole")
    features = read("features.safetensors")
    for step in (0, 2, 4):
        name = f"evaluated{step}"
        os.unlink("features.safetensors")
        process = start(*options, "--name", name)
        line = f"\nstep {step}/4 " if step else "\nrun folder "
        wait_for(process, lambda: os.path.exists(f"logs/{name}/out.log") and line in read(f"logs/{name}/out.log").decode())
        time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        code, out, err = finish(process)
        check(code == 130 and not err and f"\ninterrupted after step {step};" in out, f"{name}: exit {code}, {out[-200:]!r}, {err[-300:]!r}")
        works(*shlex.split(out.splitlines()[-1].partition("go on with: ")[2])[1:])
        expect_same("evaluated_whole", name, f"interrupted in the evaluation after step {step}")
        check(read("features.safetensors") == features, f"interrupted in the evaluation after step {step}: features differ")
        works("--resume", "latest", "--name", name)
        expect_same("evaluated_whole", name, f"interrupted in the evaluation after step {step}, resumed when all was done")


def test_second_interrupt_kills():
    process = start(*SYNTHETIC, "--steps", 1000000, "--name", "twice")
    wait_for(process, lambda: lines_in("logs/twice/metrics.jsonl") > 3)
    process.send_signal(signal.SIGSTOP)  # both are there before the program looks
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    code, _, _ = finish(process)
    check(code in (130, -signal.SIGINT), f"Ctrl-C twice: exit {code}")


def test_resume_kinds():
    """From each file of a pair, from latest, with the command line as before, after the end, moved folders."""
    works(*SYNTHETIC, "--epochs", 3, "--save-steps", 4, "--save-most-recent", "--name", "kinds")
    check(stems("kinds") == ["epoch_1", "epoch_2", "epoch_3", "latest", "step_16", "step_4", "step_8"], f"checkpoints: {stems('kinds')}")

    def again(what, *arguments, **how):
        shutil.rmtree(folder("again"), ignore_errors=True)
        shutil.copytree(folder("kinds"), folder("again"))
        out = works(*arguments, **how)
        expect_same("kinds", "again", what)
        return out

    again("by .bin", "--resume", checkpoint("again", "step_4.bin"))
    again("by .state", "--resume", checkpoint("again", "epoch_2.state"), threads=3)
    again("by latest.bin", "--resume", checkpoint("again", "latest.bin"))
    again("with the command line of the run", *SYNTHETIC, "--epochs", 3, "--save-steps", 4, "--save-most-recent", "--name", "again", "--resume", checkpoint("again", "step_8.bin"))
    out = again("finished already", "--resume", "latest", "--name", "again")
    check("done " in out and "step 18/18" not in out, f"a finished run: {out[-300:]!r}")
    # in another place
    shutil.rmtree("moved", ignore_errors=True)
    shutil.copytree("logs/kinds", "moved/here")
    works("--resume", "moved/here/checkpoints/step_4.state")
    check(read("moved/here/checkpoints/epoch_3.bin") == read(checkpoint("kinds", "epoch_3.bin")), "a moved folder: weights differ")
    works("--resume", "checkpoints/step_16.bin", cwd="moved/here")
    works("--resume", "step_16.bin", cwd="moved/here/checkpoints")
    check(os.listdir("moved") == ["here"] and not os.path.exists("moved/here/logs"), f"resumed from within: {os.listdir('moved')}, {os.listdir('moved/here')}")


def test_resume_variants():
    """Each option that has a state of its own: stopped in the middle, resumed, equal."""
    variants = {"accum": ["--accum-freq", 3, "--steps", 7, "--save-steps", 3], "log3": ["--log-every-n-steps", 3, "--epochs", 2, "--save-steps", 5],
                "locked": ["--lock-image", "--lock-image-unlocked-groups", 1, "--lock-text", "--steps", 9, "--save-steps", 4],
                "linear": ["--lr-scheduler", "linear", "--warmup", 3, "--min-lr-ratio", 0.1, "--steps", 9, "--save-steps", 4], "odd": ["--steps", 15, "--save-frequency", 2],
                "split": ["--val-split", 0.2, "--seed", 3, "--epochs", 2, "--save-frequency", 0, "--save-steps", 3], "large": ["--batch-size", 64, "--epochs", 6, "--save-frequency", 4],
                "ema": ["--ema-decay", 0.8, "--steps", 9, "--save-steps", 4], "rates": ["--image-layer-decay", 0.7, "--lr-text", 1e-3, "--grad-checkpointing", "--steps", 7, "--save-steps", 3],
                "cycle": ["--lr-scheduler", "one-cycle", "--cycle-momentum", "--steps", 9, "--save-steps", 4], "auto": ["--lr", "auto", "--steps", 7, "--save-steps", 3],
                "resampled": ["--dataset-resampled", "--epochs", 2, "--save-steps", 4], "average": ["--ema-decay", 0.5, "--delete-previous-checkpoint", "--steps", 9, "--save-steps", 4]}
    for name, options in variants.items():
        says = "the batch shrinks" if name == "large" else None
        given = [o for o in SYNTHETIC if name != "large" or o not in ("--batch-size", 8)]
        works(*given, *options, "--name", name, says=says)
        if name == "average":
            check(sorted(os.listdir(checkpoint(name, ""))) == ["step_9.bin", "step_9.state", "step_9_ema.bin"], f"the newest checkpoint alone: {os.listdir(checkpoint(name, ''))}")
            continue
        first = min((stem for stem in stems(name) if stem != "latest"), key=lambda stem: moments(checkpoint(name, stem + ".state"))[0])
        shutil.copytree(folder(name), folder(name + "_again"))
        works("--resume", checkpoint(name + "_again", first + ".bin"), threads=2, says=says)
        expect_same(name, name + "_again", name)
        if name == "large":  # the same command line again, whose batch is too large
            shutil.rmtree(folder(name + "_again"))
            shutil.copytree(folder(name), folder(name + "_again"))
            works(*given, *options, "--name", name + "_again", "--resume", checkpoint(name + "_again", first + ".bin"), says=says)
            expect_same(name, name + "_again", name)


def test_resume_on_other_data():
    """Samples that came or went since the run began: one line says so, and the run goes on."""
    lines = read("shapes/train.csv").decode().splitlines()
    write("shapes/changing.csv", "\n".join(lines[:31]) + "\n")
    train = ["--model", "words.json", "--train-data", "shapes/changing.csv", "--batch-size", 8, "--epochs", 3, "--save-steps", 5]
    works(*train, "--name", "grows")
    shutil.copytree(folder("grows"), folder("shrinks"))
    works("--resume", checkpoint("grows", "step_5.bin"))  # the same data: not a word
    for name, kept in (("grows", 41), ("shrinks", 20)):
        write("shapes/changing.csv", "\n".join(lines[:kept]) + "\n")
        works("--resume", checkpoint(name, "step_5.bin"), says=f"the run was begun on 30 samples, there are {kept - 1} now")
    os.unlink("shapes/changing.csv")


def test_resume_refusals():
    works(*SYNTHETIC, "--steps", 8, "--save-steps", 3, "--name", "run")
    works(*SYNTHETIC, "--steps", 8, "--save-steps", 3, "--seed", 5, "--name", "seed5")
    pair = checkpoint("run", "step_3.bin")
    for option, value, old in (("--lr", 1e-3, "0.0005"), ("--seed", 1, "0"), ("--batch-size", 4, "8"), ("--wd", 0, "0.2"), ("--steps", 9, "8"), ("--warmup", "0%", "10%"),
                               ("--accum-freq", 2, "1"), ("--aug-cfg", "none", None), ("--grad-clip-norm", 1, "0"), ("--lr-scheduler", "const", "cosine"), ("--no-shuffle", None, None),
                               ("--lock-image", None, None)):
        given = [option] + ([value] if value is not None else [])
        refused(f"{option}", "--resume", pair, *given)
        if old:
            refused(f"the run was started with {old};", "--resume", pair, *given)
    works("--resume", pair, "--lr", 1e-3, "--resume-override")
    check(records("run")[-1]["loss"] != records("seed5")[-1]["loss"] and records("run")[3]["lr"] > 5e-4, "--resume-override --lr does not count")
    works("--resume", pair, "--workers", 2, "--log-every-n-steps", 2)
    # pairs that are none
    shutil.copytree(folder("run"), folder("mixed"))
    shutil.copy(checkpoint("seed5", "step_3.bin"), checkpoint("mixed", "step_3.bin"))
    refused("is not the state of", "--resume", checkpoint("mixed", "step_3.bin"))
    refused("is not the state of", "--resume", checkpoint("mixed", "step_3.state"))
    for stem in stems("mixed"):
        if stem != "step_3":
            os.unlink(checkpoint("mixed", stem + ".state"))
            refused(stem + ".state: cannot be opened", "--resume", checkpoint("mixed", stem + ".bin"))
    os.unlink(checkpoint("mixed", "step_3.bin"))
    refused("no whole checkpoint", "--resume", "latest", "--name", "mixed")
    refused("which run? give its --name", "--resume", "latest")
    refused("is no run", "--resume", "latest", "--name", "never")
    refused("give a .bin or .state file", "--resume", "logs/run/params.txt")
    refused("cannot be opened", "--resume", "nothing.bin")
    # states that are cut off or altered
    state, weights = read(checkpoint("run", "step_3.state")), read(pair)
    write("x.bin", weights)
    header = header_bytes(state)[0]
    for length in [0, 1, header - 1, header, header + 1, 200, len(state) // 2, len(state) - 1]:
        write("x.state", state[:length])
        refused("x.state: ", "--resume", "x.bin")
    write("x.state", state + b"x")
    refused("is not complete", "--resume", "x.bin")
    for at in range(0, header, 4):
        for value in (-1, 0x7fffffff, 0):
            altered = bytearray(state)
            struct.pack_into("<i", altered, at, value)
            write("x.state", altered)
            code, _, err = run("--resume", "x.bin", "--name", "altered")
            check(code in (0, 2) and err.count("\n") <= 1, f"state header at byte {at} = {value}: exit {code}, {err[-300:]!r}")
            shutil.rmtree(folder("altered"), ignore_errors=True)
    altered = bytearray(state)
    altered[-4:] = struct.pack("<f", float("nan"))
    write("x.state", altered)
    refused("is not finite", "--resume", "x.bin", "--name", "altered", writes=True)
    for name in ("x.bin", "x.state"):
        os.unlink(name)


def test_other_kernels():
    """A run that goes on with other kernels says so, once."""
    works(*SYNTHETIC, "--steps", 6, "--save-steps", 3, "--name", "isa", isa="portable")
    works("--resume", checkpoint("isa", "step_3.bin"), isa="portable")
    code, out, err = run(*SYNTHETIC, "--steps", 1, "--name", "isa_best")
    best = next((line.split()[1] for line in out.splitlines() if line.startswith("kernels")), "")
    if best != "portable":
        works("--resume", checkpoint("isa", "step_3.bin"), isa=best, says="was computed with portable kernels, now with")
    refused("this processor runs", *SYNTHETIC, "--name", "isa_none", isa="mmx")


# ---------------------------------------------------------------- same seed, same bits

def test_same_bits():
    for base, options in (("synthetic", SYNTHETIC + ["--steps", 12]), ("pictures", PICTURES + ["--steps", 9, "--val-split", 0.2, "--accum-freq", 2])):
        runs = []
        for threads, workers in ((1, 1), (2, 3), (3, 1)):
            runs.append(f"{base}_{threads}_{workers}")
            works(*options, "--name", runs[-1], "--workers", workers, threads=threads)
            expect_same(runs[0], runs[-1], f"{base}: {threads} threads, {workers} workers")
        works(*options, "--name", base + "_seed", "--seed", 1)
        last = stems(runs[0])[-1] + ".bin"
        check(read(checkpoint(runs[0], last)) != read(checkpoint(base + "_seed", last)), f"{base}: another seed gives the same weights")


# ---------------------------------------------------------------- wrong usage

def test_usage():
    refused("no model; give", )
    refused("does not belong to an option", "shapes/train.csv")
    refused("--train-data shapes", "shapes")
    refused("did you mean --epochs?", "--epoch", 3)
    refused("did you mean --batch-size?", "--batchsize", 3)
    for option, value in (("--lr", "fast"), ("--lr", "nan"), ("--lr", "-1"), ("--lr", "1e-5x"), ("--batch-size", "0"), ("--batch-size", "2.5"), ("--batch-size", "1e30"), ("--epochs", "-3"),
                          ("--epochs", "9999999999999999999999"), ("--steps", "0"), ("--seed", "-1"), ("--warmup", "101%"), ("--warmup", "x%"), ("--beta2", "1"), ("--eps", "0"),
                          ("--workers", "0"), ("--workers", "100000"), ("--lr-scheduler", "cosin"), ("--precision", "fp8"), ("--val-split", "1"), ("--image-mean", "0.5"),
                          ("--image-std", "0"), ("--csv-separator", "ab"), ("--log-every-n-steps", "0"), ("--accum-freq", "0"), ("--dataset-type", "parquet")):
        refused(f"{option} {value}", *SYNTHETIC, f"{option}={value}") if option not in SYNTHETIC else refused(f"{option} {value}", "--model", "small.json", f"{option}={value}")
    refused("needs a value", *SYNTHETIC, "--name")
    refused("is given twice", *SYNTHETIC, "--batch-size", 4)
    refused("takes no value", *SYNTHETIC, "--lock-image=yes")
    refused("--siglip", *SYNTHETIC, "--siglip")
    refused("no data; give --train-data", "--model", "small.json")
    refused("no such model", "--model", "ViT-B-23", "--train-data", "synthetic")
    refused("did you mean ViT-B-32?", "--model", "ViT-B-3", "--train-data", "synthetic")
    refused("no such file", "--pretrained", "nothing.bin", "--train-data", "synthetic")
    refused("dev/convert.py --model ViT-B-32 --pretrained openai -o", "--model", "ViT-B-32", "--pretrained", "openai", "--train-data", "synthetic")
    refused("no such file or folder", *PICTURES[:2], "--train-data", "nothing.csv")
    refused("no such shard", *PICTURES[:2], "--train-data", "shapes/{000..003}.tar")
    refused("--aug-cfg", *SYNTHETIC, "--aug-cfg", "scale=2")
    refused("--val-data and --val-split", *SYNTHETIC, "--val-split", 0.5, "--val-data", "synthetic")
    refused("--warmup 20: the run has 10 steps", *SYNTHETIC, "--steps", 10, "--warmup", 20)
    refused("--warmup 20: the run has 6 steps", *SYNTHETIC, "--epochs", 1, "--warmup", 20)
    refused("--val-split 0.001", *SYNTHETIC, "--val-split", 0.001)
    refused("--val-split 0.99", *SYNTHETIC, "--val-split", 0.99)
    refused("has no tokenizer", "--model", "small.json", "--train-data", "shapes/train.csv", "--batch-size", 8)
    refused("--save-features", "--model", "words.json", *LABELLED, "--save-features", "f.safetensors", "--eval-only")
    works(*SYNTHETIC, "--steps", 1, "--name", "exists")
    refused("logs/exists: exists already", *SYNTHETIC, "--steps", 1, "--name", "exists")
    write("plain_file", "x")
    refused("plain_file", *SYNTHETIC, "--logs", "plain_file", code=1)
    refused("/dev/null", *SYNTHETIC, "--logs", "/dev/null/x", code=1)
    refused("/proc/", *SYNTHETIC, "--logs", "/proc/no_such_place", code=1)
    out = works("--help")
    check(out.count("\n") > 60 and "--train-data PATH" in out and all(len(line) <= 150 for line in out.splitlines()), "--help is no help")


def test_edges():
    """Small and odd, yet right."""
    works(*SYNTHETIC, "--steps", 1, "--name", "one_step")
    check(stems("one_step") == ["step_1"], f"--steps 1: {stems('one_step')}")
    works(*SYNTHETIC, "--epochs", 1, "--warmup", "100%", "--name", "all_warmup")
    rates = [r["lr"] for r in records("all_warmup")]
    check(len(rates) == 6 and all(abs(r - 5e-4 * (i + 1) / 6) < 1e-9 for i, r in enumerate(rates)), f"all of it warmup: {rates}")
    works("--model", "small.json", "--train-data", "synthetic", "--train-num-samples", 2, "--epochs", 2, "--name", "two", says="the batch shrinks")
    works(*SYNTHETIC, "--accum-freq", 100, "--steps", 2, "--name", "accum", says="it shrinks")
    refused("1 samples, at least 2", "--model", "small.json", "--train-data", "synthetic", "--train-num-samples", 1)
    for size, patch in ((32, 32), (33, 16), (7, 7), (40, 13)):
        write("odd.json", json.dumps({"embed_dim": 3, "vision_cfg": {"image_size": size, "patch_size": patch, "width": 6, "head_width": 3, "layers": 1},
                                      "text_cfg": {"context_length": 2 + size % 3, "vocab_size": 3 + size, "width": 5, "heads": 5, "layers": 1}}))
        works("--model", "odd.json", "--train-data", "synthetic", "--train-num-samples", 9, "--batch-size", 3, "--steps", 2, "--name", f"size{size}")
    works(*SYNTHETIC, "--steps", 2, "--lock-image", "--lock-text", "--name", "all_locked")
    works(*SYNTHETIC, "--steps", 2, "--lr", 0, "--wd", 0, "--name", "no_rate")
    code, _, err = run(*SYNTHETIC, "--steps", 60, "--lr", 1e30, "--name", "diverges")
    check(code == 1 and err.count("\n") == 1 and "not finite" in err, f"--lr 1e30: exit {code}, {err[-300:]!r}")
    check(run(*SYNTHETIC, "--steps", 2, "--name", "a/b/c")[0] == 0, "--name with folders")


# ---------------------------------------------------------------- bad data

def add_member(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def shards(path, samples):
    with tarfile.open(path, "w") as tar:
        for i, image in enumerate(samples):
            add_member(tar, f"{i:04d}.png", image)
            add_member(tar, f"{i:04d}.txt", b"a photo of something")
            add_member(tar, f"{i:04d}.cls", b"%d" % (i % 3))


def test_bad_data():
    train = ["--model", "words.json", "--batch-size", 4, "--steps", 2, "--train-data"]
    lines = read("shapes/train.csv").decode().splitlines()
    good = [read(p) for p in sorted(glob.glob("shapes/images/*.png"))[:12]]
    write("empty.csv", "")
    refused("empty.csv: is empty", *train, "empty.csv")
    write("header.csv", lines[0] + "\n")
    refused("header.csv: the data set is empty", *train, "header.csv")
    write("columns.csv", "picture,words\n" + "\n".join(lines[1:]) + "\n")
    refused("no column 'filepath' (there are: picture, words)", *train, "columns.csv")
    write("one.csv", lines[0] + "\nshapes/" + lines[1] + "\n")
    refused("one.csv: 1 samples, at least 2", *train, "one.csv")
    write("binary.csv", os.urandom(999) + b"\0")
    refused("binary.csv", *train, "binary.csv", "--dataset-type", "csv")
    write("paths.csv", lines[0] + "\n" + "nowhere.png,a,b\n" * 5)
    refused("can be used", *train, "paths.csv", "--name", "paths", writes=True)
    os.makedirs("broken", exist_ok=True)
    for i in range(6):
        write(f"broken/{i}.png", good[i][:len(good[i]) // 2] if i % 2 else b"no picture")
        write(f"broken/{i}.txt", "a caption")
    refused("can be used", *train, "broken", "--name", "broken", writes=True)
    os.makedirs("nothing_here", exist_ok=True)
    refused("the data set is empty", *train, "nothing_here")
    # one good pair is no training; two among broken ones are
    write("broken/1.png", good[1])
    refused("fewer than two", *train, "broken", "--name", "broken1", writes=True)
    write("broken/3.png", good[3])
    code, _, err = run(*train[:2], "--batch-size", 2, "--epochs", 2, "--train-data", "broken", "--name", "broken2")
    check(code == 0 and "4 of 6 samples skipped" in err, f"two good pairs among broken ones: exit {code}, {err[-300:]!r}")
    check(lines_in("logs/broken2/skipped.txt") == 4, "skipped.txt does not name four samples")
    shards("good.tar", good)
    works(*train, "good.tar", "--name", "tar")
    data = read("good.tar")
    for share in (0.01, 0.3, 0.5, 0.77):
        write("cut.tar", data[:int(len(data) * share)])
        code, _, err = run(*train, "cut.tar", "--name", f"cut{share}")
        check(code in (0, 2) and all(line.startswith("train_clip: ") for line in err.splitlines()), f"tar cut to {share}: exit {code}, {err[-300:]!r}")
    write("empty.tar", "")
    write("no.tar", os.urandom(5000))
    for name in ("empty.tar", "no.tar"):  # one line says what is wrong with the shard, the last one that nothing is left
        code, _, err = run(*train, name)
        check(code == 2 and err.count("\n") <= 2 and err.splitlines()[-1].startswith(f"train_clip: {name}: the data set is empty"), f"{name}: exit {code}, {err!r}")
    draw = random.Random(3)
    for i in range(6):
        altered = bytearray(data)
        for _ in range(30):
            altered[draw.randrange(len(altered))] = draw.randrange(256)
        write("altered.tar", altered)
        code, _, err = run(*train, "altered.tar", "--name", f"altered{i}")
        check(code in (0, 2) and all(line.startswith("train_clip: ") for line in err.splitlines()), f"altered tar {i}: exit {code}, {err[-300:]!r}")
    for i in range(6):
        altered = bytearray(read("shapes/train.csv"))
        for _ in range(40):
            altered[draw.randrange(60, len(altered))] = draw.randrange(1, 256)
        write("shapes/altered.csv", altered)
        code, _, err = run(*train, "shapes/altered.csv", "--name", f"altered_csv{i}")
        check(code in (0, 2) and all(line.startswith("train_clip: ") for line in err.splitlines()), f"altered CSV {i}: exit {code}, {err[-300:]!r}")
    os.unlink("shapes/altered.csv")


def test_bad_evaluation():
    works(*PICTURES, "--steps", 1, "--name", "model")
    model = ["--pretrained", checkpoint("model", "step_1.bin"), "--eval-only"]
    rows = [line.split(",") for line in read("shapes/val.csv").decode().splitlines()]

    def labels(path, make):
        return write("shapes/" + path, "filepath,label\n" + "".join(f"{r[0]},{make(i)}\n" for i, r in enumerate(rows[1:])))

    def classes(n):
        return write(f"classes{n}.txt", "".join(f"class {i}\n" for i in range(n)))

    refused("nothing to evaluate on", *model)
    refused("give --classnames", *model, "--zeroshot-data", "shapes/val.csv")
    refused("missing.txt", *model, "--zeroshot-data", "shapes/val.csv", "--classnames", "missing.txt")
    refused("another set has the same name; write NAME=PATH", *model, *LABELLED, "--zeroshot-data", "shapes/train.csv")
    write("blank.txt", "\n\n")
    refused("blank.txt: no class names", *model, "--zeroshot-data", "shapes/val.csv", "--classnames", "blank.txt")
    write("no_slot.txt", "a photo\n")
    refused("no {} in", *model, *LABELLED, "--templates", "no_slot.txt")
    refused("have no label", *model, "--zeroshot-data", labels("wrong.csv", lambda i: 99), "--classnames", classes(3))
    refused("have no label", *model, "--zeroshot-data", labels("negative.csv", lambda i: -1), "--classnames", classes(3))
    refused("have no label", *model, "--zeroshot-data", labels("one_wrong.csv", lambda i: 3 if i == 2 else 0), "--classnames", classes(3))
    out = works(*model, "--zeroshot-data", labels("one.csv", lambda i: 0), "--classnames", classes(1))
    check("zeroshot_top1 1\n" in out, f"one class: {out[-200:]!r}")
    out = works(*model, "--zeroshot-data", labels("three.csv", lambda i: i % 3), "--classnames", classes(3))
    check("zeroshot_top1" in out and "top5" not in out, f"three classes: {out[-200:]!r}")
    out = works(*model, "--zeroshot-data", "NAME=" + labels("five.csv", lambda i: i % 5), "--classnames", classes(5))
    check("zeroshot_top5/NAME 1" in out, f"five classes: {out[-200:]!r}")
    refused("val.csv", *model, "--val-data", "missing/val.csv")
    refused("as what? give --classnames", "--pretrained", model[1], "--classify", "shapes/images/000000.png")
    out = works("--pretrained", model[1], "--classify", "shapes/images/000000.png", "--classnames", classes(1))
    check("class 0" in out, f"--classify: {out!r}")
    code, out, err = run("--pretrained", model[1], "--classify", "shapes/images/000000.png", "nothing.png", "shapes/val.csv", "--classnames", classes(3))
    check(code == 0 and "nothing.png" in err and "val.csv" in err and out.count("class") >= 3, f"--classify of one picture and two that are none: exit {code}, {err!r}")


def test_bad_weights():
    """A weight file cut off, altered, or of another kind: one line, nothing written. (dev/test/test_weights.c tries every field.)"""
    works(*SYNTHETIC, "--steps", 1, "--name", "weights")
    works(*PICTURES, "--steps", 1, "--name", "words")
    data = read(checkpoint("weights", "step_1.bin"))
    use = ["--pretrained", "w.bin", "--train-data", "synthetic", "--train-num-samples", 4, "--steps", 1, "--batch-size", 2]
    for length in (0, 100, 1023, 1024, 2000, len(data) - 1, len(data) - 64):
        write("w.bin", data[:length])
        refused("w.bin: ", *use)
    write("w.bin", data + b"\0")
    refused("1 bytes longer than", *use)
    refused("cannot open", "--pretrained", "shapes", *use[2:])
    write("w.bin", b"PK\x03\x04" + os.urandom(4000))
    refused("dev/convert.py", *use)
    for value in (float("nan"), float("inf")):
        altered = bytearray(data)
        altered[-64:-60] = struct.pack("<f", value)
        write("w.bin", altered)
        refused("not finite", *use)
    # numbers that are finite and absurd are no crash
    altered = np.frombuffer(data, np.float32).copy()
    altered[256:] = np.where(np.arange(len(altered) - 256) % 7 == 0, 3e38, altered[256:])
    write("w.bin", altered.tobytes())
    code, _, err = run(*use, "--name", "absurd")
    check(code in (0, 1) and err.count("\n") <= 1, f"weights of 3e38: exit {code}, {err[-300:]!r}")
    # a tokenizer that does not belong to the vocabulary, and merges that are none
    words = read(checkpoint("words", "step_1.bin"))
    header = np.frombuffer(words[:1024], np.int32).copy()
    merges = int(header[4])
    padded = (merges + 63) // 64 * 64
    for text in (words[1024:1024 + merges], b"a b\n" * 9, bytes(range(256)) * 4, b"\n" * 5000):
        small = np.frombuffer(data[:1024], np.int32).copy()
        small[4] = len(text)
        write("w.bin", small.tobytes() + text + b"\0" * (-len(text) % 64) + data[1024:])
        refused("dev/convert.py", *use)
    fewer = words[1024:1024 + merges - 200].rsplit(b"\n", 1)[0] + b"\n"
    header[4] = len(fewer)
    write("w.bin", header.tobytes() + fewer + b"\0" * (-len(fewer) % 64) + words[1024 + padded:])
    refused("dev/convert.py", *use)
    eot = np.frombuffer(words[:1024], np.int32).copy()
    eot[16 + 14] = 5
    write("w.bin", eot.tobytes() + words[1024:])
    refused("dev/convert.py", *use)
    # a name that is not fit for a line or a folder
    named = bytearray(data)
    named[192 * 4:1024] = (b"..\n/\x1b[2J\xff" * 40)[:256]
    write("w.bin", named)
    code, out, err = run(*use, "--logs", "named")
    check(code == 0 and len(os.listdir("named")) == 1 and "\n" not in os.listdir("named")[0] and "\x1b" not in out, f"a hostile name: exit {code}, {err[-300:]!r}")


# ---------------------------------------------------------------- a full disk

def limit_files(bytes_most):
    """No file may grow beyond: what a full disk looks like, without one. Python leaves SIGXFSZ ignored, which the child inherits."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_most, bytes_most))


def test_full_disk():
    options = SYNTHETIC + ["--steps", 12, "--save-steps", 4]
    works(*options, "--name", "space")
    weights, state = os.path.getsize(checkpoint("space", "step_4.bin")), os.path.getsize(checkpoint("space", "step_4.state"))
    for what, most in (("the weights do not fit", weights - 1000), ("the state does not fit", state - 1000), ("the state's last byte does not fit", state - 1)):
        shutil.rmtree(folder("full"), ignore_errors=True)
        shutil.copytree(folder("space"), folder("full"))
        for stem in ("step_8", "epoch_1", "step_12", "epoch_2"):
            for end in (".bin", ".state"):
                if os.path.exists(checkpoint("full", stem + end)):
                    os.unlink(checkpoint("full", stem + end))
        before = {name: read(checkpoint("full", name)) for name in os.listdir(checkpoint("full", ""))}
        err = refused("cannot write", "--resume", "latest", "--name", "full", code=1, writes=True, preexec_fn=limit_files(most), restore_signals=False)
        after = {name: read(checkpoint("full", name)) for name in os.listdir(checkpoint("full", ""))}
        check(before == after, f"{what}: {sorted(before)} became {sorted(after)} ({err.strip()})")
        works("--resume", "latest", "--name", "full")
        expect_same("space", "full", what)
    refused("cannot write", *options, "--name", "never", code=1, writes=True, preexec_fn=limit_files(3000), restore_signals=False)


# ---------------------------------------------------------------- all of it

def main():
    if not os.path.exists(PROGRAM):
        print(f"FAILED {PROGRAM} is not built; run make\n0 passed, 1 failed")
        return 1
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_") and (len(sys.argv) == 1 or any(word in name for word in sys.argv[1:]))]
    scratch = tempfile.mkdtemp(prefix="test_run.")
    os.chdir(scratch)
    try:
        subprocess.run([sys.executable, os.path.join(ROOT, "dev/data/make_shapes.py"), "--out", "shapes", "--count", "64"], check=True, stdout=subprocess.DEVNULL)
        write("small.json", json.dumps(SMALL))
        write("words.json", json.dumps(WORDS))
        for name, test in tests:
            begin = time.monotonic()
            try:
                test()
            except Exception:  # the other tests go on
                check(False, f"{name}: {traceback.format_exc()}")
            if os.environ.get("VERBOSE"):
                print(f"{time.monotonic() - begin:6.1f} s  {name}", flush=True)
            shutil.rmtree("logs", ignore_errors=True)
    finally:
        os.chdir(ROOT)
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{passed} passed, {failed + (passed == 0)} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
