"""Training steps of sae-lens' own classes from sparse entries: losses, gradients and state of the tool's own step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_training import BATCH, CLASSES, ONE_OF_EACH, SHAPES, near, own_steps, pair, same, step, trainer_of
from live_saes import NothingWide
from saekernels.adapters.dense_latents import LazyCodes
from saekernels.sae.codes import Codes

pytestmark = pytest.mark.peers
sae_lens = pytest.importorskip("sae_lens", reason="the peers extra is not installed")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9], ids="{} dead".format)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_losses_and_gradients_are_those_of_its_own_step(
    name: str, shape: tuple[int, int, int, float], share: float
) -> None:
    theirs, ours, x = pair(name, shape)
    dead = torch.rand(shape[2]) < share if share else None
    for _ in range(2):  # the second step begins at what the first remembers
        same(ours, theirs, step(ours, x, dead), step(theirs, x, dead))
    assert not own_steps(ours)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_half_precision_is_no_further_from_float32_than_its_own(name: str) -> None:
    theirs, ours, x = pair(name, (64, 32, 256, 4))
    for module in (theirs, ours):
        module.to(torch.bfloat16)
        module.dtype = torch.bfloat16
    exact, x, dead = copy.deepcopy(theirs).float(), x.bfloat16(), torch.arange(256) % 3 == 0
    exact.dtype = torch.float32
    want = step(exact, x.float(), dead)
    for module in (theirs, ours):
        found = step(module, x, dead)
        assert found.loss.item() == pytest.approx(want.loss.item(), rel=1e-2)
    for value, own, truth in zip(ours.parameters(), theirs.parameters(), exact.parameters(), strict=True):
        assert value.grad.dtype == own.grad.dtype
        error, other = ((one.grad.float() - truth.grad).norm() for one in (value, own))
        assert float(error) <= 1.05 * float(other)
    assert not own_steps(ours)


@pytest.mark.parametrize("name", BATCH)
def test_fewer_positive_pre_activations_than_it_selects(name: str) -> None:
    theirs, ours, x = pair(name, (40, 16, 128, 30))
    for module in (theirs, ours):
        module.b_enc.data.sub_(0.7)
    own = step(theirs, x)
    assert 0 < int((own.feature_acts > 0).sum()) < 40 * 30
    same(ours, theirs, step(ours, x), own)
    for module in (theirs, ours):
        module.b_enc.data.sub_(50.0)
    own, out = step(theirs, x), step(ours, x)
    assert not own.feature_acts.any()
    assert not out.feature_acts.any()
    near(out.loss.detach(), own.loss.detach(), 1e-6)
    assert float(ours.topk_threshold) == pytest.approx(float(theirs.topk_threshold), rel=1e-6)


@pytest.mark.parametrize("name", BATCH)
def test_ties_at_the_last_place(name: str) -> None:
    """Rows come four times, and 6 of 4 times the largest are taken: whose entry it is changes neither loss nor sums."""
    theirs, ours, x = pair(name, (32, 16, 128, 1.1875))
    x = x[:8].repeat(4, 1)
    own, out = step(theirs, x), step(ours, x)
    assert int((own.feature_acts > 0).sum()) == int((out.feature_acts > 0).sum()) == 38
    near(out.loss.detach(), own.loss.detach(), 1e-6)
    near(out.feature_acts.sum(0).detach(), own.feature_acts.sum(0).detach(), 1e-5)
    for value, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        near(other.grad, value.grad, 1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_a_step_of_the_trainer_makes_nothing_wide(name: str) -> None:
    """400 * 300 elements are more than any matrix here, [tokens, levels, d_in] too."""
    trainer = trainer_of(pair(name, (400, 20, 300, 4))[1], 400, window=-1)
    x = torch.randn(400, 20)
    trainer.step(x)
    with NothingWide(400 * 300):
        trainer.step(x)
    assert int((trainer.n_forward_passes_since_fired == 0).sum()) > 10


def fitted(sae: Any, batches: list[Tensor]) -> tuple[list[float], Any, list[dict[str, float]]]:
    """The loss of every step of `fit`, the trainer, and what it would log of every step."""
    trainer = trainer_of(sae, len(batches[0]), window=8, steps=len(batches), batches=iter(batches))
    losses, told = [], []
    own_step = trainer.step

    def noted(batch: Tensor) -> Any:
        out = own_step(batch)
        losses.append(out.loss.item())
        told.append(trainer.build_train_step_log_dict(out, len(batch)))
        return out

    trainer.step = noted
    trainer.fit()
    return losses, trainer, told


@pytest.mark.parametrize(
    "name", ["batchtopk", "matryoshka_batchtopk, its own AuxK", "jumprelu, tanh, to its input", "standard", "gated"]
)
def test_the_tools_trainer_side_by_side(name: str) -> None:
    """60 steps with latents that die: losses, firing and dead counts, threshold and weights in the end."""
    torch.manual_seed(3)
    atoms = torch.nn.functional.normalize(torch.randn(120, 20), dim=1)
    rows = [torch.randint(120, (64, 4)) for _ in range(60)]
    batches = [3 * atoms[one].sum(1) + 0.05 * torch.randn(64, 20) for one in rows]
    found = []
    for sae in pair(name, (64, 20, 160, 3))[:2]:
        (sae.b_gate if name == "gated" else sae.b_enc).data[:80].sub_(0.4)
        found.append(fitted(sae, batches))
    (plain, theirs, want), (fast, ours, logged) = found
    assert len(plain) == 60
    assert fast == pytest.approx(plain, rel=1e-4)
    for one, other in zip(logged, want, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert 0 < int(theirs.dead_neurons.sum()) < 160
    assert torch.equal(ours.dead_neurons, theirs.dead_neurons)
    assert torch.equal(ours.n_forward_passes_since_fired, theirs.n_forward_passes_since_fired)
    assert torch.equal(ours.act_freq_scores, theirs.act_freq_scores)
    for value, other in zip(theirs.sae.state_dict().values(), ours.sae.state_dict().values(), strict=True):
        torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-4)
    assert not own_steps(ours.sae)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_run_goes_on_from_the_tools_checkpoint_with_the_same_bits(name: str, tmp_path: Path) -> None:
    batches = [torch.randn(40, 20, generator=torch.Generator().manual_seed(at)) for at in range(12)]

    def losses(trainer: Any, some: list[Tensor]) -> list[float]:
        found = []
        for batch in some:
            found.append(trainer.step(batch).loss.item())
            trainer.n_training_steps += 1
        return found

    whole, again = (trainer_of(pair(name, (40, 20, 160, 3))[1], 40, window=3, steps=12) for _ in range(2))
    losses(whole, batches[:7])
    whole.save_checkpoint("seven", tmp_path)
    again.sae.load_weights_from_checkpoint(tmp_path / "seven")
    again.load_trainer_state(tmp_path / "seven")
    assert losses(again, batches[7:]) == losses(whole, batches[7:])
    assert 0 < int(whole.dead_neurons.sum()) < 160
    for (key, value), other in zip(whole.sae.state_dict().items(), again.sae.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    assert not own_steps(again.sae)


def test_jumprelu_clamps_its_thresholds_first() -> None:
    theirs, ours, x = pair("jumprelu, step", (60, 16, 256, 0))
    for module in (theirs, ours):
        module.threshold.data[:40] = -0.5
        module.b_enc.data[:40] -= 2.0
    same(ours, theirs, step(ours, x), step(theirs, x))
    assert ours.threshold.min().item() == 0.0
    assert not own_steps(ours)


def test_activity_is_counted_without_dense_latents() -> None:
    values = torch.tensor([0.5, 0.0, -2.0, 1.0])
    codes = Codes(values, torch.tensor([1, 4, 0, 4], dtype=torch.int32), torch.tensor([0, 2, 2, 4]), torch.Size([3]), 6)
    dense = codes.to_dense()
    lazy: Any = LazyCodes.of(codes)
    active = lazy.bool()
    assert active.dtype == torch.bool
    assert torch.equal(active.float().sum(-2), dense.bool().float().sum(-2))
    assert torch.equal(active.float().sum(0).bool(), dense.bool().any(0))
    assert torch.equal(active.float().sum(-1).to_dense(), dense.bool().float().sum(-1))
    assert lazy._value is None
    assert torch.equal(active.sum(0), dense.bool().sum(0))
    assert torch.equal(active & True, dense.bool())
    assert torch.equal(active.float().sum((0, 1)), dense.bool().float().sum((0, 1)))
    assert lazy._value is None
    assert torch.equal(lazy.sum(0), dense.sum(0))
    assert torch.equal(lazy, dense)
    assert not lazy.is_sparse


def test_powers_silence_and_products_are_told_without_dense_latents() -> None:
    values = torch.tensor([0.5, 2.0, 3.0, 1.0], requires_grad=True)
    codes = Codes(values, torch.tensor([1, 4, 0, 4], dtype=torch.int32), torch.tensor([0, 2, 2, 4]), torch.Size([3]), 6)
    dense, lazy, matrix = codes.to_dense(), LazyCodes.of(codes), torch.randn(6, 5)
    for exponent in (0.5, 1, 2.0, 0):
        near(lazy.pow(exponent).sum(dim=-1).detach(), dense.pow(exponent).sum(dim=-1).detach(), 1e-6)
    near((lazy @ matrix).detach(), (dense @ matrix).detach(), 1e-6)
    assert torch.equal((lazy == 0).all(dim=0), (dense == 0).all(dim=0))
    assert lazy._value is None
    assert torch.equal(lazy.pow(2.0), dense.pow(2.0))
    assert torch.equal(lazy == 0, dense == 0)
    (slope,) = torch.autograd.grad(lazy.pow(0.5).sum(dim=-1).sum(), values)
    near(slope, 0.5 * values.detach() ** -0.5, 1e-6)
