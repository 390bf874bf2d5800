"""The warp-specialised screen for Hopper: its barriers and indices by its own source on numpy, and where it serves.

What the compiler makes of it is in `test_resources`.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("triton.experimental.gluon")

from roles import Fault, Program, run
from saekernels.backends.triton import configs, describe
from saekernels.backends.triton.encode.hopper import screen_gluon, screen_hopper
from saekernels.backends.triton.encode.operands import Operands, Vectors
from saekernels.backends.triton.encode.screen import screen
from saekernels.backends.triton.launch import Launch, record

TABLE, PLAIN = configs.lookup("screen", 90, torch.bfloat16, 768), Vectors()
# Of the runs on numpy.
BM, BN, BK, STAGES = 8, 16, 4, 3


def products(parts: int, T: int, F: int, D: int, seed: int, old: str = "", new: str = "") -> None:
    """Hold the products that the kernel hands to its epilogue against x @ W.T, two programs, with `old` replaced."""
    draw = np.random.default_rng(seed)
    x, W = draw.integers(-4, 5, (T, D)).astype(float), draw.integers(-4, 5, (F, D)).astype(float)
    got = np.full((-(-T // BM) * BM, -(-F // BN) * BN), np.nan)

    def keep(score: np.ndarray, row: int, column: int, *rest: object) -> None:
        place = got[row : row + score.shape[0], column : column + score.shape[1]]
        assert np.isnan(place).all(), "computed twice"
        place[:] = score

    arguments = {
        "x": SimpleNamespace(array=x, dtype=None, layout=None),
        "W": SimpleNamespace(array=W, dtype=None, layout=None),
        "sizes": SimpleNamespace(T=T, F=F, D=D),
        "TILE": SimpleNamespace(BM=BM, BN=BN, BK=BK, GROUP=2),
        "STAGES": STAGES,
        "PARTS": parts,
    } | dict.fromkeys(("vectors", "threshold", "found", "FORM"))
    for number in range(2):
        program = Program(number, 2, seed)
        parts_of = {"append_part": keep, "quarters_of": lambda acc: np.split(acc.value, 4, 1)}
        run(
            screen_gluon, "screen_hopper_kernel", arguments, program, lambda text: text.replace(old, new, 1), **parts_of
        )
    assert not np.isnan(got).any(), "not computed"
    np.testing.assert_array_equal(got[:T, :F], x @ W.T)
    assert not got[T:].any(), "what there is beyond T is zero"
    assert not got[:, F:].any(), "what there is beyond F is zero"


@pytest.mark.parametrize("parts", [1, 2])
# A depth of less than the ring, of as much, and of more; one tile, fewer tiles than roles, and many.
@pytest.mark.parametrize(("T", "F", "D"), [(1, 5, 3), (21, 42, 9), (37, 42, 12), (30, 70, 29), (16, 16, 26)])
def test_every_product_is_computed_once_from_its_own_operands(parts: int, T: int, F: int, D: int) -> None:
    for seed in range(4):
        products(parts, T, F, D, seed)


class Mistake(NamedTuple):
    """What of the source is replaced by what, and in which form it has to be found."""

    parts: int
    old: str
    new: str


TURN = "mbarrier.wait(ring.turn.index(WHICH), parity)"
MISTAKES = {
    "no turns": Mistake(1, TURN, "pass"),
    "the same turn for both": Mistake(1, "1 - WHICH", "1"),
    "the ring begins anew with each tile": Mistake(1, "step += steps", "step = WHICH * steps"),
    "no wait for operands": Mistake(2, "mbarrier.wait(ring.ready.index(stage), step // STAGES & 1)", "pass"),
    "no wait for readers": Mistake(2, "mbarrier.wait(ring.empty.index(stage), (step // STAGES & 1) ^ 1)", "pass"),
    "given back before it is read": Mistake(2, "warpgroup_mma_wait(1, deps=[acc])", "acc"),
    "another stage is given back": Mistake(1, "(step - 1) % STAGES", "step % STAGES"),
    "the last stage is kept": Mistake(
        1, "mbarrier.arrive(ring.empty.index((step - 1) % STAGES), count=1)\n        row", "row"
    ),
    "one reader is enough": Mistake(2, "count=PARTS", "count=1"),
    "half of the bytes": Mistake(1, "TILE.BK * 2", "TILE.BK"),
    "both have the same rows": Mistake(2, "stage * PARTS + WHICH", "stage * PARTS"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found(name: str) -> None:
    parts, old, new = MISTAKES[name]
    assert old in inspect.getsource(screen_gluon)
    said = []
    for seed in range(4):
        try:
            products(parts, 37, 42, 29, seed, old, new)
        except (Fault, AssertionError) as error:
            said.append(error)
    assert said


def started(
    x: torch.Tensor, W: torch.Tensor, ring: configs.Ring | None, vectors: Vectors = PLAIN, arch: int = 90
) -> Launch:
    """The one launch of a screen of x and W with this ring."""
    with record(arch) as launches, configs.override("screen", TABLE._replace(ring=ring)):
        screen(Operands(x, W, vectors), torch.zeros(x.shape[0]), 64, per_latent=False)
    (launch,) = launches
    return launch


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> object:
    """Counters of this test alone."""
    monkeypatch.setattr(screen_hopper, "_counts", Counter())
    return screen_hopper.counts


def sixteen_bits(rows: int, width: int = 72) -> torch.Tensor:
    return torch.zeros(rows, width, dtype=torch.bfloat16)


@pytest.mark.parametrize(("ring", "x_rows"), [(configs.PINGPONG, 128), (configs.COOPERATIVE, 64)])
@pytest.mark.parametrize(("T", "F", "programs"), [(100, 100, 1), (9000, 1000, 132)])
def test_it_starts_as_many_programs_as_there_is_work_for(
    counts: Callable[[], dict[str, int]], ring: configs.Ring, x_rows: int, T: int, F: int, programs: int
) -> None:
    launch = started(sixteen_bits(T), sixteen_bits(F), ring)
    assert (launch.name, launch.grid, launch.num_warps) == ("screen_hopper_kernel", (programs,), 4)
    assert launch.arguments["x"].block_shape == [x_rows, 64]
    assert launch.arguments["W"].block_shape == [ring.BN, 64]
    assert launch.arguments["x"].padding == launch.arguments["W"].padding == "zero"
    assert (launch.arguments["STAGES"], launch.arguments["PARTS"]) == ring[3:]
    assert counts() == {"served": 1}


def test_no_row_of_the_table_asks_for_it(counts: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a committed record of a GPU shows it right and faster."""
    assert [key for key, config in configs.TABLE.items() if config.ring is not None] == []
    assert describe()["hopper screen"] == "off in the table"
    assert started(sixteen_bits(30), sixteen_bits(50), None).name == "screen_kernel"
    tried = configs.candidates("screen", 90, torch.float16, 768)
    assert [config.ring for config in tried[:4]] == [None, configs.PINGPONG, configs.COOPERATIVE, None]
    monkeypatch.setitem(configs.TABLE, configs.Key("screen", 90, 2, False), tried[1])
    started(sixteen_bits(30), sixteen_bits(50), tried[1].ring)
    assert describe()["hopper screen"] == "asked for by the table; 1 launched"


ROWS = "needs rows apart, at multiples of 16 bytes, with their elements side by side"
REFUSED = {
    "older": (sixteen_bits(9), sixteen_bits(50), 80, "needs compute capability 9.0, the device has 8.0"),
    "newer": (sixteen_bits(9), sixteen_bits(50), 100, "needs compute capability 9.0, the device has 10.0"),
    "float32": (torch.zeros(9, 72), torch.zeros(50, 72), 90, "serves products of bfloat16 and float16"),
    "rows of x": (sixteen_bits(9, 76), sixteen_bits(50, 80)[:, :76], 90, f"x: {ROWS}"),
    "rows of W": (sixteen_bits(9, 80)[:, :76], sixteen_bits(50, 76), 90, f"W_enc: {ROWS}"),
    "one row many times": (sixteen_bits(1).expand(9, 72), sixteen_bits(50), 90, f"x: {ROWS}"),
    "offset": (sixteen_bits(9, 88)[:, 4:76], sixteen_bits(50), 90, f"x: {ROWS}"),
    "latents as columns": (sixteen_bits(9), sixteen_bits(72, 64).t(), 90, f"W_enc: {ROWS}"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_serve_is_counted_and_said_once(
    counts: Callable[[], dict[str, int]], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    x, W, arch, reason = REFUSED[name]
    with caplog.at_level(logging.WARNING, "saekernels"):
        for _ in range(3):
            assert started(x, W, configs.PINGPONG, arch=arch).name == "screen_kernel"
    assert counts() == {reason: 3}
    assert describe()["hopper screen"] == f"off in the table; 3 left to the portable one: {reason}"
    assert caplog.messages == [f"the warp-specialised screen is asked for and does not serve: {reason}"]


def test_rows_of_x_are_laid_out_for_it(counts: Callable[[], dict[str, int]]) -> None:
    """As for the portable one: x is small beside W."""
    launch = started(sixteen_bits(72, 9).t(), sixteen_bits(50), configs.PINGPONG)
    assert launch.name == "screen_hopper_kernel"
    assert list(launch.arguments["x"].strides) == [72, 1]
    assert counts() == {"served": 1}


def test_bounded_scores_are_left_to_the_portable_screen(counts: Callable[[], dict[str, int]]) -> None:
    vectors = Vectors(row_norm=torch.zeros(9))
    assert started(sixteen_bits(9), sixteen_bits(50), configs.PINGPONG, vectors).name == "screen_kernel"
    assert counts() == {"serves products of bfloat16 and float16": 1}


def test_without_gluon_the_portable_screen_serves(
    counts: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen_hopper, "MISSING", "no module named gluon")
    assert started(sixteen_bits(9), sixteen_bits(50), configs.PINGPONG).name == "screen_kernel"
    assert counts() == {"Gluon does not load: no module named gluon": 1}
