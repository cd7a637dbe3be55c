#!/usr/bin/env python3
"""Tests of dev/convert.py: the tables of models and tags, configurations, decisions, the command line."""
import json
import os
import sys
import types

import numpy as np

import checkpoint_files
from checkpoint_files import (CONFIG, check, convert, convert_and_expect, hf_json, hf_tensors, put, refused,
                              run, shapes, weights, write_safetensors)
import models


def test_the_tables_are_those_of_open_clip():
    check([f[1] for f in models.CONFIG_FIELDS][:2] == ["embed_dim", "image_size"],
          "the first of CONFIG_FIELDS")
    check(models.CONFIG_FIELDS[25] == ("float", "std_b", 1e-4, 10.0), "kinds and limits of CONFIG_FIELDS")
    check(len(models.CONFIG_FIELDS) <= models.CONSTANTS["HEADER_NAME"] - models.CONSTANTS["HEADER_CONFIG"],
          "the fields fit the header")
    config = models.open_clip_config("tiny", CONFIG).config
    ours = {k: v if k != "logit_scale" else () for k, v in models.tensor_shapes(config).items()}
    check(ours == shapes(), "the table of tensors is open_clip's list")
    check(list(ours)[0] == "visual.conv1.weight" and list(ours)[-1] == "logit_scale", "order of the tensors")
    without = models.tensor_shapes({**config, "ln_pre": 0})
    check(set(ours) - set(without) == {"visual.ln_pre.weight", "visual.ln_pre.bias"}, "ln_pre is optional")
    for row in models.MODEL_ROWS:
        config = models.check_config(models.config_of_row(row), row.name)
        check(config["image_width"] // config["image_heads"] == row.head_width
              and config["text_width"] == 64 * config["text_heads"], f"{row.name}: heads")
        check(row.name.split("-")[2] == str(config["patch_size"]), f"{row.name}: patch size")
    known = {row.name: models.config_of_row(row) for row in models.MODEL_ROWS}
    check(len(known) == len(models.MODEL_ROWS) == 24, f"{len(known)} models")
    count = {name: sum(int(np.prod(s)) for s in models.tensor_shapes(c).values())
             for name, c in known.items()}
    check(count["ViT-B-32"] == 151277313 and len(models.tensor_shapes(known["ViT-B-32"])) == 302,
          "parameters of ViT-B-32")
    check([known[n]["image_mlp"] for n in ("ViT-H-14", "ViT-g-14", "ViT-bigG-14", "ViT-e-14")]
          == [5120, 6144, 8192, 15360], "MLP widths")
    check([known[n]["image_heads"] for n in ("ViT-H-14", "ViT-g-14", "ViT-bigG-14", "ViT-e-14")]
          == [16, 16, 16, 16], "heads")
    suffixed = " ".join(row.name for row in models.MODEL_ROWS if row.quickgelu)
    check(suffixed == "ViT-B-32 ViT-B-16 ViT-L-14 ViT-L-14-336 ViT-H-14 ViT-H-14-378 ViT-bigG-14",
          "names that open_clip also has with -quickgelu")
    check(len(models.TAGS) == 41 and all(t[0] in known for t in models.TAGS), f"{len(models.TAGS)} tags")
    quick = {(t[0], t[1]): t[2] for t in models.TAGS}
    check(quick["ViT-B-32", "laion400m_e32"] and not quick["ViT-B-16", "laion400m_e32"]
          and not quick["ViT-H-14", "metaclip_altogether"], "activations of tags")
    check(all(t[2] for t in models.TAGS
              if t[1] in ("openai", "dfn2b", "dfn5b", "metaclip_400m", "metaclip_fullcc")), "quick tags")
    code, out, _ = run("--list")
    check(code == 0 and all(name in out for name in known) and all(t[1] in out for t in models.TAGS)
          and "ViT-B-32-quickgelu" in out, "--list")


def test_the_first_source_that_names_an_activation_wins():
    put("quick.json", {**CONFIG, "quick_gelu": True})
    put("config.json", CONFIG)
    w = weights()
    write_safetensors("x.safetensors", w)
    for arguments, quick in (([], 0), (["--model", "quick.json"], 1), (["--model", "config.json"], 0),
                             (["--force-quick-gelu"], 1)):
        convert_and_expect(["x.safetensors", *arguments], w, f"activation with {arguments}", quick_gelu=quick)
    tag = models.TAGS[0]
    parsed = types.SimpleNamespace(force_quick_gelu=False, model="ViT-B-32", pretrained="openai")
    plain, nothing = types.SimpleNamespace(openai=False), None
    own = models.Known({}, False, "own.json")
    named, suffixed = (models.load_model_argument(n) for n in ("ViT-B-32", "ViT-B-32-quickgelu"))
    check(convert.choose_activation(parsed, own, named, tag[2:], plain)[0] is True,
          "a tag wins over the file's configuration")
    check(convert.choose_activation(parsed, nothing, named, nothing, plain)[2] is True,
          "a bare name does not decide")
    check(convert.choose_activation(parsed, own, named, nothing, plain)[::2] == (False, False),
          "the file's configuration wins over a bare name")
    parsed.model = "ViT-B-32-quickgelu"
    check(convert.choose_activation(parsed, own, suffixed, nothing, plain)[0] is True,
          "the suffix wins over the file's configuration")
    check(models.base_name("ViT-B/32")[0][0] == "ViT-B-32"
          and models.base_name("ViT-L-16-quickgelu")[0] is None, "names")


# section ("." is the top), key, value
REFUSED_KEYS = """
    vision_cfg timm_model_name "vit_base"
    vision_cfg layers [3, 4, 6, 3]
    vision_cfg attentional_pool true
    vision_cfg no_ln_pre 1
    vision_cfg pool_type "avg"
    vision_cfg ls_init_value 1e-4
    vision_cfg image_size [10, 12]
    vision_cfg width "12"
    vision_cfg width 12.0
    vision_cfg width true
    vision_cfg surprise 0
    vision_cfg mlp_ratio -1
    vision_cfg norm_kwargs {"eps": 1e-6, "other": 1}
    vision_cfg head_width 0
    vision_cfg patch_size 12
    text_cfg hf_model_name "roberta-base"
    text_cfg hf_tokenizer_name "bert-base-uncased"
    text_cfg pool_type "eos"
    text_cfg no_causal_mask true
    text_cfg proj_bias true
    text_cfg vocab_size 1000000000
    text_cfg heads 3
    . init_logit_bias -10
    . embed_dim null
    . quick_gelu 1
    . vision_cfg [1]
"""
HARMLESS_KEYS = """
    vision_cfg patch_dropout 0.5
    vision_cfg image_size [11, 11]
    vision_cfg pool_type "tok"
    vision_cfg attentional_pool false
    vision_cfg norm_kwargs {"eps": 1e-5}
    text_cfg hf_model_name null
    . init_logit_scale 1.0
"""


def test_configurations_of_other_models_are_refused():
    def altered(section, key, value):
        c = json.loads(json.dumps(CONFIG))
        (c[section] if section else c)[key] = value
        return put("c.json", c)
    np.savez("x.npz", **weights())
    for line in REFUSED_KEYS.strip().splitlines():
        section, key, value = line.strip().split(" ", 2)
        name = {"head_width": "image_heads", "heads": "text_heads"}.get(key, key)
        refused(["x.npz", "--model", altered(section.strip("."), key, json.loads(value))], name,
                f"configuration with {line}")
    for line in HARMLESS_KEYS.strip().splitlines():
        section, key, value = line.strip().split(" ", 2)
        code, _, err = run("x.npz", "--model", altered(section.strip("."), key, json.loads(value)), "-o",
                           "y.bin")
        check(code == 0, f"configuration with {line}: {err}")
    refused(["x.npz", "--model", "ViT-B-23"], "did you mean ViT-B-32?", "a misspelt model")
    refused(["x.npz", "--model", "ViT-B-32"], "the configuration is from --model ViT-B-32",
            "another model's weights")
    refused(["x.npz", "--model", put("c.json", b'{"embed_dim": 7, "embed_dim": 8}')],
            "embed_dim appears twice", "a key twice")
    refused(["x.npz", "--model", put("c.json", b"[" * 100000)], "nested too deep", "deep JSON")
    refused(["x.npz", "--model", put("c.json", b'{"embed_dim": NaN}')], "not valid JSON", "NaN in JSON")
    os.makedirs("other", exist_ok=True)
    put("other/config.json", {"editor": "unrelated"})
    np.savez("other/x.npz", **weights())
    refused(["other/x.npz"], "give --model", "an unrelated config.json is ignored")


def test_wrong_command_lines_are_refused_in_one_line():
    np.savez("x.npz", **weights())
    put("config.json", CONFIG)
    for arguments, says in (([], "IN is missing"), (["nothing.pt"], "nothing.pt: no such file"),
                            (["x.npz", "--dtype", "fp16"], "--dtype"),
                            (["x.npz", "--random", "1"], "--random"),
                            (["--model", "ViT-B-32", "--pretrained", "nonsense"], "openai, laion400m_e31"),
                            (["--pretrained", "openai"], "--model NAME"),
                            (["x.npz", "--modle", "y"], "--modle"),
                            (["--model", "ViT-M-32", "--pretrained", "openai"], "no tag")):
        refused(arguments, says, f"command line {arguments}")
    code, _, err = run("x.npz")
    check(code == 2 and "-o OUT is missing" in err, "no output named")
    code, _, err = run("x.npz", "-o", "new/folder/y.bin")
    check(code == 0 and os.path.exists("new/folder/y.bin"), f"the folder of the output is made: {err}")
    code, _, err = run("x.npz", "-o", "new/folder")
    check(code == 2 and "new/folder: Is a directory" in err and not os.path.exists("new/folder.part"),
          f"the output is a folder: {err}")
    with open("new/folder/y.bin", "rb") as f:
        good = f.read()
    for what, bad in (("short", good[:-1]), ("long", good + b"x"), ("header only", good[:1024]),
                      ("cut header", good[:1000]), ("version", good[:4] + b"\7" + good[5:]),
                      ("field", good[:64] + b"\xff\xff\xff\xff" + good[68:]),
                      ("fields", good[:12] + b"\xff" + good[13:])):
        put("bad.bin", bad)
        refused(["bad.bin"], "bad.bin", f"packed file, {what}", "bad-out.bin")
    code, _, _ = run("new/folder/y.bin", "-o", "y")
    check(code == 0, "a .bin to another place")


def test_the_package_of_the_model_hub_is_used_where_it_is():
    """An imitation of huggingface_hub is used; without it: test_hub.py."""
    hidden = {k: sys.modules.pop(k) for k in list(sys.modules) if k.split(".")[0] == "huggingface_hub"}
    refused(["some/model.pt"], "no such file", "a missing file is not a hub id")
    put("hub/config.json", hf_json())
    write_safetensors("hub/model.safetensors", hf_tensors(weights(4)))
    hub = types.ModuleType("huggingface_hub")
    hub.list_repo_files = lambda repository: ["README.md", "config.json", "model.safetensors"]
    hub.hf_hub_download = lambda repository, name: os.path.join("hub", name)
    sys.modules["huggingface_hub"] = hub
    convert_and_expect(["some/model"], weights(4), "a hub id", quick_gelu=0)

    def fail(repository):
        raise RuntimeError("offline\nfor a while")
    hub.list_repo_files = fail
    refused(["some/model"], "cannot be downloaded (offline for a while)", "the hub fails")
    sys.modules.pop("huggingface_hub")
    sys.modules.update(hidden)


def test_a_tag_sets_activation_and_preprocessing_of_a_file():
    """The real model is too large here: only the decision is tested."""
    for tag, want in (("laion2b_s32b_b82k", {"mean_r": 0.5, "std_b": 0.5, "quick_gelu": 0}),
                      ("openai", {"mean_r": 0.48145466, "std_b": 0.27577711, "quick_gelu": 1})):
        args = types.SimpleNamespace(force_quick_gelu=False, model="ViT-L-14", pretrained=tag, input="x.pt")
        config, *_ = convert.decide(args, types.SimpleNamespace(openai=False, vit=None, path="x.pt"), None)
        check(all(config[k] == v for k, v in want.items()), f"what the tag {tag} sets")
        check(config["name"] == "ViT-L-14" + "-quickgelu" * want["quick_gelu"],
              f"name with the tag {tag}: {config['name']}")
    args = types.SimpleNamespace(force_quick_gelu=False, model="ViT-H-14-378-quickgelu", pretrained="dfn5b",
                                 input="x.pt")
    config, *_ = convert.decide(args, types.SimpleNamespace(openai=False, vit=None, path="x.pt"), None)
    check(config["resize_mode"] == 1 and config["quick_gelu"] == 1, "dfn5b squashes")


if __name__ == "__main__":
    sys.exit(checkpoint_files.run_tests(globals()))
