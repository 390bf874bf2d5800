"""Kernels for sparse autoencoders, and the honest test they make cheap: what splicing an SAE into a model costs."""

from saekernels.ops import (
    CsrCodes,
    LinearCeKl,
    TopKCodes,
    decode,
    decode_csr,
    encode_threshold,
    encode_topk,
    linear_ce_kl,
    topk,
)

__version__ = "0.1.0"

__all__ = [
    "CsrCodes",
    "LinearCeKl",
    "TopKCodes",
    "decode",
    "decode_csr",
    "encode_threshold",
    "encode_topk",
    "linear_ce_kl",
    "topk",
]
