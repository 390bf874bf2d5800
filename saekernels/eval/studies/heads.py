"""What a crosscoder's heads cost the models that they are of: each head alone, and all heads of one model together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.crosslayer.head_site import HeadSite
from saekernels.eval.passes.calls import eval_mode
from saekernels.eval.passes.head import find_head
from saekernels.eval.text.batches import Batch
from saekernels.parallel.devices import input_device
from saekernels.splice.context import splice
from saekernels.splice.heads import reading_heads


@dataclass(frozen=True)
class HeadFigures:
    """Means over predicted tokens, in nats; the codes are those of clean passes (teacher-forced).

    model: which of those that were given; heads: which of the crosscoder's were put in there; tokens: predictions.
    l0: latents per position that was replaced, a mean over these heads.
    """

    model: int
    heads: tuple[int, ...]
    tokens: int
    clean_ce: float
    spliced_ce: float
    kl: float
    top1_agreement: float
    l0: float

    @property
    def delta_ce(self) -> float:
        """What the splice costs."""
        return self.spliced_ce - self.clean_ce


def head_losses(
    models: Sequence[tuple[nn.Module, Mapping[str, HeadSite]]], batches: Iterable[Batch]
) -> list[HeadFigures]:
    """For every head, and all heads of a model that has several, what putting them in costs on a stream of batches.

    A batch takes one clean pass of every model, from which the codes come, and a pass for each of the rows returned.
    Positions that a batch does not touch, such as BOS, stay as they are; their codes are not used.

    Args:
        models: (model, its sites), all heads of one crosscoder (`saekernels.head_sites`); the models take the same
            token ids.
        batches: of `saekernels.eval.text.batches`; what a row's tokens are is the same for every model.

    Raises ValueError as `saekernels.reading_heads`, and where no token is predicted.
    """
    heads = [find_head(model) for model, _ in models]
    runs: list[tuple[int, dict[str, HeadSite]]] = []
    for number, (_, sites) in enumerate(models):
        runs += [(number, {name: site}) for name, site in sites.items()]
        runs += [(number, dict(sites))] if len(sites) > 1 else []
    sums = torch.zeros(len(runs), 7, dtype=torch.float64)
    with torch.inference_mode(), eval_mode(*(model for model, _ in models)):
        for batch in batches:
            ids = [batch.ids.to(input_device(model)) for model, _ in models]
            with reading_heads(*models):
                clean = [head.hidden(own, batch.rows) for head, own in zip(heads, ids, strict=True)]
            for row, (number, sites) in enumerate(runs):
                with splice(models[number][0], sites, untouched=~batch.touched):
                    spliced = heads[number].hidden(ids[number], batch.rows)
                found = heads[number].compare(clean[number], spliced, batch.targets)
                sums[row, :4] += torch.stack([one.double().sum().cpu() for one in found])
                sums[row, 4] += len(batch.rows)
                sums[row, 5:] += _active(sites, batch.touched)
    if not bool((sums[:, 4] > 0).all()):
        raise ValueError("batches: got none that predicts a token")
    return [_figures(number, sites, own) for (number, sites), own in zip(runs, sums, strict=True)]


def _active(sites: Mapping[str, HeadSite], touched: Tensor) -> Tensor:
    """(latents, positions) of all heads of a run, at the positions that it replaces."""
    counts = [site.given[site.head].l0().cpu()[touched] for site in sites.values()]
    return torch.tensor([sum(int(one.sum()) for one in counts), sum(map(len, counts))], dtype=torch.float64)


def _figures(number: int, sites: Mapping[str, HeadSite], sums: Tensor) -> HeadFigures:
    ce, spliced, kl, agree, tokens, latents, positions = sums.tolist()
    means: dict[str, Any] = {"clean_ce": ce, "spliced_ce": spliced, "kl": kl, "top1_agreement": agree}
    means = {name: value / tokens for name, value in means.items()}
    chosen = tuple(site.head for site in sites.values())
    return HeadFigures(number, chosen, int(tokens), **means, l0=latents / max(1, positions))
