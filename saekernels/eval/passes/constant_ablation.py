"""Ablations that leave nothing of the text: their hidden states depend on the position alone, and are computed once.

Where the residual stream itself is replaced by a constant, every later layer sees the same at each position of every
window. Whether that is so is found by a trial on two windows of unlike tokens. It then holds for every window whose
only special tokens are those in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.text.batches import Batch

_RELATIVE = 1e-5
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class ConstantRun:
    """hidden [context, d]: final hidden state after each position; normaliser [context] fp64: log sum exp of logits."""

    hidden: Tensor
    normaliser: Tensor

    def cross_entropy(self, head: Head, batch: Batch) -> Tensor:
        """[n] fp64 on the CPU: -log p of the batch's targets."""
        at = (batch.context - 1).to(self.hidden.device)
        logits = head.target_logits(self.hidden.index_select(0, at), batch.targets)
        return self.normaliser[at.cpu()] - logits.double().cpu()


def find_constant(
    run: Callable[[Tensor], Tensor], head: Head, prefix: Sequence[int], context: int, tokens: Tensor, trial: int = 16
) -> ConstantRun | None:
    """The run's states if they do not depend on the text; None if they do.

    run(ids [B, S]) gives final hidden states [B, S, d]; tokens [V'] int64: ids that are not special.
    """
    length = min(trial, context)
    ids = torch.tensor([*prefix, *[0] * (length - len(prefix))]).repeat(2, 1)
    free = length - len(prefix)
    # Two windows without a token in common at any place.
    ids[0, len(prefix) :] = tokens[torch.arange(free) % len(tokens)]
    ids[1, len(prefix) :] = tokens[(torch.arange(free) * 7 + len(tokens) // 2 + 1) % len(tokens)]
    hidden = run(ids).float()
    tolerance = _RELATIVE * float(hidden.abs().max())
    if not bool(torch.isfinite(hidden).all()) or float((hidden[0] - hidden[1]).abs().max()) > tolerance:
        return None
    whole = torch.cat([ids[:1], ids[:1, -1:].expand(1, context - length)], dim=1)
    states = run(whole)[0]
    parts = [head.logits(part).double().logsumexp(-1).cpu() for part in states.split(_ROWS_AT_ONCE)]
    return ConstantRun(head.like(states), torch.cat(parts))


def only_prefix_special(batch: Batch, prefix: int) -> bool:
    """Whether in every window of the batch the special tokens are the first `prefix` ones."""
    return all(int(window.special.sum()) == prefix and window.special[:prefix].all() for window in batch.windows)
