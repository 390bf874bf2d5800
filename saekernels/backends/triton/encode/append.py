"""append: a tile's scores that reach their threshold, as keys behind the others of their row.

On NVIDIA GPUs it is PTX (`append_ptx`), and nothing leaves the registers of the product. That must not be used where a
thread holds a copy of another's element, so a block has at least as many packs as there are threads. `append_plain`
says the same in Triton alone, for the interpreter, which knows no assembly, and for other GPUs.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import triton
import triton.language as tl

from saekernels.backends.triton import append_ptx as ptx
from saekernels.backends.triton import keys
from saekernels.backends.triton.launch import INTERPRETER

PACK = tl.constexpr(ptx.PACK)
CONSTRAINTS, SCALED_CONSTRAINTS = (tl.constexpr(ptx.constraints(of)) for of in (ptx.OPERANDS, ptx.SCALED_OPERANDS))


class Form(NamedTuple):
    """The constants that a screen's epilogue is compiled for; all are `tl.constexpr`.

    Attributes:
        ABS: compare magnitudes.
        PER_LATENT: thresholds belong to latents and are to be passed, not to rows and to be reached.
        ASSEMBLY: what `append_ptx` consists of; empty: `append_plain`.
    """

    ABS: Any
    PER_LATENT: Any
    ASSEMBLY: Any


@functools.cache
def form_of(architecture: int, absolute: bool, per_latent: bool, rescored: bool, scaled: bool) -> Form:
    """The form for an architecture; scores of a `rescored` screen are compared as they are."""
    text = ""
    if architecture != INTERPRETER:
        as_they_are = {"absolute": absolute and not rescored, "scaled": scaled and not rescored}
        text = ptx.assembly(per_latent=per_latent, **as_they_are)
    return Form(*map(tl.constexpr, (absolute, per_latent, text)))


@triton.jit
def quarters_of(acc):  # type: ignore[no-untyped-def]
    """Four blocks of neighbouring columns of [BM, BN], each element in the thread that has it."""
    left, right = halves_of(acc)
    return halves_of(left) + halves_of(right)


@triton.jit
def halves_of(block):  # type: ignore[no-untyped-def]
    """The left and the right half of [M, N]."""
    apart = tl.permute(tl.reshape(block, (block.shape[0], 2, block.shape[1] // 2)), (0, 2, 1))
    return tl.split(apart)


@triton.jit
def append(  # type: ignore[no-untyped-def]
    score, threshold, factor, rows, columns, sizes, found, ABS: tl.constexpr, FORM
):
    """Appends a block of scores [rows, columns].

    factor: of columns; what reaches the threshold is a score times it, where it is not None. ABS: the keys are of
    magnitudes.
    """
    if FORM.PER_LATENT:
        limit = tl.load(threshold + columns, mask=columns < sizes.F, other=float("inf"))[None, :]
    else:
        limit = tl.load(threshold + rows, mask=rows < sizes.T, other=float("inf"))[:, None]
    if FORM.ASSEMBLY != "":
        append_ptx(score, limit, factor, rows[:, None], columns[None, :], sizes, found, FORM)
    else:
        append_plain(score, limit, factor, rows[:, None], columns[None, :], sizes, found, ABS, FORM)


@triton.jit
def append_ptx(score, limit, factor, rows, columns, sizes, found, FORM):  # type: ignore[no-untyped-def]
    zero = rows * 0 + columns * 0  # in Gluon tl.zeros would ask for a layout
    operands = (
        score,
        limit,
        rows,
        columns,
        sizes.T + zero,
        sizes.F + zero,
        found.counts.to(tl.int64) + zero,
        found.keys.to(tl.int64) + zero,
        found.capacity + zero,
    )
    if factor is not None:
        operands = operands + (factor[None, :],)  # type: ignore[assignment]  # noqa: RUF005 - Triton unpacks none
    tl.inline_asm_elementwise(
        FORM.ASSEMBLY,
        CONSTRAINTS if factor is None else SCALED_CONSTRAINTS,
        operands,
        dtype=tl.int32,
        is_pure=False,
        pack=PACK,
    )


@triton.jit
def append_plain(  # type: ignore[no-untyped-def]
    score, limit, factor, rows, columns, sizes, found, ABS: tl.constexpr, FORM
):
    compared = score if factor is None else score * factor[None, :]
    compared = tl.abs(compared) if ABS else compared
    hit = (compared > limit) if FORM.PER_LATENT else ~(compared < limit)
    hit = hit | (compared != compared)
    hit = hit & (rows < sizes.T) & (columns < sizes.F)
    place = tl.atomic_add(found.counts + rows + tl.zeros(score.shape, tl.int32), 1, mask=hit, sem="relaxed")
    entries = found.keys + rows.to(tl.int64) * found.capacity
    key = keys.pack(tl.abs(score) if ABS else score, columns, (score < 0) & ABS)
    tl.store(entries + place, key, mask=hit & (place < found.capacity))
