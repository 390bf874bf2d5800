"""Modules of other tools around given weights. NotInstalled where one is missing."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from typing import Any

import torch
from torch import Tensor, nn

PACKAGES = ("sae-lens", "eai-sparsify", "dictionary-learning")
NOT_INSTALLED = "not installed (pip install 'saekernels[peers]')"


class NotInstalled(ImportError):
    """A peer is not installed, as opposed to installed and broken."""


def load(name: str) -> Any:
    """The module of that name; what it prints goes to stderr."""
    if importlib.util.find_spec(name) is None:
        raise NotInstalled(f"{name} is {NOT_INSTALLED}")
    # sparsify decodes with Triton wherever Triton is installed, for CPU tensors too, and fails.
    if not torch.cuda.is_available():
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    with contextlib.redirect_stdout(sys.stderr):
        return importlib.import_module(name)


def saelens(weights: dict[str, Tensor], k: int | None) -> Any:
    """An SAELens inference SAE: TopK, or JumpReLU where k is None. Its W_enc is [d, F], contiguous, as it makes it."""
    library = load("sae_lens")
    sizes = _saelens_sizes(weights)
    if k is None:
        sae = library.JumpReLUSAE(library.JumpReLUSAEConfig(**sizes))
    else:
        sae = library.TopKSAE(library.TopKSAEConfig(k=k, **sizes))
    return _fill(sae, {**weights, "W_enc": weights["W_enc"].T.contiguous()})


def saelens_training(weights: dict[str, Tensor], k: int) -> Any:
    """Its TopK training SAE, pre-activations not rescaled by decoder norms, which the others do not do either."""
    library = load("sae_lens")
    config = library.TopKTrainingSAEConfig(k=k, rescale_acts_by_decoder_norm=False, **_saelens_sizes(weights))
    return _fill(library.TopKTrainingSAE(config), {**weights, "W_enc": weights["W_enc"].T.contiguous()})


def sparsify(weights: dict[str, Tensor], k: int) -> Any:
    """A sparsify SparseCoder; its layouts are ours, so it shares the weights."""
    library = load("sparsify")
    F, d = weights["W_enc"].shape
    sae = library.SparseCoder(d, library.SparseCoderConfig(k=k, num_latents=F), device="meta")
    named = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    return _fill(sae, {theirs: weights[mine] for theirs, mine in named.items()})


def dictionary_learning(weights: dict[str, Tensor], k: int) -> Any:
    """A dictionary_learning AutoEncoderTopK. Its decoder.weight is [d, F], contiguous, as it makes it."""
    load("dictionary_learning")
    module = importlib.import_module("dictionary_learning.trainers.top_k")
    F, d = weights["W_enc"].shape
    with torch.device("meta"):
        sae = module.AutoEncoderTopK(d, F, k)
    sae.k, sae.threshold = torch.tensor(k, dtype=torch.int), torch.tensor(-1.0)
    named = {"encoder.weight": weights["W_enc"], "encoder.bias": weights["b_enc"], "b_dec": weights["b_dec"]}
    return _fill(sae, {**named, "decoder.weight": weights["W_dec"].T.contiguous()})


def _saelens_sizes(weights: dict[str, Tensor]) -> dict[str, Any]:
    F, d = weights["W_enc"].shape
    dtype = str(weights["W_enc"].dtype).removeprefix("torch.")
    # Made without memory: the weights come from outside.
    return {"d_in": d, "d_sae": F, "dtype": dtype, "device": "meta", "apply_b_dec_to_input": True}


def _fill(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Put parameters in place of the memoryless ones; every one must be given."""
    for name, _ in list(module.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, nn.Parameter(weights[name]))
    return module
