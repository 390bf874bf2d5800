"""The exact top-k encoder against chunked torch, both in float32, over sizes and kinds of data: the worst case.

    python benchmarks/encode_sweep.py [--cases 80] [--seed 0] [--json FILE]     # some ten minutes

Sizes are drawn evenly in their logarithms from the ranges below, kinds of data in turn. Each case is checked against
float64, then timed in turns. Prints every case, the slowest against torch last; exit code 1 if one is slower than
torch by more than its own spread, wrong, or took a fallback for more than one row in a hundred.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from saekernels.bench.cpu.record import MOST_FALLBACKS
from saekernels.bench.measure import machine, timing
from saekernels.bench.measure.shapes import Problem, Shape, encoder_problem
from saekernels.bench.ops import encode
from saekernels.cli.options.arguments import at_least
from saekernels.errors import InputError
from saekernels.files.checked import check_writable

RANGES = {"T": (1, 4096), "d": (256, 8192), "F": (8192, 131072), "k": (1, 512)}
_MOST_FLOPS, _MOST_BYTES = 2.5e11, 3 << 30
_LEAST_ROUNDS, _ROUNDS, _BUDGET = 3, 15, 3.0


def _normal(problem: Problem) -> None:
    pass


def _one_large_dimension(problem: Problem) -> None:
    problem.tokens[0][:, 7] *= 60


def _anisotropic(problem: Problem) -> None:
    # The spectrum of a residual stream falls; the columns keep their mean square.
    falling = torch.arange(1, problem.shape.d + 1).rsqrt()
    problem.tokens[0].mul_(falling / falling.square().mean().sqrt())


def _heavy_tailed_latents(problem: Problem) -> None:
    torch.manual_seed(0)
    rows = torch.distributions.StudentT(3.0).sample((problem.shape.F, 1))
    problem.weights["W_enc"] = problem.weights["W_enc"] * (0.2 + rows.abs())


def _attention_sinks(problem: Problem) -> None:
    problem.tokens[0][::16] *= 170


KINDS: dict[str, Callable[[Problem], None]] = {
    "normal": _normal,
    "one dimension x 60": _one_large_dimension,
    "anisotropic": _anisotropic,
    "heavy-tailed latents": _heavy_tailed_latents,
    "attention sinks x 170": _attention_sinks,
}


@dataclass(frozen=True)
class Case:
    """Milliseconds are medians; `least` and `ratio` are the lower quartile and the median of torch's time over ours."""

    shape: dict[str, int]
    kind: str
    prepared: bool
    ours_ms: float
    torch_ms: float
    ratio: float
    least: float
    fallback: float
    wrong: str | None

    @property
    def failed(self) -> bool:
        """Wrong, slower than torch beyond its spread, or by a fallback."""
        return self.wrong is not None or (self.ratio < 1 and self.least < 0.95) or self.fallback > MOST_FALLBACKS


def drawn(cases: int, seed: int) -> Iterator[tuple[Shape, str, bool]]:
    """Sizes, kind of data, whether weights are prepared; sizes that take too long or too much memory are drawn anew."""
    random = np.random.default_rng(seed)
    kinds = list(KINDS)
    for number in range(cases):
        while True:
            T, d, F, k = (
                round(float(np.exp(random.uniform(np.log(low), np.log(high))))) for low, high in RANGES.values()
            )
            d = max(d // 64, 4) * 64
            if 2.0 * T * d * F <= _MOST_FLOPS and 4 * F * d <= _MOST_BYTES:
                break
        yield Shape(T, d, F, k), kinds[number % len(kinds)], number // len(kinds) % 2 == 0


def measured(shape: Shape, kind: str, prepared: bool) -> Case:
    """One case, right or not, and its times."""
    problem = encoder_problem(shape, torch.float32)
    KINDS[kind](problem)
    ours = (encode.ours_prepared if prepared else encode.ours)(problem)
    torchs = encode.chunked(problem)
    before = machine.fallback_rows()
    output = ours.call(*problem.tokens)
    fallback = (machine.fallback_rows() - before) / shape.T
    wrong = encode.check(problem, encode.expect(problem), output)
    calls = {"ours": lambda: ours.call(*problem.tokens), "torch": lambda: torchs.call(*problem.tokens)}
    flush = timing.cold_caches(machine.cache_bytes())
    times = timing.interleave(calls, rounds=_ROUNDS, budget=_BUDGET, between=flush)
    rounds = sorted(set(times["ours"]) & set(times["torch"]))
    ratios = [times["torch"][number] / times["ours"][number] for number in rounds]
    medians = [1e3 * float(np.median(list(times[name].values()))) for name in calls]
    least, ratio = (float(np.quantile(ratios, at)) for at in (0.25, 0.5))
    return Case(shape.sizes(), kind, prepared, *medians, ratio, least, fallback, wrong)


def line(case: Case) -> str:
    """A row of the table."""
    sizes = " ".join(f"{case.shape[name]:>6}" for name in RANGES)
    told = case.wrong or ("FALLBACK" if case.fallback > MOST_FALLBACKS else "SLOWER" if case.failed else "")
    return (
        f"{sizes}  {case.kind:<22}{'yes' if case.prepared else 'no':<9}{case.ours_ms:>9.2f}{case.torch_ms:>10.2f}"
        f"{case.ratio:>8.2f}{case.fallback:>9.1%}  {told}"
    ).rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=at_least(1), default=80)
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--json", type=Path, help="the cases, and the machine")
    args = parser.parse_args()
    try:
        if args.json:
            check_writable(args.json, "--json")
    except InputError as error:
        parser.error(str(error))
    found = []
    with torch.no_grad():
        for number, (shape, kind, prepared) in enumerate(drawn(args.cases, args.seed), start=1):
            found.append(measured(shape, kind, prepared))
            print(f"[{number}/{args.cases}] {line(found[-1])}", file=sys.stderr, flush=True)
    found.sort(key=lambda case: -case.ratio)
    names = " ".join(f"{name:>6}" for name in RANGES)
    print(f"{names}  {'data':<22}{'prepared':<9}{'ours ms':>9}{'torch ms':>10}{'ratio':>8}{'fallback':>9}")
    print("\n".join(line(case) for case in found))
    failed = [case for case in found if case.failed]
    ratios = [case.ratio for case in found]
    print(
        f"{len(found)} cases: torch takes {min(ratios):.2f} to {max(ratios):.2f} times as long, "
        f"in the median {float(np.median(ratios)):.2f}; {len(failed)} failed"
    )
    if args.json:
        record = {"machine": machine.cpu(), "versions": machine.versions(), **machine.commit(), "seed": args.seed,
                  "cases": [asdict(case) for case in found]}  # fmt: skip
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
