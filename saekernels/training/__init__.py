"""What training needs beside the SAE, without a [tokens, latents] matrix: codes, losses, activations, a loop."""

from saekernels.sae.batch_topk import encode_batch_topk
from saekernels.sae.codes import row_sums
from saekernels.sae.gated import GatedCodes, encode_gated
from saekernels.sae.jumprelu import JumpReLUCodes, encode_jumprelu
from saekernels.sae.pre_act import pre_act_loss
from saekernels.sae.prefixes import decode_prefixes
from saekernels.training.activations import SiteActivations, matching_sites
from saekernels.training.dead import DeadLatents
from saekernels.training.losses import auxk_loss, encode_among, fvu_loss
from saekernels.training.recipe import Recipe, Schedule
from saekernels.training.run import Run, train
from saekernels.training.sae_trainer import SAETrainer
from saekernels.training.sparsity import l0_loss, l1_loss, running_threshold, tanh_loss
from saekernels.training.windows import TrainingWindows, training_windows

__all__ = [
    "DeadLatents",
    "GatedCodes",
    "JumpReLUCodes",
    "Recipe",
    "Run",
    "SAETrainer",
    "Schedule",
    "SiteActivations",
    "TrainingWindows",
    "auxk_loss",
    "decode_prefixes",
    "encode_among",
    "encode_batch_topk",
    "encode_gated",
    "encode_jumprelu",
    "fvu_loss",
    "l0_loss",
    "l1_loss",
    "matching_sites",
    "pre_act_loss",
    "row_sums",
    "running_threshold",
    "tanh_loss",
    "train",
    "training_windows",
]
