"""Inputs that encoders get wrong: drawn by hypothesis, built here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("gaussian", "heavy", "few_positive", "all_equal", "hot_tile", "sorted", "tiny", "huge", "zero")


@dataclass
class Case:
    """One encoder problem."""

    x: Tensor
    W: Tensor
    b: Tensor | None
    pre_bias: Tensor | None
    k: int
    kind: str


def _strided(value: Tensor, how: str) -> Tensor:
    """The same numbers in another layout."""
    if how == "transposed":
        return value.T.contiguous().T
    if how == "sliced":
        wide = value.new_full((value.shape[0], 2 * value.shape[1] + 1), float("nan"))
        wide[:, 1::2] = value
        return wide[:, 1::2]
    if how == "reversed_rows":
        return value.flip(0).contiguous()[torch.arange(value.shape[0] - 1, -1, -1)] if value.shape[0] else value
    return value.contiguous()


def _fill(kind: str, T: int, F: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(T, d, generator=generator)
    W = torch.randn(F, d, generator=generator) / d**0.5
    b = torch.randn(F, generator=generator) * 0.1
    if kind == "heavy":
        x, W = x**3, W**3
    elif kind == "few_positive":
        b = b - 8.0
    elif kind == "all_equal":
        W, b = W[:1].expand(F, d).clone(), torch.zeros(F)
    elif kind == "hot_tile":
        start = F // 2
        b[start : start + 70] += 50.0
    elif kind == "sorted":
        b = torch.linspace(-5, 5, F) if F % 2 else torch.linspace(5, -5, F)
    elif kind == "tiny":
        x, W, b = x * 1e-20, W * 1e-20, b * 1e-38
    elif kind == "huge":
        x, W, b = x * 1e17, W * 1e17, b * 1e30
    elif kind == "zero":
        x, b = torch.zeros(T, d), torch.zeros(F)
    return x, W, b


@st.composite
def encoder_cases(draw: st.DrawFn) -> Case:
    """Float inputs of odd sizes, dtypes and strides; finite."""
    T = draw(st.sampled_from([0, 1, 2, 3, 7, 33]))
    d = draw(st.sampled_from([1, 2, 3, 8, 17, 64, 130]))
    F = draw(st.sampled_from([1, 2, 5, 16, 31, 96, 257, 700]))
    k = draw(st.sampled_from(sorted({1, min(2, F), (F + 1) // 2, F, min(F, 32)})))
    dtype = draw(st.sampled_from(DTYPES))
    kinds = [kind for kind in KINDS if kind != "huge" or dtype != torch.float16]
    kind = draw(st.sampled_from(kinds))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x, W, b = _fill(kind, T, F, d, generator)
    layout = st.sampled_from(["contiguous", "transposed", "sliced", "reversed_rows"])
    side = draw(st.sampled_from([dtype, torch.float32]))
    pre_bias = (
        torch.randn(d, generator=generator).to(side) if draw(st.booleans()) and kind not in ("tiny", "huge") else None
    )
    return Case(
        _strided(x.to(dtype), draw(layout)),
        _strided(W.to(dtype), draw(layout)),
        b.to(side) if draw(st.booleans()) or kind in ("few_positive", "hot_tile", "sorted") else None,
        pre_bias,
        k,
        kind,
    )


@st.composite
def integer_cases(draw: st.DrawFn) -> Case:
    """Small integers: every sum is exact in every dtype and order, so ties are real and answers have one index set.

    Some elements become NaN or infinite, in inputs or weights.
    """
    T = draw(st.sampled_from([1, 2, 9]))
    d = draw(st.sampled_from([1, 3, 8, 20]))
    F = draw(st.sampled_from([1, 4, 33, 128, 300]))
    k = draw(st.sampled_from(sorted({1, min(3, F), (F + 1) // 2, F})))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def integers(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).to(dtype)

    x, W, b = integers(T, d), integers(F, d), integers(F)
    for special in draw(st.lists(st.sampled_from([float("nan"), float("inf"), -float("inf")]), max_size=3)):
        target = draw(st.sampled_from([x, W, b]))
        flat = target.view(-1)
        flat[draw(st.integers(0, flat.numel() - 1))] = special
    return Case(x, W, b if draw(st.booleans()) else None, integers(d) if draw(st.booleans()) else None, k, "integers")
