"""sparsify (eai-sparsify 1.3): SparseCoder with TopK or GroupMax, transcoders and skip connections included.

Its forward is the tool's own, on our encoder and decoder. With AuxK or Multi-TopK, which look at all pre-activations,
it is ours: both read few of them, and neither has a gradient of the encoder in the tool, whose backward drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from sparsify.config import SparseCoderConfig
from sparsify.fused_encoder import EncoderOutput
from sparsify.sparse_coder import ForwardOutput, SparseCoder
from sparsify.trainer import Trainer
from torch import Tensor

from saekernels.adapters.dense_latents import LazyTensor
from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.optimizers import Held
from saekernels.adapters.patch import STATE, State, kind_of
from saekernels.adapters.weights import LiveWeights, Rows, Settings
from saekernels.ops import CsrCodes, TopKCodes, decode, encode_topk
from saekernels.ops.sparse_maps import uniform_offsets
from saekernels.sae.activations import Activation, GroupMax, TopK
from saekernels.sae.codes import Codes
from saekernels.sae.entries import encode_among, with_gradients
from saekernels.sae.metadata import Metadata

PACKAGE, VERSIONS = "eai-sparsify", ("1.3",)
_ACTIVATIONS: dict[str, Callable[[int], Activation]] = {"topk": TopK, "groupmax": GroupMax}


def known(module: object) -> bool:
    """Whether this is an object of the tool."""
    return isinstance(module, SparseCoder | Trainer)


def classes() -> list[type]:
    """The classes whose objects are served."""
    return [SparseCoder]


def held(trainer: Any) -> Held | None:
    """What of a trainer is accelerated: its coders; None for a coder."""
    if not isinstance(trainer, Trainer):
        return None

    def put(optimizers: Sequence[torch.optim.Optimizer]) -> None:
        trainer.optimizers = list(optimizers)

    return Held([*trainer.saes.values()], trainer.optimizers, put, trainer.lr_schedulers)


def trials(width: int, latents: int, k: int) -> Iterator[tuple[Any, Callable[[Tensor], Tensor]]]:
    """(a new coder, its loss from x [T, width])."""
    coder: Any = SparseCoder(width, SparseCoderConfig(num_latents=latents, k=k))
    yield coder, lambda x: coder(x).fvu


def plan(module: Any) -> State:
    """How to patch this object. Raises NotAccelerated with the reason where it cannot be."""
    if kind_of(module) is not SparseCoder:
        raise NotAccelerated(f"{type(module).__name__}: it is a class of its own, whose maths is not known")
    if module.cfg.activation not in _ACTIVATIONS:
        raise NotAccelerated(f"SparseCoder: the activation {module.cfg.activation!r} is not known")
    weights = LiveWeights(
        Rows("encoder.weight", turned=False), Rows("W_dec", turned=False), {"b_enc": "encoder.bias", "b_dec": "b_dec"}
    )
    return State("sparsify", weights, {"encode": _encode, "decode": _decode, "forward": _forward})


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
    x = _centred(module, x)
    codes = state.weights.of(module).encode(x, _ACTIVATIONS[module.cfg.activation](module.cfg.k))

    def pre_acts() -> Tensor:
        # Without gradients: the tool's own encoder passes none through these.
        with torch.no_grad():
            return torch.relu(torch.nn.functional.linear(x, module.encoder.weight, module.encoder.bias))

    lazy = LazyTensor(pre_acts, codes.values, (*codes.shape, codes.n_latents))
    return EncoderOutput(codes.values, codes.indices.long(), lazy)


def _centred(module: Any, x: Tensor) -> Tensor:
    return x if module.cfg.transcode else x - module.b_dec


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


def _forward(
    module: Any, x: Tensor, y: Tensor | None = None, *, dead_mask: Any = None, total_variance: Any = None
) -> Any:
    state: State = module.__dict__[STATE]
    training = torch.is_grad_enabled() and module.encoder.weight.requires_grad
    dead = None if dead_mask is None or not bool(dead_mask.any()) else dead_mask.nonzero()[:, 0]
    plain = dead is None and not module.cfg.multi_topk
    reason = _reason_for_own(module, state, x) or (None if plain else _reason_for_dense(module, x, y))
    if training and reason is None:
        state.note_step()
    if training and reason is not None:
        state.note_own_step("SparseCoder", reason)
    if plain or reason is not None:
        return SparseCoder.forward(module, x, y, dead_mask=dead_mask, total_variance=total_variance)
    return _with_auxiliary(module, x, x if y is None else y, dead, total_variance)


def _reason_for_own(module: Any, state: State, x: Any) -> str | None:
    """Why the tool's encoder has to run."""
    for name in ("encode", "decode"):
        if getattr(vars(module).get(name), "func", None) is not state.methods[name]:
            return f"its {name!r} was replaced"
    if not state.serves(module, x, autocast=True) or x.shape[:-1].numel() == 0:
        return "its input or its weights are none that the kernels serve"
    return None


def _reason_for_dense(module: Any, x: Tensor, y: Tensor | None) -> str | None:
    """Why the tool's forward has to run, and makes all pre-activations for AuxK or Multi-TopK."""
    if torch.is_autocast_enabled(x.device.type) or x.is_cuda:
        return "autocast is on, and it wants all pre-activations"
    if x.dim() != 2 or (y is not None and (y.dim() != 2 or y.shape[-1] < 2)) or x.shape[-1] < 2:
        return "its input is not [tokens, d_in], and it wants all pre-activations"
    if module.W_dec is None:
        return "it has no decoder"
    if module.cfg.multi_topk and 4 * module.cfg.k > module.num_latents:
        return f"it selects {4 * module.cfg.k} of {module.num_latents} latents"
    return None


def _with_auxiliary(module: Any, x: Tensor, y: Tensor, dead: Tensor | None, total_variance: Any) -> Any:
    """The tool's forward on x [T, d_in] and y [T, d_out]. dead: [n] int64, or None where no latent is."""
    weights = module.__dict__[STATE].weights.of(module)
    given, bias = _centred(module, x), module.encoder.bias
    (top_acts, top_indices), four = _top(module, weights.W_enc, given)
    sae_out = module.decode(top_acts, top_indices)
    if module.W_skip is not None:
        sae_out = sae_out + x.to(module.dtype) @ module.W_skip.mT
    error = y - sae_out
    if total_variance is None:
        total_variance = (y - y.mean(0)).pow(2).sum()
    auxk_loss = multi_topk_fvu = sae_out.new_tensor(0.0)
    if dead is not None:
        at_most = y.shape[-1] // 2
        with torch.no_grad():
            values, indices = encode_among(given, weights.W_enc, bias, dead, k=min(at_most, len(dead)))
        guess = decode(values.relu(), indices, weights.W_dec)
        auxk_loss = min(len(dead) / at_most, 1.0) * (guess - error.detach()).pow(2).sum() / total_variance
    fvu = error.pow(2).sum() / total_variance
    if four is not None:
        top_acts, top_indices = four.values, four.indices.long()
        sae_out = module.decode(top_acts, top_indices)
        multi_topk_fvu = (sae_out - y).pow(2).sum() / total_variance
    return ForwardOutput(sae_out, top_acts, top_indices, fvu, auxk_loss, multi_topk_fvu)


def _top(module: Any, W_enc: Tensor, x: Tensor) -> tuple[tuple[Tensor, Tensor], TopKCodes | None]:
    """(values [T, k] and indices of the codes, the 4 * k largest without gradients, where Multi-TopK wants them).

    Of one look at the encoder where it can be: the k largest come first among the 4 * k.
    """
    k, bias = module.cfg.k, module.encoder.bias
    four = None
    if module.cfg.multi_topk:
        with torch.no_grad():
            four = encode_topk(x, W_enc, bias, k=4 * k)
    if four is None or module.cfg.activation != "topk":
        codes = module.__dict__[STATE].weights.of(module).encode(x, _ACTIVATIONS[module.cfg.activation](k))
        return (codes.values, codes.indices.long()), four
    values, indices = (one[:, :k].contiguous() for one in four)
    csr = CsrCodes(values.flatten(), indices.flatten(), uniform_offsets(len(x), k, x.device))
    return (with_gradients(csr, x, W_enc, bias).view_as(values).relu(), indices.long()), four
