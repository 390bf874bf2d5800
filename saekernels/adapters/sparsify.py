"""sparsify (eai-sparsify 1.3): SparseCoder with TopK or GroupMax, transcoders and skip connections included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sparsify.fused_encoder import EncoderOutput
from sparsify.sparse_coder import SparseCoder
from torch import Tensor

from saekernels.adapters.dense_latents import LazyTensor
from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.patch import STATE, State
from saekernels.adapters.weights import LiveWeights, Rows, Settings
from saekernels.sae.activations import Activation, GroupMax, TopK
from saekernels.sae.codes import Codes
from saekernels.sae.metadata import Metadata

PACKAGE, VERSIONS = "eai-sparsify", ("1.3",)
_ACTIVATIONS: dict[str, Callable[[int], Activation]] = {"topk": TopK, "groupmax": GroupMax}


def known(module: object) -> bool:
    """Whether this is an object of the tool."""
    return isinstance(module, SparseCoder)


def classes() -> list[type]:
    """The classes whose objects are served."""
    return [SparseCoder]


def plan(module: Any) -> State:
    """How to patch this object. Raises NotAccelerated with the reason where it cannot be."""
    if type(module) is not SparseCoder:
        raise NotAccelerated(f"{type(module).__name__}: it is a class of its own, whose maths is not known")
    if module.cfg.activation not in _ACTIVATIONS:
        raise NotAccelerated(f"SparseCoder: the activation {module.cfg.activation!r} is not known")
    weights = LiveWeights(
        Rows("encoder.weight", turned=False), Rows("W_dec", turned=False), {"b_enc": "encoder.bias", "b_dec": "b_dec"}
    )
    return State("sparsify", weights, {"encode": _encode, "decode": _decode})


def settings(module: Any) -> Settings:
    """What the object computes now. Raises NotAccelerated for one without a decoder."""
    if module.W_dec is None:
        raise NotAccelerated("SparseCoder: it has no decoder")
    activation = _ACTIVATIONS[module.cfg.activation](module.cfg.k)
    skip = None if module.W_skip is None else "W_skip"
    return Settings(activation, "none" if module.cfg.transcode else "b_dec", W_skip=skip, metadata=Metadata("sparsify"))


def _encode(module: Any, x: Tensor) -> Any:
    state: State = module.__dict__[STATE]
    if not state.fits(module, x, autocast=True) or x.shape[:-1].numel() == 0:
        return SparseCoder.encode(module, x)
    if not module.cfg.transcode:
        x = x - module.b_dec
    codes = state.weights.of(module).encode(x, _ACTIVATIONS[module.cfg.activation](module.cfg.k))

    def pre_acts() -> Tensor:
        # Without gradients: the tool's own encoder passes none through these.
        with torch.no_grad():
            return torch.relu(torch.nn.functional.linear(x, module.encoder.weight, module.encoder.bias))

    lazy = LazyTensor(pre_acts, codes.values, (*codes.shape, codes.n_latents))
    return EncoderOutput(codes.values, codes.indices.long(), lazy)


def _decode(module: Any, top_acts: Tensor, top_indices: Tensor) -> Tensor:
    state: State = module.__dict__[STATE]
    ours = (
        module.W_dec is not None
        and type(top_acts) is Tensor
        and type(top_indices) is Tensor
        and module.W_dec.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and top_acts.device == module.W_dec.device
    )
    if not ours:
        return SparseCoder.decode(module, top_acts, top_indices)
    codes = Codes(top_acts.to(module.dtype), top_indices.int(), None, top_acts.shape[:-1], module.num_latents)
    # The tool's decoder is no op that autocast casts.
    with torch.autocast(top_acts.device.type, enabled=False):
        return state.weights.of(module).decode(codes, module.b_dec)
