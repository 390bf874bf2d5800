"""The wide case of four kernels, once each, between the profiler's start and stop: what Nsight Compute is to look at.

on_gpu.sh has the command line of its step `score-counters`.

    ncu --profile-from-start off -k regex:_kernel$ python benchmarks/gpu_counters.py cuda    # as on_gpu.sh does
    python benchmarks/gpu_counters.py cpu                                                    # small, no profiler
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch

from saekernels.bench import Shape
from saekernels.bench.gpu import cases
from saekernels.bench.gpu.cases import Case
from saekernels.bench.gpu.contenders import of
from saekernels.bench.gpu.tune import DECIDES
from saekernels.bench.measure.contenders import OURS

SMALL = Shape(8, 16, 64, 4)


def run(case: Case, device: torch.device) -> None:
    """Compiles, then calls once under the profiler; raises if the answer is wrong."""
    problem = cases.make(case, device)
    op = of(case, compiles=False)
    ours = next(contender for contender in op.contenders if contender.name == OURS)
    call = ours.prepare(problem).call
    expected = op.expect(problem)
    call(*problem.tokens)
    profiled = torch.cuda.profiler.profile() if device.type == "cuda" else nullcontext()
    with profiled:
        got = call(*problem.tokens)
        if device.type == "cuda":
            torch.cuda.synchronize()
    wrong = ours.check(problem, expected, got) if ours.check else None
    if wrong:
        raise SystemExit(f"{case}: wrong answer: {wrong}")


def main(device: torch.device) -> None:
    for kernel, (_, wide) in DECIDES.items():
        case = wide if device.type == "cuda" else wide._replace(shape=SMALL)
        run(case, device)
        print(f"{kernel}: {case}", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    if sys.argv[1:] not in (["cuda"], ["cpu"]):
        sys.exit("usage: gpu_counters.py cuda|cpu")
    main(torch.device(sys.argv[1]))
