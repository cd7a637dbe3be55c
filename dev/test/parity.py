#!/usr/bin/env python3
"""open_clip, transformers, timm and wandb read what dev/convert.py writes; dev/test/parity.sh runs this in its virtual environment.

  dev/test/parity.py FOLDER      works in FOLDER; BIN= names the folder of train_clip

Features and logits are compared with those of train_clip --save-features on the same images and captions, each library with its own
preprocessing and tokenizer."""
import csv
import glob
import html
import json
import os
import subprocess
import sys
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1", WANDB_MODE="offline", WANDB_SILENT="true")
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "dev"))
import checks  # noqa: E402
import convert  # noqa: E402

PROGRAM = os.path.join(ROOT, os.environ.get("BIN", ""), "train_clip")
SIZE = 48
CAPTIONS = ["a photo of a cat", "It's  3 DOGS, naïve ones…", "Über-große Bäume!", "a man's best friend; isn't it?", "x", "東京 🙂 tower &amp; lights",
            "every word counts " * 40]


def check(condition, what):
    if checks.check(condition, what):
        print(f"ok     {what}")


def close(got, want, tolerance, what):
    got, want = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, np.float64) for x in (got, want))
    error = np.abs(got - want).max() if got.shape == want.shape else float("nan")
    check(error <= tolerance, f"{what}: within {error:.1e}")


def works(*arguments):
    p = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if p.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))}: exit {p.returncode}: {p.stderr[-800:]}")
    return p.stdout + p.stderr


def converter(*arguments):
    return works(sys.executable, os.path.join(ROOT, "dev", "convert.py"), *arguments)


def make_data():
    """Images of the model's size, which no library resizes, and of other sizes, with captions."""
    rng = np.random.default_rng(1)
    os.makedirs("images", exist_ok=True)
    with open("pairs.csv", "w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["filepath", "title"])
        for i, caption in enumerate(CAPTIONS):
            w, h = (SIZE, SIZE) if i < 4 else (SIZE + 30 * i, 2 * SIZE)
            small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
            small.resize((w, h), Image.BICUBIC).save(f"images/{i}.png")
            rows.writerow([f"images/{i}.png", caption])
    return [Image.open(f"images/{i}.png").convert("RGB") for i in range(len(CAPTIONS))]


def our_features(weights, name):
    """By train_clip: -> image features, text features (normalised), exp(logit_scale)."""
    works(PROGRAM, "--precision", "fp32", "--pretrained", weights, "--eval-only", "--val-data", "pairs.csv", "--save-features", f"{name}.safetensors", "--logs", "logs",
          "--name", name)
    entries = convert.open_checkpoint(f"{name}.safetensors").entries
    scale = float(np.exp(convert.open_packed(weights).entries["logit_scale"].read()[0]))
    return entries["image_features"].read(), entries["text_features"].read(), scale


def make_model(name, quick, **image):
    config = {"embed_dim": 48, "quick_gelu": quick, "vision_cfg": {"image_size": SIZE, "patch_size": 16, "width": 128, "head_width": 64, "layers": 3, **image},
              "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3}}
    with open(f"{name}.json", "w") as f:
        json.dump(config, f)
    converter("--model", f"{name}.json", "--random", 5, "-o", f"{name}.bin")


def compare(what, images, texts, ours, tolerance=2e-5):
    """Features of any length against ours, and the logits of both."""
    images, texts = (torch.nn.functional.normalize(torch.as_tensor(x), dim=-1).detach().numpy() for x in (images, texts))
    close(images, ours[0][:len(images)], tolerance, f"{what}: image features")
    close(texts, ours[1], tolerance, f"{what}: text features")
    close(ours[2] * images @ texts.T, ours[2] * ours[0][:len(images)] @ ours[1].T, tolerance * ours[2], f"{what}: logits")


def by_open_clip(what, folder, images, ours, tolerance=2e-5):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{os.path.abspath(folder)}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{os.path.abspath(folder)}")
    model.eval()
    with torch.no_grad():
        compare(what, model.encode_image(torch.stack([preprocess(p) for p in images])), model.encode_text(tokenizer(CAPTIONS)), ours, tolerance)


def by_transformers(what, folder, images, ours, tolerance=2e-5):
    model = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    exact = images[:4]  # torchvision would resize the others; its tokenizer does not unescape HTML
    batch = processor(text=[html.unescape(c) for c in CAPTIONS], images=exact, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        out = model(**batch)
    compare(what, out.image_embeds, out.text_embeds, ours, tolerance)
    close(out.logits_per_image, ours[2] * ours[0][:4] @ ours[1].T, tolerance * ours[2], f"{what}: logits_per_image")
    pipe = transformers.pipeline("zero-shot-image-classification", model=folder, dtype=torch.float32)
    scores = {r["label"]: r["score"] for r in pipe(exact[0], candidate_labels=CAPTIONS[:5], hypothesis_template="{}")}
    want = ours[2] * ours[0][0] @ ours[1][:5].T
    want = np.exp(want - want.max()) / np.exp(want - want.max()).sum()
    close([scores[c] for c in CAPTIONS[:5]], want, 5 * tolerance, f"{what}: the pipeline's scores")


def check_clip(images):
    for name, quick in (("gelu", False), ("quick", True)):
        make_model(name, quick)
        ours = our_features(f"{name}.bin", name)
        for form in ("open_clip", "hf", "openai-state"):
            converter(f"{name}.bin", "-o", f"{name}-{form}", "--format", form)
        by_open_clip(f"open_clip, {name}", f"{name}-open_clip", images, ours)
        by_transformers(f"transformers, {name}", f"{name}-hf", images, ours)
        for dtype in ("fp16", "bf16"):
            converter(f"{name}.bin", "-o", f"{name}-hf-{dtype}", "--format", "hf", "--dtype", dtype)
            by_transformers(f"transformers, {name} in {dtype}", f"{name}-hf-{dtype}", images, ours, 3e-3 if dtype == "fp16" else 3e-2)
        state = torch.load(f"{name}-openai-state/openai_state_dict.pt", weights_only=True)
        want = convert.open_packed(f"{name}.bin").entries
        check(all(np.array_equal(state[n].numpy().reshape(-1), e.read().reshape(-1)) for n, e in want.items()), f"torch.load(weights_only=True), {name}")
    converter("quick.bin", "-o", "quick-fp16.pt", "--format", "openai-state", "--dtype", "fp16")
    converter("quick-fp16.pt", "-o", "quick-fp16.bin")
    ours = our_features("quick-fp16.bin", "openai")
    for file in ("quick-openai-state/openai_state_dict.pt", "quick-fp16.pt"):  # it rounds to fp16 in any case
        model = open_clip.load_openai_model(os.path.abspath(file), precision="fp32", device="cpu").eval()
        _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{os.path.abspath('quick-open_clip')}")
        with torch.no_grad():
            compare(f"open_clip.load_openai_model, {file}", model.encode_image(torch.stack([preprocess(p) for p in images])),
                    model.encode_text(open_clip.tokenize(CAPTIONS)), ours)


def check_tower(what, bin_file, model_json, features, images):
    """LiT: a step with the other tower locked; the tower's features, projected as ours, are what train_clip computes. features(images) -> (B,C)."""
    works(PROGRAM, "--precision", "fp32", "--pretrained-image", bin_file, "--model", model_json, "--lock-image", "--aug-cfg", "none", "--train-data", "pairs.csv",
          "--batch-size", 4, "--steps", 1, "--warmup", 0, "--logs", "logs", "--name", f"lit-{what}")
    trained = max(glob.glob(f"logs/lit-{what}/checkpoints/*.bin"), key=os.path.getmtime)
    ours = our_features(trained, f"features-{what}")
    with torch.no_grad():
        pooled = features(images[:4]).double().numpy()
    theirs = pooled @ convert.open_packed(trained).entries["visual.proj"].read().astype(np.float64)
    close(theirs / np.linalg.norm(theirs, axis=1, keepdims=True), ours[0][:4], 2e-5, f"{what}: image features of the tower")
    converter(trained, "-o", f"lit-{what}-open_clip", "--format", "open_clip")
    by_open_clip(f"open_clip, LiT on {what}", f"lit-{what}-open_clip", images, ours)


def randomised(model):
    """Biases and gains that matter."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def check_towers(images):
    torch.manual_seed(2)
    pixels = torch.stack([torch.from_numpy(np.asarray(p).copy()).permute(2, 0, 1) for p in images[:4]]).float() / 255
    model = randomised(timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=10))
    timm.models.save_for_hf(model, "timm-vit", model_args={"img_size": SIZE})
    converter("timm-vit", "-o", "timm-vit.bin")
    check_tower("timm", "timm-vit.bin", "gelu.json", lambda _: model.forward_head(model.forward_features((pixels - 0.5) / 0.5), pre_logits=True), images)
    config = transformers.ViTConfig(hidden_size=96, num_hidden_layers=3, num_attention_heads=3, intermediate_size=200, image_size=SIZE, patch_size=16)
    vit = randomised(transformers.ViTForImageClassification(config))
    vit.save_pretrained("hf-vit")
    transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained("hf-vit")
    converter("hf-vit", "-o", "hf-vit.bin")
    check_tower("transformers", "hf-vit.bin", "gelu.json", lambda _: vit.vit((pixels - 0.5) / 0.5).last_hidden_state[:, 0], images)


def check_wandb(_):
    """A run reported to the real package in its offline mode."""
    environment = {**os.environ, "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"], "WANDB_DIR": os.path.abspath(".")}
    p = subprocess.run([PROGRAM, "--model", "gelu.json", "--train-data", "pairs.csv", "--batch-size", "4", "--steps", "3", "--warmup", "0", "--logs", "logs",
                        "--name", "reported", "--report-to", "wandb"], capture_output=True, text=True, env=environment)
    files = glob.glob("wandb/offline-run-*/*.wandb") + glob.glob("logs/reported/wandb/offline-run-*/*.wandb")
    check(p.returncode == 0 and files and os.path.getsize(files[0]) > 0, f"wandb, offline: {files or p.stderr[-300:]}")


def main():
    folder = os.path.abspath(sys.argv[1])
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    print(f"open_clip {open_clip.__version__}, transformers {transformers.__version__}, timm {timm.__version__}, torch {torch.__version__}")
    images = make_data()
    for part in (check_clip, check_towers, check_wandb):
        checks.run(part, images)
    return checks.report()


if __name__ == "__main__":
    sys.exit(main())
