"""Measures how much of each SAE's dictionary is shared between the domains of a text."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.errors import InputError
from saekernels.eval.passes.calls import eval_mode, trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.plan import site_of
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.passes.two_passes import Advance, Progress
from saekernels.eval.studies.reuse.alone import Alone
from saekernels.eval.studies.reuse.jointly import Jointly, stands_of
from saekernels.eval.studies.reuse.links import measure_links
from saekernels.eval.studies.reuse.lists import NONE, WHOLE, Run, lists, probes, sampled
from saekernels.eval.studies.reuse.options import Options, check_options
from saekernels.eval.studies.reuse.sharing import sharing_figures
from saekernels.eval.studies.reuse.text import Text
from saekernels.eval.studies.reuse.transfer import Losses, removal_figures, transfer_figures
from saekernels.eval.studies.reuse.use import KINDS, Use
from saekernels.eval.studies.site_passes import Passes
from saekernels.eval.sums.figures import finite
from saekernels.eval.text.documents import Document
from saekernels.eval.text.windows import Tokens

# Positions of a pass whose activations are all kept, for gradients.
_GRADED = 4096


def measure_reuse(
    model: Any,
    tokens: Tokens,
    saes: Mapping[str, Any] | CrossLayerTranscoder,
    documents: Iterable[Document],
    options: Options | None = None,
    *,
    sites: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Which latents each domain uses, how much of that is shared, what one domain's latents are worth in others.

    JSON-ready. Each SAE is spliced in alone; a cross-layer transcoder is one dictionary, whose layers are spliced in
    together with codes of the clean model. Documents of a domain go to two halves by turns: lists, directions and
    frequencies are of the first, losses of the second. docs/explanation/reuse.md defines the figures. Memory does not
    grow with the text: for one dictionary at a time 2 * 16 * D * F doubles for effect and mass each, and for each of D
    domains, by layer, d_in^2 + d_in * d_out doubles; windows are on disk.

    Args:
        saes: site -> SAE, "SITE#LABEL" for several of one site; or a transcoder across layers.
        sites: where its layers read and write, if its files do not say it.
        documents: of at least two domains with at least four documents each.
        progress: called as progress(done, total), in tokens times forward passes.

    Raises InputError for options out of range, a site that is not there or runs twice, layers in another order than
    the model's, or too few documents.
    """
    options = options or Options()
    check_options(options, saes)
    clt: CrossLayerTranscoder | None = None
    if isinstance(saes, CrossLayerTranscoder):
        clt, stands = saes, dict[str, Any](stands_of(saes, sites))
    else:
        stands = dict(saes)
    head = find_head(model)
    # Gradients are taken, so not in inference mode.
    with tempfile.TemporaryDirectory(prefix="saekernels-") as folder, torch.no_grad(), eval_mode(model):
        ids = trial_ids(model, head.vocabulary, tokens.context)
        check_head(model, head, ids)
        order = try_sites(model, head.body, stands, ids, options.batch_size)
        if clt is not None and list(order) != list(stands):
            raise InputError(f"clt: its layers are at {list(stands)}, but the model runs them as {list(order)}")
        with _frozen(model, *([clt] if clt is not None else stands.values())):
            text = Text(Path(folder), documents, tokens, head.vocabulary, options)
            pairs = _pairs(order, stands) if "links" in options.parts else []
            groups = [stands] if clt is not None else [{entry: sae} for entry, sae in stands.items()]
            total = sum(_cost(text, list(group.values()), options) for group in groups)
            total += len(pairs) * text.positions * (1 + (options.rule.norm is not None))
            advance = Advance(progress, total)
            made, rows = 0, []
            active: dict[str, Tensor] = {}
            for group in groups:
                passes = Passes(model, head, group, options.rule)
                if clt is None:
                    passes.prepare(ids)
                subject = Jointly(passes, clt) if clt is not None else Alone(passes, *group)
                row, use = _measure_one(subject, text, options, advance)
                active |= {entry: use.of_layer(number, use.active) for number, entry in enumerate(group)}
                rows.append(row)
                made += passes.made
            links = []
            for ends in pairs:
                passes = Passes(model, head, {entry: stands[entry] for entry in ends}, options.rule)
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


def _pairs(order: Iterable[str], saes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Sites that follow one another in the model, each by the first of its SAEs."""
    first: dict[str, str] = {}
    for entry in saes:
        first.setdefault(site_of(entry), entry)
    return list(itertools.pairwise(first[site] for site in order))


def _find_medians(passes: Passes, text: Text, advance: Advance) -> None:
    if passes.left.rule.norm is not None:
        passes.find_medians(text.batches(None))
        advance(text.positions)


def _measure_one(
    subject: Alone | Jointly, text: Text, options: Options, advance: Advance
) -> tuple[dict[str, Any], Use]:
    """One dictionary: its use on both halves, then every splice on the second. The row, and what it is made of."""
    passes, layout = subject.passes, text.layout
    _find_medians(passes, text, advance)
    use = Use(subject.encoders, layout, subject.widths if "transfer" in options.parts else (), text.marks)
    for batch in text.batches(None, most=_GRADED):
        seen, clean = passes.look(batch, losses=True)
        assert clean is not None
        use.add(subject.effects(batch, seen, clean), text.shells(batch))
        passes.forget()
        advance(2 * batch.positions)
    sizes = options.sizes(use.n_latents)
    sample = sampled(use, options.removed)
    held = lists(use, sizes, options.seed)
    runs: dict[Run, Any] = {Run("removed", "", latent): None for latent in sample}
    runs |= {run: latents for run, latents in held.items() if len(latents)}
    runs |= {NONE: None, **probes(use)} if sizes else {}
    losses = Losses(layout, [WHOLE, *runs])
    for batch in text.batches(1):
        seen, clean = passes.look(batch, losses=True)
        assert clean is not None
        losses.add(batch, *subject.losses(batch, seen, clean, runs))
        passes.forget()
        advance(batch.positions * (2 + len(runs)))
    estimated = use.sums["effect"][1].sum(1)[:, sample].T, use.first_order[:, sample].T
    row = {
        "site": subject.name,
        "architecture": subject.architecture,
        "n_latents": use.n_latents,
        "l0": finite(use.l0()),
        "clean_ce": dict(zip(layout.domains, losses.clean_ce().tolist(), strict=True)),
        "removal": removal_figures(losses, sample, *estimated),
        **{kind: sharing_figures(use.sums[kind], layout.domains, options.seed) for kind in KINDS},
        "slices": {kind: sums.figures() for kind, sums in use.slices.items()} or None,
        "transfer": transfer_figures(losses, sizes, held) if sizes else None,
    }
    if len(passes.saes) > 1:
        row["layers"] = [_layer(use, number, site, options.seed) for number, site in enumerate(passes.saes)]
    return row, use


def _layer(use: Use, number: int, site: str, seed: int) -> dict[str, Any]:
    """What is shared of one layer's latents."""
    domains = use.layout.domains
    own = {kind: sharing_figures(use.of_layer(number, use.sums[kind]), domains, seed) for kind in KINDS}
    return {"site": site, "n_latents": use.saes[number].n_latents, "l0": finite(use.l0(number)), **own}


def _cost(text: Text, saes: Sequence[Any], options: Options) -> int:
    """About how many positions will pass through the model for one dictionary."""
    domains = len(text.layout.domains)
    sizes = len(options.sizes(sum(sae.n_latents for sae in saes)))
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
