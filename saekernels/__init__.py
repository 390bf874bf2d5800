"""Kernels for sparse autoencoders, and the honest test they make cheap: what splicing an SAE into a model costs."""

from saekernels._version import __version__ as __version__
from saekernels.adapters import (
    NotAccelerated,
    StepCounts,
    UnknownVersion,
    accelerate,
    is_accelerated,
    restore,
    step_counts,
    swapped,
)
from saekernels.crosslayer.crosscoder import Crosscoder
from saekernels.crosslayer.head_site import HeadSite, head_sites
from saekernels.crosslayer.site import LayerSite, layer_sites
from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.crosslayer.transcoders import TranscoderSet
from saekernels.display.progress import progress_bar
from saekernels.eval import Document, Report, evaluate, evaluate_replacement, load_documents
from saekernels.formats import FormatError, load, load_cross_layer, load_crosscoder, save, save_cross_layer
from saekernels.generation.texts import Generated
from saekernels.generation.watch import Fired, Watch
from saekernels.generation.watching import Watching, watching
from saekernels.ops import (
    CsrCodes,
    LinearCeKl,
    PreparedWeights,
    TopKCodes,
    decode,
    decode_csr,
    encode_at,
    encode_threshold,
    encode_topk,
    gather_matmul,
    linear_ce_kl,
    prepare,
    topk,
)
from saekernels.sae.activations import (
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
from saekernels.sae.codes import Codes
from saekernels.sae.edits import Edit, EditedSAE
from saekernels.sae.module import SAE
from saekernels.sae.probes import AffineProbe, Moments, fit_probes
from saekernels.splice.context import Splice, splice
from saekernels.splice.frozen import Frozen
from saekernels.splice.gains import fold_norm_gains
from saekernels.splice.heads import reading_heads
from saekernels.splice.recording import Recorded, recording

__all__ = [
    "SAE",
    "AbsTopK",
    "AffineProbe",
    "BatchTopK",
    "Codes",
    "ConstantNorm",
    "CrossLayerTranscoder",
    "Crosscoder",
    "CsrCodes",
    "Document",
    "Edit",
    "EditedSAE",
    "Fired",
    "FormatError",
    "Frozen",
    "Gated",
    "Generated",
    "GroupMax",
    "HeadSite",
    "JumpReLU",
    "LayerNorm",
    "LayerSite",
    "LinearCeKl",
    "Moments",
    "NotAccelerated",
    "PreparedWeights",
    "ReLU",
    "Recorded",
    "Report",
    "Scale",
    "Splice",
    "StepCounts",
    "TopK",
    "TopKCodes",
    "TranscoderSet",
    "UnknownVersion",
    "Watch",
    "Watching",
    "accelerate",
    "decode",
    "decode_csr",
    "encode_at",
    "encode_threshold",
    "encode_topk",
    "evaluate",
    "evaluate_replacement",
    "fit_probes",
    "fold_norm_gains",
    "gather_matmul",
    "head_sites",
    "is_accelerated",
    "layer_sites",
    "linear_ce_kl",
    "load",
    "load_cross_layer",
    "load_crosscoder",
    "load_documents",
    "prepare",
    "progress_bar",
    "reading_heads",
    "recording",
    "restore",
    "save",
    "save_cross_layer",
    "splice",
    "step_counts",
    "swapped",
    "topk",
    "watching",
]
