"""append: a tile's scores that reach their threshold, as keys behind the others of their row. Two forms of one meaning.

`append_masked` is Triton throughout: a quarter of the tile at a time (a whole one spills registers), brought into
one dimension (atomics on the layout of a matrix product crash Triton 3.9), every element through a masked atomic.
`append_branching` is PTX: what misses, all but a few in ten thousand, costs a comparison and a branch, and nothing
leaves the product's own registers. It must not be used where a thread holds a copy of another's element, so tiles
have at least as many elements as threads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saekernels.backends.triton import keys

# $0 unused, $1 score, $2 whether it hits, $3 address of the row's counter, $4 of its first key, $5 index, $6 capacity,
# $7 1 where keys are of magnitudes. The key is keys.pack's.
BRANCHING = tl.constexpr(
    """{
    .reg .pred %miss, %full, %nan;
    .reg .b32 %place, %bits, %fill, %low, %sign;
    .reg .f32 %score;
    .reg .b64 %target, %key, %offset;
    mov.b32 $0, 0;
    setp.eq.s32 %miss, $2, 0;
    @%miss bra DONE;
    atom.relaxed.gpu.global.add.u32 %place, [$3], 1;
    setp.ge.u32 %full, %place, $6;
    @%full bra DONE;
    add.f32 %score, $1, 0f00000000;
    setp.nan.f32 %nan, %score, %score;
    mov.b32 %bits, %score;
    shr.u32 %sign, %bits, 31;
    and.b32 %sign, %sign, $7;
    shl.b32 %fill, $7, 31;
    not.b32 %fill, %fill;
    and.b32 %bits, %bits, %fill;
    shr.s32 %fill, %bits, 31;
    and.b32 %fill, %fill, 0x7fffffff;
    xor.b32 %bits, %bits, %fill;
    selp.b32 %bits, 0x7fffffff, %bits, %nan;
    selp.b32 %sign, 0, %sign, %nan;
    sub.s32 %low, 0x7fffffff, $5;
    shl.b32 %low, %low, 1;
    or.b32 %low, %low, %sign;
    mov.b64 %key, {%low, %bits};
    mul.wide.u32 %offset, %place, 8;
    add.s64 %target, $4, %offset;
    st.global.b64 [%target], %key;
    DONE:
    }"""
)


@triton.jit
def hits_of(score, threshold, rows, columns, sizes, ABS: tl.constexpr, PER_LATENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which of a block of scores are candidates; rows, columns: blocks of the same number of dimensions."""
    compared = tl.abs(score) if ABS else score
    if PER_LATENT:
        above = compared > tl.load(threshold + columns, mask=columns < sizes.F, other=0.0)
        hit = above | (compared != compared)
    else:
        hit = ~(compared < tl.load(threshold + rows, mask=rows < sizes.T, other=0.0))  # NaN hits
    return hit & (rows < sizes.T) & (columns < sizes.F)


@triton.jit
def append_branching(  # type: ignore[no-untyped-def]
    score, threshold, first_row, first_column, sizes, found, ABS: tl.constexpr, PER_LATENT: tl.constexpr
):
    rows = (first_row + tl.arange(0, score.shape[0]))[:, None]
    columns = (first_column + tl.arange(0, score.shape[1]))[None, :]
    hit = hits_of(score, threshold, rows, columns, sizes, ABS, PER_LATENT)
    everywhere = tl.zeros(score.shape, tl.int32)
    tl.inline_asm_elementwise(
        BRANCHING,
        "=r,f,r,l,l,r,r,r",
        [
            score,
            hit.to(tl.int32),
            (found.counts + rows).to(tl.int64) + everywhere,
            (found.keys + rows.to(tl.int64) * found.capacity).to(tl.int64) + everywhere,
            columns + everywhere,
            found.capacity + everywhere,
            everywhere + (1 if ABS else 0),
        ],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def append_part(  # type: ignore[no-untyped-def]
    score, threshold, first_row, first_column, sizes, found, ABS: tl.constexpr, PER_LATENT: tl.constexpr
):
    """[BM, BN / 4] scores of every fourth column from first_column on."""
    size: tl.constexpr = score.shape[0] * score.shape[1]
    flat = tl.reshape(score, (size,))
    at = tl.arange(0, size)
    row = first_row + at // score.shape[1]
    column = first_column + at % score.shape[1] * 4
    hit = hits_of(flat, threshold, row, column, sizes, ABS, PER_LATENT)
    place = tl.atomic_add(found.counts + row, 1, mask=hit, sem="relaxed")
    key = keys.pack(tl.abs(flat) if ABS else flat, column, (flat < 0) & ABS)
    tl.store(found.keys + row.to(tl.int64) * found.capacity + place, key, mask=hit & (place < found.capacity))


@triton.jit
def append_masked(  # type: ignore[no-untyped-def]
    score, threshold, first_row, first_column, sizes, found, ABS: tl.constexpr, PER_LATENT: tl.constexpr
):
    # Splitting pairs of neighbours leaves every element in the thread that has it.
    BM: tl.constexpr = score.shape[0]
    BN: tl.constexpr = score.shape[1]
    even, odd = tl.split(tl.reshape(score, (BM, BN // 2, 2)))
    part0, part2 = tl.split(tl.reshape(even, (BM, BN // 4, 2)))
    part1, part3 = tl.split(tl.reshape(odd, (BM, BN // 4, 2)))
    append_part(part0, threshold, first_row, first_column, sizes, found, ABS, PER_LATENT)
    append_part(part1, threshold, first_row, first_column + 1, sizes, found, ABS, PER_LATENT)
    append_part(part2, threshold, first_row, first_column + 2, sizes, found, ABS, PER_LATENT)
    append_part(part3, threshold, first_row, first_column + 3, sizes, found, ABS, PER_LATENT)
