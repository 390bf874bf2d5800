"""Decoding a cross-layer transcoder pair by pair, and all targets together, against what a fused op could reach.

    python benchmarks/cross_layer.py

CPU milliseconds of one thread, medians of rounds in turns: every target of one batch. Sources' rows lie as in
circuit-tracer's files, [F, targets, d].
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import saekernels as sk

# Layers, latents per layer, width, active latents, tokens.
CASES = ((12, 1024, 576, 16, 1), (12, 1024, 576, 16, 16), (12, 1024, 576, 16, 128),
         (12, 1024, 576, 16, 1024), (26, 256, 576, 8, 1), (26, 256, 576, 8, 16))  # fmt: skip


def ways(L: int, F: int, d: int, active: int, T: int) -> dict[str, Callable[[], object]]:
    """By name: a call per pair of layers; one per source on wide rows; one per target on rows that lie together."""
    clt = sk.CrossLayerTranscoder(d, F, L, sk.TopK(active))
    for parameter in clt.parameters():
        parameter.normal_()
    W = [clt.source(s).W_dec.view(F, L - s, d) for s in range(L)]
    codes = [(torch.rand(T, active), torch.randint(0, F, (T, active), dtype=torch.int32)) for _ in range(L)]
    held = [sk.Codes(*one, None, torch.Size([T]), F) for one in codes]
    bias = torch.stack(list(clt.b_dec))

    def pairs() -> list[Tensor]:
        return [clt.decode(t, held) for t in range(L)]

    def wide() -> Tensor:
        out = bias.repeat(T, 1, 1)
        for s in range(L):
            out[:, s:] += sk.decode(*codes[s], W[s].view(F, -1)).view(T, L - s, d)
        return out

    def served() -> list[Tensor]:
        return clt.decode_all(held)

    together = [torch.cat([W[s][:, t - s] for s in range(t + 1)]) for t in range(L)]
    values = [torch.cat([codes[s][0] for s in range(t + 1)], 1) for t in range(L)]
    latents = [torch.cat([codes[s][1] + s * F for s in range(t + 1)], 1) for t in range(L)]

    def bound() -> list[Tensor]:
        return [sk.decode(*of) for of in zip(values, latents, together, clt.b_dec, strict=True)]

    torch.testing.assert_close(torch.stack(pairs(), 1), wide(), rtol=1e-4, atol=1e-4)
    assert all(map(torch.equal, pairs(), served()))
    torch.testing.assert_close(torch.stack(bound(), 1), wide(), rtol=1e-4, atol=1e-4)
    return {"pairs": pairs, "decode_all": served, "wide rows": wide, "a fused op's bound": bound}


@torch.no_grad()
def main() -> None:
    """A line for each case."""
    torch.set_num_threads(1)
    for L, F, d, active, T in CASES:
        calls = ways(L, F, d, active, T)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(9):
            for name, call in calls.items():
                begun = time.process_time()
                call()
                times[name].append(1e3 * (time.process_time() - begun))
        medians = {name: statistics.median(taken) for name, taken in times.items()}
        told = ", ".join(f"{name} {ms:.2f} ms ({medians['pairs'] / ms:.2f}x)" for name, ms in medians.items())
        print(f"L={L} F={F} d={d} active={active} T={T}: {told}", flush=True)


if __name__ == "__main__":
    main()
