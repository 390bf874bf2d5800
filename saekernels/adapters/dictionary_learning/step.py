"""What trainers' steps share: when the tool's own code has to run, what a step leaves, and AuxK."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
from torch import Tensor

from saekernels.adapters.dense_latents import LazyCodes
from saekernels.adapters.patch import STATE, State, state_of
from saekernels.adapters.weights import CurrentWeights
from saekernels.ops import decode
from saekernels.sae.codes import Codes
from saekernels.sae.entries import encode_among

_OF_TRAINER = ("get_auxiliary_loss", "update_threshold")
_OF_DICTIONARY = ("encode", "decode", "forward")


def weights_of(trainer: Any) -> CurrentWeights:
    """The weights of the trainer's dictionary, as they are now."""
    inner = state_of(trainer.ae)
    assert inner is not None
    return inner.weights.of(trainer.ae)


def reason_for_own(trainer: Any, x: Any) -> str | None:
    """Why a step on x has to be the tool's own; None where sparse entries give all that it asks for."""
    state, inner = trainer.__dict__[STATE], state_of(trainer.ae)
    if inner is None or type(trainer.ae) is not state.trains:
        return "its dictionary is another one, or not accelerated"
    replaced = [*_replaced(trainer, state, _OF_TRAINER), *_replaced(trainer.ae, inner, _OF_DICTIONARY)]
    if replaced:
        return f"its {replaced[0]!r} was replaced"
    if any(one._forward_hooks or one._forward_pre_hooks or one._backward_hooks for one in trainer.ae.modules()):
        return "a hook is on its dictionary"
    if not isinstance(x, Tensor) or x.dim() != 2 or not len(x):
        return "its input is not [tokens, d_in]"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on"
    if not inner.serves(trainer.ae, x):
        return "its input or its weights are none that the kernels serve"
    return None


def _replaced(one: Any, state: State, names: tuple[str, ...]) -> list[str]:
    """Those of an object's methods that are neither its class's nor ours."""
    own = vars(one)
    return [
        name for name in names if name in own and getattr(own[name], "func", own[name]) is not state.methods.get(name)
    ]


def own_loss(trainer: Any, reason: str, x: Tensor, **given: Any) -> Any:
    """The tool's own loss, counted and, the first time for a reason, logged."""
    state, inner = trainer.__dict__[STATE], state_of(trainer.ae)
    state.note_own_step(type(trainer).__name__, reason)
    if inner is not None:
        inner.paused = True
    try:
        return type(trainer).loss(trainer, x, **given)
    finally:
        if inner is not None:
            inner.paused = False


def count_fired(trainer: Any, tokens: int, latents: Tensor) -> None:
    """As the tool counts: tokens have passed, and these latents, by index or as a mask [F], are alive."""
    counts: Tensor = trainer.num_tokens_since_fired
    did_fire = torch.zeros_like(counts, dtype=torch.bool)
    did_fire[latents] = True
    counts += tokens
    counts[did_fire] = 0


def auxk(trainer: Any, weights: CurrentWeights, x: Tensor, residual: Tensor) -> Tensor:
    """How badly the best dead latents reconstruct a residual [T, d_in], over its variance; a scalar.

    It leaves what the trainer reports: dead_features and pre_norm_auxk_loss.
    """
    dead = trainer.num_tokens_since_fired >= trainer.dead_feature_threshold
    trainer.dead_features = int(dead.sum())
    if not trainer.dead_features:
        trainer.pre_norm_auxk_loss = -1
        return torch.tensor(0, dtype=residual.dtype, device=residual.device)
    k = min(int(trainer.top_k_aux), trainer.dead_features)
    latents = dead.nonzero()[:, 0].to(x.device)
    pre, indices = encode_among(x, weights.W_enc, weights.b_enc, latents, k=k, pre_bias=trainer.ae.b_dec)
    guess = decode(pre.relu(), indices, weights.W_dec)
    loss = (residual.float() - guess.float()).pow(2).sum(dim=-1).mean()
    trainer.pre_norm_auxk_loss = loss
    centred = residual.float() - residual.mean(dim=0, keepdim=True).float()
    return (loss / centred.pow(2).sum(dim=-1).mean()).nan_to_num(0.0)


def told(names: str, x: Tensor, x_hat: Tensor, codes: Codes, losses: dict[str, float]) -> Any:
    """What a step that is logged returns, under the tool's own names; latents are made for who reads more of them."""
    kind: Any = namedtuple
    return kind("LossLog", names)(x, x_hat, LazyCodes.of(codes), losses)
