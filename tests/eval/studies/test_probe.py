"""Probes on labelled texts: against plain hooks, scipy's fits, all pairs and full logits; and what must not leak."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import tiny_lm
from logistic_reference import by_scipy
from saekernels.eval import InputError
from saekernels.eval.passes import left
from saekernels.eval.studies.probe import measure
from saekernels.eval.studies.probe.activations import Features, Latents
from saekernels.eval.studies.probe.measure import measure_probes
from saekernels.eval.studies.probe.split import FOLDS, shifts_of, split_texts
from saekernels.eval.sums.auroc import resampled_rows
from saekernels.eval.text.batches import batches
from saekernels.eval.text.labelled import Completion, LabelledSet, LabelledText
from saekernels.splice.context import splice
from tiny_lm import SITES

SUBJECTS = ("The keeper", "the café owner", "Nobody", "Some days", "tourists", "he", "the light", "two ships")
VERBS = {"prose": (" read", " kept"), "code": (" read()", " log(light)")}


@functools.cache
def labelled() -> LabelledSet:
    """Texts of two kinds with endings that are right or wrong; a group is a subject with a verb of either template."""
    texts = []
    for number, subject in enumerate(SUBJECTS):
        for (template, verbs), language in itertools.product(VERBS.items(), ("x", "y")):
            for verb in verbs:
                # Half of the answers are right by a rule that the subject's number gives.
                for ending in (" every morning", " sum(log)"):
                    front = ("" if language == "x" else "It ") + subject + verb
                    right, wrong = (" every morning", " sum(log)")[:: 1 if number % 2 else -1]
                    done = Completion(front, right, wrong, ending == right)
                    label = str(ending == right).lower()
                    fields = {"template": template, "language": language}
                    texts.append(LabelledText(front + ending, label, f"{number} {verb}", fields, done))
    return LabelledSet("small", tuple(texts), "true", ("template", "language"))


@functools.cache
def found(position: str = "last", train: str = "rest", batch_size: int = 8) -> dict[str, Any]:
    return measure_probes(
        tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes(), [labelled()], position=position,
        latents=(1, 5), train=train, bootstrap=60, batch_size=batch_size, seed=3,
    )  # fmt: skip


@functools.cache
def plain(position: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations, reconstruction and dense codes of every text after layer `number`, one text at a time."""
    model, sae = tiny_lm.trained_model(), tiny_lm.saes()[SITES[number]]
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(SITES[number]).register_forward_hook(lambda m, a, out: seen.append(out))
    rows = []
    with torch.inference_mode():
        for text in labelled().texts:
            seen.clear()
            model(tiny_lm.tokenizer()(text.text, return_tensors="pt")["input_ids"])
            x = seen[0][0][-1:] if position == "last" else seen[0][0][1:]
            rows.append([one.double().mean(0) for one in (x, sae(x), sae.encode(x).to_dense())])
    handle.remove()
    return tuple(torch.stack(part).numpy() for part in zip(*rows, strict=True))  # type: ignore[return-value]


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    a, b = scores[positive], scores[~positive]
    return float((a[:, None] > b).mean() + (a[:, None] == b).mean() / 2)


def best(codes: np.ndarray, positive: np.ndarray, k: int) -> list[int]:
    a, b = codes[positive], codes[~positive]
    within = ((a - a.mean(0)) ** 2).sum(0) + ((b - b.mean(0)) ** 2).sum(0)
    apart = np.abs(a.mean(0) - b.mean(0)) / np.sqrt(np.maximum(within / (len(codes) - 2), 1e-24))
    return [int(i) for i in np.argsort(-apart, kind="stable")[:k] if apart[i] > 0]


def scored(read: np.ndarray, positive: np.ndarray, fitted: np.ndarray, penalty: float) -> np.ndarray:
    own = read[fitted]
    scale = np.where(own.std(0) > 0, own.std(0), np.inf)
    at = by_scipy((own - own.mean(0)) / scale, positive[fitted], penalty)
    return (read - own.mean(0)) / scale @ at[:-1] + at[-1]


@pytest.mark.parametrize(("position", "train"), [("last", "rest"), ("mean", "one")])
@pytest.mark.parametrize("number", [0, 1])
def test_every_auroc_by_hooks_scipy_and_pairs(position: str, train: str, number: int) -> None:
    given, split = labelled(), split_texts(labelled(), 3)
    positive, held = split.positive, split.held
    x, x_hat, codes = plain(position, number)
    site = found(position, train)["sets"][0]["sites"][number]
    assert site["fvu"] == pytest.approx(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-3)
    assert site["l0"] == pytest.approx((codes != 0).sum(1).mean())
    reads = {"activations": x, "reconstruction": x_hat, "error": x - x_hat}
    for method in site["methods"]:

        def read(fitted: np.ndarray, told: dict[str, Any], name: str = method["method"]) -> np.ndarray:
            if name in reads:
                return reads[name]
            assert told["latents"] == best(codes[fitted], positive[fitted], int(name.split()[0]))
            return codes[:, told["latents"]]

        scores = scored(read(~held, method), positive, ~held, method["penalty"])
        assert method["in"]["value"] == pytest.approx(auroc(scores[held], positive[held]), abs=0.004)
        for field in ("template", "language"):
            values = method["out"][field]["values"]
            assert set(values) == {text.fields[field] for text in given.texts}
            outside, inside = [], []
            for value, one in values.items():
                own = np.array([text.fields[field] == value for text in given.texts])
                fitted, tested = (own, ~own) if train == "one" else (~own, own)
                fitted, tested = fitted & ~held, tested & held
                other = scored(read(fitted, one), positive, fitted, one["penalty"])
                outside.append(auroc(other[tested], positive[tested]))
                inside.append(auroc(scores[tested], positive[tested]))
                assert one["value"] == pytest.approx(outside[-1], abs=0.004)
                assert one["minus_in"] == pytest.approx(outside[-1] - inside[-1], abs=0.008)
                assert one["positive"] + one["negative"] == tested.sum()
            assert method["out"][field]["value"] == pytest.approx(np.mean(outside), abs=0.004)
            assert method["out"][field]["minus_in"] == pytest.approx(np.mean(outside) - np.mean(inside), abs=0.008)


def test_intervals_are_those_of_a_plain_bootstrap_and_differences_are_paired() -> None:
    split = split_texts(labelled(), 3)
    positive, held = split.positive[split.held], split.held
    names, groups = np.unique(split.groups[held], return_inverse=True)
    draws = np.concatenate(list(resampled_rows(groups, [split.strata[i] for i in names], 60, (3, 12))))
    dense, _, error, *_ = found()["sets"][0]["sites"][0]["methods"]
    x, x_hat, _ = plain("last", 0)
    replicates = []
    for read, method in ((x, dense), (x - x_hat, error)):
        scores = scored(read, split.positive, ~held, method["penalty"])[held]
        rows = [np.repeat(np.arange(len(scores)), row.astype(int)) for row in draws]
        replicates.append(np.array([auroc(scores[row], positive[row]) for row in rows]))
        low, high = np.percentile(replicates[-1], [2.5, 97.5])
        assert method["in"]["ci95"] == pytest.approx([low, high], abs=0.005)
    low, high = np.percentile(replicates[1] - replicates[0], [2.5, 97.5])
    assert error["in"]["minus_dense"] == pytest.approx(error["in"]["value"] - dense["in"]["value"])
    assert error["in"]["minus_dense_ci95"] == pytest.approx([low, high], abs=0.008)
    assert dense["in"]["minus_dense_ci95"] == pytest.approx([0.0, 0.0])


def log_p(done: Completion, continuation: str, saes: dict[str, Any] | None) -> float:
    model, tokenizer = tiny_lm.trained_model(), tiny_lm.tokenizer()
    front = tokenizer(done.prompt)["input_ids"]
    ids = tokenizer(continuation, add_special_tokens=False)["input_ids"]
    whole = torch.tensor([front + ids])
    untouched = torch.isin(whole, torch.tensor([0, 1, 2]))
    with torch.inference_mode(), splice(model, saes, untouched=untouched) if saes else contextlib.nullcontext():
        logp = model(whole).logits[0].double().log_softmax(-1)
    return sum(float(logp[len(front) - 1 + i, token]) for i, token in enumerate(ids))


def test_the_models_own_answer_by_full_logits() -> None:
    split = split_texts(labelled(), 3)
    texts = [text for text, held in zip(labelled().texts, split.held, strict=True) if held]
    rows = found()["sets"][0]["answers"]
    saes = tiny_lm.saes()
    splices = [None, *({site: saes[site]} for site in SITES), saes]
    assert [row["splice"] for row in rows] == ["clean", *SITES, "all"]
    clean = 0.0
    for row, spliced in zip(rows, splices, strict=True):
        answer, foil = (np.array([log_p(text.completion, one, spliced) for text in texts for one in [pick(text)]])
                        for pick in (lambda t: t.completion.answer, lambda t: t.completion.foil))  # fmt: skip
        assert row["logit_difference"]["value"] == pytest.approx((answer - foil).mean(), abs=1e-4)
        assert row["accuracy"]["value"] == (answer > foil).mean()
        assert row["ce_answer"]["value"] == pytest.approx(-answer.mean(), abs=1e-4)
        assert row["ce_foil"]["value"] == pytest.approx(-foil.mean(), abs=1e-4)
        positive = np.array([text.label == "true" for text in texts])
        own = auroc(np.where(positive, answer, foil), positive)
        assert row["own_score_auroc"]["value"] == pytest.approx(own, abs=0.004)
        clean = clean or row["own_score_auroc"]["value"]
        if spliced:
            assert row["own_score_auroc"]["minus_clean"] == pytest.approx(row["own_score_auroc"]["value"] - clean)


def test_without_a_bos_the_first_position_is_left_alone_and_out() -> None:
    plain_tokenizer = tiny_lm.tokenizer(False)
    one = replace(labelled(), shifts=())
    model, saes = tiny_lm.trained_model(), {SITES[0]: tiny_lm.sae(0)}
    result = measure_probes(
        model, plain_tokenizer, saes, [one], position="mean", latents=(1,), bootstrap=0, seed=3, leave_first=1
    )
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(SITES[0]).register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.inference_mode():
        for text in one.texts:
            model(plain_tokenizer(text.text, return_tensors="pt")["input_ids"])
    handle.remove()
    sae = saes[SITES[0]]
    x = torch.stack([h[0][1:].double().mean(0) for h in seen])
    with torch.inference_mode():
        x_hat = torch.stack([sae(h[0][1:]).double().mean(0) for h in seen])
    want = float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())
    assert result["sets"][0]["sites"][0]["fvu"] == pytest.approx(want, rel=1e-3)
    held = split_texts(one, 3).held
    differences = []
    for text in (text for text, own in zip(one.texts, held, strict=True) if own):
        front = plain_tokenizer(text.completion.prompt)["input_ids"]
        scores = []
        for continuation in (text.completion.answer, text.completion.foil):
            ids = plain_tokenizer(continuation)["input_ids"]
            whole = torch.tensor([front + ids])
            untouched = torch.zeros_like(whole, dtype=torch.bool)
            untouched[:, 0] = True
            with torch.inference_mode(), splice(model, saes, untouched=untouched):
                logp = model(whole).logits[0].double().log_softmax(-1)
            scores.append(sum(float(logp[len(front) - 1 + i, token]) for i, token in enumerate(ids)))
        differences.append(scores[0] - scores[1])
    row = result["sets"][0]["answers"][1]
    assert row["logit_difference"]["value"] == pytest.approx(np.mean(differences), abs=1e-4)


def test_same_bits_again_and_the_batch_size_changes_nothing_that_shows() -> None:
    arguments = (tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes(), [labelled()])
    options = {"position": "last", "latents": (1, 5), "train": "rest", "bootstrap": 60, "seed": 3}
    assert measure_probes(*arguments, **options) == found()
    other = measure_probes(*arguments, **options, batch_size=1)
    for one, two in zip(found()["sets"][0]["sites"], other["sets"][0]["sites"], strict=True):
        for a, b in zip(one["methods"], two["methods"], strict=True):
            assert a["in"]["value"] == pytest.approx(b["in"]["value"], abs=0.004)


@pytest.mark.parametrize("position", ["last", "mean"])
def test_passes_end_at_the_last_site_and_are_made_once(position: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is kept between them, the bits are the same; behind the site one pass computes anything."""
    model, cutter = tiny_lm.trained_model(), tiny_lm.tokens()
    asked = labelled().texts[:64]
    texts = tuple(replace(text, completion=None) for text in asked)
    windows = [own[0] for own in cutter.cut([text.text for text in texts], 0)]
    parts = list(batches(windows, 2, max(len(w.ids) for w in windows), 1))
    assert len(parts) > 5
    counts: Counter[str] = Counter()
    handles = [model.get_submodule(site).register_forward_hook(lambda *_, site=site: counts.update([site]))
               for site in SITES]  # fmt: skip

    def measured(most: int, norm: float | None = 1.05, texts: Any = texts) -> tuple[Any, Counter[str]]:
        counts.clear()
        monkeypatch.setattr(left, "MOST_KEPT", most)
        one = measure_probes(
            model, tiny_lm.tokenizer(), {SITES[0]: tiny_lm.sae(0)}, [replace(labelled(), texts=texts, shifts=())],
            position=position, latents=(1,), bootstrap=0, batch_size=2, leave_first=1, leave_norm=norm,
        )  # fmt: skip
        return one["sets"], counts.copy()

    try:
        everything, nothing, half = (measured(most) for most in (2**28, 0, sum(p.ids.numel() for p in parts) * 16))
        no_norms = measured(2**28, None)
        answers, twice, plain_answers = (measured(*how, asked) for how in ((2**28, 1.05), (0, 1.05), (2**28, None)))
    finally:
        for handle in handles:
            handle.remove()
    assert everything[0] == nothing[0] == half[0] != no_norms[0]
    seen, behind = ([one[1][site] for one in (everything, half, nothing, no_norms)] for site in SITES)
    assert len(set(behind)) == 1
    assert seen[0] == seen[3] == behind[0] + len(parts) - 1
    assert seen[2] == seen[0] + len(parts)
    assert seen[0] < seen[1] < seen[2]
    # The model's own answers go to the end, clean and spliced, once each; the first pass of the texts does, too.
    assert answers[0] == twice[0]
    assert answers[0][0]["answers"][1] != plain_answers[0][0]["answers"][1]
    whole = [one[1][SITES[1]] for one in (plain_answers, answers, twice)]
    assert whole[0] == whole[1] < whole[2]


def test_no_group_is_on_both_sides_and_no_value_in_the_fit_that_it_tests() -> None:
    given = labelled()
    for seed in range(5):
        split = split_texts(given, seed)
        groups = np.array([text.group for text in given.texts])
        assert not set(groups[split.held]) & set(groups[~split.held])
        assert 0.2 < split.held.mean() < 0.4
        assert all(len(set(split.folds[groups == name])) == 1 for name in groups)
        assert set(split.folds[~split.held]) == set(range(FOLDS))
        for train in ("rest", "one"):
            shifts, notes = shifts_of(given, split, train)
            assert (len(shifts), notes) == (4, [])
            for shift in shifts:
                values = np.array([text.fields[shift.field] for text in given.texts])
                inside, outside = (shift.train, shift.test) if train == "one" else (shift.test, shift.train)
                assert set(values[inside]) == {shift.value}
                assert shift.value not in set(values[outside])
                assert not (shift.train & split.held).any()
                assert split.held[shift.test].all()
    assert (split_texts(given, 0).held != split_texts(given, 1).held).any()


def crafted(label_in_error: bool = False) -> tuple[Features, Any]:
    """Noise, and two latents: 0 tells held-out texts apart and no others, 1 tells the fitted ones a little."""
    split = split_texts(labelled(), 3)
    rng = np.random.default_rng(0)
    n = len(split.held)
    codes = np.zeros((n, 4))
    codes[:, 0] = split.positive & split.held
    codes[:, 1] = (rng.random(n) < np.where(split.positive, 0.7, 0.3)) & ~split.held
    codes[:, 2] = rng.random(n)
    rows, columns = codes.nonzero()
    values = torch.from_numpy(codes[rows, columns])
    latents = Latents(torch.from_numpy(rows), torch.from_numpy(columns), values, 4)
    noise = torch.from_numpy(rng.normal(size=(n, 6)))
    error = torch.zeros(n, 6, dtype=torch.float64)
    if label_in_error:
        error[:, 2] = torch.from_numpy(np.where(split.positive, 1e-3, -1e-3))
    return Features(noise + error, noise, latents), split


def test_latents_are_chosen_on_the_fitted_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    features, split = crafted()
    assert features.latents.best(split.positive, ~split.held, 1) == [1]
    assert features.latents.best(split.positive, np.ones_like(split.held), 1) == [0], "what a leak would choose"
    monkeypatch.setattr(measure, "features_of", lambda model, head, saes, *_: dict.fromkeys(saes, features))
    result = measure_probes(
        tiny_lm.trained_model(), tiny_lm.tokenizer(), {SITES[0]: tiny_lm.sae(0)}, [labelled()], latents=(1,),
        bootstrap=0, seed=3,
    )  # fmt: skip
    one = result["sets"][0]["sites"][0]["methods"][3]
    assert one["latents"] == [1]
    assert one["in"]["value"] == 0.5, "latent 1 is silent on held-out texts, where latent 0 would give 1.0"


def test_a_label_that_only_the_error_has(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = crafted(label_in_error=True)
    monkeypatch.setattr(measure, "features_of", lambda model, head, saes, *_: dict.fromkeys(saes, features))
    result = measure_probes(
        tiny_lm.trained_model(), tiny_lm.tokenizer(), {SITES[0]: tiny_lm.sae(0)}, [labelled()], latents=(1,),
        bootstrap=0, seed=3,
    )  # fmt: skip
    figures = {one["method"]: one["in"]["value"] for one in result["sets"][0]["sites"][0]["methods"]}
    assert figures["error"] == 1.0
    assert figures["reconstruction"] < 0.8
    assert figures["activations"] < 0.8


def test_two_saes_of_one_site_each_have_their_own_figures() -> None:
    saes = {SITES[0]: tiny_lm.sae(0), f"{SITES[0]}#other": tiny_lm.sae(5)}
    one = replace(labelled(), shifts=())
    arguments = (tiny_lm.trained_model(), tiny_lm.tokenizer())
    both = measure_probes(*arguments, saes, [one], latents=(1,), bootstrap=0)["sets"][0]
    for site in both["sites"]:
        alone = measure_probes(*arguments, {SITES[0]: saes[site["site"]]}, [one], latents=(1,), bootstrap=0)
        assert {**alone["sets"][0]["sites"][0], "site": site["site"]} == site
    assert both["sites"][0]["fvu"] != both["sites"][1]["fvu"]


def few(number: int, label: str = "true") -> LabelledSet:
    own = [text for text in labelled().texts if text.label == label][:number]
    return replace(labelled(), texts=(*own, *(text for text in labelled().texts if text.label != label)))


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (few(6), "labels: small: 3 positive texts to fit on, need at least 8 of each class on either side"),
        (replace(labelled(), texts=(*labelled().texts, LabelledText("a", "true", "z", labelled().texts[0].fields))),
         "labels: small has fewer than two tokens: 'a'"),
        (replace(labelled(), texts=(*labelled().texts, LabelledText(tiny_lm.PARAGRAPH, "true", "z",
                                                                     labelled().texts[0].fields))),
         "labels: small has more than 24 tokens: 'The old lighthouse keeper wrote down th"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_used(one: LabelledSet, message: str) -> None:
    with pytest.raises(InputError) as caught:
        measure_probes(tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes(), [one], bootstrap=0)
    assert message in str(caught.value)


def test_a_kind_with_too_few_texts_is_left_out_with_a_note() -> None:
    rare = [replace(text, fields={**text.fields, "language": "z"}) for text in labelled().texts[:8]]
    one = replace(labelled(), texts=(*rare, *labelled().texts[8:]))
    shifts, notes = shifts_of(one, split_texts(one, 3), "rest")
    assert ("language", "z") not in {(shift.field, shift.value) for shift in shifts}
    assert any(note.startswith("Left out: small, language z: ") for note in notes)
    assert all(note.endswith("need at least 8 of each class.") for note in notes)


def test_what_is_left_is_left_in_every_splice_and_out_of_the_mean() -> None:
    one = replace(labelled(), shifts=())
    arguments = (tiny_lm.trained_model(), tiny_lm.tokenizer(), {SITES[0]: tiny_lm.sae(0)}, [one])
    options = {"position": "mean", "latents": (1,), "bootstrap": 0, "seed": 3}
    left = measure_probes(*arguments, **options, leave_norm=1.0001)["sets"][0]
    plain_one = measure_probes(*arguments, **options)["sets"][0]
    assert left["sites"][0]["fvu"] != plain_one["sites"][0]["fvu"]
    assert left["answers"][0] == plain_one["answers"][0], "the clean model is the same"
    assert left["answers"][1]["ce_foil"]["value"] != plain_one["answers"][1]["ce_foil"]["value"]
    far = measure_probes(*arguments, **options, leave_norm=1e9)["sets"][0]
    assert far == plain_one
    with pytest.raises(InputError, match=r"labels: text \d+ has no position left; see --leave-first and --leave-norm"):
        measure_probes(*arguments, **options, leave_first=10)
