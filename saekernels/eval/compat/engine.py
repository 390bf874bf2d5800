"""SAELens', SAEBench's and dictionary_learning's metrics on given batches of tokens.

Their rules are kept, right or wrong: what is masked, ablated, and averaged over what (docs/how-to/compat.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.eval.compat.activity import Activity
from saekernels.eval.compat.clean import CleanStream
from saekernels.eval.compat.formulas import FORMULAS, PEERS, Losses, Peer, PeerMetrics
from saekernels.eval.passes.constant_ablation import ConstantRun, find_constant
from saekernels.eval.passes.head import find_head
from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.passes.layer_reuse import CLEAN, LayerReuse, check_reuse, find_reuse
from saekernels.eval.passes.plan import Run, site_of
from saekernels.eval.passes.trial import try_sites
from saekernels.parallel.devices import input_device
from saekernels.sae.module import SAE
from saekernels.splice.context import splice


def peer_metrics(
    peer: Peer,
    model: Any,
    saes: Mapping[str, SAE],
    batches: Iterable[Tensor],
    *,
    ignore: Sequence[int] = (),
    keep_ignored: bool = True,
    pad: int | None = None,
) -> list[PeerMetrics]:
    """The metrics that `peer` would report for each SAE, on these batches of token ids [B, S].

    Args:
        peer: "saelens", "saebench" or "dictionary_learning".
        model: a `transformers` causal LM or a TransformerLens HookedTransformer.
        saes: site -> SAE (or "SITE#LABEL"); each reads and replaces the same activation, as the peers assume.
        batches: token ids, int64 [B, S], no padding in SAELens and SAEBench; gone through once.
        ignore: special token ids. SAELens and SAEBench leave their positions out of the metrics; dictionary_learning
            has no such rule.
        keep_ignored: whether `ignore` positions keep their activation in the splice: SAELens always; SAEBench only
            with `exclude_special_tokens_from_reconstruction`; dictionary_learning never.
        pad: the padding id that dictionary_learning leaves out as a *target*; None for none.

    Raises InputError for an unknown peer, a transcoder (whose splice the peers get wrong), or no batches.
    """
    if peer not in PEERS:
        raise InputError(f"peer: got {peer!r}, need one of {', '.join(PEERS)}")
    for entry, sae in saes.items():
        if "@" in entry or "->" in entry or sae.d_in != sae.d_out:
            raise InputError(f"saes: {entry!r} is no SAE of one activation; {peer} evaluates transcoders wrongly")
    keep_ignored = keep_ignored and peer != "dictionary_learning"
    with torch.inference_mode():
        engine = _Engine(model, find_head(model), saes, list(ignore), keep_ignored)
        for batch in batches:
            engine.add(batch, pad if peer == "dictionary_learning" else None, peer == "dictionary_learning")
    if engine.losses is None:
        raise InputError("batches: no tokens were given")
    return [FORMULAS[peer](entry, sae, engine.losses[entry], engine.activity[entry]) for entry, sae in saes.items()]


class _Engine:
    """Clean, spliced and zero-ablated runs of every SAE on a batch, and what the formulas need of them."""

    def __init__(self, model: Any, head: Head, saes: Mapping[str, SAE], ignore: list[int], keep: bool) -> None:
        self.model, self.head, self.saes, self.keep = model, head, dict(saes), keep
        self.device = input_device(model)
        self.ignore = torch.tensor(ignore, dtype=torch.int64)
        self.activity = {entry: Activity(sae.n_latents) for entry, sae in saes.items()}
        self.losses: dict[str, Losses] | None = None
        self.runs = {entry: Run("sae", (entry,)) for entry in saes}
        self.reuse: LayerReuse | None = None
        self.constant: dict[tuple[str, int], ConstantRun | None] = {}

    def add(self, ids: Tensor, pad: int | None, every_position: bool) -> None:
        """One batch, ids [B, S]."""
        ids = ids.to(self.device)
        if self.reuse is None:
            self._find_reuse(ids[:1, :16])
        assert self.reuse is not None
        self.losses = self.losses or {entry: Losses() for entry in self.saes}
        kept = ~torch.isin(ids, self.ignore.to(ids.device)) if not every_position else torch.ones_like(ids).bool()
        targets = torch.cat([ids[:, 1:], ids[:, :1]], dim=1).reshape(-1)
        predictions = kept.clone() if not every_position else ids.roll(-1, 1) != (-1 if pad is None else pad)
        predictions[:, -1] = False
        everything = torch.arange(ids.numel())
        with self.reuse.recording(CLEAN):
            clean = CleanStream(self.head, self.head.hidden(ids, everything), targets, 2 * len(self.saes))
        kept_flat, counted = kept.reshape(-1), predictions.reshape(-1)
        streams: list[Tensor | ConstantRun] = [self._spliced(entry, ids, kept) for entry in self.saes]
        streams += [self._zero(entry, ids) for entry in self.saes]
        found = clean.against(streams, torch.arange(ids.shape[1]).repeat(len(ids)))
        spliced, zero = found[: len(self.saes)], found[len(self.saes) :]
        for entry, (ce, kl), (zero_ce, zero_kl) in zip(self.saes, spliced, zero, strict=True):
            losses = self.losses[entry]
            for name, values, mask in (
                ("clean", clean.ce, counted), ("sae", ce, counted), ("zero", zero_ce, counted),
                ("kl", kl, kept_flat), ("zero_kl", zero_kl, kept_flat),
            ):  # fmt: skip
                losses.add(name, values, mask)
        self.reuse.forget()

    def _find_reuse(self, ids: Tensor) -> None:
        try_sites(self.model, self.head.body, self.saes, ids)

        def spliced(run: Run, entries: tuple[str, ...]) -> Tensor:
            with splice(self.model, {site_of(entry): self.saes[entry] for entry in entries}):
                return self.head.body(ids)

        runs = list(self.runs.values())
        self.reuse = check_reuse(find_reuse(self.model, runs), runs, lambda: self.head.body(ids), spliced)

    def _spliced(self, entry: str, ids: Tensor, kept: Tensor) -> Tensor:
        sae, site = self.saes[entry], site_of(entry)
        assert self.reuse is not None

        def replace(x: Tensor, y: Tensor) -> Tensor:
            # As the peers do: decode(encode(x)), which leaves a skip connection out.
            codes = sae.encode(x.to(sae.W_dec))
            x_hat = sae.decode(codes).to(x)
            shape = (*ids.shape, -1)
            self.activity[entry].add(x.reshape(shape), x_hat.reshape(shape), codes, kept)
            return x_hat

        untouched = ~kept if self.keep else None
        with (
            self.reuse.resuming(self.runs[entry]),
            splice(self.model, {site: replace}, replace="function", untouched=untouched),
        ):
            return self.head.hidden(ids, torch.arange(ids.numel()))

    def _zero(self, entry: str, ids: Tensor) -> Tensor | ConstantRun:
        """Zeros everywhere, special positions included, as the peers ablate: final states, or the run if constant."""
        site, length = site_of(entry), ids.shape[1]
        assert self.reuse is not None

        def body(tokens: Tensor) -> Tensor:
            with splice(self.model, {site: None}, replace="zero"):
                return self.head.body(tokens.to(self.device))

        if (site, length) not in self.constant:
            words = torch.arange(self.head.vocabulary)
            self.constant[site, length] = find_constant(
                body, self.head, [], length, words[~torch.isin(words, self.ignore)]
            )
        constant = self.constant[site, length]
        if constant is not None:
            return constant
        with self.reuse.resuming(self.runs[entry]), splice(self.model, {site: None}, replace="zero"):
            return self.head.hidden(ids, torch.arange(ids.numel()))
