"""Which trainers of dictionary_learning 0.1 are served: their loss on sparse entries, all else of them the tool's own.

So projection, clipping, optimizer, schedules and the decoder's norm are the tool's code, in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from dictionary_learning.dictionary import AutoEncoder, Dictionary, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers import (
    batch_top_k,
    gated_anneal,
    gdm,
    jumprelu,
    matryoshka_batch_top_k,
    p_anneal,
    standard,
    top_k,
)
from dictionary_learning.trainers.trainer import ConstrainedAdam, SAETrainer
from torch import Tensor

from saekernels.adapters.dictionary_learning import objects
from saekernels.adapters.dictionary_learning.anneal import anneal_loss, gated_anneal_loss
from saekernels.adapters.dictionary_learning.batch_topk import batch_topk_loss, matryoshka_loss
from saekernels.adapters.dictionary_learning.jumprelu import jumprelu_loss
from saekernels.adapters.dictionary_learning.l1 import gated_loss, standard_loss
from saekernels.adapters.dictionary_learning.topk import topk_loss
from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.optimizers import Held
from saekernels.adapters.patch import State, TrainerState, state_of

PACKAGE, VERSIONS = "dictionary-learning", ("0.1",)

TRAINERS: dict[type, tuple[type, Callable[..., Any]]] = {
    batch_top_k.BatchTopKTrainer: (batch_top_k.BatchTopKSAE, batch_topk_loss),
    matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer: (matryoshka_batch_top_k.MatryoshkaBatchTopKSAE, matryoshka_loss),
    top_k.TopKTrainer: (top_k.AutoEncoderTopK, topk_loss),
    jumprelu.JumpReluTrainer: (JumpReluAutoEncoder, jumprelu_loss),
    standard.StandardTrainer: (AutoEncoder, standard_loss),
    gdm.GatedSAETrainer: (GatedAutoEncoder, gated_loss),
    p_anneal.PAnnealTrainer: (AutoEncoder, anneal_loss),
    gated_anneal.GatedAnnealTrainer: (GatedAutoEncoder, gated_anneal_loss),
}
_STEP = 10**9  # after every warm-up
_COUNTERS = ("num_tokens_since_fired", "steps_since_active")


def known(module: object) -> bool:
    """Whether this is an object of the tool."""
    return isinstance(module, Dictionary | SAETrainer)


def classes() -> list[type]:
    """The classes whose objects are served."""
    return [*objects.CLASSES, *TRAINERS]


def plan(module: Any) -> State:
    """How to patch a dictionary or a trainer. Raises NotAccelerated with the reason where it cannot be."""
    if not isinstance(module, SAETrainer):
        return objects.plan(module)
    name = type(module).__name__
    if type(module) not in TRAINERS:
        raise NotAccelerated(f"{name}: its losses are not known; its SAE alone, its attribute 'ae', may be served")
    trains, loss = TRAINERS[type(module)]
    if type(module.ae) is not trains:
        raise NotAccelerated(f"{name}: it trains a {type(module.ae).__name__}, not a {trains.__name__}")
    return TrainerState("dictionary_learning", "ae", trains, objects.plan(module.ae), {"loss": loss}, _sample)


def held(trainer: Any) -> Held | None:
    """What of a trainer is accelerated: the trainer itself; None for a dictionary."""
    if not isinstance(trainer, SAETrainer):
        return None

    def put(optimizers: Sequence[torch.optim.Optimizer]) -> None:
        (trainer.optimizer,) = optimizers

    def constrained(optimizer: Any) -> Sequence[Tensor]:
        return optimizer.constrained_params if type(optimizer) is ConstrainedAdam else ()

    return Held([trainer], [trainer.optimizer], put, [trainer.scheduler], constrained)


def _sample(trainer: Any, x: Tensor) -> Tensor:
    """What a step makes of a few rows, every other latent dead: reconstruction and losses, and no trace of it.

    An accelerated one takes the sparse way here, however dense its codes are.
    """
    # The annealed ones append to a list of theirs.
    kept = {name: [*value] if isinstance(value, list) else value for name, value in vars(trainer).items()}
    state = state_of(trainer)
    threshold = trainer.ae.threshold.detach().clone() if hasattr(trainer.ae, "threshold") else None
    for name in _COUNTERS:
        if isinstance(getattr(trainer, name, None), Tensor):
            counts = torch.zeros_like(getattr(trainer, name))
            counts[::2] = getattr(trainer, "dead_feature_threshold", 0)
            setattr(trainer, name, counts)
    if state is not None:
        state.memory = {"density": 0.0}
    try:
        out = trainer.loss(x, step=_STEP, logging=True)
        left = [getattr(trainer, name) for name in _COUNTERS if isinstance(getattr(trainer, name, None), Tensor)]
        told = [value for value in out[3].values() if value is not None]
        tail = [torch.tensor(told), *(one.float() / _STEP for one in left)]
        if threshold is not None:
            tail.append(trainer.ae.threshold.detach().flatten())
        return torch.cat([out[1].flatten(), *(one.to(out[1]) for one in tail)])
    finally:
        vars(trainer).clear()
        vars(trainer).update(kept)
        if threshold is not None:
            trainer.ae.threshold.data = threshold
        if state is not None:
            state.memory = {}
