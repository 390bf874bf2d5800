"""The evaluator against an independent computation in plain torch: own windows, own hooks, dense SAEs, full logits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny_lm
from saekernels.eval import Document, Report, evaluate
from saekernels.sae.activations import TopK
from saekernels.sae.module import SAE
from saekernels.splice.context import splice

CONTEXT = 24
SPECIAL = torch.tensor([0, 1, 2])


@functools.cache
def report(batch_size: int = 3) -> Report:
    model, tokenizer, saes = tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes()
    return evaluate(model, tokenizer, saes, tiny_lm.documents(), batch_size=batch_size, bootstrap=200)


def windows() -> list[tuple[Document, Tensor]]:
    """Every window in which something counts, <bos> in front, of the plain token ids."""
    made = []
    for document in tiny_lm.documents():
        ids = tiny_lm.tokenizer()(document.text, add_special_tokens=False)["input_ids"]
        starts = range(0, len(ids), CONTEXT - 1)
        made += [(document, torch.tensor([[0, *ids[start : start + CONTEXT - 1]]])) for start in starts]
    return [(document, window) for document, window in made if counted(window).any()]


def dense(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and F-wide codes, written out."""
    pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    if isinstance(sae.activation, TopK):
        top = pre.topk(sae.activation.k, dim=-1)
        codes = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
    else:
        codes = pre.relu() * (pre > sae.threshold)
    return codes @ sae.W_dec + sae.b_dec, codes


@torch.no_grad()
def logits(ids: Tensor, replacements: dict[str, Callable[[Tensor], Tensor]], seen: dict[str, list[Tensor]]) -> Tensor:
    """The model's logits while each site's output at real, not special tokens is replaced; keeps what it replaced."""
    model = tiny_lm.trained_model()
    touched = ~torch.isin(ids, SPECIAL)
    handles = []
    for site, replacement in replacements.items():

        def hook(module: Any, args: Any, output: Tensor, site: str = site, replacement: Any = replacement) -> Tensor:
            seen.setdefault(site, []).append(output[touched])
            return torch.where(touched[..., None], replacement(output), output)

        handles.append(model.get_submodule(site).register_forward_hook(hook))
    try:
        return model(input_ids=ids).logits[0].double()
    finally:
        for handle in handles:
            handle.remove()


def counted(ids: Tensor) -> Tensor:
    fine = ~torch.isin(ids[0], SPECIAL)
    return fine[:-1] & fine[1:]


@functools.cache
def plain() -> dict[str, Any]:
    """Figures of every target, from full logits; per domain and whole; "fvu", "l0", "dead" per site and run."""
    saes = tiny_lm.saes()
    seen: dict[str, list[Tensor]] = {}
    for _, ids in windows():
        logits(ids, dict.fromkeys(saes, lambda x: x), seen)
    means = {site: torch.cat(parts).double().mean(0).float() for site, parts in seen.items()}
    out: dict[str, Any] = {}
    for name, sites in {**{site: [site] for site in saes}, "all": list(saes)}.items():
        totals: dict[str, dict[str, float]] = {}
        spliced_seen: dict[str, list[Tensor]] = {}
        for document, ids in windows():
            keep, targets = counted(ids), ids[0, 1:]
            clean = logits(ids, {}, {})[:-1][keep]
            with torch.no_grad():
                runs = {
                    "spliced": {s: lambda x, s=s: dense(saes[s], x)[0] for s in sites},
                    "zero": dict.fromkeys(sites, torch.zeros_like),
                    "mean": {s: lambda x, s=s: means[s].expand_as(x) for s in sites},
                }
                found = {k: logits(ids, r, spliced_seen if k == "spliced" else {})[:-1][keep] for k, r in runs.items()}
            row = {k: float(F.cross_entropy(z, targets[keep], reduction="sum")) for k, z in found.items()}
            row["clean"] = float(F.cross_entropy(clean, targets[keep], reduction="sum"))
            log_p, log_q = clean.log_softmax(-1), found["spliced"].log_softmax(-1)
            row["kl"] = float(F.kl_div(log_q, log_p, log_target=True, reduction="sum"))
            row["top1"] = float((clean.argmax(-1) == found["spliced"].argmax(-1)).sum())
            row["tokens"] = float(keep.sum())
            for group in ("whole", document.domain):
                for key, value in row.items():
                    totals.setdefault(group, {}).setdefault(key, 0.0)
                    totals[group][key] += value
        out[name] = {**totals, "stats": [reconstruction(saes[s], torch.cat(spliced_seen[s])) for s in sites]}
    return out


@torch.no_grad()
def reconstruction(sae: SAE, x: Tensor) -> tuple[float, float, float]:
    """L0, FVU and dead fraction on rows x."""
    estimate, codes = dense(sae, x)
    fvu = (x - estimate).double().square().sum() / (x - x.double().mean(0)).double().square().sum()
    return float((codes != 0).sum(-1).double().mean()), float(fvu), float((codes == 0).all(0).double().mean())


@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_figure_equals_the_plain_computation(index: int) -> None:
    row = [*report().sites, report().all_sites][index]
    want = plain()[row.site]
    whole = want["whole"]
    tokens = whole["tokens"]
    assert report().tokens == tokens
    for kind in ("clean", "spliced", "zero", "mean"):
        assert getattr(row.ce, kind) == pytest.approx(whole[kind] / tokens, abs=2e-6)
    delta = whole["spliced"] - whole["clean"]
    assert row.delta_ce.nats == pytest.approx(delta / tokens, abs=2e-6)
    assert row.kl == pytest.approx(whole["kl"] / tokens, abs=2e-6)
    assert row.top1_agreement == pytest.approx(whole["top1"] / tokens, abs=1e-9)
    for kind in ("zero", "mean"):
        recovered = (whole[kind] - whole["spliced"]) / (whole[kind] - whole["clean"])
        assert getattr(row.loss_recovered, kind) == pytest.approx(recovered, abs=1e-5)
    l0, fvu, dead = (sum(column) / len(want["stats"]) for column in zip(*want["stats"], strict=True))
    assert row.l0 == pytest.approx(l0, abs=1e-9)
    assert row.fvu == pytest.approx(fvu, abs=1e-6)
    assert row.dead_fraction == pytest.approx(dead, abs=1e-9)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_domains_equal_the_plain_computation_and_add_up(index: int) -> None:
    row = [*report().sites, report().all_sites][index]
    assert sorted(row.domains) == ["code", "prose"]
    for name, part in row.domains.items():
        want = plain()[row.site][name]
        assert part.tokens == want["tokens"]
        assert part.ce.spliced == pytest.approx(want["spliced"] / want["tokens"], abs=2e-6)
        assert part.delta_ce.nats == pytest.approx((want["spliced"] - want["clean"]) / want["tokens"], abs=2e-6)
        assert part.kl == pytest.approx(want["kl"] / want["tokens"], abs=2e-6)
    total = sum(part.tokens * part.delta_ce.nats for part in row.domains.values())
    assert total / report().tokens == pytest.approx(row.delta_ce.nats, abs=1e-12)


def test_bits_per_byte_are_nats_over_the_bytes_of_the_counted_tokens() -> None:
    decode = tiny_lm.tokenizer().backend_tokenizer.decoder.decode
    nbytes = 0
    for _, ids in windows():
        for target in ids[0, 1:][counted(ids)].tolist():
            token = tiny_lm.tokenizer().convert_ids_to_tokens(target)
            # One character of a byte-level token stands for one byte.
            nbytes += len(token)
    assert decode(["\u0120a"]) == " a"
    assert report().nbytes == pytest.approx(nbytes, abs=8), "a character split over windows counts at its end"
    row = report().all_sites
    want = row.delta_ce.nats * report().tokens / math.log(2) / report().nbytes
    assert row.delta_ce.bits_per_byte == pytest.approx(want, abs=1e-12)


def flat(value: Any, path: str = "") -> dict[str, float | None]:
    """Every number of a nested report, by path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {path: value} if value is None or isinstance(value, (int, float)) else {}
    return {k: v for key, part in items for k, v in flat(part, f"{path}/{key}").items()}


@pytest.mark.parametrize("batch_size", [1, 8])
def test_batch_size_does_not_matter(batch_size: int) -> None:
    one, other = ({**report(size).to_dict(), "run": None} for size in (3, batch_size))
    assert flat(one) == pytest.approx(flat(other), abs=1e-6)


def test_a_rerun_is_the_same() -> None:
    report.cache_clear()
    first = {**report().to_dict(), "run": None}
    report.cache_clear()
    assert {**report().to_dict(), "run": None} == first


def test_the_error_term_gives_the_clean_loss() -> None:
    total, tokens = 0.0, 0
    model = tiny_lm.trained_model()
    for _, ids in windows():
        keep = counted(ids)
        with torch.no_grad(), splice(model, tiny_lm.saes(), untouched=torch.isin(ids, SPECIAL), error_term=True):
            z = model(input_ids=ids).logits[0, :-1][keep]
        total += float(F.cross_entropy(z.double(), ids[0, 1:][keep], reduction="sum"))
        tokens += int(keep.sum())
    assert total / tokens == pytest.approx(report().all_sites.ce.clean, abs=1e-5)


def test_intervals_hold_the_estimate_and_paired_ones_are_tighter() -> None:
    for row in [*report().sites, report().all_sites]:
        low, high = row.delta_ce.ci95
        assert low <= row.delta_ce.nats <= high
        low, high = row.kl_ci95
        assert low <= row.kl <= high
