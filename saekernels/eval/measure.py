"""What an evaluation measures: the order of its passes over the text, and what each needs from the one before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from saekernels.errors import InputError
from saekernels.eval.passes.moments import Collector
from saekernels.eval.passes.plan import Plan, make_plan, site_of
from saekernels.eval.passes.runner import Means, Runner, Sums, empty_sums
from saekernels.eval.passes.two_passes import Work
from saekernels.eval.store.document_sums import Journal
from saekernels.eval.text.windows import Tokens
from saekernels.sae.probes import fit_probes


@dataclass(frozen=True)
class Wanted:
    """What a caller of evaluate() has chosen, checked."""

    tokens: int | None
    context: int
    baselines: tuple[str, ...]
    cumulative: bool
    seed: int
    reuse_layers: bool


def measure(
    work: Work, runner: Runner, cutter: Tokens, wanted: Wanted, order: Mapping[str, int], probe: torch.Tensor
) -> tuple[Plan, Collector, Sums, Journal]:
    """All passes over the text: the plan of the runs, and what they add up to."""
    saes = runner.saes
    if runner.left.rule.norm is not None:
        work.look(runner.left)
    collector = Collector(saes, runner.left, second="pca" in wanted.baselines)
    work.collect(collector)
    for site, moments in collector.moments.items():
        if moments.count < 1:
            raise InputError(f"{site}: of all positions of the text none is replaced; leave fewer alone, or read more")
    plan = make_plan(list(saes), order, collector.ranks(), wanted.baselines, wanted.cumulative)
    runner.prepare(plan, probe, wanted.reuse_layers)
    means = _means(plan, collector)
    ordinary = torch.from_numpy(np.setdiff1d(np.arange(cutter.rows or 0), cutter.special))
    runner.find_constant(means, [int(i) for i in cutter.prefix], wanted.context, ordinary)
    sums = empty_sums(plan, saes, means.means)
    return plan, collector, sums, work.measure(runner, means, sums)


def _means(plan: Plan, collector: Collector) -> Means:
    means = {site: moments.mean_out.float() for site, moments in collector.moments.items()}
    wanted: dict[str, set[int]] = {}
    for run in plan.runs:
        for site, rank in zip(run.sites, run.ranks, strict=False):
            wanted.setdefault(site, set()).add(rank)
    probes = {}
    for site, ranks in wanted.items():
        device = next(sae for entry, sae in collector.saes.items() if site_of(entry) == site).W_dec.device
        for rank, probe in fit_probes(collector.moments[site], sorted(ranks)).items():
            probes[site, rank] = probe.to(device)
    return Means(means, probes)
