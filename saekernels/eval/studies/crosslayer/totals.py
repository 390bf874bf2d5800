"""What the runs add up to: columns of the figures of each prediction, and reconstruction and activity by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saekernels.backends.reference.rows import row_chunks
from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.sums.accumulate import SiteStats

SURE = 0.8
"""Anthropic's subset are the predictions that the clean model gets right with less confidence than this."""
FIGURES = ("ce", "kl", "agree", "agree_unsure")


def columns_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """(run, figure) of each column; first the clean run's CE, and whether the prediction is in Anthropic's subset."""
    return [("clean", "ce"), ("clean", "unsure"), *((name, figure) for name in names for figure in FIGURES)]


def unsure(head: Head, hidden: Tensor, ce: Tensor, targets: Tensor) -> Tensor:
    """[n] bool: the model's first choice is the right token, and its probability is below SURE.

    hidden: states [n, d]; ce, targets [n].
    """
    made = []
    for part in row_chunks(len(hidden), head.vocabulary):
        z = head.logits(hidden[part])
        made.append(z.argmax(-1).cpu() == targets[part].cpu())
    return torch.cat(made) & ((-ce.double()).exp() < SURE).cpu() if made else torch.zeros(0, dtype=torch.bool)


class Totals:
    """Kind -> of each layer: FVU, L0 and latents used.

    Kinds: "joint" (against what the MLP makes of the same running input), "teacher_forced" (in the clean model),
    "drift" (what is written in the joint run against what the clean model writes), "beside" (joint, of the other one),
    "shared" (one row: codes that serve all layers, each latent counted once).

    Args:
        sizes: kind -> latents of each layer; centres: kind -> [d_out] of each layer, about which moments are taken.
    """

    def __init__(
        self, sizes: Mapping[str, Sequence[int]], centres: Mapping[str, Sequence[Tensor]], columns: int
    ) -> None:
        self.stats = {
            kind: [SiteStats(n, centre) for n, centre in zip(sizes[kind], centres[kind], strict=True)] for kind in sizes
        }
        self.not_finite = torch.zeros(columns, dtype=torch.int64)

    def state(self) -> dict[str, Any]:
        """Everything, to be saved and given to `load`."""
        stats = {kind: [one.state() for one in group] for kind, group in self.stats.items()}
        return {"stats": stats, "not_finite": self.not_finite}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; what was added up before is forgotten."""
        for kind, group in self.stats.items():
            for one, saved in zip(group, state["stats"][kind], strict=True):
                one.load(saved)
        self.not_finite = state["not_finite"]

    def merge(self, state: dict[str, Any]) -> None:
        """Add what the runs of other batches add up to."""
        for kind, group in self.stats.items():
            for one, saved in zip(group, state["stats"][kind], strict=True):
                one.merge(saved)
        self.not_finite = self.not_finite + state["not_finite"]
