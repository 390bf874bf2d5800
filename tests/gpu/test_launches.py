"""What a call starts on a GPU, counted on a CPU: few kernels, and none that the host waits for, so graphs hold it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import saekernels as sk
from saekernels.example import SAE_DIRS

pytest.importorskip("triton")

from host_time import launched
from saekernels.backends import triton as backend

F, D, K = 8192, 64, 16
SCREEN = ["sample_kernel", "rank_kernel", "zeros", "screen_kernel", "zeros"]


def weights(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """W [F, D], and biases [F] in float32, [D] in `dtype`."""
    return torch.randn(F, D, dtype=dtype), torch.zeros(F), torch.zeros(D, dtype=dtype)


@pytest.mark.parametrize("T", [1, 16, 64])
def test_a_topk_forward_of_16_bits(T: int) -> None:
    """As many launches for any number of tokens; a hint spares two."""
    W, b_enc, b_dec = weights(torch.bfloat16)
    x = torch.randn(T, D, dtype=torch.bfloat16)

    def forward() -> Tensor:
        return sk.decode(*sk.encode_topk(x, W, b_enc, k=K), W, b_dec)

    encode = [*SCREEN, "certify_kernel", "exact_rows_kernel", "select_kernel"]
    decode = ["arange", "decode_kernel"]
    assert launched(forward) == encode + decode
    assert launched(lambda: sk.encode_topk(x, W, b_enc, k=K, hint=torch.zeros(T))) == ["zeros", *encode[2:]]
    assert launched(lambda: sk.encode_topk(x, W, b_enc, k=K, pre_bias=b_dec)) == ["fold_kernel", *encode]


def test_a_float32_encode_bounds_before_and_rescores_after() -> None:
    W, b_enc, _ = weights(torch.float32)
    names = launched(lambda: sk.encode_topk(torch.randn(1, D), W, b_enc, k=K))
    screened = names.index("sample_kernel")
    assert names[screened:] == [*SCREEN, "cut_kernel", "rescore_kernel", "exact_rows_kernel", "select_kernel"]
    assert names[1:screened].count("linalg_vector_norm") == 2
    assert not [name for name in names if "waits" in name]


def test_a_forward_of_all_scores_at_once_waits_for_nothing_either() -> None:
    sae = sk.load(SAE_DIRS["model.layers.0"])
    names = launched(lambda: sae(torch.randn(2, sae.W_enc.shape[1])))
    assert names[-1] == "decode_kernel"
    assert not [name for name in names if "waits" in name]


def test_the_gradients_of_codes() -> None:
    W, _, _ = weights(torch.float32)
    values, indices, offsets = torch.randn(4), torch.tensor([3, 1, 1, 5], dtype=torch.int32), torch.tensor([0, 2, 4])
    assert launched(lambda: backend.gather_dot(W[:2], W, indices, offsets)) == ["gather_dot_kernel"]
    stack = torch.stack([W[:2]] * 3)
    assert launched(lambda: backend.gather_matmul(stack, W, indices, offsets)) == ["gather_matmul_kernel"]
    outer = launched(lambda: backend.segment_outer(values, indices, offsets, W[:2], F))
    assert outer[-1] == "segment_outer_kernel"
    total = launched(lambda: backend.segment_sum(values, indices, F))
    assert total == ["sort", "arange", "searchsorted", "segment_sum_kernel"]
    assert not [name for name in outer + total if "waits" in name]


def test_what_waits_for_the_device_is_seen() -> None:
    """Codes of a threshold are as many as there are."""
    W, b_enc, _ = weights(torch.bfloat16)
    names = launched(lambda: sk.encode_threshold(W[:2], W, b_enc, 1.0))
    assert [name for name in names if "waits" in name] == ["waits: read"]
    assert launched(lambda: (b_enc > 1).nonzero()) == ["gt", "waits: nonzero"]
    assert launched(lambda: b_enc.sum().item()) == ["sum", "waits: _local_scalar_dense"]
