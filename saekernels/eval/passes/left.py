"""Which positions keep their activation in every run: attention sinks, told by the norms of the clean run.

The limit of a site is a ratio times the median of its norms over the first text, and the clean run decides: so all runs
on a batch leave the same positions of a site, and what is left at one site does not depend on the other sites.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.text.batches import Batch
from saekernels.parallel.devices import input_device
from saekernels.splice.context import splice
from saekernels.splice.leave import Leave, Norms

Calls = list[tuple[str, Tensor, Tensor]]
"""(site, what is read [B, S, d_in], what is replaced [B, S, d_out]) of every call of a run, in their order."""
MOST_KEPT = 2**28  # numbers, 1 GiB in float32


class SiteNorms:
    """Medians of the norms at each site of the clean model, over touched positions.

    Args:
        sites: site -> SAE, any of the site's.
    """

    def __init__(self, model: Any, head: Head, sites: Mapping[str, Any], rule: Leave) -> None:
        self.model, self.head, self.sites, self.rule = model, head, dict(sites), rule
        self.norms = {site: Norms() for site in sites}

    def add(self, batch: Batch) -> None:
        """One clean run of a batch."""

        def observe(site: str, x: Tensor, x_hat: Tensor, target: Tensor, *_: Any) -> None:
            self.norms[site].add(x, target, over(batch.touched, target.shape[:-1]))

        with self.looking(batch, observe):
            self.head.body(batch.ids.to(input_device(self.model)))

    def touched(self, batch: Batch, site: str, x: Tensor, target: Tensor) -> Tensor:
        """[B, S] bool on the CPU: positions that are replaced at the site, of the clean run's activations there."""
        if self.rule.norm is None:
            return batch.touched
        far = self.norms[site].outlying(x, target, self.rule.norm).cpu()
        if far.numel() > batch.touched.numel():
            far = far.any(-1)
        return batch.touched & ~far.reshape(batch.touched.shape)

    def run_clean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Final hidden states of the clean run at the batch's rows, and [B, S] of what is touched at each site.

        None in place of the masks where `batch.touched` is that of every site.
        """
        ids = batch.ids.to(input_device(self.model))
        if self.rule.norm is None:
            return self.head.hidden(ids, batch.rows), None
        masks: dict[str, Tensor] = {}

        def observe(site: str, x: Tensor, x_hat: Tensor, target: Tensor, *_: Any) -> None:
            # A module that runs twice in a pass is left where either call says so.
            masks[site] = masks.get(site, batch.touched) & self.touched(batch, site, x, target)

        with self.looking(batch, observe):
            hidden = self.head.hidden(ids, batch.rows)
        return hidden, masks

    def masks(self, batch: Batch, calls: Calls) -> dict[str, Tensor] | None:
        """`run_clean`'s masks, of the calls of a clean run."""
        if self.rule.norm is None:
            return None
        masks: dict[str, Tensor] = {}
        for site, x, target in calls:
            masks[site] = masks.get(site, batch.touched) & self.touched(batch, site, x, target)
        return masks

    def limits(self) -> dict[str, list[float]]:
        """Site -> the norm above which a position is left, of what is read and of what is replaced."""
        ratio = self.rule.norm
        if ratio is None:
            return {}
        return {site: [ratio * one.read.value, ratio * one.replaced.value] for site, one in self.norms.items()}

    def looking(self, batch: Batch, observer: Any) -> Any:
        """A splice that leaves everything as it is, so that the run is the clean one and the sites are only seen."""
        nothing = torch.ones_like(batch.touched)
        return splice(self.model, self.sites, replace="zero", untouched=nothing, observer=observer)

    def state(self) -> dict[str, Any]:
        """Everything, to be saved and given to `load`."""
        return {site: one.state() for site, one in self.norms.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of the same sites; what was seen before is forgotten."""
        for site, one in self.norms.items():
            one.load(state[site])

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one of the same sites has seen."""
        for site, one in self.norms.items():
            one.merge(state[site])


class _EndedError(Exception):
    """Ends a forward pass whose rest is not needed."""


class CleanRuns:
    """What the sites hold in the clean run of each batch.

    With a limit on norms, its medians become those of these batches; what was seen for them is kept between as far as
    there is room, and computed again where there is none.

    Args:
        left: the model, its sites and the rule.
        whole: whether the final states are wanted; without, a run ends with the last call of a site.
        advance: told of the positions of each batch, twice with a limit on norms.
    """

    def __init__(self, left: SiteNorms, parts: Sequence[Batch], whole: bool, advance: Callable[[int], None]) -> None:
        self._left, self._parts, self._whole, self._advance = left, parts, whole, advance
        self._last = 0
        self._kept: dict[int, tuple[Tensor | None, Calls]] = {}
        room = MOST_KEPT
        for number, batch in enumerate(parts if left.rule.norm is not None else ()):
            hidden, calls = self._run(batch)
            for site, x, y in calls:
                left.norms[site].add(x, y, over(batch.touched, y.shape[:-1]))
            size = sum(x.numel() + (y.numel() if y is not x else 0) for _, x, y in calls)
            size += 0 if hidden is None else hidden.numel()
            if size <= room:
                self._kept[number], room = (hidden, calls), room - size
            advance(batch.positions)

    def __iter__(self) -> Iterator[tuple[Batch, Tensor | None, Calls]]:
        """Each batch once, with its final states [n, d] at the batch's rows (None unless `whole`) and its calls."""
        for number, batch in enumerate(self._parts):
            hidden, calls = self._kept.pop(number) if number in self._kept else self._run(batch)
            self._advance(batch.positions)
            yield batch, hidden, calls

    def _run(self, batch: Batch) -> tuple[Tensor | None, Calls]:
        seen: Calls = []

        def observe(site: str, x: Tensor, x_hat: Tensor, y: Tensor, *_: Any) -> None:
            # A copy, because what comes after may change it in place; one for both ends that are one.
            own = x.clone()
            same = x.shape == y.shape and x.data_ptr() == y.data_ptr()
            seen.append((site, own, own if same else y.clone()))
            if len(seen) == self._last:
                raise _EndedError

        left, ids = self._left, batch.ids.to(input_device(self._left.model))
        if self._whole:
            looking = left.looking(batch, observe) if left.rule.norm is not None else contextlib.nullcontext()
            with looking:
                return left.head.hidden(ids, batch.rows), seen
        with contextlib.suppress(_EndedError), left.looking(batch, observe):
            left.head.body(ids)
        # How many calls there are, the first run says, which goes to its end.
        self._last = self._last or len(seen)
        return None, seen


def over(mask: Tensor, lead: Iterable[int]) -> Tensor:
    """A mask [B, S] over positions [B, S], [B * S] or [B, S, heads]."""
    shape = torch.Size(lead)
    return mask.reshape(shape) if mask.numel() == shape.numel() else mask.unsqueeze(-1).expand(shape)


def rule_text(rule: Leave) -> str:
    """The rule in a sentence, to stand beside the mask; "" for none."""
    parts = []
    if rule.first:
        parts.append(f"the first {rule.first} of each window" if rule.first > 1 else "the first of each window")
    if rule.norm is not None:
        parts.append(f"those whose norm at a site exceeds {rule.norm:g} times the site's median in the clean run")
    return f" Left as they are, in every run: {' and '.join(parts)}." if parts else ""
