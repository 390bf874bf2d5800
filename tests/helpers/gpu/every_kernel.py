"""Starts every GPU kernel once on ragged problems, a line each, right by the reference: what a sanitizer watches.

    python tests/helpers/gpu/every_kernel.py cuda    # with the CUDA module, where it is built, and without it
    python tests/helpers/gpu/every_kernel.py cpu     # in Triton's interpreter, smaller

Exit code 1 where an op is wrong, or where a kernel of the Triton backend was not started.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

if __name__ == "__main__" and sys.argv[1:] == ["cpu"]:
    os.environ["TRITON_INTERPRET"] = "1"  # to be said before anything imports triton

import torch
import triton
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[up]) for up in (1, 3)]

from saekernels.backends import cuda, reference  # noqa: E402
from saekernels.backends import triton as backend  # noqa: E402
from saekernels.backends.triton.codes.decode import decode_kernel  # noqa: E402
from saekernels.backends.triton.encode import sampling  # noqa: E402
from saekernels.bench.gpu.check_tools import DTYPES, LIMIT, Bench, Wrong, best_of, near, require, scores_of  # noqa: E402

ROOM = Path(str(backend.__file__)).parent
encoding = import_module("saekernels.backends.triton.encode.encode_topk")


class Sizes(NamedTuple):
    """T x d tokens, F latents, k, and a vocabulary; no tile divides any."""

    T: int
    d: int
    F: int
    k: int
    V: int


SIZES = {"cuda": Sizes(37, 72, 9001, 12, 3001), "cpu": Sizes(2, 20, 133, 2, 67)}
# The interpreter takes seconds per sort of so many candidates as thousands of latents get: screened all the same.
SMALL_PLAN = sampling.Plan(step=4, rank=2, capacity=64)


def kernels() -> set[str]:
    """The names of all that the backend can start."""
    sources = "".join(path.read_text() for path in ROOM.rglob("*.py"))
    return set(re.findall(r"@triton\.jit\ndef (\w+_kernel)\(", sources))


@contextlib.contextmanager
def started() -> Iterator[set[str]]:
    """The names of the kernels that are started within."""
    names: set[str] = set()
    kind = type(decode_kernel)  # another in the interpreter
    start = kind.__getitem__

    def noting(self: Any, grid: Any) -> Any:
        names.add(self.fn.__name__)
        return start(self, grid)

    with mock.patch.object(kind, "__getitem__", noting):
        yield names


def encoders(bench: Bench, dtype: torch.dtype, of: Sizes) -> None:
    """Screened in every precision, with rows that have to be recomputed; all scores at once; by threshold."""
    x, W = bench.normal(of.T, of.d, dtype=dtype), bench.normal(of.F, of.d, dtype=dtype, scale=of.d**-0.5)
    bias, pre = bench.normal(of.F, dtype=dtype, scale=0.1), bench.normal(of.d, dtype=dtype, scale=0.2)
    scores = scores_of(x, W, bias, pre)
    for precision, hint in (("exact", None), ("exact", torch.full((of.T,), 99.0)), ("screened", None)):
        hint = hint if hint is None else hint.to(x.device)
        codes = backend.encode_topk(x, W, bias, pre, of.k, "relu", precision=precision, hint=hint)
        best_of(f"{precision}, hint {hint is not None}", scores, codes, of.k, 2 * LIMIT[dtype], "relu")
    few = slice(0, 40)
    with mock.patch.object(encoding, "plan", return_value=None):
        dense = backend.encode_topk(x, W[few], bias[few], pre, 9, "none")
    best_of("dense", scores[:, few], dense, 9, LIMIT[dtype], "none")
    level, surely = torch.full((of.F,), 1.5, device=x.device), 1.5 + 4 * LIMIT[dtype]
    for precision in ("exact", "screened"):
        values, indices, offsets = backend.encode_threshold(x, W, bias, pre, level, precision=precision)
        rows = torch.repeat_interleave(torch.arange(of.T, device=x.device), offsets.diff())
        kept = scores[rows, indices.long()]
        near(f"{precision} threshold", values, kept, LIMIT[dtype])
        missed = int((scores > surely).sum() - (kept > surely).sum())
        require(missed == 0, f"{precision} threshold: {missed} latents missed")


def codes(bench: Bench, dtype: torch.dtype, of: Sizes) -> None:
    """There and back, with a latent that fires so often that it is summed in pieces."""
    per_row = max(of.k, -(-700 // of.T))
    offsets = torch.arange(0, of.T * per_row + 1, per_row, device=bench.device)
    count, latents = of.T * per_row, 12
    values, indices = bench.normal(count, dtype=dtype), bench.integers(latents, count, dtype=torch.int32)
    indices[: count // 2] = 7
    W, a = bench.normal(latents, of.d, dtype=dtype), bench.normal(of.T, of.d, dtype=dtype)
    bias = bench.normal(of.d, dtype=dtype)
    for name, arguments in (
        ("decode", (values, indices, offsets, W, bias)),
        ("gather_dot", (a, W, indices, offsets)),
        ("gather_matmul", (torch.stack([a, a * 2, -a]), W, indices, offsets)),
        ("segment_outer", (values, indices, offsets, a, latents)),
        ("segment_sum", (values, indices, latents)),
    ):
        got = getattr(backend, name)(*arguments)
        near(name, got, getattr(reference, name)(*(wide(one) for one in arguments)), 100 * LIMIT[dtype])


def wide(value: Any) -> Any:
    """In float64, if it is a float tensor."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def losses(bench: Bench, dtype: torch.dtype, of: Sizes) -> None:
    """linear_ce_kl and its gradients, with a cap and without one."""
    h_p, W = bench.normal(of.T, of.d, dtype=dtype), bench.normal(of.V, of.d, dtype=dtype, scale=0.2)
    h_q, targets = (h_p.float() + 0.3 * bench.normal(of.T, of.d)).to(dtype), bench.integers(of.V, of.T)
    grads = bench.normal(3, of.T)
    for softcap in (None, 10.0):
        head = (h_p, h_q, W, targets, bench.normal(of.V, scale=0.1), softcap, -100)
        got = backend.linear_ce_kl(*head)
        want = reference.linear_ce_kl(*map(wide, head))
        for name, mine, theirs in zip(("ce_p", "ce_q", "kl"), got, want, strict=False):
            near(f"{name}, cap {softcap}", mine, theirs, 1e-4)
        found = backend.linear_ce_kl_backward(*grads, *got[:3], *head, True, True, True)
        exact = reference.linear_ce_kl_backward(*grads.double(), *want[:3], *map(wide, head), True, True, True)
        for name, mine, theirs in zip(("h_p", "h_q", "W_U", "bias"), found, exact, strict=True):
            near(f"gradient of {name}, cap {softcap}", mine, theirs, 4 * LIMIT[dtype])


def selection(bench: Bench, dtype: torch.dtype, of: Sizes) -> None:
    """topk: few rows and many, which CUDA selects in two ways."""
    for rows, columns in ((1, 40 * of.F), (of.T, of.F)):
        scores = bench.normal(rows, columns, dtype=dtype)
        best_of("topk", scores.double(), backend.topk(scores, of.k), of.k, 0, "none")


OPS: tuple[Callable[[Bench, torch.dtype, Sizes], None], ...] = (selection, codes, encoders, losses)


def run(device: str, dtypes: tuple[torch.dtype, ...]) -> list[str]:
    """What was wrong, and kernels that were not started; a line is printed as each op has run."""
    bench, wrong = Bench(torch.device(device)), []
    small = mock.patch.object(encoding, "plan", return_value=SMALL_PLAN)
    with started() as names, small if device == "cpu" else contextlib.nullcontext():
        for how in ("with CUDA's", "Triton's alone") if cuda.available() is None else ("Triton's alone",):
            alone = mock.patch.object(cuda, "available", return_value="left out")
            with alone if how == "Triton's alone" else contextlib.nullcontext():
                for dtype in dtypes:
                    wrong += [said for op in OPS for said in _once(op, bench, dtype, SIZES[device], how)]
    return wrong + [f"{name} was not started" for name in sorted(kernels() - names)]


def _once(op: Any, bench: Bench, dtype: torch.dtype, sizes: Sizes, how: str) -> list[str]:
    title, said = f"{op.__name__} {str(dtype).removeprefix('torch.')}, {how}", None
    try:
        op(bench, dtype, sizes)
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
    except (Wrong, RuntimeError, triton.TritonError) as error:
        said = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    print(f"{title}: {said or 'right'}", flush=True)
    return [f"{title}: {said}"] if said else []


if __name__ == "__main__":
    given = sys.argv[1]
    if given == "cpu":
        from triton_cases import quicken_interpreter

        quicken_interpreter()
    found = run(given, (torch.float16,) if given == "cpu" else DTYPES)
    print("\n".join(found) or "every kernel was started, and all is right", flush=True)
    sys.exit(1 if found else 0)
