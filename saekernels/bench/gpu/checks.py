"""The gate: every op, forward and backward, right on the device at hand, before anything is timed.

Each check compares numbers with float64 (or bits with bits) and raises Wrong. They run on the CPU's backends as well,
which is how they are tested where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import saekernels as sk
from saekernels.bench.gpu.check_tools import DTYPES, LIMIT, Bench, Wrong, near, require, same_bits, scores_of
from saekernels.bench.gpu.encoder_checks import adversaries, encode, precisions, scales, thresholds, topk, training


class Outcome(NamedTuple):
    """One check: None, or what was wrong."""

    name: str
    wrong: str | None


def decoding(bench: Bench) -> None:
    """decode and decode_csr, and all gradients, against autograd in float64."""
    for dtype in bench.dtypes:
        T, F, d, k = 50, 400, 136, 20
        values, indices = bench.normal(T, k, dtype=dtype), bench.integers(F, T, k, dtype=torch.int32)
        indices[:, 0] = 7  # a latent that fires on every token
        W, b, g = bench.normal(F, d, dtype=dtype), bench.normal(d, dtype=dtype), bench.normal(T, d, dtype=dtype)
        ours = [tensor.clone().requires_grad_() for tensor in (values, W, b)]
        wide = [tensor.double().requires_grad_() for tensor in (values, W, b)]
        got = sk.decode(ours[0], indices, ours[1], ours[2])
        want = torch.einsum("tk,tkd->td", wide[0], wide[1][indices.long()]) + wide[2]
        near(f"{dtype} decode", got, want, 4 * LIMIT[dtype])
        gradients = torch.autograd.grad(got, ours, g)
        for name, mine, theirs in zip(
            ("values", "W_dec", "b_dec"), gradients, torch.autograd.grad(want, wide, g.double()), strict=True
        ):
            near(f"{dtype} gradient of {name}", mine, theirs, 8 * LIMIT[dtype])


def gathering(bench: Bench) -> None:
    """gather_matmul of rows with no, one and many entries, against float64; a row's bits are its own."""
    for dtype in bench.dtypes:
        B, T, F, d = 70, 6, 300, 136
        a, W = bench.normal(B, T, d, dtype=dtype), bench.normal(F, d, dtype=dtype, scale=0.1)
        offsets = torch.tensor([0, 0, 1, 40, 41, 110, 110], device=bench.device)
        indices = bench.integers(F, 110, dtype=torch.int32)
        rows = torch.arange(T, device=bench.device).repeat_interleave(offsets.diff())
        got = sk.gather_matmul(a, W, indices, offsets)
        want = torch.einsum("bed,ed->eb", a.double()[:, rows], W.double()[indices.long()])
        near(f"{dtype} gather_matmul", got, want, 4 * LIMIT[dtype])
        alone = sk.gather_matmul(a[:, 2:3], W, indices[1:40], offsets[2:4] - 1)
        same_bits(f"{dtype} gather_matmul of one row", (alone,), (got[1:40],))


def losses(bench: Bench) -> None:
    """linear_ce_kl and its gradients with bias, cap, ignored targets, a vocabulary that no tile divides."""
    for dtype in bench.dtypes:
        T, d, V = 70, 96, 5003
        h_p, W, b = bench.normal(T, d, dtype=dtype), bench.normal(V, d, dtype=dtype, scale=0.2), bench.normal(V)
        inputs = (h_p, (h_p.float() + bench.normal(T, d, scale=0.3)).to(dtype), W, b)
        targets, grads = bench.integers(V, T), bench.normal(3, T)
        targets[3] = -100
        for softcap in (None, 10.0):
            ours = [tensor.clone().requires_grad_() for tensor in inputs]
            exact = [tensor.double().requires_grad_() for tensor in inputs]
            p, q, own_W, own_b = ours
            got = sk.linear_ce_kl(p, q, own_W, targets, bias=own_b, softcap=softcap)[:3]
            want = _exact_losses(exact, targets, softcap)
            for name, mine, theirs in zip(("ce_p", "ce_q", "kl"), got, want, strict=True):
                near(f"{dtype} {name} cap {softcap}", mine, theirs, 5e-5)
            found = torch.autograd.grad(got, ours, tuple(grads))
            due = torch.autograd.grad(want, exact, tuple(grads.double()))
            for name, mine, theirs in zip(("h_p", "h_q", "W_U", "bias"), found, due, strict=True):
                near(f"{dtype} gradient of {name} cap {softcap}", mine, theirs, 4 * LIMIT[dtype])


def _exact_losses(of: list[Tensor], targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """ce_p, ce_q and KL [T] of h_p, h_q, W and bias in float64, 0 where targets are ignored."""
    h_p, h_q, W, b = of
    z_p, z_q = scores_of(h_p, W, b), scores_of(h_q, W, b)
    if softcap:
        z_p, z_q = (softcap * torch.tanh(z / softcap) for z in (z_p, z_q))
    log_p, log_q = z_p.log_softmax(1), z_q.log_softmax(1)
    counted, at = targets != -100, targets.clamp(min=0)[:, None]
    return (
        -log_p.gather(1, at)[:, 0] * counted,
        -log_q.gather(1, at)[:, 0] * counted,
        (log_p.exp() * (log_p - log_q)).sum(1) * counted,
    )


def batches(bench: Bench) -> None:
    """A row's bits do not depend on its batch, nor on the run; the codes' order neither."""
    for dtype in bench.dtypes:
        x, W = bench.normal(300, 96, dtype=dtype), bench.normal(20000, 96, dtype=dtype, scale=0.1)
        whole = sk.encode_topk(x, W, k=24)
        same_bits(f"{dtype} rerun", tuple(whole), tuple(sk.encode_topk(x, W, k=24)))
        for part in (slice(0, 1), slice(17, 150), slice(299, 300)):
            alone = sk.encode_topk(x[part], W, k=24)
            same_bits(f"{dtype} rows {part}", tuple(alone), (whole.values[part], whole.indices[part]))
        out = sk.decode(*whole, W)
        same_bits(f"{dtype} decode", (out[40:50],), (sk.decode(whole.values[40:50], whole.indices[40:50], W),))
        targets = bench.integers(20000, 300)
        losses_whole = sk.linear_ce_kl(x, x.flip(0), W, targets)
        losses_part = sk.linear_ce_kl(x[5:9], x.flip(0)[5:9], W, targets[5:9])
        same_bits(f"{dtype} losses", tuple(losses_part), tuple(part[5:9] for part in losses_whole))


def nothing(bench: Bench) -> None:
    """No rows, no codes."""
    W = bench.normal(5000, 16)
    require(sk.encode_topk(W[:0], W, k=3).values.shape == (0, 3), "no rows, no codes")
    require(sk.encode_threshold(W[:0], W, None, 1.0).offsets.tolist() == [0], "no rows, no codes")
    require(sk.encode_threshold(W[:2], W, None, 1e9).offsets.tolist() == [0, 0, 0], "no rows, no codes")
    empty = bench.integers(5, 4, 0, dtype=torch.int32)
    require(not bool(sk.decode(W.new_empty(4, 0), empty, W).any()), "no rows, no codes")


def graphs(bench: Bench) -> None:
    """Captured into a CUDA graph, and on a stream of one's own: the same bits. Nothing to do without a GPU."""
    if bench.device.type != "cuda":
        return
    x, W, U = bench.normal(64, 128), bench.normal(16384, 128, scale=0.1), bench.normal(999, 128)
    targets = bench.integers(999, 64)

    def work() -> tuple[Tensor, ...]:
        codes = sk.encode_topk(x, W, k=16)
        return (*codes, sk.decode(*codes, W), *sk.linear_ce_kl(x, x.flip(0), U, targets))

    eager = work()
    stream = torch.cuda.Stream(bench.device)
    stream.wait_stream(torch.cuda.current_stream(bench.device))
    with torch.cuda.stream(stream):
        streamed = work()
    torch.cuda.current_stream(bench.device).wait_stream(stream)
    same_bits("stream", streamed, eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    x.copy_(x.flip(0))
    graph.replay()
    same_bits("graph", tuple(captured), work())


def far_apart(bench: Bench) -> None:
    """Addresses past 2^31 elements: rows of a view so wide that T times its stride is. For a GPU with room for it."""
    stride = 2**26
    if bench.device.type != "cuda" or torch.cuda.mem_get_info(bench.device)[0] < 3 * 40 * stride:
        return
    storage = torch.zeros(40 * stride, dtype=torch.bfloat16, device=bench.device)
    x = storage.as_strided((40, 64), (stride, 1))
    x.copy_(bench.normal(40, 64, dtype=torch.bfloat16))
    W = bench.normal(9000, 64, dtype=torch.bfloat16, scale=0.125)
    same_bits("wide stride", tuple(sk.encode_topk(x, W, k=8)), tuple(sk.encode_topk(x.contiguous(), W, k=8)))


CHECKS: dict[str, Callable[[Bench], None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        encode,
        precisions,
        adversaries,
        thresholds,
        scales,
        topk,
        decoding,
        gathering,
        training,
        losses,
        batches,
        nothing,
        graphs,
        far_apart,
    )
}


def gate(
    device: torch.device,
    say: Callable[[str], object] = lambda line: None,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    only: tuple[str, ...] | None = None,
) -> list[Outcome]:
    """Run all checks, or some; what is wrong with each is its first failure, or the error that stopped it."""
    outcomes = []
    for name, check in CHECKS.items():
        if only is not None and name not in only:
            continue
        wrong = None
        try:
            check(Bench(device, dtypes))
        except Wrong as error:
            wrong = str(error)
        except Exception as error:
            wrong = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        outcomes.append(Outcome(name, wrong))
        say(f"check {name}: {'right' if wrong is None else 'WRONG: ' + wrong}")
    return outcomes
