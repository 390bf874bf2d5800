"""What every comparison with one clean stream shares, so that each further stream costs one product with the head.

KL(p || q) = sum p log p - h_q . E_p[W_U] - E_p[b] + log sum exp z_q, for a linear head z = h W_U^T + b: once the clean
run's entropy and its mean output embedding E_p[W_U] are known, another stream needs its normaliser alone, and one whose
normaliser is known (a constant ablation) only a dot product per token. That pays from a few streams on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saekernels.eval.passes.constant_ablation import ConstantRun
from saekernels.eval.passes.head_kinds import Head, LinearHead

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

    def against(self, streams: Sequence[Tensor]) -> list[Figures]:
        """Of each stream, hidden states [n, d]."""
        made: list[Figures] = []
        for first in range(0, len(streams) if self.shared else 0, 2):
            pair = streams[first : first + 2]
            if len(pair) == 2:
                found = self.head.compare(pair[0], pair[1], self.targets)
                made += [self._figures(hidden, ce) for hidden, ce in zip(pair, found, strict=False)]
        for hidden in streams[len(made) :]:
            found = self.head.compare(self.hidden, hidden, self.targets)
            self.ce = found[0].double()
            made.append((found[1].double(), found[2].double()))
        return made

    def against_constant(self, run: ConstantRun, positions: Tensor) -> Figures:
        """Of a run whose states depend on the position alone; positions [n] int64."""
        hidden = run.hidden.index_select(0, positions.to(run.hidden.device))
        if not self.shared:
            return self.against([hidden])[0]
        ce = run.normaliser[positions.cpu()].to(hidden.device) - self.head.target_logits(hidden, self.targets).double()
        return self._figures(hidden, ce)

    def _figures(self, hidden: Tensor, ce: Tensor) -> Figures:
        normaliser = ce.double() + self.head.target_logits(hidden, self.targets).double()
        crossed = (hidden.double() * self._mean).sum(-1) + self._bias
        return ce.double(), self._negentropy - crossed + normaliser
