"""Bad input: the error names the argument, what came and what was needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import saekernels as sk
from saekernels import training

X, W, B = torch.randn(3, 8), torch.randn(20, 8), torch.randn(20)
NEGATIVE = torch.ones(20).index_fill(0, torch.tensor([4]), -1.0)
V, LATENTS = torch.randn(3, 2), torch.zeros(3, 2, dtype=torch.int32)
OFFSETS = torch.tensor([0, 2, 4, 6])
CSR = (LATENTS.view(-1), OFFSETS)
TARGETS = torch.zeros(3, dtype=torch.int64)

CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: sk.encode_topk([1.0], W, k=2), TypeError, "x"),
    (lambda: sk.encode_topk(X.int(), W, k=2), TypeError, "x: got dtype int32, need one of float32"),
    (lambda: sk.encode_topk(X, W.bfloat16(), k=2), TypeError, "W_enc: got dtype bfloat16, need float32, that of x$"),
    (lambda: sk.encode_topk(X, W.T, k=2), ValueError, r"x: got shape \[3, 8\], need \[..., d\] with d = 20"),
    (lambda: sk.encode_topk(torch.tensor(1.0), W, k=2), ValueError, r"x: got shape \[\]"),
    (lambda: sk.encode_topk(X, W[0], k=2), ValueError, r"W_enc: got shape \[8\], need \[F, d\]"),
    (lambda: sk.encode_topk(X, W[:0], k=2), ValueError, r"W_enc: got shape \[0, 8\]"),
    (lambda: sk.encode_topk(X, W, B[:3], k=2), ValueError, r"b_enc: got shape \[3\], need \[F\] = \[20\]"),
    (lambda: sk.encode_topk(X, W, B.half(), k=2), TypeError, "b_enc: got dtype float16"),
    (lambda: sk.encode_topk(X, W, k=2, pre_bias=B), ValueError, r"pre_bias: got shape \[20\], need \[d\] = \[8\]"),
    (lambda: sk.encode_topk(X, W, k=0), ValueError, "k: got 0, need 1 <= k <= 20"),
    (lambda: sk.encode_topk(X, W, k=21), ValueError, "k: got 21, need 1 <= k <= 20"),
    (lambda: sk.encode_topk(X, W, k=2.0), TypeError, "k: got 2.0, need int"),
    (lambda: sk.encode_topk(X, W, k=True), TypeError, "k: got True, need int"),
    (lambda: sk.encode_topk(X, W, k=None), TypeError, "k: got None, need int"),
    (lambda: sk.encode_topk(X, W, k=10**30), ValueError, "k: got 10{30}, need a number of 64 bits"),
    (lambda: sk.encode_topk(X, W, k=2, activation=None), TypeError, "activation: got None, need str"),
    (lambda: sk.encode_topk(X, W, k=2, backend=3), TypeError, "backend: got 3, need str"),
    (lambda: sk.encode_topk(X, W, k=2, sparse_grad=1), TypeError, "sparse_grad: got 1, need bool"),
    (lambda: sk.encode_topk(X, W, k=2, hint="a"), TypeError, "hint: got 'a', need a number"),
    (lambda: sk.encode_topk(X, W, k=2, hint=B), ValueError, r"hint: got shape \[20\], need \[3\], one per row of x"),
    (lambda: sk.encode_topk(X, W, k=2, hint=B[:3].int()), TypeError, "hint: got dtype int32, need one of float32"),
    (lambda: sk.encode_topk(X, W, k=2, hint=B[:3].to("meta")), ValueError, "hint: got device meta, need cpu"),
    (lambda: sk.encode_topk(X, W, k=2, scale=B[:3]), ValueError, r"scale: got shape \[3\], need \[F\] = \[20\]"),
    (lambda: sk.encode_topk(X, W, k=2, scale=B.double()), TypeError, "scale: got dtype float64, need one of float32"),
    (lambda: sk.encode_topk(X, W, k=2, scale=B * B * 0), ValueError, r"^scale: must be above 0, but scale\[0\] = 0$"),
    (lambda: sk.encode_threshold(X, W, scale=NEGATIVE), ValueError, r"^scale: must be above 0, but scale\[4\] = -1$"),
    (lambda: sk.encode_threshold(X, W, scale=B[None]), ValueError, r"scale: got shape \[1, 20\], need \[F\]"),
    (lambda: sk.encode_threshold(X, W, B, "a"), TypeError, "threshold: got 'a', need a number"),
    (lambda: sk.encode_threshold(X, W, B, None), TypeError, "threshold: got None, need a number"),
    (lambda: sk.topk(X, "3"), TypeError, "k: got '3', need int"),
    (lambda: sk.decode(V[0, 0], LATENTS[0, 0], W), ValueError, "values: got a scalar"),
    (lambda: sk.linear_ce_kl(X, X, W, TARGETS, softcap="3"), TypeError, "softcap: got '3', need a number"),
    (lambda: sk.linear_ce_kl(X, X, W, TARGETS, ignore_index=1.5), TypeError, "ignore_index: got 1.5, need int"),
    (lambda: sk.encode_topk(X, W, k=2, activation="gelu"), ValueError, "activation: got 'gelu', need one of 'relu'"),
    (lambda: sk.encode_topk(X, W, k=2, precision="half"), ValueError, "precision: got 'half', need one of 'exact'"),
    (lambda: sk.encode_topk(X, W, k=2, backend="tpu"), ValueError, "backend: got 'tpu', need one of 'auto'"),
    (lambda: sk.encode_topk(X.to_sparse(), W, k=2), TypeError, "x: got layout"),
    (lambda: sk.encode_topk(X, W.to("meta"), k=2), ValueError, "W_enc: got device meta, need cpu"),
    (lambda: sk.encode_threshold(X, W, B, torch.zeros(3)), ValueError, r"threshold: got shape \[3\], need \[F\]"),
    (lambda: sk.encode_threshold(X, W, B, torch.tensor(1)), TypeError, "threshold: got dtype int64"),
    (lambda: sk.encode_threshold(X, W[:, :5]), ValueError, "x: got shape"),
    (lambda: sk.topk(X, 9), ValueError, "k: got 9, need 1 <= k <= 8, the number of latents in scores"),
    (lambda: sk.topk(X.long(), 2), TypeError, "scores: got dtype int64"),
    (lambda: sk.topk(torch.tensor(1.0), 1), ValueError, r"scores: got shape \[\]"),
    (lambda: sk.decode(V, LATENTS[:, :1], W), ValueError, r"indices: got shape \[3, 1\], need \[3, 2\]"),
    (lambda: sk.decode(V, LATENTS.float(), W), TypeError, "indices: got dtype float32, need one of int32, int64"),
    (lambda: sk.decode(V, LATENTS, W.half()), TypeError, "W_dec: got dtype float16"),
    (lambda: sk.decode(V, LATENTS, W, B), ValueError, r"b_dec: got shape \[20\], need \[d_out\] = \[8\]"),
    (lambda: sk.decode_csr(V.view(-1), LATENTS.view(-1), OFFSETS.int(), W), TypeError, "offsets: got dtype int32"),
    (lambda: sk.decode_csr(V.view(-1), LATENTS.view(-1), OFFSETS[None], W), ValueError, r"offsets: got shape \[1, 4\]"),
    (lambda: sk.decode_csr(V, LATENTS, OFFSETS, W), ValueError, r"values: got shape \[3, 2\], need \[nnz\]"),
    (lambda: sk.gather_matmul(X, W, B, OFFSETS), TypeError, "indices: got dtype float32, need one of int32, int64"),
    (lambda: sk.gather_matmul(X, W, *CSR), ValueError, r"a: got shape \[3, 8\], need \[B, T, d\] = \[B, 3, 8\]"),
    (
        lambda: sk.gather_matmul(X[None, :2], W, *CSR),
        ValueError,
        r"a: got shape \[1, 2, 8\], need \[B, T, d\] = \[1, 3",
    ),
    (lambda: sk.gather_matmul(X[None].half(), W, *CSR), TypeError, "W: got dtype float32, need float16, that of a"),
    (lambda: sk.gather_matmul(X[None], W.double(), *CSR), TypeError, "W: got dtype float64, need one of float32, bf"),
    (lambda: sk.gather_matmul(X[None], W[0], *CSR), ValueError, r"W: got shape \[8\], need \[F, d\]"),
    (lambda: sk.gather_matmul(X[None], W, LATENTS, OFFSETS), ValueError, r"indices: got shape \[3, 2\], need \[nnz\]"),
    (lambda: sk.gather_matmul(X[None], W, CSR[0], OFFSETS.int()), TypeError, "offsets: got dtype int32"),
    (lambda: sk.linear_ce_kl(X, X[:2], W, TARGETS), ValueError, r"h_q: got shape \[2, 8\], need \[T, d\] = \[3, 8\]"),
    (lambda: sk.linear_ce_kl(X, X[None, :2], W, TARGETS), ValueError, r"h_q: got shape \[1, 2, 8\], need \[R, T, d\]"),
    (lambda: sk.linear_ce_kl(X, X[None][:0], W, TARGETS), ValueError, r"h_q: got shape \[0, 3, 8\], need \[T, d\] or"),
    (lambda: sk.linear_ce_kl(X, X, W, TARGETS[:2]), ValueError, r"targets: got shape \[2\], need \[T\] = \[3\]"),
    (lambda: sk.linear_ce_kl(X, X, W, TARGETS.int()), TypeError, "targets: got dtype int32"),
    (lambda: sk.linear_ce_kl(X, X, W, TARGETS, softcap=0.0), ValueError, "softcap: got 0.0, need a positive"),
    (lambda: sk.linear_ce_kl(X[None], X, W, TARGETS), ValueError, r"h_p: got shape \[1, 3, 8\], need \[T, d\]"),
    (lambda: sk.linear_ce_kl(X, X, W, TARGETS, bias=B[:2]), ValueError, r"bias: got shape \[2\], need \[V\] = \[20\]"),
    (lambda: sk.SAE(0, 4, sk.ReLU()), ValueError, "d_in: got 0, need at least 1"),
    (lambda: sk.SAE(4, 8, sk.TopK(9)), ValueError, "activation: got k = 9, need at most n_latents = 8"),
    (lambda: sk.SAE(4, 8, sk.GroupMax(3)), ValueError, "need a k that divides n_latents = 8"),
    (lambda: sk.SAE(4, 8, "topk"), ValueError, "activation: got 'topk', need one of"),
    (lambda: sk.SAE(4, 8, sk.ReLU(), d_out=5), ValueError, "pre_bias: got 'b_dec' with d_in = 4 and d_out = 5"),
    (lambda: sk.SAE(4, 8, sk.ReLU(), pre_bias="x"), ValueError, "pre_bias: got 'x'"),
    (lambda: sk.SAE(4, 8, sk.Gated(), rescale_by_decoder_norm=True), ValueError, "rescale_by_decoder_norm"),
    (lambda: sk.SAE(4, 8, sk.ReLU())(torch.randn(2, 5)), ValueError, r"x: got shape \[2, 5\], need .* d_in = 4"),
    (lambda: sk.SAE(4, 9, sk.ReLU()).decode(sk.SAE(4, 8, sk.ReLU()).encode(torch.randn(4))), ValueError, "codes: got"),
    (lambda: sk.SAE(4.0, 8, sk.ReLU()), TypeError, "d_in: got 4.0, need an int"),
    (lambda: sk.SAE(4, True, sk.ReLU()), TypeError, "n_latents: got True, need an int"),
    (lambda: sk.SAE(4, 8, sk.ReLU(), normalization="layer_norm"), ValueError, "normalization: got 'layer_norm', need"),
    (lambda: sk.SAE(4, 8, sk.ReLU(), normalization=sk.LayerNorm), ValueError, "normalization: got <class"),
    (lambda: sk.SAE(8, 9, sk.ReLU())(X.long()), TypeError, "x: got dtype int64, need one of float32"),
    (lambda: sk.SAE(8, 9, sk.ReLU()).encode(X > 0), TypeError, "x: got dtype bool, need one of float32"),
    (lambda: sk.SAE(8, 9, sk.ReLU()).encode(X.to(torch.complex64)), TypeError, "x: got dtype complex64"),
    (lambda: sk.SAE(8, 9, sk.ReLU()).encode([1.0] * 8), TypeError, "x: got list, need a torch.Tensor"),
    (lambda: sk.BatchTopK(0), ValueError, "k: got 0, need a finite number above 0"),
    (lambda: sk.BatchTopK(-2.5), ValueError, "k: got -2.5, need a finite number above 0"),
    (lambda: sk.BatchTopK("5"), ValueError, "k: got '5', need a finite number above 0"),
    (lambda: sk.LayerNorm(-1e-5), ValueError, "eps: got -1e-05, need a finite number of at least 0"),
    (lambda: sk.LayerNorm(float("inf")), ValueError, "eps: got inf"),
    (lambda: sk.Scale("2"), ValueError, "factor: got '2', need a finite number above 0"),
    (lambda: sk.TopK(0), ValueError, "k: got 0"),
    (lambda: sk.Scale(float("nan")), ValueError, "factor: got nan"),
]


@pytest.mark.parametrize("case", CASES, ids=[message[:40] for _, _, message in CASES])
def test_message(case: tuple[Callable[[], Any], type[Exception], str]) -> None:
    call, kind, message = case
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("case", CASES, ids=[message[:40] for _, _, message in CASES])
def test_the_same_message_past_the_dispatcher_and_through_it(
    case: tuple[Callable[[], Any], type[Exception], str],
) -> None:
    call, kind, _ = case
    with pytest.raises(kind) as at_once:
        call()
    # A default device is a mode, in which calls go through the dispatcher.
    with torch.device("cpu"), pytest.raises(kind) as dispatched:
        call()
    assert str(at_once.value) == str(dispatched.value)


def test_float64_is_refused_by_a_named_native_backend() -> None:
    with pytest.raises(ValueError, match=r"backend: got 'cpu', which cannot serve encode_topk for torch\.float64"):
        sk.encode_topk(X.double(), W.double(), k=2, backend="cpu")


@pytest.mark.parametrize(
    ("op", "given"),
    [
        (sk.decode, {"values": V, "indices": LATENTS, "W_dec": W}),
        (sk.decode_csr, {"values": V.view(-1), "indices": LATENTS.view(-1), "offsets": OFFSETS, "W_dec": W}),
        (lambda **given: sk.encode_topk(**given, k=2), {"x": X, "W_enc": W}),
        (lambda **given: sk.encode_threshold(**given, b_enc=None, threshold=0.5), {"x": X, "W_enc": W}),
        (lambda **given: sk.topk(**given, k=2), {"scores": X}),
        (sk.gather_matmul, {"a": X[None], "W": W, "indices": CSR[0], "offsets": OFFSETS}),
        (sk.linear_ce_kl, {"h_p": X, "h_q": X, "W_U": W, "targets": TARGETS}),
    ],
    ids=["decode", "decode_csr", "encode_topk", "encode_threshold", "topk", "gather_matmul", "linear_ce_kl"],
)
def test_none_for_a_tensor_is_named(op: Callable[..., object], given: dict[str, torch.Tensor]) -> None:
    for name in given:
        with pytest.raises(TypeError, match=f"^{name}: got NoneType, need a torch.Tensor"):
            op(**{**given, name: None})


def test_integers_of_numpy_stand_for_ints() -> None:
    """They come from arrays of sizes; a bool of numpy stands for none."""
    three, codes = np.int64(3), sk.encode_topk(X, W, k=3)
    assert torch.equal(sk.encode_topk(X, W, k=three).values, codes.values)
    assert repr(sk.TopK(three)) == "TopK(k=3)"
    sae = sk.SAE(np.int32(8), np.int64(20), sk.TopK(three))
    assert [type(one) for one in (sae.d_in, sae.n_latents, sae.d_out, sae.activation.k)] == [int] * 4
    found = training.encode_batch_topk(X, W, n=three)
    assert training.decode_prefixes(found, W, [np.int64(4), 20]).shape == (3, 2, 8)
    with pytest.raises(TypeError, match=r"^k: got (np.)?True_?, need int$"):
        sk.encode_topk(X, W, k=np.True_)
