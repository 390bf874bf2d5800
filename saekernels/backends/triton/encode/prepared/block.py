"""block: what the encoders need of W_enc and pre_bias alone, in one piece of memory that is made once per version.

16-bit weights: the product of W_enc with pre_bias. float32: the norms of the rows, for the bounds of the tf32 screen.
precision="screened": an 8-bit copy with its scales, norms and rounding errors. Beside these, what `look` compares.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saekernels.backends.triton.encode import quantise
from saekernels.backends.triton.encode.prepared.latents import norms, products
from saekernels.backends.triton.encode.prepared.look import SAMPLES, look
from saekernels.backends.triton.encode.quantise import Quantised
from saekernels.backends.triton.launch import recording

LOOKS = 1  # which kernels do, at every use


class Prepared(NamedTuple):
    """Parts of a block, as views of it; None: it has none, or there is no block.

    Attributes:
        samples: [SAMPLES] int32, elements of W_enc; biases: [d] int32, those of pre_bias. As `look` keeps them.
        product: [F] float32, - W_enc pre_bias.
        norm: [F] float32, of rows of float32 weights, from above.
        eight_bit: the 8-bit copy, and what goes with it.
    """

    samples: Tensor | None = None
    biases: Tensor | None = None
    product: Tensor | None = None
    norm: Tensor | None = None
    eight_bit: Quantised | None = None


def prepare(W_enc: Tensor, pre_bias: Tensor | None = None, precision: str = "exact") -> Tensor:
    """A block [nbytes] uint8 for W_enc [F, d], and pre_bias [d], in encoders of a precision; empty if there is no need.

    It is there, for every stream, when this returns: the host waits for it, once per version of the weights.
    """
    block = torch.empty(_bytes(W_enc, pre_bias, precision), dtype=torch.uint8, device=W_enc.device)
    parts = _parts(block, W_enc, pre_bias, precision)
    _make(parts, W_enc, pre_bias, None)
    if parts.samples is not None:
        look(W_enc, pre_bias if parts.biases is not None else None, parts.samples, parts.biases)
    if block.is_cuda and not recording():
        torch.cuda.current_stream(block.device).synchronize()
    return block


def variant(W_enc: Tensor, pre_bias: Tensor | None, precision: str) -> tuple[object, ...]:
    """What a block is made for, beside W_enc: a precision, and a pre_bias as far as the host sees it."""
    if pre_bias is None or W_enc.dtype == torch.float32:  # which subtracts it from x
        return (precision,)
    version = None if pre_bias.is_inference() else pre_bias._version
    return precision, pre_bias.data_ptr(), pre_bias.stride(), pre_bias.dtype, version


def fingerprint(W_enc: Tensor, look: int) -> tuple[object, ...]:
    """Where W_enc lies; its elements are looked at on the device."""
    return W_enc.data_ptr(), W_enc.shape, W_enc.stride()


def parts_of(block: Tensor | None, W_enc: Tensor, pre_bias: Tensor | None, precision: str) -> Prepared:
    """The parts of a block, which is made anew on the device if the weights are no longer those that it was made from.

    Raises ValueError for a block that was not made for such weights.
    """
    if block is None:
        return Prepared()
    need = _bytes(W_enc, pre_bias, precision)
    if block.dtype != torch.uint8 or block.shape != (need,):
        raise ValueError(
            f"prepared: not made from weights of this shape: got {block.numel()} bytes, need {need} for W_enc "
            f"{list(W_enc.shape)} and precision {precision!r}"
        )
    parts = _parts(block, W_enc, pre_bias, precision)
    if parts.samples is not None:
        _make(parts, W_enc, pre_bias, look(W_enc, pre_bias, parts.samples, parts.biases))
    return parts


def _make(parts: Prepared, W: Tensor, pre_bias: Tensor | None, stale: Tensor | None) -> None:
    """Fill the parts; where there is a `stale` [1], only if the device finds something else than 0 in it."""
    if parts.product is not None and pre_bias is not None:
        products(W, pre_bias, out=parts.product, stale=stale)
    if parts.norm is not None:
        norms(W, out=parts.norm, stale=stale)
    if parts.eight_bit is not None:
        quantise.quantise(W, out=parts.eight_bit, stale=stale)


def _sizes(W: Tensor, pre_bias: Tensor | None, precision: str) -> dict[str, int]:
    """Bytes of each part, in the order in which they lie."""
    latents, depth = W.shape
    sizes, vector = {}, 4 * latents
    if pre_bias is not None and W.dtype != torch.float32:
        sizes = {"biases": 4 * depth, "product": vector}
    if precision == "screened":
        sizes |= {"scale": vector, "lengths": vector, "error": vector, "copy": latents * quantise.padded(depth)}
    elif precision == "exact" and W.dtype == torch.float32:
        sizes["norm"] = vector
    return {"samples": 4 * SAMPLES, **sizes} if sizes and W.numel() else {}


def _rounded(size: int) -> int:
    """To where the next part may begin."""
    return -(-size // 16) * 16


def _bytes(W: Tensor, pre_bias: Tensor | None, precision: str) -> int:
    return sum(map(_rounded, _sizes(W, pre_bias, precision).values()))


def _parts(block: Tensor, W: Tensor, pre_bias: Tensor | None, precision: str) -> Prepared:
    found, start = {}, 0
    for name, size in _sizes(W, pre_bias, precision).items():
        dtype = torch.int32 if name in ("samples", "biases") else torch.float32
        dtype = quantise.dtype_for(W.device) if name == "copy" else dtype
        found[name] = block[start : start + size].view(dtype)
        start += _rounded(size)
    eight_bit = None
    if "copy" in found:
        eight_bit = Quantised(found["copy"].view(W.shape[0], -1), found["scale"], found["lengths"], found["error"])
    return Prepared(found.get("samples"), found.get("biases"), found.get("product"), found.get("norm"), eight_bit)
