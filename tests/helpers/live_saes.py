"""SAEs of the installed tools, as live objects with weights that are all used, and how their results are compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

D, F, K = 16, 192, 5


def _lens(architecture: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        sae_lens = pytest.importorskip("sae_lens")
        kind, config = sae_lens.registry.get_sae_class(architecture)
        return kind(config(d_in=D, d_sae=F, **options))

    return make


def lens_training(architecture: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        sae_lens = pytest.importorskip("sae_lens")
        kind, config = sae_lens.registry.get_sae_training_class(architecture)
        return kind(config(d_in=D, d_sae=F, **options))

    return make


def _sparsify(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        sparsify = pytest.importorskip("sparsify")
        return sparsify.SparseCoder(D, sparsify.SparseCoderConfig(num_latents=F, k=K + 1, **options))

    return make


def _dictionary(path: str, *arguments: Any) -> Callable[[], Any]:
    def make() -> Any:
        pytest.importorskip("dictionary_learning")
        import importlib

        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(f"dictionary_learning.{module}"), name)(D, F, *arguments)

    return make


def _bench(name: str, *arguments: Any) -> Callable[[], Any]:
    def make() -> Any:
        pytest.importorskip("sae_bench")
        import importlib

        module, _, kind = name.rpartition(".")
        found = getattr(importlib.import_module(f"sae_bench.custom_saes.{module}"), kind)
        return found(D, F, *arguments, "gpt2", 0, torch.device("cpu"), torch.float32)

    return make


MAKERS: dict[str, Callable[[], Any]] = {
    "lens standard": _lens("standard"),
    "lens standard, layer norm": _lens("standard", normalize_activations="layer_norm"),
    "lens topk": _lens("topk", k=K),
    "lens topk, rescaled": _lens("topk", k=K, rescale_acts_by_decoder_norm=True),
    "lens topk, constant norm": _lens("topk", k=K, normalize_activations="constant_norm_rescale"),
    "lens abstopk": _lens("abstopk", k=K),
    "lens jumprelu": _lens("jumprelu"),
    "lens jumprelu, no b_dec": _lens("jumprelu", apply_b_dec_to_input=False),
    "lens gated": _lens("gated"),
    "lens transcoder": _lens("transcoder", d_out=7, apply_b_dec_to_input=False),
    "lens skip transcoder": _lens("skip_transcoder", d_out=7, apply_b_dec_to_input=False),
    "lens jumprelu transcoder": _lens("jumprelu_transcoder", d_out=7, apply_b_dec_to_input=False),
    "lens jumprelu skip transcoder": _lens("jumprelu_skip_transcoder", d_out=7, apply_b_dec_to_input=False),
    "lens training topk": lens_training("topk", k=K),
    "lens training topk, not rescaled": lens_training("topk", k=K, rescale_acts_by_decoder_norm=False),
    "lens training topk, sparse": lens_training("topk", k=K, use_sparse_activations=True),
    "lens training abstopk": lens_training("abstopk", k=K),
    "sparsify topk": _sparsify(),
    "sparsify groupmax": _sparsify(activation="groupmax"),
    "sparsify transcoder": _sparsify(transcode=True),
    "sparsify skip": _sparsify(skip_connection=True),
    "dictionary AutoEncoder": _dictionary("dictionary.AutoEncoder"),
    "dictionary AutoEncoderNew": _dictionary("dictionary.AutoEncoderNew"),
    "dictionary Gated": _dictionary("dictionary.GatedAutoEncoder"),
    "dictionary JumpReLU": _dictionary("dictionary.JumpReluAutoEncoder"),
    "dictionary TopK": _dictionary("trainers.top_k.AutoEncoderTopK", K),
    "dictionary BatchTopK": _dictionary("trainers.batch_top_k.BatchTopKSAE", K),
    "dictionary Matryoshka": _dictionary("trainers.matryoshka_batch_top_k.MatryoshkaBatchTopKSAE", K, [64, 128]),
    "bench relu": _bench("relu_sae.ReluSAE"),
    "bench topk": _bench("topk_sae.TopKSAE", K),
    "bench batch topk": _bench("batch_topk_sae.BatchTopKSAE", K),
    "bench jumprelu": _bench("jumprelu_sae.JumpReluSAE"),
    "bench gated": _bench("gated_sae.GatedSAE"),
}


def made(name: str, seed: int = 0) -> Any:
    """The object with weights that are all used, few latents active, and thresholds above 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = MAKERS[name]()
    torch.manual_seed(seed)
    with torch.no_grad():
        for path, value in module.named_parameters():
            leaf = path.rpartition(".")[2]
            bias = value.dim() == 1
            value.copy_(torch.randn_like(value) * (0.3 if bias else D**-0.5))
            if leaf in ("b_enc", "gate_bias", "b_gate") or (path == "encoder.bias" and name[:8] != "sparsify"):
                value.sub_(2.0)  # sparse, also where a ReLU is all there is
            if leaf == "threshold":
                value.abs_().add_(0.1)
        for path, value in module.named_buffers():
            if path == "threshold":
                value.fill_(0.2)
    return module.eval()


def output(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


def close(ours: Tensor, theirs: Tensor, **bounds: float) -> None:
    torch.testing.assert_close(ours, theirs, **{"rtol": 1e-4, "atol": 1e-5, **bounds})


class NothingWide(TorchDispatchMode):
    """Fails where an operation makes as many elements as [tokens, latents]."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            dense = isinstance(one, Tensor) and not one.is_sparse
            assert not dense or one.numel() < self.elements, func
        return out


class Store:
    """What the peers ask of an activations store, with given batches."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches
        self.store_batch_size_prompts, self.context_size = batches[0].shape
        self.reset_input_dataset()

    def reset_input_dataset(self) -> None:
        self.left = iter(self.batches)

    def get_batch_tokens(self, _: int | None = None) -> Tensor:
        return next(self.left)


# Training SAEs of sae-lens that stand for no SAE in a splice, with what their refusal says.
NOT_SPLICED = {
    "batchtopk": "selects over the whole batch",
    "matryoshka_batchtopk": "every prefix",
    "standard": "dense while it trains",
    "gated": "an auxiliary path while it trains",
    "jumprelu": "thresholds are being trained",
}
# Training SAEs that are not accelerated.
REFUSED = {"matching_pursuit": "selects latents one after the other"}


def made_refused(architecture: str) -> Any:
    """A new one of these."""
    options: dict[str, Any] = {"k": K} if "topk" in architecture else {}
    if architecture.startswith("matryoshka"):
        options["matryoshka_widths"] = [64, F]
    return lens_training(architecture, **options)()
