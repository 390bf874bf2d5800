"""The PTX of `append_ptx`, run by a machine for it: Triton's own interpreter knows no inline assembly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptx.lanes import Lanes
from ptx.machine import run
from ptx.memory import Memory
from ptx.parse import parse
from triton_cases import module, skip_unless_interpreting

skip_unless_interpreting()
PACK, OPERANDS = module("append_ptx").PACK, module("append_ptx").SCALED_OPERANDS
KINDS = {"f": "b32", "r": "b32", "l": "b64"}
SPECIAL = (0.0, -0.0, float("inf"), -float("inf"), float("nan"), -float("nan"), 1e-42, -1e-42, 1.5, -1.5, 3e38)
LOW = -float("inf")


class Appended(NamedTuple):
    """What a run left: the counter of each row, and the keys in its room."""

    counts: list[int]
    keys: list[list[int]]


def bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


def append(
    scores: Sequence[Sequence[float]],
    limits: float | Sequence[Sequence[float]] = LOW,
    *,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
    T: int = 4,
    F: int = 2**31 - 1,
    capacity: int = 64,
    before: int = 0,
    absolute: bool = False,
    per_latent: bool = False,
    factors: Sequence[float] | None = None,
) -> Appended:
    """Run a thread for each pack of scores, with the rows and columns of its elements; counters start at `before`."""
    text = module("append_ptx").assembly(absolute=absolute, per_latent=per_latent, scaled=factors is not None)
    kinds = ["b32"] * PACK + [KINDS[kind] for kind in OPERANDS.values() for _ in range(PACK)]
    declared = "".join(f".reg .{kind} %in{n};\n" for n, kind in enumerate(kinds))
    program = parse("{\n" + declared + re.sub(r"\$(\d+)", r"%in\1", text) + "\n}")
    memory, threads = Memory(1 << 16), len(scores)
    counts = memory.put(np.full(T, before, np.uint32).view(np.uint8))
    keys = memory.put(np.zeros(T * capacity, np.uint64).view(np.uint8))
    lanes = Lanes(program, memory, (1,), threads, 16, [])
    given = {
        "score": np.float32(scores).view(np.uint32),
        "limit": np.broadcast_to(np.float32(limits), (threads, PACK)).copy().view(np.uint32),
        "row": np.broadcast_to(np.uint32(rows or [0] * PACK), (threads, PACK)),
        "column": np.broadcast_to(np.uint32(columns or range(PACK)), (threads, PACK)),
        "rows": np.full((threads, PACK), T, np.uint32),
        "columns": np.full((threads, PACK), F, np.uint32),
        "counts": np.full((threads, PACK), counts, np.uint64),
        "keys": np.full((threads, PACK), keys, np.uint64),
        "capacity": np.full((threads, PACK), capacity, np.uint32),
        "factor": np.broadcast_to(np.float32(factors or 1), (threads, PACK)).copy().view(np.uint32),
    }
    for at, name in enumerate(OPERANDS):
        for e in range(PACK):
            lanes.registers[f"%in{(1 + at) * PACK + e}"] = given[name][:, e].copy()
    run(lanes)
    counted = memory.bytes[counts : counts + 4 * T].view(np.uint32)
    written = memory.bytes[keys : keys + 8 * T * capacity].view(np.uint64).reshape(T, capacity)
    return Appended(counted.tolist(), written.tolist())


def alone(score: float, e: int) -> list[float]:
    """A pack of which only element e is not 0."""
    return [score if at == e else 0.0 for at in range(PACK)]


def expected_key(score: float, index: int, absolute: bool) -> int:
    """csrc/common/keys.h, in Python, with the top bit flipped."""
    negative = absolute and score < 0
    ranked = abs(score) if absolute else score
    pattern = signed(bits(ranked + 0.0 if ranked else 0.0))
    ordered = 0x7FFFFFFF if np.isnan(ranked) else pattern ^ ((pattern >> 31) & 0x7FFFFFFF)
    return (ordered << 32 | (0x7FFFFFFF - index) << 1 | int(negative)) & (2**64 - 1)


@given(
    score=st.one_of(st.floats(width=32), st.sampled_from(SPECIAL)),
    index=st.integers(0, 2**31 - 2),
    absolute=st.booleans(),
    e=st.integers(0, PACK - 1),
)
def test_a_hit_writes_its_key(score: float, index: int, absolute: bool, e: int) -> None:
    columns = [index if at == e else 0 for at in range(PACK)]
    limits = [[(abs(score) if absolute else score) if at == e else float("inf") for at in range(PACK)]]
    got = append([alone(score, e)], limits, columns=columns, before=3, capacity=8, absolute=absolute)
    assert got.counts == [4, 3, 3, 3]
    assert got.keys == [[0, 0, 0, expected_key(score, index, absolute), 0, 0, 0, 0], [0] * 8, [0] * 8, [0] * 8]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("score", SPECIAL, ids=str)
def test_special_scores(score: float, absolute: bool) -> None:
    got = append([[score] * PACK], columns=[77] * PACK, absolute=absolute)
    assert got.counts[0] == PACK
    assert got.keys[0][: PACK + 1] == [expected_key(score, 77, absolute)] * PACK + [0]


@pytest.mark.parametrize("absolute", [False, True])
def test_keys_are_those_of_the_masked_form(absolute: bool) -> None:
    unpack = module("select").unpack
    for score in SPECIAL:
        key = expected_key(score, 77, absolute)
        key -= 2**64 if key >= 2**63 else 0
        values, indices = unpack(torch.tensor([key]), torch.float32, relu=False)
        assert indices.tolist() == [77]
        torch.testing.assert_close(values, torch.tensor([score + 0.0]), rtol=0, atol=0, equal_nan=True)


def test_a_miss_touches_nothing_and_overflow_is_only_counted() -> None:
    assert append([[1.0] * PACK], 1.5, before=8, capacity=8).counts == [8, 8, 8, 8]
    over = append([alone(1.0, 5)], 0.5, before=8, capacity=8)
    assert over.counts == [9, 8, 8, 8]
    assert over.keys == [[0] * 8] * 4


@pytest.mark.parametrize("per_latent", [False, True])
def test_limits_are_reached_by_rows_and_passed_by_latents(per_latent: bool) -> None:
    nan, inf = float("nan"), float("inf")
    scores = [1.0, 1.0, nan, nan, 2.0, inf, -1.0, 0.0]
    limits = [1.0, nan, nan, inf, 1.5, inf, -2.0, -0.0]
    got = append([scores], [limits], per_latent=per_latent)
    hits = {2, 3, 4, 6} if per_latent else {0, 1, 2, 3, 4, 5, 6, 7}
    assert {key for key in got.keys[0] if key} == {expected_key(scores[e], e, False) for e in hits}


@pytest.mark.parametrize("absolute", [False, True])
def test_what_reaches_a_limit_times_a_factor_is_kept_without_it(absolute: bool) -> None:
    scores = [1.0, 3.0, -1.0, float("nan"), -0.1, 0.3, 0.1, 2.9]
    factors = [3.0, 1.0, 3.0, 1.0, 0.1, 10.0, 29.0, 1.0]
    got = append([scores], 3.0, factors=factors, absolute=absolute)
    products = np.float32(scores) * np.float32(factors)
    hits = [e for e, one in enumerate(np.abs(products) if absolute else products) if not one < 3]
    assert len(hits) == 4 + absolute
    assert {key for key in got.keys[0] if key} == {expected_key(scores[e], e, absolute) for e in hits}


@pytest.mark.parametrize("per_latent", [False, True])
def test_what_a_ragged_tile_has_too_much_is_left_out(per_latent: bool) -> None:
    """As the last tile has it: rows from 3 on and columns from 6 on do not exist, and all scores are NaN."""
    rows, columns = [2, 2, 3, 3, 2, 2, 3, 3], [4, 5, 4, 5, 6, 7, 6, 7]
    got = append([[float("nan")] * PACK], rows=rows, columns=columns, T=3, F=6, per_latent=per_latent)
    assert got.counts == [0, 0, 2]
    assert {key for key in got.keys[2] if key} == {expected_key(float("nan"), column, False) for column in (4, 5)}


@pytest.mark.parametrize("absolute", [False, True])
def test_every_hit_of_many_threads_has_a_place_of_its_own(absolute: bool) -> None:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((96, PACK)).astype(np.float32)
    rows, columns = [0, 0, 1, 1, 0, 0, 1, 1], list(range(PACK))
    got = append(scores.tolist(), 0.7, rows=rows, columns=columns, capacity=512, absolute=absolute)
    for row in (0, 1):
        hits = [
            expected_key(float(score), e, absolute)
            for pack in scores
            for e, score in enumerate(pack)
            if rows[e] == row and (abs(score) if absolute else score) >= np.float32(0.7)
        ]
        assert got.counts[row] == len(hits)
        assert sorted(got.keys[row][: len(hits)]) == sorted(hits)
        assert not any(got.keys[row][len(hits) :])
