#!/usr/bin/env python3
"""Models whose numbers are not finite, in the real programs: no evaluation takes them for a result, training ends before it updates, and
the last good checkpoint stays."""
import os
import subprocess
import sys

from train_runs import (IMAGES, LABELLED, LIMIT, PROGRAM, check, checkpoint, environment, main, refused, stems, works)

BAD = "features that are not finite"


def huge_weights():
    """Weights that are finite numbers, from which no feature can be computed; and good ones."""
    works(*IMAGES, "--steps", 1, "--warmup", 0, "--lr", 1e25, "--wd", 0, "--name", "huge")
    works(*IMAGES, "--steps", 1, "--name", "good")
    return checkpoint("huge", "step_1.bin"), checkpoint("good", "step_1.bin")


def test_no_evaluation_takes_what_is_not_finite_for_a_result():
    """--eval-only on labelled images and on pairs, --classify, the evaluations of a run, lr_find, wise_ft: exit 1 and a line."""
    huge, good = huge_weights()
    image = "shapes/images/" + sorted(os.listdir("shapes/images"))[0]
    refused(BAD, "--pretrained", huge, "--eval-only", *LABELLED, code=1)
    refused(BAD, "--pretrained", huge, "--eval-only", "--val-data", "shapes/val.csv", "--save-features", "never.safetensors", code=1)
    refused(BAD, "--pretrained", huge, *LABELLED[2:], "--classify", image, code=1)
    train = ["--pretrained", huge, "--train-data", "shapes/train.csv", "--batch-size", 8, "--epochs", 1]
    refused(BAD, *train, "--val-data", "shapes/val.csv", "--name", "validated", code=1, writes=True)
    check(not stems("validated"), f"saved {stems('validated')}")
    works("--pretrained", good, "--eval-only", *LABELLED, "--val-data", "shapes/val.csv")
    wise_ft = os.path.join(os.path.dirname(PROGRAM), "wise_ft")
    done = subprocess.run([wise_ft, "--zeroshot", good, "--finetuned", huge, "--eval", "a=shapes/val.csv", *LABELLED[2:], "--save", "averages"], capture_output=True, text=True,
                          env=environment(), timeout=LIMIT)
    check(done.returncode == 1 and BAD in done.stderr and done.stderr.count("\n") == 1 and not os.listdir("averages"), f"wise_ft: exit {done.returncode}, {done.stderr[-300:]!r}")


def test_training_ends_before_an_update_that_is_not_finite():
    """The loss is not finite: exit 1, one line, no checkpoint of it; those before stay, and are not pruned."""
    huge, _ = huge_weights()
    says = "the loss is not finite, and the weights are not updated"
    refused(says, "--pretrained", huge, "--train-data", "shapes/train.csv", "--batch-size", 8, "--epochs", 1, "--name", "first", code=1, writes=True)
    check(not stems("first"), f"saved {stems('first')}")
    wild = [*IMAGES, "--steps", 9, "--save-steps", 1, "--keep-checkpoints", 1, "--save-most-recent", "--wd", 0, "--warmup", 0, "--lr-scheduler", "const", "--name"]
    refused(says, *wild, "wild", "--lr", 1e25, code=1, writes=True)
    check(stems("wild") == ["latest", "step_1"], f"left {stems('wild')}")
    refused("is not saved", *wild, "infinite", "--lr", 3e38, code=1, writes=True)
    check(not stems("infinite") and not os.path.exists(checkpoint("infinite", "step_1.bin.part")), f"left {os.listdir(checkpoint('infinite', ''))}")


if __name__ == "__main__":
    sys.exit(main(globals()))
