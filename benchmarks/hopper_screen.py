"""The warp-specialised screen on a Hopper GPU: right first, then its time beside the portable one's.

    python benchmarks/hopper_screen.py              # a line per check and time; exit code 1 where something is wrong
    python benchmarks/hopper_screen.py cpu          # the same checks where it cannot run: a rehearsal
    python benchmarks/hopper_screen.py cuda watched # two of the checks, for a sanitizer

No row of saekernels/backends/triton/configs.py asks for it. Where this finds it right, and faster than the portable one
by more than two runs of that differ, the row of its size gets `ring=PINGPONG` or `ring=COOPERATIVE`.
"""

from __future__ import annotations

import math
import sys
from functools import partial

import torch

import saekernels as sk
from saekernels.backends.triton import configs
from saekernels.backends.triton.encode.hopper import screen_hopper
from saekernels.bench.gpu import cases, hopper_model, tune
from saekernels.bench.gpu.cards import CARDS
from saekernels.bench.gpu.cases import Case
from saekernels.bench.gpu.check_tools import Bench
from saekernels.bench.gpu.checks import gate
from saekernels.bench.gpu.clock import Clock
from saekernels.bench.gpu.contenders import OPS, of

RINGS = {"portable": None, "ping-pong": configs.PINGPONG, "cooperative": configs.COOPERATIVE}
CHECKS = ("nothing", "encode", "thresholds", "adversaries", "batches", "graphs", "far apart")
DTYPES = (torch.bfloat16, torch.float16)
TIMED = (cases.GPT2, cases.GPT2_WIDE, cases.GEMMA, cases.LLAMA)


def config(ring: configs.Ring | None, width: int) -> configs.Config:
    """The table's row of 16-bit operands, with this ring."""
    return configs.lookup("screen", screen_hopper.HOPPER, torch.bfloat16, width)._replace(ring=ring)


def right(device: torch.device, checks: tuple[str, ...]) -> bool:
    """Whether both forms pass checks of the gate, and serve what they are there for."""
    wrong = 0
    for name in ("ping-pong", "cooperative"):
        before = screen_hopper.counts()
        with configs.override("screen", config(RINGS[name], 768)):
            outcomes = gate(device, partial(print, f"{name}:", flush=True), DTYPES, checks)
        wrong += sum(outcome.wrong is not None for outcome in outcomes)
        started = {why: count - before.get(why, 0) for why, count in screen_hopper.counts().items()}
        print(f"{name}: launches {started or 'of other backends alone'}", flush=True)
        wrong += device.type == "cuda" and not started.get(screen_hopper.SERVED)
    return not wrong


def bits(device: torch.device) -> bool:
    """Whether values have the portable screen's bits, NaN, infinities and a ragged depth among them."""
    bench, alike = Bench(device), True
    for dtype in DTYPES:
        x, W = bench.normal(150, 264, dtype=dtype), bench.normal(9000, 264, dtype=dtype, scale=1 / 16)
        x[0], x[1], x[2, 3], W[7, 5] = 0, torch.nan, torch.inf, -torch.inf
        found = {}
        for name, ring in RINGS.items():
            with configs.override("screen", config(ring, 768)):
                codes = sk.encode_topk(x, W, k=50, activation="none")
            found[name] = [part.nan_to_num(nan=7.0) for part in codes]
        for name, parts in found.items():
            same = all(map(torch.equal, parts, found["portable"]))
            print(f"{name}: {str(dtype)[6:]}: {'the same' if same else 'other'} bits as the portable one", flush=True)
            alike &= same
    return alike


def expected_times() -> None:
    """What the cost model expects of an H200 in milliseconds, with its L2 and were that no bound."""
    card = CARDS["H200"]
    for shape in TIMED:
        for name, ring in RINGS.items():
            cards = (card, card._replace(l2=math.inf))
            whole, least = (f"{1e3 * hopper_model.encode_seconds(shape, one, ring):.2f}" for one in cards)
            case = Case("encode", shape, cases.BF16)
            print(f"{case}, {name}: by the model {whole} ms, were L2 no bound {least}", flush=True)


def times(device: torch.device) -> None:
    """Milliseconds of encode_topk in bf16, each form twice, in turns."""
    clock = Clock(device)
    for shape in TIMED:
        case = Case("encode", shape, cases.BF16)
        problem = cases.make(case, device)
        expected = OPS[case.op].expect(problem)
        for _ in range(2):
            for name, ring in RINGS.items():
                with configs.override("screen", config(ring, shape.d)):
                    reached = tune.timed(of(case).contenders[0], problem, expected, clock)
                told = "failed, or wrong" if reached is None else f"{reached:.4f} ms"
                print(f"{case}, {name}: {told}", flush=True)
        del problem, expected
        torch.cuda.empty_cache()


if __name__ == "__main__":
    chosen = torch.device(sys.argv[1] if sys.argv[1:] else "cuda")
    if sys.argv[2:] == ["watched"]:
        sys.exit(not right(chosen, ("encode", "thresholds")))
    passed = right(chosen, CHECKS)
    passed &= bits(chosen)
    expected_times()
    if chosen.type == "cuda":
        times(chosen)
    sys.exit(not passed)
