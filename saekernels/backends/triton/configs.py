"""One table of kernel configurations, by kernel, architecture, dtype, width and Triton version.

Nothing here depends on the number of tokens: a row is computed by the same instructions whatever else is in the batch.
`saekernels bench gpu --tune` searches `candidates` on the card at hand and prints a patch for `TABLE`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton


class Ring(NamedTuple):
    """The warp-specialised screen of 16-bit operands on Hopper (`encode.hopper.screen_gluon`).

    Attributes:
        BM, BN, BK: rows, columns and depth of a tile.
        stages: tiles that the ring in shared memory has room for.
        parts: 1: two warpgroups in ping-pong, with tiles of their own; 2: they have half of each tile's rows.
    """

    BM: int
    BN: int
    BK: int
    stages: int
    parts: int


# 192 KiB of shared memory either way.
PINGPONG, COOPERATIVE = Ring(128, 128, 64, 6, 1), Ring(128, 256, 64, 4, 2)


class Config(NamedTuple):
    """Block sizes and the compiler's knobs of one kernel.

    Attributes:
        BM, BN, BK: rows, columns and depth of a tile; kernels of codes use BN columns (of d) and BK entries at a time.
        group: row tiles that share a column tile in L2.
        extra: switches by name: "tma" (operands through tensor descriptors).
        maxnreg: registers that a thread of the screen may have; None: as many as the assembler likes.
        ring: of the warp-specialised screen, which is used instead where it can serve; None: not at all, as in every
            row of the table until a GPU has shown it right and faster.
    """

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    group: int = 8
    extra: tuple[str, ...] = ()
    maxnreg: int | None = None
    ring: Ring | None = None

    def has(self, switch: str) -> bool:
        """Whether a switch is on."""
        return switch in self.extra


class Key(NamedTuple):
    """What a configuration is for. dtype: bytes per element; wide: d >= WIDE; triton: "3.6", or "" for any."""

    kernel: str
    architecture: int
    itemsize: int
    wide: bool
    triton: str = ""


WIDE = 1536
VERSION = ".".join(triton.__version__.split(".")[:2])

# The interpreter's are small, so that tests meet several tiles.
TABLE: dict[Key, Config] = {
    Key("screen", 0, 2, False): Config(16, 128, 32, 4, 1, 2),
    Key("screen", 80, 1, False): Config(128, 128, 64, 8, 3),
    Key("screen", 80, 2, False): Config(128, 128, 32, 8, 3),
    # Triton 3.6 would rather spill 16 bytes than use more than 128 registers.
    Key("screen", 80, 4, False): Config(128, 128, 32, 8, 2, maxnreg=168),
    # 128 registers: two blocks share a multiprocessor, and one's epilogue hides behind the other's product.
    Key("screen", 90, 1, False): Config(128, 128, 128, 8, 3, maxnreg=128),
    Key("screen", 90, 2, False): Config(128, 128, 64, 8, 3, maxnreg=128),
    Key("screen", 90, 4, False): Config(128, 128, 32, 8, 3, maxnreg=128),
    Key("screen", 100, 1, False): Config(128, 64, 128, 8, 3),
    Key("screen", 100, 2, False): Config(128, 128, 64, 8, 3, maxnreg=128),
    Key("screen", 100, 4, False): Config(128, 64, 32, 8, 3),
    Key("linear_ce_kl", 0, 2, False): Config(32, 64, 32, 4, 1, 2),
    Key("linear_ce_kl", 80, 2, False): Config(128, 64, 32, 8, 3),
    Key("linear_ce_kl", 80, 4, False): Config(32, 64, 32, 8, 2),
    Key("linear_ce_kl", 90, 2, False): Config(128, 128, 64, 8, 3),
    Key("linear_ce_kl", 90, 4, False): Config(128, 64, 32, 8, 2),
    # What the tensor memory gives a thread is a row: half the words, so that they fit its registers.
    Key("linear_ce_kl", 100, 2, False): Config(128, 64, 64, 8, 3),
    Key("linear_ce_kl", 100, 4, False): Config(128, 64, 32, 8, 2),
    Key("linear_ce_kl_backward", 0, 2, False): Config(16, 32, 32, 4, 1, 2),
    Key("linear_ce_kl_backward", 80, 2, False): Config(128, 128, 32, 8, 3),
    Key("linear_ce_kl_backward", 80, 4, False): Config(64, 64, 32, 4, 2),
    Key("linear_ce_kl_backward", 90, 2, False): Config(128, 128, 64, 8, 3),
    Key("linear_ce_kl_backward", 90, 4, False): Config(64, 64, 32, 4, 2),
    Key("decode", 0, 2, False): Config(1, 32, 4, 1, 1),
    Key("decode", 80, 2, False): Config(1, 128, 8, 1, 1),
    Key("decode", 80, 4, False): Config(1, 64, 8, 1, 1),
    Key("rescore", 0, 2, False): Config(1, 32, 4, 1, 1),
    Key("rescore", 80, 2, False): Config(1, 256, 8, 4, 2),
    Key("gather_dot", 0, 2, False): Config(1, 32, 4, 1, 1),
    Key("gather_dot", 80, 2, False): Config(1, 256, 8, 1, 1),
    Key("gather_dot", 80, 4, False): Config(1, 128, 8, 1, 1),
    Key("latents", 0, 2, False): Config(1, 64, 512, 4, 1),
    Key("latents", 80, 2, False): Config(1, 256, 8, 4, 2),
    Key("gather_matmul", 0, 2, False): Config(16, 8, 32, 4, 1),
    Key("gather_matmul", 80, 2, False): Config(64, 32, 64, 4, 3),
    Key("gather_matmul", 80, 4, False): Config(64, 32, 32, 4, 2),
    Key("segment", 0, 2, False): Config(1, 32, 4, 1, 1),
    Key("segment", 80, 2, False): Config(1, 256, 4, 1, 1),
    Key("segment", 80, 4, False): Config(1, 128, 4, 1, 1),
}

_overrides: dict[str, Config] = {}


def lookup(kernel: str, architecture: int, dtype: torch.dtype, width: int) -> Config:
    """The configuration of a kernel for operands of a dtype and rows of `width`.

    Falls back from this Triton version to any, from wide to all widths, to a neighbouring dtype, then to the next older
    architecture. Raises KeyError for a kernel that has none.
    """
    if kernel in _overrides:
        return _overrides[kernel]
    sizes = sorted((1, 2, 4), key=lambda size: abs(size - dtype.itemsize))
    older = sorted({key.architecture for key in TABLE if 0 < key.architecture <= architecture}, reverse=True)
    wides = (True, False) if width >= WIDE else (False,)
    for arch, size, wide, version in itertools.product(older or [0], sizes, wides, (VERSION, "")):
        found = TABLE.get(Key(kernel, arch, size, wide, version))
        if found is not None:
            return found
    raise KeyError(f"{kernel}: no configuration for architecture {architecture}")


@contextlib.contextmanager
def override(kernel: str, config: Config) -> Iterator[None]:
    """Use `config` for a kernel, whatever the table says."""
    before = dict(_overrides)
    _overrides[kernel] = config
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


def candidates(kernel: str, architecture: int, dtype: torch.dtype, width: int) -> list[Config]:
    """What a search tries: the table's own first, then its neighbours that fit the architecture."""
    found = [lookup(kernel, architecture, dtype, width)]
    if (kernel, architecture, dtype.itemsize) == ("screen", 90, 2):
        found += [found[0]._replace(ring=ring) for ring in (PINGPONG, COOPERATIVE)]
    if kernel in ("screen", "linear_ce_kl"):
        found += _products(kernel, architecture, dtype)
    else:
        for columns, entries, warps in itertools.product((64, 128, 256, 512), (4, 8, 16), (1, 2, 4)):
            found.append(Config(1, columns, entries, warps, 1))
    return list(dict.fromkeys(found))


def _products(kernel: str, architecture: int, dtype: torch.dtype) -> list[Config]:
    """A few dozen: compiling takes longer than timing."""
    switches: list[tuple[str, ...]] = [(), ("tma",)] if kernel == "screen" and architecture >= 90 else [()]
    maxnreg = 128 if kernel == "screen" and architecture >= 90 else None
    tiles: tuple[tuple[int, int, int], ...]
    if kernel == "screen":
        tiles = ((128, 128, 8), (128, 256, 8), (64, 256, 4))
    else:
        # A warp has whole rows of 16 of a tile; maxima that cross warps double what a logit costs.
        tiles = ((64, 128, 4), (64, 64, 4), (128, 128, 8), (128, 64, 8))
    depth = 128 // dtype.itemsize  # one line of 128 bytes, which is what wgmma swizzles
    depths = (depth,) if architecture >= 90 else (depth // 2, depth)
    return [
        Config(BM, BN, BK, warps, stages, 8, extra, maxnreg if (BM, BN) == (128, 128) else None)
        for (BM, BN, warps), stages, extra, BK in itertools.product(tiles, (3, 4), switches, depths)
    ]
