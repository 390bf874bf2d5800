"""What each screen of the CPU's encoders costs, in CPU time, over torch's product alone on the same inputs.

    python benchmarks/screens.py 1024,768,24576,32 1,1024,32768,32
    SAEKERNELS_SIMD=avx512_bf16 ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python benchmarks/screens.py 1024,768,24576,32

One thread, one process, calls interleaved, medians of rounds: what runs beside it counts for little. Rows beyond 64 are
held against the bfloat16 product, fewer against the float32 one. All results must have the same bits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import saekernels as sk
from saekernels.backends import cpu
from saekernels.bench import Shape
from saekernels.cli.commands.bench import shape
from saekernels.cli.options.arguments import at_least

SCREENS = ("auto", "int8", "int16", "bf16", "fp32")
FEW = 64


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def encoder(screen: str, x: Tensor, W: Tensor, b: Tensor, k: int, prepare: bool) -> Callable[[], tuple[Tensor, ...]]:
    cpu.set_screening(screen)
    block = sk.prepare(W).block if prepare else None

    def call() -> tuple[Tensor, ...]:
        cpu.set_screening(screen)
        return cpu.encode_topk(x, W, b, None, k, "none", block)

    return call


def measure(shape: Shape, screens: list[str], rounds: int) -> None:
    T, d, F, k = shape
    generator = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(size, generator=generator) for size in ((T, d), (F, d), (F,)))
    W *= d**-0.5
    product = torch.float32 if T <= FEW else torch.bfloat16
    left, right = x.to(product), W.to(product)
    contenders: dict[str, Callable[[], object]] = {"torch": lambda: left @ right.T}
    for screen in screens:
        contenders[screen] = encoder(screen, x, W, b, k, prepare=False)
        contenders[f"{screen}, prepared"] = encoder(screen, x, W, b, k, prepare=True)
    want = None
    for name, call in list(contenders.items())[1:]:
        got = call()
        want = got if want is None else want
        if not all(torch.equal(one, other) for one, other in zip(got, want, strict=True)):
            raise AssertionError(f"{name}: other bits than {screens[0]}")
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            times[name].append(seconds(call))
    base = statistics.median(times["torch"])
    print(f"{tuple(shape)}, level {cpu.simd_level()}: torch's {str(product)[6:]} product {1e3 * base:.1f} ms")
    for name in list(contenders)[1:]:
        median = statistics.median(times[name])
        print(f"  {name:16} {1e3 * median:8.1f} ms, {median / base:.2f} of it ({base / median:.2f}x)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", metavar="T,d,F,k", type=shape)
    parser.add_argument("--screens", nargs="+", choices=SCREENS, default=["auto", "bf16", "fp32"])
    parser.add_argument("--rounds", type=at_least(1), default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for one in args.shapes:
        if not one.k:
            parser.error(f"shapes: need T,d,F,k, got {one.T},{one.d},{one.F}")
        measure(one, args.screens, args.rounds)


if __name__ == "__main__":
    main()
