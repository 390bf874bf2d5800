"""The two paths of a gated encoder for training, from one product, without a [tokens, latents] matrix."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from saekernels.ops import _check, encode_threshold
from saekernels.ops.encode_threshold import CsrCodes


class GatedCodes(NamedTuple):
    """Entries whose gate is open, in CSR, with the same indices and offsets.

    codes: the magnitudes, what the SAE decodes. gates: the gates' pre-activations, none below 0, of which the sparsity
    penalty and the auxiliary reconstruction are made.
    """

    codes: CsrCodes
    gates: CsrCodes


def encode_gated(
    x: Tensor,
    W_enc: Tensor,
    b_gate: Tensor,
    r_mag: Tensor,
    b_mag: Tensor,
    *,
    pre_bias: Tensor | None = None,
) -> GatedCodes:
    """With s = (x - pre_bias) @ W_enc.T: gates s + b_gate, where above 0, and magnitudes relu(exp(r_mag) s + b_mag).

    Rajamanoharan et al. 2024 (arXiv 2404.16014), section 3.2: the gate itself passes no gradient, so that b_gate learns
    from `gates` alone.

    Args:
        x: [T, d], float32, bfloat16 or float16.
        W_enc: [F, d]; x's dtype.
        b_gate, r_mag, b_mag: [F].
        pre_bias: [d] or None, subtracted from x.

    Returns:
        GatedCodes: both differentiable with respect to x, W_enc, pre_bias and their own vectors.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape, by name.
    """
    for name, value in {"x": x, "W_enc": W_enc, "b_gate": b_gate, "r_mag": r_mag, "b_mag": b_mag}.items():
        _check.tensor(name, value)
    if x.dim() != 2:
        raise ValueError(f"x: got shape {list(x.shape)}, need [T, d]")
    _check.matrix("W_enc", W_enc, "F", "d")
    for name, vector in (("b_gate", b_gate), ("r_mag", r_mag), ("b_mag", b_mag)):
        _check.vector_beside(name, vector, ("F", W_enc.shape[0]), x)
    s, indices, offsets = encode_threshold(x, W_enc, None, -b_gate.detach(), pre_bias=pre_bias)
    latents = indices.long()
    magnitudes = (s * r_mag.exp().index_select(0, latents) + b_mag.index_select(0, latents)).relu()
    # Rounding to half precision may leave a gate at 0 or a little below.
    gates = (s + b_gate.index_select(0, latents)).clamp(min=0)
    return GatedCodes(CsrCodes(magnitudes.to(s.dtype), indices, offsets), CsrCodes(gates.to(s.dtype), indices, offsets))
