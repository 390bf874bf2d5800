"""Kernels for sparse autoencoders, and the honest test they make cheap: what splicing an SAE into a model costs."""

from saekernels.activations import (
    AbsTopK,
    BatchTopK,
    ConstantNorm,
    Gated,
    GroupMax,
    JumpReLU,
    LayerNorm,
    ReLU,
    Scale,
    TopK,
)
from saekernels.codes import Codes
from saekernels.eval import Document, Report, evaluate, load_documents
from saekernels.formats import FormatError, load, save
from saekernels.ops import (
    CsrCodes,
    LinearCeKl,
    PreparedWeights,
    TopKCodes,
    decode,
    decode_csr,
    encode_threshold,
    encode_topk,
    linear_ce_kl,
    prepare,
    topk,
)
from saekernels.sae import SAE
from saekernels.splice import Splice, splice

__version__ = "0.1.0"

__all__ = [
    "SAE",
    "AbsTopK",
    "BatchTopK",
    "Codes",
    "ConstantNorm",
    "CsrCodes",
    "Document",
    "FormatError",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "LayerNorm",
    "LinearCeKl",
    "PreparedWeights",
    "ReLU",
    "Report",
    "Scale",
    "Splice",
    "TopK",
    "TopKCodes",
    "decode",
    "decode_csr",
    "encode_threshold",
    "encode_topk",
    "evaluate",
    "linear_ce_kl",
    "load",
    "load_documents",
    "prepare",
    "save",
    "splice",
    "topk",
]
