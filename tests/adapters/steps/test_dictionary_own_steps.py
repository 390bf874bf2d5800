"""What dictionary_learning's trainers leave to the tool's own code, and say so; what is refused and restored."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch

import saekernels as sk
from dictionary_training import ONE_OF_EACH, losses, own_steps, pair, same, taken, told
from saekernels.adapters import NotAccelerated, UnknownVersion, verify
from saekernels.adapters.dense_latents import LazyCodes
from saekernels.adapters.patch import state_of

pytestmark = pytest.mark.peers
SHAPE = (30, 16, 128, 3)


def _hook(trainer: Any) -> None:
    part = trainer.ae.encoder if hasattr(trainer.ae, "encoder") else trainer.ae
    part.register_forward_hook(lambda module, given, out: None)


def _replace(trainer: Any) -> None:
    own = type(trainer.ae).encode
    trainer.ae.encode = lambda *args, **options: own(trainer.ae, *args, **options)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_hook, "a hook is on its dictionary"),
        (_replace, "its 'encode' was replaced"),
        (lambda trainer: sk.restore(trainer.ae), "its dictionary is another one, or not accelerated"),
    ],
    ids=["hook", "replaced", "restored"],
)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_sparse_entries_cannot_give_is_its_own_step_and_said(
    name: str, change: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, ours, x = pair(name, SHAPE)
    for trainer in (theirs, ours):
        change(trainer)
    with caplog.at_level(logging.WARNING, logger="saekernels"):
        same(ours, theirs, losses(ours, x), losses(theirs, x))
    kind = type(ours).__name__
    assert [one.getMessage() for one in caplog.records] == [
        f"{kind}: a training step runs the tool's own code: {reason}"
    ]
    assert own_steps(ours) == {reason: 1}
    assert taken(ours) == 0


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_autocast_and_odd_inputs_are_its_own_step(name: str) -> None:
    theirs, ours, x = pair(name, SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, found = (float(trainer.loss(x, step=5).detach()) for trainer in (theirs, ours))
    assert found == pytest.approx(want, rel=1e-6)
    reasons = ["autocast is on"]
    for trainer in (theirs, ours):
        trainer.ae.double()
    if name == "jumprelu":  # it casts its input itself
        same(ours, theirs, losses(ours, x), losses(theirs, x))
    else:
        same(ours, theirs, losses(ours, x.double()), losses(theirs, x.double()))
    reasons.append("its input or its weights are none that the kernels serve")
    if name in ("standard", "gated", "p_anneal", "gated_anneal"):
        cubes = x.double().view(2, 15, 16)
        same(ours, theirs, losses(ours, cubes), losses(theirs, cubes))
        reasons.append("its input is not [tokens, d_in]")
    assert list(own_steps(ours)) == reasons
    assert taken(ours) == 0


def test_settings_of_its_own() -> None:
    theirs, ours, x = pair("batch_topk", SHAPE)
    for trainer in (theirs, ours):
        trainer.top_k_aux = 0
    same(ours, theirs, losses(ours, x), losses(theirs, x))
    theirs, other, x = pair("matryoshka", SHAPE)
    for trainer in (theirs, other):
        trainer.ae.active_groups = 2
    same(other, theirs, losses(other, x), losses(theirs, x))
    assert own_steps(ours) == {"its top_k_aux is 0": 1}
    assert own_steps(other) == {"2 of its 3 groups are on": 1}
    for name in ("topk", "batch_topk"):
        found = []
        for trainer in pair(name, SHAPE)[:2]:
            trainer.ae.k.fill_(200)
            with pytest.raises(RuntimeError, match="out of range") as caught:
                trainer.loss(x, step=5)
            found.append(str(caught.value))
        assert found[0] == found[1]


DENSE = {
    "jumprelu": ("threshold", "more than 1 in 10 pre-activations are above their threshold or within its band"),
    "standard": ("encoder.bias", "more than 1 in 10 latents are active"),
    "gated": ("gate_bias", "more than 1 in 10 gates are open"),
    "p_anneal": ("encoder.bias", "more than 1 in 10 latents are active"),
    "gated_anneal": ("gate_bias", "more than 1 in 10 gates are open"),
}


@pytest.mark.parametrize("name", DENSE)
def test_steps_are_its_own_while_they_are_dense(name: str) -> None:
    theirs, ours, x = pair(name, (60, 16, 256, 0))
    path, reason = DENSE[name]
    sign = 1 if name == "jumprelu" else -1
    found = []
    for move in (-5.0, 5.0, 0.0):  # dense, sparse again, and still
        for trainer in (theirs, ours):
            trainer.ae.get_parameter(path).data.add_(sign * move)
        same(ours, theirs, losses(ours, x), losses(theirs, x))
        found.append((taken(ours), sum(own_steps(ours).values())))
    assert found == [(0, 1), (1, 1), (2, 1)]
    inner = state_of(ours.ae)
    assert inner is not None
    assert inner.density is None, "a step of its own had sparse codes made for it"
    assert own_steps(ours) == {reason: 1}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_it_is_restored_and_made_inside_the_swap(name: str) -> None:
    theirs, ours, x = pair(name, SHAPE)
    assert sk.is_accelerated(ours)
    assert sk.is_accelerated(ours.ae)
    assert isinstance(told(ours, x).f, LazyCodes)
    for value, other in zip(ours.ae.state_dict().values(), theirs.ae.state_dict().values(), strict=True):
        assert value.is_contiguous()
        assert value.shape == other.shape
    sk.restore(ours)
    assert "loss" not in vars(ours)
    assert not sk.is_accelerated(ours)
    assert not sk.is_accelerated(ours.ae)
    assert not isinstance(told(ours, x).f, LazyCodes)
    with sk.swapped("dictionary_learning"):
        inside = pair(name, SHAPE)[0]
    assert state_of(inside) is not None
    assert state_of(inside.ae) is not None
    inside.loss(x, step=5).backward()
    assert taken(inside) == 1


@pytest.mark.parametrize("name", ["topk", "batch_topk", "matryoshka", "jumprelu"])
def test_a_copy_is_accelerated_too(name: str) -> None:
    theirs, ours, x = pair(name, SHAPE)
    again = copy.deepcopy(ours)
    same(again, theirs, losses(again, x), losses(theirs, x))
    assert (taken(again), taken(ours)) == (1, 0)
    assert torch.equal(ours.num_tokens_since_fired, torch.zeros(SHAPE[2], dtype=torch.long))


def test_what_is_refused() -> None:
    from dictionary_learning.trainers import standard, top_k

    options = {"steps": 10, "activation_dim": 8, "dict_size": 32, "layer": 0, "lm_name": "x", "warmup_steps": 1}
    trainer = standard.StandardTrainerAprilUpdate(**options, device="cpu", sparsity_warmup_steps=1)
    message = r": its losses are not known; its SAE alone, its attribute 'ae', may be served$"
    with pytest.raises(NotAccelerated, match="^StandardTrainerAprilUpdate" + message):
        sk.accelerate(trainer)
    assert not sk.is_accelerated(trainer)

    class Own(top_k.AutoEncoderTopK):  # type: ignore[misc]
        pass

    with pytest.raises(NotAccelerated, match=r"^TopKTrainer: it trains a Own, not a AutoEncoderTopK$"):
        sk.accelerate(top_k.TopKTrainer(**options, k=2, device="cpu", dict_class=Own))
    jumprelu = pair("jumprelu", SHAPE)[0]
    for trainer in (jumprelu, sk.accelerate(jumprelu)):
        with pytest.raises(ValueError, match=r": JumpReluTrainer: it is a trainer; its SAE is its attribute 'ae'$"):
            sk.splice(torch.nn.ModuleDict({"a": torch.nn.Linear(16, 16)}), {"a": trainer})


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_an_unknown_version_has_its_step_checked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = pair(name, SHAPE)[0]
    monkeypatch.setattr(verify, "installed", lambda package: "99.0")
    before = copy.deepcopy(ours.ae.state_dict())
    with pytest.warns(UnknownVersion, match="99.0"):
        sk.accelerate(ours)
    assert all(torch.equal(value, before[key]) for key, value in ours.ae.state_dict().items())
    counts = getattr(ours, "num_tokens_since_fired", torch.zeros(1))
    assert not counts.any()
    assert taken(ours) == 0
    sk.restore(ours)
    kind, path = (type(ours.ae), "decode") if "anneal" in name else (type(ours), "loss")
    own = getattr(kind, path)

    def other(self: Any, *args: Any, **options: Any) -> Any:
        found = own(self, *args, **options)
        if path == "decode":  # the loss of the annealed ones is the tool's own, with and without us
            return found + 7.0
        return found._replace(losses={**found.losses, "loss": found.losses["loss"] + 7.0})

    monkeypatch.setattr(kind, path, other)
    differs = "[1-9]" if path == "decode" else "7"
    with pytest.raises(NotAccelerated, match=f"on a small batch the result differs from its own by {differs}"):
        sk.accelerate(ours)
    assert not sk.is_accelerated(ours)
    assert not sk.is_accelerated(ours.ae)
