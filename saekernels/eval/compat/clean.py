"""What every comparison with one clean stream shares, so that each further stream costs one product with the head.

KL(p || q) = sum p log p - h_q . E_p[W_U] - E_p[b] + log sum exp z_q, for a linear head z = h W_U^T + b: once the clean
run's entropy and its mean output embedding E_p[W_U] are known, another stream needs its normaliser alone, and one whose
normaliser is known (a constant ablation) only a dot product per token. That pays from a few streams on; fewer share
the clean stream's logits alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saekernels.eval.passes.constant_ablation import ConstantRun
from saekernels.eval.passes.head_kinds import Head, LinearHead, Together
from saekernels.ops import LinearCeKl

_ROWS_AT_ONCE = 128
_MANY = 4

Figures = tuple[Tensor, Tensor]
"""Cross-entropy of a stream and KL(clean || stream), each [n] fp64."""


class CleanStream:
    """The clean run's hidden states [n, d] with its targets [n] int64; streams: how many will be compared with it."""

    def __init__(self, head: Head, hidden: Tensor, targets: Tensor, streams: int) -> None:
        self.head, self.hidden, self.targets = head, hidden, targets.to(hidden.device)
        self.ce = torch.zeros(len(hidden), dtype=torch.float64)
        self.shared = False
        if streams >= _MANY and isinstance(head, LinearHead) and head.softcap is None and head.scale == 1.0:
            self.shared = True
            self._describe(head)

    def _describe(self, head: LinearHead) -> None:
        weight = head.weight.float()
        logits = weight.new_empty(_ROWS_AT_ONCE, len(weight))
        exponentials = torch.empty_like(logits)
        negentropy, mean, bias, normaliser = [], [], [], []
        for rows in self.hidden.split(_ROWS_AT_ONCE):
            z, p = logits[: len(rows)], exponentials[: len(rows)]
            torch.mm(rows.float(), weight.T, out=z)
            if head.bias is not None:
                z += head.bias.float()
            torch.sub(z, z.amax(-1, keepdim=True), out=p)
            total = p.exp_().sum(-1)
            normaliser.append(total.log() + z.amax(-1))
            negentropy.append((p.unsqueeze(1) @ z.unsqueeze(2)).view(-1) / total - normaliser[-1])
            mean.append(p @ weight / total[:, None])
            bias.append(p @ head.bias.float() / total if head.bias is not None else torch.zeros_like(total))
        self._negentropy, self._mean, self._bias = (torch.cat(part).double() for part in (negentropy, mean, bias))
        self.ce = torch.cat(normaliser).double() - self.head.target_logits(self.hidden, self.targets).double()

    def against(self, streams: Sequence[Tensor | ConstantRun], positions: Tensor) -> list[Figures]:
        """Of each stream: hidden states [n, d], or a run whose states depend on the position alone.

        positions: [n] int64, of the states in their windows.
        """
        made: dict[int, Figures] = {}
        left: list[tuple[int, Tensor]] = []
        for number, stream in enumerate(streams):
            if not isinstance(stream, ConstantRun):
                left.append((number, stream))
                continue
            hidden = stream.hidden.index_select(0, positions.to(stream.hidden.device))
            if self.shared:
                normaliser = stream.normaliser[positions.cpu()].to(hidden.device)
                ce = normaliser - self.head.target_logits(hidden, self.targets).double()
                made[number] = self._figures(hidden, ce)
            else:
                left.append((number, hidden))
        while self.shared and len(left) > 1:
            (first, p), (second, q), *left = left
            found = self.head.compare(p, q, self.targets)
            made[first], made[second] = self._figures(p, found.ce_p), self._figures(q, found.ce_q)

        def take(number: int, found: LinearCeKl) -> None:
            self.ce = found.ce_p.double()
            made[number] = found.ce_q.double(), found.kl.double()

        together = Together(self.head, self.hidden, self.targets, take)
        for number, hidden in left:
            together.add(number, hidden)
        together.flush()
        return [made[number] for number in range(len(streams))]

    def _figures(self, hidden: Tensor, ce: Tensor) -> Figures:
        normaliser = ce.double() + self.head.target_logits(hidden, self.targets).double()
        crossed = (hidden.double() * self._mean).sum(-1) + self._bias
        return ce.double(), self._negentropy - crossed + normaliser
