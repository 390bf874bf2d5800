"""Every kind of SAE by activation, normalisation, biases and sizes, and whether SAELens' format can hold it.

Weights are float64 and random, or float32 on a grid where folding has no rounding: then all is the same to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import saekernels as sk
from saekernels.sae.activations import Activation, Normalization

D, F, OUT = 8, 24, 5
ACTIVATIONS: tuple[Activation, ...] = (
    sk.ReLU(), sk.TopK(4), sk.TopK(F), sk.TopK(4, relu=False), sk.TopK(F, relu=False), sk.AbsTopK(4), sk.GroupMax(4),
    sk.GroupMax(1), sk.GroupMax(F), sk.JumpReLU(), sk.BatchTopK(4), sk.BatchTopK(), sk.Gated(),
)  # fmt: skip
NORMALIZATIONS: tuple[Normalization | None, ...] = (
    None, sk.LayerNorm(), sk.LayerNorm(1e-3), sk.ConstantNorm(), sk.Scale(0.25), sk.Scale(0.37),
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What an SAE is, beside its weights."""

    activation: Activation
    normalization: Normalization | None
    pre_bias: str
    d_out: int
    skip: bool
    rescaled: bool

    @property
    def possible(self) -> bool:
        """Whether `SAE` can be that."""
        gated = isinstance(self.activation, sk.Gated)
        return not (self.rescaled and gated) and not (self.pre_bias == "b_dec" and self.d_out != D)

    @property
    def expressible(self) -> bool:
        """Whether SAELens has a form for it, by what its classes compute."""
        transcoder, a = self.skip or self.d_out != D, self.activation
        if self.normalization == sk.LayerNorm(1e-3):
            return False
        if transcoder and isinstance(self.normalization, sk.LayerNorm | sk.ConstantNorm):
            return False
        if isinstance(a, sk.TopK):
            return (a.relu and (not transcoder or a.k == F)) or (not a.relu and a.k == F and not transcoder)
        if isinstance(a, sk.GroupMax):
            return a.k == F or (a.k == 1 and not transcoder)
        return not (isinstance(a, sk.AbsTopK) and transcoder)

    def sae(self, grid: bool, seed: int) -> sk.SAE:
        dtype = torch.float32 if grid else torch.float64
        sae = sk.SAE(
            D, F, self.activation, d_out=self.d_out, pre_bias=self.pre_bias, normalization=self.normalization,
            rescale_by_decoder_norm=self.rescaled, skip=self.skip, dtype=dtype,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in (*sae.named_parameters(), *sae.named_buffers()):
                drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.copy_((drawn * 4).round() / 4 if grid else drawn * (0.4 if name == "r_mag" else 1.0))
            if grid:
                sae.W_dec.copy_(rows_of_norms_that_are_powers_of_two(self.d_out, generator))
                if isinstance(self.activation, sk.Gated):
                    sae.r_mag.zero_()
        return sae.eval()

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded on the grid."""
        inside = isinstance(self.normalization, sk.LayerNorm | sk.ConstantNorm)
        # What is normalised has all its bits, so that what is added in another order, or folded, is rounded otherwise.
        moved = self.pre_bias == "separate" or self.rescaled or self.activation == sk.TopK(F, relu=False)
        return self.normalization != sk.Scale(0.37) and not (inside and moved)


def rows_of_norms_that_are_powers_of_two(width: int, generator: torch.Generator) -> Tensor:
    rows = torch.zeros(F, width)
    for row in rows:
        places = torch.randperm(width, generator=generator)[:4]
        signs = torch.randint(0, 2, (4,), generator=generator) * 2.0 - 1
        row[places] = signs * 2.0 ** int(torch.randint(-2, 3, (), generator=generator))
    return rows


def kinds() -> Iterator[Kind]:
    biases, widths, both = ("none", "b_dec", "separate"), (D, OUT), (False, True)
    every = itertools.product(ACTIVATIONS, NORMALIZATIONS, biases, widths, both, both)
    return (kind for made in every if (kind := Kind(*made)).possible)


def inputs(grid: bool, seed: int) -> Tensor:
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * 4).round().float() / 4 if grid else x


def check(kind: Kind, sae: sk.SAE, loaded: sk.SAE, grid: bool, seed: int) -> None:
    """The same outputs and the same codes."""
    x = inputs(grid, seed)
    with torch.no_grad():
        (out, codes), (want, dense) = loaded.forward_with_codes(x), sae.forward_with_codes(x)
    if grid and kind.exact:
        assert torch.equal(out, want), kind
        assert torch.equal(codes.to_dense(), dense.to_dense()), kind
    elif not grid:
        close = {"rtol": 1e-9, "atol": 1e-9, "msg": lambda m: f"{kind}: {m}"}
        torch.testing.assert_close(out, want, **close)
        torch.testing.assert_close(codes.to_dense(), dense.to_dense(), **close)
