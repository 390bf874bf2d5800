"""Puts functions in place of an object's methods, on that object alone, and takes them away again.

Nothing of the tool's classes changes. Copies and pickles of a patched object are patched too.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.adapters.weights import LiveWeights

STATE = "_saekernels"
_LOG = logging.getLogger("saekernels")
_SUPPORTED = (torch.float32, torch.bfloat16, torch.float16)


class State:
    """What a patched object carries: its weights as kernels want them, and which of its methods are replaced.

    trusted: within a step of the tool's own training, where what it does with the codes is known.
    dense_calls: calls that the tool's own code served, because codes were not sparse.
    sample: what an object computes of a few rows, to be compared with and without the patch; None for its forward.
    memory: numbers that one training step leaves for the next, which change its time alone.
    own_steps: how many training steps ran the tool's own code, by the reason.
    """

    def __init__(
        self,
        tool: str,
        weights: LiveWeights,
        methods: Mapping[str, Callable[..., Any]],
        sample: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        self.tool, self.weights, self.methods, self.sample = tool, weights, dict(methods), sample
        self.trusted = False
        self.density: float | None = None
        self.dense_calls = 0
        self.memory: dict[str, float] = {}
        self.own_steps: Counter[str] = Counter()

    def fits(
        self,
        module: nn.Module,
        x: Any,
        *,
        width: int | None = None,
        dtype: torch.dtype | None = None,
        autocast: bool = False,
    ) -> bool:
        """Whether the kernels serve this input; whatever else comes is the tool's own to serve, or to refuse.

        width, dtype: of the encoder's input, where the tool reshapes or casts x first. autocast: inside of it too.
        """
        if type(x) not in (Tensor, nn.Parameter) or x.dim() < 1 or x.device.type == "meta":
            return False
        rows = self.weights.of(module).W_enc
        return (
            (dtype or x.dtype) == rows.dtype
            and rows.dtype in _SUPPORTED
            and x.device == rows.device
            and (x.shape[-1] if width is None else width) == rows.shape[1]
            and type(rows) in (Tensor, nn.Parameter)
            and (autocast or not torch.is_autocast_enabled(x.device.type))
            and not torch._C._functorch.is_functorch_wrapped_tensor(x)
            and not torch._C._get_tracing_state()
            and not self._dense()
        )

    def note(self, entries: int, tokens: int, latents: int) -> None:
        """How dense codes of a threshold encoder were; ReLU SAEs are dense before they are trained."""
        if tokens:
            self.density = entries / (tokens * latents)

    def note_own_step(self, kind: str, reason: str) -> None:
        """Count a training step of the tool's own code; the first for a reason is logged."""
        self.own_steps[reason] += 1
        if self.own_steps[reason] == 1:
            _LOG.warning("%s: a training step runs the tool's own code: %s", kind, reason)

    def _dense(self) -> bool:
        """Where more than 1 latent in 16 was active at the last look, the tool's own product is as fast."""
        if self.density is None or self.density <= 1 / 16:
            return False
        self.dense_calls += 1
        return self.dense_calls % 32 != 0  # now and then, another look


def state_of(module: nn.Module) -> State | None:
    """The state of a patched object, or None."""
    found = module.__dict__.get(STATE)
    return found if isinstance(found, State) else None


def install(module: nn.Module, state: State) -> None:
    """Patch the object. It keeps its type, its parameters and its state_dict."""
    module.__dict__[STATE] = state
    state.weights.lay(module)
    for name, function in state.methods.items():
        module.__dict__[name] = functools.partial(function, module)
    if state.weights.turned:
        module._register_state_dict_hook(_contiguous)


def uninstall(module: nn.Module) -> None:
    """Undo `install`: the object is as the tool made it."""
    state = state_of(module)
    if state is None:
        return
    for name in state.methods:
        module.__dict__.pop(name, None)
    for key in [key for key, hook in module._state_dict_hooks.items() if hook is _contiguous]:
        del module._state_dict_hooks[key]
    state.weights.restore(module)
    del module.__dict__[STATE]


def _contiguous(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """safetensors writes contiguous tensors only, so a state_dict holds them; of a view, that is a copy."""
    state = state_of(module)
    for path in state.weights.turned if state is not None else ():
        value = state_dict.get(prefix + path)
        if isinstance(value, Tensor) and not value.is_contiguous():
            state_dict[prefix + path] = value.contiguous()
