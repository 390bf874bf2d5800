"""Dictionaries of dictionary_learning 0.1: AutoEncoder(New), Gated, JumpReLU, TopK, BatchTopK and Matryoshka.

Calls with an option beyond the plain ones (ghost masks, pre-activations, top-k over the batch, ...) are the tool's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    Dictionary,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from torch import Tensor

from saekernels.adapters.dense_latents import dense_of, entries_of
from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.patch import STATE, State, kind_of
from saekernels.adapters.weights import LiveWeights, Rows, Settings
from saekernels.sae.activations import Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from saekernels.sae.codes import Codes
from saekernels.sae.metadata import Metadata


class _Kind:
    """What a class of the tool computes: activation of an object, bias paths, and what is taken from the input."""

    def __init__(
        self,
        activation: Callable[[Any], Activation],
        biases: dict[str, str],
        shift: Callable[[Any], Tensor | None],
        matrices: bool = False,
    ) -> None:
        self.activation, self.biases, self.shift, self.matrices = activation, biases, shift, matrices

    def weights(self) -> LiveWeights:
        if self.matrices:
            return LiveWeights(Rows("W_enc", turned=True), Rows("W_dec", turned=False), self.biases)
        return LiveWeights(Rows("encoder.weight", turned=False), Rows("decoder.weight", turned=True), self.biases)


def _top_k(module: Any) -> Activation:
    return TopK(int(module.k))


_KINDS: dict[type, _Kind] = {
    AutoEncoder: _Kind(lambda _: ReLU(), {"b_enc": "encoder.bias", "b_dec": "bias"}, lambda m: m.bias),
    AutoEncoderNew: _Kind(lambda _: ReLU(), {"b_enc": "encoder.bias", "b_dec": "decoder.bias"}, lambda m: None),
    GatedAutoEncoder: _Kind(
        lambda _: Gated(),
        {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag", "b_dec": "decoder_bias"},
        lambda m: m.decoder_bias,
    ),
    JumpReluAutoEncoder: _Kind(
        lambda _: JumpReLU(),
        {"b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"},
        lambda m: m.b_dec if m.apply_b_dec_to_input else None,
        matrices=True,
    ),
    AutoEncoderTopK: _Kind(_top_k, {"b_enc": "encoder.bias", "b_dec": "b_dec"}, lambda m: m.b_dec),
    BatchTopKSAE: _Kind(
        lambda _: BatchTopK(),
        {"b_enc": "encoder.bias", "b_dec": "b_dec", "threshold": "threshold"},
        lambda m: m.b_dec,
    ),
    MatryoshkaBatchTopKSAE: _Kind(
        lambda _: BatchTopK(),
        {"b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"},
        lambda m: m.b_dec,
        matrices=True,
    ),
}


CLASSES = list(_KINDS)


def plan(module: Any) -> State:
    """How to patch this object. Raises NotAccelerated with the reason where it cannot be."""
    kind = kind_of(module)
    if kind not in _KINDS:
        name = kind.__name__
        reason = "nothing is multiplied" if name == "IdentityDict" else "its maths is not known"
        raise NotAccelerated(f"{name}: {reason}")
    methods = {"encode": _encode, "decode": _decode, "forward": _forward}
    return State("dictionary_learning", _KINDS[kind].weights(), methods)


def settings(module: Any) -> Settings:
    """What the object computes now. Raises NotAccelerated where only some of its groups are active."""
    if not isinstance(module, Dictionary):
        raise NotAccelerated(f"{type(module).__name__}: it is a trainer; its SAE is its attribute 'ae'")
    kind = _KINDS[kind_of(module)]
    groups = getattr(module, "group_indices", None)
    if groups is not None and module.active_groups != len(groups) - 1:
        raise NotAccelerated(f"{type(module).__name__}: {module.active_groups} of its {len(groups) - 1} groups are on")
    activation = kind.activation(module)
    if isinstance(activation, BatchTopK) and bool(module.threshold < 0):
        activation = ReLU()  # never set: the tool then lets every positive latent through
    shifted = kind.shift(module) is not None
    return Settings(activation, "b_dec" if shifted else "none", metadata=Metadata("dictionary_learning"))


def _served(module: Any, x: Any) -> bool:
    state: State = module.__dict__[STATE]
    if not state.fits(module, x):
        return False
    if isinstance(module, BatchTopKSAE | MatryoshkaBatchTopKSAE) and bool(module.threshold < 0):
        return False  # never set: the tool then lets every positive latent through
    groups = getattr(module, "group_indices", None)
    # It cuts latents off by the second dimension, which is the latents' for [tokens, latents] alone.
    return groups is None or (module.active_groups == len(groups) - 1 and (x.dim() == 2 or x.shape[1] <= groups[-1]))


def _codes(module: Any, x: Tensor) -> Codes:
    state: State = module.__dict__[STATE]
    kind = _KINDS[kind_of(module)]
    shift = kind.shift(module)
    codes = state.weights.of(module).encode(x if shift is None else x - shift, kind.activation(module))
    if codes.offsets is not None:
        state.note(len(codes.values), codes.tokens, codes.n_latents)
    return codes


def _encode(module: Any, x: Tensor, *args: Any, **options: Any) -> Any:
    if args or options or not _served(module, x):
        return type(module).encode(module, x, *args, **options)
    return dense_of(_codes(module, x))


def _decode(module: Any, f: Tensor, *args: Any, **options: Any) -> Tensor:
    codes = None if args or options else entries_of(f)
    if codes is None or f.requires_grad:
        return type(module).decode(module, f, *args, **options)
    return _decode_codes(module, codes)


def _decode_codes(module: Any, codes: Codes) -> Tensor:
    now = module.__dict__[STATE].weights.of(module)
    return now.decode(codes, now.b_dec)


def _forward(module: Any, x: Tensor, *args: Any, **options: Any) -> Any:
    submodules = (m for m in (getattr(module, "encoder", None), getattr(module, "decoder", None)) if m is not None)
    watched = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in submodules)
    wanted = dict(options)
    features = wanted.pop("output_features", args[0] if args else False)
    plain = not wanted and len(args) <= 1 and not (args and options)
    if not plain or watched or not _served(module, x):
        return type(module).forward(module, x, *args, **options)
    if features and isinstance(module, AutoEncoderNew):
        return type(module).forward(module, x, *args, **options)
    codes = _codes(module, x)
    out = _decode_codes(module, codes)
    return (out, dense_of(codes)) if features else out
