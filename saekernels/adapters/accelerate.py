"""`accelerate` and `restore`: the kernels behind an object of another tool, and its own code again."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any, NamedTuple, TypeVar

from torch import nn

from saekernels.adapters import named_weights as plain
from saekernels.adapters import verify
from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.optimizers import Held, align, swap_in, swap_out
from saekernels.adapters.patch import State, install, state_of, uninstall
from saekernels.adapters.tools import TOOLS, adapter_of
from saekernels.sae.activations import Activation

_M = TypeVar("_M")


def accelerate(
    module: _M,
    *,
    activation: Activation | None = None,
    names: dict[str, str] | None = None,
    check: bool = False,
    optimizer: bool = False,
) -> _M:
    """Let this library's kernels compute what an object of another tool computes.

    The same object is returned, of the same type: parameters, state_dict, dtype and device moves, hooks, gradients, and
    the tool's own evaluators and trainers work as before. Where the tool asks for dense latents it gets them; where
    it does not, [tokens, latents] is never made. Weights are not copied: a matrix whose latents are columns is laid out
    anew once, and its parameter becomes a view. Inputs that the kernels do not serve (float64, autocast, another
    device, `vmap`) go the tool's own way.

    Args:
        module: an SAE of sae-lens, eai-sparsify, dictionary_learning or SAEBench, or a module that contains some, which
            are all accelerated. Of training SAEs of sae-lens, TopK ones apart, the training step alone is. A trainer
            of sae-lens or eai-sparsify, whose SAEs are; or of dictionary_learning, whose loss is then computed from
            sparse entries. A ReplacementModel of circuit-tracer, whose attribution is. With `activation` and `names`,
            any module.
        activation: what a module of unknown make computes, such as `TopK(32)`.
        names: its weights by role: {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": ..., "b_dec": ...,
            "b_pre": what is taken from the input, "threshold", "b_gate", "b_mag", "r_mag"}. Its forward has to take x
            and return the reconstruction. It is always checked.
        check: compare with the object's own forward on a small random batch before taking over. Objects of a version
            that is not known are always checked, with a warning (UnknownVersion).
        optimizer: step with `saekernels.optim.Adam` in place of the Adam of a trainer, whose state it takes over.

    Raises:
        NotAccelerated: a ValueError that says which object cannot be accelerated and why. Nothing was changed then.
    """
    holds = _held(module)
    if optimizer and (holds is None or not holds.optimizers):
        raise NotAccelerated(f"optimizer: {type(module).__name__} is no trainer, and has none")
    before = is_accelerated(module)
    if state_of(module) is None:
        _take_over(module, activation, names, check)
    if holds is None:
        return module
    # After the weights were laid out anew, as moments have to lie like them.
    for own in holds.optimizers:
        align(own)
    if optimizer:
        try:
            swap_in(module, holds)
        except NotAccelerated:
            if not before:
                restore(module)
            raise
    return module


class StepCounts(NamedTuple):
    """taken: steps that were taken over. left: how many were left to the tool's own code, by the reason."""

    taken: int
    left: dict[str, int]


def step_counts(module: object) -> StepCounts:
    """The training steps of an object since it was accelerated, those of all SAEs inside it or that a trainer trains.

    A step is a loss that was computed with gradients. Why a step is left to the tool is in the log, too, once for each
    reason. Of an object that is not accelerated no step is counted.

    Raises:
        NotAccelerated: neither a module nor a trainer of a known tool.
    """
    states = [state for one in _parts(module) if (state := state_of(one)) is not None]
    left: Counter[str] = Counter()
    for state in states:
        left.update(state.own_steps)
    return StepCounts(sum(state.steps for state in states), {reason: count for reason, count in left.items() if count})


def restore(module: _M) -> _M:
    """Undo `accelerate`, for this object and all inside it: the tool's own code, layout and optimizer again."""
    for one in _parts(module):
        uninstall(one)
    if (holds := _held(module)) is not None:
        swap_out(module, holds)
    if (holds := _held(module)) is not None:
        for own in holds.optimizers:
            align(own)
    return module


def is_accelerated(module: object) -> bool:
    """Whether this object, or one inside it, is accelerated."""
    return any(state_of(one) is not None for one in _parts(module))


def _held(module: object) -> Held | None:
    """What of a trainer of a known tool is accelerated; None for anything else."""
    if isinstance(module, nn.Module) and not hasattr(module, "optimizer"):
        return None  # an SAE has none, and its tool may not even import
    tool = adapter_of(module)
    return None if tool is None else tool.held(module)


def _parts(module: object) -> list[Any]:
    """The object, or what of a trainer is patched, and the modules inside.

    Raises NotAccelerated for what is neither a module nor a trainer of a known tool.
    """
    holds = _held(module)
    if holds is None and not isinstance(module, nn.Module):
        raise NotAccelerated(f"module: need a torch.nn.Module, got {type(module).__name__}")
    targets = [module] if holds is None else holds.targets
    return [part for one in targets for part in (one.modules() if isinstance(one, nn.Module) else [one])]


def _take_over(module: Any, activation: Activation | None, names: dict[str, str] | None, check: bool) -> None:
    parts = _parts(module)
    if activation is not None or names is not None:
        if activation is None or names is None:
            raise NotAccelerated("activation, names: need both, for a module of unknown make")
        verify.install_checked(module, plain.plan(parts[0], activation, dict(names)))
        return
    tool = adapter_of(module)
    if tool is not None and any(one is module for one in parts):
        _accelerate(module, tool, tool.plan(module), check)
        return
    inside = [(one, found) for one in parts if (found := adapter_of(one)) is not None and not state_of(one)]
    plans = [(one, found, found.plan(one)) for one, found in inside]
    if not plans and not is_accelerated(module):
        tools = ", ".join(name for name in TOOLS if name in sys.modules) or "none of its tools is imported"
        raise NotAccelerated(
            f"{type(module).__name__}: neither an SAE of a known tool ({tools}) nor a module with one inside; for "
            "another module give activation and names"
        )
    done: list[nn.Module] = []
    try:
        for one, found, state in plans:
            if state_of(one) is None:  # not the SAE of a trainer that came before it
                _accelerate(one, found, state, check)
                done.append(one)
    except NotAccelerated:
        for one in done:
            uninstall(one)
        raise


def _accelerate(module: Any, tool: Any, state: State, check: bool) -> None:
    replaced = next((name for name in state.methods if name in vars(module)), None)
    if replaced is not None:
        raise NotAccelerated(f"{type(module).__name__}: its {replaced!r} was replaced; accelerate it before that")
    version = verify.installed(tool.PACKAGE)
    known = verify.is_known(version, tool.VERSIONS)
    meta = any(parameter.device.type == "meta" for parameter in state.sae_of(module).parameters())
    if (check or not known) and not meta:
        verify.install_checked(module, state)
    else:
        install(module, state)
    if not known:
        verify.warn_of_version(tool.PACKAGE, version, tool.VERSIONS)
