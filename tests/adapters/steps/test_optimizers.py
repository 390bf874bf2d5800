"""`accelerate(trainer, optimizer=True)`: our Adam in place of a trainer's, in the middle of a run and back, by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_training
import saekernels as sk
from dictionary_training import ONE_OF_EACH, pair
from saekernels.adapters import NotAccelerated
from saekernels.optim import Adam
from sparsify_training import sparsify_trainer

pytestmark = pytest.mark.peers
SHAPE = (64, 20, 160, 3)


def batches(count: int) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(64, 20) for _ in range(count)]


def weights_near(ours: Any, theirs: Any) -> None:
    for value, other in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_dictionary_learning_with_ours_from_the_middle_and_back(name: str) -> None:
    """10 steps of its own, 20 with ours, 10 of its own: learning rates, moments and weights as without."""
    data = batches(40)
    theirs, ours, _ = pair(name, SHAPE, steps=40, like=data[0], decay_start=15)
    own = ours.optimizer
    rates, found = [], []
    for trainer in (theirs, ours):
        rows = []
        for step, x in enumerate(data):
            if trainer is ours and step == 10:
                assert sk.accelerate(ours, optimizer=True) is ours
                assert type(ours.optimizer) is Adam
            if trainer is ours and step == 30:
                sk.restore(ours)
                assert ours.optimizer is own
            trainer.update(step, x)
            rows.append(float(trainer.loss(x, step=step).detach()))
            rates.append(trainer.optimizer.param_groups[-1]["lr"])
        found.append(rows)
    assert rates[:40] == rates[40:]
    assert len({*rates}) > 10
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    weights_near(ours.ae, theirs.ae)
    for one, other in zip(theirs.optimizer.param_groups, own.param_groups, strict=True):
        assert {key: value for key, value in other.items() if key != "params"} == {
            key: value for key, value in one.items() if key != "params"
        }
    for param, other in zip(theirs.ae.parameters(), ours.ae.parameters(), strict=True):
        state, moved = theirs.optimizer.state[param], own.state[other]
        assert float(state["step"]) == float(moved["step"]) == 40
        for moment in ("exp_avg", "exp_avg_sq"):
            lens_training.near(moved[moment], state[moment], 1e-3)
            assert moved[moment].stride() == other.stride()


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_a_fused_adam_of_torch_goes_on_in_the_middle_of_a_run(name: str) -> None:
    """It takes for granted that moments lie like their parameters, which `accelerate` and `restore` lay out anew."""
    data = batches(15)
    theirs, ours, _ = pair(name, SHAPE, steps=40, like=data[0])
    sk.restore(ours)
    for trainer in (theirs, ours):
        for group in trainer.optimizer.param_groups:
            group["fused"] = True
        for step, x in enumerate(data):
            if trainer is ours and step == 5:
                sk.accelerate(ours)
            if trainer is ours and step == 10:
                sk.restore(ours)
            trainer.update(step, x)
    weights_near(ours.ae, theirs.ae)
    for value, other in zip(theirs.ae.parameters(), ours.ae.parameters(), strict=True):
        lens_training.near(other.detach(), value.detach(), 1e-5)


def test_the_first_step_is_one_that_schedulers_see() -> None:
    ours, x = pair("gated", SHAPE)[1:]
    sk.accelerate(ours, optimizer=True)
    assert [len(group["params"]) for group in ours.optimizer.param_groups] == [5, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3):
            ours.update(step, x)
    norms = ours.ae.decoder.weight.norm(dim=0)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)


def test_resampling_resets_our_moments() -> None:
    found = []
    for fast in (False, True):
        trainer, ours, x = pair("standard, resampling", SHAPE)
        trainer = sk.accelerate(ours, optimizer=True) if fast else trainer
        for step in range(3):
            trainer.update(step, x)
        dead = torch.arange(160) % 2 == 0
        torch.manual_seed(0)
        trainer.resample_neurons(dead, x)
        found.append([trainer.optimizer.state[one]["exp_avg"] for one in trainer.ae.parameters()])
        assert not found[-1][1][dead].any()
        assert found[-1][1][~dead].any()
    for one, other in zip(*found, strict=True):
        lens_training.near(other, one, 1e-4)


@pytest.mark.parametrize("name", ["batchtopk", "standard"])
def test_sae_lens_with_its_checkpoint(name: str, tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    data = batches(16)
    trainers = [lens_training.trainer_of(lens_training.pair(name, SHAPE)[0], 64, window=4, steps=16) for _ in range(3)]
    theirs, ours, resumed = trainers
    sk.accelerate(ours, optimizer=True)
    assert sk.is_accelerated(ours.sae)
    assert type(ours.optimizer) is Adam
    losses: list[list[float]] = []
    for trainer in (theirs, ours):
        losses.append([])
        for at, x in enumerate(data):
            losses[-1].append(trainer.step(x).loss.item())
            trainer.n_training_steps += 1
            if trainer is ours and at == 7:
                ours.save_checkpoint("eight", tmp_path)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    weights_near(ours.sae, theirs.sae)
    sk.accelerate(resumed, optimizer=True)
    resumed.sae.load_weights_from_checkpoint(tmp_path / "eight")
    resumed.load_trainer_state(tmp_path / "eight")
    assert [resumed.step(x).loss.item() for x in data[8:]] == losses[1][8:]


def test_what_is_refused_by_name() -> None:
    ours = pair("topk", SHAPE)[0]
    parameters = [*ours.ae.parameters()]
    trainer = "of TopKTrainer"
    for optimizer, message in (
        (torch.optim.SGD(parameters, lr=0.1), "TopKTrainer steps with SGD, need torch.optim.Adam or AdamW"),
        (torch.optim.Adam(parameters, amsgrad=True), f"the Adam {trainer}: amsgrad: got True, need False; "),
    ):
        ours.optimizer = optimizer
        with pytest.raises(NotAccelerated, match=f"^optimizer: {message}"):
            sk.accelerate(ours, optimizer=True)
        assert ours.optimizer is optimizer
        assert not sk.is_accelerated(ours)
    ours.optimizer = torch.optim.Adam(parameters)
    ours.optimizer.register_step_post_hook(lambda *given: None)
    with pytest.raises(NotAccelerated, match=f"^optimizer: the Adam {trainer} has hooks on its steps$"):
        sk.accelerate(ours, optimizer=True)
    with pytest.raises(NotAccelerated, match=r"^optimizer: AutoEncoderTopK is no trainer, and has none$"):
        sk.accelerate(ours.ae, optimizer=True)


def test_sparsify_steps_with_ours_or_says_why_not(tmp_path: Path) -> None:
    sparsify = pytest.importorskip("sparsify")
    plain, fast = (sparsify_trainer(tmp_path, "adam", 12) for _ in range(2))
    sk.accelerate(fast[0], optimizer=True)
    assert isinstance(fast[0], sparsify.Trainer)
    assert [type(one) for one in fast[0].optimizers] == [Adam]
    for trainer, _ in (plain, fast):
        trainer.fit()
    for one, other in zip(fast[1], plain[1], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    signum = sparsify_trainer(tmp_path, "signum", 2)[0]
    message = "^optimizer: Trainer steps with ScheduleFreeWrapper, need torch.optim.Adam or AdamW$"
    with pytest.raises(NotAccelerated, match=message):
        sk.accelerate(signum, optimizer=True)
    assert not sk.is_accelerated(signum)
    assert sk.is_accelerated(sk.accelerate(signum))
