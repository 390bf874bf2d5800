"""Accelerated objects under the tools' rarer options, thresholds and inputs: the same results."""

from __future__ import annotations

import pytest
import torch

import saekernels as sk
from live_saes import D, F, close, made, output
from saekernels.adapters.patch import state_of

pytestmark = pytest.mark.peers


def test_dead_and_untouched_dictionary_options() -> None:
    for name, options in (
        ("dictionary TopK", {"return_topk": True}),
        ("dictionary TopK", {"use_threshold": True}),
        ("dictionary BatchTopK", {"use_threshold": False}),
        ("dictionary BatchTopK", {"return_active": True}),
        ("dictionary Matryoshka", {"return_active": True, "use_threshold": False}),
        ("dictionary JumpReLU", {"output_pre_jump": True}),
        ("dictionary Gated", {"return_gate": True}),
        ("dictionary Gated", {"normalize_decoder": True}),
    ):
        theirs, ours, x = made(name), sk.accelerate(made(name)), torch.randn(6, D)
        with torch.no_grad():
            own, other = ours.encode(x, **options), theirs.encode(x, **options)
        for a, b in zip(*(one if isinstance(one, tuple) else (one,) for one in (own, other)), strict=True):
            close(a.float().sort(-1).values, b.float().sort(-1).values)
    for name in ("dictionary AutoEncoder", "dictionary AutoEncoderNew", "dictionary Gated", "dictionary Matryoshka"):
        theirs, ours, x = made(name), sk.accelerate(made(name)), torch.randn(6, D)
        with torch.no_grad():
            for a, b in zip(ours(x, output_features=True), theirs(x, output_features=True), strict=True):
                close(a, b)
            for a, b in zip(ours(x, True), theirs(x, True), strict=True):
                close(a, b)
    theirs, ours = made("dictionary AutoEncoder"), sk.accelerate(made("dictionary AutoEncoder"))
    mask, x = torch.rand(F) < 0.1, torch.randn(6, D)
    with torch.no_grad():
        for a, b in zip(ours(x, ghost_mask=mask), theirs(x, ghost_mask=mask), strict=True):
            close(a, b)


def test_a_threshold_that_was_never_set_lets_every_positive_latent_through() -> None:
    for name in ("dictionary BatchTopK", "dictionary Matryoshka"):
        theirs, ours, x = made(name), sk.accelerate(made(name)), torch.randn(6, D)
        for module in (theirs, ours):
            module.threshold.fill_(-1.0)
        with torch.no_grad():
            close(ours(x), theirs(x))
    bench = sk.accelerate(made("bench batch topk"))
    bench.threshold.fill_(-1.0)
    with pytest.raises(ValueError, match="Threshold is not set"):
        bench(torch.randn(3, D))


def test_matryoshka_with_fewer_groups() -> None:
    theirs, ours, x = made("dictionary Matryoshka"), sk.accelerate(made("dictionary Matryoshka")), torch.randn(6, D)
    for module in (theirs, ours):
        module.active_groups = 1
    with torch.no_grad():
        close(ours(x), theirs(x))


def test_dense_codes_go_the_tools_own_way_after_a_look() -> None:
    module = sk.accelerate(made("lens standard"))
    theirs = made("lens standard")
    for one in (module, theirs):
        one.b_enc.data.add_(4.0)
    x, state = torch.randn(6, D), state_of(module)
    assert state is not None
    with torch.no_grad():
        for _ in range(3):
            close(module(x), theirs(x))
        assert state.density is not None
        assert state.density > 0.5
        assert state.dense_calls > 0
        for one in (module, theirs):
            one.b_enc.data.sub_(6.0)
        for _ in range(40):
            close(module(x), theirs(x))
        assert state.density < 1 / 16


@pytest.mark.parametrize("name", ["lens topk", "sparsify topk", "dictionary TopK", "bench jumprelu"])
def test_inputs_that_the_kernels_do_not_serve(name: str) -> None:
    theirs, ours = made(name), sk.accelerate(made(name))
    wrong = torch.randn(4, D + 1)
    for module in (theirs, ours):
        with pytest.raises(RuntimeError):
            module(wrong)
    if not name.startswith("sparsify"):
        x = torch.randn(4, D)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert ours(x).dtype == theirs(x).dtype
            close(ours(x).float(), theirs(x).float())
        close(torch.func.vmap(ours)(x), torch.func.vmap(theirs)(x))
    assert output(ours(torch.randn(0, D))).shape == (0, D)
