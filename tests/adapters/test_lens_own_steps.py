"""What training steps of sae-lens leave to the tool's own code, and say so; what is refused, checked and restored."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

import saekernels as sk
from lens_training import ONE_OF_EACH, own_steps, pair, same, step
from saekernels.adapters import NotAccelerated, UnknownVersion, verify
from saekernels.adapters.dense_latents import LazyTensor

pytestmark = pytest.mark.peers
sae_lens = pytest.importorskip("sae_lens", reason="the peers extra is not installed")


def _three(x: Tensor, hook: Any) -> Tensor:
    return x * 3.0


def _hook(point: str) -> Any:
    return lambda module: getattr(module, point).add_hook(_three)


ODD: dict[str, tuple[Any, str]] = {
    "hook after": (_hook("hook_sae_acts_post"), "a hook is on its latents"),
    "hook before": (_hook("hook_sae_acts_pre"), "a hook is on its latents"),
    "activation": (
        lambda module: setattr(module, "activation_fn", torch.nn.GELU()),
        "its activation function is not the one of its config",
    ),
    "replaced": (
        lambda module: setattr(module, "calculate_aux_loss", lambda **_: {"own": module.b_dec.sum()}),
        "its 'calculate_aux_loss' was replaced",
    ),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_sparse_entries_cannot_give_is_its_own_step_and_said(
    name: str, odd: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, ours, x = pair(name, (30, 16, 128, 3))
    change, reason = ODD[odd]
    for module in (theirs, ours):
        change(module)
    with caplog.at_level(logging.WARNING, logger="saekernels"):
        for _ in range(2):
            same(ours, theirs, step(ours, x), step(theirs, x))
    kind = type(ours).__name__
    assert [one.getMessage() for one in caplog.records] == [
        f"{kind}: a training step runs the tool's own code: {reason}"
    ]
    assert own_steps(ours) == {reason: 2}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_autocast_and_odd_inputs_are_its_own_step(name: str) -> None:
    theirs, ours, x = pair(name, (30, 16, 128, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own, out = step(theirs, x), step(ours, x)
    assert out.loss.item() == pytest.approx(own.loss.item(), rel=1e-2)
    reasons = ["autocast is on"]
    if name == "batchtopk":  # Matryoshka's own takes two dimensions alone
        cubes = x.view(2, 15, 16)
        same(ours, theirs, step(ours, cubes), step(theirs, cubes))
        reasons.append("its input is not [tokens, d_in]")
        for module in (theirs, ours):
            module.cfg.k = module.activation_fn.k = 1 / 60
        same(ours, theirs, step(ours, x), step(theirs, x))
        reasons.append("it selects 0 of 3840 latents")
        for module in (theirs, ours):
            module.cfg.k = module.activation_fn.k = 3
            module.double()
            module.dtype = torch.float64
        same(ours, theirs, step(ours, x.double()), step(theirs, x.double()))
        reasons.append("its input or its weights are none that the kernels serve")
    assert list(own_steps(ours)) == reasons


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_hooks_around_the_latents_are_called(name: str) -> None:
    own = f"{name}, its own AuxK" if name.startswith("matryoshka") else name
    for one in (name, own):
        theirs, ours, x = pair(one, (30, 16, 128, 3))
        for module in (theirs, ours):
            _hook("hook_sae_input")(module)
            _hook("hook_sae_recons")(module)
        dead = torch.arange(128) % 3 == 0
        same(ours, theirs, step(ours, x, dead), step(theirs, x, dead))
        # Gated's own auxiliary path reads the input past its hooks.
        assert own_steps(ours) == ({"a hook is on its input": 1} if name == "gated" else {})


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_class_of_its_own_is_refused_and_the_swap_leaves_it(name: str) -> None:
    kind, config = sae_lens.registry.get_sae_training_class(name.split(",")[0])
    options = {"matryoshka_widths": [8, 32]} if name.startswith("matryoshka") else {}

    class Own(kind):  # type: ignore[misc, valid-type]
        pass

    with pytest.raises(NotAccelerated, match=r"^Own: it is a class of its own, whose maths is not known$"):
        sk.accelerate(Own(config(d_in=8, d_sae=32, **options)))
    with sk.swapped("sae_lens"):
        own, made = (one(config(d_in=8, d_sae=32, **options)) for one in (Own, kind))
    assert not sk.is_accelerated(own)
    assert sk.is_accelerated(made)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_step_that_the_runner_compiles_runs_as_it_is(name: str) -> None:
    theirs, ours, x = pair(name, (30, 16, 128, 3))
    compiled = []
    ours.training_forward_pass = torch.compile(
        ours.training_forward_pass, backend=lambda graph, inputs: compiled.append(graph) or graph.forward
    )
    same(ours, theirs, step(ours, x), step(theirs, x))
    assert not own_steps(ours)
    assert not compiled


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_it_is_saved_copied_and_restored_as_it_was(name: str, tmp_path: Any) -> None:
    theirs, ours, x = pair(name, (30, 16, 128, 3))
    step(theirs, x), step(ours, x)
    for folder, module in (("theirs", theirs), ("ours", ours)):
        for buffer in module.buffers():
            buffer.fill_(0.3)
        module.save_inference_model(tmp_path / folder)
    files = [(tmp_path / folder / "sae_weights.safetensors").read_bytes() for folder in ("theirs", "ours")]
    assert files[0] == files[1]
    again = copy.deepcopy(ours)
    same(again, theirs, step(again, x), step(theirs, x))
    assert isinstance(step(again, x).feature_acts, LazyTensor)
    sk.restore(ours)
    assert "training_forward_pass" not in vars(ours)
    assert ours.W_enc.is_contiguous()
    assert not isinstance(step(ours, x).feature_acts, LazyTensor)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_an_unknown_version_has_its_step_checked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = pair(name, (8, 16, 128, 3))[0]
    monkeypatch.setattr(verify, "installed", lambda package: "99.0")
    before = copy.deepcopy(ours.state_dict())
    with pytest.warns(UnknownVersion, match="99.0"):
        sk.accelerate(ours)
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    sk.restore(ours)
    kind = type(ours)
    original = kind.calculate_aux_loss

    def other(self: Any, **given: Any) -> dict[str, Tensor]:
        return {name: loss + 7.0 for name, loss in original(self, **given).items()}

    monkeypatch.setattr(kind, "calculate_aux_loss", other)
    with pytest.raises(NotAccelerated, match="on a small batch the result differs from its own by 7"):
        sk.accelerate(ours)
    assert not sk.is_accelerated(ours)


DENSE = {
    "jumprelu, step": "more than 1 in 10 pre-activations are above their threshold or within its band",
    "standard": "more than 1 in 10 latents are active",
    "gated": "more than 1 in 10 gates are open",
}


@pytest.mark.parametrize("name", DENSE)
def test_steps_are_its_own_while_they_are_dense(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Through both limits, up and down. A dense step looks at some rows before, a sparse one counts what it had."""
    theirs, ours, x = pair(name, (60, 16, 256, 0))
    products = ((x - ours.b_dec) @ ours.W_enc).detach().flatten().sort(descending=True).values
    dense = []
    # The share of entries that a sparse step looks at.
    for share in (0.5, 0.08, 0.08, 0.03, 0.03, 0.08, 0.08, 0.2, 0.2):
        at = int(share * products.numel())
        lowest = float(products[at : at + 2].mean())  # between two, so that none lies within rounding of it
        for module in (theirs, ours):
            if name == "jumprelu, step":
                module.b_enc.data.zero_()
                module.threshold.data.fill_(lowest + module.bandwidth / 2)
            else:
                (module.b_gate if name == "gated" else module.b_enc).data.fill_(-lowest)
        before = sum(own_steps(ours).values())
        same(ours, theirs, step(ours, x), step(theirs, x))
        dense.append(sum(own_steps(ours).values()) - before)
    assert dense == [1, 1, 1, 0, 0, 0, 0, 0, 1]
    assert own_steps(ours) == {DENSE[name]: 4}
    assert len(caplog.records) == 1
    assert DENSE[name] in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("batchtopk", {"normalize_activations": "layer_norm"}, "its inputs are normalised by 'layer_norm'"),
        ("gated", {"normalize_activations": "layer_norm"}, "its inputs are normalised by 'layer_norm'"),
        ("jumprelu, step", {"normalize_activations": "layer_norm"}, None),
        ("standard", {"normalize_activations": "constant_norm_rescale"}, None),
        ("standard", {"lp_norm": 2.0}, "its lp_norm is 2.0"),
    ],
)
def test_settings_of_its_own(name: str, options: dict[str, Any], reason: str | None) -> None:
    theirs, ours, x = pair(name, (30, 16, 128, 3), **options)
    same(ours, theirs, step(ours, x), step(theirs, x))
    assert own_steps(ours) == ({} if reason is None else {reason: 1})


def test_auxk_refuses_normalised_inputs_in_its_own_words() -> None:
    ours = pair("batchtopk", (30, 16, 128, 3), normalize_activations="layer_norm")[1]
    with pytest.raises(ValueError, match="does not support activation normalization"):
        step(ours, torch.randn(30, 16), torch.arange(128) < 5)


def test_what_jumprelu_refuses_is_refused_in_its_own_words() -> None:
    for change in (
        {"jumprelu_sparsity_loss_mode": "other"},
        {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": None},
    ):
        found = []
        for module in pair("jumprelu, step", (30, 16, 128, 0))[:2]:
            for name, value in change.items():
                setattr(module.cfg, name, value)
            with pytest.raises(ValueError, match="sparsity loss mode") as caught:
                step(module, torch.randn(30, 16))
            found.append(str(caught.value))
        assert found[0] == found[1]
