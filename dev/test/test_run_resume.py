#!/usr/bin/env python3
"""Resumed runs of the real program end with the bits of the uninterrupted one; what does not fit together is refused."""
import os
import re
import shutil
import struct
import sys

from seals import sealed, unsealed
from train_runs import (IMAGES, SYNTHETIC, check, checkpoint, expect_same, folder, header_bytes, main,
                        moments, read, records, refused, run, stems, works, write)


def test_each_file_of_a_pair_resumes():
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


def test_each_option_with_a_state_resumes_to_the_same_bits():
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


def test_resuming_on_other_data_says_so():
    """Samples that came or went since the run began: one line says so, and the run goes on."""
    lines = read("shapes/train.csv").decode().splitlines()
    write("shapes/changing.csv", "\n".join(lines[:31]) + "\n")
    train = ["--model", "words.json", "--train-data", "shapes/changing.csv", "--batch-size", 8, "--epochs", 3, "--save-steps", 5, "--keep-states", 0]
    works(*train, "--name", "grows")
    shutil.copytree(folder("grows"), folder("shrinks"))
    works("--resume", checkpoint("grows", "step_5.bin"))  # the same data: nothing is said
    for name, kept in (("grows", 41), ("shrinks", 20)):
        write("shapes/changing.csv", "\n".join(lines[:kept]) + "\n")
        works("--resume", checkpoint(name, "step_5.bin"), says=f"the run began with 30 samples, and there are {kept - 1} now")
    os.unlink("shapes/changing.csv")


def test_resuming_with_other_options_is_refused():
    works(*SYNTHETIC, "--steps", 8, "--save-steps", 3, "--name", "run")
    works(*SYNTHETIC, "--steps", 8, "--save-steps", 3, "--seed", 5, "--name", "seed5")
    pair = checkpoint("run", "step_3.bin")
    for option, value, old in (("--lr", 1e-3, "0.0005"), ("--seed", 1, "0"), ("--wd", 0, "0.2"), ("--steps", 9, "8"), ("--warmup", "0%", "10%"),
                               ("--accum-freq", 2, "1"), ("--aug-cfg", "none", None), ("--grad-clip-norm", 1, "0"), ("--lr-scheduler", "const", "cosine"), ("--no-shuffle", None, None),
                               ("--lock-image", None, None)):
        given = [option] + ([value] if value is not None else [])
        refused(f"{option}", "--resume", pair, *given)
        if old:
            refused(f"the run was started with {old};", "--resume", pair, *given)
    refused("steps of 8 pairs, and 1 processes with --batch-size 3 cannot make them", "--resume", pair, "--batch-size", 3)
    check("equal up to rounding" in works("--resume", pair, "--batch-size", 4), "two halves of a batch are said to be the same")
    works("--resume", pair, "--lr", 1e-3, "--resume-override")
    check(records("run")[-1]["loss"] != records("seed5")[-1]["loss"] and records("run")[3]["lr"] > 5e-4, "--resume-override --lr does not count")
    works("--resume", pair, "--workers", 2, "--log-every-n-steps", 2)


def test_resuming_from_files_that_are_not_a_pair_is_refused():
    works(*SYNTHETIC, "--steps", 8, "--save-steps", 3, "--name", "run")
    works(*SYNTHETIC, "--steps", 8, "--save-steps", 3, "--seed", 5, "--name", "seed5")
    shutil.copytree(folder("run"), folder("mixed"))
    shutil.copy(checkpoint("seed5", "step_3.bin"), checkpoint("mixed", "step_3.bin"))
    refused("is not the state of", "--resume", checkpoint("mixed", "step_3.bin"))
    refused("is not the state of", "--resume", checkpoint("mixed", "step_3.state"))
    for stem in stems("mixed"):
        if stem != "step_3":
            os.unlink(checkpoint("mixed", stem + ".state"))
            refused(stem + ".state: is not there (--keep-states", "--resume", checkpoint("mixed", stem + ".bin"))
    os.unlink(checkpoint("mixed", "step_3.bin"))
    refused("no complete checkpoint", "--resume", "latest", "--name", "mixed")
    refused("which run? give the --name of one in logs: ", "--resume", "latest")
    refused("is not a run folder", "--resume", "latest", "--name", "never")
    refused("give a .bin or .state file", "--resume", "logs/run/params.txt")
    refused("No such file", "--resume", "nothing.bin")


def fnv_by_words(data):
    """file_hash() of clipc/base/utils.h, by which version 2 of the state knew its .bin; a multiple of 8 bytes."""
    value = 0xcbf29ce484222325
    for word, in struct.iter_unpack("<Q", data):
        value = (value ^ word) * 0x100000001b3 % 2**64
        value ^= value >> 32
    return value


def test_resuming_from_a_damaged_state_is_refused():
    works(*SYNTHETIC, "--steps", 8, "--save-steps", 3, "--name", "run")
    state, weights = read(checkpoint("run", "step_3.state")), read(checkpoint("run", "step_3.bin"))
    write("x.bin", weights)
    header, settings = header_bytes(unsealed(state))
    for length in [0, 1, header - 1, header, header + 1, 200, len(state) // 2, len(state) - 1]:
        write("x.state", state[:length])
        refused("x.state: ", "--resume", "x.bin")
    write("x.state", state + b"x")
    refused("is not complete", "--resume", "x.bin")
    for at in range(0, header, 4):
        for value in (-1, 0x7fffffff, 0):
            altered = bytearray(unsealed(state))
            struct.pack_into("<i", altered, at, value)
            write("x.state", sealed(altered))
            code, _, err = run("--resume", "x.bin", "--name", "altered")
            check(code in (0, 2) and err.count("\n") <= 1, f"state header at byte {at} = {value}: exit {code}, {err[-300:]!r}")
            shutil.rmtree(folder("altered"), ignore_errors=True)
    altered = bytearray(unsealed(state))
    altered[-4:] = struct.pack("<f", float("nan"))
    write("x.state", sealed(altered))
    refused("is not finite", "--resume", "x.bin", "--name", "altered", writes=True)
    for name, data in (("x.state", state), ("x.bin", weights)):
        for at in [*range(0, header, 7), *range(header, len(data), len(data) // 40), *range(len(data) - 20, len(data))]:
            write("x.state", state)
            write("x.bin", weights)
            altered = bytearray(data)
            altered[at] ^= 1 << at % 8
            write(name, altered)
            refused(name + ": ", "--resume", "x.bin", "--name", "altered")
    # version 2, which had no seal and knew its .bin by a hash, in the version 1 of that
    old, plain = bytearray(unsealed(state)), bytearray(unsealed(weights))
    struct.pack_into("<i", plain, 4, 1)
    struct.pack_into("<iQ", old, 4, 2, fnv_by_words(plain))
    write("x.state", old)
    write("x.bin", plain)
    works("--resume", "x.bin", "--name", "old", "--logs", "logs")
    works(*SYNTHETIC, "--steps", 8, "--name", "straight")
    expect_same("straight", "old", "a checkpoint of the version before", log=False)
    for name in ("x.bin", "x.state"):
        os.unlink(name)


def stranger(stem, steps=None, **settings):
    """A copy of the checkpoint of run `acts`, as a stranger could send it: with other settings, or another count of steps."""
    data = unsealed(read(checkpoint("acts", "step_3.state")))
    end, length = header_bytes(data)
    lines = [line for line in data[end:end + length].decode().splitlines() if line.split(" ")[0] not in [key.replace("_", "-") for key in settings]]
    text = "".join(line + "\n" for line in lines + [f"{key.replace('_', '-'):28} {value}" for key, value in settings.items()]).encode()
    header = bytearray(data[:end])
    struct.pack_into("<q", header, end - 24, len(text))
    if steps is not None:
        struct.pack_into("<q", header, 16, steps)
    write(stem + ".state", sealed(bytes(header) + text + data[end + length:]))
    shutil.copy(checkpoint("acts", "step_3.bin"), stem + ".bin")
    return stem + ".state"


def test_settings_of_a_checkpoint_do_not_act():
    """Nothing that a state file says runs a command, starts a program or chooses a place to write, unless the command line says it, too."""
    works(*SYNTHETIC, "--steps", 6, "--save-steps", 3, "--name", "acts")
    for command in ("pipe:touch ran", "synthetic::pipe:touch ran", "\\pipe:touch ran", "{pipe,x}:touch ran", "a.tar::pi{pe,x}:touch ran;.tar",
                    "http://localhost:1/a.tar", "synthetic::https://localhost:1/{0..9}.tar", "s3://bucket/a.tar"):
        refused("it runs a command", "--resume", stranger("sent", train_data=command), "--name", "sent")
    data = ["--train-data", "synthetic", "--resume-override"]
    for option, value, does in (("val_data", "pipe:touch ran", "runs a command"), ("zeroshot_data", "x=pipe:touch ran", "runs a command"),
                                ("save_features", "ran", "writes a file"), ("feature_cache", "ran", "writes a file"), ("cache_images", "ran", "writes a file"),
                                ("report_to", "wandb", "starts a program"), ("report_to", "all", "starts a program")):
        works("--resume", stranger("sent", **{option: value}), *data, "--name", f"sent_{option}_{value[:3]}", says=f"--{option.replace('_', '-')}: in the settings of the run it {does}")
    works("--resume", stranger("sent", logs="elsewhere", name="../ran"))
    check(not os.path.exists("ran") and not os.path.exists("elsewhere") and not os.path.exists("logs/../ran"), "the settings of a checkpoint acted")
    for steps in (1 << 62, -1):
        refused("is damaged", "--resume", stranger("sent", steps=steps), "--name", "sent")
    for name in ("sent.bin", "sent.state"):
        os.unlink(name)


def test_resuming_keeps_the_kernels():
    """A resumed run takes the kernels it began with, and so its bits; with CLIPC_ISA it takes others and says so, once."""
    works(*SYNTHETIC, "--steps", 6, "--save-steps", 3, "--name", "isa", isa="portable")
    last = checkpoint("isa", stems("isa")[0] + ".bin")
    whole = read(last)
    check(re.search(r"^precision +(fp32|amp_bf16)$", read("logs/isa/params.txt").decode(), re.M), "auto does not become the precision it stands for")
    code, out, err = run("--resume", checkpoint("isa", "step_3.bin"))
    check(code == 0 and "kernels so far" not in out + err and read(last) == whole, f"other kernels after a resume: {out} {err}")
    code, out, err = run(*SYNTHETIC, "--steps", 1, "--name", "isa_best")
    best = next((line.split()[1] for line in out.splitlines() if line.startswith("kernels")), "")
    if best != "portable":
        works("--resume", checkpoint("isa", "step_3.bin"), isa=best, says="the run used portable kernels so far, and now")
    refused("this processor runs", *SYNTHETIC, "--name", "isa_none", isa="mmx")


def test_threads_and_workers_do_not_change_the_bits():
    for base, options in (("synthetic", SYNTHETIC + ["--steps", 12]), ("images", IMAGES + ["--steps", 9, "--val-split", 0.2, "--accum-freq", 2])):
        runs = []
        for threads, workers in ((1, 1), (2, 3), (3, 1)):
            runs.append(f"{base}_{threads}_{workers}")
            works(*options, "--name", runs[-1], "--workers", workers, threads=threads)
            expect_same(runs[0], runs[-1], f"{base}: {threads} threads, {workers} workers")
        works(*options, "--name", base + "_seed", "--seed", 1)
        last = stems(runs[0])[-1] + ".bin"
        check(read(checkpoint(runs[0], last)) != read(checkpoint(base + "_seed", last)), f"{base}: another seed gives the same weights")


if __name__ == "__main__":
    sys.exit(main(globals()))
