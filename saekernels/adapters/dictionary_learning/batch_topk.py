"""BatchTopKTrainer's and MatryoshkaBatchTopKTrainer's losses from the largest pre-activations of the whole batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from saekernels.adapters.dictionary_learning.step import auxk, count_fired, own_loss, reason_for_own, told, weights_of
from saekernels.adapters.patch import STATE, State
from saekernels.adapters.weights import CurrentWeights
from saekernels.ops import CsrCodes, decode_csr
from saekernels.sae.batch_topk import encode_batch_topk
from saekernels.sae.codes import Codes
from saekernels.sae.prefixes import decode_prefixes


@torch.compiler.disable  # type: ignore[untyped-decorator]
def batch_topk_loss(trainer: Any, x: Tensor, step: Any = None, logging: bool = False) -> Any:
    """`BatchTopKTrainer.loss`."""
    reason = reason_for_own(trainer, x) or _odd(trainer, x)
    if reason is not None:
        return own_loss(trainer, reason, x, step=step, logging=logging)
    weights = weights_of(trainer)
    csr = _encode(trainer, weights, x, step)
    x_hat = decode_csr(*csr, weights.W_dec, trainer.ae.b_dec)
    error = x - x_hat
    _leave(trainer, csr, x)
    l2_loss = error.pow(2).sum(dim=-1).mean()
    auxk_loss = auxk(trainer, weights, x, error.detach())
    loss = l2_loss + trainer.auxk_alpha * auxk_loss
    if not logging:
        return loss
    losses = {"l2_loss": l2_loss.item(), "auxk_loss": auxk_loss.item(), "loss": loss.item()}
    return told("x x_hat f losses", x, x_hat, Codes(*csr, x.shape[:-1], weights.n_latents), losses)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def matryoshka_loss(trainer: Any, x: Tensor, step: Any = None, logging: bool = False) -> Any:
    """`MatryoshkaBatchTopKTrainer.loss`: the mean over its groups of their weighted losses."""
    ae = trainer.ae
    reason = reason_for_own(trainer, x) or _odd(trainer, x)
    if reason is None and ae.active_groups != len(ae.group_sizes):
        reason = f"{ae.active_groups} of its {len(ae.group_sizes)} groups are on"
    if reason is not None:
        return own_loss(trainer, reason, x, step=step, logging=logging)
    weights = weights_of(trainer)
    csr = _encode(trainer, weights, x, step)
    levels = decode_prefixes(csr, weights.W_dec, ae.group_sizes.cumsum(0).tolist())
    prefixes = [decoded + ae.b_dec for decoded in levels.unbind(1)]
    l2_losses = torch.stack(
        [
            (x - prefix).pow(2).sum(dim=-1).mean() * weight
            for prefix, weight in zip(prefixes, trainer.group_weights, strict=True)
        ]
    )
    _leave(trainer, csr, x)
    auxk_loss = auxk(trainer, weights, x, (x - prefixes[-1]).detach())
    l2_loss = l2_losses.mean()
    loss = l2_loss + trainer.auxk_alpha * auxk_loss
    if not logging:
        return loss
    losses = {"l2_loss": l2_loss.item(), "auxk_loss": auxk_loss.item(), "loss": loss.item()}
    losses |= {"min_l2_loss": l2_losses.min().item(), "max_l2_loss": l2_losses.max().item()}
    return told("x x_hat f losses", x, prefixes[-1], Codes(*csr, x.shape[:-1], weights.n_latents), losses)


def _odd(trainer: Any, x: Tensor) -> str | None:
    """What the tool's own code does in a way of its own, or refuses."""
    wanted, there = int(trainer.ae.k) * len(x), trainer.ae.dict_size * len(x)
    if not 1 <= wanted <= there:
        return f"it selects {wanted} of {there} latents"
    return None if trainer.top_k_aux >= 1 else f"its top_k_aux is {trainer.top_k_aux}"


def _encode(trainer: Any, weights: CurrentWeights, x: Tensor, step: Any) -> CsrCodes:
    """The k * T largest entries; the running threshold is the trainer's own to update, and reads values alone."""
    state: State = trainer.__dict__[STATE]
    n = int(trainer.ae.k) * len(x)
    bias, guess = trainer.ae.b_dec, state.memory.get("least")
    csr = encode_batch_topk(x, weights.W_enc, weights.b_enc, n=n, pre_bias=bias, guess=guess)
    least = float(csr.values.detach().min()) if csr.values.numel() else 0.0
    state.memory["least"] = least if math.isfinite(least) else 0.0
    if step > trainer.threshold_start_step:
        trainer.update_threshold(csr.values)
    state.note_step()
    return csr


def _leave(trainer: Any, csr: CsrCodes, x: Tensor) -> None:
    """What the trainer reports of a step, and counts."""
    trainer.effective_l0 = trainer.k
    count_fired(trainer, len(x), csr.indices[csr.values.detach() > 0].long())
