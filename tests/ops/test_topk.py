"""topk on every backend: elements as they are, in the total order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import saekernels as sk
from oracle import order, same_bits

pytestmark = pytest.mark.usefixtures("poisoned_empty")
SPECIAL = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45, 65504.0]


@st.composite
def scores_and_k(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    T, F = draw(st.sampled_from([0, 1, 2, 13])), draw(st.sampled_from([1, 2, 7, 64, 333, 1500]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    kind = draw(st.sampled_from(["gaussian", "ties", "equal", "sorted"]))
    scores = torch.randn(T, F, generator=generator)
    if kind == "ties":
        scores = (scores * 2).round()
    elif kind == "equal":
        scores = torch.full((T, F), draw(st.sampled_from(SPECIAL)))
    elif kind == "sorted":
        scores = scores.sort(dim=1).values
    for special in draw(st.lists(st.sampled_from(SPECIAL), max_size=4)):
        if scores.numel():
            scores.view(-1)[draw(st.integers(0, scores.numel() - 1))] = special
    scores = scores.to(dtype)
    if draw(st.booleans()):
        scores = scores.T.contiguous().T
    return scores, draw(st.sampled_from(sorted({1, (F + 1) // 2, F})))


@given(problem=scores_and_k())
@settings(max_examples=200)
def test_exact(backend: str, problem: tuple[torch.Tensor, int]) -> None:
    scores, k = problem
    got = sk.topk(scores, k, backend=backend)
    chosen = order(scores)[:, :k]
    assert torch.equal(got.indices.long(), chosen)
    assert same_bits((got.values,), (scores.gather(1, chosen),)), "values are not the elements themselves"


def test_leading_dimensions(backend: str) -> None:
    scores = torch.randn(2, 3, 50)
    got = sk.topk(scores, 5, backend=backend)
    assert torch.equal(got.values, scores.topk(5).values)
    assert sk.topk(scores[0, 0], 5, backend=backend).indices.shape == (5,)


def test_negative_nan_ranks_first_too(backend: str) -> None:
    scores = torch.tensor([[1.0, 2.0, -torch.nan, 3.0]])
    negative = torch.tensor([-1], dtype=torch.int32).view(torch.float32)
    scores[0, 2] = negative[0]
    assert sk.topk(scores, 2, backend=backend).indices.tolist() == [[2, 3]]


def test_gradient_goes_to_the_chosen(backend: str) -> None:
    scores = torch.randn(4, 20, requires_grad=True)
    weights = torch.randn(4, 3)
    got = sk.topk(scores, 3, backend=backend)
    (got.values * weights).sum().backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad.gather(1, got.indices.long()), weights)
    assert int((scores.grad != 0).sum()) == 12
