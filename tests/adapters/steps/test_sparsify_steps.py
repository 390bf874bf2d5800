"""sparsify's forward with AuxK and Multi-TopK from sparse entries: losses, gradients and its trainer, as its own."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saekernels as sk
from lens_training import near, own_steps
from live_saes import NothingWide
from saekernels.adapters.patch import state_of
from sparsify_training import sparsify_trainer

pytestmark = pytest.mark.peers
sparsify = pytest.importorskip("sparsify", reason="the peers extra is not installed")

SHAPES = [(16, 16, 64, 3), (64, 48, 512, 8), (33, 24, 300, 1), (2, 8, 40, 2), (200, 20, 1024, 16)]
KINDS: dict[str, dict[str, Any]] = {
    "topk": {},
    "multi_topk": {"multi_topk": True},
    "groupmax": {"activation": "groupmax"},
    "groupmax, multi_topk": {"activation": "groupmax", "multi_topk": True},
    "transcoder": {"transcode": True, "multi_topk": True},
    "skip": {"skip_connection": True, "multi_topk": True},
}


def pair(name: str, shape: tuple[int, int, int, int]) -> tuple[Any, Any, Tensor, Tensor | None]:
    """(the tool's own coder, the same accelerated, a batch, what a transcoder is to give), all weights used."""
    tokens, d, latents, k = shape
    if name.startswith("groupmax"):
        latents -= latents % k
    torch.manual_seed(0)
    theirs = sparsify.SparseCoder(d, sparsify.SparseCoderConfig(num_latents=latents, k=k, **KINDS[name]))
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(torch.randn_like(value) * 0.1)
        theirs.encoder.bias.add_(1.0)  # so many positive that none has to be chosen among zeros
    target = torch.randn(tokens, d) if name == "transcoder" else None
    return theirs, sk.accelerate(copy.deepcopy(theirs)), torch.randn(tokens, d), target


def step(module: Any, x: Tensor, y: Tensor | None, dead: Tensor | None, **given: Any) -> Any:
    """A forward pass and the backward pass of what the tool's trainer adds up, from gradients of none."""
    module.zero_grad()
    out = module(x, y, dead_mask=dead, **given)
    (out.fvu + 0.5 * out.auxk_loss + out.multi_topk_fvu / 8).backward()
    return out


def same(ours: Any, theirs: Any, found: Any, want: Any) -> None:
    """Losses to 1e-6, gradients to 1e-5, the same latents, whose order is the tool's to choose."""
    for name in ("fvu", "auxk_loss", "multi_topk_fvu"):
        near(getattr(found, name).detach(), getattr(want, name).detach(), 1e-6)
    near(found.sae_out.detach(), want.sae_out.detach(), 1e-5)
    assert torch.equal(found.latent_indices.sort(-1).values, want.latent_indices.sort(-1).values)
    near(found.latent_acts.detach().sort(-1).values, want.latent_acts.detach().sort(-1).values, 1e-5)
    assert found.latent_acts.requires_grad == (want.latent_acts.requires_grad and not theirs.cfg.multi_topk)
    for (name, value), other in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert value.grad is not None, name
        near(other.grad, value.grad, 1e-5)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.6], ids="{} dead".format)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_losses_and_gradients_are_those_of_its_own_forward(
    name: str, shape: tuple[int, int, int, int], share: float
) -> None:
    theirs, ours, x, y = pair(name, shape)
    dead = torch.rand(theirs.num_latents) < share
    same(ours, theirs, step(ours, x, y, dead), step(theirs, x, y, dead))
    variance = torch.tensor(17.0)
    same(
        ours, theirs, step(ours, x, y, None, total_variance=variance), step(theirs, x, y, None, total_variance=variance)
    )
    assert not own_steps(ours)
    state = state_of(ours)
    assert state is not None
    assert state.steps == 2


@pytest.mark.parametrize("name", KINDS)
def test_a_step_makes_nothing_wide(name: str) -> None:
    ours, x, y = pair(name, (400, 20, 300, 4))[1:]
    dead = torch.arange(300) % 3 == 0
    step(ours, x, y, dead)
    with NothingWide(400 * 300):
        step(ours, x, y, dead)


def _replace(module: Any) -> None:
    own = type(module).decode
    module.decode = lambda *given: own(module, *given)


REASONS: dict[str, Any] = {
    "its 'decode' was replaced": _replace,
    "its input or its weights are none that the kernels serve": lambda module: module.double(),
    "it selects 1028 of 512 latents": lambda module: setattr(module.cfg, "k", 257),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_sparse_entries_cannot_give_is_its_own_step_and_said(
    reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, ours, x, _ = pair("multi_topk", (64, 48, 512, 8))
    dead = torch.arange(512) % 4 == 0
    for module in (theirs, ours):
        REASONS[reason](module)
    x = x.to(theirs.dtype)
    with caplog.at_level(logging.WARNING, logger="saekernels"):
        for _ in range(2):
            if "selects" in reason:
                messages = []
                for module in (theirs, ours):
                    with pytest.raises(RuntimeError, match="out of range") as caught:
                        step(module, x, None, dead)
                    messages.append(str(caught.value))
                assert messages[0] == messages[1]
            else:
                same_values(step(ours, x, None, dead), step(theirs, x, None, dead))
    assert [one.getMessage() for one in caplog.records] == [
        f"SparseCoder: a training step runs the tool's own code: {reason}"
    ]
    assert own_steps(ours) == {reason: 2}


def same_values(found: Any, want: Any) -> None:
    for one, other in zip(found[3:], want[3:], strict=True):
        near(one.detach(), other.detach(), 1e-6)


def test_autocast_and_three_dimensions_are_its_own_forward() -> None:
    theirs, ours, x, _ = pair("multi_topk", (64, 48, 512, 8))
    flat = float(step(ours, x, None, None, total_variance=3.0).fvu)
    cubes = step(ours, x.view(2, 32, 48), None, None, total_variance=3.0)  # which the tool's own decoder refuses
    assert float(cubes.fvu) == pytest.approx(flat, rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, want = step(ours, x, None, None), step(theirs, x, None, None)
    assert float(found.fvu) == pytest.approx(float(want.fvu), rel=2e-2)
    assert list(own_steps(ours)) == [
        "its input is not [tokens, d_in], and it wants all pre-activations",
        "autocast is on, and it wants all pre-activations",
    ]


def test_a_look_without_gradients_is_no_step() -> None:
    _, ours, x, _ = pair("multi_topk", (64, 48, 512, 8))
    with torch.no_grad():
        ours(x, dead_mask=torch.ones(512, dtype=torch.bool))
    state = state_of(ours)
    assert state is not None
    assert (state.steps, dict(state.own_steps)) == (0, {})


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [("adam", {"multi_topk": True}), ("adam", {"transcode": True}), ("signum", {"multi_topk": True})],
    ids=["adam", "transcoder", "signum"],
)
def test_the_tools_trainer_side_by_side(optimizer: str, options: dict[str, Any], tmp_path: Path) -> None:
    """100 steps with latents that die and AuxK; signum takes signs of gradients, where rounding near 0 shows."""
    steps = 100 if optimizer == "adam" else 20
    (theirs, want), (ours, found) = (sparsify_trainer(tmp_path, optimizer, steps, **options) for _ in range(2))
    sk.accelerate(ours)
    for trainer in (theirs, ours):
        trainer.fit()
    assert len(want) == steps
    assert max(one[1] for one in want) > 0
    for one, other in zip(found, want, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    (name,) = theirs.saes
    counts, other = theirs.num_tokens_since_fired[name], ours.num_tokens_since_fired[name]
    assert torch.equal(counts, other)
    assert 0 < int((counts > 0).sum()) < 256
    assert not own_steps(ours.saes[name])
