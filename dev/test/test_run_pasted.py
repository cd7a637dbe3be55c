#!/usr/bin/env python3
"""Command lines as people paste them from open_clip and from other programs: each runs with its options intact, after a line for whatever means something else here, or is refused by name, all at once."""
import csv
import io
import os
import shlex
import sys
import tarfile

from train_runs import IMAGES, ROOT, SYNTHETIC, check, folder, main, records, refused, run, stems, tree, works, write

# Every option in the help of open_clip's trainer (its params.py of June 2026).
OPEN_CLIP = """train-data train-data-upsampling-factors val-data train-num-samples val-num-samples dataset-type audio-ext pretrained-audio
audio-fill audio-trunc audio-fusion audio-int16-normalize audio-zeroshot-dataset audio-zeroshot-split audio-zeroshot-audio-key
audio-zeroshot-target-key audio-zeroshot-class-key audio-zeroshot-template audio-zeroshot-workers audio-zeroshot-multiprocessing-context
audio-multiprocessing-context dataset-resampled csv-separator csv-img-key csv-caption-key image-key max-image-pixels text-key json-text-key
json-text-key-probs imagenet-val imagenet-v2 cache-dir logs log-local name workers batch-size epochs epochs-cooldown lr beta1 beta2 eps wd
momentum warmup opt opt-kwargs opt-fallback-list text-layer-decay image-layer-decay visual-layer-decay audio-layer-decay wd-exclude
text-pooler-own-group use-bn-sync skip-scheduler lr-scheduler lr-cooldown-end lr-cooldown-power save-frequency save-most-recent
zeroshot-frequency val-frequency val-retrieval-chunk-size val-retrieval-precision resume precision model pretrained pretrained-image
lock-image lock-image-unlocked-groups lock-image-freeze-bn-stats image-mean image-std image-interpolation image-resize-mode aug-cfg
grad-checkpointing local-loss gather-with-grad force-context-length force-image-size force-quick-gelu force-patch-dropout force-custom-text
torchcompile torchcompile-strategy torchcompile-backend torchcompile-mode accum-freq device dist-url dist-backend report-to wandb-notes
wandb-project-name debug copy-codebase ddp-static-graph fsdp fsdp-no-reshard-after-forward fsdp-offload-cpu fsdp-checkpoint
no-set-device-rank seed grad-clip-norm lock-text lock-text-unlocked-layers lock-text-freeze-layer-norm log-every-n-steps
log-metric-every-n-steps train-loss-ema-samples coca-caption-loss-weight coca-contrastive-loss-weight remote-sync remote-sync-frequency
remote-sync-protocol delete-previous-checkpoint distill-model distill-pretrained use-bnb-linear siglip loss-dist-impl use-naflex
force-naflex-vision naflex-num-train-image-tokens naflex-patch-sizes naflex-patch-size-probs naflex-seq-lens naflex-seq-len-probs
naflex-max-tokens-per-batch naflex-max-text-tokens naflex-batch-divisor naflex-loss-scale length-bucketing bucket-pool bucket-chunk
bucket-prefetch-pools naflex-pad-multiple text-pad-multiple""".split()

# A line, and what each line on stderr must say: the run works.
RUN = [
    ("--train-data pairs.csv --val-data=pairs.csv --csv-img-key filepath --csv-caption-key title --warmup 10000 --batch-size=8 --lr=1e-3"
     " --wd=0.1 --epochs=2 --workers=2 --model words.json --save-frequency 1 --zeroshot-frequency 1 --report-to tensorboard",
     ["--warmup 10000: the run has 6 steps; the warmup is 10% of them: 0"]),
    ("--train-data 'tars-{0000..0001}.tar' --train-num-samples 99 --dataset-type webdataset --batch-size 8 --precision amp --model words.json"
     " --epochs 1 --local-loss --gather-with-grad --opt adamw",
     ["--precision amp: is taken as --precision amp_bf16", "--local-loss has no effect", "--gather-with-grad has no effect",
      "--opt adamw has no effect", "--train-num-samples 99: there are 16 samples"]),
    ("--train-data 'pipe:cat {tars-{0000..0000}.tar,tars-0001.tar}' --train-num-samples 16 --dataset-resampled --dataset-type webdataset"
     " --batch-size 8 --epochs 1 --lr 1e-3 --precision amp_bfloat16 --model words.json --resume latest --name pasted --seed 0",
     ["--precision amp_bfloat16: is taken as", "--resume latest: logs/pasted has no checkpoint yet; a new run begins"]),
    ("--train-data pairs.csv --model words.json --batch-size 8 --epochs 1 --aug-cfg scale='(0.4, 1.0)' --wandb-notes 'a b' --precision bf16",
     ["--precision bf16: is taken as"]),
    ("python -m open_clip_train.main --dataset-type synthetic --train-num-samples 16 --model small.json --batch-size 8 --epochs 1 --device cpu",
     ["python -m open_clip_train.main: is left out", "--device cpu has no effect"]),
    ("--val-data pairs.csv --model words.json", ["without --train-data the model is evaluated and not trained"]),
    ("--zeroshot-data shapes/val.csv --classnames shapes/classnames.txt --model words.json", ["without --train-data the model is evaluated"]),
]

# A line that is refused, and what each line on stderr must say.
REFUSED = [
    ("--train-data pairs.csv --model RN50 --distill-model ViT-L-14 --distill-pretrained openai --siglip --precision fp16",
     ["--model RN50: is a ResNet", "--distill-model: ", "--distill-pretrained: ", "--siglip: ", "--precision fp16: "]),
    ("--train-data pairs.csv --model ViT-B-32 --use-bnb-linear SwitchBackLinearGlobal --remote-sync s3://x --logs None",
     ["--use-bnb-linear: ", "--remote-sync: ", "--logs None: "]),
    ("torchrun --nproc_per_node 4 -m open_clip_train.main --train-data pairs.csv --model coca_ViT-L-14 --batch-size 8",
     ["torchrun --nproc_per_node 4 -m open_clip_train.main: leave it out", "--model coca_ViT-L-14: CoCa"]),
    ("--train-data pairs.csv --model words.json --pretrained-image --lock-image", ["--pretrained-image here takes the weights of an image tower"]),
    ("--train-data pairs.csv --model words.json --output_dir x --num_train_epochs 3 --learning-rate 1e-4 --weight-decay 0 --max-steps 3 --gpu 0",
     ["use --logs DIR", "use --epochs", "use --lr", "use --wd", "use --steps", "GPU"]),
    ("--dataset-type synthetic --train-data pairs.csv --model small.json", ["--dataset-type synthetic: would not read pairs.csv"]),
]


def make_data():
    with open("shapes/train.csv") as f:
        rows = list(csv.DictReader(f))[:24]
    with open("pairs.csv", "w", newline="") as f:
        out = csv.writer(f, delimiter="\t")
        out.writerow(["filepath", "title"])
        out.writerows([os.path.join("shapes", row["filepath"]), row["title"]] for row in rows)
    for shard in range(2):
        with tarfile.open(f"tars-{shard:04d}.tar", "w") as tar:
            for i, row in enumerate(rows[8 * shard:8 * shard + 8]):
                with open(os.path.join("shapes", row["filepath"]), "rb") as f:
                    for ending, data in (("png", f.read()), ("txt", row["title"].encode())):
                        member = tarfile.TarInfo(f"{i:03d}.{ending}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))


def said(line, expected, **how):
    """Runs a line; each line on stderr must hold one of the expected texts, and each of these be said. -> exit code, stdout"""
    code, out, err = run(*shlex.split(line), **how)
    lines = [text for text in err.splitlines() if "no instructions for it" not in text]
    check(len(lines) == len(expected) and all(any(text in one for one in lines) for text in expected), f"{line}: says {err!r} instead of {expected}")
    return code, out


def test_pasted_lines_run_with_their_options_intact():
    make_data()
    for i, (line, expected) in enumerate(RUN):
        line += "" if "--name" in line else f" --name line{i}"
        code, out = said(line, expected)
        check(code == 0, f"{line}: exit {code}")
        given = [word[2:] for word in shlex.split(line) if word.startswith("--") and "=" not in word]
        settings = {one.split()[0]: one.split()[1:] for one in out.splitlines() if one and not one.startswith(" ")}
        if "train-data" in given:
            ignored = {"local-loss", "gather-with-grad", "opt", "device", "resume"}
            check(all(name in settings for name in set(given) - ignored), f"{line}: {sorted(set(given) - ignored - set(settings))} not among the settings")


def test_the_rest_is_refused_by_name_all_at_once():
    make_data()
    for line, expected in REFUSED:
        before = tree()
        code, _ = said(line, expected)
        check(code == 2 and tree() == before, f"{line}: exit {code}, or wrote something")


def test_every_option_of_open_clip_is_known_by_name():
    code, _, err = run(*[f"--{name}" for name in OPEN_CLIP])
    unknown = [line for line in err.splitlines() if "unknown option" in line and "use --image-layer-decay" not in line]
    check(len(OPEN_CLIP) > 130 and code == 2 and not unknown, f"not known: {unknown}")


def test_nothing_is_guessed_where_nothing_is_near():
    for model in ("RN50", "RN101", "EVA02-B-16", "convnext_base", "my_model", "MobileCLIP-S1", "ViT-B-16-SigLIP"):
        err = refused(model, "--model", model, "--train-data", "synthetic")
        check("did you mean" not in err, f"--model {model}: {err}")
    for name, guess in (("vit-b-32", "ViT-B-32"), ("ViT-B-3", "ViT-B-32"), ("ViT-L-14-quickgel", "ViT-L-14-quickgelu")):
        refused(f"did you mean {guess}?", "--model", name, "--train-data", "synthetic")
    refused("python3 dev/convert.py openai/clip-vit-base-patch32 -o weights/clip-vit-base-patch32.bin", "--model", "openai/clip-vit-base-patch32", "--train-data", "synthetic")


def test_a_tag_leads_to_the_command_that_brings_its_weights():
    command = "python3 dev/convert.py --model ViT-B-32 --pretrained laion2b_s34b_b79k -o weights/ViT-B-32-laion2b_s34b_b79k.bin"
    refused(command, "--pretrained", "laion2b_s34b_b79k", "--train-data", "synthetic")
    refused(command, "--model", "ViT-B-32", "--pretrained", "laion2b_s34b_b79k", "--train-data", "synthetic")
    refused("--model ViT-B-32 --pretrained openai (or one of ViT-B-16, ", "--pretrained", "openai", "--train-data", "synthetic")
    refused("-o w/ViT-B-16-openai.bin", "--model", "ViT-B/16", "--pretrained", "openai", "--cache-dir", "w", "--train-data", "synthetic")
    refused("no tag of this model; it has openai, ", "--model", "ViT-L-14", "--pretrained", "laion2b_s34b_b79k", "--train-data", "synthetic")
    refused("no such file; give a packed .bin, or a tag", "--pretrained", "never_heard_of", "--train-data", "synthetic")
    os.makedirs("weights", exist_ok=True)
    write("weights/ViT-B-32-openai.bin", "x")
    refused("shorter than", "--model", "ViT-B-32", "--pretrained", "openai", "--train-data", "synthetic")
    err = refused("--model ViT-B-32 --pretrained openai", "--pretrained", "openai", "--train-data", "synthetic")
    check("dev/convert.py" not in err, f"weights that are there: {err}")


def test_resume_latest_begins_and_goes_on():
    job = [*SYNTHETIC, "--epochs", 1, "--resume", "latest"]
    works(*job, "--name", "job", says="logs/job has no checkpoint yet; a new run begins")
    works(*job, "--name", "job")
    check(stems("job") == ["epoch_1"] and [r["step"] for r in records("job")] == [1, 2, 3, 4, 5, 6], f"begun and gone on: {stems('job')}")
    works("--resume", "latest")  # the only run
    works(*SYNTHETIC, "--epochs", 1, "--name", "other")
    check("job, other" in (err := refused("which run? give the --name of one in logs: ", "--resume", "latest")) or "other, job" in err, f"two runs: {err}")
    works(*SYNTHETIC, "--epochs", 1, "--resume", "latest", "--logs", "elsewhere", says="elsewhere/: no run there has a checkpoint yet")
    # a run that ended before it saved: its folder is taken again, its records are cut
    for path in ("epoch_1.bin", "epoch_1.state", "latest.bin", "latest.state"):
        if os.path.exists(f"{folder('other')}/checkpoints/{path}"):
            os.remove(f"{folder('other')}/checkpoints/{path}")
    works(*job, "--name", "other", says="logs/other has no checkpoint yet")
    check([r["step"] for r in records("other")] == [1, 2, 3, 4, 5, 6], f"records of both runs: {records('other')}")
    os.makedirs("logs/holiday")
    refused("is not a run folder", *job, "--name", "holiday")
    refused("is not a run folder", "--resume", "latest", "--name", "never")


if __name__ == "__main__":
    sys.exit(main(globals()))
