"""Which latents a restricted dictionary may hold: those that matter most in a domain, and the lists beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saekernels.eval.passes.moments import fixed_k
from saekernels.eval.studies.reuse.sharing import shares
from saekernels.eval.studies.reuse.use import Use
from saekernels.sae.probes import AffineProbe, Moments, fit_probes


class Run(NamedTuple):
    """A splice: kind is "whole", "none", "own", "random", "union", "pca" or "removed".

    domain: whose latents or directions, "" for none; size: of the lists asked for, or the latent that is removed.
    """

    kind: str
    domain: str = ""
    size: int = 0


WHOLE, NONE = Run("whole"), Run("none")


def lists(use: Use, sizes: Sequence[int], seed: int) -> dict[Run, Tensor]:
    """Latents [m] int64 by run, chosen on the first half of the documents.

    own: the m with the largest effect on a domain's loss, fewer where fewer have one above 0. random: as many, drawn
    for each of them among the latents whose number of active positions there has the same octave. union: of the lists
    of all domains.
    """
    effects = use.totals("effect")[0]
    rng = np.random.default_rng((seed, 23))
    found: dict[Run, Tensor] = {}
    for size in sizes:
        own = []
        for number, domain in enumerate(use.layout.domains):
            order = torch.sort(effects[number], descending=True, stable=True)
            best = order.indices[: min(size, int((order.values > 0).sum()))]
            own.append(best)
            found[Run("own", domain, size)] = best
            found[Run("random", domain, size)] = like(best, use.active[number], rng)
        found[Run("union", "", size)] = torch.cat(own).unique()
    return found


def like(latents: Tensor, active: Tensor, rng: np.random.Generator) -> Tensor:
    """As many latents [m] as given, with as many in each octave of `active` [F], the number of active positions."""
    octave = active.clamp_min(1).double().log2().floor().long().where(active > 0, -1)
    drawn = []
    for one in octave[latents].unique().tolist():
        among = torch.nonzero(octave == one)[:, 0].numpy()
        drawn.append(rng.choice(among, int((octave[latents] == one).sum()), replace=False))
    return torch.from_numpy(np.concatenate(drawn)) if drawn else latents


def probes(use: Use) -> dict[Run, list[AffineProbe]]:
    """Affine probes of each layer, fitted in each domain, of as many directions as latents are active per token."""
    found: dict[Run, list[AffineProbe]] = {}
    for place, domain in enumerate(use.layout.domains if use.moments else ()):
        own = [moments[place] for moments in use.moments]
        if all(one.count for one in own):
            found[Run("pca", domain)] = [_probe(use, number, one) for number, one in enumerate(own)]
    return found


def _probe(use: Use, number: int, moments: Moments) -> AffineProbe:
    sae = use.saes[number]
    widths = [len(one) for one in (moments.sum_x, moments.sum_y) if len(one)]
    rank = min([fixed_k(sae) or max(1, round(use.l0(number))), *widths])
    return fit_probes(moments, [rank])[rank].to(sae.W_dec.device)


def sampled(use: Use, number: int) -> list[int]:
    """At most so many latents, spread evenly over what all carry: the more a latent carries, the likelier it is one.

    Latents in the order of their share in the effect of a domain, averaged over domains, in the first half.
    """
    p = shares(use.totals("effect")[0]).nan_to_num(0).mean(0)
    order = torch.sort(p, descending=True, stable=True)
    running = order.values.cumsum(0)
    if not number or running[-1] <= 0:
        return []
    places = (torch.arange(number) + 0.5) / number * running[-1]
    at = torch.searchsorted(running, places).clamp_max(len(p) - 1)
    return sorted(set(order.indices[at].tolist()))
