"""What a training loop needs beside the SAE, without a [tokens, latents] matrix: codes, losses, sites, and a loop."""

from saekernels.training.batch_topk import encode_batch_topk
from saekernels.training.dead import DeadLatents
from saekernels.training.jumprelu import JumpReLUCodes, encode_jumprelu
from saekernels.training.losses import auxk_loss, encode_among, fvu_loss

__all__ = [
    "DeadLatents",
    "JumpReLUCodes",
    "auxk_loss",
    "encode_among",
    "encode_batch_topk",
    "encode_jumprelu",
    "fvu_loss",
]
