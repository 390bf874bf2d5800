"""Our fused Adam in place of a trainer's own: the same step to rounding, its state carried over, and back again.

A constrained Adam, which projects gradients and keeps unit norms of some parameters, becomes two groups of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saekernels.adapters.errors import NotAccelerated
from saekernels.optim import Adam

SWAPPED = "_saekernels_optimizers"


@dataclass
class Held:
    """What of a trainer is accelerated.

    targets: what is patched: its SAEs, or the trainer itself. optimizers, put: what it steps with, and how others are
    put in their place. schedulers: of the learning rate. constrained: of an optimizer, the parameters [d, F] whose
    gradients it takes at right angles to their columns, and whose columns it keeps at unit norm.
    """

    targets: Sequence[Any]
    optimizers: Sequence[torch.optim.Optimizer]
    put: Callable[[Sequence[torch.optim.Optimizer]], None]
    schedulers: Sequence[Any]
    constrained: Callable[[Any], Sequence[Tensor]] = field(default=lambda _: ())


def swap_in(trainer: Any, held: Held) -> None:
    """Put ours in place of each, once. Raises NotAccelerated, and changes nothing, for one whose steps would differ."""
    if SWAPPED in vars(trainer):
        return
    ours = [_like(type(trainer).__name__, old, held) for old in held.optimizers]
    for old, new in zip(held.optimizers, ours, strict=True):
        _hand_over(old, new, held.schedulers)
    vars(trainer)[SWAPPED] = list(held.optimizers)
    held.put(ours)


def swap_out(trainer: Any, held: Held) -> None:
    """Undo `swap_in`, with the state that there is by now; nothing for a trainer that steps with its own."""
    kept = vars(trainer).pop(SWAPPED, None)
    if kept is None:
        return
    for new, old in zip(held.optimizers, kept, strict=True):
        _hand_over(new, old, held.schedulers)
    held.put(kept)


def align(optimizer: torch.optim.Optimizer) -> None:
    """Lay moments out as their parameters lie, which moved: torch's fused Adam on the CPU takes that for granted."""
    for param, state in getattr(optimizer, "state", {}).items():
        for name in ("exp_avg", "exp_avg_sq"):
            moment = state.get(name) if isinstance(state, dict) else None
            if isinstance(moment, Tensor) and moment.shape == param.shape and moment.stride() != param.stride():
                state[name] = torch.empty_like(param).copy_(moment)


def _like(trainer: str, old: torch.optim.Optimizer, held: Held) -> Adam:
    """Our optimizer for the same parameters in the same order, with the same options, and no state yet."""
    constrained = held.constrained(old)
    if type(old) not in (torch.optim.Adam, torch.optim.AdamW) and not constrained:
        raise NotAccelerated(f"optimizer: {trainer} steps with {type(old).__name__}, need torch.optim.Adam or AdamW")
    if old._optimizer_step_pre_hooks or old._optimizer_step_post_hooks:
        raise NotAccelerated(f"optimizer: the {type(old).__name__} of {trainer} has hooks on its steps")
    groups: list[dict[str, Any]] = [dict(group) for group in old.param_groups]
    if constrained:
        (group,) = groups
        free = [one for one in group["params"] if not any(one is other for other in constrained)]
        bound = {"project": True, "unit_norm": True, "dim": 0}
        groups = [{**group, "params": free}, {**group, "params": list(constrained), **bound}]
    order = [id(one) for group in groups for one in group["params"]]
    if order != [id(one) for group in old.param_groups for one in group["params"]]:
        raise NotAccelerated(f"optimizer: the {type(old).__name__} of {trainer} constrains others than its last ones")
    try:
        return Adam(groups)
    except (TypeError, ValueError) as error:
        raise NotAccelerated(f"optimizer: the {type(old).__name__} of {trainer}: {error}") from error


def _hand_over(old: torch.optim.Optimizer, new: torch.optim.Optimizer, schedulers: Sequence[Any]) -> None:
    """Give `new` the state of `old`, and the schedulers that steer it."""
    steered = [one for scheduler in schedulers for one in _nested(scheduler) if one.optimizer is old]
    if steered and not hasattr(new.step, "_wrapped_by_lr_sched"):
        torch.optim.lr_scheduler.LambdaLR(new, lambda _: 1.0)  # it lets schedulers see that a step was taken
        new.__dict__["_opt_called"] = getattr(old, "_opt_called", False)
    told = old.state_dict()
    numbers = [number for group in told["param_groups"] for number in group["params"]]
    groups, at = [], 0
    for place, group in enumerate(new.param_groups):
        theirs = told["param_groups"][min(place, len(told["param_groups"]) - 1)]
        options = {
            name: theirs[name] for name in theirs if name in group and name not in ("project", "unit_norm", "dim")
        }
        groups.append({**options, "params": numbers[at : at + len(group["params"])]})
        at += len(group["params"])
    new.load_state_dict({"state": told["state"], "param_groups": groups})
    align(new)
    for scheduler in steered:
        scheduler.optimizer = new
        _fit(scheduler, len(old.param_groups), len(new.param_groups))


def _fit(scheduler: Any, before: int, now: int) -> None:
    """A scheduler keeps lists of one entry per group; a group that was split, or came together again, has one rate."""
    if before != now:
        for name in ("base_lrs", "lr_lambdas", "_last_lr"):
            entries = getattr(scheduler, name)
            setattr(scheduler, name, [*entries[:now], *entries[-1:] * (now - before)])


def _nested(scheduler: Any) -> list[Any]:
    """A scheduler and those that it is made of."""
    return [scheduler, *(one for part in getattr(scheduler, "_schedulers", ()) for one in _nested(part))]
