"""Dictionaries that span layers in every layout, damaged: one that runs, or an error; never code that runs."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save as to_safetensors
from torch import Tensor

import layouts
import saekernels as sk
from fuzz import mutate
from fuzz.engine import ACCEPTED
from fuzz.saes import Files, entry, json_file, refusing, spoilt, torch_file
from saekernels.formats.layers.describe import describe_cross_layer

D, F, L = 3, 4, 2


def _t(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _written(write: Callable[[sk.CrossLayerTranscoder, Path], None], skip: bool = False) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        write(layouts.made(D, F, L, skip=skip), Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _layertopk() -> Files:
    tensors = {"W_E": _t(L, D, F), "b_E": _t(L, F), "W_D.0": _t(1, F, D), "W_D.1": _t(2, F, D),
               "b_D.0": _t(D), "b_D.1": _t(D)}  # fmt: skip
    config = json_file(sae_type="clt", d_model=D, act_fn="layertopk", top_k=3, norm_activation="none",
                       hook_points_in=["a", "b"], hook_points_out=["c", "d"])  # fmt: skip
    return {"config.json": config, "sae_weights.safetensors": to_safetensors(tensors)}


def _set() -> Files:
    found = {}
    for layer in range(L):
        tensors = {"W_enc": _t(F, D), "W_dec": _t(F, D), "b_enc": _t(F), "b_dec": _t(D), "W_skip": _t(D, D)}
        found[f"layer_{layer}.safetensors"] = to_safetensors(tensors)
    fields = {
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
    }
    return {**found, "config.yaml": yaml.safe_dump({**fields, "activation": "topk", "k": 2}).encode()}


def _kissane() -> Files:
    tensors = {"W_enc": _t(L, D, F), "W_dec": _t(F, L, D), "b_enc": _t(F), "b_dec": _t(L, D)}
    return {"cc_weights.pt": torch_file(tensors), "cfg.json": json_file(d_in=D, dict_size=F, hook_point="h")}


def _fork(safe: bool) -> Files:
    tensors = {"encoder.weight": _t(L, D, F), "encoder.bias": _t(F), "decoder.weight": _t(L, F, D),
               "decoder.bias": _t(L, D), "k": torch.tensor(2), "threshold": torch.rand(L) + 0.5,
               "code_normalization_id": torch.tensor(5)}  # fmt: skip
    if safe:
        config = json_file(activation_dim=D, dict_size=F, num_layers=L, k=2)
        return {"model.safetensors": to_safetensors(tensors), "config.json": config}
    whole = {**tensors, "activation_mean": _t(L, D), "activation_std": _t(L, D).abs(), "threshold": torch.tensor(0.5),
             "activation_global_scale": torch.ones(L), "code_normalization_id": torch.tensor(2)}  # fmt: skip
    return {"ae.pt": torch_file(whole), "config.json": json_file(trainer={"dict_class": "BatchTopKCrossCoder", "k": 2})}


def _llama() -> Files:
    tensors = {"W_E": _t(L, D, F), "b_E": _t(L, F), "W_D": _t(L, F, D), "b_D": _t(L, D)}
    config = json_file(
        sae_type="crosscoder", d_model=D, expansion_factor=F / D + 0.01, hook_points=["a", "b"], act_fn="topk",
        top_k=2, norm_activation="inference", sparsity_include_decoder_norm=True,
    )  # fmt: skip
    return {"config.json": config, "sae_weights.safetensors": to_safetensors(tensors)}


LAYERED: dict[str, Callable[[], Files]] = {
    **{name: functools.partial(_written, write) for name, write in layouts.WRITERS.items()},
    "Gemma Scope 2 affine": lambda: _written(layouts.gemma_scope, skip=True),
    "CLT-Forge shards": lambda: _written(lambda clt, folder: layouts.clt_forge(clt, folder, shards=2)),
    "crosslayer-coding .pt": lambda: _written(lambda clt, folder: layouts.crosslayer_coding(clt, folder, pt=True)),
    "Llamascopium layertopk": _layertopk,
    "transcoder set": _set,
}
CROSSCODERS: dict[str, Callable[[], Files]] = {
    "ckkissane": _kissane,
    "dictionary_learning .pt": lambda: _fork(False),
    "dictionary_learning safetensors": lambda: _fork(True),
    "Llamascopium crosscoder": _llama,
}


@functools.cache
def files(kind: str) -> Files:
    return (LAYERED | CROSSCODERS)[kind]()


def damaged(rng: random.Random) -> str:
    """Load a dictionary of any layout with any damage, or none, in a folder of its own."""
    kind = rng.choice([*LAYERED, *CROSSCODERS])
    made, folder = dict(files(kind)), Path(tempfile.mkdtemp(prefix="saekernels-fuzz-"))
    canary = folder / "canary"
    try:
        whole = rng.random() < 0.05
        if not whole:
            name = rng.choice(list(made))
            made[name] = _spoilt(rng, name, made[name], str(canary))
        (folder / "sae").mkdir()
        for name, content in made.items():
            (folder / "sae" / name).write_bytes(content)
        entry(rng, folder, made, whole)
        return _judge(rng, kind, folder / "sae", made, whole)
    finally:
        assert not canary.exists(), "a file was run"
        shutil.rmtree(folder, ignore_errors=True)


def _spoilt(rng: random.Random, name: str, content: bytes, canary: str) -> bytes:
    if not name.endswith(".yaml") or rng.random() < 0.2:
        return spoilt(rng, name, content, canary)
    found = mutate.text(rng, yaml.safe_load(content))  # JSON, which is YAML
    return found + f"\nx: !!python/object/apply:os.mknod [{canary}]\n".encode() if rng.random() < 0.1 else found


def _judge(rng: random.Random, kind: str, folder: Path, made: Files, whole: bool) -> str:
    place = folder if rng.random() < 0.8 else folder / rng.choice(list(made))
    place = folder if whole else place
    options: dict[str, Any] = {"dtype": rng.choice([None, torch.float32, torch.bfloat16])}
    with refusing(folder, whole), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind in CROSSCODERS:
            scale = [0.5, 2.0] if kind == "ckkissane" else None
            scale = scale if whole else rng.choice([scale, scale, None, [1.0], [float("nan"), 1.0]])
            found: Any = sk.load_crosscoder(place, input_scale=scale, **options)
        else:
            facts = describe_cross_layer(place)
            found = sk.load_cross_layer(place, lazy=rng.random() < 0.5, **options)
            assert facts is None or facts["parameters"] == sum(one.numel() for one in found.parameters())
    assert sum(one.numel() for one in found.parameters()) < 10**8
    _run(found)
    return ACCEPTED


def _run(found: Any) -> None:
    """What it writes has the shapes that it says."""
    if isinstance(found, sk.Crosscoder):
        assert found(torch.randn(2, found.n_heads, found.d)).shape == (2, found.n_heads, found.d)
    elif isinstance(found, sk.CrossLayerTranscoder):
        out = found([torch.randn(2, found.d_in)] * found.n_layers)
        assert [one.shape for one in out] == [(2, found.d_out)] * found.n_layers
    else:
        for layer in range(found.n_layers):
            one = found.transcoder(layer)
            assert one(torch.randn(2, one.d_in)).shape == (2, one.d_out)
