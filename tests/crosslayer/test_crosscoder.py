"""Acausal crosscoders by themselves: a case by hand, and dense formulas per head for every rule and activation."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import saekernels as sk
from saekernels.crosslayer.code_norms import NORMS, folded

X = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])  # one token of two heads


@torch.no_grad()
def by_hand(activation: Any = None, threshold: Any = None, **options: Any) -> sk.Crosscoder:
    """Pre-activations (3, 2) of X, decoder rows (1, 0 | 0, 2) and (0, 1 | 0, 0)."""
    made = sk.Crosscoder(2, 2, 2, sk.ReLU() if activation is None else activation, **options)
    made.W_enc.copy_(torch.tensor([[1.0, 0, 1, 1], [0, 1, 0, -1]]))
    made.b_enc.copy_(torch.tensor([0.0, -1]))
    made.W_dec.copy_(torch.tensor([[1.0, 0, 0, 2], [0, 1, 0, 0]]))
    if threshold is not None:
        made.threshold.copy_(torch.tensor(threshold))  # type: ignore[union-attr]
    return made


def dense(codes: list[sk.Codes]) -> list[list[float]]:
    return [one.to_dense().squeeze(0).tolist() for one in codes]


def test_by_hand() -> None:
    relu = by_hand()
    codes = relu.encode(X)
    assert codes[0] is codes[1]
    assert dense(codes) == [[3, 2], [3, 2]]
    assert relu(X).tolist() == [[[3, 2], [0, 6]]]
    assert relu([X[:, 0], X[:, 1]]).tolist() == [[[3, 2], [0, 6]]]
    assert [relu.decode_to(head, codes[0]).tolist() for head in range(2)] == [[[3, 2]], [[0, 6]]]
    assert by_hand(norms="sum").code_norms().tolist() == [3, 1]  # type: ignore[union-attr]
    assert by_hand(norms="per_head").code_norms().tolist() == [[1, 1], [2, 0]]  # type: ignore[union-attr]
    whole = by_hand(norms="concatenated").code_norms()
    torch.testing.assert_close(whole, torch.tensor([5**0.5, 1.0]))
    mixed = by_hand(norms="mixed", alphas=(1.0, 0.1)).code_norms()
    torch.testing.assert_close(mixed, torch.tensor([5**0.5 + 0.3, 1.1]))


@pytest.mark.parametrize(
    ("norms", "threshold", "codes", "out"),
    [
        ("sum", 4.0, [[3, 0], [3, 0]], [[3, 0], [0, 6]]),
        ("none", 1.5, [[3, 2], [3, 2]], [[3, 2], [0, 6]]),
        ("concatenated", 6.8, [[0, 0], [0, 0]], [[0, 0], [0, 0]]),
        ("concatenated", 6.7, [[3, 0], [3, 0]], [[3, 0], [0, 6]]),
        ("per_head", [4.0, 4.0], [[0, 0], [3, 0]], [[0, 0], [0, 6]]),
        ("per_head", [2.5, 4.0], [[3, 0], [3, 0]], [[3, 0], [0, 6]]),
        ("per_head", [3.0, 4.0], [[0, 0], [3, 0]], [[0, 0], [0, 6]]),  # the first head's is at its threshold
        ("per_head", [1.0, 7.0], [[3, 2], [0, 0]], [[3, 2], [0, 0]]),
    ],
)
def test_batch_topk_by_hand(norms: str, threshold: Any, codes: Any, out: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        made = by_hand(sk.BatchTopK(), threshold, norms=norms, dtype=dtype)
        assert dense(made.encode(X)) == codes
        assert made(X).tolist() == [out]


def test_topk_by_hand() -> None:
    """Pre-activations (1, 1.5) with norms (2, 1): the first wins by its norm, with the code 1."""
    made = by_hand(sk.TopK(1), norms="sum")
    with torch.no_grad():
        made.W_dec.copy_(torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]]))
        made.W_enc.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0.75, 0, 0]]))
        made.b_enc.zero_()
        assert dense(made.encode(X)) == [[1, 0]] * 2
        made.norms = "none"
        assert dense(made.encode(X)) == [[0, 1.5]] * 2
        made.norms = "per_head"  # norms (1, 1) and (1, 0): the second latent is dead at the second head
        assert dense(made.encode(X)) == [[0, 1.5], [1, 0]]
        made.W_enc[0].neg_()
        assert dense(made.encode(X)) == [[0, 1.5], [0, 0]]


def test_inputs_are_transformed_and_outputs_back() -> None:
    scaled = by_hand(input_scale=[2.0, 0.5])
    assert dense(scaled.encode(X))[0] == [2 + 1.5 - 0.5, 4 + 0.5 - 1]
    torch.testing.assert_close(scaled(X), torch.tensor([[[3 / 2, 3.5 / 2], [0, 6 / 0.5]]]))
    mean, scale = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1.0, 2], [3, 4]])
    whole = by_hand(input_mean=mean, input_scale=scale)
    pre = 0 + 9 - 8, 4 + 8 - 1
    assert dense(whole.encode(X))[0] == list(pre)
    torch.testing.assert_close(whole(X), torch.tensor([[[1 + 1.0, 11 / 2], [0, 2 / 4 + 1]]]))
    own = by_hand(input_scale=[2.0, 0.5], output_scale=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(own(X), torch.tensor([[[3, 3.5], [0, 18]]]))


def formula(made: sk.Crosscoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [..., H, F] and output [..., H, d] by a dense sum over heads, selection by h * n, in the weights' dtype."""
    heads, d = made.n_heads, made.d
    W_enc, W_dec = made.W_enc.view(-1, heads, d), made.W_dec.view(-1, heads, d)
    h = sum(x[..., i, :] @ W_enc[:, i].T for i in range(heads)) + made.b_enc
    each = W_dec.norm(dim=2)
    whole, total = (each**2).sum(1).sqrt(), each.sum(1)
    alpha, beta = made.alphas or (0.0, 0.0)
    rules = {"none": torch.ones_like(total), "sum": total, "concatenated": whole, "mixed": alpha * whole + beta * total}
    norms = each.T if made.norms == "per_head" else rules[made.norms].expand(heads, -1)
    scores = h.relu()[..., None, :] * norms
    if isinstance(made.activation, sk.TopK):
        chosen = torch.zeros_like(scores).scatter(-1, scores.topk(made.activation.k, -1).indices, 1) * (scores > 0)
    else:
        threshold = torch.zeros(()) if made.threshold is None else made.threshold
        per_head = isinstance(made.activation, sk.BatchTopK) and threshold.dim() == 1
        chosen = scores > (threshold[:, None] if per_head else threshold)
    codes = h.relu()[..., None, :] * chosen
    return codes, torch.stack([codes[..., i, :] @ W_dec[:, i] for i in range(heads)], -2) + made.b_dec


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_against_a_dense_sum(data: st.DataObject) -> None:
    heads, d, latents = (data.draw(st.integers(1, most)) for most in (4, 5, 24))
    norms = data.draw(st.sampled_from(NORMS))
    activations = [sk.ReLU(), sk.TopK(data.draw(st.integers(1, latents))), sk.JumpReLU(), sk.BatchTopK()]
    torch.manual_seed(data.draw(st.integers(0, 9)))
    alphas = (0.7, 0.3) if norms == "mixed" else None
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    made = sk.Crosscoder(d, latents, heads, data.draw(st.sampled_from(activations)), norms=norms, alphas=alphas)
    made = made.to(dtype)
    with torch.no_grad():
        for value in made.parameters():
            value.normal_()
        if made.threshold is not None:
            made.threshold.uniform_(0, 4)
        made.W_dec[data.draw(st.integers(0, latents - 1))] = 0
    x = torch.randn(*data.draw(st.sampled_from([(3,), (2, 2), (0,)])), heads, d, dtype=dtype)
    codes, out = formula(made, x)
    found = made.encode(x)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for head, one in enumerate(found):
        dense = one.to_dense()
        if norms == "none" and made.threshold is None and not isinstance(made.activation, sk.TopK):
            torch.testing.assert_close(dense, codes[..., head, :], **tolerance)
        alive = made.W_dec.any(1)  # a latent that writes nothing counts by none of the rules but "none"
        torch.testing.assert_close(dense[..., alive], codes[..., head, alive], **tolerance)
    torch.testing.assert_close(made.decode(found), out, **tolerance)
    torch.testing.assert_close(made(x), out, **tolerance)


@settings(max_examples=40, deadline=None)
@given(st.floats(2**-20, 1e6, width=32), st.floats(2**-20, 1e6, width=32), st.integers(-3, 3))
def test_folded_thresholds_decide_as_the_rounded_product(norm: float, at: float, steps: int) -> None:
    """Pre-activations next to a product that is the threshold itself, or a rounding off."""
    h, n = torch.tensor(at), torch.tensor(norm)
    threshold = h * n
    for _ in range(abs(steps)):
        threshold = torch.nextafter(threshold, torch.tensor(float("inf") if steps > 0 else 0.0))
    floor = folded(threshold, n)
    near = h
    for _ in range(4):
        near = torch.nextafter(near, torch.tensor(0.0))
    for _ in range(9):
        assert bool(near > floor) == bool(near * n > threshold)
        near = torch.nextafter(near, torch.tensor(float("inf")))


def test_half_precision_selects_by_what_was_accumulated() -> None:
    """1.001 and 0.999 round to 1 in bfloat16, and lie on both sides of the second head's threshold."""
    made = sk.Crosscoder(1, 2, 2, sk.BatchTopK(), norms="per_head", dtype=torch.bfloat16)
    with torch.no_grad():
        made.W_enc.copy_(torch.tensor([[1.0, 2**-10], [1.0, -(2**-10)]]))
        made.W_dec.fill_(1)
        made.threshold.copy_(torch.tensor([0.5, 1.0]))  # type: ignore[union-attr]
    first, second = made.encode(torch.ones(1, 2, 1))
    assert first.to_dense().tolist() == [[1, 1]]
    assert second.to_dense().tolist() == [[1, 0]]


@pytest.mark.parametrize("norms", ["sum", "per_head"])
@pytest.mark.parametrize("activation", [sk.TopK(3), sk.BatchTopK()])
def test_gradients_are_those_of_the_dense_sum(activation: Any, norms: str) -> None:
    torch.manual_seed(0)
    made = sk.Crosscoder(3, 8, 2, activation, norms=norms).double()
    with torch.no_grad():
        for value in made.parameters():
            value.normal_()
        if made.threshold is not None:
            made.threshold.fill_(0.8)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    wanted = [x, *made.weights.parameters()]
    got = torch.autograd.grad(made(x).square().sum(), wanted)
    each = made.W_dec.detach().view(8, 2, 3).norm(dim=2)
    h = x.flatten(-2) @ made.W_enc.T + made.b_enc
    chosen = formula(made, x.detach())[0] > 0
    out = torch.stack([(h * chosen[:, i]) @ made.decoder_to(i) for i in range(2)], 1) + made.b_dec
    assert each.shape == (8, 2)
    for one, other in zip(got, torch.autograd.grad(out.square().sum(), wanted), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_heads": 0}, "n_heads: got 0"),
        ({"activation": sk.AbsTopK(1)}, "activation: got AbsTopK"),
        ({"activation": sk.TopK(5)}, "got k = 5, need at most n_latents = 4"),
        ({"norms": "l2"}, "norms: got 'l2', need one of none, sum"),
        ({"norms": "mixed"}, "alphas: got None"),
        ({"norms": "mixed", "alphas": (1.0, -1.0)}, "finite numbers of at least 0"),
        ({"alphas": (1.0, 1.0)}, "for 'mixed' alone"),
        ({"input_scale": [1.0]}, r"input_scale: got shape \[1\], need \[2, 3\] or \[2\]"),
        ({"input_scale": [1.0, 0.0]}, "input_scale: got values of 0 to 1, need finite numbers above 0"),
        ({"input_mean": torch.ones(2)}, r"input_mean: got shape \[2\], need \[2, 3\]"),
        ({"input_mean": torch.full((2, 3), float("nan"))}, "need finite numbers"),
    ],
)
def test_wrong_options(options: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"d": 3, "n_latents": 4, "n_heads": 2, "activation": sk.ReLU(), **options}
    with pytest.raises(ValueError, match=told):
        sk.Crosscoder(**given)


def test_wrong_inputs() -> None:
    made = by_hand()
    with pytest.raises(ValueError, match=r"x: got shape \[1, 4\], need \[..., H, d\] with H = 2 and d = 2"):
        made.encode(X.flatten(1))
    with pytest.raises(ValueError, match="x: got tensors of shapes"):
        made.encode([X[:, 0]])
    with pytest.raises(TypeError, match="x: got dtype"):
        made.encode(X.long())
    with pytest.raises(ValueError, match="codes: got those of 1 heads, need 2"):
        made.decode(made.encode(X)[:1])
    with pytest.raises(ValueError, match="codes: got n_latents = 3, need 2"):
        made.decode_to(0, sk.Crosscoder(2, 3, 2, sk.ReLU()).encode(X)[0])
