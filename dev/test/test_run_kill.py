#!/usr/bin/env python3
"""Runs of the real program that end early: killed, interrupted, with a full disk. What is left resumes to the same bits.

  KILLS=200 TEST=kill_anywhere dev/test/test_run_kill.py       200 kills at random moments instead of 20
"""
import glob
import os
import random
import resource
import shlex
import shutil
import signal
import sys
import time

from train_runs import (IMAGES, LABELLED, SYNTHETIC, check, checkpoint, expect_same, finish, folder, lines_in,
                        main, moments, read, refused, start, stems, wait_for, works, write)

KILLS = int(os.environ.get("KILLS", 20))


def test_kill_anywhere_and_resume_gives_the_same_bits():
    """SIGKILL at KILLS (20) random moments, some while a checkpoint is being written; on with other threads and workers each time."""
    options = IMAGES + LABELLED + ["--epochs", 4, "--save-steps", 2, "--val-split", 0.1, "--save-most-recent", "--accum-freq", 2, "--grad-clip-norm", 0.7,
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


def test_the_last_whole_pair_is_found_among_files_of_a_broken_save():
    """Every state of the folder between the writes of one checkpoint: the last whole pair is found."""
    works(*SYNTHETIC, "--steps", 9, "--save-steps", 3, "--save-most-recent", "--name", "pairs")

    def resumes(step, what, change):
        shutil.rmtree(folder("torn"), ignore_errors=True)
        shutil.copytree(folder("pairs"), folder("torn"))
        for stem in ("step_9", "latest"):
            for end in (".bin", ".state"):
                os.unlink(checkpoint("torn", stem + end))
        change(checkpoint("torn", ""))
        out = works("--resume", "latest", "--name", "torn", says="damaged; taking" if "damaged" in what else None)
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


def test_interrupted_run_saves_and_says_how_to_go_on():
    """Ctrl-C finishes the step, saves, says how to resume, exits 130, SIGTERM 143; what it says works."""
    for number, options, name in ((signal.SIGINT, IMAGES + ["--epochs", 4], "int"),
                                  (signal.SIGTERM, IMAGES + ["--epochs", 3, "--lock-image", "--no-shuffle", "--delete-previous-checkpoint", "--log-every-n-steps", 3], "term")):
        works(*options, "--name", name + "_whole")
        process = start(*options, "--name", name)
        if check(wait_for(process, lambda: lines_in(f"logs/{name}/metrics.jsonl") > 1), f"{name}: ended before it was interrupted"):
            process.send_signal(number)
        code, out, err = finish(process)
        said = "train_clip: interrupted; ends after this step, Ctrl-C again ends it at once without saving\n" if number == signal.SIGINT else ""
        check(code == 128 + number and err == said, f"{name}: exit {code}, {err[-300:]!r}")
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


def test_interrupted_evaluation_is_made_up_for():
    """Ctrl-C in the evaluation at the start, after an epoch, after the last one: the resumed run evaluates again."""
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
        check(code == 130 and err.count("\n") == 1 and f"\ninterrupted after step {step};" in out, f"{name}: exit {code}, {out[-200:]!r}, {err[-300:]!r}")
        works(*shlex.split(out.splitlines()[-1].partition("go on with: ")[2])[1:])
        expect_same("evaluated_whole", name, f"interrupted in the evaluation after step {step}")
        check(read("features.safetensors") == features, f"interrupted in the evaluation after step {step}: features differ")
        works("--resume", "latest", "--name", name, says="--save-features: in the settings of the run it writes a file")
        expect_same("evaluated_whole", name, f"interrupted in the evaluation after step {step}, resumed when all was done")


def test_second_interrupt_ends_the_run_at_once():
    process = start(*SYNTHETIC, "--steps", 1000000, "--name", "twice")
    wait_for(process, lambda: lines_in("logs/twice/metrics.jsonl") > 3)
    process.send_signal(signal.SIGSTOP)  # both are there before the program looks
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    code, _, _ = finish(process)
    check(code in (130, -signal.SIGINT), f"Ctrl-C twice: exit {code}")


def limit_files(bytes_most):
    """No file may grow larger, which looks like a full disk. Python leaves SIGXFSZ ignored, which the child inherits."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_most, bytes_most))


def test_full_disk_leaves_the_last_checkpoint_whole():
    options = SYNTHETIC + ["--steps", 12, "--save-steps", 4]
    works(*options, "--name", "space")
    weights, state = os.path.getsize(checkpoint("space", "step_4.bin")), os.path.getsize(checkpoint("space", "step_4.state"))
    for what, most in (("the weights do not fit", weights - 1000), ("the state does not fit", state - 1000), ("the state's last byte does not fit", state - 1)):
        shutil.rmtree(folder("tight"), ignore_errors=True)
        shutil.copytree(folder("space"), folder("tight"))
        for stem in ("step_8", "epoch_1", "step_12", "epoch_2"):
            for end in (".bin", ".state"):
                if os.path.exists(checkpoint("tight", stem + end)):
                    os.unlink(checkpoint("tight", stem + end))
        before = {name: read(checkpoint("tight", name)) for name in os.listdir(checkpoint("tight", ""))}
        err = refused("cannot write", "--resume", "latest", "--name", "tight", code=1, writes=True, preexec_fn=limit_files(most), restore_signals=False)
        after = {name: read(checkpoint("tight", name)) for name in os.listdir(checkpoint("tight", ""))}
        check(before == after, f"{what}: {sorted(before)} became {sorted(after)} ({err.strip()})")
        works("--resume", "latest", "--name", "tight")
        expect_same("space", "tight", what)
    refused("cannot write", *options, "--name", "never", code=1, writes=True, preexec_fn=limit_files(weights - 1000), restore_signals=False)


if __name__ == "__main__":
    sys.exit(main(globals()))
