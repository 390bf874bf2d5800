"""The ways from a model's last states to logits and losses: a linear head, a head module, or whole logits.

All have one interface, and one definition of cross-entropy, KL and agreement (`saekernels.linear_ce_kl`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from saekernels.backends.reference.linear_ce_kl import compare_logits
from saekernels.backends.reference.rows import accumulator, row_chunks
from saekernels.ops import LinearCeKl, linear_ce_kl

_ROWS_AT_ONCE = 1024
_STREAMS = 8
_BYTES = 256 << 20  # of states that wait

Key = TypeVar("Key")


@dataclass(frozen=True)
class Head(ABC):
    """A model cut in two: `body` maps ids [B, S] to states [B, S, d], and the head these to logits.

    own: the model's own logits [B, S, V] for ids [B, S].
    """

    own: Callable[[Tensor], Tensor]
    body: Callable[[Tensor], Tensor]
    kind: ClassVar[Literal["linear", "module", "whole"]]

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """V."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """That of the model where logits are made."""

    def like(self, hidden: Tensor) -> Tensor:
        """States as `compare` and `logits` take them: where the head is, and in its dtype."""
        return hidden

    def hidden(self, ids: Tensor, rows: Tensor) -> Tensor:
        """States [n, d] at the flat positions `rows` [n] of ids [B, S]."""
        hidden = self.body(ids)
        return self.like(hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows.to(hidden.device)))

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[n, V] logits of a few rows [n, d], in fp32 or more."""

    def compare(self, hidden_p: Tensor, hidden_q: Tensor, targets: Tensor) -> LinearCeKl:
        """Cross-entropy of p [n], and of each stream q its own, KL(p || q) and top-1 agreement, [n] or [R, n].

        hidden_p [n, d], hidden_q [n, d] or [R, n, d], targets [n].
        """
        streams = hidden_q if hidden_q.dim() == 3 else hidden_q[None]
        made = hidden_p.new_empty(4, len(streams), len(hidden_p), dtype=accumulator(hidden_p.dtype))
        for part in row_chunks(len(hidden_p), self.vocabulary):
            z_p = self.logits(hidden_p[part])
            own = targets[part].to(z_p.device)
            for number, hidden in enumerate(streams):
                found = compare_logits(z_p, self.logits(hidden[part]).to(z_p.device), own)
                made[:, number, part] = torch.stack(found).to(made)
        return LinearCeKl(made[0, 0], *(made[1:] if hidden_q.dim() == 3 else made[1:, 0]))

    def target_logits(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """[n] fp32: the logit of each row's own target; states [n, d], targets [n]."""
        made = hidden.new_empty(len(hidden), dtype=torch.float32)
        for part in row_chunks(len(hidden), self.vocabulary):
            z = self.logits(hidden[part])
            made[part] = z.gather(1, targets[part, None].to(z.device))[:, 0].to(made)
        return made


@dataclass(frozen=True)
class LinearHead(Head):
    """logits = softcap(scale * (hidden @ weight.T + bias)), which never exist as a whole.

    weight [V, d]; bias [V] or None; softcap(z) = c * tanh(z / c), or the identity when `softcap` is None.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    kind = "linear"

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def like(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.weight)

    def compare(self, hidden_p: Tensor, hidden_q: Tensor, targets: Tensor) -> LinearCeKl:
        bias = self.bias
        if self.scale != 1.0:
            hidden_p, hidden_q = hidden_p * self.scale, hidden_q * self.scale
            bias = None if bias is None else bias * self.scale
        targets = targets.to(self.weight.device)
        return linear_ce_kl(hidden_p, hidden_q, self.weight, targets, bias=bias, softcap=self.softcap)

    def target_logits(self, hidden: Tensor, targets: Tensor) -> Tensor:
        targets = targets.to(self.weight.device)
        parts = zip(hidden.split(_ROWS_AT_ONCE), targets.split(_ROWS_AT_ONCE), strict=True)
        z = torch.cat([(rows.float() * self.weight[own].float()).sum(-1) for rows, own in parts])
        return self._curved(z if self.bias is None else z + self.bias[targets].float())

    def logits(self, hidden: Tensor) -> Tensor:
        z = hidden.float() @ self.weight.float().T
        return self._curved(z if self.bias is None else z + self.bias.float())

    def _curved(self, z: Tensor) -> Tensor:
        z = z * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


@dataclass(frozen=True)
class _OpaqueHead(Head):
    """A head without weights that could be seen: how many logits it gives, and the model's dtype."""

    width: int
    precision: torch.dtype

    @property
    def vocabulary(self) -> int:
        return self.width

    @property
    def dtype(self) -> torch.dtype:
        return self.precision


@dataclass(frozen=True)
class ModuleHead(_OpaqueHead):
    """logits = module(states), a few rows at a time; flat: the module takes [n, d] rather than [1, n, d]."""

    module: nn.Module
    flat: bool
    kind = "module"

    def logits(self, hidden: Tensor) -> Tensor:
        z = self.module(hidden if self.flat else hidden[None])
        return z.reshape(-1, self.width).to(accumulator(z.dtype))


@dataclass(frozen=True)
class WholeHead(_OpaqueHead):
    """The states are the model's logits themselves."""

    kind = "whole"

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.to(accumulator(hidden.dtype))


class Together(Generic[Key]):
    """A batch's streams, compared with its clean stream some at a time: its logits are then computed once for all.

    clean: states [n, d]; targets [n]. take(key, figures) is told of each stream in the order in which they came, at the
    latest by `flush`; its figures, each [n], are those of a comparison of the two alone.
    """

    def __init__(self, head: Head, clean: Tensor, targets: Tensor, take: Callable[[Key, LinearCeKl], None]) -> None:
        self.head, self.clean, self.targets, self.take = head, clean, targets, take
        self._waiting: list[tuple[Key, Tensor]] = []

    def add(self, key: Key, hidden: Tensor) -> None:
        """A stream's states [n, d]."""
        self._waiting.append((key, hidden))
        count = len(self._waiting)
        if count == _STREAMS or count * hidden.numel() * hidden.element_size() >= _BYTES:
            self.flush()

    def flush(self) -> None:
        """Compare what waits."""
        if not self._waiting:
            return
        keys, streams = zip(*self._waiting, strict=True)
        self._waiting = []
        found = self.head.compare(self.clean, torch.stack(streams), self.targets)
        for key, *figures in zip(keys, *found[1:], strict=True):
            self.take(key, LinearCeKl(found.ce_p, *figures))
