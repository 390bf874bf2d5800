"""Checkpoints of every format, damaged: an SAE that works, or an error; never code that runs, never gigabytes."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

import saekernels as sk
from fuzz import mutate
from fuzz.engine import ACCEPTED, Rejected

D, F, OUT, K = 6, 20, 4, 3
Files = dict[str, bytes]


def _t(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def torch_file(content: Any) -> bytes:
    """What torch.save makes of it."""
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def json_file(**content: Any) -> bytes:
    """These fields as JSON."""
    return json.dumps(content).encode()


def _saelens(activation: Any, **options: Any) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        sk.save(sk.SAE(D, F, activation, **options), folder)
        return {name: (Path(folder) / name).read_bytes() for name in os.listdir(folder)}


def _sparsify() -> Files:
    tensors = {"encoder.weight": _t(F, D), "encoder.bias": _t(F), "W_dec": _t(F, D), "b_dec": _t(D), "W_skip": _t(D, D)}
    config = json_file(activation="topk", expansion_factor=3, num_latents=F, k=K, d_in=D, skip_connection=True)
    return {"cfg.json": config, "sae.safetensors": to_safetensors(tensors)}


def _gemma() -> Files:
    arrays = {"W_enc": _t(D, F), "W_dec": _t(F, D), "b_enc": _t(F), "b_dec": _t(D), "threshold": _t(F).abs()}
    out = io.BytesIO()
    np.savez(out, **{name: value.numpy() for name, value in arrays.items()})
    return {"params.npz": out.getvalue()}


def _llama() -> Files:
    config = json_file(
        d_model=D, expansion_factor=F / D, act_fn="jumprelu", jump_relu_threshold=0.5, norm_activation="dataset-wise",
        hook_point_in="a", hook_point_out="a", dataset_average_activation_norm={"in": 2.0, "out": 3.0},
    )  # fmt: skip
    tensors = {"encoder.weight": _t(F, D), "encoder.bias": _t(F), "decoder.weight": _t(D, F), "decoder.bias": _t(D)}
    return {"hyperparams.json": config, "checkpoints/final.safetensors": to_safetensors(tensors)}


def _openai() -> Files:
    found = {"pre_bias": _t(D), "latent_bias": _t(F), "encoder.weight": _t(F, D), "decoder.weight": _t(D, F),
             "activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}  # fmt: skip
    return {"7.pt": torch_file(found)}


def _dictionary() -> Files:
    tensors = {"encoder.weight": _t(F, D), "encoder.bias": _t(F), "decoder.weight": _t(D, F), "b_dec": _t(D),
               "k": torch.tensor(K), "threshold": torch.tensor(0.5)}  # fmt: skip
    return {"ae.pt": torch_file(tensors), "config.json": json_file(trainer={"dict_class": "BatchTopKSAE", "k": K})}


def _goodfire() -> Files:
    tensors = {"encoder_linear.weight": _t(F, D), "encoder_linear.bias": _t(F),
               "decoder_linear.weight": _t(D, F), "decoder_linear.bias": _t(D)}  # fmt: skip
    return {"l19.pth": torch_file(tensors)}


def _qwen() -> Files:
    tensors = {"W_enc": _t(F, D), "W_dec": _t(D, F), "b_enc": _t(F), "b_dec": _t(D)}
    return {f"SAE-L0_{K}/layer3.sae.pt": torch_file(tensors)}


def _circuit() -> Files:
    tensors = {"W_enc": _t(F, D), "W_dec": _t(F, OUT), "b_enc": _t(F), "b_dec": _t(OUT), "W_skip": _t(OUT, D)}
    return {"layer_3.safetensors": to_safetensors(tensors)}


def _state_dict() -> Files:
    tensors = {"W_enc": _t(D, F), "W_dec": _t(F, D), "b_enc": _t(F), "b_dec": _t(D)}
    wrapped = {"state_dict": {f"module.{n}": v for n, v in tensors.items()}, "cfg": {"activation": "topk", "k": K}}
    return {"mine.pt": torch_file(wrapped), "cfg.json": json_file(apply_b_dec_to_input=True)}


def _toy() -> Files:
    tensors = {"W_enc": _t(1, D, F), "_W_dec": _t(1, F, D), "b_enc": _t(1, F), "b_dec": _t(1, D)}
    return {"toy.safetensors": to_safetensors(tensors), "cfg.json": json_file(weight_normalize_eps=1e-8, d_in=D)}


KINDS: dict[str, Callable[[], Files]] = {
    "saelens topk": lambda: _saelens(sk.TopK(K)),
    "saelens jumprelu": lambda: _saelens(sk.JumpReLU(), normalization=sk.LayerNorm()),
    "saelens gated": lambda: _saelens(sk.Gated()),
    "sparsify": _sparsify,
    "gemma scope": _gemma,
    "llama scope": _llama,
    "openai": _openai,
    "dictionary_learning": _dictionary,
    "goodfire": _goodfire,
    "qwen scope": _qwen,
    "circuit tracer": _circuit,
    "state dict": _state_dict,
    "toy SAE": _toy,
}


@functools.cache
def files(kind: str) -> Files:
    return KINDS[kind]()


class Evil:
    """What a pickle can run: it makes the file whose name it holds."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (os.mknod, (self.canary,))


def damaged(rng: random.Random) -> str:
    """Load a checkpoint of any kind with any damage, or none, in a folder of its own."""
    kind = rng.choice(list(KINDS))
    made, folder = dict(files(kind)), Path(tempfile.mkdtemp(prefix="saekernels-fuzz-"))
    canary = folder / "canary"
    try:
        whole = rng.random() < 0.05
        if not whole:
            name = rng.choice(list(made))
            made[name] = spoilt(rng, name, made[name], str(canary))
        for name, content in made.items():
            (folder / "sae" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "sae" / name).write_bytes(content)
        entry(rng, folder, made, whole)
        return _judge(rng, folder / "sae", made, whole)
    finally:
        assert not canary.exists(), "a pickle was run"
        shutil.rmtree(folder, ignore_errors=True)


def spoilt(rng: random.Random, name: str, content: bytes, canary: str) -> bytes:
    """A file with damage of a kind that its format knows, or to its bytes."""
    kind = rng.random()
    if name.endswith(".json") and kind < 0.8:
        return mutate.text(rng, json.loads(content))
    if name.endswith(".safetensors") and kind < 0.6:
        return _header(rng, content)
    if name.endswith((".pt", ".pth")) and kind < 0.5:
        found = mutate.structure(rng, torch.load(io.BytesIO(content), weights_only=True))
        if rng.random() < 0.4 and isinstance(found, dict):
            found["evil"] = Evil(canary)
        try:
            return torch_file(found) if rng.random() < 0.9 else pickle.dumps(found)
        except Exception:  # what cannot even be pickled is no case
            return b""
    return mutate.data(rng, content)


def _header(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header lies: of offsets, shapes, types, or of its own length."""
    length = int.from_bytes(content[:8], "little")
    header = mutate.structure(rng, json.loads(content[8 : 8 + length]))
    text = json.dumps(header).encode()
    told = len(text) if rng.random() < 0.9 else rng.choice([0, 1, 2**40, 2**63, len(text) + 1])
    return told.to_bytes(8, "little") + text + content[8 + length :]


def entry(rng: random.Random, folder: Path, made: Files, whole: bool) -> None:
    """Files that are missing, folders, links to nowhere or to themselves."""
    if whole or rng.random() < 0.85:
        return
    path = folder / "sae" / rng.choice(list(made))
    path.unlink()
    kind = rng.randrange(4)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(path)
    elif kind == 2:
        path.symlink_to("/nowhere/at/all")


@contextlib.contextmanager
def refusing(folder: Path, whole: bool) -> Iterator[None]:
    """Loading that may refuse what lies in a folder, in words; what is whole is not refused for its format."""
    try:
        yield
    except (sk.FormatError, FileNotFoundError) as error:
        assert not whole, f"{folder}: {error}"
        raise Rejected from error
    except OSError as error:
        raise Rejected from error
    except (TypeError, ValueError) as error:
        assert str(error).strip(), "says nothing"
        raise Rejected from error


def _judge(rng: random.Random, folder: Path, made: Files, whole: bool) -> str:
    inner = [folder / name for name in made] if len(made) == 1 or rng.random() < 0.2 else [folder]
    place = rng.choice([folder, *inner]) if not whole else inner[0]
    with refusing(folder, whole):
        sae = sk.load(place, dtype=rng.choice([None, torch.float32, torch.bfloat16]))
    assert sae.n_latents * (sae.d_in + sae.d_out) < 10**8
    out = sae(torch.randn(2, sae.d_in))
    assert out.shape == (2, sae.d_out)
    return ACCEPTED
