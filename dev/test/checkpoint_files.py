"""What the tests of dev/convert.py share: a tiny model, files of it in every form (what torch writes is
imitated), and checks of what is converted or refused. Each test runs in a temporary folder of its own."""
import contextlib
import io
import json
import os
import pickle
import struct
import sys
import tempfile
import types
import zipfile
from collections import OrderedDict

import numpy as np

import checks
from checks import check

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "dev"))
import convert  # noqa: E402


def run(*arguments):
    """dev/convert.py in this process: -> exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = convert.main([str(a) for a in arguments])
    return code, out.getvalue(), err.getvalue()


def refused(arguments, says, what, output="x.bin"):
    """Exit code 2, one line that holds `says`, no output file, nothing run."""
    code, _, err = run(*arguments, "-o", output)
    check(code == 2 and err.count("\n") == 1 and says in err,
          f"{what}: exit {code}: {err.strip()[:300]!r} should say {says!r}")
    left = [name for name in (output, output + ".part", "pwned.txt") if os.path.exists(name)]
    check(not left, f"{what}: left {left}")


# ---------------------------------------------------------------- a tiny model and files of it

CONFIG = {"embed_dim": 7, "quick_gelu": False, "vision_cfg": {"image_size": 11, "patch_size": 4, "width": 12,
                                                              "head_width": 6, "layers": 2, "mlp_ratio": 2.6},
          "text_cfg": {"context_length": 5, "vocab_size": 19, "width": 10, "heads": 2, "layers": 1}}


def shapes(E=7, P=4, C=12, T=5, F=31, L=2, V=19, W=10, N=5, G=40, M=1):
    """Names and shapes written out once more, from open_clip and not from clipc/model/weights.h."""
    def blocks(prefix, layers, c, hidden):
        block = {"ln_1.weight": (c,), "ln_1.bias": (c,), "attn.in_proj_weight": (3 * c, c),
                 "attn.in_proj_bias": (3 * c,), "attn.out_proj.weight": (c, c), "attn.out_proj.bias": (c,),
                 "ln_2.weight": (c,), "ln_2.bias": (c,), "mlp.c_fc.weight": (hidden, c),
                 "mlp.c_fc.bias": (hidden,), "mlp.c_proj.weight": (c, hidden), "mlp.c_proj.bias": (c,)}
        return {f"{prefix}transformer.resblocks.{i}.{key}": shape for i in range(layers)
                for key, shape in block.items()}
    return {"positional_embedding": (N, W), "text_projection": (W, E), "logit_scale": (),
            "visual.class_embedding": (C,), "visual.positional_embedding": (T, C), "visual.proj": (C, E),
            "visual.conv1.weight": (C, 3, P, P), "visual.ln_pre.weight": (C,), "visual.ln_pre.bias": (C,),
            **blocks("visual.", L, C, F), "visual.ln_post.weight": (C,), "visual.ln_post.bias": (C,),
            **blocks("", M, W, G), "token_embedding.weight": (V, W), "ln_final.weight": (W,),
            "ln_final.bias": (W,)}


def weights(seed=0, dtype="<f4", of=None):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in (of or shapes()).items()}


def bf16_bits(x):
    """float32 to bf16 the slow way: the nearer of the two neighbours, the even one in a tie."""
    shape, x = np.shape(x), np.asarray(x, "<f4").reshape(-1)
    low = (x.view("<u4") >> 16).astype("<u2")
    down = (low.astype("<u4") << 16).view("<f4").astype("f8")
    up = ((low.astype("<u4") + 1) << 16).view("<f4").astype("f8")
    below, above = np.abs(x - down), np.abs(up - x)
    up_is_nearer = (above < below) | ((above == below) & (low % 2 == 1))
    return np.where(up_is_nearer, low + 1, low).astype("<u2").reshape(shape)


def bf16_values(bits):
    return (np.asarray(bits, "<u2").reshape(-1).astype("<u4") << 16).view("<f4").reshape(np.shape(bits))


def write_safetensors(path, tensors,
                      names={"<f8": "F64", "<f4": "F32", "<f2": "F16", "<u2": "BF16", "<i8": "I64"}):
    header, data = {}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": names[array.dtype.str], "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def put(path, data):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


# What torch writes, imitated: modules and classes of its names, so that pickle itself writes the same
# opcodes.

def fake(module, name, value=None):
    if value is None:
        value = type(name, (), {})
    value.__module__, value.__qualname__, value.__name__ = module, name, name
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[:i + 1]), types.ModuleType(parts[i]))
    setattr(sys.modules[module], name, value)
    return value


def rebuild(*arguments):
    raise AssertionError("only named in pickles")


REBUILD = fake("torch._utils", "_rebuild_tensor_v2", rebuild)
PARAMETER = fake("torch._utils", "_rebuild_parameter", lambda *a: None)
STORAGES = {"<f8": fake("torch", "DoubleStorage"), "<f4": fake("torch", "FloatStorage"),
            "<f2": fake("torch", "HalfStorage"), "<u2": fake("torch", "BFloat16Storage"),
            "<i8": fake("torch", "LongStorage")}


class TorchStorage:
    def __init__(self, array):
        self.array = np.ascontiguousarray(array).reshape(-1)


class TorchTensor:
    """shape and strides over a storage (of the array alone, unless one is given)."""

    def __init__(self, array, storage=None, offset=0, strides=None, parameter=False):
        self.storage, self.offset, self.parameter = storage or TorchStorage(array), offset, parameter
        self.shape = np.shape(array)
        contiguous = tuple(int(s) for s in np.cumprod((1,) + self.shape[:0:-1])[::-1])
        self.strides = strides or contiguous[:len(self.shape)]

    def __reduce__(self):
        tensor = (REBUILD, (self.storage, self.offset, self.shape, self.strides, False, OrderedDict()))
        return tensor if not self.parameter else (PARAMETER, (TorchTensor.raw(self), True, OrderedDict()))

    def raw(self):
        plain = TorchTensor.__new__(TorchTensor)
        plain.__dict__.update(self.__dict__, parameter=False)
        return plain


class TorchPickler(pickle.Pickler):
    def __init__(self, file, legacy=False):
        super().__init__(file, 2)
        self.storages, self.legacy = {}, legacy

    def persistent_id(self, obj):
        if not isinstance(obj, TorchStorage):
            return None
        key = str(list(self.storages).index(id(obj)) if id(obj) in self.storages else len(self.storages))
        self.storages[id(obj)] = obj
        view = (None,) if self.legacy else ()
        return ("storage", STORAGES[obj.array.dtype.str], key, "cpu", obj.array.size) + view


def torch_zip(path, obj, compression=zipfile.ZIP_STORED, align=True, drop=(), extra_members=(), pickled=None,
              zip64=False):
    out = io.BytesIO()
    pickler = TorchPickler(out)
    pickler.dump(obj)
    with zipfile.ZipFile(path, "w", compression) as z:
        z.writestr("archive/data.pkl", pickled or out.getvalue())
        z.writestr("archive/byteorder", b"little")
        for name in extra_members:
            z.writestr(f"archive/{name}", b"")
        for key, storage in enumerate(pickler.storages.values()):
            if key in drop:
                continue
            info = zipfile.ZipInfo(f"archive/data/{key}")
            info.compress_type = compression
            if align:  # torch pads by an extra field, so that numbers begin at a multiple of 64
                space = -(z.fp.tell() + 30 + len(info.filename) + 4) % 64
                info.extra = b"FB" + struct.pack("<H", space) + b"Z" * space
            with z.open(info, "w", force_zip64=zip64) as f:
                f.write(storage.array.tobytes())
        z.writestr("archive/version", b"3\n")


def torch_legacy(path, obj, keys=None, cut=0):
    with open(path, "wb") as f:
        pickle.dump(0x1950A86A20F9469CFC6C, f, 2)
        pickle.dump(1001, f, 2)
        pickle.dump({"protocol_version": 1001, "little_endian": True,
                     "type_sizes": {"short": 2, "int": 4, "long": 4}}, f, 2)
        pickler = TorchPickler(f, legacy=True)
        pickler.dump(obj)
        storages = list(pickler.storages.values())
        order = list(reversed(range(len(storages))))
        pickle.dump(keys or [str(k) for k in order], f, 2)
        for k in order:
            f.write(struct.pack("<q", storages[k].array.size) + storages[k].array.tobytes())
        f.truncate(f.tell() - cut)


def tensors(arrays):
    return {name: TorchTensor(a) for name, a in arrays.items()}


def script(arrays, classes=("QuickGELU",)):
    """The tree of modules of a TorchScript archive."""
    def module(name="Module"):
        known = sys.modules.get("__torch__.model")
        return (getattr(known, name, None) or fake("__torch__.model", name))()
    root = module("CLIP")
    for name, array in arrays.items():
        *path, last = name.split(".")
        at = root
        for part in path:
            if not hasattr(at, part):
                setattr(at, part, module())
            at = getattr(at, part)
        setattr(at, last, TorchTensor(array))
    root.training = True
    for i, name in enumerate(classes):
        setattr(root, f"activation{i}", module(name))
    return root


def hf_tensors(arrays):
    """Our names to those of transformers' CLIPModel, written out from its source."""
    out = {}
    for name, a in arrays.items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        parts = name.replace("visual.", "").split(".")
        if name == "logit_scale":
            out[name] = a
        elif name in ("visual.proj", "text_projection"):
            key = "visual_projection.weight" if name == "visual.proj" else "text_projection.weight"
            out[key] = np.ascontiguousarray(a.T)
        elif "resblocks" in name:
            layer = f"{tower}.encoder.layers.{parts[2]}."
            rest = ".".join(parts[3:])
            if rest.startswith("attn.in_proj"):
                for letter, part in zip("qkv", np.split(a, 3)):
                    out[f"{layer}self_attn.{letter}_proj.{rest[13:]}"] = part
            else:
                for ours, theirs in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"),
                                     ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"),
                                     ("mlp.c_proj", "mlp.fc2")):
                    rest = rest.replace(ours, theirs)
                out[layer + rest] = a
        else:
            key = ".".join(parts)
            names = {"class_embedding": "embeddings.class_embedding",
                     "conv1.weight": "embeddings.patch_embedding.weight",
                     "token_embedding.weight": "embeddings.token_embedding.weight",
                     "positional_embedding": "embeddings.position_embedding.weight",
                     "ln_pre.weight": "pre_layrnorm.weight", "ln_pre.bias": "pre_layrnorm.bias",
                     "ln_post.weight": "post_layernorm.weight", "ln_post.bias": "post_layernorm.bias",
                     "ln_final.weight": "final_layer_norm.weight", "ln_final.bias": "final_layer_norm.bias"}
            key = names[key]
            out[f"{tower}.{key}"] = a
    out["text_model.embeddings.position_ids"] = np.arange(5, dtype="<i8").reshape(1, 5)
    out["vision_model.embeddings.position_ids"] = np.arange(5, dtype="<i8").reshape(1, 5)
    return out


def hf_json(act="gelu", eps=1e-5):
    return {"model_type": "clip", "projection_dim": 7,
            "vision_config": {"hidden_size": 12, "intermediate_size": 31, "num_hidden_layers": 2,
                              "num_attention_heads": 2, "image_size": 11, "patch_size": 4, "hidden_act": act,
                              "layer_norm_eps": eps},
            "text_config": {"hidden_size": 10, "intermediate_size": 40, "num_hidden_layers": 1,
                            "num_attention_heads": 2, "max_position_embeddings": 5, "vocab_size": 19,
                            "hidden_act": act, "layer_norm_eps": eps, "eos_token_id": 2}}


def expect_packed(path, arrays, what, **fields):
    """The packed file holds these tensors, rounded to its type, bit for bit, and these fields."""
    packed = convert.open_packed(path)
    want = {k: np.reshape(v, -1) for k, v in arrays.items()}
    check(set(want) == set(packed.entries), f"{what}: names differ")
    for name, entry in packed.entries.items():
        x = want[name].astype("<f4")
        bits = bf16_bits(x) if packed.dtype == "BF16" else x
        check(np.array_equal(entry.read().reshape(-1).view("u1"), bits.view("u1")), f"{what}: {name} differs")
    for key, value in fields.items():
        check(packed.config[key] == value, f"{what}: {key} is {packed.config[key]!r} instead of {value!r}")


def convert_and_expect(arguments, arrays, what, **fields):
    code, out, err = run(*arguments, "-o", "out.bin")
    check(code == 0, f"{what}: exit {code}: {err.strip()}")
    if code == 0:
        expect_packed("out.bin", arrays, what, **fields)
        os.unlink("out.bin")
    return out, err


# ---------------------------------------------------------------- running

def run_in_folder(test, *arguments):
    """Runs a test in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        checks.run(test, *arguments)
        os.chdir(ROOT)


def run_tests(names):
    """Runs the tests among a module's globals(); -> exit code."""
    for test in checks.tests_of(names):
        run_in_folder(test)
    return checks.report()
