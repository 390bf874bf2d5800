"""A checkpoint straight to shards: each rank reads its own rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saekernels.formats.load import finish, open_checkpoint
from saekernels.parallel.latent_parallel import LatentParallelSAE
from saekernels.parallel.rows import activation_of, rows_of
from saekernels.parallel.shards import size_and_rank


def load(
    path: str | Path,
    group: Any = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    input_scale: float | None = None,
    k: int | None = None,
    revision: str | None = None,
    format: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> LatentParallelSAE:
    """`saekernels.load`, of which every rank keeps its latents alone.

    safetensors files are mapped into memory, so a rank reads no other latents than its own and never holds the whole;
    torch and numpy files are read whole before they are cut.

    Args:
        path: as in `saekernels.load`, like all but `group`.
        group: the ranks of torch.distributed, in whose order the latents are; the default group for None.
        device: of this rank's weights.
        dtype: of this rank's weights.
        input_scale: for formats that do not hold theirs.
        k: for formats that do not hold theirs.
        revision: of a hub id.
        format: for files that fit several formats.
        config: for state dicts that do not say their maths.

    Returns:
        LatentParallelSAE in eval mode.

    Raises:
        FileNotFoundError, FormatError, TypeError, ValueError: as `saekernels.load`; ValueError also without a process
            group, or for fewer latents (or groups of a GroupMax) than ranks.
    """
    ranks, rank = size_and_rank(group)
    found = open_checkpoint(
        path, dtype=dtype, input_scale=input_scale, k=k, revision=revision, format=format, config=config
    )
    n_latents = found.n_latents
    rows = rows_of(n_latents, found.activation, ranks)[rank]
    own = finish(found.part(rows, activation_of(found.activation, rows, n_latents)), device, dtype)
    return LatentParallelSAE(own, found.activation, n_latents, rows.start, group)
