"""Attention sinks and other positions that keep their activation: the first ones, and those of outlying norm.

The first position of a window, and a few others, can have norms a hundred times those of the rest (Xiao et al. 2023,
arXiv 2309.17453; Sun et al. 2024, arXiv 2402.17762). They hold no meaning of their token, an SAE trained with them is
ruined, and a model whose sinks are replaced loses its attention: so a splice can leave them as they are.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.errors import InputError
from saekernels.ops import _check
from saekernels.splice.attached import Hooks
from saekernels.splice.mask import fit_mask
from saekernels.splice.norms import RunningMedian, outlying
from saekernels.splice.sites import Site


@dataclass(frozen=True)
class Leave:
    """The rule.

    first: the first so many positions of each sequence, what a tokenizer puts in front included. norm: positions where
    the norm of what a site reads, or of what is replaced there, exceeds this many times its median; None for no limit.
    """

    first: int = 0
    norm: float | None = None

    def __post_init__(self) -> None:
        first = _check.integer(self.first)
        if first is None:
            raise TypeError(f"leave_first: got {self.first!r:.40}, need an int")
        object.__setattr__(self, "first", first)
        if self.first < 0:
            raise InputError(f"leave_first: got {self.first}, need at least 0 positions")
        if self.norm is None:
            return
        if isinstance(self.norm, bool) or not isinstance(self.norm, int | float):
            raise TypeError(f"leave_norm: got {self.norm!r:.40}, need a number or None")
        if not (math.isfinite(self.norm) and self.norm > 1):
            raise InputError(f"leave_norm: got {self.norm:g}, need a finite ratio to the median above 1")

    def __bool__(self) -> bool:
        return self.first > 0 or self.norm is not None


class Norms:
    """Running medians of the norms at the two ends of one site, which are one where the SAE replaces what it reads."""

    def __init__(self) -> None:
        self.read, self.replaced = RunningMedian(), RunningMedian()

    def add(self, x: Tensor, target: Tensor, kept: Tensor | None = None) -> None:
        """x [..., d_in] and target [..., d_out] at the positions `kept` [...]; None for all."""
        for median, end in ((self.read, x), (self.replaced, target)):
            norms = torch.linalg.vector_norm(end, dim=-1, dtype=torch.float64)
            median.add(norms if kept is None else norms[kept])

    def outlying(self, x: Tensor, target: Tensor, ratio: float) -> Tensor:
        """[...] bool: where either norm exceeds `ratio` times its median."""
        return outlying(x, self.read.value, ratio) | outlying(target, self.replaced.value, ratio)

    def state(self) -> dict[str, Any]:
        """Everything, to be saved and given to `load`."""
        return {"read": self.read.state(), "replaced": self.replaced.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; what was added before is forgotten."""
        self.read.load(state["read"])
        self.replaced.load(state["replaced"])

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one has seen."""
        self.read.merge(state["read"])
        self.replaced.merge(state["replaced"])


class LeftInPass:
    """The rule in a running model, pass by pass, caches and left padding included.

    The medians are those of all positions that the splice has seen since it was entered, the present pass included.
    """

    def __init__(self, model: nn.Module, sites: list[Site], rule: Leave) -> None:
        self.rule = rule
        self._holders = [model.get_submodule(path) for path in _above(sites)] if rule.first else []
        self.detach()

    def attach(self, hooks: Hooks) -> None:
        """Start to watch."""
        for holder in self._holders:
            hooks.before(holder, self._begin, with_kwargs=True)
            hooks.after(holder, self._end, always_call=True)

    def detach(self) -> None:
        """Forget what was seen; the owner of the hooks removes them."""
        self._running: list[nn.Module] = []
        self._positions: Tensor | None = None
        self._norms: dict[str, Norms] = {}

    def mask(self, site: str, x: Tensor, target: Tensor) -> Tensor | None:
        """[...] bool over the leading shape of `target`, True where it stays; None where the rule names none."""
        lead = target.shape[:-1]
        left = None
        if self.rule.first:
            if self._positions is None:
                raise InputError(f"site {site!r}: leave_first: it ran outside of a forward pass of the model")
            left = fit_mask(self._positions < self.rule.first, site, lead).to(target.device)
        if self.rule.norm is not None:
            _refuse_graphs()
            norms = self._norms.setdefault(site, Norms())
            norms.add(x, target)
            far = norms.outlying(x, target, self.rule.norm)
            left = far if left is None else left | far
        return left

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # An interrupt can leave modules of a dead pass on the stack.
        if module in self._running:
            del self._running[self._running.index(module) :]
        if not self._running:
            self._positions = positions_in(module, args, kwargs)
        self._running.append(module)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
        if not self._running:
            self._positions = None


def _refuse_graphs() -> None:
    """Medians are kept on the host: compiled code is cut here, an exported program has no place for them."""
    if torch.compiler.is_dynamo_compiling():  # of which torch 2.11 says that it exports, too
        torch._dynamo.graph_break(msg="leave_norm: its median is kept on the host")
    elif torch.compiler.is_exporting():
        raise InputError(
            "leave_norm: its median is that of running text, which an exported program cannot keep; give "
            "untouched a mask, or leave_first"
        )


def positions_in(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """[B, S] int64: how many tokens each position of this call comes after; below 0 for padding.

    From the attention mask if there is one, else `position_ids`, else the length of the cache and the order.
    """
    try:
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    except TypeError:
        given = dict(kwargs)
    given = {**given, **given.get("kwargs", {})}
    tokens = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.ndim >= 2), None)
    if tokens is None:
        raise InputError(f"leave_first: {type(module).__name__} was called without a tensor [B, S] of tokens")
    batch, length = tokens.shape[:2]
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= length:
        counted = mask.long().cumsum(1) - 1
        return torch.where(mask.bool(), counted, -1)[:, -length:]
    if isinstance(positions, Tensor) and positions.ndim == 2 and positions.shape[1] == length:
        return positions.expand(batch, length)
    start = _cached(given, type(module).__name__)
    return torch.arange(start, start + length, device=tokens.device).expand(batch, length)


def _cached(given: dict[str, Any], name: str) -> int:
    """Tokens that came in earlier calls."""
    cache = next((given[key] for key in ("past_key_values", "past_kv_cache") if given.get(key) is not None), None)
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    try:
        return int(cache[0].past_keys.shape[1])
    except (AttributeError, TypeError, IndexError, KeyError):
        raise InputError(f"leave_first: cannot tell how long the cache is that {name} was given") from None


def _above(sites: list[Site]) -> list[str]:
    """The paths of all modules that hold the sites' modules, the model itself included."""
    parts = [site.write.path.split(".") for site in sites]
    return sorted(
        {".".join(path[:end]) for path in parts for end in range(len(path))}, key=lambda path: path.count(".")
    )
