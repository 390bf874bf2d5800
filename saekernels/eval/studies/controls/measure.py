"""Measures controls of SAEs that exist: fitted on half of the documents of each domain, measured on the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from saekernels.errors import InputError
from saekernels.eval.passes.calls import eval_mode, trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.head_kinds import Together
from saekernels.eval.passes.plan import site_of
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.passes.two_passes import Advance, Progress
from saekernels.eval.studies.controls.entry import Entry, SiteFit
from saekernels.eval.studies.controls.figures import CLEAN, Losses, seed_figures
from saekernels.eval.studies.controls.options import Options, check_options, groups_of
from saekernels.eval.studies.controls.seeds import Activity
from saekernels.eval.studies.controls.text import Text
from saekernels.eval.studies.family import Family
from saekernels.eval.studies.site_passes import Passes
from saekernels.eval.text.batches import Batch
from saekernels.eval.text.documents import Document
from saekernels.eval.text.windows import Tokens
from saekernels.ops import LinearCeKl


def measure_controls(
    model: Any,
    tokens: Tokens,
    saes: Mapping[str, Any],
    documents: Iterable[Document],
    options: Options | None = None,
    *,
    off: Iterable[Document] | None = None,
    family: Family | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What is in each SAE's error, what SAEs of one site share, and how many bits each takes; JSON-ready.

    Half of the documents of each domain are fitted on, the others are measured. Each SAE is spliced in alone.
    docs/explanation/evaluation.md defines the figures. Memory: the windows, d_in^2 + d_in * d_out doubles per SAE, and
    with "seeds" 16 bytes per active latent of the measured text.

    Args:
        saes: site -> SAE, "SITE#LABEL" for several of one site.
        off: further text, of another distribution, on which SAEs of one site are compared.
        family: models measured on the same documents, beside which losses are set.
        progress: called as progress(done, total), in tokens times forward passes.

    Raises InputError for options out of range, a site that is not there or runs twice, or too little text.
    """
    options = options or Options()
    groups = groups_of(saes, options, off is not None)
    check_options(options, tokens, family)
    head = find_head(model)
    grouped = {entry for group in groups for entry in group}
    with torch.inference_mode(), eval_mode(model):
        ids = trial_ids(model, head.vocabulary, tokens.context)
        check_head(model, head, ids)
        try_sites(model, head.body, saes, ids, options.batch_size)
        passes = Passes(model, head, saes, options.rule)
        reuse = passes.prepare(ids)
        text = Text(documents, tokens, options)
        further = None if off is None else Text(off, tokens, options)
        text.check()
        study = _Study(passes, text, saes, options, Advance(progress, _total(text, further, saes, options)))
        study.fit()
        study.measure(grouped)
        elsewhere = {} if further is None else study.look_elsewhere(further, grouped)
    return study.figures(digests=text.digests, family=family, groups=groups, elsewhere=elsewhere, reuse=reuse)


class _Study:
    """The passes over both halves, and what they add up to."""

    def __init__(self, passes: Passes, text: Text, saes: Mapping[str, Any], options: Options, advance: Advance) -> None:
        self.passes, self.text, self.options, self.advance = passes, text, options, advance
        self.losses = Losses(list(saes), len(text.domains), options.runs)
        self.entries = {entry: Entry(entry, sae, len(text.domains)) for entry, sae in saes.items()}
        self.activity: dict[str, Activity] = {}
        self.touched = [0, 0]

    def fit(self) -> None:
        """The medians of the norms, then every linear map, step and class of the half that is fitted on."""
        if self.options.rule.norm is not None:
            self.passes.find_medians(list(self.text.batches(None)))
            self.advance(self.text.positions(None))
        fits = {
            site: SiteFit(site, [one for name, one in self.entries.items() if site_of(name) == site], self.text.second)
            for site in self.passes.sites
        }
        for batch in self.text.batches(True):
            seen, _ = self.passes.look(batch)
            for site, one in seen.items():
                fits[site].add(one)
            self.touched[0] += int(next(iter(seen.values())).touched.sum())
            self.advance(batch.positions)
        if not self.touched[0]:
            raise InputError("controls: no position of the half that is fitted on is touched; leave fewer alone")
        for fit in fits.values():
            fit.finish(self.options.rise)

    def measure(self, grouped: set[str]) -> None:
        """Every splice over the other half."""
        runs = self.options.runs
        self.activity = {entry: Activity(self.entries[entry].sae.n_latents) for entry in grouped}
        for batch in self.text.batches(False):
            seen, clean = self.passes.look(batch, losses=True)
            assert clean is not None
            self.advance(batch.positions)

            def take(key: tuple[str, str], figures: LinearCeKl, batch: Batch = batch) -> None:
                self.losses.add(*key, batch, figures)

            together = Together(self.passes.head, clean, batch.targets, take)
            for name, entry in self.entries.items():
                one = seen[site_of(name)]
                values, codes = entry.replacements(one, runs)
                if name in self.activity:
                    self.activity[name].add(codes, one.touched)
                for run in runs:
                    together.add((name, run), self.passes.plant(batch, name, one, values[run]))
                    self.advance(batch.positions)
            together.flush()
            self.touched[1] += int(next(iter(seen.values())).touched.sum())
            self.passes.forget()

    def look_elsewhere(self, text: Text, grouped: set[str]) -> dict[str, Activity]:
        """What is active on another text, in the clean model."""
        found = {entry: Activity(self.entries[entry].sae.n_latents) for entry in grouped}
        for batch in text.batches(None):
            seen, _ = self.passes.look(batch)
            for entry, activity in found.items():
                one = seen[site_of(entry)]
                activity.add(self.entries[entry].encode(one)[1], one.touched)
            self.advance(batch.positions)
        return found

    def figures(
        self,
        digests: Sequence[str],
        family: Family | None,
        groups: Sequence[Sequence[str]],
        elsewhere: Mapping[str, Activity],
        reuse: str,
    ) -> dict[str, Any]:
        """All of it, JSON-ready; `positions` are those that are touched at the first site."""
        options, text = self.options, self.text
        draws = (options.bootstrap, options.seed)
        fitted = sum(text.fitted)
        found: dict[str, Any] = {
            "documents": {"fitted": fitted, "measured": len(text.fitted) - fitted},
            "tokens": self.losses.tokens,
            "positions": dict(zip(("fitted", "measured"), self.touched, strict=True)),
            "mask": {"leave_first": options.rule.first, "leave_norm": options.rule.norm},
            "rise": options.rise,
            "seed": options.seed,
            "bootstrap": options.bootstrap,
            "run": {"passes": self.passes.made, "layer_reuse": reuse},
            "notes": [],
            "clean_ce": self.losses.ce(CLEAN),
            "sites": [],
        }
        worth: dict[Any, Any] = {}
        if family is not None and "bits" in options.parts:
            try:
                worth, found["notes"] = self.losses.worth(family, digests, *draws)
            except InputError as error:
                found["notes"].append(f"Left out: {error}.")
        for name, entry in self.entries.items():
            row = {**entry.figures(options.runs), "runs": self.losses.run_figures(name, *draws)}
            if "error" in options.parts:
                row["error"] = entry.scores.figures(entry.map, *draws)
            row["worth"] = {run: worth[key, run] for key, run in worth if key == name}
            found["sites"].append(row)
        if "seeds" in options.parts:
            saes = {name: entry.sae for name, entry in self.entries.items()}
            found["seeds"] = [seed_figures(one, saes, self.losses, self.activity, elsewhere, *draws) for one in groups]
        return found


def _total(text: Text, further: Text | None, saes: Mapping[str, Any], options: Options) -> int:
    norms = text.positions(None) if options.rule.norm is not None else 0
    elsewhere = further.positions(None) if further is not None else 0
    return norms + text.positions(True) + text.positions(False) * (1 + len(saes) * len(options.runs)) + elsewhere
