"""Probes on labelled texts at each site, in and out of the distribution that they are fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.display.numbers import counted
from saekernels.errors import InputError
from saekernels.eval.passes.calls import token_rows, trial_ids
from saekernels.eval.passes.continuations import Sequences, positions
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.left import SiteNorms, rule_text
from saekernels.eval.passes.plan import first_of_each_site
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.passes.two_passes import Advance, Progress
from saekernels.eval.studies.probe import answers, logistic, split
from saekernels.eval.studies.probe.activations import POSITIONS, Features, Position, features_of, passes
from saekernels.eval.studies.probe.figures import Draws, Values, figure, mean_of
from saekernels.eval.studies.probe.split import Shift, Split, Train
from saekernels.eval.text.labelled import LabelledSet
from saekernels.eval.text.windows import Tokens, Window, context_of
from saekernels.sae.module import SAE
from saekernels.splice.leave import Leave

DENSE = "activations"


@dataclass(frozen=True)
class _Work:
    """A labelled set, cut and split; sequences: of the held-out texts' completions, if all have one."""

    given: LabelledSet
    split: Split
    shifts: list[Shift]
    notes: list[str]
    windows: list[Window]
    sequences: Sequences


@dataclass(frozen=True)
class _Scores:
    """What a method makes of all texts [n]: fitted on every training text, and under each shift; and how."""

    whole: np.ndarray
    shifted: list[np.ndarray]
    told: list[dict[str, Any]]


def measure_probes(
    model: Any,
    tokenizer: Any,
    saes: Mapping[str, SAE],
    sets: Sequence[LabelledSet],
    *,
    position: Position = "last",
    latents: Sequence[int] = (1, 5, 20),
    train: Train = "rest",
    bos: bool | None = None,
    batch_size: int = 8,
    bootstrap: int = 1000,
    seed: int = 0,
    leave_first: int = 0,
    leave_norm: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Probes of each set's label at each SAE's site, JSON-ready.

    On the activations, their reconstruction, the error between them, and on k latents for each k of `latents`, which
    are chosen on the training texts alone; AUROC over held-out texts, in the distribution fitted on and under each
    shift; where texts have completions, what each splice does to the model's own answer, `leave_first` and `leave_norm`
    saying which positions it leaves, as for `evaluate`.

    Raises InputError for texts that cannot be used: too few of a class, too short, too long for the model.
    """
    for entry, sae in saes.items():
        if wrong := [k for k in latents if not 1 <= k <= sae.n_latents]:
            raise InputError(f"latents: {entry} has {sae.n_latents}, need 1 to as many, got {wrong[0]}")
    head = find_head(model)
    tokens = Tokens(tokenizer, context_of(model, tokenizer, None), bos=bos, rows=token_rows(model, head.vocabulary))
    with torch.inference_mode():
        ids = trial_ids(model, head.vocabulary, tokens.context)
        check_head(model, head, ids)
        try_sites(model, head.body, saes, ids, batch_size)
        work = [_prepared(model, tokens, one, train, seed) for one in sets]
        rule = Leave(leave_first, leave_norm)
        left = SiteNorms(model, head, first_of_each_site(saes), rule)
        advance = Advance(progress, sum(_positions(one, saes, rule) for one in work))
        made = []
        for one in work:
            features = features_of(model, head, saes, one.windows, position, rule, batch_size, advance)
            draws = Draws(one.split, bootstrap, seed)
            own = None
            if one.sequences:
                texts = [text for text, held in zip(one.given.texts, one.split.held, strict=True) if held]
                own = answers.answers(
                    left, tokens, saes, one.sequences, texts, draws, batch_size=batch_size, advance=advance
                )
            with logistic.one_thread():
                sites = [_site(entry, features.pop(entry), one, draws, latents) for entry in saes]
            made.append({**_told(one), "sites": sites, "answers": own})
    rules = {"position": POSITIONS[position], "split": split.RULE, "out": split.HOW[train], "fit": logistic.RULE}
    rules["answers"] = answers.RULE + ". Spliced: every position that is not special." + rule_text(rule)
    options = {"position": position, "latents": list(latents), "train": train, "bootstrap": bootstrap, "seed": seed,
               "leave_first": leave_first, "leave_norm": leave_norm}  # fmt: skip
    return {"kind": "probe", **options, "rules": rules, "sets": made}


def _prepared(model: Any, tokens: Tokens, given: LabelledSet, train: Train, seed: int) -> _Work:
    parted = split.split_texts(given, seed)
    shifts, notes = split.shifts_of(given, parted, train)
    windows = []
    cut = tokens.cut([text.text for text in given.texts], 0)
    for number, (text, own) in enumerate(zip(given.texts, cut, strict=True)):
        if len(own) != 1:
            room = f"more than {tokens.context} tokens" if own else "fewer than two tokens"
            raise InputError(f"labels: {text.where or given.name} has {room}: {text.text!r:.40}")
        windows.append(replace(own[0], document=number))
    held = [text for text, one in zip(given.texts, parted.held, strict=True) if one]
    sequences = answers.sequences_of(model, tokens, held, given.name)
    return _Work(given, parted, shifts, notes, windows, sequences)


def _positions(one: _Work, saes: Mapping[str, SAE], rule: Leave) -> int:
    runs = 1 + len(answers.splices_of(saes)) + (rule.norm is not None)
    return sum(len(window.ids) for window in one.windows) * passes(saes, rule) + positions(one.sequences) * runs


def _told(one: _Work) -> dict[str, Any]:
    """What a set is, and how it was split."""
    held = one.split.held
    labels = {text.label for text in one.given.texts} - {one.given.positive}
    sides = {}
    for side, rows in (("fitted_on", ~held), ("tested_on", held)):
        positive = int(one.split.positive[rows].sum())
        groups = len(np.unique(one.split.groups[rows]))
        sides[side] = {"positive": positive, "negative": int(rows.sum()) - positive, "groups": groups}
    return {
        "name": one.given.name,
        "positive": one.given.positive,
        "negative": sorted(labels),
        "shifts": {name: [shift.value for shift in one.shifts if shift.field == name] for name in one.given.shifts},
        **sides,
        "notes": one.notes,
    }


def _site(entry: str, features: Features, one: _Work, draws: Draws, latents: Sequence[int]) -> dict[str, Any]:
    scores = {
        DENSE: _scores(features.activations, one),
        "reconstruction": _scores(features.reconstruction, one),
        "error": _scores(features.error, one),
    }
    for k in latents:
        scores[counted(k, "latent")] = _scores(features, one, k)
    dense: dict[str, Values] = {}
    methods = []
    for name, own in scores.items():
        figures = dict(_figures(own, one, draws))
        dense = dense or figures
        methods.append({"method": name, **_json(own, figures, dense, one, draws)})
    per_text = len(features.latents.values) / max(1, len(features.activations))
    return {"site": entry, "l0": per_text, "fvu": features.fvu, "methods": methods}


def _scores(read: Tensor | Features, one: _Work, k: int | None = None) -> _Scores:
    """read: [n, m], or the features of which the best k latents are read."""
    fitting = ~one.split.held
    found = [_fit(read, one.split, rows, k) for rows in (fitting, *(shift.train for shift in one.shifts))]
    return _Scores(found[0][0], [scores for scores, _ in found[1:]], [told for _, told in found])


def _fit(read: Tensor | Features, parted: Split, rows: np.ndarray, k: int | None) -> tuple[np.ndarray, dict[str, Any]]:
    """(the scores of all texts, how) of a probe fitted on `rows` [n] bool; latents are chosen on these, too."""
    told: dict[str, Any] = {}
    if isinstance(read, Features):
        told["latents"] = read.latents.best(parted.positive, rows, k or 0)
        read = read.latents.dense(told["latents"], len(rows))
    fitted = logistic.fit_probe(read[torch.from_numpy(rows)], parted.positive[rows], parted.folds[rows])
    return fitted.scores(read), {**told, "penalty": fitted.penalty}


def _figures(own: _Scores, one: _Work, draws: Draws) -> Iterable[tuple[str, Values]]:
    """ "in"; per shift "out FIELD VALUE", and "same FIELD VALUE" of the probe of everything on the same texts."""
    held = one.split.held
    yield "in", draws.aurocs(own.whole[held], np.ones(held.sum(), dtype=bool))
    for shift, scores in zip(one.shifts, own.shifted, strict=True):
        chosen = shift.test[held]
        yield f"out {shift.field} {shift.value}", draws.aurocs(scores[held], chosen)
        yield f"same {shift.field} {shift.value}", draws.aurocs(own.whole[held], chosen)


def _json(
    own: _Scores, figures: Mapping[str, Values], dense: Mapping[str, Values], one: _Work, draws: Draws
) -> dict[str, Any]:
    """Figures of one method with their differences: to the dense probe, and to the probe of everything."""
    out: dict[str, Any] = {}
    for field in one.given.shifts:
        numbers = [number for number, shift in enumerate(one.shifts) if shift.field == field]
        if not numbers:
            continue
        names = [f"{field} {one.shifts[number].value}" for number in numbers]
        values = {}
        for number, name in zip(numbers, names, strict=True):
            shift = one.shifts[number]
            others = {"minus_in": figures[f"same {name}"], "minus_dense": dense[f"out {name}"]}
            made = figure(figures[f"out {name}"], others)
            values[shift.value] = {**made, **draws.counts(shift.test[one.split.held]), **own.told[1 + number]}
        means = [mean_of([source[f"{side} {name}"] for name in names])
                 for source, side in ((figures, "out"), (figures, "same"), (dense, "out"))]  # fmt: skip
        out[field] = {**figure(means[0], {"minus_in": means[1], "minus_dense": means[2]}), "values": values}
    inside = figure(figures["in"], {"minus_dense": dense["in"]})
    return {**own.told[0], "in": inside, "out": out}
