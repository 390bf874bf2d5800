"""Calls of the Triton backend at real sizes, on fake tensors: what `triton_aot.py` and the cost model look at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import saekernels.backends.triton as backend
from saekernels.backends.triton import configs, launch
from saekernels.backends.triton.encode.operands import Operands, Vectors
from saekernels.backends.triton.encode.screen import screen

ENCODERS = (
    (8192, 4096, 131072, 64, torch.bfloat16),
    (8192, 4096, 131072, 64, torch.float32),
    (64, 1000, 20001, 32, torch.float16),  # a depth that no tile divides
)
# T, d, V, dtype, softcap, whether there is a bias, and whether gradients are asked for.
LOSSES = (
    (8192, 4096, 128256, torch.bfloat16, None, False, True),
    (8192, 2304, 256000, torch.bfloat16, 30.0, False, False),
    (8192, 768, 50176, torch.float32, None, False, True),
    (64, 1000, 20001, torch.float16, None, True, False),  # a depth that no tile divides
)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A fake tensor; of the CPU, because torch slices those of a GPU with its driver's help."""
    return torch.empty(shape, dtype=dtype)


def encoder(T: int, d: int, F: int, k: int, dtype: torch.dtype) -> None:
    """Both encoders in every precision, latents as columns, all scores at once, and every form of the screen."""
    x, W, bias, pre = empty(T, d, dtype=dtype), empty(F, d, dtype=dtype), empty(F, dtype=dtype), empty(d, dtype=dtype)
    backend.encode_topk(x, W, bias, pre, k, "relu")
    backend.encode_threshold(x, W, bias, None, empty(F))
    backend.encode_topk(x, W, bias, None, F // 2, "relu")
    if T > 64:
        backend.encode_topk(x, W, None, None, k, "abs")
        backend.encode_topk(x, W.new_empty(d, F).t(), bias, None, k, "relu", precision="fast")
        backend.encode_topk(x, W, bias, None, k, "relu", precision="screened")
        architecture = launch.architecture(x.device)
        if architecture == 90 and dtype == torch.bfloat16:
            warp_specialised(x, W)
        if architecture >= 90:
            table = configs.lookup("screen", architecture, dtype, d)
            with configs.override("screen", table._replace(extra=("tma",))):
                backend.encode_topk(x, W, bias, None, k, "relu", precision="fast")


def warp_specialised(x: Tensor, W: Tensor) -> None:
    """Both forms of the screen on Hopper: in ping-pong, and where two warpgroups share a tile; a depth is ragged."""
    (T, d), F = x.shape, W.shape[0]
    table, ragged, biased = configs.lookup("screen", 90, x.dtype, d), slice(d - 56), Vectors(empty(F))
    for ring in (configs.PINGPONG, configs.COOPERATIVE):
        with configs.override("screen", table._replace(ring=ring)):
            screen(Operands(x, W, biased), empty(T), 1024, per_latent=False)
    with configs.override("screen", table._replace(ring=configs.COOPERATIVE)):
        screen(Operands(x[:, ragged].half(), W[:, ragged].half(), biased), empty(F), 1024, per_latent=True)


def scaled(T: int, d: int, F: int, k: int, dtype: torch.dtype) -> None:
    """Encoders that compare scores times a scale: the best rescored, and what is above thresholds."""
    x, W, bias, scale = empty(T, d, dtype=dtype), empty(F, d, dtype=dtype), empty(F), empty(F)
    if dtype == torch.float32:
        backend.encode_topk(x, W, bias, None, k, "relu", scale=scale)
    else:
        backend.encode_threshold(x, W, bias, None, empty(F), scale=scale)


def codes(T: int, d: int, F: int, k: int, dtype: torch.dtype) -> None:
    """What is done with codes, there and back."""
    values, indices, offsets = (
        empty(T * k, dtype=dtype),
        empty(T * k, dtype=torch.int32),
        empty(T + 1, dtype=torch.int64),
    )
    W, a = empty(F, d, dtype=dtype), empty(T, d, dtype=dtype)
    backend.decode(values, indices, offsets, W, empty(d, dtype=dtype))
    backend.gather_dot(a, W, indices, offsets)
    backend.gather_matmul(empty(64, T, d, dtype=dtype), W, indices, offsets)
    backend.segment_outer(values, indices, offsets, a, F)
    backend.segment_sum(values, indices, F)


def loss(T: int, d: int, V: int, dtype: torch.dtype, softcap: float | None, biased: bool, backward: bool) -> None:
    """linear_ce_kl, and its gradients."""
    h, W, bias = empty(T, d, dtype=dtype), empty(V, d, dtype=dtype), empty(V, dtype=dtype) if biased else None
    head = (h, h.clone(), W, empty(T, dtype=torch.int64), bias, softcap, -100)
    losses = backend.linear_ce_kl(*head)[:3]
    if backward:
        backend.linear_ce_kl_backward(*(empty(T) for _ in range(3)), *losses, *head, True, True, biased)


def workload() -> None:
    """Everything."""
    with FakeTensorMode():
        for case in ENCODERS:
            encoder(*case)
            codes(*case)
        codes(8192, 4096, 131072, 64, torch.float16)
        for head in LOSSES:
            loss(*head)
        for case in ENCODERS[:2]:
            scaled(*case)
