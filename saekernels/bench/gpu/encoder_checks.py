"""The gate's checks of encoders and of selection: values, choices and gradients."""

from __future__ import annotations

import torch

import saekernels as sk
from saekernels.bench.gpu.check_tools import LIMIT, Bench, best_of, near, require, same_bits, scores_of


def encode(bench: Bench) -> None:
    """Both layouts, odd sizes, every activation and dtype; enough latents to be screened."""
    for dtype in bench.dtypes:
        for T, d, F, k in ((37, 72, 9001, 32), (1, 128, 16384, 8), (129, 64, 300, 300)):
            x, W = bench.normal(T, d, dtype=dtype), bench.normal(F, d, dtype=dtype, scale=d**-0.5)
            b, p = bench.normal(F, dtype=dtype, scale=0.1), bench.normal(d, dtype=dtype, scale=0.2)
            scores = scores_of(x, W, b, p)
            # On a GPU every form is a kernel to compile, so all of them at one size only.
            forms = ((W, "relu"), (W, "none"), (W, "abs"), (W.t().contiguous().t(), "relu"))
            for weights, activation in forms if F == 9001 else forms[:1]:
                codes = sk.encode_topk(x, weights, b, k=k, pre_bias=p, activation=activation)
                best_of(f"{dtype} F={F} {activation}", scores, codes, k, LIMIT[dtype], activation)


def precisions(bench: Bench) -> None:
    """fast to within tf32, screened to within its statistics: no row may miss a latent by more than a rounding here."""
    for dtype in bench.dtypes:
        x, W = bench.normal(64, 256, dtype=dtype), bench.normal(16384, 256, dtype=dtype, scale=1 / 16)
        scores = scores_of(x, W)
        loose = max(LIMIT[dtype], 1e-2)
        best_of(f"fast {dtype}", scores, sk.encode_topk(x, W, k=32, precision="fast"), 32, loose, "relu")
        best_of(f"screened {dtype}", scores, sk.encode_topk(x, W, k=32, precision="screened"), 32, LIMIT[dtype], "relu")


def adversaries(bench: Bench) -> None:
    """Ties, equal rows, NaN, infinities, a hot tile, sorted and repeated latents, hints that are wrong."""
    x, W = bench.normal(9, 64), bench.normal(9000, 64, scale=0.125)
    W[256:384] = 3 * x[4]
    W[5000:5400] = W[700]
    W = W[scores_of(x[5:6], W)[0].argsort()].contiguous()
    scores = scores_of(x, W)
    best_of("planted", scores, sk.encode_topk(x, W, k=50, activation="none"), 50, LIMIT[torch.float32] * 10, "none")
    for hint in (9.0, -9.0, torch.nan):
        codes = sk.encode_topk(x, W, k=50, activation="none", hint=hint)
        best_of(f"hint {hint}", scores, codes, 50, LIMIT[torch.float32] * 10, "none")
    x[0], x[1], x[2, 3] = 0, torch.nan, torch.inf
    zero = sk.encode_topk(x, W, k=50, activation="none")
    require(zero.indices[0].tolist() == list(range(50)), "equal scores: lower indices first")
    require(zero.indices[1].tolist() == list(range(50)) and bool(zero.values[1].isnan().all()), "NaN rows")
    best = scores_of(x, W)[2]
    near("infinite row", zero.values[2], best[zero.indices[2].long()], 1e-4)


def thresholds(bench: Bench) -> None:
    """JumpReLU, ReLU and none at all, in ascending order of latents."""
    for dtype in bench.dtypes:
        x, W, b = bench.normal(33, 72, dtype=dtype), bench.normal(5000, 72, dtype=dtype, scale=0.1), None
        limits = bench.normal(5000).abs() + 1
        for threshold in (limits, 1.5, -20.0):
            values, indices, offsets = sk.encode_threshold(x, W, b, threshold)
            scores = scores_of(x, W)
            rows = torch.arange(33, device=x.device).repeat_interleave(offsets.diff())
            chosen = scores[rows, indices.long()]
            near(f"{dtype} values", values, chosen, LIMIT[dtype])
            limit = threshold if isinstance(threshold, float) else limits
            margin = (scores - limit).abs() > 1e-3
            kept = torch.zeros_like(margin)
            kept[rows, indices.long()] = True
            require(
                torch.equal(kept & margin, (scores > limit) & margin), f"{dtype}: other latents than above {threshold}"
            )
            keys = rows * 5000 + indices
            require(bool((keys.diff() > 0).all()), f"{dtype}: not ascending")


def scales(bench: Bench) -> None:
    """The order of scores times a scale, and the values that there are without one: to the bit."""
    for dtype in bench.dtypes:
        x, W = bench.normal(37, 72, dtype=dtype), bench.normal(9001, 72, dtype=dtype, scale=72**-0.5)
        scale = 2 ** bench.normal(9001)
        # As candidates are scored, of whom there is room for 1024.
        lists = [sk.encode_threshold(x, part, None, -torch.inf, wide=True) for part in W.split(1000)]
        every = torch.cat([codes.values.view(37, -1) for codes in lists], 1)
        compared = every * scale
        for activation in ("relu", "abs"):
            got = sk.encode_topk(x, W, k=32, scale=scale, activation=activation, wide=True)
            ranked = compared.abs() if activation == "abs" else compared
            chosen = ranked.sort(dim=1, descending=True, stable=True).indices[:, :32]
            require(torch.equal(got.indices.long(), chosen), f"{dtype} {activation}: other order")
            same_bits(f"{dtype} {activation}", (got.values,), (every.gather(1, chosen),))
        limits = compared[0].clamp(min=2)  # passed by no score that equals it
        values, indices, offsets = sk.encode_threshold(x, W, None, limits, scale=scale, wide=True)
        kept = compared > limits
        require(torch.equal(indices.long(), kept.nonzero()[:, 1]), f"{dtype}: other latents than above thresholds")
        require(torch.equal(offsets.diff(), kept.sum(1)), f"{dtype}: other counts than above thresholds")
        same_bits(f"{dtype} thresholds", (values,), (every[kept],))


def topk(bench: Bench) -> None:
    """The total order exactly, few rows and many, any strides."""
    for dtype in bench.dtypes:
        for rows, columns, k in ((3, 100_000, 64), (200, 3000, 2048), (1, 1, 1), (5, 300, 300)):
            scores = bench.normal(rows, 2 * columns, dtype=dtype).round(decimals=2)[:, ::2]
            scores[0, 0] = torch.nan if columns > 1 else 1.0
            got = sk.topk(scores, k)
            ranked = torch.where(scores.isnan(), torch.inf, scores.float() + 0.0)
            want = torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :k]
            require(torch.equal(got.indices.long(), want), f"{dtype} {rows} x {columns}: other order")
            same_bits(f"{dtype} {rows} x {columns}", (got.values,), (scores.gather(1, want),))


def training(bench: Bench) -> None:
    """Gradients through both ends of an SAE, on the latents that it chose."""
    for dtype in bench.dtypes:
        T, F, d, k = 40, 9000, 64, 16
        x, W, b = (
            bench.normal(T, d, dtype=dtype),
            bench.normal(F, d, dtype=dtype, scale=0.125),
            bench.normal(F, scale=0.1),
        )
        p = bench.normal(d, dtype=dtype, scale=0.2)
        ours = [tensor.clone().requires_grad_() for tensor in (x, W, b, p)]
        codes = sk.encode_topk(ours[0], ours[1], ours[2], k=k, pre_bias=ours[3], activation="none")
        g = bench.normal(T, k, dtype=dtype)
        wide = [tensor.double().requires_grad_() for tensor in (x, W, b, p)]
        want = scores_of(*wide).gather(1, codes.indices.long())
        near(f"{dtype} forward", codes.values, want, LIMIT[dtype])
        for name, mine, theirs in zip(
            ("x", "W_enc", "b_enc", "pre_bias"),
            torch.autograd.grad(codes.values, ours, g),
            torch.autograd.grad(want, wide, g.double()),
            strict=True,
        ):
            near(f"{dtype} gradient of {name}", mine, theirs, 16 * LIMIT[dtype])
