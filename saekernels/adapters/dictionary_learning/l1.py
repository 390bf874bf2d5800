"""StandardTrainer's and GatedSAETrainer's losses, from the entries that are active or whose gate is open."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekernels.adapters.density import is_dense, note
from saekernels.adapters.dictionary_learning.step import own_loss, reason_for_own, told, weights_of
from saekernels.adapters.patch import STATE, State
from saekernels.adapters.weights import CurrentWeights
from saekernels.ops import CsrCodes, decode_csr, encode_threshold
from saekernels.sae.codes import Codes
from saekernels.sae.gated import GatedCodes, encode_gated


@torch.compiler.disable  # type: ignore[untyped-decorator]
def standard_loss(trainer: Any, x: Tensor, step: Any, logging: bool = False, **rest: Any) -> Any:
    """`StandardTrainer.loss`."""
    reason = reason_for_dense(trainer, x)
    if reason is not None:
        return own_loss(trainer, reason, x, step=step, logging=logging, **rest)
    scale, weights = trainer.sparsity_warmup_fn(step), weights_of(trainer)
    csr = encode(trainer, weights, x)
    x_hat = decode_csr(*csr, weights.W_dec, trainer.ae.bias)
    l2_loss = torch.linalg.norm(x - x_hat, dim=-1).mean()
    recon_loss = (x - x_hat).pow(2).sum(dim=-1).mean()
    l1_loss = csr.values.sum() / len(x)
    if trainer.steps_since_active is not None:
        dead = torch.bincount(csr.indices, minlength=weights.n_latents) == 0
        trainer.steps_since_active[dead] += 1
        trainer.steps_since_active[~dead] = 0
    loss = recon_loss + trainer.l1_penalty * scale * l1_loss
    if not logging:
        return loss
    losses = {"l2_loss": l2_loss.item(), "mse_loss": recon_loss.item(), "sparsity_loss": l1_loss.item()}
    losses["loss"] = loss.item()
    return told("x x_hat f losses", x, x_hat, Codes(*csr, x.shape[:-1], weights.n_latents), losses)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gated_loss(trainer: Any, x: Tensor, step: Any, logging: bool = False, **rest: Any) -> Any:
    """`GatedSAETrainer.loss`. Only open gates let a latent be active; their path has no gradient of the decoder."""
    ae, reason = trainer.ae, reason_for_dense_gates(trainer, x)
    if reason is not None:
        return own_loss(trainer, reason, x, step=step, logging=logging, **rest)
    scale, weights = trainer.sparsity_warmup_fn(step), weights_of(trainer)
    csr, gates = encode_gates(trainer, weights, x)
    x_hat = decode_csr(*csr, weights.W_dec, ae.decoder_bias)
    via_gates = decode_csr(*gates, weights.W_dec.detach(), ae.decoder_bias.detach())
    recon = (x - x_hat).pow(2).sum(dim=-1).mean()
    sparse = gates.values.sum() / len(x)
    aux = (x - via_gates).pow(2).sum(dim=-1).mean()
    loss = recon + (trainer.l1_penalty * sparse * scale) + aux
    if not logging:
        return loss
    losses = {"mse_loss": recon.item(), "sparsity_loss": sparse.item(), "aux_loss": aux.item(), "loss": loss.item()}
    return told("x x_hat f losses", x, x_hat, Codes(*csr, x.shape[:-1], weights.n_latents), losses)


def reason_for_dense(trainer: Any, x: Tensor) -> str | None:
    """Why a step of ReLU latents has to be the tool's own."""
    ae, reason = trainer.ae, reason_for_own(trainer, x)
    state: State = trainer.__dict__[STATE]
    if reason is None and is_dense(state, x, lambda rows: (rows - ae.bias) @ ae.encoder.weight.t(), -ae.encoder.bias):
        reason = "more than 1 in 10 latents are active"
    return reason


def reason_for_dense_gates(trainer: Any, x: Tensor) -> str | None:
    """Why a step of gated latents has to be the tool's own."""
    ae, reason = trainer.ae, reason_for_own(trainer, x)
    state: State = trainer.__dict__[STATE]
    if reason is None and is_dense(state, x, lambda rows: ae.encoder(rows - ae.decoder_bias), -ae.gate_bias):
        reason = "more than 1 in 10 gates are open"
    return reason


def encode(trainer: Any, weights: CurrentWeights, x: Tensor) -> CsrCodes:
    """The positive latents of x [T, d_in]; the step is counted."""
    csr = encode_threshold(x, weights.W_enc, weights.b_enc, 0.0, pre_bias=trainer.ae.bias)
    _count(trainer, weights, csr)
    return csr


def encode_gates(trainer: Any, weights: CurrentWeights, x: Tensor) -> GatedCodes:
    """Latents and gates of x [T, d_in] where a gate is open; the step is counted."""
    ae = trainer.ae
    found = encode_gated(x, weights.W_enc, ae.gate_bias, ae.r_mag, ae.mag_bias, pre_bias=ae.decoder_bias)
    _count(trainer, weights, found.codes)
    return found


def _count(trainer: Any, weights: CurrentWeights, found: CsrCodes) -> None:
    state: State = trainer.__dict__[STATE]
    note(state, found.indices.numel(), (len(found.offsets) - 1) * weights.n_latents)
    state.note_step()
