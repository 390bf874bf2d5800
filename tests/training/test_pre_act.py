"""The loss on pre-activations of dead latents against autograd through all pre-activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekernels.training import encode_jumprelu, pre_act_loss

T, D, F = 9, 6, 40


def leaves(seed: int) -> dict[str, Tensor]:
    """What the loss is differentiable with respect to; some thresholds are below 0."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (T, D), "W_enc": (F, D), "b_enc": (F,), "threshold": (F,), "norms": (F,), "pre_bias": (D,)}
    return {name: torch.randn(*shape, generator=generator).requires_grad_() for name, shape in shapes.items()}


def ours(latents: Tensor, x: Tensor, W_enc: Tensor, b_enc: Any, threshold: Tensor, norms: Any, pre_bias: Any) -> Tensor:
    found = encode_jumprelu(x, W_enc, b_enc, threshold, bandwidth=0.3, pre_bias=pre_bias)
    return pre_act_loss(found, x, W_enc, b_enc, threshold, latents, norms=norms, pre_bias=pre_bias)


def dense(
    latents: Tensor, x: Tensor, W_enc: Tensor, b_enc: Any, threshold: Tensor, norms: Any, pre_bias: Any
) -> Tensor:
    pre = (x if pre_bias is None else x - pre_bias) @ W_enc.T + (0 if b_enc is None else b_enc)
    terms = (threshold.clamp(min=0) - pre).relu() * (1 if norms is None else norms)
    return terms[:, latents].sum(1).mean()


@given(
    seed=st.integers(0, 99),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    without=st.sets(st.sampled_from(["b_enc", "norms", "pre_bias"])),
)
@settings(max_examples=25)
def test_the_loss_and_its_gradients_are_the_dense_ones(seed: int, share: float, without: set[str]) -> None:
    """Of no latents, some and all, of which many are above their threshold."""
    named = leaves(seed)
    latents = (torch.rand(F, generator=torch.Generator().manual_seed(seed)) < share).nonzero()[:, 0]
    arguments: dict[str, Any] = {name: None if name in without else value for name, value in named.items()}
    got, want = ours(latents, **arguments), dense(latents, **arguments)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    kept = [value for name, value in named.items() if name not in without]
    pairs = [torch.autograd.grad(one, kept, allow_unused=True, materialize_grads=True) for one in (got, want)]
    for mine, other in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_a_case_by_hand() -> None:
    """One latent of norm 2 and threshold 1, pre-activations 0.2, -0.5 and 1.3: (0.8 + 1.5) * 2 / 3."""
    x = torch.tensor([[0.2], [-0.5], [1.3]], requires_grad=True)
    threshold, norms = torch.ones(1, requires_grad=True), torch.full((1,), 2.0, requires_grad=True)
    loss = ours(torch.tensor([0]), x, torch.ones(1, 1), None, threshold, norms, None)
    assert float(loss.detach()) == pytest.approx(4.6 / 3)
    loss.backward()
    for leaf, want in ((x, [-2 / 3, -2 / 3, 0.0]), (threshold, [4 / 3]), (norms, [2.3 / 3])):
        assert leaf.grad is not None
        assert leaf.grad.flatten().tolist() == pytest.approx(want, abs=1e-6)


def test_half_precision_is_summed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x, W_enc = (torch.randn(n, 16, generator=generator).bfloat16() for n in (3000, F))
    threshold, latents = torch.full((F,), 2.0), torch.arange(0, F, 2)
    loss = ours(latents, x, W_enc, None, threshold, None, None)
    assert loss.dtype == torch.float32
    want = dense(latents, x.double(), W_enc.double(), None, threshold.double(), None, None)
    assert float(loss) == pytest.approx(float(want), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"found": (1,)}, "found: got tuple, need JumpReLUCodes"),
        ({"x": torch.ones(4, D)}, r"x: got shape \[4, 6\], need \[T, d\] = \[9, 6\]"),
        ({"b_enc": torch.ones(3)}, r"b_enc: got shape \[3\], need \[F\] = \[40\]"),
        ({"norms": torch.ones(F, 1)}, r"norms: got shape \[40, 1\]"),
        ({"pre_bias": torch.ones(F)}, r"pre_bias: got shape \[40\], need \[d\] = \[6\]"),
        ({"latents": torch.ones(F, dtype=torch.bool)}, r"latents: got torch.bool of shape \[40\], need int64 \[n\]"),
        ({"latents": torch.tensor([F])}, r"latents: must lie in \[0, 40\)"),
        ({"latents": torch.tensor([1, 1])}, "latents: got some of them more than once"),
        ({"threshold": 1.0}, "threshold: got float, need a torch.Tensor"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    named: dict[str, Any] = {name: value.detach() for name, value in leaves(0).items()}
    x, W_enc, b_enc, threshold = (named[name] for name in ("x", "W_enc", "b_enc", "threshold"))
    found = encode_jumprelu(x, W_enc, b_enc, threshold, bandwidth=0.3)
    arguments: dict[str, Any] = {"found": found, "latents": torch.arange(3), **named, **changes}
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        pre_act_loss(**arguments)
