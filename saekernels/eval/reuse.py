"""What comes before a run's first splice is what it was in the clean pass, so it is computed once per batch.

The blocks before the first site give back what the last of them gave in the clean pass. That is exact only for models
whose blocks speak to each other through their outputs alone (not through caches, or skips from one block to a far
one), so it is used only where a trial run has the same bits with it and without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.sites import resolve_site


class LayerReuse:
    """A model's chain of blocks, and what some of them gave in the clean pass of the current batch.

    Args:
        blocks: the chain in the order of its computation; empty for no reuse.
        depths: target -> how many leading blocks its runs need not compute.
        why: why there is no reuse, for the report; "" where there is.
    """

    def __init__(self, blocks: list[nn.Module], depths: dict[str, int], why: str = "") -> None:
        self.blocks, self.depths, self.why = blocks, depths, why
        self._kept: dict[int, Any] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """The clean pass: the output of the last block of each prefix is kept, [B, S, d] each."""
        self._kept.clear()
        handles = [
            self.blocks[depth - 1].register_forward_hook(
                lambda module, args, output, depth=depth: self._kept.__setitem__(depth, output)
            )
            for depth in set(self.depths.values()) - {0}
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def skipping(self, target: str) -> Iterator[None]:
        """A run of `target`: its prefix gives what was kept; hooks on the skipped blocks run as ever."""
        depth = self.depths.get(target, 0)
        skipped = self.blocks[:depth]
        before = [vars(block).get("forward") for block in skipped]
        try:
            for block in skipped:
                block.forward = lambda *args, **kwargs: self._kept[depth]
            yield
        finally:
            for block, forward in zip(skipped, before, strict=True):
                if forward is None:
                    vars(block).pop("forward", None)
                else:
                    block.forward = forward


def no_reuse(why: str) -> LayerReuse:
    """Every run computes every block."""
    return LayerReuse([], {}, why)


def find_reuse(model: nn.Module, targets: dict[str, Iterable[str]]) -> LayerReuse:
    """The prefixes of target -> sites in `model`: blocks are the members of the outermost ModuleList around a site."""
    lists = {id(part): part for part in model.modules() if isinstance(part, nn.ModuleList)}
    sites = {name: resolve_site(model, name) for names in targets.values() for name in names}
    for candidate in lists.values():
        blocks = list(candidate)
        depths = {name: _depth(blocks, site.module, site.reads_input) for name, site in sites.items()}
        if any(depth is not None for depth in depths.values()):
            first = {target: min(depths[name] or 0 for name in names) for target, names in targets.items()}
            return LayerReuse(blocks, first)
    return no_reuse("no site lies in a list of blocks")


def _depth(blocks: list[nn.Module], module: nn.Module, reads_input: bool) -> int | None:
    """How many blocks are done before anything changes at a site; None for a site outside the blocks."""
    for index, block in enumerate(blocks):
        if block is module and not reads_input:
            return index + 1
        if any(part is module for part in block.modules()):
            return index
    return None


def check_reuse(reuse: LayerReuse, clean: Callable[[], Tensor], run: Callable[[str], Tensor]) -> LayerReuse:
    """`reuse` if every target's run gives the same bits with it, twice over, as without it; else none, with the reason.

    clean() makes a clean pass and run(target) one of the target's runs, both on the same few tokens.
    """
    if not reuse.blocks:
        return reuse
    full = {target: run(target) for target in reuse.depths}
    try:
        with reuse.recording():
            clean()
        for target in [*reuse.depths, *reuse.depths]:
            with reuse.skipping(target):
                same = torch.allclose(run(target), full[target], rtol=0, atol=0, equal_nan=True)
            if not same:
                return no_reuse(f"with it, a trial run of {target} has other bits")
    except Exception as error:  # a model of any kind may object to being cut short, in any way
        return no_reuse(f"with it, a trial run fails with {type(error).__name__}")
    return reuse
