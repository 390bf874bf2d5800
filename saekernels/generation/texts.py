"""Texts that are being written, row by row of a batch: which columns are real, who has ended, and why."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.generation.watch import Fired

Reason = Literal["eos", "length", "latent", "time", "criteria"]
OnToken = Callable[[int, int], Any]
OnEvent = Callable[[Fired], Any]


@dataclass
class Generated:
    """What was written after one prompt.

    ids: the new tokens, without padding; the one that ends a text (eos) is among them. reason: why it ended: "eos",
    "length", "latent" (a watch that stops), "time" (`max_time` was over), or "criteria" (a stopping criterion that was
    given). stopped_by: the event that ended it; the text then ends with that event's token. events: all of this text,
    in order.
    """

    ids: list[int] = field(default_factory=list)
    reason: Reason = "length"
    stopped_by: Fired | None = None
    events: list[Fired] = field(default_factory=list)


class Texts:
    """The state of one call of `generate`, which is also its stopping criterion.

    Args:
        mask: [B, P] bool, where the prompts are no padding.
        seen: of those P, how many a cache already holds; they make no events.
        eos: token ids that end a text.
        max_time: seconds, after which all texts end.
        others: further criteria, as transformers takes them.
        on_token: called as ``on_token(row, id)`` for every new token of a text that goes on.
        on_event: called for every event, token by token, once the pass that read the token is over.
    """

    def __init__(
        self,
        mask: Tensor,
        eos: Collection[int],
        max_time: float,
        others: Sequence[Any],
        on_token: OnToken | None,
        on_event: OnEvent,
        seen: int = 0,
    ) -> None:
        self.real = mask
        self.prompt = mask.shape[1]
        self.made = [Generated() for _ in range(len(mask))]
        self._ended = [False] * len(mask)
        self._eos, self._others = frozenset(eos), others
        self._on_token, self._on_event = on_token, on_event
        self._until = time.monotonic() + max_time
        self._seen = seen
        self._pending: list[tuple[int, int, int, Fired]] = []
        self.start = self.fresh = 0
        self.ids: list[list[int]] = []
        self.positions: list[list[int]] = []

    def begin_pass(self, ids: Tensor) -> Tensor:
        """Take note of a forward pass over ids [B, S]; returns [B, S] bool, which of them are real."""
        length, total = ids.shape[1], self.real.shape[1]
        # The prompt may come in pieces; afterwards a pass ends with the last token, and without a cache has them all.
        self.start = self._seen if total == self.prompt else total - length
        self.fresh, self._seen = self._seen, self.start + length
        span = slice(self.start, self._seen)
        self.ids = ids.tolist()
        self.positions = (self.real.long().cumsum(1)[:, span] - 1).tolist()
        return self.real[:, span]

    def add(self, row: int, column: int, order: int, site: str, latent: int, value: float, stop: bool) -> None:
        """An event at a column of the pass under way, unless an earlier pass had that column."""
        at = self.start + column
        if at < self.fresh:
            return
        if not math.isfinite(value):
            raise InputError(f"{site}:{latent} fires at {value}: what the SAEs put in, edits among it, is too large")
        generated = at >= self.prompt
        event = Fired(row, self.positions[row][column], self.ids[row][column], generated, site, latent, value, stop)
        self._pending.append((row, event.position, order, event))

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Called by `generate` after each new token, input_ids [B, P + n]: which rows [B] have ended."""
        self.tell_events()
        self._end_by_latent()
        late = time.monotonic() > self._until
        ended_by = [one(input_ids, scores, **options).tolist() for one in self._others]
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self._ended[row]:
                continue
            made = self.made[row]
            made.ids.append(token)
            if self._on_token is not None:
                self._on_token(row, token)
            if token in self._eos:
                self._end(row, "eos")
            elif any(one[row] for one in ended_by):
                self._end(row, "criteria")
            elif late:
                self._end(row, "time")
        ended = torch.tensor(self._ended, device=self.real.device)
        self.real = torch.cat([self.real, ~ended.unsqueeze(1)], 1)
        return ended.to(input_ids.device)

    def check_scores(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [B, V] of the next tokens. InputError for NaN, of which an id would be made all the same."""
        lost = scores.isnan().any(1).tolist()
        if any(nan and not ended for nan, ended in zip(lost, self._ended, strict=True)):
            told = "what the SAEs put in, edits among it, or the model makes of it, is too large"
            raise InputError(f"the scores of the next token are NaN: {told}")
        return scores

    def tell_events(self) -> None:
        """Hand on what the passes since the last token found, in the order of the text, then of the sites."""
        for row, _, _, event in sorted(self._pending, key=lambda one: one[:3]):
            self.made[row].events.append(event)
            self._on_event(event)
        self._pending = []

    def _end_by_latent(self) -> None:
        for row, made in enumerate(self.made):
            stops = (event for event in reversed(made.events) if event.stop and event.generated)
            stopped_by = None if self._ended[row] else next(stops, None)
            if stopped_by is not None:
                made.stopped_by = stopped_by
                self._end(row, "latent")

    def _end(self, row: int, reason: Reason) -> None:
        self._ended[row] = True
        self.made[row].reason = reason
