"""One SAE in training: its scales and mask, what stays frozen, what it learns, and that a saved one is the same."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import saekernels as sk
from saekernels.training import Recipe, SAETrainer

D, F, K = 32, 64, 4
RECIPE = Recipe(F, K, lr=1e-2, dead_after=2_000, aux_k=4)


def planted(n: int = 4096, seed: int = 0) -> Tensor:
    """[n, D]: sums of K of F/2 directions about a mean far from 0."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(F // 2, D, generator=torch.Generator().manual_seed(5)), dim=1)
    chosen = torch.rand(n, F // 2, generator=generator).topk(K - 1).indices
    return 30 * (atoms[chosen] * (1 + torch.rand(n, K - 1, 1, generator=generator))).sum(1) + 100


def trained(recipe: Recipe, x: Tensor, y: Tensor, steps: int = 150, seed: int = 0) -> SAETrainer:
    trainer = SAETrainer("site", recipe, seed, x[:512], x[:512] if y is x else y[:512])
    for step in range(steps):
        rows = slice(512 * step % len(x), 512 * step % len(x) + 512)
        trainer.step(x[rows], x[rows] if y is x else y[rows], 1.0 if step < 100 else (steps - step) / 50)
    return trainer


def test_scales_and_biases_are_those_of_the_first_tokens_that_pass_the_mask() -> None:
    x = planted(512)
    x[::100] *= 1000
    rest = torch.ones(512, dtype=torch.bool)
    rest[::100] = False
    trainer = SAETrainer("site", replace(RECIPE, leave_norm=5.0), 0, x, x)
    centred = x[rest] - x[rest].mean(0)
    assert trainer.scales[0] == trainer.scales[1] == pytest.approx(float(centred.square().mean()) ** -0.5)
    torch.testing.assert_close(trainer.sae.b_dec.detach(), x[rest].mean(0) * trainer.scales[0])
    assert SAETrainer("site", RECIPE, 0, x, x).scales[0] < trainer.scales[0] / 50


@pytest.mark.parametrize("end", ["input", "output"])
def test_positions_of_large_norm_at_either_end_change_nothing(end: str) -> None:
    x, y = planted(), planted(seed=1) + 7
    recipe = replace(RECIPE, leave_norm=5.0)
    sinks = torch.arange(13, 4096, 50)
    with_sinks = (x.clone(), y.clone())
    with_sinks[end == "output"][sinks] = 1e5
    kept = torch.ones(4096, dtype=torch.bool)
    kept[sinks] = False
    ours, theirs = (SAETrainer("site", recipe, 0, x[:10], y[:10]) for _ in range(2))
    for start in range(0, 4096, 512):
        rows = torch.arange(start, start + 512)
        ours.step(with_sinks[0][rows], with_sinks[1][rows], 1.0)
        theirs.step(x[rows[kept[rows]]], y[rows[kept[rows]]], 1.0)
    for name, value in ours.sae.state_dict().items():
        assert torch.equal(value, theirs.sae.state_dict()[name]), name
    assert int(ours.norms.read.counts.sum()) == int(ours.norms.replaced.counts.sum()) == 4096, (
        "the median is of all positions"
    )


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu"])
def test_it_learns_with_as_many_latents_as_asked_for(activation: str) -> None:
    x = planted()
    trainer = trained(replace(RECIPE, activation=activation), x, x)
    sae, held_out = trainer.trained().eval(), planted(seed=9)
    with torch.no_grad():
        out, codes = sae.forward_with_codes(held_out)
    fvu = float((out - held_out).square().sum() / (held_out - held_out.mean(0)).square().sum())
    assert fvu < 0.03
    assert trainer.fvu == pytest.approx(fvu, rel=0.3)
    assert float(codes.l0().float().mean()) == pytest.approx(K, rel=0.15)
    torch.testing.assert_close(trainer.sae.decoder_norms(), torch.ones(F), rtol=1e-5, atol=0)


def test_a_transcoder_learns_another_space_than_its_own(tmp_path: Path) -> None:
    x = planted()
    torch.manual_seed(3)
    y = 0.01 * (x @ torch.randn(D, D)) - 5
    trainer = trained(replace(RECIPE, activation="batch_topk"), x, y)
    held_out = planted(seed=9)
    want = 0.01 * (held_out @ (torch.manual_seed(3), torch.randn(D, D))[1]) - 5
    sk.save(trainer.trained(), tmp_path)
    for sae in (trainer.trained(), sk.load(tmp_path)):
        with torch.no_grad():
            out = sae(held_out)
        assert float((out - want).square().sum() / (want - want.mean(0)).square().sum()) < 0.15
    assert trainer.scales[1] > 5 * trainer.scales[0]


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu"])
def test_what_is_saved_is_the_function_that_was_trained(activation: str, tmp_path: Path) -> None:
    x = planted()
    trainer = trained(replace(RECIPE, activation=activation), x, x, steps=20)
    sk.save(trainer.trained(), tmp_path)
    with torch.no_grad():
        want = trainer.sae(x * trainer.scales[0]) / trainer.scales[0]
        out = sk.load(tmp_path)(x)
    near = (out - want).norm(dim=1) < 1e-4 * want.norm(dim=1)  # but for rows with a latent at its threshold
    assert float(near.float().mean()) > 0.999


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu"])
@pytest.mark.parametrize("freeze", ["decoder", "encoder", "both"])
def test_what_is_frozen_keeps_its_bits_and_the_rest_moves(freeze: str, activation: str) -> None:
    x = planted()
    recipe = replace(RECIPE, freeze=freeze, activation=activation)
    before = SAETrainer("site", recipe, 0, x[:512], x[:512])
    after = trained(recipe, x, x, steps=12)
    frozen = {"decoder": {"W_dec"}, "encoder": {"W_enc"}, "both": {"W_dec", "W_enc"}}[freeze]
    for name, value in before.sae.state_dict().items():
        assert torch.equal(value, after.sae.state_dict()[name]) == (name in frozen), name


def test_two_frozen_matrices_get_the_best_scale() -> None:
    x = planted()
    sae = SAETrainer("site", replace(RECIPE, freeze="both"), 0, x, x).sae
    scaled = x * SAETrainer("site", RECIPE, 0, x, x).scales[0]
    codes = sae.encode(scaled).to_dense() @ sae.W_dec

    def error(factor: float) -> float:
        return float((scaled - sae.b_dec - factor * codes).square().sum())

    assert error(1.0) < min(error(0.98), error(1.02), float((scaled - sae.b_dec).square().sum()))
    norms = sae.decoder_norms()
    torch.testing.assert_close(norms, norms.mean().expand(F))


def test_a_dictionary_of_activations_has_activations_as_rows() -> None:
    x, y = planted(200), planted(200, seed=4)
    recipe = replace(RECIPE, decoder="activations", freeze="decoder")
    sae = SAETrainer("site", recipe, 0, x, y).sae
    inputs, outputs = (torch.nn.functional.normalize(one - one.mean(0), dim=1) for one in (x, y))
    similar = sae.W_dec @ outputs.T
    rows = similar.argmax(1)
    torch.testing.assert_close(similar.max(1).values, torch.ones(F))
    torch.testing.assert_close((sae.W_enc * inputs[rows]).sum(1), torch.ones(F))
    assert len(rows.unique()) == F
    with pytest.raises(ValueError, match=r"^site: got 63 first activations that pass the mask, need at least 64$"):
        SAETrainer("site", recipe, 0, x[:63], x[:63])


def test_seeds_and_sites_have_random_numbers_of_their_own() -> None:
    x = planted(64)
    first = SAETrainer("site", RECIPE, 0, x, x).sae.W_dec
    torch.manual_seed(123)
    assert torch.equal(first, SAETrainer("site", RECIPE, 0, x, x).sae.W_dec)
    for name, seed in (("site", 1), ("other", 0)):
        assert float((first * SAETrainer(name, RECIPE, seed, x, x).sae.W_dec).sum(1).abs().mean()) < 0.5


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu"])
def test_a_state_goes_on_with_the_same_bits(activation: str) -> None:
    x = planted()
    recipe = replace(RECIPE, activation=activation, leave_norm=1.2, dead_after=100)
    trainer = trained(recipe, x, x, steps=10)
    trainer.sae.b_enc.data[:20] -= 100  # they are dead, and the auxiliary loss takes part
    other = SAETrainer("site", recipe, 0, x[:512], x[:512])
    other.load(copy.deepcopy(trainer.state()))
    farther = planted(2048, seed=2) + 20  # whose norms are near the limit that the medians before set
    for one in (trainer, other):
        for batch in farther.split(512):
            one.step(batch, batch, 0.5)
    assert trainer.dead.indices().numel() > 0, "the auxiliary loss took part"
    for name, value in trainer.sae.state_dict().items():
        assert torch.equal(value, other.sae.state_dict()[name]), name
    assert (trainer.fvu, trainer.l0, trainer.least) == (other.fvu, other.l0, other.least)


def by_hand(trainer: SAETrainer, optimizer: torch.optim.Optimizer) -> None:
    """An update in passes: the gradient at right angles to each row, the step, rows of unit norm."""
    rows = trainer.sae.W_dec
    assert rows.grad is not None
    with torch.no_grad():
        rows.grad.sub_((rows.grad * rows).sum(1, keepdim=True) * rows)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        rows.div_(rows.norm(dim=1, keepdim=True))
        if trainer.sae.threshold is not None:
            trainer.sae.threshold.clamp_(min=0)


def of_torch(trainer: SAETrainer) -> torch.optim.Optimizer:
    """torch's Adam with thresholds in a group of their own, and all else in one."""
    moving = dict(trainer.sae.named_parameters())
    thresholds = [moving.pop("threshold")] if "threshold" in moving else []
    groups = [{"params": [*moving.values()], "lr": RECIPE.lr}, {"params": thresholds, "lr": 10 * RECIPE.lr}]
    return torch.optim.Adam(groups if thresholds else groups[:1], fused=True)


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_one_pass_is_the_update_by_hand(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = planted()
    recipe = replace(RECIPE, activation=activation)
    ours = trained(recipe, x, x, steps=5)
    theirs = SAETrainer("site", recipe, 0, x[:512], x[:512])
    optimizer = of_torch(theirs)
    monkeypatch.setattr(theirs, "_update", lambda rate: by_hand(theirs, optimizer))
    for step in range(5):
        theirs.step(x[512 * step : 512 * step + 512], x[512 * step : 512 * step + 512], 1.0)
    for name, value in ours.sae.named_parameters():
        torch.testing.assert_close(value, dict(theirs.sae.named_parameters())[name], rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(ours.sae.decoder_norms(), torch.ones(F), rtol=1e-6, atol=0)


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_a_state_with_an_optimizer_of_torchs_goes_on(activation: str) -> None:
    """As checkpoints held one before: groups of several parameters."""
    x = planted()
    recipe = replace(RECIPE, activation=activation)
    trainer = trained(recipe, x, x, steps=3)
    state, old = copy.deepcopy(trainer.state()), of_torch(trainer)
    old.load_state_dict({**old.state_dict(), "state": state["optimizer"]["state"]})
    state["optimizer"] = old.state_dict()
    other = SAETrainer("site", recipe, 0, x[:512], x[:512])
    other.load(state)
    for one in (trainer, other):
        one.step(x[:512], x[:512], 0.5)
    for name, value in trainer.sae.state_dict().items():
        assert torch.equal(value, other.sae.state_dict()[name]), name


def test_recipes_that_do_not_exist_are_named() -> None:
    for name, value, need in (
        ("activation", "relu", "topk, batch_topk, jumprelu"),
        ("freeze", "biases", "none, decoder, encoder, both"),
        ("decoder", "pca", "random, activations"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: got '{value}', need one of {need}$"):
            replace(RECIPE, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^leave_norm: got 1, need a finite ratio to the median above 1$"):
        replace(RECIPE, leave_norm=1.0)
    with pytest.raises(ValueError, match=r"^k: got 65, need 1 to 64, the number of latents$"):
        replace(RECIPE, k=65)
