"""What the interpreter tests of the Triton backend share: problems small enough, and the reference beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from saekernels.backends import reference, registry

DTYPES = (torch.float32, torch.float16)


def skip_unless_interpreting() -> None:
    """Called by test modules when they are collected."""
    triton = registry.load("triton")
    if triton.available() is not None:
        pytest.skip(f"backend triton: {triton.available()}", allow_module_level=True)
    if not triton.INTERPRETING:
        pytest.skip("TRITON_INTERPRET=1 is not set", allow_module_level=True)
    quicken_interpreter()


@cache
def quicken_interpreter() -> None:
    """The same values in half the time: what Triton's interpreter does per element or per call is done once.

    It reduces by exclusive or, of which its sorts are made, in a loop of Python over elements; and each call of a
    device function looks through the whole language for what the kernel's launch has replaced already.
    """
    core, standard = import_module("triton.language.core"), import_module("triton.language.standard")
    interpreter = import_module("triton.runtime.interpreter")
    by_element, replace = interpreter.ReduceOps.generic_reduce, interpreter._patch_lang

    def reduce(self: Any, input: tuple[Any, ...]) -> Any:
        if self.combine_fn is not standard._xor_combine:
            return by_element(self, input)
        (of,) = input
        data = np.bitwise_xor.reduce(of.handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(data, of.dtype)

    @cache
    def languages(fn: Any) -> tuple[Any, ...]:
        language = import_module("triton.language")
        return tuple(value for value in fn.__globals__.values() if value is language or value is core)

    def replace_once(fn: Any) -> Any:
        replaced = (not core.is_builtin(it) for of in languages(fn) for it in (of.program_id, of.tensor.__add__))
        return interpreter._LangPatchScope() if all(replaced) else replace(fn)

    interpreter.ReduceOps.generic_reduce = reduce
    interpreter._patch_lang = replace_once


def module(name: str):  # type: ignore[no-untyped-def]
    """A module of the backend; its functions hide some of them by name."""
    return import_module(f"saekernels.backends.triton.{name}")


class Encoder(NamedTuple):
    """Arguments that every encoder takes first."""

    x: Tensor
    W: Tensor
    bias: Tensor | None
    pre_bias: Tensor | None


def encoder(
    T: int, F: int, d: int, dtype: torch.dtype = torch.float32, *, biased: bool = True, seed: int = 0
) -> Encoder:
    """Scores near standard normal."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, W = normal(T, d), normal(F, d) * d**-0.5
    bias, pre_bias = (normal(F) * 0.1, normal(d) * 0.3) if biased else (None, None)
    made = (tensor if tensor is None else tensor.to(dtype) for tensor in (x, W, bias, pre_bias))
    return Encoder(*made)


@contextmanager
def screening(monkeypatch: pytest.MonkeyPatch, step: int, rank: int, capacity: int) -> Iterator[None]:
    """Screen, however few latents there are, with this plan."""
    planned = module("encode.sampling").Plan(step, rank, capacity)
    monkeypatch.setattr(module("encode.encode_topk"), "plan", lambda *_: planned)
    yield


def check_topk(case: Encoder, got: tuple[Tensor, Tensor], k: int, activation: str = "none") -> None:
    """The k best of the reference's scores, up to rounding: near ties may go either way."""
    values, indices = got
    dense = reference.encode_topk(*case, case.W.shape[0], "none")
    scores = torch.empty_like(dense[0]).scatter_(1, dense[1].long(), dense[0]).float()
    ranked = scores.abs() if activation == "abs" else scores
    tolerance = 2e-5 if case.x.dtype == torch.float32 else 4e-3
    assert values.dtype == case.x.dtype
    assert indices.dtype == torch.int32
    assert indices.min() >= 0
    assert indices.max() < scores.shape[1]
    for row in range(scores.shape[0]):
        chosen = indices[row].long()
        assert chosen.unique().numel() == k
        want = scores[row, chosen].clamp(min=0) if activation == "relu" else scores[row, chosen]
        torch.testing.assert_close(values[row].float(), want, rtol=tolerance, atol=tolerance, equal_nan=True)
        order = torch.where(ranked[row].isnan(), torch.inf, ranked[row])
        best = order.topk(k).values
        torch.testing.assert_close(order[chosen], best, rtol=tolerance, atol=tolerance)
        nan = int(ranked[row].isnan().sum())
        assert int(values[row].isnan().sum()) == min(nan, k)
