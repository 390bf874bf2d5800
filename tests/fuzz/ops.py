"""Ops on the native and the reference backend, against the oracle: exact where numbers are small integers."""

from __future__ import annotations

import random

import torch
from torch import Tensor

import saekernels as sk
from fuzz.engine import ACCEPTED
from oracle import check_top_k, order, pre_activations
from saekernels.backends import registry

DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
# No huge and no denormal ones: where sums overflow, or lose such a term, depends on their order.
SPECIAL = (float("nan"), float("inf"), -float("inf"), -0.0, 0.0)


def backend(rng: random.Random) -> str:
    """The native backend three times of four, in one of its forms; the reference where it is not built."""
    native = registry.load("cpu")
    if native.available() is not None or rng.random() < 0.25:
        return "reference"
    native.set_simd_level(rng.choice(["auto", *native.describe()["simd levels here"].split(",")]))
    native.set_screening(rng.choice(["auto", "bf16", "fp32", "int16", "int8"]))
    return "cpu"


def size(rng: random.Random, most: int) -> int:
    return rng.choice([1, 2, 3, rng.randint(1, 17), rng.randint(1, most)])


def tokens(rng: random.Random) -> int:
    return rng.choice([0, 1, 2, 5, rng.randint(1, 40)])


def integers(rng: random.Random, *shape: int, most: int = 3) -> Tensor:
    """Small integers as float32: sums of their products have no rounding."""
    return torch.randint(-most, most + 1, shape).float()


def laid_out(rng: random.Random, x: Tensor) -> Tensor:
    """The same values with other strides: columns first, every other element, inside of a larger tensor of NaN."""
    kind = rng.randrange(5)
    if kind == 0 and x.dim() == 2:
        return x.T.contiguous().T
    if kind == 1 and x.dim():
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if kind == 2 and x.dim() == 2 and x.numel():
        wide = x.new_full((x.shape[0] + 2, x.shape[1] + 3), torch.nan)
        wide[1:-1, 2:-1] = x
        return wide[1:-1, 2:-1]
    return x


def special(rng: random.Random, x: Tensor) -> Tensor:
    """Some elements become NaN, infinities or zeros of either sign."""
    if x.numel():
        for _ in range(rng.choice([0, 0, 1, 3])):
            x.view(-1)[rng.randrange(x.numel())] = rng.choice(SPECIAL)
    return x


class Encoder:
    """x, W_enc, b_enc, pre_bias, k: integers with ties and repeated latents (`exact`), else any finite numbers."""

    def __init__(self, rng: random.Random) -> None:
        self.exact = rng.random() < 0.7
        T, d, F = tokens(rng), size(rng, 70), size(rng, rng.choice([40, 600, 3000]))
        dtype = rng.choice(DTYPES)
        most = 1 if dtype == torch.float16 else 3  # scores that overflow it are infinite, and tell nothing
        scale = 10.0 ** rng.randint(-3, most)
        draw = (lambda *s: integers(rng, *s)) if self.exact else (lambda *s: torch.randn(*s) * scale)
        x, W = draw(T, d), draw(F, d)
        if F > 3 and rng.random() < 0.5:
            W[rng.randrange(F)] = W[rng.randrange(F)]
        if rng.random() < 0.1:
            W[:] = W[:1]  # all scores of a row are equal
        if F > 64 and rng.random() < 0.3:
            W[(start := rng.randrange(F - 32)) : start + 32] *= 2  # a hot tile
        if self.exact and rng.random() < 0.3:
            special(rng, x)
        self.x, self.W = (laid_out(rng, value.to(dtype)) for value in (x, W))
        pick = [None, draw(F), draw(F).to(dtype)]
        self.b = rng.choice(pick)
        self.pre_bias = rng.choice([None, draw(d)])
        self.k = rng.choice([1, F, min(F, rng.randint(1, 70))])


def encode_topk(rng: random.Random) -> str:
    case, name = Encoder(rng), backend(rng)
    activation = rng.choice(["relu", "none", "abs"])
    options = {"k": case.k, "pre_bias": case.pre_bias, "activation": activation, "backend": name}
    if name == "cpu" and rng.random() < 0.25:
        options["prepared"] = sk.prepare(case.W)
    values, indices = sk.encode_topk(case.x, case.W, case.b, **options)
    if not case.exact:
        if case.x.shape[0]:
            check_top_k(values, indices, case.x, case.W, case.b, case.pre_bias, activation)
        return ACCEPTED
    pre = pre_activations(case.x, case.W, case.b, case.pre_bias).float()
    chosen = order(pre.abs() if activation == "abs" else pre)[:, : case.k]
    want = pre.gather(1, chosen)
    want = want.relu() if activation == "relu" else want
    assert torch.equal(indices.long(), chosen), "another selection or order"
    torch.testing.assert_close(values, want.to(case.x.dtype), rtol=0, atol=0, equal_nan=True)
    return ACCEPTED


def encode_threshold(rng: random.Random) -> str:
    case, name = Encoder(rng), backend(rng)
    F = case.W.shape[0]
    threshold = rng.choice([0.0, -2.0, float(rng.randint(-3, 9)), integers(rng, F), float("inf"), -float("inf")])
    values, indices, offsets = sk.encode_threshold(
        case.x, case.W, case.b, threshold, pre_bias=case.pre_bias, backend=name
    )
    assert offsets[0] == 0
    assert offsets[-1] == len(values) == len(indices)
    assert bool((offsets.diff() >= 0).all())
    rows = torch.arange(case.x.shape[0]).repeat_interleave(offsets.diff())
    assert bool((indices >= 0).all())
    assert bool((indices < F).all())
    pre = pre_activations(case.x, case.W, case.b, case.pre_bias).float()
    if case.exact:
        kept = (pre > torch.as_tensor(threshold)) | pre.isnan()
        assert torch.equal(torch.stack([rows, indices.long()]), kept.nonzero().T), "another selection"
        torch.testing.assert_close(values, pre[kept].to(case.x.dtype), rtol=0, atol=0, equal_nan=True)
    return ACCEPTED


def topk(rng: random.Random) -> str:
    T, F, dtype = tokens(rng), size(rng, 3000), rng.choice(DTYPES)
    scores = special(rng, integers(rng, T, F, most=rng.choice([1, 50]))).to(dtype)
    k = rng.choice([1, F, rng.randint(1, F)])
    values, indices = sk.topk(laid_out(rng, scores), k, backend=backend(rng))
    chosen = order(scores.float() + 0.0)[:, :k]
    assert torch.equal(indices.long(), chosen), "another selection or order"
    torch.testing.assert_close(values, scores.gather(1, chosen), rtol=0, atol=0, equal_nan=True)
    return ACCEPTED


def decode(rng: random.Random) -> str:
    T, k, F, d, dtype = tokens(rng), size(rng, 40), size(rng, 300), size(rng, 130), rng.choice(DTYPES)
    values, W = integers(rng, T, k).to(dtype), special(rng, integers(rng, F, d)).to(dtype)
    indices = torch.randint(0, F, (T, k), dtype=rng.choice([torch.int32, torch.int64]))
    b = rng.choice([None, integers(rng, d)])
    got = sk.decode(laid_out(rng, values), indices, laid_out(rng, W), b, backend=backend(rng))
    terms = values[..., None].double() * W[indices.long()].double()
    want = terms.sum(1) + (0 if b is None else b.double())
    torch.testing.assert_close(got, want.to(dtype), rtol=0, atol=0, equal_nan=True)
    return ACCEPTED


def decode_csr(rng: random.Random) -> str:
    counts = [rng.choice([0, 0, 1, rng.randint(0, 30)]) for _ in range(tokens(rng))]
    offsets = torch.tensor([0, *counts]).cumsum(0)
    F, d, dtype, nnz = size(rng, 300), size(rng, 130), rng.choice(DTYPES), sum(counts)
    values, W = integers(rng, nnz).to(dtype), special(rng, integers(rng, F, d)).to(dtype)
    indices, wide = torch.randint(0, F, (nnz,), dtype=torch.int32), rng.random() < 0.3
    got = sk.decode_csr(values, indices, offsets, laid_out(rng, W), wide=wide, backend=backend(rng))
    rows = torch.arange(len(counts)).repeat_interleave(offsets.diff())
    terms = values[:, None].double() * W[indices.long()].double()
    want = torch.zeros(len(counts), d, dtype=torch.float64).index_add(0, rows, terms)
    torch.testing.assert_close(got, want.to(torch.float32 if wide else dtype), rtol=0, atol=0, equal_nan=True)
    return ACCEPTED


def gather_matmul(rng: random.Random) -> str:
    counts = [rng.choice([0, 0, 1, rng.randint(0, 30), rng.randint(0, 200)]) for _ in range(tokens(rng))]
    offsets = torch.tensor([0, *counts]).cumsum(0)
    B, F, d, dtype = rng.choice([0, 1, 16, rng.randint(1, 300)]), size(rng, 300), size(rng, 300), rng.choice(DTYPES)
    rows = torch.arange(len(counts)).repeat_interleave(offsets.diff())
    indices, wide = torch.randint(0, F, (len(rows),), dtype=torch.int32), rng.random() < 0.3
    a, W = integers(rng, B, len(counts), d).to(dtype), special(rng, integers(rng, F, d)).to(dtype)
    want = torch.einsum("bed,ed->eb", a[:, rows].double(), W[indices.long()].double())
    turned = rng.randrange(3)
    a = a.transpose(0, turned).contiguous().transpose(0, turned)
    got = sk.gather_matmul(a, laid_out(rng, W), indices, offsets, wide=wide, backend=backend(rng))
    torch.testing.assert_close(got, want.to(torch.float32 if wide else dtype), rtol=0, atol=0, equal_nan=True)
    return ACCEPTED


def linear_ce_kl(rng: random.Random) -> str:
    T, d, V, dtype = tokens(rng), size(rng, 70), size(rng, 900), rng.choice(DTYPES)
    p, q, U = (torch.randn(n, d).to(dtype) * rng.choice([0.1, 1.0]) for n in (T, T, V))
    targets = torch.randint(0, V, (T,))
    if T and rng.random() < 0.5:
        targets[rng.randrange(T)] = -100
    bias, softcap = rng.choice([None, torch.randn(V)]), rng.choice([None, 5.0, 30.0])
    streams = laid_out(rng, q)
    several = rng.random() < 0.3
    if several:
        streams = torch.stack([torch.randn_like(q), q])
    got = sk.linear_ce_kl(
        laid_out(rng, p), streams, laid_out(rng, U), targets, bias=bias, softcap=softcap, backend=backend(rng)
    )
    if several:
        got = sk.LinearCeKl(got.ce_p, *(figure[1] for figure in got[1:]))
    logits = [h.double() @ U.double().T + (0 if bias is None else bias.double()) for h in (p, q)]
    logits = logits if softcap is None else [softcap * torch.tanh(z / softcap) for z in logits]
    kept = targets != -100
    log_p, log_q = (z.log_softmax(-1) for z in logits)
    at = targets.clamp(min=0)[:, None]
    want = [-log_p.gather(1, at)[:, 0], -log_q.gather(1, at)[:, 0], (log_p.exp() * (log_p - log_q)).sum(-1)]
    for mine, other in zip(got[:3], want, strict=True):
        torch.testing.assert_close(mine.double(), torch.where(kept, other, 0.0), rtol=2e-5, atol=2e-5)
    agree = (logits[0].argmax(-1) == logits[1].argmax(-1)) & kept
    near = torch.stack([z.topk(min(2, V)).values for z in logits]) if T else torch.zeros(2, 0, 2)
    clear = ((near[..., 0] - near[..., -1]) > 1e-4).all(0) | (V == 1)
    assert torch.equal(got[3][clear] != 0, agree[clear]), "another top token"
    return ACCEPTED


def gradients(rng: random.Random) -> str:
    T, d, F, name = tokens(rng), size(rng, 24), size(rng, 60), backend(rng)
    k, activation = rng.randint(1, F), rng.choice(["relu", "none", "abs"])
    leaves = [integers(rng, *shape).requires_grad_() for shape in ((T, d), (F, d), (F,), (d,), (F, d))]
    x, W, b, pre, D = leaves
    codes = sk.encode_topk(x, W, b, k=k, pre_bias=pre, activation=activation, backend=name)
    weight = integers(rng, T, d)
    (sk.decode(codes.values, codes.indices, D, backend=name) * weight).sum().backward()
    mine = [leaf.grad for leaf in leaves]
    twins = [leaf.detach().double().requires_grad_() for leaf in leaves]
    x, W, b, pre, D = twins
    dense = ((x - pre) @ W.T + b).gather(1, codes.indices.long())
    if activation == "relu":
        dense = torch.where(codes.values.detach() == 0, 0.0, dense)
    out = (dense[..., None] * D[codes.indices.long()]).sum(1)
    (out * weight).sum().backward()
    for got, leaf in zip(mine, twins, strict=True):
        want = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        got = torch.zeros_like(want) if got is None else got.double()
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    return ACCEPTED
