"""Steps that were taken over and steps left to the tool, by the reason: of an object, and of the installed tools."""

from __future__ import annotations

import json

import pytest
import torch

import dictionary_training
import lens_training
import saekernels as sk
from saekernels.cli import main
from saekernels.cli.commands import stats

pytestmark = pytest.mark.peers
SHAPE = (30, 16, 128, 3)
DENSE = {
    "JumpReLU": "more than 1 in 10 pre-activations are above their threshold or within its band",
    "JumpRelu": "more than 1 in 10 pre-activations are above their threshold or within its band",
    "Standard": "more than 1 in 10 latents are active",
    "PAnneal": "more than 1 in 10 latents are active",
    "Gated": "more than 1 in 10 gates are open",
}


@pytest.mark.parametrize("name", [*lens_training.ONE_OF_EACH, "topk, as sparse tensors"])
def test_steps_of_sae_lens(name: str) -> None:
    pytest.importorskip("sae_lens")
    theirs, ours, x = lens_training.pair(name, SHAPE)
    assert sk.step_counts(theirs) == (0, {})
    for _ in range(3):
        lens_training.step(ours, x)
    assert sk.step_counts(ours) == (3, {})
    ours.hook_sae_acts_post.add_hook(lambda value, hook: value)
    lens_training.step(ours, x)
    holder = torch.nn.ModuleList([ours, theirs])
    assert sk.step_counts(holder) == (3, {"a hook is on its latents": 1})


def test_steps_of_a_trainer() -> None:
    ours, x = dictionary_training.pair("gated", SHAPE)[1:]
    for step in range(3):
        ours.update(step, x)
    ours.ae.gate_bias.data.add_(5.0)
    for move in (5.0, 0.0):
        ours.ae.gate_bias.data.add_(move)
        ours.loss(x, step=4)
    taken, left = sk.step_counts(ours)
    assert (taken, left) == (4, {DENSE["Gated"]: 1})


def test_a_tool_that_cannot_take_a_step_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sparsify")
    from saekernels.adapters import sparsify

    monkeypatch.setattr(stats, "TOOLS", ("sparsify",))
    monkeypatch.setattr(sparsify, "SparseCoderConfig", lambda **options: sparsify.nothing)
    reason = "AttributeError: module 'saekernels.adapters.sparsify' has no attribute 'nothing'"
    assert stats.step_counts() == {"sparsify": (0, {reason: 1})}
    assert stats.step_lines(stats.step_counts())[-1].strip().endswith("'nothing'")


def test_a_first_step_of_each_class(capsys: pytest.CaptureFixture[str]) -> None:
    found = stats.step_counts()
    for name, counts in found.items():
        kind = name.split()[1]
        reason = next((reason for start, reason in DENSE.items() if kind.startswith(start)), None)
        assert counts == ((1, {}) if reason is None else (0, {reason: 1})), name
    tools = {name.split()[0] for name in found}
    assert {"sae_lens", "sparsify"} <= tools
    assert main(["info", "--stats", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["training_steps"]
    assert told == {name: {"taken": taken, "left": left} for name, (taken, left) in found.items()}
    assert main(["info", "--stats"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "sae_lens BatchTopKTrainingSAE 1 taken over" in text
    assert "sae_lens GatedTrainingSAE 1 left to the tool: more than 1 in 10 gates are open" in text
