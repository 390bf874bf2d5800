"""Crosscoders in running models: codes of clean passes, put in at one head or all, against a dense loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import saekernels as sk
from saekernels.eval.studies.heads import head_losses
from saekernels.eval.text.batches import Batch, make_batch
from saekernels.eval.text.windows import Window

V, D, F = 11, 4, 9


class Small(nn.Module):
    """h <- h + tanh(block(h)) twice, and logits."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(V, D)
        self.blocks = nn.ModuleList(nn.Linear(D, D) for _ in range(2))
        self.head = nn.Linear(D, V, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids).cumsum(1)
        for block in self.blocks:
            h = h + block(h).tanh()
        return self.head(h)

    def by_hand(self, ids: Tensor, written: dict[int, Tensor]) -> tuple[list[Tensor], Tensor]:
        """(what both blocks give, as they are, logits), with other values in the place of some blocks' outputs."""
        h, gave = self.embed(ids).cumsum(1), []
        for layer, block in enumerate(self.blocks):
            gave.append(block(h))
            h = h + written.get(layer, gave[-1]).tanh()
        return gave, self.head(h)


SITES = ("blocks.0", "blocks.1")
IDS = torch.tensor([[1, 4, 2, 7, 3], [0, 9, 10, 5, 5]])


@torch.no_grad()
def crosscoder(norms: str = "per_head") -> sk.Crosscoder:
    torch.manual_seed(7)
    made = sk.Crosscoder(D, F, 2, sk.BatchTopK(), norms=norms, input_scale=[0.5, 2.0])
    for value in made.parameters():
        value.normal_()
    made.threshold.fill_(0.5)  # type: ignore[union-attr]
    return made


def dense_codes(made: sk.Crosscoder, xs: list[Tensor]) -> list[Tensor]:
    """Codes [..., F] of each head, by a dense sum over heads."""
    assert made.threshold is not None
    scaled = [x * s for x, s in zip(xs, (0.5, 2.0), strict=True)]
    W_enc, W_dec = made.W_enc.view(F, 2, D), made.W_dec.view(F, 2, D)
    h = (sum(x @ W_enc[:, i].T for i, x in enumerate(scaled)) + made.b_enc).relu()
    thresholds = made.threshold.expand(2)
    chosen = [h * (h * W_dec[:, i].norm(dim=1) > thresholds[i]) for i in range(2)]
    if made.norms == "sum":
        chosen = [h * (h * W_dec.norm(dim=2).sum(1) > thresholds[0])] * 2
    return chosen


def reconstruction(made: sk.Crosscoder, xs: list[Tensor]) -> list[Tensor]:
    """What these codes write."""
    chosen, W_dec = dense_codes(made, xs), made.W_dec.view(F, 2, D)
    return [(chosen[i] @ W_dec[:, i] + made.b_dec[i]) / s for i, s in enumerate((0.5, 2.0))]


@torch.no_grad()
@pytest.mark.parametrize("norms", ["per_head", "sum"])
def test_two_layers_against_a_dense_loop(norms: str) -> None:
    model, made = Small(0), crosscoder(norms)
    (sites,) = sk.head_sites(made, SITES)
    clean = model(IDS)
    for ids in (IDS, IDS.flip(0)):  # codes of one batch are gone with the next
        with sk.reading_heads((model, sites)):
            assert torch.equal(model(ids), clean if ids is IDS else clean.flip(0))
        gave, logits = model.by_hand(ids, {})
        torch.testing.assert_close(logits, model(ids))
        written = reconstruction(made, gave)
        for chosen in ((0,), (1,), (0, 1)):
            with sk.splice(model, {SITES[layer]: sites[SITES[layer]] for layer in chosen}):
                got = model(ids)
            torch.testing.assert_close(got, model.by_hand(ids, {layer: written[layer] for layer in chosen})[1])


@torch.no_grad()
def test_two_models_against_a_dense_loop() -> None:
    models, made = [Small(0), Small(1)], crosscoder()
    pairs = list(zip(models, sk.head_sites(made, SITES[1:], SITES[1:]), strict=True))
    with sk.reading_heads(*pairs):
        for model in models:
            model(IDS)
    written = reconstruction(made, [model.by_hand(IDS, {})[0][1] for model in models])
    for index, (model, sites) in enumerate(pairs):
        with sk.splice(model, sites):
            torch.testing.assert_close(model(IDS), model.by_hand(IDS, {1: written[index]})[1])


def test_sites_that_are_in_the_files() -> None:
    made = crosscoder()
    made.sites = SITES
    assert [list(one) for one in sk.head_sites(made)] == [list(SITES)]
    made.sites = ("blocks.1", "blocks.1")
    assert [list(one) for one in sk.head_sites(made)] == [["blocks.1"]] * 2


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ((), "files do not say where it reads"),
        (SITES, "need a sequence of sites for each model"),
        ((SITES, SITES), "got 4 sites, need one for each of 2 heads"),
        ((("blocks.0", "blocks.0"),), "all different"),
    ],
)
def test_wrong_sites(models: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        sk.head_sites(crosscoder(), *models)


@torch.no_grad()
def test_what_cannot_run_is_refused() -> None:
    model, made = Small(0), crosscoder()
    with pytest.raises(TypeError, match="cannot take a Crosscoder: it reads 2 heads at once"):
        sk.splice(model, {SITES[0]: made})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="transcoder: got a Crosscoder"):
        sk.layer_sites(made)  # type: ignore[arg-type]
    (sites,) = sk.head_sites(made, SITES)
    first = {SITES[0]: sites[SITES[0]]}
    with sk.splice(model, first), pytest.raises(ValueError, match="head 0 of a crosscoder has no codes"):
        model(IDS)
    with sk.reading_heads((model, sites)):
        model(IDS)
    with sk.splice(model, first), pytest.raises(ValueError, match=r"has codes of tokens \[2, 5\], .* \[1, 5\]"):
        model(IDS[:1])
    with (
        pytest.raises(ValueError, match=r"got heads \[0\], need all those of one crosscoder"),
        sk.reading_heads((model, first)),
    ):
        pass
    apart = sk.head_sites(made, SITES[:1], SITES[1:])
    other = Small(1)
    with (
        pytest.raises(ValueError, match=r"heads \[1\] of the crosscoder were not read"),
        sk.reading_heads((model, apart[0]), (other, apart[1])),
    ):
        model(IDS)
    with sk.reading_heads((model, apart[0]), (other, apart[1])):
        model(IDS)
        with pytest.raises(ValueError, match=r"read as \[\[2, 5, 4\], \[1, 5, 4\]\]"):
            other(IDS[:1])


def batch(ids: Tensor) -> Batch:
    """Every token predicted from those before it; the first, as if it were BOS, is not touched."""
    special = np.arange(ids.shape[1]) == 0
    return make_batch([Window(0, row.numpy(), special, np.ones(len(row), dtype=np.int64)) for row in ids])


def losses(logits: Tensor, clean: Tensor, ids: Tensor) -> dict[str, float]:
    """Sums over the predictions of a batch."""
    p, q = clean[:, 1:-1].double().log_softmax(-1), logits[:, 1:-1].double().log_softmax(-1)
    target = ids[:, 2:, None]
    return {
        "ce": -p.gather(-1, target).sum().item(),
        "spliced": -q.gather(-1, target).sum().item(),
        "kl": (p.exp() * (p - q)).sum().item(),
        "agree": (p.argmax(-1) == q.argmax(-1)).sum().item(),
    }


@torch.no_grad()
@pytest.mark.parametrize("models", [1, 2])
def test_losses_against_a_dense_loop(models: int) -> None:
    made = crosscoder()
    own = [Small(seed) for seed in range(models)]
    placed = sk.head_sites(made, SITES) if models == 1 else sk.head_sites(made, SITES[1:], SITES[1:])
    pairs = list(zip(own, placed, strict=True))
    batches = [IDS, IDS[:1, :4] + 0]
    found = head_losses(pairs, map(batch, batches))
    layers = {0: 0, 1: 1} if models == 1 else {0: 1, 1: 1}
    of_head = {0: own[0], 1: own[-1]}
    wanted = [((0,), 0), ((1,), models - 1)] + ([((0, 1), 0)] if models == 1 else [])
    assert [(one.heads, one.model) for one in found] == wanted
    for one in found:
        model = of_head[one.heads[0]]
        sums = dict.fromkeys(("ce", "spliced", "kl", "agree"), 0.0)
        active = []
        for ids in batches:
            gave = [of_head[head].by_hand(ids, {})[0][layers[head]] for head in range(2)]
            written = reconstruction(made, gave)
            active += [(dense_codes(made, gave)[head][:, 1:] > 0).sum(-1).flatten() for head in one.heads]
            for head in one.heads:
                written[head][:, 0] = gave[head][:, 0]
            logits = model.by_hand(ids, {layers[head]: written[head] for head in one.heads})[1]
            for name, value in losses(logits, model(ids), ids).items():
                sums[name] += value
        n = 2 * 3 + 2
        assert one.tokens == n
        got = torch.tensor([one.clean_ce, one.spliced_ce, one.kl, one.top1_agreement], dtype=torch.float64)
        torch.testing.assert_close(
            got, torch.tensor(list(sums.values()), dtype=torch.float64) / n, rtol=1e-5, atol=1e-6
        )
        assert one.l0 == pytest.approx(torch.cat(active).double().mean().item())
        assert one.delta_ce == one.spliced_ce - one.clean_ce
