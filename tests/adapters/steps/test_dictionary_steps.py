"""Steps of dictionary_learning's trainers from sparse entries: losses, gradients and state of the tool's own step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dictionary_training import CLASSES, ONE_OF_EACH, SHAPES, losses, own_steps, pair, same, taken
from lens_training import near
from live_saes import NothingWide

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("share", [0.0, 0.4], ids="{} dead".format)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_losses_and_gradients_are_those_of_its_own_step(
    name: str, shape: tuple[int, int, int, int], share: float
) -> None:
    theirs, ours, x = pair(name, shape)
    if hasattr(theirs, "num_tokens_since_fired"):
        dead = (torch.rand(shape[2]) < share) * theirs.dead_feature_threshold
        for trainer in (theirs, ours):
            trainer.num_tokens_since_fired += dead
    for _ in range(2):  # the second step begins at what the first remembers
        same(ours, theirs, losses(ours, x), losses(theirs, x))
    assert not own_steps(ours)
    assert taken(ours) == 2


@pytest.mark.parametrize("name", CLASSES)
def test_a_step_makes_nothing_wide(name: str) -> None:
    """400 * 300 elements are more than any matrix here, [tokens, levels, d_in] too."""
    trainer, x = pair(name, (400, 20, 300, 4))[1:]
    if hasattr(trainer, "num_tokens_since_fired"):
        trainer.num_tokens_since_fired[::3] += trainer.dead_feature_threshold
    trainer.update(1, x)
    with NothingWide(400 * 300):
        trainer.update(2, x)
    assert taken(trainer) == 2


@pytest.mark.parametrize("name", ["topk", "batch_topk", "matryoshka"])
def test_fewer_positive_pre_activations_than_it_selects(name: str) -> None:
    """TopKTrainer counts zeros that it selects as alive; none at all has no least value for the threshold."""
    theirs, ours, x = pair(name, (40, 16, 128, 30))
    for trainer in (theirs, ours):
        (trainer.ae.b_enc if name == "matryoshka" else trainer.ae.encoder.bias).data.sub_(3.0)
        trainer.num_tokens_since_fired[::2] += trainer.dead_feature_threshold
    want = losses(theirs, x)
    assert 0 < int((want[1].f > 0).sum()) < 40 * 30
    same(ours, theirs, losses(ours, x), want)
    assert not own_steps(ours)
    alive = theirs.num_tokens_since_fired == 0
    assert bool((alive & ~(want[1].f > 0).any(0)).any()) == (name == "topk")


@pytest.mark.parametrize("width", [0.001, 0.5])
def test_jumprelu_counts_inactive_latents_as_values_of_zero(width: float) -> None:
    """Thresholds below half the bandwidth, 0 and negative ones, whose inactive values 0 are above them."""
    theirs, ours, x = pair("jumprelu", (60, 16, 256, 0), bandwidth=width)
    for trainer in (theirs, ours):
        trainer.ae.threshold.data[:40] = torch.tensor([0.4, 0.2, 0.0, -0.3]).repeat(10) * width
        trainer.ae.threshold.data[40:50] = -0.3
        trainer.ae.b_enc.data[:50] -= 2.0
    same(ours, theirs, losses(ours, x), losses(theirs, x))
    assert not own_steps(ours)
    values = ours.loss(x, step=5, logging=True).f
    assert float(values.min()) < 0 < float((values[:, :50] != 0).sum())


@pytest.mark.parametrize("name", ["topk", "batch_topk"])
def test_without_auxk(name: str) -> None:
    theirs, ours, x = pair(name, (30, 16, 128, 4), auxk_alpha=0.0)
    for trainer in (theirs, ours):
        trainer.num_tokens_since_fired[::2] += trainer.dead_feature_threshold
    want, found = theirs.loss(x, step=5), ours.loss(x, step=5)
    near(found.detach(), want.detach(), 1e-6)
    assert ours.dead_features == theirs.dead_features
    assert (ours.dead_features == -1) == (name == "topk")


def updates(trainer: object, batches: list[Tensor]) -> list[float]:
    """The loss before every update; trainers with counters count it without gradients, too, and both ways alike."""
    found = []
    for step, x in enumerate(batches):
        with torch.no_grad():
            found.append(float(trainer.loss(x, step=step)))  # type: ignore[attr-defined]
        trainer.update(step, x)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "standard, resampling"])
def test_trainers_side_by_side(name: str) -> None:
    """200 steps with latents that die: losses, counts, threshold and weights in the end.

    40 of an annealed penalty, of three powers: it makes more of a rounding error with every step.
    """
    steps = 40 if "anneal" in name else 200
    torch.manual_seed(3)
    atoms = torch.nn.functional.normalize(torch.randn(120, 20), dim=1)
    batches = [3 * atoms[torch.randint(120, (64, 4))].sum(1) + 0.05 * torch.randn(64, 20) for _ in range(steps)]
    theirs, ours, _ = pair(name, (64, 20, 160, 3), steps=steps, like=batches[0])
    for trainer in (theirs, ours):
        trainer.dead_feature_threshold = 300
    curves = []
    for trainer in (theirs, ours):
        torch.manual_seed(4)  # resampling draws
        curves.append(updates(trainer, batches))
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    for value, other in zip(theirs.ae.state_dict().values(), ours.ae.state_dict().values(), strict=True):
        torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-4)
    if hasattr(theirs, "num_tokens_since_fired"):
        assert torch.equal(ours.num_tokens_since_fired, theirs.num_tokens_since_fired)
        assert 0 < theirs.dead_features == ours.dead_features < 160
    if "anneal" in name:
        told = ours.get_logging_parameters()
        assert (told["p"], told["next_p"]) == (pytest.approx(0.8 / 3), 0.0)
        assert 0.3 != told["sparsity_coeff"] == pytest.approx(theirs.sparsity_coeff, rel=1e-5)
    assert taken(ours) + sum(own_steps(ours).values()) == steps
    # Resampled latents begin with a bias of 0, so that codes are dense for a while.
    assert taken(ours) == steps or (name == "standard, resampling" and taken(ours) > 100)


@pytest.mark.parametrize("name", ["topk", "standard", "gated"])
def test_half_precision_is_no_further_from_float32_than_its_own(name: str) -> None:
    """Of a batch's largest, ties in 8 bits decide which come last, here as there; JumpReLU's own step takes none."""
    theirs, ours, x = pair(name, (64, 32, 256, 4))
    exact = pair(name, (64, 32, 256, 4))[0]
    for trainer in (theirs, ours):
        trainer.ae.to(torch.bfloat16)
    for value, rounded in zip(exact.ae.parameters(), theirs.ae.parameters(), strict=True):
        value.data.copy_(rounded.data.float())
    x = x.bfloat16()
    for trainer in (exact, theirs, ours):
        trainer.loss(x.float() if trainer is exact else x, step=5).backward()
    errors = [
        sum(
            float((value.grad.float() - truth.grad).norm() / truth.grad.norm())
            for value, truth in zip(trainer.ae.parameters(), exact.ae.parameters(), strict=True)
        )
        for trainer in (ours, theirs)
    ]
    assert errors[0] <= 1.05 * errors[1]
    assert taken(ours) == 1
