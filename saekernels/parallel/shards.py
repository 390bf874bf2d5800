"""This rank's part of an SAE."""

from __future__ import annotations

from typing import Any

from torch import distributed

from saekernels.formats.checkpoint import rows_in
from saekernels.parallel.latent_parallel import LatentParallelSAE
from saekernels.parallel.rows import activation_of, rows_of
from saekernels.sae.module import SAE


def shard(sae: SAE, group: Any = None) -> LatentParallelSAE:
    """This rank's part of an SAE that every rank holds whole: a copy of its rows.

    group: the ranks of torch.distributed, in whose order the latents are; the default group for None.

    Raises:
        TypeError: what is not a `saekernels.SAE`.
        ValueError: fewer latents (or groups of a GroupMax) than ranks; no process group.
    """
    if not isinstance(sae, SAE):
        raise TypeError(f"sae: got {type(sae).__name__}, need a saekernels.SAE")
    ranks, rank = size_and_rank(group)
    rows = rows_of(sae.n_latents, sae.activation, ranks)[rank]
    own = SAE(
        sae.d_in,
        len(rows),
        activation_of(sae.activation, rows, sae.n_latents),
        d_out=sae.d_out,
        pre_bias=sae.pre_bias_kind,
        normalization=sae.normalization,
        rescale_by_decoder_norm=sae.rescale_by_decoder_norm,
        skip=sae.W_skip is not None,
        device="meta",
    )
    state = {name: value.clone() for name, value in rows_in(sae.state_dict(), rows).items()}
    own.load_state_dict(state, assign=True)
    return LatentParallelSAE(own.train(sae.training), sae.activation, sae.n_latents, rows.start, group)


def size_and_rank(group: Any) -> tuple[int, int]:
    """How many ranks a group has, and which one this is. Raises ValueError without a process group, or outside it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError("group: torch.distributed is not initialised; start the processes with torchrun")
    rank = distributed.get_rank(group)
    if rank < 0:
        raise ValueError("group: this process is not in it")
    return distributed.get_world_size(group), rank
