"""SAEBench 0.6's custom SAEs: ReLU, TopK, BatchTopK, JumpReLU, gated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.custom_saes.batch_topk_sae import BatchTopKSAE
from sae_bench.custom_saes.gated_sae import GatedSAE
from sae_bench.custom_saes.jumprelu_sae import JumpReluSAE
from sae_bench.custom_saes.relu_sae import ReluSAE
from sae_bench.custom_saes.topk_sae import TopKSAE
from torch import Tensor

from saekernels.adapters.dense_latents import dense_of, entries_of
from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.patch import STATE, State, kind_of
from saekernels.adapters.weights import LiveWeights, Rows, Settings
from saekernels.sae.activations import Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from saekernels.sae.codes import Codes
from saekernels.sae.metadata import Metadata

PACKAGE, VERSIONS = "sae-bench", ("0.6",)

_BIASES = {"b_enc": "b_enc", "b_dec": "b_dec"}
_THRESHOLD = {**_BIASES, "threshold": "threshold"}
_GATED = {"b_dec": "b_dec", "b_gate": "gate_bias", "b_mag": "b_mag", "r_mag": "r_mag"}
_KINDS: dict[type, tuple[Callable[[Any], Activation], dict[str, str], bool]] = {
    ReluSAE: (lambda _: ReLU(), _BIASES, True),
    TopKSAE: (lambda m: BatchTopK() if m.use_threshold else TopK(int(m.k)), _THRESHOLD, True),
    BatchTopKSAE: (lambda m: BatchTopK() if m.use_threshold else TopK(int(m.k)), _THRESHOLD, True),
    JumpReluSAE: (lambda _: JumpReLU(), _THRESHOLD, False),
    GatedSAE: (lambda _: Gated(), _GATED, True),
}


def known(module: object) -> bool:
    """Whether this is an object of the tool."""
    return isinstance(module, BaseSAE)


def classes() -> list[type]:
    """The classes whose objects are served."""
    return list(_KINDS)


def held(trainer: Any) -> None:
    """It has no trainers."""


def trials(width: int, latents: int, k: int) -> list[Any]:
    """It trains nothing."""
    return []


def plan(module: Any) -> State:
    """How to patch this object. Raises NotAccelerated with the reason where it cannot be."""
    if kind_of(module) not in _KINDS:
        raise NotAccelerated(f"{type(module).__name__}: it is no sparse autoencoder whose maths is known")
    weights = LiveWeights(Rows("W_enc", turned=True), Rows("W_dec", turned=False), _KINDS[kind_of(module)][1])
    return State("sae_bench", weights, {"encode": _encode, "decode": _decode, "forward": _forward})


def settings(module: Any) -> Settings:
    """What the object computes now. Raises NotAccelerated where its tool would raise."""
    activation, _, shifted = _KINDS[kind_of(module)]
    if getattr(module, "use_threshold", False) and bool(module.threshold < 0):
        raise NotAccelerated(f"{type(module).__name__}: its threshold was never set, and it is to be used")
    hook = getattr(module.cfg, "hook_name", None)
    origin = Metadata("SAEBench", model=getattr(module.cfg, "model_name", None), reads=hook, writes=hook)
    return Settings(activation(module), "b_dec" if shifted else "none", metadata=origin)


def _served(module: Any, x: Any) -> bool:
    state: State = module.__dict__[STATE]
    unset = getattr(module, "use_threshold", False) and bool(module.threshold < 0)  # the tool's own error then
    return not unset and state.fits(module, x)


def _codes(module: Any, x: Tensor) -> Codes:
    state: State = module.__dict__[STATE]
    activation, _, shifted = _KINDS[kind_of(module)]
    codes = state.weights.of(module).encode(x - module.b_dec if shifted else x, activation(module))
    if codes.offsets is not None:
        state.note(len(codes.values), codes.tokens, codes.n_latents)
    return codes


def _encode(module: Any, x: Tensor) -> Tensor:
    if not _served(module, x):
        return type(module).encode(module, x)
    return dense_of(_codes(module, x))


def _decode(module: Any, feature_acts: Tensor) -> Tensor:
    codes = entries_of(feature_acts)
    if codes is None or feature_acts.requires_grad:
        return type(module).decode(module, feature_acts)
    return module.__dict__[STATE].weights.of(module).decode(codes, module.b_dec)


def _forward(module: Any, x: Tensor) -> Tensor:
    if not _served(module, x):
        return type(module).forward(module, x)
    return module.__dict__[STATE].weights.of(module).decode(_codes(module, x), module.b_dec)
