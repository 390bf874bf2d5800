"""Measures how much of each SAE's dictionary is shared between the domains of a text."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.eval.passes.calls import eval_mode, trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.plan import site_of
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.passes.two_passes import Advance, Progress
from saekernels.eval.studies.reuse.links import measure_links
from saekernels.eval.studies.reuse.lists import NONE, WHOLE, Run, lists, probes, sampled
from saekernels.eval.studies.reuse.options import Options, check_options
from saekernels.eval.studies.reuse.sharing import sharing_figures
from saekernels.eval.studies.reuse.text import Text
from saekernels.eval.studies.reuse.transfer import Losses, Splices, removal_figures, transfer_figures
from saekernels.eval.studies.reuse.use import KINDS, Use, gradient_times_activation
from saekernels.eval.studies.site_passes import Passes
from saekernels.eval.sums.figures import finite
from saekernels.eval.text.documents import Document
from saekernels.eval.text.windows import Tokens
from saekernels.splice.context import splice


def measure_reuse(
    model: Any,
    tokens: Tokens,
    saes: Mapping[str, Any],
    documents: Iterable[Document],
    options: Options | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Which latents each domain uses, how much of that is shared, what one domain's latents are worth in others.

    JSON-ready. Each SAE is spliced in alone. Documents of a domain go to two halves by turns: lists, directions and
    frequencies are of the first, losses of the second. docs/explanation/reuse.md defines the figures. Memory does not
    grow with the text: for one SAE at a time 2 * 16 * D * F doubles for effect and mass each, and d_in^2 + d_in * d_out
    doubles for each of D domains; windows are on disk.

    Args:
        saes: site -> SAE, "SITE#LABEL" for several of one site.
        documents: of at least two domains with at least four documents each.
        progress: called as progress(done, total), in tokens times forward passes.

    Raises InputError for options out of range, a site that is not there or runs twice, or too few documents.
    """
    options = options or Options()
    check_options(options, saes)
    head = find_head(model)
    # Gradients are taken, so not in inference mode.
    with tempfile.TemporaryDirectory(prefix="saekernels-") as folder, torch.no_grad(), eval_mode(model):
        ids = trial_ids(model, head.vocabulary, tokens.context)
        check_head(model, head, ids)
        try_sites(model, head.body, saes, ids, options.batch_size)
        with _frozen(model, *saes.values()):
            text = Text(Path(folder), documents, tokens, head.vocabulary, options)
            pairs = _pairs(model, head.body, saes, ids) if "links" in options.parts else []
            total = sum(_cost(text, sae, options) for sae in saes.values())
            total += len(pairs) * text.positions * (1 + (options.rule.norm is not None))
            advance = Advance(progress, total)
            made, rows, active = 0, [], {}
            for entry, sae in saes.items():
                passes = Passes(model, head, {entry: sae}, options.rule)
                passes.prepare(ids)
                row, active[entry] = _measure_one(passes, entry, text, options, advance)
                rows.append(row)
                made += passes.made
            links = []
            for ends in pairs:
                passes = Passes(model, head, {entry: saes[entry] for entry in ends}, options.rule)
                passes.prepare(ids)
                _find_medians(passes, text, advance)
                links.append(measure_links(passes, ends, text, active, options.seed, advance))
                made += passes.made
    layout = text.layout
    return {
        "documents": layout.documents(),
        "groups": layout.groups,
        "tokens": text.tokens(),
        "mask": {"leave_first": options.rule.first, "leave_norm": options.rule.norm},
        "seed": options.seed,
        "run": {"passes": made},
        "notes": [*layout.notes, *(text.marks.notes if text.marks else ())],
        "sites": rows,
        "links": links,
    }


def _pairs(model: Any, body: Any, saes: Mapping[str, Any], ids: Tensor) -> list[tuple[str, str]]:
    """Sites that follow one another in the model, each by the first of its SAEs."""
    first: dict[str, str] = {}
    for entry in saes:
        first.setdefault(site_of(entry), entry)
    order: list[str] = []
    sites = {site: saes[entry] for site, entry in first.items()}
    with splice(model, sites, observer=lambda site, *_: order.append(site)):
        body(ids)
    return list(itertools.pairwise(first[site] for site in order))


def _find_medians(passes: Passes, text: Text, advance: Advance) -> None:
    if passes.left.rule.norm is not None:
        passes.find_medians(text.batches(None))
        advance(text.positions)


def _measure_one(
    passes: Passes, entry: str, text: Text, options: Options, advance: Advance
) -> tuple[dict[str, Any], Tensor]:
    """One SAE: its use on both halves, then every splice on the second. The row, and `Use.active`."""
    sae, layout = passes.saes[entry], text.layout
    _find_medians(passes, text, advance)
    use = Use(sae, layout, site_of(entry), moments="transfer" in options.parts, marks=text.marks)
    for batch in text.batches(None):
        seen, clean = passes.look(batch, losses=True)
        assert clean is not None
        one = next(iter(seen.values()))
        use.add(one, *gradient_times_activation(passes, batch, entry, one, clean), text.shells(batch))
        passes.forget()
        advance(2 * batch.positions)
    sizes = options.sizes(sae)
    sample = sampled(use, options.removed)
    held = lists(use, sizes, options.seed)
    runs: dict[Run, Any] = {Run("removed", "", latent): None for latent in sample}
    runs |= {run: latents for run, latents in held.items() if len(latents)}
    runs |= {NONE: None, **probes(use)} if sizes else {}
    losses = Losses(layout, [WHOLE, *runs])
    splices = Splices(passes, entry, runs)
    for batch in text.batches(1):
        seen, clean = passes.look(batch, losses=True)
        assert clean is not None
        losses.add(batch, *splices.losses(batch, next(iter(seen.values())), clean))
        passes.forget()
        advance(batch.positions * (2 + len(runs)))
    estimated = use.sums["effect"][1].sum(1)[:, sample].T, use.first_order[:, sample].T
    row = {
        "site": entry,
        "architecture": sae.architecture,
        "n_latents": sae.n_latents,
        "l0": finite(use.l0()),
        "clean_ce": dict(zip(layout.domains, losses.clean_ce().tolist(), strict=True)),
        "removal": removal_figures(losses, sample, *estimated),
        **{kind: sharing_figures(use.sums[kind], layout.domains, options.seed) for kind in KINDS},
        "slices": {kind: sums.figures() for kind, sums in use.slices.items()} or None,
        "transfer": transfer_figures(losses, sizes, held) if sizes else None,
    }
    return row, use.active


def _cost(text: Text, sae: Any, options: Options) -> int:
    """About how many positions will pass through the model for one SAE."""
    domains = len(text.layout.domains)
    sizes = len(options.sizes(sae))
    spliced = 2 + options.removed + sizes * (2 * domains + 1) + bool(sizes) * (domains + 1)
    looks = 2 + (options.rule.norm is not None)
    return text.positions * looks + text.positions * spliced // 2


@contextlib.contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """Parameters that need no gradient meanwhile, so that none is computed."""
    needing = [one for module in modules for one in module.parameters() if one.requires_grad]
    for one in needing:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in needing:
            one.requires_grad_(True)
