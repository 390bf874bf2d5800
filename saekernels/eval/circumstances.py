"""What a report says beside its figures: of which model, how it was done, and notes on data, head and SAEs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from saekernels.display.numbers import counted
from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.passes.moments import Collector
from saekernels.eval.passes.plan import site_of
from saekernels.eval.passes.runner import Runner
from saekernels.eval.passes.two_passes import Work
from saekernels.eval.store.provenance import provenance
from saekernels.eval.store.window_files import Spool
from saekernels.eval.text.windows import Tokens
from saekernels.splice.contradictions import contradictions
from saekernels.splice.sites import resolve_site


def name_of(model: Any) -> str:
    """The name that a model was loaded by, or its class."""
    config = getattr(model, "config", None)
    return getattr(config, "_name_or_path", "") or type(model).__name__


def run_facts(runner: Runner, work: Work, device: torch.device) -> dict[str, Any]:
    """How it was done; nothing of it changes a figure."""
    return {
        "device": str(device),
        "dtype": str(runner.head.dtype).removeprefix("torch."),
        "head": runner.head.kind,
        "batch_size": work.batch_size,
        "processes": work.ranks.size,
        "passes": runner.passes() + 1,
        "layer_reuse": f"off: {runner.reuse.why}" if runner.reuse.why else "on",
        "computed_once": sorted(runner.constant),
        "seconds": round(time.perf_counter() - work.started, 3),
        **provenance(runner.model),
    }


def head_notes(model: Any, head: Head) -> list[str]:
    """How logits were taken, where not by the fast way."""
    how = {"module": "came from its head module", "whole": "were taken whole from every pass"}.get(head.kind)
    kind = type(model).__name__
    return [] if how is None else [f"Logits of {kind} {how}: the same figures as by a linear head, slower."]


def left_facts(collector: Collector) -> dict[str, Any]:
    """What was left for its norm, by site: positions, of how many, and the norms of both ends that they exceed."""
    limits = collector.left.limits()
    if not limits:
        return {}
    found = {}
    for site, (touched, left) in ((site, counts.tolist()) for site, counts in collector.touched.items()):
        read, replaced = limits[site]
        found[site] = {"left": left, "positions": touched + left, "read_above": read, "replaced_above": replaced}
    return {"left": found}


def left_notes(collector: Collector) -> list[str]:
    """How much was left for its norm, in a line."""
    ratio = collector.left.rule.norm
    if ratio is None:
        return []
    shares = {site: float(left / max(1, touched + left)) for site, (touched, left) in collector.touched.items()}
    most = max(shares, key=lambda site: shares[site])
    return [
        f"Left for a norm above {ratio:g} times the median: at most {shares[most]:.2%} of a site's positions (at "
        f"{most}), {sum(shares.values()) / len(shares):.2%} on average."
    ]


def data_notes(spool: Spool, wanted: int | None) -> list[str]:
    """What the text lacks, of what was asked for."""
    notes = []
    if wanted is not None and spool.tokens < wanted:
        found = counted(spool.tokens, "countable token")
        notes.append(f"The data hold only {found} of the {wanted:,} asked for.")
    if spool.left_out:
        notes.append(f"Left out: {counted(spool.left_out, 'record')} without text (empty or null).")
    if not spool.has_bytes:
        why = "Tokens were given in place of texts" if spool.tokenized else "The tokenizer gives no character offsets"
        notes.append(f"{why}, so bits per byte are unknown.")
    return notes


def origin_notes(model: Any, saes: Mapping[str, Any], tokens: Tokens) -> list[str]:
    """Where this evaluation is another than what the SAEs' checkpoints say that they were trained on, a note each."""
    notes: list[str] = []
    begins_with_bos = getattr(tokens.tokenizer, "bos_token_id", None) in tokens.prefix
    for entry, sae in saes.items():
        metadata = getattr(sae, "metadata", None)
        if metadata is None:
            continue
        site = resolve_site(model, site_of(entry))
        notes += [f"At {told}." for told in contradictions(model, site, metadata)]
        if metadata.prepend_bos is not None and metadata.prepend_bos != begins_with_bos:
            trained, now = ("with", "without") if metadata.prepend_bos else ("without", "with")
            notes.append(f"At {entry!r}: the SAE was trained {trained} a BOS token before each text, and is run {now}.")
        if metadata.context is not None and tokens.context > metadata.context:
            windows = f"windows of {metadata.context} tokens, and is run on windows of {tokens.context}"
            notes.append(f"At {entry!r}: the SAE was trained on {windows}.")
    return list(dict.fromkeys(notes))
