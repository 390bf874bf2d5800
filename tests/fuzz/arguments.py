"""Arguments that cannot be: a typed error that names one of them, or, if they happen to fit, an answer."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

import saekernels as sk
from fuzz.engine import ACCEPTED, Rejected
from fuzz.ops import backend

T, D, F, K = 3, 4, 6, 2
CALLS: dict[str, Any] = {
    "encode_topk": lambda: {"x": torch.randn(T, D), "W_enc": torch.randn(F, D), "b_enc": torch.randn(F), "k": K,
                            "pre_bias": torch.randn(D), "activation": "relu", "precision": "exact", "hint": 0.1},
    "encode_threshold": lambda: {"x": torch.randn(T, D), "W_enc": torch.randn(F, D), "b_enc": torch.randn(F),
                                 "threshold": torch.randn(F), "pre_bias": torch.randn(D), "precision": "exact"},
    "topk": lambda: {"scores": torch.randn(T, F), "k": K},
    "decode": lambda: {"values": torch.randn(T, K), "indices": torch.randint(0, F, (T, K), dtype=torch.int32),
                       "W_dec": torch.randn(F, D), "b_dec": torch.randn(D), "sparse_grad": False},
    "decode_csr": lambda: {"values": torch.randn(5), "indices": torch.randint(0, F, (5,), dtype=torch.int32),
                           "offsets": torch.tensor([0, 2, 2, 5]), "W_dec": torch.randn(F, D), "b_dec": torch.randn(D)},
    "gather_matmul": lambda: {"a": torch.randn(2, T, D), "W": torch.randn(F, D), "offsets": torch.tensor([0, 2, 2, 5]),
                              "indices": torch.randint(0, F, (5,), dtype=torch.int32), "wide": False},
    "linear_ce_kl": lambda: {"h_p": torch.randn(T, D), "h_q": torch.randn(T, D), "W_U": torch.randn(F, D),
                             "targets": torch.randint(0, F, (T,)), "bias": torch.randn(F), "softcap": 3.0,
                             "ignore_index": -100},
}  # fmt: skip
ODD: tuple[Any, ...] = (
    None, "", "relu", b"x", 0, -1, 1, 2**31, 2**70, 1.5, float("nan"), float("inf"), True, [], [1, 2], {}, object(),
)  # fmt: skip
OTHER_DTYPES = (torch.float64, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.complex64)


def wrong(rng: random.Random) -> str:
    """One or two arguments of a call are spoilt."""
    name = rng.choice(list(CALLS))
    given = CALLS[name]()
    for _ in range(rng.choice([1, 1, 2])):
        which = rng.choice(list(given))
        given[which] = spoilt(rng, given[which])
    try:
        found = getattr(sk, name)(**given, backend=rng.choice([backend(rng), None, "nothing", 3]))
    except (TypeError, ValueError) as error:
        names = (*given, "backend")
        assert any(argument in str(error) for argument in names), f"names no argument: {error}"
        raise Rejected from error
    for out in found if isinstance(found, tuple) else (found,):
        assert isinstance(out, Tensor)
    return ACCEPTED


def spoilt(rng: random.Random, value: Any) -> Any:
    """Something else in its place: of another kind or, for a tensor, of another type, shape, place or content."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu" and value.dim()
    if not plain or rng.random() < 0.2:
        return rng.choice(ODD)
    changes = (
        lambda v: v.to(rng.choice(OTHER_DTYPES)),
        lambda v: v[:-1],
        lambda v: torch.cat([v, v]),
        lambda v: v.unsqueeze(rng.randint(0, v.dim())),
        lambda v: v.flatten(),
        lambda v: v[:0],
        lambda v: v.sum(),
        lambda v: v.to("meta"),
        lambda v: v.to_sparse(),
        lambda v: v.expand(2, *v.shape),
        lambda v: v.T if v.dim() == 2 else v,
        lambda v: disturbed(rng, v),
    )
    return rng.choice(changes)(value)


def disturbed(rng: random.Random, value: Tensor) -> Tensor:
    """One element out of any range."""
    value = value.clone(memory_format=torch.contiguous_format)
    if value.numel() and value.dtype != torch.bool:
        far = [-1, 10**6, 2**31 - 1, -(2**31)] if not value.is_floating_point() else [float("nan"), float("inf"), 1e30]
        value.view(-1)[rng.randrange(value.numel())] = rng.choice(far)
    return value
