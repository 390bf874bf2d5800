"""The ops on fake tensors of a GPU that is not there: shapes, dtypes, devices, gradients and compilation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import saekernels as sk

T, D, F, K = 8192, 4096, 131072, 64  # the pre-activations of these would take 2 GB


@pytest.fixture
def fake() -> object:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def described(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype, str]:
    return tuple(tensor.shape), tensor.dtype, tensor.device.type


@pytest.mark.parametrize("precision", ["exact", "fast", "screened"])
def test_encode_topk(fake: object, precision: str) -> None:
    x, W, b, hint = empty(2, T // 2, D), empty(F, D), empty(F, dtype=torch.float32), empty(2, T // 2)
    codes = sk.encode_topk(x, W, b, k=K, precision=precision, hint=hint)
    assert described(codes.values) == ((2, T // 2, K), torch.bfloat16, "cuda")
    assert described(codes.indices) == ((2, T // 2, K), torch.int32, "cuda")


def test_decode_and_loss(fake: object) -> None:
    values, indices, W, b = empty(T, K), empty(T, K, dtype=torch.int32), empty(F, D), empty(D)
    offsets = empty(T + 1, dtype=torch.int64)
    flat = sk.decode_csr(values.view(T * K), indices.view(T * K), offsets, W, b)
    assert described(flat) == ((T, D), torch.bfloat16, "cuda")
    h, targets = empty(T, D), empty(T, dtype=torch.int64)
    for loss in sk.linear_ce_kl(h, h, W, targets, softcap=30.0):
        assert described(loss) == ((T,), torch.float32, "cuda")


def test_topk_and_threshold(fake: object) -> None:
    assert described(sk.topk(empty(3, F), K).indices) == ((3, K), torch.int32, "cuda")


def test_devices_must_agree(fake: object) -> None:
    with pytest.raises(ValueError, match="W_enc: got device cpu, need cuda"):
        sk.encode_topk(empty(4, D), torch.empty(F, D, dtype=torch.bfloat16, device="cpu"), k=K)
