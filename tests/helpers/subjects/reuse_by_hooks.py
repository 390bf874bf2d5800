"""What tests of reuse have in common: three SAEs, a text, the study of them, single splices by plain hooks, numbers by
loops."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny_lm
from saekernels.eval.passes.calls import trial_ids
from saekernels.eval.passes.head import find_head
from saekernels.eval.studies.reuse.alone import Alone
from saekernels.eval.studies.reuse.jointly import Jointly
from saekernels.eval.studies.reuse.measure import measure_reuse
from saekernels.eval.studies.reuse.options import Options
from saekernels.eval.studies.reuse.text import Layout
from saekernels.eval.studies.reuse.use import Use
from saekernels.eval.studies.site_passes import Passes
from saekernels.eval.text.batches import batches
from saekernels.eval.text.windows import Window, chosen
from saekernels.sae.activations import LayerNorm, TopK
from saekernels.sae.module import SAE
from saekernels.splice.leave import Leave
from tiny_lm import SITES, texts, tokens

SIZES = [5, 20]


@functools.cache
@torch.no_grad()
def saes() -> dict[str, Any]:
    torch.manual_seed(7)
    scaled = SAE(32, 64, TopK(6, relu=False), normalization=LayerNorm(), rescale_by_decoder_norm=True)
    scaled.W_dec.mul_(1 + torch.rand(64, 1))
    return {SITES[0]: tiny_lm.sae(0), f"{SITES[0]}#jump": tiny_lm.sae(2, jump=True), SITES[1]: scaled.eval()}


@functools.cache
def text() -> tuple[list[Window], Layout]:
    many = list(chosen(iter(texts()), tokens(), None, 0))
    return [window for _, windows in many for window in windows], Layout([document.domain for document, _ in many])


@functools.cache
def measured() -> dict[str, Any]:
    options = Options(latents=SIZES, removed=4, batch_size=3)
    return measure_reuse(tiny_lm.trained_model(), tokens(), saes(), iter(texts()), options)


@functools.cache
def used(entry: str) -> Use:
    """The sums of one SAE, as the study makes them. Do not change them."""
    model = tiny_lm.trained_model()
    head, sae = find_head(model), saes()[entry]
    with torch.no_grad():
        passes = Passes(model, head, {entry: sae}, Leave())
        passes.prepare(trial_ids(model, head.vocabulary, 24))
        return summed(Alone(passes, entry))


def summed(subject: Alone | Jointly) -> Use:
    """What a dictionary does over the whole text."""
    windows, layout = text()
    use = Use(subject.encoders, layout, subject.widths)
    for batch in batches(windows, 3, 24):
        seen, clean = subject.passes.look(batch, losses=True)
        assert clean is not None
        use.add(subject.effects(batch, seen, clean))
        subject.passes.forget()
    return use


def spliced(window: Window, entry: str, change: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(cross-entropies of the predictions that count, what the site gave, touched), with change(x) where touched."""
    seen: list[Tensor] = []
    touched = torch.from_numpy(~window.special)

    def hook(module: Any, given: Any, out: Tensor) -> Tensor:
        seen.append(out[0].detach())
        return torch.where(touched[:, None], change(out[0]), out[0])[None]

    handle = tiny_lm.trained_model().get_submodule(entry.partition("#")[0]).register_forward_hook(hook)
    ids = torch.from_numpy(window.ids).long()
    logits = tiny_lm.trained_model()(ids[None]).logits[0]
    handle.remove()
    losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")[torch.from_numpy(window.counted)]
    return losses, seen[0], touched


def share(totals: np.ndarray) -> np.ndarray:
    """What each latent carries of what all do."""
    carried = np.maximum(totals, 0)
    return carried / carried.sum()


def overlap(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(min(a, b) for a, b in zip(p, q, strict=True)))


def entropy(p: np.ndarray) -> float:
    return float(-sum(one * np.log(one) for one in p if one > 0))


def effective(p: np.ndarray) -> float:
    return float(np.exp(entropy(p)))


def carriers(p: np.ndarray) -> int:
    """The fewest latents that carry 90 %."""
    carried = number = 0
    for one in sorted(p, reverse=True):
        if carried >= 0.9:
            break
        carried, number = carried + one, number + 1
    return number
