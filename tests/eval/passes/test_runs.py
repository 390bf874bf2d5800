"""What a run of many targets gives: baselines against plain hooks, cumulative splices, strata, SAEs of one site."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny_lm
from saekernels.eval import Document, InputError, Report, evaluate
from saekernels.eval.passes.plan import make_plan
from saekernels.eval.passes.random_errors import RandomErrors
from saekernels.eval.sums.accumulate import KlHistogram
from saekernels.eval.text.batches import make_batch
from saekernels.eval.text.strata import make_strata
from saekernels.eval.text.windows import Tokens, chosen
from saekernels.splice.context import splice

SPECIAL = torch.tensor([0, 1, 2])
SITES = tiny_lm.SITES


@functools.cache
def report(**options: Any) -> Report:
    model, tokenizer = tiny_lm.trained_model(), tiny_lm.tokenizer()
    return evaluate(model, tokenizer, tiny_lm.saes(), tiny_lm.documents(), **{"bootstrap": 50, **options})


@functools.cache
def windows() -> list[tuple[Document, Any]]:
    tokens = Tokens(tiny_lm.tokenizer(), 24)
    return [(document, w) for document, many in chosen(tiny_lm.documents(), tokens, None, 0) for w in many]


@torch.inference_mode()
def loss(context: Any, count: list[Tensor] | None = None) -> float:
    """Mean CE over counted predictions with full logits, window by window; context(window) is the splice."""
    model, total, tokens = tiny_lm.trained_model(), 0.0, 0
    for _, window in windows():
        ids = torch.from_numpy(window.ids).long()[None]
        with context(window):
            logits = model(ids).logits[0, :-1].double()
        keep = torch.from_numpy(window.counted)
        ce = F.cross_entropy(logits, ids[0, 1:], reduction="none")[keep]
        total, tokens = total + float(ce.sum()), tokens + int(keep.sum())
        if count is not None:
            count.append(ce)
    return total / tokens


def untouched(window: Any) -> Tensor:
    return torch.from_numpy(window.special)[None]


@pytest.mark.parametrize("chosen_sites", [SITES[:1], SITES[1:], SITES])
def test_the_pca_baseline_is_the_best_affine_map_of_that_rank(chosen_sites: tuple[str, ...]) -> None:
    rows = {site: [] for site in SITES}
    for _, window in windows():
        seen: dict[str, Tensor] = {}
        handles = [
            tiny_lm.trained_model()
            .get_submodule(s)
            .register_forward_hook(lambda m, a, o, s=s, seen=seen: seen.__setitem__(s, o))
            for s in SITES
        ]
        with torch.inference_mode():
            tiny_lm.trained_model()(torch.from_numpy(window.ids).long()[None])
        for handle in handles:
            handle.remove()
        for site in SITES:
            rows[site].append(seen[site][0][~torch.from_numpy(window.special)].double())
    row = report().all_sites if len(chosen_sites) > 1 else report().sites[SITES.index(chosen_sites[0])]
    ranks = row.baselines["pca"].rank
    assert ranks is not None
    assert ranks[0] == (8 if chosen_sites[0] == SITES[0] else ranks[0])
    maps = {}
    for site, rank in zip(chosen_sites, ranks, strict=True):
        x = torch.cat(rows[site])
        mean = x.mean(0)
        basis = torch.linalg.svd(x - mean, full_matrices=False)[2][:rank]
        maps[site] = lambda x, y, m=mean, b=basis: (((x.double() - m) @ b.T) @ b + m).float()

    def spliced(window: Any) -> Any:
        return splice(tiny_lm.trained_model(), maps, replace="function", untouched=untouched(window))

    assert row.baselines["pca"].ce == pytest.approx(loss(spliced), abs=1e-5)
    assert row.baselines["pca"].spliced_minus == pytest.approx(row.ce.spliced - loss(spliced), abs=1e-5)


def test_random_errors_have_the_norm_of_the_saes_and_another_direction() -> None:
    errors = RandomErrors(3)
    batch = make_batch([w for _, w in windows()][:4])
    torch.manual_seed(0)
    target, x_hat = torch.randn(4, batch.ids.shape[1], 32), torch.randn(4, batch.ids.shape[1], 32)
    errors.note("run", "site", x_hat, target)
    made = errors.replace("run", "site", batch, target)
    real = torch.tensor([[i < len(w.ids) for i in range(batch.ids.shape[1])] for w in batch.windows])
    noise, error = (made - target)[real], (x_hat - target)[real]
    torch.testing.assert_close(noise.norm(dim=-1), error.norm(dim=-1))
    cosine = F.cosine_similarity(noise, error, dim=-1)
    assert abs(float(cosine.mean())) < 0.15
    assert float(cosine.abs().max()) < 0.9
    # The same window in another batch, at another place, with heads apart or positions flat.
    alone = make_batch([batch.windows[2]])
    length = alone.ids.shape[1]
    errors.note("run", "site", x_hat[2:3, :length], target[2:3, :length])
    torch.testing.assert_close(errors.replace("run", "site", alone, target[2:3, :length])[0], made[2, :length])
    flat = target.reshape(-1, 32)
    errors.note("run", "site", x_hat.reshape(-1, 32), flat)
    torch.testing.assert_close(errors.replace("run", "site", batch, flat).view_as(made), made)
    other = RandomErrors(4)
    other.note("run", "site", x_hat, target)
    assert float((other.replace("run", "site", batch, target) - made)[real].norm()) > 1


def test_the_random_baseline_is_the_loss_with_those_errors() -> None:
    saes, errors = tiny_lm.saes(), RandomErrors(0)
    row = report().all_sites
    with torch.inference_mode():

        def spliced(window: Any) -> Any:
            batch = make_batch([window])
            options: dict[str, Any] = {"untouched": untouched(window)}

            def note(site: str, x: Tensor, x_hat: Tensor, y: Tensor, *_: Any) -> None:
                errors.note("all", site, x_hat, y)

            with splice(tiny_lm.trained_model(), saes, observer=note, **options):
                tiny_lm.trained_model()(batch.ids)
            replacements = {site: lambda x, y, s=site: errors.replace("all", s, batch, y) for site in saes}
            return splice(tiny_lm.trained_model(), replacements, replace="function", **options)

        assert row.baselines["random"].ce == pytest.approx(loss(spliced), abs=2e-6)


def test_cumulative_splices_are_the_first_sites_together() -> None:
    model = tiny_lm.model(num_hidden_layers=4)
    names = [f"model.layers.{i}" for i in range(4)]
    saes = {name: tiny_lm.sae(i) for i, name in enumerate(names)}
    # Given in another order than the model's.
    given = {name: saes[name] for name in (names[2], names[0], names[3], names[1])}
    tokenizer, documents = tiny_lm.tokenizer(), tiny_lm.documents()
    whole = evaluate(model, tokenizer, given, documents, baselines=(), bootstrap=20)
    assert [one.site for one in whole.cumulative] == names
    assert [one.sites for one in whole.cumulative] == [1, 2, 3, 4]
    for count, one in enumerate(whole.cumulative, 1):
        part = {name: saes[name] for name in names[:count]}
        alone = evaluate(model, tokenizer, part, documents, baselines=(), cumulative=False, bootstrap=20)
        assert one.ce == alone.all_sites.ce.spliced, "the same bits"
        assert one.delta_ce == alone.all_sites.delta_ce
        assert one.kl == alone.all_sites.kl
    assert whole.cumulative[-1].delta_ce == whole.all_sites.delta_ce
    slow = evaluate(model, tokenizer, given, documents, baselines=(), bootstrap=20, reuse_layers=False)
    assert slow.cumulative == whole.cumulative


def test_several_saes_of_one_site_share_its_baselines() -> None:
    saes = {f"{SITES[0]}#a": tiny_lm.sae(0), f"{SITES[0]}#b": tiny_lm.sae(5), SITES[1]: tiny_lm.sae(1, jump=True)}
    model, tokenizer, documents = tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.documents()
    made = evaluate(model, tokenizer, saes, documents, bootstrap=50)
    assert [row.site for row in made.sites] == list(saes)
    a, b, _ = made.sites
    assert a.ce == report().sites[0].ce
    assert a.delta_ce == report().sites[0].delta_ce
    assert a.baselines["pca"] != b.baselines["pca"], "its excess is the SAE's own"
    assert a.baselines["pca"].ce == b.baselines["pca"].ce
    assert a.ce.zero == b.ce.zero
    assert a.ce.mean == b.ce.mean
    assert a.ce.spliced != b.ce.spliced
    assert a.baselines["random"].ce != b.baselines["random"].ce
    alone = evaluate(model, tokenizer, {SITES[0]: saes[f"{SITES[0]}#b"]}, documents, bootstrap=50)
    assert b.ce == alone.sites[0].ce
    assert any("the first SAE given for each site" in note for note in made.notes)
    assert made.all_sites.ce.spliced == report().all_sites.ce.spliced
    plan = make_plan(
        list(saes), {SITES[0]: 0, SITES[1]: 1}, {**dict.fromkeys(saes, 8), SITES[1]: 27}, ["zero", "pca"], True
    )
    kinds = [run.kind for run in plan.runs]
    assert kinds.count("sae") == 4
    assert kinds.count("zero") == 3
    assert kinds.count("pca") == 3


def test_strata_of_position_and_frequency_are_counted_by_hand() -> None:
    counts = np.zeros(320, dtype=np.int64)
    for _, window in windows():
        np.add.at(counts, window.ids[1:][window.counted], 1)
    strata = make_strata(counts, 24)
    assert strata.position_names == ("1-3", "4-15", "16-23")
    found: dict[str, list[float]] = {}
    for _, window in windows():
        ids = torch.from_numpy(window.ids).long()[None]
        with torch.inference_mode():
            clean = F.cross_entropy(tiny_lm.trained_model()(ids).logits[0, :-1].double(), ids[0, 1:], reduction="none")
        for t in np.flatnonzero(window.counted):
            share = counts[window.ids[t + 1]] / counts.sum()
            edges = ((1e-2, ">= 0.01"), (1e-3, "0.001 to 0.01"), (1e-4, "0.0001 to 0.001"), (1e-5, "1e-05 to 0.0001"))
            frequency = next((name for edge, name in edges if share >= edge), "< 1e-05")
            position = "1-3" if t + 1 < 4 else "4-15" if t + 1 < 16 else "16-23"
            for name in (frequency, position):
                found.setdefault(name, []).append(float(clean[t]))
    row = report().all_sites
    got = {name: part for axis in ("position", "frequency") for name, part in row.strata[axis].items() if part.tokens}
    assert got.keys() == found.keys()
    assert len(found) == 5
    for name, losses in found.items():
        assert got[name].tokens == len(losses)
        assert got[name].ce.clean == pytest.approx(np.mean(losses), abs=2e-6)
    for axis in row.strata.values():
        assert sum(part.tokens for part in axis.values()) == report().tokens
        total = sum(part.tokens * part.delta_ce.nats for part in axis.values() if part.tokens)
        assert total / report().tokens == pytest.approx(row.delta_ce.nats, abs=1e-9)


def test_labels_are_strata_and_the_worst_one_is_named() -> None:
    documents = [
        Document(one.text, one.domain, one.source, {"size": "long" if len(one.text) > 150 else "short"})
        for one in tiny_lm.documents()
    ]
    made = evaluate(tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes(), documents, bootstrap=50)
    parts = made.all_sites.strata["size"]
    assert sorted(parts) == ["long", "short"]
    assert sum(part.tokens for part in parts.values()) == made.tokens
    alone = [one for one in documents if one.labels["size"] == "short"]
    only = evaluate(tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes(), alone, baselines=("zero", "mean"))
    assert parts["short"].ce.spliced == pytest.approx(only.all_sites.ce.spliced, abs=1e-6)
    for row in [*made.sites, made.all_sites]:
        every = {(a, n): p for a, named in {"domain": row.domains, **row.strata}.items() for n, p in named.items()}
        assert row.worst is not None
        worst = every[row.worst.axis, row.worst.stratum]
        assert (
            row.worst.delta_ce
            == worst.delta_ce.nats
            == max(
                p.delta_ce.nats
                for p in every.values()
                if p.delta_ce.nats is not None and p.tokens >= 0.01 * made.tokens
            )
        )


def test_the_histogram_of_kl_counts_every_token_once() -> None:
    for row in [*report().sites, report().all_sites]:
        assert sum(row.kl_histogram) == report().tokens
    histogram = KlHistogram()
    histogram.add(torch.tensor([0.0, -1e-9, 1e-7, 0.99e-7, 1.0, 99.9, 100.0, torch.inf, torch.nan]))
    edges = histogram.edges()
    assert len(edges) + 1 == len(histogram.counts)
    assert edges[0] == pytest.approx(1e-7)
    assert edges[-1] == pytest.approx(100)
    assert histogram.counts[0] == 3
    assert histogram.counts[-1] == 2
    assert int(histogram.counts.sum()) == 8
    assert histogram.counts[1] == 1
    assert histogram.counts[-2] == 1
    assert histogram.counts[1 + edges.index(1.0)] == 1


def test_ablations_that_depend_on_the_text_are_run() -> None:
    saes = {"model.layers.0.mlp": tiny_lm.sae(0), "model.layers.1": tiny_lm.sae(1)}
    made = evaluate(tiny_lm.trained_model(), tiny_lm.tokenizer(), saes, tiny_lm.documents(), bootstrap=0)
    assert made.run["computed_once"] == [
        f"{kind} {where}"
        for kind in ("mean", "zero")
        for where in ("model.layers.0.mlp model.layers.1", "model.layers.1")
    ]

    def spliced(window: Any) -> Any:
        sites = {"model.layers.0.mlp": None}
        return splice(tiny_lm.trained_model(), sites, replace="zero", untouched=untouched(window))

    assert made.sites[0].ce.zero == pytest.approx(loss(spliced), abs=2e-6)


def test_baselines_are_chosen_and_named() -> None:
    few = report(baselines=("mean",), cumulative=False)
    assert set(few.all_sites.baselines) == {"mean"}
    assert few.all_sites.ce.zero is None
    assert few.cumulative == []
    assert few.all_sites.ce.mean == report().all_sites.ce.mean
    with pytest.raises(InputError, match="baselines: got 'noise', need some of zero, mean, random, pca"):
        report(baselines=("noise",))
