"""screen_gluon: the screen of 16-bit operands for Hopper, persistent and warp-specialised, in Gluon.

One warp fetches tiles of x and W through tensor descriptors into a ring in shared memory; two warpgroups multiply and
append. In ping-pong each has tiles of its own, and one's epilogue runs beside the other's product. Cooperating they
have half of the rows of each tile, which may have twice the columns, so that operands are read less often.

Barriers, all in shared memory: `ready[s]` completes as stage s has been filled, `empty[s]` as its readers are done,
`turn[w]` as warpgroup w may begin a product. A wait knows a phase by its parity alone. That suffices as long as who
waits for a fill of a stage comes after a wait for the fill before: by the order of its own waits, or in ping-pong by
`turn`, without which the second warpgroup would take the first one's operands for its own.
What lies beyond T, F and the depth arrives as zeros: products gain nothing, and the assembly leaves out rows and
columns that do not exist.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from saekernels.backends.triton.encode.append import append, quarters_of
from saekernels.backends.triton.product import tile_of

fetch = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # the latter in Triton 3.6
# Of one consumer: warps, and registers of a thread; the fetching warp needs few.
WARPS = 4
CONSUMER_REGISTERS, PRODUCER_REGISTERS = gl.constexpr(240), gl.constexpr(24)


class Shared(NamedTuple):
    """Shared memory: x and W hold a tile per stage, x in one part for each consumer that reads it; and barriers."""

    x: Any
    W: Any
    ready: Any
    empty: Any
    turn: Any


@gluon.jit
def fill(x, W, sizes, ring, TILE, STAGES: gl.constexpr, PARTS: gl.constexpr):  # type: ignore[no-untyped-def]
    """The producer: every tile of this program, a depth of BK at a time."""
    ROWS: gl.constexpr = TILE.BM // PARTS
    tiles = gl.cdiv(sizes.T, TILE.BM) * gl.cdiv(sizes.F, TILE.BN)
    step = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        tile_m, tile_n = tile_of(tile, sizes, TILE)
        for k in range(0, sizes.D, TILE.BK):
            stage = step % STAGES
            mbarrier.wait(ring.empty.index(stage), (step // STAGES & 1) ^ 1)
            ready = ring.ready.index(stage)
            mbarrier.expect(ready, (TILE.BM + TILE.BN) * TILE.BK * 2)
            for part in gl.static_range(PARTS):
                fetch(x, [tile_m * TILE.BM + part * ROWS, k], ready, ring.x.index(stage * PARTS + part))
            fetch(W, [tile_n * TILE.BN, k], ready, ring.W.index(stage))
            step += 1


@gluon.jit
def append_part(score, row, column, sizes, vectors, threshold, found, FORM):  # type: ignore[no-untyped-def]
    """The epilogue of a block of scores whose first is that of (row, column)."""
    LAYOUT: gl.constexpr = score.type.layout
    rows = row + gl.arange(0, score.shape[0], gl.SliceLayout(1, LAYOUT))
    columns = column + gl.arange(0, score.shape[1], gl.SliceLayout(0, LAYOUT))
    if vectors.bias is not None:
        score += gl.load(vectors.bias + columns, mask=columns < sizes.F, other=0.0)[None, :]
    append(score, threshold, None, rows, columns, sizes, found, False, FORM)


@gluon.jit
def consume(  # type: ignore[no-untyped-def]
    WHICH: gl.constexpr, sizes, vectors, threshold, found, ring, FORM, TILE, STAGES: gl.constexpr, PARTS: gl.constexpr
):
    """A consumer, 0 or 1: its tiles, or its part of every tile."""
    ROWS: gl.constexpr = TILE.BM // PARTS
    PINGPONG: gl.constexpr = PARTS == 1
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, TILE.BN, 16]
    )
    tiles = gl.cdiv(sizes.T, TILE.BM) * gl.cdiv(sizes.F, TILE.BN)
    steps = gl.cdiv(sizes.D, TILE.BK)
    # Fills of the ring before this consumer's next product, and the parity of its next turn; the first one's is there.
    step = WHICH * steps if PINGPONG else 0
    parity = 1 - WHICH
    programs = gl.num_programs(0)
    first = gl.program_id(0) + WHICH * programs if PINGPONG else gl.program_id(0)
    for tile in range(first, tiles, 2 * programs if PINGPONG else programs):
        tile_m, tile_n = tile_of(tile, sizes, TILE)
        if PINGPONG:
            mbarrier.wait(ring.turn.index(WHICH), parity)
        acc = gl.zeros([ROWS, TILE.BN], gl.float32, LAYOUT)
        for k in range(steps):
            stage = step % STAGES
            mbarrier.wait(ring.ready.index(stage), step // STAGES & 1)
            a = ring.x.index(stage if PINGPONG else stage * PARTS + WHICH)
            acc = warpgroup_mma(a, ring.W.index(stage).permute((1, 0)), acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=[acc])
            if k > 0:
                mbarrier.arrive(ring.empty.index((step - 1) % STAGES), count=1)
            step += 1
        if PINGPONG:
            mbarrier.arrive(ring.turn.index(1 - WHICH), count=1)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(ring.empty.index((step - 1) % STAGES), count=1)
        row = tile_m * TILE.BM if PINGPONG else tile_m * TILE.BM + WHICH * ROWS
        # A part at a time: what belongs to latents is loaded after the part before is done with its own.
        parts = quarters_of(acc)
        for part in gl.static_range(4):
            append_part(
                parts[part], row, tile_n * TILE.BN + part * (TILE.BN // 4), sizes, vectors, threshold, found, FORM
            )
        if PINGPONG:
            step += steps
            parity ^= 1


@gluon.jit
def screen_hopper_kernel(  # type: ignore[no-untyped-def]
    x, W, sizes, vectors, threshold, found, FORM, TILE, STAGES: gl.constexpr, PARTS: gl.constexpr
):
    """x, W: descriptors of [T, D] in blocks [BM / PARTS, BK] and of [F, D] in blocks [BN, BK]; PARTS 1: ping-pong."""
    x_tiles = gl.allocate_shared_memory(x.dtype, [STAGES * PARTS, TILE.BM // PARTS, TILE.BK], x.layout)
    W_tiles = gl.allocate_shared_memory(W.dtype, [STAGES, TILE.BN, TILE.BK], W.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=PARTS)
    for which in gl.static_range(2):
        mbarrier.init(turn.index(which), count=1)
    fence_async_shared()
    ring = Shared(x_tiles, W_tiles, ready, empty, turn)
    gl.warp_specialize(
        [
            (consume, (0, sizes, vectors, threshold, found, ring, FORM, TILE, STAGES, PARTS)),
            (consume, (1, sizes, vectors, threshold, found, ring, FORM, TILE, STAGES, PARTS)),
            (fill, (x, W, sizes, ring, TILE, STAGES, PARTS)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )
