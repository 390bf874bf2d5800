"""JumpReluTrainer's loss from the entries above their threshold, or within its band below.

The tool's L0 is a step of the values behind their threshold, not of pre-activations: an inactive entry counts as the
value 0, which is within the band of a threshold below half the bandwidth, and above a negative one. There are T less
the active ones of each latent, so that counts are enough.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekernels.adapters.density import is_dense, note
from saekernels.adapters.dictionary_learning.step import own_loss, reason_for_own, told, weights_of
from saekernels.adapters.patch import STATE, State
from saekernels.ops import CsrCodes, decode_csr, encode_threshold
from saekernels.sae.codes import Codes
from saekernels.sae.jumprelu import jump

_TOO_DENSE = "more than 1 in 10 pre-activations are above their threshold or within its band"


@torch.compiler.disable  # type: ignore[untyped-decorator]
def jumprelu_loss(trainer: Any, x: Tensor, step: Any, logging: bool = False, **rest: Any) -> Any:
    """`JumpReluTrainer.loss`."""
    state: State = trainer.__dict__[STATE]
    ae, width = trainer.ae, trainer.bandwidth
    given, x = x, x.to(ae.W_enc.dtype)
    reason = reason_for_own(trainer, x)
    if reason is None and is_dense(state, x, lambda rows: rows @ ae.W_enc, ae.threshold - width / 2 - ae.b_enc):
        reason = _TOO_DENSE
    if reason is not None:
        return own_loss(trainer, reason, given, step=step, logging=logging, **rest)
    scale, weights, threshold = trainer.sparsity_warmup_fn(step), weights_of(trainer), ae.threshold
    # A little lower, so that rounding loses no entry of the band: what is in it is decided per entry.
    low = threshold.detach().float()
    low = low - width / 2 - 8 * torch.finfo(x.dtype).eps * (low.abs() + width)
    found = encode_threshold(x, weights.W_enc, ae.b_enc, low)
    note(state, found.indices.numel(), len(x) * weights.n_latents)
    state.note_step()
    values, active = jump(found.values, threshold.index_select(0, found.indices.long()), width)
    csr = CsrCodes(values, found.indices, found.offsets)
    recon = decode_csr(*csr, weights.W_dec, ae.b_dec)
    _count(trainer, csr, len(x))
    recon_loss = (x - recon).pow(2).sum(dim=-1).mean()
    l0 = _l0(csr, active.detach() > 0, threshold, width)
    sparsity_loss = trainer.sparsity_coefficient * ((l0 / trainer.target_l0) - 1).pow(2) * scale
    loss = recon_loss + sparsity_loss
    if not logging:
        return loss
    losses = {"l2_loss": recon_loss.item(), "loss": loss.item()}
    return told("x recon f losses", x, recon, Codes(*csr, x.shape[:-1], weights.n_latents), losses)


@torch.no_grad()
def _count(trainer: Any, csr: CsrCodes, tokens: int) -> None:
    """What the trainer counts: a latent is alive whose values sum to more than 0."""
    counts: Tensor = trainer.num_tokens_since_fired
    sums = torch.zeros(len(counts), device=csr.values.device).index_add(0, csr.indices, csr.values.float())
    counts += tokens
    counts[sums > 0] = 0
    trainer.dead_features = (counts > trainer.dead_feature_threshold).sum().item()


def _l0(csr: CsrCodes, active: Tensor, threshold: Tensor, width: float) -> Tensor:
    """The mean over rows of how many values exceed their threshold, with its pseudo-gradient; a scalar.

    active: [nnz] bool. The gradient with respect to a threshold is -1 / width for each value within its band.
    """
    tokens, latents = len(csr.offsets) - 1, len(threshold)
    with torch.no_grad():
        own, indices = threshold.detach(), csr.indices.long()
        inactive = tokens - torch.bincount(indices[active], minlength=latents)
        near = active & _near(csr.values - own[indices], width)
        in_band = torch.bincount(indices[near], minlength=latents) + inactive * _near(-own, width)
        count = active.sum() + inactive[own < 0].sum()
    gradient = (in_band / (-width * tokens)).to(own.dtype)
    return count / tokens + (gradient * (threshold - own)).sum()


def _near(difference: Tensor, width: float) -> Tensor:
    """Whether a value is within the band of its threshold."""
    scaled = difference / width
    return (scaled > -0.5) & (scaled < 0.5)
