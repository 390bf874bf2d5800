"""Any torch module whose weights are named: x_hat = W_dec^T act(W_enc (x - b_pre) + b_enc) + b_dec."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.patch import STATE, State
from saekernels.adapters.weights import LiveWeights, Rows, Settings
from saekernels.sae.activations import AbsTopK, Activation, BatchTopK, Gated, GroupMax, JumpReLU, ReLU, TopK

_NEEDED = {Gated: ("b_gate", "b_mag", "r_mag"), JumpReLU: ("threshold",), BatchTopK: ("threshold",)}
_ACTIVATIONS = (ReLU, TopK, AbsTopK, GroupMax, JumpReLU, BatchTopK, Gated)
ROLES = ("W_enc", "W_dec", "b_enc", "b_dec", "b_pre", "threshold", "b_gate", "b_mag", "r_mag")


class _PlainState(State):
    def __init__(self, weights: LiveWeights, activation: Activation, pre_bias: str | None) -> None:
        super().__init__("plain", weights, {"forward": _forward})
        self.activation, self.pre_bias = activation, pre_bias


def plan(module: nn.Module, activation: Activation, names: dict[str, str]) -> State:
    """How to patch the module's forward(x) -> reconstruction.

    names: role (ROLES) -> dotted path of a parameter or buffer. Which way round a matrix lies is told by its shape.

    Raises NotAccelerated for roles or paths that are not there, and shapes that do not fit together.
    """
    if type(activation) not in _ACTIVATIONS:
        raise NotAccelerated(f"activation: got {activation!r:.80}, need one of {[a.__name__ for a in _ACTIVATIONS]}")
    unknown = sorted(set(names) - set(ROLES))
    missing = [role for role in ("W_enc", "W_dec", *_NEEDED.get(type(activation), ())) if role not in names]
    if unknown or missing:
        what = f"unknown role {unknown[0]!r}" if unknown else f"no name for {missing[0]!r}"
        raise NotAccelerated(f"{type(module).__name__}: {what}; roles are {', '.join(ROLES)}")
    found = {role: _tensor(module, path, role) for role, path in names.items()}
    latents = _latents(found)
    turned = {role: found[role].shape[0] != latents for role in ("W_enc", "W_dec")}
    biases = {role: path for role, path in names.items() if role not in ("W_enc", "W_dec", "b_pre")}
    weights = LiveWeights(Rows(names["W_enc"], turned["W_enc"]), Rows(names["W_dec"], turned["W_dec"]), biases)
    return _PlainState(weights, activation, names.get("b_pre"))


def settings(module: nn.Module) -> Settings:
    """What a module that was accelerated by its weights' names computes."""
    state = module.__dict__[STATE]
    return Settings(state.activation, "none" if state.pre_bias is None else "separate", b_pre=state.pre_bias)


def value_at(module: nn.Module, path: str) -> Any:
    """What lies at a dotted path; None if nothing does."""
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part, None)
    return value


def _tensor(module: nn.Module, path: str, role: str) -> Tensor:
    value = value_at(module, path)
    if not isinstance(value, Tensor):
        raise NotAccelerated(f"{role}: {type(module).__name__} has no tensor {path!r}")
    return value


def _latents(found: dict[str, Tensor]) -> int:
    """F: what both matrices share and every bias of latents has; widths of the model differ from it."""
    shapes = {role: tuple(found[role].shape) for role in ("W_enc", "W_dec")}
    if any(len(shape) != 2 for shape in shapes.values()):
        raise NotAccelerated(f"W_enc, W_dec: need two matrices, got {shapes}")
    told = {len(found[role]) for role in ("b_enc", "b_gate") if role in found and found[role].dim() == 1}
    shared = set(shapes["W_enc"]) & set(shapes["W_dec"])
    latents = shared & told if told else {max(shared)} if shared else set()
    if len(latents) != 1 or len(set(shapes["W_enc"])) == 1 or len(set(shapes["W_dec"])) == 1:
        raise NotAccelerated(f"W_enc, W_dec: which dimension is the latents' cannot be told from {shapes}")
    return latents.pop()


def _forward(module: Any, x: Tensor, *args: Any, **options: Any) -> Any:
    state: _PlainState = module.__dict__[STATE]
    if args or options or not state.fits(module, x):
        return type(module).forward(module, x, *args, **options)
    now = state.weights.of(module)
    shift = _tensor(module, state.pre_bias, "b_pre") if state.pre_bias else None
    codes = now.encode(x if shift is None else x - shift, state.activation)
    if codes.offsets is not None:
        state.note(len(codes.values), codes.tokens, codes.n_latents)
    return now.decode(codes, now.b_dec)
