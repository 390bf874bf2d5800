"""The PTX of `append_branching`, run by a small interpreter: Triton's own knows no inline assembly."""

from __future__ import annotations

import re
import struct
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triton_cases import module, skip_unless_interpreting

skip_unless_interpreting()
COUNTER, FIRST = 1000, 5000  # addresses
SPECIAL = (0.0, -0.0, float("inf"), -float("inf"), float("nan"), -float("nan"), 1e-42, -1e-42, 1.5, -1.5, 3e38)


def bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


class Machine:
    """One thread: registers as unsigned integers, memory as a dictionary."""

    def __init__(self, operands: list[int], memory: Counter[int]) -> None:
        self.registers: dict[str, int] = {f"${number}": value for number, value in enumerate(operands, start=1)}
        self.memory = memory

    def value(self, name: str) -> int:
        if name.startswith("0f"):
            return struct.unpack(">I", bytes.fromhex(name[2:]))[0]
        return self.registers[name] if name[0] in "%$" else int(name, 0)

    def run(self, text: str) -> None:
        """Line by line; the only jumps are to the end."""
        for line in text.strip().strip("{}").split(";"):
            line = re.sub(r"DONE:", "", line).strip()
            if not line or line.startswith(".reg"):
                continue
            guard, code = re.match(r"(?:@(%\w+) )?(.*)", line, re.S).groups()  # type: ignore[union-attr]
            if guard and not self.registers[guard]:
                continue
            if code.startswith("bra"):
                return
            self.step(code)

    def step(self, code: str) -> None:
        operation, rest = code.split(None, 1)
        pair = re.search(r"\{(\S+), (\S+)\}", rest)
        names = [name.strip(" []") for name in rest.split(",")]
        target, a = names[0], names[1]
        if pair:  # mov.b64 key, {low, high}
            self.registers[target] = self.value(pair[1]) | self.value(pair[2]) << 32
            return
        if operation == "st.global.b64":
            self.memory[self.value(target)] = self.value(a)
            return
        if operation == "atom.relaxed.gpu.global.add.u32":
            self.registers[target] = self.memory[self.value(a)]
            self.memory[self.value(a)] += self.value(names[2])
            return
        self.registers[target] = self.result(operation, [self.value(name) for name in names[1:]])

    def result(self, operation: str, given: list[int]) -> int:
        a, b = given[0], given[1] if len(given) > 1 else 0
        mask = 2**64 - 1 if operation in ("mul.wide.u32", "add.s64") else 2**32 - 1
        number = np.uint32([a & 0xFFFFFFFF, b & 0xFFFFFFFF]).view(np.float32)
        with np.errstate(all="ignore"):
            results = {
                "mov.b32": lambda: a,
                "setp.eq.s32": lambda: int(a == b),
                "setp.ge.u32": lambda: int(a >= b),
                "setp.nan.f32": lambda: int(np.isnan(number).any()),
                "add.f32": lambda: int((number[0] + number[1]).view(np.uint32)),
                "shr.u32": lambda: a >> b,
                "shr.s32": lambda: signed(a) >> b,
                "shl.b32": lambda: a << b,
                "and.b32": lambda: a & b,
                "or.b32": lambda: a | b,
                "xor.b32": lambda: a ^ b,
                "not.b32": lambda: ~a,
                "sub.s32": lambda: a - b,
                "selp.b32": lambda: a if given[2] else b,
                "mul.wide.u32": lambda: a * b,
                "add.s64": lambda: a + b,
            }
            return results[operation]() & mask


def append(score: float, hits: bool, index: int, capacity: int, absolute: bool, memory: Counter[int]) -> None:
    machine = Machine([bits(score), int(hits), COUNTER, FIRST, index, capacity, int(absolute)], memory)
    machine.run(module("encode.append").BRANCHING.value)


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
)
def test_a_hit_writes_its_key(score: float, index: int, absolute: bool) -> None:
    memory: Counter[int] = Counter({COUNTER: 3})
    append(score, True, index, 8, absolute, memory)
    assert memory == {COUNTER: 4, FIRST + 3 * 8: expected_key(score, index, absolute)}


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("score", SPECIAL, ids=str)
def test_special_scores(score: float, absolute: bool) -> None:
    memory: Counter[int] = Counter()
    append(score, True, 77, 1, absolute, memory)
    assert memory == {COUNTER: 1, FIRST: expected_key(score, 77, absolute)}


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
    memory: Counter[int] = Counter({COUNTER: 8})
    append(1.0, False, 5, 8, False, memory)
    assert memory == {COUNTER: 8}
    append(1.0, True, 5, 8, False, memory)
    assert memory == {COUNTER: 9}
