"""Maps between latents against dense ridge regression, and what splicing their predictions costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import left_by_hand
import tiny_lm
from cli import arguments, fails
from saekernels.cli import main
from saekernels.eval import Document, InputError
from saekernels.eval.studies.latent_maps import LatentMoments, fit_map, select_dense
from saekernels.eval.studies.maps import measure_maps
from saekernels.eval.text.slices import alternate
from saekernels.eval.text.windows import Tokens, chosen
from saekernels.sae.activations import TopK
from saekernels.sae.codes import Codes
from saekernels.sae.module import SAE, LayerNorm
from tiny_lm import SITES


def sparse(n: int, width: int, seed: int, share: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, width, generator=generator)
    return values * (torch.rand(n, width, generator=generator) < share)


def moments(a: Tensor, b: Tensor) -> LatentMoments:
    made = LatentMoments(torch.arange(a.shape[1]), torch.arange(b.shape[1]), a.shape[1], b.shape[1])
    made.add(a, b)
    return made


def ridge_by_hand(a: Tensor, b: Tensor, entries: int, ridge: float) -> Tensor:
    """Predictions [n, B]: for each column of b, ridge regression on its `entries` most correlated columns of a."""
    a, b = a.double(), b.double()
    ca, cb = a - a.mean(0), b - b.mean(0)
    made = torch.empty_like(b)
    for column in range(b.shape[1]):
        score = (ca.T @ cb[:, column]) ** 2 / ca.square().sum(0).clamp_min(1e-12)
        own = ca[:, score.topk(min(entries, a.shape[1])).indices]
        gram = own.T @ own / len(a)
        load = ridge * gram.diagonal().mean()
        weights = torch.linalg.solve(gram + load * torch.eye(len(gram)), own.T @ cb[:, column] / len(a))
        made[:, column] = own @ weights + b[:, column].mean()
    return made


@settings(max_examples=20, deadline=None)
@given(entries=st.integers(1, 12), ridge=st.sampled_from([1e-3, 1e-1, 1.0]), seed=st.integers(0, 99))
def test_sparse_ridge_by_hand(entries: int, ridge: float, seed: int) -> None:
    a = sparse(400, 10, seed)
    b = a @ sparse(10, 6, seed + 1) + 0.1 * sparse(400, 6, seed + 2)
    found = fit_map(moments(a, b), entries, ridge)
    want = ridge_by_hand(a, b, entries, ridge)
    torch.testing.assert_close(found.predict(a).double(), want, rtol=1e-3, atol=1e-3)
    assert ((found._matrix() != 0).sum(0) <= entries).all()
    if ridge == 1e-3:
        left = (b.double() - want).square().sum() / (b.double() - b.double().mean(0)).square().sum()
        assert found.explained == pytest.approx(1 - float(left), abs=5e-3)


def test_no_entries_predict_the_mean_and_one_is_the_best_single() -> None:
    a = sparse(300, 8, 0)
    b = torch.stack([2 * a[:, 3], a[:, 5] + 0.01 * a[:, 1]], 1)
    mean = fit_map(moments(a, b), 0)
    torch.testing.assert_close(mean.predict(a), b.mean(0).expand_as(b), rtol=1e-4, atol=1e-5)
    assert mean.explained == 0
    one = fit_map(moments(a, b), 1, ridge=1e-6)
    assert one.indices.tolist() == [[3], [5]]
    torch.testing.assert_close(one.weights[:, 0], torch.tensor([2.0, 1.0]), rtol=1e-2, atol=1e-2)


def test_a_latent_that_never_varies_is_harmless() -> None:
    a = torch.cat([sparse(100, 3, 0), torch.zeros(100, 2), torch.ones(100, 1)], 1)
    b = torch.cat([a[:, :1], torch.zeros(100, 1), torch.ones(100, 1)], 1)
    found = fit_map(moments(a, b), 4)
    assert bool(torch.isfinite(found.weights).all())
    torch.testing.assert_close(found.predict(a), b, rtol=2e-2, atol=2e-2)
    with pytest.raises(ValueError, match="at least 2 rows and 0 entries, got 100 and -1"):
        fit_map(moments(a, b), -1)
    with pytest.raises(ValueError, match="got 1 and 1"):
        fit_map(moments(a[:1], b[:1]), 1)


def test_portions_do_not_matter() -> None:
    a, b = sparse(1500, 5, 0), sparse(1500, 4, 1)
    whole, parts = moments(a, b), moments(a[:0], b[:0])
    for start, stop in ((0, 1), (1, 700), (700, 1500)):
        parts.add(a[start:stop], b[start:stop])
    assert parts.count == whole.count
    for name in ("aa", "ab", "sum_a", "sum_b", "square_b"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("jump", [False, True])
def test_selected_latents_are_columns_of_the_dense_codes(jump: bool) -> None:
    with torch.no_grad():
        codes = tiny_lm.sae(0, jump).encode(torch.randn(2, 5, tiny_lm.WIDTH))
    latents = torch.tensor([3, 0, 63, 17])
    torch.testing.assert_close(select_dense(codes, latents), codes.to_dense().reshape(10, 64)[:, latents])


def test_predicted_codes_are_the_largest_positive_ones() -> None:
    a = sparse(300, 6, 0)
    b = torch.cat([a[:, :3], -a[:, 3:4]], 1)
    made = LatentMoments(torch.arange(6), torch.tensor([2, 5, 11, 7]), 6, 20)
    made.add(a, b)
    found = fit_map(made, 6)
    codes = found.codes(a[:8], 2, torch.Size([2, 4]))
    assert isinstance(codes, Codes)
    assert codes.shape == (2, 4)
    assert codes.n_latents == 20
    dense = torch.zeros(8, 20)
    dense[:, made.targets] = found.predict(a[:8]).clamp_min(0)
    keep = dense >= dense.topk(2, dim=1).values[:, -1:]
    torch.testing.assert_close(codes.to_dense().reshape(8, 20), dense * keep)


def texts() -> list[Document]:
    words = tiny_lm.PARAGRAPH.split(" ")
    prose = [Document(" ".join(words[i : i + 22]), "prose", str(i)) for i in range(8)]
    return [*prose, *(Document(tiny_lm.CODE[i * 5 :], "code", str(i)) for i in range(6))]


def measured(model: Any, **options: Any) -> dict[str, Any]:
    return measure_maps(
        model, Tokens(tiny_lm.tokenizer(), 24), (SITES[0], tiny_lm.sae(0)),
        (SITES[1], tiny_lm.sae(1)), iter(texts()), bootstrap=20, **options,
    )  # fmt: skip


@torch.no_grad()
def by_hooks(
    model: Any, entries: int, domain: str | None, first: int = 0, ratio: float | None = None
) -> dict[str, float]:
    """ΔCE by domain: the map fitted by hand on dense codes of half of the documents, spliced by a hook."""
    cut = Tokens(tiny_lm.tokenizer(), 24)
    upper, lower = tiny_lm.sae(0), tiny_lm.sae(1)
    many = list(chosen(iter(texts()), cut, None, 0))
    windows = [w for _, ws in many for w in ws]
    masks = left_by_hand.replaced(model, windows, SITES, first, ratio)
    touched = {id(w): one[SITES[0]] & one[SITES[1]] for w, one in zip(windows, masks, strict=True)}
    half = alternate([d.domain for d, _ in many])
    fit = [(d.domain, w) for (d, ws), own in zip(many, half, strict=True) if own for w in ws]
    test = [(d.domain, w) for (d, ws), own in zip(many, half, strict=True) if not own for w in ws]

    def run(window: Any, replace: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        seen = []

        def hook(module: Any, given: Any, out: Tensor) -> Tensor | None:
            seen.append(out)
            return replace(seen[0], out) if replace is not None and len(seen) == 2 else None

        handles = [model.get_submodule(site).register_forward_hook(hook) for site in SITES]
        logits = model(torch.from_numpy(window.ids).long()[None]).logits[0, :-1].double()
        for handle in handles:
            handle.remove()
        return logits, seen[0], seen[1]

    rows_a, rows_b, active = [], [], torch.zeros(2, 64, dtype=torch.bool)
    for name, window in fit:
        _, x, y = run(window)
        a, b = upper.encode(x).to_dense()[0], lower.encode(y).to_dense()[0]
        active |= torch.stack([(a != 0).any(0), (b != 0).any(0)])
        if domain in (None, name):
            own = touched[id(window)]
            rows_a.append(a[own].detach())
            rows_b.append(b[own].detach())
    found = fit_map(moments(torch.cat(rows_a)[:, active[0]], torch.cat(rows_b)[:, active[1]]), entries)

    def replace(x: Tensor, y: Tensor, window: Any) -> Tensor:
        guess = found.predict(upper.encode(x).to_dense()[0][:, active[0]]).clamp_min(0)
        dense = torch.zeros(len(guess), 64)
        top = guess.topk(min(8, guess.shape[1]), dim=1)
        dense[:, active[1]] = torch.zeros_like(guess).scatter(1, top.indices, top.values)
        out = dense @ lower.W_dec + lower.b_dec
        return torch.where(touched[id(window)][None, :, None], out[None], y)

    sums: dict[str, list[float]] = {}
    for name, window in test:
        ids, keep = torch.from_numpy(window.ids).long(), torch.from_numpy(window.counted)
        clean = run(window)[0]
        other = run(window, lambda x, y, w=window: replace(x, y, w))[0]
        ce = [F.cross_entropy(logits, ids[1:], reduction="none")[keep] for logits in (clean, other)]
        sums.setdefault(name, []).extend((ce[1] - ce[0]).tolist())
    return {name: float(np.mean(values)) for name, values in sums.items()}


@pytest.mark.parametrize("layers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_costs_by_hooks_and_full_logits(layers: int) -> None:
    model = tiny_lm.trained_model() if layers == 2 else tiny_lm.model(num_hidden_layers=3)
    found = measured(model, domain="code", entries=(1, 4), batch_size=3)
    rows = {(row["fitted_on"], row["method"]): row for row in found["rows"]}
    assert list(rows) == [
        ("code", "mean latents"), ("code", "1 entry"), ("code", "4 entries"), ("everything", "1 entry"),
        ("everything", "4 entries"), ("-", "the SAE itself"),
    ]  # fmt: skip
    assert found["latents"]["predicted_active"] == 8
    for (fitted, method), row in rows.items():
        if fitted == "-":
            continue
        entries = 0 if method == "mean latents" else int(method.split()[0])
        want = by_hooks(model, entries, None if fitted == "everything" else fitted)
        assert row["inside"] == pytest.approx(want["code"], abs=2e-3)
        assert row["outside"] == pytest.approx(want["prose"], abs=2e-3)
        low, high = row["inside_ci95"]
        assert low <= row["inside"] <= high
    assert rows["code", "4 entries"]["explained"] > rows["code", "1 entry"]["explained"] > 0
    json.dumps(found, allow_nan=False)


def test_what_the_rule_leaves_at_either_site_is_neither_fitted_on_nor_replaced() -> None:
    """By the same hooks; the rule leaves positions that the other site's norms do not name, and says so."""
    model, rule = tiny_lm.trained_model(), {"leave_first": 2, "leave_norm": 1.1}
    plain, found = (measured(model, domain="code", entries=(4,), **one) for one in ({}, rule))
    assert found["mask"] == rule
    assert plain["mask"] == {"leave_first": 0, "leave_norm": None}
    rows = {(row["fitted_on"], row["method"]): row for row in found["rows"]}
    for fitted, other in (("code", "code"), ("everything", None)):
        row = rows[fitted, "4 entries"]
        want = by_hooks(model, 4, other, 2, 1.1)
        assert row["inside"] == pytest.approx(want["code"], abs=2e-3)
        assert row["outside"] == pytest.approx(want["prose"], abs=2e-3)
    before = {(row["fitted_on"], row["method"]): row for row in plain["rows"]}
    assert all(abs(row["inside"] - before[key]["inside"]) > 0.01 for key, row in rows.items())
    windows = [w for _, ws in chosen(iter(texts()), Tokens(tiny_lm.tokenizer(), 24), None, 0) for w in ws]
    masks = left_by_hand.replaced(model, windows, SITES, 2, 1.1)
    assert sum(int((one[SITES[0]] ^ one[SITES[1]]).sum()) for one in masks) > 0


@pytest.mark.parametrize(
    ("up", "down", "options", "message"),
    [
        (SITES[1], SITES[0], {}, "must come before"),
        ("model.layers.9", SITES[1], {}, "model.layers.9"),
        (SITES[0], SITES[1], {"domain": "law"}, "domain: 'law' has 0 documents here"),
        (SITES[0], SITES[1], {"leave_norm": 0.5}, "leave_norm: got 0.5, need a finite ratio to the median above 1"),
    ],
)
def test_maps_that_cannot_be(up: str, down: str, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_maps(
            tiny_lm.trained_model(), Tokens(tiny_lm.tokenizer(), 24), (up, tiny_lm.sae(0)), (down, tiny_lm.sae(1)),
            texts(), **options,
        )  # fmt: skip
    normed = SAE(tiny_lm.WIDTH, 64, TopK(8), normalization=LayerNorm())
    with pytest.raises(InputError, match="undoes a normalisation of its input"):
        measure_maps(
            tiny_lm.trained_model(), Tokens(tiny_lm.tokenizer(), 24), (SITES[0], tiny_lm.sae(0)), (SITES[1], normed),
            texts(),
        )  # fmt: skip


def test_maps_from_the_command_line(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, out = ["maps", *arguments(files, bootstrap=["10"])[1:]], tmp_path / "maps.json"
    rule = ["--leave-first", "1", "--leave-norm", "5"]
    assert main([*base, "--entries", "1", "--domain", "code", "--json", str(out), *rule]) == 0
    told = capsys.readouterr().out
    assert "Left as they are, in every run: the first of each window and those whose norm at a site exceeds 5" in told
    data = json.loads(out.read_text())
    assert data["upstream"] == SITES[0]
    assert data["downstream"] == SITES[1]
    assert data["domain"] == "code"
    assert data["mask"] == {"leave_first": 1, "leave_norm": 5.0}
    assert "the SAE itself" in told
    assert "ΔCE in code" in told
    assert "--upstream: no SAE was given for 'x'" in fails(capsys, [*base, "--upstream", "x"])
    assert "must come before" in fails(capsys, [*base, "--upstream", SITES[1], "--downstream", SITES[0]])
    assert "got 25 tokens, but the model has only 24 positions" in fails(capsys, [*base, "--context", "25"])
