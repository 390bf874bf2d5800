"""Edits of latents against the same edit on dense codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saekernels as sk
import tiny_lm
from saekernels.sae.codes import Codes
from saekernels.sae.edits import Edit, EditedSAE, edit_codes
from saekernels.splice.context import splice
from tiny_lm import SITES

OPERATIONS = {"zero": 0, "scale": 1, "clamp": 2, "set": 1, "add": 1}
value = st.floats(-4, 4, width=32)


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    operation: Any = draw(st.sampled_from(list(OPERATIONS)))
    values = sorted(draw(st.lists(value, min_size=OPERATIONS[operation], max_size=OPERATIONS[operation])))
    return Edit(draw(st.integers(0, 63)), operation, tuple(values), draw(st.booleans()))


def dense_edit(z: Tensor, edit: Edit) -> Tensor:
    """z [T, F], the definition of each operation."""
    z, old = z.clone(), z[:, edit.latent]
    a, b = (*edit.values, 0.0, 0.0)[:2]
    new = {"zero": old * 0, "scale": old * a, "clamp": old.clamp(a, b), "set": old * 0 + a, "add": old + a}
    z[:, edit.latent] = torch.where(old == 0, old, new[edit.operation]) if edit.only_active else new[edit.operation]
    return z


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.lists(edits(), max_size=4),
    jump=st.booleans(),
    shape=st.sampled_from([(0,), (1,), (7,), (2, 3), (1, 2, 2)]),
    seed=st.integers(0, 99),
)
def test_edits_are_those_of_dense_codes(wanted: list[Edit], jump: bool, shape: tuple[int, ...], seed: int) -> None:
    sae = tiny_lm.sae(seed, jump)
    x = torch.randn(*shape, tiny_lm.WIDTH, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        codes = sae.encode(x)
        found = edit_codes(codes, wanted)
    dense = codes.to_dense().reshape(-1, 64)
    for edit in wanted:
        dense = dense_edit(dense, edit)
    assert found.shape == codes.shape
    assert (found.offsets is None) == (codes.offsets is None)
    torch.testing.assert_close(found.to_dense().reshape(-1, 64), dense, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(
            EditedSAE(sae, wanted)(x), dense.reshape(*shape, 64) @ sae.W_dec + sae.b_dec, rtol=1e-4, atol=1e-5
        )


def test_the_same_latent_twice_in_a_code_is_one_latent() -> None:
    codes = Codes(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[5, 5, 1]]).int(), None, torch.Size([1]), 8)
    dense = edit_codes(codes, [Edit(5, "clamp", (0.0, 2.5))]).to_dense()
    assert dense[0, 5] == 2.5
    assert dense[0, 1] == 3.0


def test_an_active_latent_may_be_negative() -> None:
    codes = Codes(torch.tensor([[-1.0], [2.0]]), torch.tensor([[5], [1]]).int(), None, torch.Size([2]), 8)
    dense = edit_codes(codes, [Edit(5, "add", (3.0,), only_active=True)]).to_dense()
    assert dense[:, 5].tolist() == [2.0, 0.0]


@pytest.mark.parametrize("jump", [False, True])
def test_keeping_the_error_changes_by_the_edit_alone(jump: bool) -> None:
    sae = tiny_lm.sae(3, jump)
    x = torch.randn(5, tiny_lm.WIDTH)
    latent = int(sae.encode(x).to_dense().sum(0).argmax())
    out = EditedSAE(sae, [Edit(latent, "add", (2.0,))], keep_error=True)(x)
    torch.testing.assert_close(out - x, (2.0 * sae.W_dec[latent]).expand_as(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(EditedSAE(sae, [], keep_error=True)(x), x)


def test_gradients_flow_through_an_edit() -> None:
    sae = tiny_lm.sae(1).double()
    x = torch.randn(3, tiny_lm.WIDTH, dtype=torch.float64, requires_grad=True)
    latent = int(sae.encode(x).indices[0, 0])
    edited = EditedSAE(sae, [Edit(latent, "scale", (3.0,))])
    gradient = torch.autograd.grad(edited(x).square().sum(), [x, sae.W_enc, sae.W_dec])
    codes = sae.encode(x).to_dense()
    factor = torch.ones(64, dtype=torch.float64).index_fill(0, torch.tensor([latent]), 3.0)
    wanted = torch.autograd.grad((codes * factor @ sae.W_dec + sae.b_dec).square().sum(), [x, sae.W_enc, sae.W_dec])
    for got, want in zip(gradient, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_an_edited_sae_stands_in_a_model() -> None:
    model, sae = tiny_lm.trained_model(), tiny_lm.sae(0)
    ids = torch.randint(3, 320, (2, 9), generator=torch.Generator().manual_seed(0))
    edited = EditedSAE(sae, [Edit(4, "set", (1.5,))])
    with torch.no_grad(), splice(model, {SITES[0]: edited}):
        found = model(ids).logits

    def hook(module: Any, given: Any, out: Tensor) -> Tensor:
        z = sae.encode(out).to_dense()
        z[..., 4] = 1.5
        return z @ sae.W_dec + sae.b_dec

    handle = model.get_submodule(SITES[0]).register_forward_hook(hook)
    with torch.no_grad():
        wanted = model(ids).logits
    handle.remove()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Edit(1, "double"), "operation: got 'double', need one of zero, scale"),  # type: ignore[arg-type]
        (lambda: Edit(-1, "zero"), "latent: got -1"),
        (lambda: Edit(True, "zero"), "latent: got True"),
        (lambda: Edit(1, "scale"), "scale needs a tuple of 1 finite number, got \\(\\)"),
        (lambda: Edit(1, "set", (float("nan"),)), "set needs a tuple of 1 finite number"),
        (lambda: Edit(1, "clamp", (2.0, 1.0)), "clamp needs a low and a high"),
        (lambda: Edit(1, "set", 1.5), "set needs a tuple of 1 finite number, got 1.5"),  # type: ignore[arg-type]
        (lambda: EditedSAE(tiny_lm.sae(), [Edit(5, "add", (1e39,))]), r"gets \(1e\+39,\), which float32 does not hold"),
        (lambda: EditedSAE(tiny_lm.sae(), Edit(5, "zero")), "edits: got Edit, need a sequence"),  # type: ignore[arg-type]
        (lambda: EditedSAE(tiny_lm.sae(), [5]), "edits: got list with int, need a"),  # type: ignore[list-item]
        (lambda: EditedSAE(tiny_lm.sae(), [Edit(64, "zero")]), "latent 64 is not among the 64 of the SAE"),
        (lambda: edit_codes(tiny_lm.sae().encode(torch.ones(1, 32)), [Edit(70, "zero")]), "latent 70 is not"),
        (
            lambda: EditedSAE(sk.SAE(8, 16, sk.TopK(2), d_out=4, pre_bias="none"), [], keep_error=True),
            "d_in 8 and d_out 4",
        ),
    ],
)
def test_bad_edits(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
