"""A trial of every site on a few tokens, before hours of work: is it there, does its SAE fit, and does it run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from saekernels.errors import InputError, first_line
from saekernels.eval.passes.plan import site_of
from saekernels.parallel.collectives import RankLostError
from saekernels.splice.context import splice


def try_sites(
    model: Any, body: Callable[[Tensor], Any], saes: Mapping[str, Any], ids: Tensor, batch_size: int = 2
) -> dict[str, int]:
    """Splice every SAE once on ids [1, S]; site -> when the model comes to it.

    body: the pass up to the output head. batch_size: rows of the batches that will follow.

    Raises InputError for an unknown site, an SAE of the wrong width, a site that never runs, or one whose positions are
    not [B, S].
    """
    # More rows than tokens or fewer: positions in another order than [B, S] then fit no mask of that shape.
    ids = ids.expand(1 if batch_size == 1 else 2 + int(ids.shape[1] == 2), -1)
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    order: dict[str, int] = {}
    for entry, sae in saes.items():
        site = site_of(entry)
        try:
            with splice(model, {site: sae}, untouched=nothing) as active:
                body(ids)
        except RankLostError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(first_line(error)) from error
        if not active.calls[site]:
            raise InputError(
                f"site {site!r}: it never runs in the body of {type(model).__name__}, before the output head"
            )
    sites = {site_of(entry): sae for entry, sae in saes.items()}
    with splice(model, sites, observer=lambda site, *_: order.setdefault(site, len(order))):
        body(ids)
    return order
