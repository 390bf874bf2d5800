"""Trainers of dictionary_learning in pairs, plain and accelerated, and what a loss or an update of each leaves."""

from __future__ import annotations

import importlib
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

import saekernels as sk
from lens_training import near, own_steps
from saekernels.adapters.patch import state_of

__all__ = ["CLASSES", "ONE_OF_EACH", "SHAPES", "losses", "own_steps", "pair", "same", "taken", "told"]

# (tokens, d_in, latents, k)
SHAPES = [(16, 16, 64, 3), (64, 48, 512, 8), (33, 24, 300, 1), (2, 8, 40, 4), (200, 20, 1024, 16)]
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "batch_topk": ("batch_top_k.BatchTopKTrainer", {}),
    "batch_topk, more AuxK": ("batch_top_k.BatchTopKTrainer", {"auxk_alpha": 0.7, "threshold_start_step": 10}),
    "matryoshka": ("matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer", {"group_fractions": [0.125, 0.25, 0.625]}),
    "matryoshka, weighted": (
        "matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer",
        {"group_fractions": [0.5, 0.1, 0.1, 0.3], "group_weights": [1.0, 0.5, 0.25, 2.0]},
    ),
    "topk": ("top_k.TopKTrainer", {}),
    "topk, more AuxK": ("top_k.TopKTrainer", {"auxk_alpha": 0.7, "threshold_start_step": 10}),
    "jumprelu": ("jumprelu.JumpReluTrainer", {"bandwidth": 0.1, "target_l0": 5.0}),
    "jumprelu, narrow": ("jumprelu.JumpReluTrainer", {"bandwidth": 0.01, "sparsity_penalty": 3.0}),
    "standard": ("standard.StandardTrainer", {"l1_penalty": 2.0}),
    "standard, resampling": ("standard.StandardTrainer", {"resample_steps": 25, "l1_penalty": 2.0}),
    "gated": ("gdm.GatedSAETrainer", {}),
}
# The power falls at step 5, which `losses` takes, and at two more.
_ANNEAL = {"anneal_start": 5, "n_sparsity_updates": 4, "p_start": 0.8, "initial_sparsity_penalty": 0.3}
_NORM = {"sparsity_function": "Lp", "p_end": 0.4, "resample_steps": 25}
for name, kind in (("p_anneal", "p_anneal.PAnnealTrainer"), ("gated_anneal", "gated_anneal.GatedAnnealTrainer")):
    CLASSES[name] = (kind, {**_ANNEAL, "sparsity_function": "Lp^p", "p_end": 0.0})
    CLASSES[f"{name}, Lp, resampling"] = (kind, {**_ANNEAL, **_NORM})
ONE_OF_EACH = ["batch_topk", "matryoshka", "topk", "jumprelu", "standard", "gated", "p_anneal", "gated_anneal"]
_THRESHOLDS = {
    "standard": "encoder.bias", "p_anneal": "encoder.bias", "gated": "gate_bias", "gated_anneal": "gate_bias",
    "jumprelu": "threshold",
}  # fmt: skip
_Log = namedtuple("LossLog", "x x_hat f losses")  # what all but PAnnealTrainer return


def pair(
    name: str, shape: tuple[int, int, int, int], steps: int = 100, like: Tensor | None = None, **more: Any
) -> tuple[Any, Any, Tensor]:
    """(the tool's own trainer, the same accelerated, a batch), with weights that are all used, and few latents active.

    The batch is Gaussian, or what is given.
    """
    # Made twice: a copy of their optimizer for decoders of unit norm has lost which parameters are meant.
    (theirs, x), (ours, _) = (_made(name, shape, steps, like, more) for _ in range(2))
    return theirs, sk.accelerate(ours), x


def _made(
    name: str, shape: tuple[int, int, int, int], steps: int, like: Tensor | None, more: dict[str, Any]
) -> tuple[Any, Tensor]:
    tokens, d, latents, k = shape
    path, options = CLASSES[name]
    options = {
        "steps": steps, "activation_dim": d, "dict_size": latents, "layer": 0, "lm_name": "none", "warmup_steps": 2,
        "device": "cpu", "seed": 0, "lr": 1e-3, **options, **more,
    }  # fmt: skip
    if "topk" in name or name.startswith("matryoshka"):
        options |= {"k": k, "threshold_start_step": options.get("threshold_start_step", 0), "threshold_beta": 0.9}
    else:
        options.setdefault("sparsity_warmup_steps", 3)
    torch.manual_seed(0)
    file, _, kind = path.partition(".")
    pytest.importorskip("dictionary_learning")
    trainer = getattr(importlib.import_module(f"dictionary_learning.trainers.{file}"), kind)(**options)
    with torch.no_grad():
        for value in trainer.ae.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    x = torch.randn(tokens, d) if like is None else like
    if name.split(",")[0] in _THRESHOLDS:
        _make_sparse(trainer.ae, x, _THRESHOLDS[name.split(",")[0]])
    if "anneal" in name:  # sums without rounding: the slope of a power is steep where a latent is nearly 0
        with torch.no_grad():
            for value in trainer.ae.parameters():
                value.copy_((16 * value).round() / 16)
        x = (16 * x).round() / 16
    return trainer, x


@torch.no_grad()
def _make_sparse(ae: Any, x: Tensor, role: str) -> None:
    """Move the threshold of every latent, by the name of the parameter, so that about 1 entry in 17 is above it."""
    if role == "threshold":
        products = x @ ae.W_enc + ae.b_enc
    else:
        products = (x - ae.get_parameter("decoder_bias" if role == "gate_bias" else "bias")) @ ae.encoder.weight.t()
    level = products.flatten().sort(descending=True).values[products.numel() // 17]
    noise = 0.1 * torch.rand(len(ae.get_parameter(role)))
    ae.get_parameter(role).copy_((level + noise) * (1 if role == "threshold" else -1))


def losses(trainer: Any, x: Tensor, step: int = 5) -> Any:
    """The loss, after its backward pass from gradients of none, and what is logged of it, as the tool looks at it."""
    trainer.ae.zero_grad()
    plain = trainer.loss(x, step=step)
    plain.backward()
    with torch.no_grad():
        return plain.detach(), told(trainer, x, step)


def told(trainer: Any, x: Tensor, step: int = 5) -> Any:
    """What is logged of the loss."""
    found = trainer.loss(x, step=step, logging=True)
    return found if hasattr(found, "_fields") else _Log(*found)


def same(ours: Any, theirs: Any, found: Any, want: Any) -> None:
    """Losses to 1e-6, gradients to 1e-5, and all that a step leaves or reports."""
    near(found[0], want[0], 1e-6)
    assert found[1]._fields == want[1]._fields
    assert list(found[1].losses) == list(want[1].losses)
    for name, other in want[1].losses.items():
        assert found[1].losses[name] == pytest.approx(other, rel=1e-6, abs=1e-9), name
    assert torch.equal(found[1][0], want[1][0])
    near(found[1][1].detach(), want[1][1].detach(), 1e-5)
    near((found[1].f + 0).detach(), want[1].f.detach(), 1e-5)
    for (name, value), other in zip(theirs.ae.named_parameters(), ours.ae.parameters(), strict=True):
        assert value.grad is not None, name
        near(other.grad, value.grad, 1e-5)
        assert other.grad.stride() == other.stride(), name
    for value, other in zip(theirs.ae.buffers(), ours.ae.buffers(), strict=True):
        assert float(other.sum()) == pytest.approx(float(value.sum()), rel=1e-6, abs=1e-6)
    for name in ("num_tokens_since_fired", "steps_since_active"):
        if isinstance(getattr(theirs, name, None), Tensor):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert list(ours.get_logging_parameters()) == list(theirs.get_logging_parameters())
    for name, value in theirs.get_logging_parameters().items():
        other = ours.get_logging_parameters()[name]
        assert (other is None) == (value is None), name
        if value is not None:
            one, other = (float(torch.as_tensor(either).detach()) for either in (value, other))
            assert other == pytest.approx(one, rel=1e-6), name


def taken(trainer: Any) -> int:
    """How many of an accelerated trainer's steps were taken over."""
    state = state_of(trainer)
    assert state is not None
    return state.steps
