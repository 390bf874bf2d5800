"""Where a model's parts are: on one device, on several (device_map), offloaded, or cut over processes (FSDP, TP)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def input_device(model: nn.Module) -> torch.device:
    """Where the model takes its token ids: where its embedding computes, else where its first parameter is."""
    try:
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embedding = None
    return device_of(embedding if isinstance(embedding, nn.Module) else model)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: where its parameters are or, if offloaded, are brought to; the CPU without any."""
    for part in module.modules():
        for hook in _hooks(part):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None or first.is_meta else first.device


def whole(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a module with its values: gathered where it is cut, read where it is offloaded.

    Gathering is a collective: every process of the model has to ask. Raises ValueError for a meta tensor that nobody
    has the values of.
    """
    value: Any = getattr(module, name)
    if hasattr(value, "full_tensor"):
        return value.full_tensor()
    if not value.is_meta:
        return value
    for hook in _hooks(module):
        kept = getattr(hook, "weights_map", None)
        if kept is not None and name in kept:
            return kept[name].to(device_of(module))
    raise ValueError(f"{type(module).__name__}.{name}: it is on the meta device, and so has no values")


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks by which accelerate moves a module's inputs and weights."""
    hook = getattr(module, "_hf_hook", None)
    return list(getattr(hook, "hooks", [] if hook is None else [hook]))
