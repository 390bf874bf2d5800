"""What a primitive means: schema, checks, shapes, gradient, autocast; and its public function."""

from saekernels.ops.decode import decode, decode_csr
from saekernels.ops.encode_at import encode_at
from saekernels.ops.encode_threshold import CsrCodes, encode_threshold
from saekernels.ops.encode_topk import TopKCodes, encode_topk
from saekernels.ops.gather_matmul import gather_matmul
from saekernels.ops.linear_ce_kl import LinearCeKl, linear_ce_kl
from saekernels.ops.prepare import PreparedWeights, prepare
from saekernels.ops.topk import topk

__all__ = [
    "CsrCodes",
    "LinearCeKl",
    "PreparedWeights",
    "TopKCodes",
    "decode",
    "decode_csr",
    "encode_at",
    "encode_threshold",
    "encode_topk",
    "gather_matmul",
    "linear_ce_kl",
    "prepare",
    "topk",
]
