"""What comes before a run's first splice is what it was in an earlier run of the batch, so it is computed once.

The blocks before the first site give back what the last of them gave in the clean run; and the run of the first l
sites goes on from the run of all sites, where the next site begins. That is exact only for models whose blocks speak to
each other through their outputs alone (not through caches, or skips from one block to a far one), so it is used only
where a trial run has the same bits with it and without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.eval.passes.plan import Run, site_of
from saekernels.parallel.collectives import RankLostError
from saekernels.splice.sites import Site, resolve_site

CLEAN = "clean"


@dataclass(frozen=True)
class Start:
    """Where a run begins: after `depth` blocks of the run `source`, with these entries still to splice (None: all)."""

    source: str = CLEAN
    depth: int = 0
    entries: tuple[str, ...] | None = None


class LayerReuse:
    """A model's chain of blocks, and what some of them gave in earlier runs of the current batch.

    Args:
        blocks: the chain in the order of its computation; empty for no reuse.
        starts: run name -> where it begins; a run that is not there begins with the text.
        why: why there is no reuse, for the report; "" where there is.
    """

    def __init__(self, blocks: list[nn.Module], starts: dict[str, Start], why: str = "") -> None:
        self.blocks, self.starts, self.why = blocks, starts, why
        self._kept: dict[tuple[str, int], Any] = {}

    def start(self, run: Run) -> Start:
        """Where this run begins."""
        return self.starts.get(run.name, Start())

    def entries(self, run: Run) -> tuple[str, ...]:
        """What is still to splice where this run begins."""
        left = self.start(run).entries
        return run.entries if left is None else left

    def forget(self) -> None:
        """Let go of what the last batch left."""
        self._kept.clear()

    @contextlib.contextmanager
    def recording(self, source: str) -> Iterator[None]:
        """During the run `source`, what the last block of each prefix computed is kept, [B, S, d] each.

        To be entered before the run's splice: what is kept is what was there before a splice of the block's own output.
        """
        depths = {start.depth for start in self.starts.values() if start.source == source} - {0}
        handles = [
            self.blocks[depth - 1].register_forward_hook(
                lambda module, args, output, depth=depth: self._kept.__setitem__((source, depth), output)
            )
            for depth in depths
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def resuming(self, run: Run) -> Iterator[None]:
        """During `run`, its prefix gives what was kept; hooks on the skipped blocks run as ever."""
        start = self.start(run)
        skipped = self.blocks[: start.depth]
        before = [vars(block).get("forward") for block in skipped]
        try:
            for block in skipped:
                # By name in the block itself: a block may hand on what is set on it, as TransformerLens' bridges do.
                vars(block)["forward"] = lambda *args, **kwargs: self._kept[start.source, start.depth]
            yield
        finally:
            for block, forward in zip(skipped, before, strict=True):
                if forward is None:
                    vars(block).pop("forward", None)
                else:
                    vars(block)["forward"] = forward


def no_reuse(why: str) -> LayerReuse:
    """Every run computes every block."""
    return LayerReuse([], {}, why)


def find_reuse(
    model: nn.Module,
    runs: list[Run],
    joint: Run | None = None,
    continuing: Collection[Run] = (),
    earlier: Mapping[str, Collection[str]] | None = None,
) -> LayerReuse:
    """Where each run can begin in `model`: blocks are the members of the outermost ModuleList around a site.

    joint: the run of all sites; `continuing`: runs of its first l sites that are to go on from it, where site l + 1
    lies in a later block. Their own splices are then not made again. earlier: site -> sites that a pass which replaces
    it has to read before, as cross-layer transcoders do.
    """
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    sites = {name: resolve_site(model, name) for run in runs for name in run.sites}
    before = {name: (earlier or {}).get(name, ()) for name in sites}
    read = {other: resolve_site(model, other) for others in before.values() for other in others}
    for candidate in lists:
        blocks = list(candidate)
        first = {name: _first(blocks, site) for name, site in {**read, **sites}.items()}
        depths = {name: _earliest([first[name], *(first[other] for other in before[name])]) for name in sites}
        if any(depth is not None for depth in depths.values()):
            starts = {}
            for run in runs:
                start = Start(CLEAN, min(depths[name] or 0 for name in run.sites))
                on = _continued(run, joint, start.depth, first, blocks, sites) if run in continuing else None
                # A splice that is made again has nothing of the layers before it, where it needs any.
                again = [] if on is None else [before[site_of(entry)] for entry in on.entries or ()]
                starts[run.name] = start if on is None or any(again) else on
            return LayerReuse(blocks, starts)
    return no_reuse("no site lies in a list of blocks")


def _continued(
    run: Run,
    joint: Run | None,
    least: int,
    depths: Mapping[str, int | None],
    blocks: list[nn.Module],
    sites: Mapping[str, Any],
) -> Start | None:
    """Where a run of the first sites of `joint` goes on from it, `least` blocks deep at least; None where it cannot."""
    following = None if joint is None else depths[joint.sites[len(run.entries)]]
    if joint is None or following is None or following < least:
        return None
    if max(_done(blocks, sites[name].write.module) for name in run.sites) > following:
        return None
    # A splice of the last kept block's output comes after what was kept, so it is made again.
    last = blocks[following - 1] if following else None
    pairs = zip(run.entries, (sites[name] for name in run.sites), strict=True)
    again = tuple(entry for entry, site in pairs if site.write.module is last and not site.write.is_input)
    return Start(joint.name, following, again)


def _earliest(depths: list[int | None]) -> int | None:
    """The least of them; None if one is not known."""
    known = [depth for depth in depths if depth is not None]
    return min(known) if len(known) == len(depths) else None


def _first(blocks: list[nn.Module], site: Site) -> int | None:
    """As `_depth`, of the end that comes first; None where either lies outside the blocks."""
    return _earliest([_depth(blocks, end.module, end.is_input) for end in (site.read, site.write)])


def _depth(blocks: list[nn.Module], module: nn.Module, reads_input: bool) -> int | None:
    """How many blocks are done before anything changes at a site; None for a site outside the blocks."""
    for index, block in enumerate(blocks):
        if block is module and not reads_input:
            return index + 1
        if any(part is module for part in block.modules()):
            return index
    return None


def _done(blocks: list[nn.Module], module: nn.Module) -> int:
    """How many blocks are done when a site is behind; 0 for a site before the blocks."""
    holders = [index + 1 for index, block in enumerate(blocks) if any(part is module for part in block.modules())]
    return max(holders, default=0)


def check_reuse(
    reuse: LayerReuse, runs: list[Run], clean: Callable[[], Tensor], spliced: Callable[[Run, tuple[str, ...]], Tensor]
) -> LayerReuse:
    """`reuse` if every run gives the same bits with it, twice over, as without it; else none, with the reason.

    clean() makes a clean run; spliced(run, entries) one of `runs` with these of its splices, all on the same tokens.
    """
    if not reuse.blocks:
        return reuse
    sources = {reuse.start(run).source for run in runs}
    full = {}
    try:
        with reuse.recording(CLEAN):
            clean()
        for run in runs:
            with reuse.recording(run.name) if run.name in sources else contextlib.nullcontext():
                full[run.name] = spliced(run, run.entries)
        for run in [*runs, *runs]:
            with reuse.resuming(run):
                got = spliced(run, reuse.entries(run))
            if not torch.allclose(got, full[run.name], rtol=0, atol=0, equal_nan=True):
                return no_reuse(f"with it, a trial run of {' '.join(run.entries)} has other bits")
    except RankLostError:
        raise
    except Exception as error:  # a model of any kind may object to being cut short, in any way
        return no_reuse(f"with it, a trial run fails with {type(error).__name__}")
    finally:
        reuse.forget()
    return reuse
