"""`saekernels.accelerate` on the tools' own objects: their forward as it is and on our kernels, one process, in turns.

    pip install '.[bench,peers]' dictionary_learning==0.1.0
    python benchmarks/live_objects.py                          # the two sizes of the README; some minutes
    python benchmarks/live_objects.py --shapes 1024,768,24576,32 --rounds 9

float32, Gaussian weights and rows; JumpReLU thresholds let about k latents pass. Prints median times, the median of the
ratios within rounds, the largest difference of an output, how many rows select another latent because two scores tie
within rounding (left out of it), and peak memory of one call beyond what was there.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import saekernels as sk
from saekernels.bench.measure import memory
from saekernels.bench.measure.peers import NotInstalled, load

_SELECTION = 1e-3
SHAPES = ((1024, 768, 24576, 32), (1024, 2304, 65536, 64))


def sae_lens(architecture: str) -> Callable[[int, int, int], Any]:
    def make(d: int, latents: int, k: int) -> Any:
        kind, config = load("sae_lens").registry.get_sae_class(architecture)
        return kind(config(d_in=d, d_sae=latents, **({"k": k} if architecture == "topk" else {})))

    return make


def sparsify(d: int, latents: int, k: int) -> Any:
    library = load("sparsify")
    return library.SparseCoder(d, library.SparseCoderConfig(num_latents=latents, k=k))


def dictionary_learning(d: int, latents: int, k: int) -> Any:
    load("dictionary_learning")
    return importlib.import_module("dictionary_learning.trainers.top_k").AutoEncoderTopK(d, latents, k)


MAKERS: dict[str, Callable[[int, int, int], Any]] = {
    "SAELens TopK": sae_lens("topk"),
    "SAELens JumpReLU": sae_lens("jumprelu"),
    "sparsify TopK": sparsify,
    "dictionary_learning TopK": dictionary_learning,
}


def output(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]


@torch.no_grad()
def measure(name: str, shape: tuple[int, ...], rounds: int) -> str:
    """One line of the table."""
    tokens, d, latents, k = shape
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = MAKERS[name](d, latents, k).eval()
    x = torch.randn(tokens, d)
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.copy_(torch.randn_like(parameter) * d**-0.5)
    if name.endswith("JumpReLU"):
        scores = (x[:64] - module.b_dec) @ module.W_enc + module.b_enc
        module.threshold.fill_(float(scores.topk(k, dim=-1).values[:, -1].mean()))
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    found: dict[str, Tensor] = {}
    peaks: dict[str, float | None] = {}
    for number in range(rounds + 1):
        for way in ("theirs", "ours") if number % 2 else ("ours", "theirs"):
            (sk.accelerate if way == "ours" else sk.restore)(module)
            if number == 0:
                module(x[:4]), module(x[:4])
                _, peaks[way] = memory.peak_of(lambda: module(x))
                continue
            module(x[:4]), module(x[:4])  # lays weights out and prepares them, once per switch
            start = time.perf_counter()
            found[way] = output(module(x))
            times[way].append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(times["theirs"], times["ours"], strict=True))
    theirs, ours = (1e3 * statistics.median(times[way]) for way in ("theirs", "ours"))
    by_row = (found["ours"] - found["theirs"]).abs().amax(1)
    other = by_row > _SELECTION  # a score that ties with the k-th within rounding: another latent, another row of W_dec
    worst = float(by_row[~other].max())
    mib = " / ".join("-" if peaks[way] is None else f"{peaks[way]:,.0f}" for way in ("theirs", "ours"))
    return f"{name:26} {shape!s:26} {theirs:9,.1f} {ours:9,.1f} {ratio:6.2f}x  {worst:.1e} {int(other.sum()):3}  {mib}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = "tokens,width,latents,k ..."
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help=sizes,
                        type=lambda text: tuple(int(part) for part in text.split(",")))  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    heads = f"{'object':26} {'(T, d, F, k)':26} {'theirs ms':>9} {'ours ms':>9} {'ratio':>7}"
    print(f"{heads}  largest ties  peak MiB, theirs / ours")
    for shape in args.shapes:
        for name in MAKERS:
            try:
                print(measure(name, tuple(shape), args.rounds), flush=True)
            except NotInstalled as missing:
                print(f"{name:26} {missing}")


if __name__ == "__main__":
    main()
