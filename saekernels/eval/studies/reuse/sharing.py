"""Sharing numbers: whose latents carry how much where, how many there are in effect, and how both grow with domains.

docs/explanation/reuse.md defines them, with what they are for one shared dictionary and for disjoint ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.eval.sums.figures import Estimate
from saekernels.eval.sums.jackknife import estimate, leave_one_out

CARRIED = 0.9
_MOST_SUBSETS = 20


def shares(totals: Tensor) -> Tensor:
    """[..., F]: the share of each latent in what all carry; latents below 0 carry nothing. NaN where none does."""
    carried = totals.clamp_min(0)
    return carried / carried.sum(-1, keepdim=True)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """[A, B] of shares a [A, F] and b [B, F]: the sum over latents of the smaller one; 1 for equals, 0 for disjoint."""
    return torch.stack([torch.minimum(one, b).sum(-1) for one in a])


def chance(a: Tensor, b: Tensor) -> Tensor:
    """[A, B]: what `overlap` is on average if the shares are dealt out anew among the latents that any row uses."""
    used = int(((a > 0).any(0) | (b > 0).any(0)).sum())
    ordered = b.sort(-1).values
    running = torch.nn.functional.pad(ordered.cumsum(-1), (1, 0))
    below = torch.stack([torch.searchsorted(row, a) for row in ordered], 1)
    smaller = torch.stack([row[at] for row, at in zip(running, below.unbind(1), strict=True)], 1)
    return (smaller + a[:, None] * (b.shape[1] - below)).sum(-1) / used


def effective_number(p: Tensor) -> Tensor:
    """[...] of shares [..., F]: the exponential of their entropy, F for equal ones, 1 where one latent carries all."""
    return torch.special.entr(p).sum(-1).exp()


def carriers(p: Tensor, part: float = CARRIED) -> Tensor:
    """[...] of shares [..., F]: the least number of latents that carry that part."""
    running = p.sort(-1, descending=True).values.cumsum(-1)
    # As summed, so that all of it is reached.
    return (running < part * running[..., -1:]).sum(-1).double() + 1


def subsets(domains: int, seed: int) -> list[list[tuple[int, ...]]]:
    """For n = 1, 2, ... the subsets of n domains, or as many of them as are enough, drawn by the seed."""
    rng = np.random.default_rng((seed, 22))
    found = []
    for size in range(1, domains + 1):
        every = list(itertools.combinations(range(domains), size))
        kept = rng.permutation(len(every))[:_MOST_SUBSETS]
        found.append([every[number] for number in sorted(kept)])
    return found


def sharing_figures(sums: Tensor, domains: Sequence[str], seed: int) -> dict[str, Any]:
    """All sharing numbers of sums [2, G, D, F] by half, group, domain and latent, with intervals; JSON-ready."""
    count = len(domains)
    plan = subsets(count, seed)
    many = [_figures(totals, plan) for totals in leave_one_out(sums.transpose(0, 1))]

    def figure(name: str, at: Any = ()) -> dict[str, Any]:
        return as_json(estimate([float(one[name][at]) for one in many]))

    pairs = range(count)
    by_domain = {
        name: {key: figure(key, number) for key in ("general", "ceiling", "chance", "effective", "carriers")}
        for number, name in enumerate(domains)
    }
    return {
        "general": figure("mean_general"),
        "ceiling": figure("mean_ceiling"),
        "chance": figure("mean_chance"),
        "distinct": figure("distinct"),
        "effective": figure("rising_effective", count - 1),
        "carriers": figure("rising_carriers", count - 1),
        "domains": by_domain,
        "overlap": [[figure("overlap", (a, b)) for b in pairs] for a in pairs],
        "rarefaction": [
            {"domains": n + 1, "effective": figure("rising_effective", n), "carriers": figure("rising_carriers", n)}
            for n in pairs
        ],
    }


def as_json(one: Estimate) -> dict[str, Any]:
    """The figure as value and ci95."""
    return {"value": one.value, "ci95": one.ci95}


def _figures(totals: Tensor, plan: list[list[tuple[int, ...]]]) -> dict[str, Tensor]:
    """The numbers as tensors by name, of totals [2, D, F] by half, domain and latent."""
    first, second = shares(totals)
    count = len(first)
    table, by_chance = (halves(first, second) for halves in (overlap, chance))
    table, by_chance = (table + table.T) / 2, (by_chance + by_chance.T) / 2
    apart = ~torch.eye(count, dtype=torch.bool)

    def of_others(matrix: Tensor) -> Tensor:
        return matrix.masked_fill(~apart, 0).sum(1) / (count - 1)

    p = shares(totals.sum(0))
    found = {"overlap": table, "general": of_others(table), "ceiling": table.diagonal(), "chance": of_others(by_chance)}
    found |= {f"mean_{name}": found[name].mean() for name in ("general", "ceiling", "chance")}
    found |= {"effective": effective_number(p), "carriers": carriers(p)}
    entropy = torch.special.entr(p).sum(-1).mean()
    found["distinct"] = effective_number(p.mean(0)) / entropy.exp()
    for name, number in (("effective", effective_number), ("carriers", carriers)):
        rising = [torch.stack([number(p[list(one)].mean(0)) for one in some]).mean() for some in plan]
        found[f"rising_{name}"] = torch.stack(rising)
    return found
