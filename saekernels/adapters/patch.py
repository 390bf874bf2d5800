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
    paused: within a step that is left to the tool's own code, all of it.
    dense_calls: calls that the tool's own code served, because codes were not sparse.
    sample: what an object computes of a few rows, to be compared with and without the patch; None for its forward.
    memory: numbers that one training step leaves for the next, which change its time alone.
    steps: how many training steps were taken over. own_steps: how many ran the tool's own code, by the reason.
    """

    def __init__(
        self,
        tool: str,
        weights: LiveWeights,
        methods: Mapping[str, Callable[..., Any]],
        sample: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        self.tool, self.weights, self.methods, self.sample = tool, weights, dict(methods), sample
        self.trusted = self.paused = False
        self.density: float | None = None
        self.dense_calls = 0
        self.memory: dict[str, float] = {}
        self.steps = 0
        self.own_steps: Counter[str] = Counter()

    def attach(self, target: Any) -> None:
        """Make an object's weights ready, once it carries this state."""
        self.weights.lay(target)
        if self.weights.turned:
            target._register_state_dict_hook(_contiguous)

    def detach(self, target: Any) -> None:
        """Undo `attach`."""
        for key in [key for key, hook in target._state_dict_hooks.items() if hook is _contiguous]:
            del target._state_dict_hooks[key]
        self.weights.restore(target)

    def sae_of(self, target: Any) -> nn.Module:
        """The module that has the weights."""
        found: nn.Module = target
        return found

    def trial(self, target: Any) -> Tensor | None:
        """What `sample` is given for a comparison; None for rows as wide as the input."""
        return None

    def fits(self, module: nn.Module, x: Any, **asked: Any) -> bool:
        """Whether to take an input: the kernels serve it, as `serves` is asked, and codes were not dense lately."""
        return self.serves(module, x, **asked) and not self._dense()

    def serves(
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
        if self.paused or type(x) not in (Tensor, nn.Parameter) or x.dim() < 1 or x.device.type == "meta":
            return False
        weight, d_in = self.weights.look(module)
        return (
            (dtype or x.dtype) == weight.dtype
            and weight.dtype in _SUPPORTED
            and x.device == weight.device
            and (x.shape[-1] if width is None else width) == d_in
            and type(weight) in (Tensor, nn.Parameter)
            and (autocast or not torch.is_autocast_enabled(x.device.type))
            and not torch._C._functorch.is_functorch_wrapped_tensor(x)
            and not torch._C._get_tracing_state()
        )

    def note(self, entries: int, tokens: int, latents: int) -> None:
        """How dense codes of a threshold encoder were; ReLU SAEs are dense before they are trained."""
        if tokens:
            self.density = entries / (tokens * latents)

    def note_step(self) -> None:
        """Count a training step that was taken over; a look at the loss without gradients is none."""
        self.steps += torch.is_grad_enabled()

    def note_own_step(self, kind: str, reason: str) -> None:
        """Count a training step of the tool's own code, as `note_step` does; the first for a reason is logged."""
        first = reason not in self.own_steps
        self.own_steps[reason] += torch.is_grad_enabled()
        if first:
            _LOG.warning("%s: a training step runs the tool's own code: %s", kind, reason)

    def _dense(self) -> bool:
        """Where more than 1 latent in 16 was active at the last look, the tool's own product is as fast."""
        if self.density is None or self.density <= 1 / 16:
            return False
        self.dense_calls += 1
        return self.dense_calls % 32 != 0  # now and then, another look


class TrainerState(State):
    """What a trainer carries: its steps are replaced, and the SAE that it trains has a state of its own.

    sae: the name of the attribute that holds that SAE. trains: its class. inner: its state, if it has none yet.
    """

    def __init__(
        self,
        tool: str,
        sae: str,
        trains: type,
        inner: State,
        methods: Mapping[str, Callable[..., Any]],
        sample: Callable[[Any, Tensor], Tensor],
    ) -> None:
        super().__init__(tool, inner.weights, methods, sample)
        self.sae, self.trains, self.inner = sae, trains, inner

    def attach(self, target: Any) -> None:
        """Accelerate the trainer's SAE."""
        if state_of(self.sae_of(target)) is None:
            install(self.sae_of(target), self.inner)

    def detach(self, target: Any) -> None:
        """Restore the trainer's SAE."""
        uninstall(self.sae_of(target))

    def sae_of(self, target: Any) -> nn.Module:
        """The SAE that the trainer trains now."""
        found: nn.Module = getattr(target, self.sae)
        return found


def kind_of(target: object) -> type:
    """The class that the tool made an object of: FSDP2's fully_shard puts a class of its own in front of it."""
    first, *rest = type(target).__mro__
    return rest[1] if rest[0].__module__.startswith("torch.distributed") else first


def state_of(target: object) -> State | None:
    """The state of a patched object, or None."""
    found = vars(target).get(STATE)
    return found if isinstance(found, State) else None


def install(target: Any, state: State) -> None:
    """Patch the object. It keeps its type, its parameters and its state_dict."""
    target.__dict__[STATE] = state
    state.attach(target)
    for name, function in state.methods.items():
        target.__dict__[name] = functools.partial(function, target)


def uninstall(target: Any) -> None:
    """Undo `install`: the object is as the tool made it."""
    state = state_of(target)
    if state is None:
        return
    for name in state.methods:
        target.__dict__.pop(name, None)
    state.detach(target)
    del target.__dict__[STATE]


def _contiguous(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """safetensors writes contiguous tensors only, so a state_dict holds them; of a view, that is a copy."""
    state = state_of(module)
    for path in state.weights.turned if state is not None else ():
        value = state_dict.get(prefix + path)
        if isinstance(value, Tensor) and not value.is_contiguous():
            state_dict[prefix + path] = value.contiguous()
