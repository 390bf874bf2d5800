"""TopKTrainer's loss from the k largest pre-activations of each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekernels.adapters.dictionary_learning.step import auxk, count_fired, own_loss, reason_for_own, told, weights_of
from saekernels.adapters.patch import STATE
from saekernels.adapters.weights import CurrentWeights
from saekernels.ops import TopKCodes, decode, encode_topk
from saekernels.sae.codes import Codes


@torch.compiler.disable  # type: ignore[untyped-decorator]
def topk_loss(trainer: Any, x: Tensor, step: Any = None, logging: bool = False) -> Any:
    """`TopKTrainer.loss`."""
    reason = reason_for_own(trainer, x) or _odd(trainer)
    if reason is not None:
        return own_loss(trainer, reason, x, step=step, logging=logging)
    weights, bias = weights_of(trainer), trainer.ae.b_dec
    codes = encode_topk(x, weights.W_enc, weights.b_enc, k=int(trainer.ae.k), pre_bias=bias)
    trainer.__dict__[STATE].note_step()
    if step > trainer.threshold_start_step:
        trainer.update_threshold(codes.values)
    x_hat = decode(*codes, weights.W_dec, bias)
    error = x - x_hat
    trainer.effective_l0 = codes.values.shape[1]
    count_fired(trainer, len(x), _selected(weights, bias, x, codes))
    l2_loss = error.pow(2).sum(dim=-1).mean()
    auxk_loss: Any = auxk(trainer, weights, x, error.detach()) if trainer.auxk_alpha > 0 else 0
    loss = l2_loss + trainer.auxk_alpha * auxk_loss
    if not logging:
        return loss
    losses = {"l2_loss": l2_loss.item(), "auxk_loss": auxk_loss.item(), "loss": loss.item()}
    return told("x x_hat f losses", x, x_hat, Codes(*codes, None, x.shape[:-1], weights.n_latents), losses)


def _odd(trainer: Any) -> str | None:
    """What the tool's own code does in a way of its own, or refuses."""
    k, latents = int(trainer.ae.k), trainer.ae.dict_size
    if not 1 <= k <= latents:
        return f"it selects {k} of {latents} latents"
    return None if trainer.top_k_aux >= 1 or not trainer.auxk_alpha > 0 else f"its top_k_aux is {trainer.top_k_aux}"


@torch.no_grad()
def _selected(weights: CurrentWeights, bias: Tensor, x: Tensor, codes: TopKCodes) -> Tensor:
    """[n] int64: the latents that the tool counts as alive, which are all that it selects.

    Where fewer than k of a row are positive it selects zeros, too, as torch's topk happens to come upon them: such rows
    are encoded and selected from as the tool does.
    """
    short = (~(codes.values > 0)).any(dim=1)
    if not bool(short.any()):
        return codes.indices.flatten().long()
    dense = torch.nn.functional.linear(x[short] - bias, weights.W_enc, weights.b_enc).relu()
    zeros = dense.topk(codes.values.shape[1], sorted=False, dim=-1).indices
    return torch.cat([codes.indices[~short].flatten().long(), zeros.flatten()])
