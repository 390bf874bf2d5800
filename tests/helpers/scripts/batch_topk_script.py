"""What every rank of test_batch_topk.py does: its rows' codes against one process's, differences told by rank 0."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

import ranks
from saekernels.backends import registry
from saekernels.parallel import encode_batch_topk
from saekernels.training import encode_batch_topk as alone

T, D, F = 23, 8, 60
# Without native code sums hang on what else is in a batch: numbers whose sums have no rounding.
EXACT = registry.load("cpu").available() is not None


def encoder(kind: str) -> dict[str, Tensor]:
    """The arguments of one process with all rows."""
    torch.manual_seed(7)
    made = {"x": torch.randn(T, D), "W_enc": torch.randn(F, D), "b_enc": torch.randn(F), "pre_bias": torch.randn(D)}
    if kind in ("ties", "half") or EXACT:
        made = {name: one.round() for name, one in made.items()}
    if kind == "half":
        made = {name: one.bfloat16() for name, one in made.items()}
    if kind == "few":
        made["b_enc"] -= 9
    if kind == "nan":
        made["x"][5] = torch.nan
    if kind == "scaled":
        made["scale"] = (torch.rand(F) + 0.1).index_fill(0, torch.arange(5), 0.0)
    return made


def rows(rank: int, world: int, empty: bool) -> slice:
    """Uneven shares; the last rank's is empty where asked for."""
    bounds = [*[0, 5, 19][: world - empty], *[T] * (1 + empty)]
    return slice(bounds[rank], bounds[rank + 1])


def part(codes: Any, share: slice) -> tuple[Tensor, ...]:
    """Some rows of codes: values, indices, counts."""
    begin, end = codes.offsets[share.start], codes.offsets[share.stop]
    return codes.values[begin:end], codes.indices[begin:end], codes.offsets.diff()[share]


def compare(rank: int, world: int) -> list[str]:
    """Codes to the bit, and gradients summed over the ranks."""
    wrong = []
    for kind in ("plain", "ties", "half", "few", "nan", "scaled"):
        for n in (1, 7, 150, T * F):
            for empty, guess in ((False, None), (True, 0.5 + rank), (False, 1e6)):
                name, share = f"{kind} n={n} empty={empty}", rows(rank, world, empty)
                whole = {key: one.clone().requires_grad_(key != "scale") for key, one in encoder(kind).items()}
                mine = {key: one.detach().clone().requires_grad_(key != "scale") for key, one in whole.items()}
                mine["x"] = whole["x"].detach()[share].clone().requires_grad_()
                want = alone(**whole, n=n)
                got = encode_batch_topk(**mine, n=n, guess=guess)
                for one, other in zip((got.values, got.indices, got.offsets.diff()), part(want, share), strict=True):
                    if one.shape != other.shape or not torch.equal(one.nan_to_num(9e9), other.nan_to_num(9e9)):
                        wrong.append(f"{name}: other codes in rank {rank}")
                if kind in ("plain", "scaled") and not empty and n == 150:
                    wrong += [f"{name}: {one}" for one in gradients(want, whole, got, mine, share)]
    return wrong


def gradients(want: Any, whole: dict[str, Tensor], got: Any, mine: dict[str, Tensor], share: slice) -> list[str]:
    """Names of arguments with another gradient of the sum of squares."""
    want.values.square().sum().backward()
    got.values.square().sum().backward()
    wrong = []
    for key in ("x", "W_enc", "b_enc", "pre_bias"):
        own, other = mine[key].grad, whole[key].grad
        assert own is not None
        assert other is not None
        if key == "x":
            other = other[share]
        else:
            distributed.all_reduce(own)
        if not torch.allclose(own, other, rtol=1e-5, atol=1e-4):
            wrong.append(f"gradient of {key}")
    return wrong


# What one rank alone gives instead of what all others do.
WRONG: dict[str, dict[str, Any]] = {
    "n": {"n": 0},
    "type of n": {"n": "5"},
    "dimensions": {"x": torch.ones(D)},
    "no tensor": {"x": None},
    "guess": {"guess": float("nan")},
    "negative scale": {"scale": -torch.ones(F)},
    "shape": {"W_enc": torch.ones(F, D + 1)},
    "another n": {"n": 6},
    "another encoder": {"W_enc": torch.ones(F + 1, D), "scale": torch.ones(F + 1)},
    "another dtype": {"x": torch.ones(2, D).bfloat16(), "W_enc": torch.ones(F, D).bfloat16()},
    "no scale": {"scale": None},
}


def refused(wrong: bool) -> dict[str, str]:
    """What is said of each of those, in the rank that gives it and in the others."""
    right = {"x": torch.ones(2, D), "W_enc": torch.ones(F, D), "n": 5, "scale": torch.ones(F)}
    said = {}
    for name, given in WRONG.items():
        try:
            encode_batch_topk(**(right | given if wrong else right))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


if __name__ == "__main__":
    distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, world = distributed.get_rank(), distributed.get_world_size()
    told: list[Any] = [None] * world
    distributed.all_gather_object(told, [compare(rank, world), refused(rank == world - 1)])
    if rank == 0:
        print(json.dumps(told))
    ranks.leave()
