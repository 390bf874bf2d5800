"""How often precision="screened" misses a latent: 8-bit operands rounded as the GPU's kernels round them.

    python benchmarks/miss_rate.py            # about four minutes

For each kind of data, the rows of which a true one of the k best is not among the candidates, for margins of several
standard deviations of the screen's error (`bounds.MARGIN` is the one in use), and how many candidates are scored again.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

KINDS = ("normal", "outlier widths", "SAE-like")
MARGINS = (1.0, 2.0, 3.0, 4.0, 5.0)
LARGEST = {"fp8": 448.0, "int8": 127.0}


def operands(kind: str, rows: int, d: int, F: int, seed: int) -> tuple[Tensor, Tensor]:
    """x [rows, d] and W [F, d]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=generator)
    W = torch.randn(F, d, generator=generator) * d**-0.5
    if kind == "outlier widths":
        x[:, :4] *= 30  # as in a residual stream
    if kind == "SAE-like":
        # Rows made of few latents, so that those stand out.
        used = torch.randint(F, (rows, 48), generator=generator)
        x = 0.5 * x + (W[used] * torch.rand(rows, 48, 1, generator=generator) * 6).sum(1)
    return x, W


def rounded(matrix: Tensor, form: str) -> Tensor:
    """To 8 bits and back, one scale per row."""
    step = matrix.abs().amax(1, keepdim=True) / LARGEST[form]
    scaled = matrix / step
    if form == "fp8":
        return scaled.to(torch.float8_e4m3fn).float() * step
    return torch.trunc(scaled + torch.where(scaled >= 0, 0.5, -0.5)) * step


def measure(kind: str, form: str, rows: int, d: int, F: int, k: int, seed: int) -> dict[float, tuple[int, float]]:
    """By margin: rows that miss one, and the mean number of candidates."""
    x, W = operands(kind, rows, d, F, seed)
    x8, W8 = rounded(x, form), rounded(W, form)
    true, screened = x @ W.T, x8 @ W8.T
    error = (x - x8).norm(dim=1)[:, None] * W.norm(dim=1) + x.norm(dim=1)[:, None] * (W - W8).norm(dim=1)
    reach = error * d**-0.5
    best = true.topk(k).indices
    found = {}
    for margin in MARGINS:
        sure = (screened - margin * reach).topk(k).values[:, -1:]
        candidate = screened + margin * reach >= sure
        missed = int((~candidate.gather(1, best)).any(1).sum())
        found[margin] = (missed, float(candidate.sum(1).float().mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--latents", type=int, default=32768)
    parser.add_argument("-k", type=int, default=64)
    arguments = parser.parse_args()
    size = f"F = {arguments.latents}, k = {arguments.k}, {arguments.rows} rows each"
    print(f"{size}; rows that miss a latent / candidates a row")
    print(f"{'data':16}{'d':>6}  {'form':6}" + "".join(f"{f'margin {margin:g}':>16}" for margin in MARGINS))
    for kind in KINDS:
        for d in (768, 2304):
            for form in LARGEST:
                missed = dict.fromkeys(MARGINS, 0)
                count = dict.fromkeys(MARGINS, 0.0)
                parts = max(1, arguments.rows // 512)
                for part in range(parts):
                    for margin, (rows, mean) in measure(
                        kind, form, arguments.rows // parts, d, arguments.latents, arguments.k, part
                    ).items():
                        missed[margin] += rows
                        count[margin] += mean / parts
                cells = [f"{missed[margin]} / {count[margin]:.0f}" for margin in MARGINS]
                print(f"{kind:16}{d:6}  {form:6}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
