"""Watches chosen latents while SAEs are spliced in: an event for every token at which one exceeds its threshold."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saekernels.errors import InputError
from saekernels.eval.passes.calls import trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.left import SiteNorms
from saekernels.eval.passes.plan import site_of
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.passes.two_passes import Advance, Progress
from saekernels.eval.store.window_files import early_windows, write_spool
from saekernels.eval.text.batches import Batch, batches
from saekernels.eval.text.documents import Document
from saekernels.eval.text.windows import Tokens, chosen
from saekernels.parallel.devices import input_device
from saekernels.sae.codes import Codes
from saekernels.sae.module import SAE
from saekernels.splice.context import splice
from saekernels.splice.leave import Leave


@dataclass(frozen=True)
class Watch:
    """A latent of the SAE at a site, and the value that it has to exceed."""

    entry: str
    latent: int
    threshold: float = 0.0


@dataclass(frozen=True)
class Event:
    """A latent above its threshold: in which document (its number, domain and source), at which token, how much."""

    entry: str
    latent: int
    value: float
    document: int
    domain: str
    source: str
    position: int
    token: str


@dataclass(frozen=True)
class WatchFigures:
    """How often a watch fired, and what the splice costs where it did and where it did not; ΔCE in nats, or None."""

    entry: str
    latent: int
    threshold: float
    events: int
    share: float
    mean_value: float | None
    delta_ce_at_events: float | None
    delta_ce_elsewhere: float | None


def monitor(
    model: Any,
    tokens: Tokens,
    saes: Mapping[str, SAE],
    watches: Sequence[Watch],
    documents: Iterable[Document],
    on_event: Callable[[Event], None],
    *,
    wanted: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    leave_first: int = 0,
    leave_norm: float | None = None,
    progress: Progress | None = None,
) -> list[WatchFigures]:
    """Splice all SAEs in together, tell of every event in the order of the text, and sum up.

    Events come from the codes, never from a tokens x latents matrix. ΔCE is over predictions made from a token with an
    event, and from one without. `leave_first` and `leave_norm` say which positions each site leaves as they are, as for
    `evaluate`; no event is there, and shares are of the others.

    Raises InputError for a watch on an SAE or a latent that is not there, and for two SAEs of one site.
    """
    _check(saes, watches)
    head = find_head(model)
    device = input_device(model)
    rule = Leave(leave_first, leave_norm)
    sums = np.zeros((len(watches), 2, 2))
    values = np.zeros(len(watches))
    counts, touched = (np.zeros(len(watches), dtype=np.int64) for _ in range(2))
    entry_of = {site_of(entry): entry for entry in saes}
    sites = {site: saes[entry] for site, entry in entry_of.items()}
    left = SiteNorms(model, head, sites, rule)
    sources: list[str] = []

    def text() -> Iterable[Any]:
        for document, windows in chosen(documents, tokens, wanted, seed):
            sources.append(document.source)
            yield document, windows

    with tempfile.TemporaryDirectory(prefix="saekernels-") as folder, torch.inference_mode():
        ids = trial_ids(model, head.vocabulary, tokens.context)
        check_head(model, head, ids)
        try_sites(model, head.body, saes, ids, batch_size)
        spool = write_spool(Path(folder), text(), tokens.context, tokens.has_bytes, head.vocabulary)
        total = spool.positions
        for chunk, before in spool.early().items() if rule.norm is not None else ():
            for batch in batches(early_windows(spool.chunk(chunk), before), batch_size, tokens.context, rule.first):
                left.add(batch)
                total += batch.positions
        advance = Advance(progress, total)
        advance(total - spool.positions)
        for chunk in range(spool.chunks):
            found: list[Event] = []
            for batch in batches(spool.chunk(chunk), batch_size, tokens.context, rule.first):
                codes: dict[str, Codes] = {}

                def observe(site: str, x: Any, x_hat: Any, y: Any, own: Any, touched: Any, codes: Any = codes) -> None:
                    codes[entry_of[site]] = own

                clean, masks = left.run_clean(batch)
                masks = masks or dict.fromkeys(sites, batch.touched)
                untouched = {site: ~mask for site, mask in masks.items()}
                with splice(model, sites, untouched=untouched, observer=observe):
                    spliced = head.hidden(batch.ids.to(device), batch.rows)
                figures = head.compare(clean, spliced, batch.targets)
                delta = (figures[1] - figures[0]).double().cpu().numpy()
                for number, watch in enumerate(watches):
                    level = _values(codes[watch.entry], watch.latent).view(batch.ids.shape).float().cpu()
                    own = masks[site_of(watch.entry)]
                    touched[number] += int(own.sum())
                    fired = (level > watch.threshold) & own
                    counts[number] += int(fired.sum())
                    values[number] += float(level[fired].sum())
                    at = fired.reshape(-1)[batch.rows].numpy().astype(int)
                    sums[number, :, 0] += np.bincount(at, minlength=2)
                    sums[number, :, 1] += np.bincount(at, weights=delta, minlength=2)
                    found += _events(watch, level, fired, batch, spool.domains, sources, tokens)
                advance(batch.positions)
            order = {entry: index for index, entry in enumerate(saes)}
            for event in sorted(found, key=lambda e: (e.document, e.position, order[e.entry], e.latent)):
                on_event(event)
    return [_summary(watch, int(counts[i]), values[i], int(touched[i]), sums[i]) for i, watch in enumerate(watches)]


def _check(saes: Mapping[str, SAE], watches: Sequence[Watch]) -> None:
    """InputError for a watch on what is not there, or several SAEs of one site."""
    doubled = [entry for entry, one in Counter(map(site_of, saes)).items() if one > 1]
    if doubled:
        raise InputError(f"watch: all SAEs are spliced in together, but there are several for the site {doubled[0]!r}")
    for watch in watches:
        if watch.entry not in saes:
            raise InputError(f"watch: there is no SAE {watch.entry!r}; there are {', '.join(saes)}")
        if not 0 <= watch.latent < saes[watch.entry].n_latents:
            raise InputError(
                f"watch: {watch.entry} has latents 0 to {saes[watch.entry].n_latents - 1}, got {watch.latent}"
            )


def _values(codes: Codes, latent: int) -> torch.Tensor:
    """[T]: the latent's value at each token, 0 where it is not active."""
    own = torch.where(codes.indices == latent, codes.values, 0)
    if codes.offsets is None:
        return own.reshape(-1, own.shape[-1]).sum(-1)
    rows = torch.arange(codes.tokens, device=own.device).repeat_interleave(codes.offsets.diff())
    return own.new_zeros(codes.tokens).index_add_(0, rows, own)


def _events(
    watch: Watch,
    level: torch.Tensor,
    fired: torch.Tensor,
    batch: Batch,
    domains: Sequence[str],
    sources: Sequence[str],
    tokens: Tokens,
) -> list[Event]:
    made = []
    for row, column in fired.nonzero().tolist():
        window = batch.windows[row]
        position = window.start + column - len(tokens.prefix)
        text = tokens.tokenizer.decode([int(window.ids[column])])
        value = float(level[row, column])
        number = window.document
        made.append(Event(watch.entry, watch.latent, value, number, domains[number], sources[number], position, text))
    return made


def _summary(watch: Watch, count: int, total: float, touched: int, sums: np.ndarray) -> WatchFigures:
    elsewhere, at = (float(row[1] / row[0]) if row[0] else None for row in sums)
    mean = total / count if count else None
    share = count / max(1, touched)
    return WatchFigures(**asdict(watch), events=count, share=share, mean_value=mean,
                        delta_ce_at_events=at, delta_ce_elsewhere=elsewhere)  # fmt: skip
