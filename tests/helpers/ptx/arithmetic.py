"""arithmetic: numbers, comparisons and bits of PTX; each reads its operands and writes its first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.lanes import Lanes, Operands, Words

Values = NDArray[Any]
KINDS: dict[str, type[Any]] = {
    "f32": np.float32, "f64": np.float64, "f16": np.float16, "pred": np.bool_,
    "s16": np.int16, "s32": np.int32, "s64": np.int64, "u8": np.uint8, "u16": np.uint16, "u32": np.uint32,
    "u64": np.uint64, "b8": np.uint8, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64,
}  # fmt: skip
WIDER: dict[type[Any], type[Any]] = {np.int32: np.int64, np.uint32: np.uint64, np.int16: np.int32, np.uint16: np.uint32}
SIGNS = {"bf16": np.uint16(0x8000), "bf16x2": np.uint32(0x80008000), "f16x2": np.uint32(0x80008000)}
COMPARISONS: dict[str, Callable[[Values, Values], Values]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
BITWISE: dict[str, Callable[..., Values]] = {
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
}  # fmt: skip


def two(state: Lanes, words: Words, operands: Operands) -> None:
    """add, sub, mul, div, rem, min, max, neg, abs."""
    if words[-1] in SIGNS:
        _signs(state, words, operands)
        return
    kind = KINDS[words[-1]]
    numbers = [state.read(operand, kind) for operand in operands[1:]]
    if "hi" in words:
        a, b = (number.astype(WIDER[kind]) for number in numbers)
        state.write(operands[0], (a * b >> 8 * np.dtype(kind).itemsize).astype(kind))
        return
    if "wide" in words:
        numbers = [number.astype(WIDER[kind]) for number in numbers]
    a, b = numbers[0], numbers[-1]
    results: dict[str, Callable[[], Values]] = {
        "add": lambda: a + b,
        "sub": lambda: a - b,
        "mul": lambda: a * b,
        "div": lambda: a / b if kind is np.float32 else _quotient(a, b),
        "rem": lambda: a - _quotient(a, b) * b,
        # The other operand where one is NaN, as the GPU has it.
        "min": lambda: np.fmin(a, b),
        "max": lambda: np.fmax(a, b),
        "neg": lambda: -a,
        "abs": lambda: np.abs(a),
    }
    state.write(operands[0], results[words[0]]())


def _signs(state: Lanes, words: Words, operands: Operands) -> None:
    """neg and abs of 16-bit floats, alone or in pairs."""
    sign = SIGNS[words[-1]]
    bits = state.read(operands[1], type(sign))
    state.write(operands[0], {"abs": bits & ~sign, "neg": bits ^ sign}[words[0]])


def _quotient(a: Values, b: Values) -> Values:
    """Towards 0; whatever for 0 divided by."""
    b = np.where(b == 0, np.ones_like(b), b)
    signs = np.sign(a) * np.sign(b)
    return (signs * (np.abs(a) // np.abs(b))).astype(a.dtype)


def three(state: Lanes, words: Words, operands: Operands) -> None:
    """mad and fma; fma rounds once, or all but."""
    kind = KINDS[words[-1]]
    a, b = (state.read(operand, kind) for operand in operands[1:3])
    if words[0] == "fma":
        c = state.read(operands[3], kind)
        state.write(operands[0], (a.astype(np.float64) * b + c).astype(np.float32))
        return
    wide = WIDER[kind] if "wide" in words else kind
    state.write(operands[0], a.astype(wide) * b.astype(wide) + state.read(operands[3], wide))


def root(state: Lanes, words: Words, operands: Operands) -> None:
    """sqrt, rounded to the nearest also where it is to be fast."""
    state.write(operands[0], np.sqrt(state.read(operands[1], np.float32)))


def power(state: Lanes, words: Words, operands: Operands) -> None:
    """ex2: two to a power, rounded to the nearest."""
    state.write(operands[0], np.exp2(state.read(operands[1], np.float32).astype(np.float64)).astype(np.float32))


def bitwise(state: Lanes, words: Words, operands: Operands) -> None:
    """and, or, xor, not."""
    numbers = [state.read(operand, KINDS[words[-1]]) for operand in operands[1:]]
    state.write(operands[0], BITWISE[words[0]](*numbers))


def shift(state: Lanes, words: Words, operands: Operands) -> None:
    """shl, shr: by as many bits as there are, or more, nothing is left but a sign."""
    kind = KINDS[words[-1]]
    number, by = state.read(operands[1], kind), state.read(operands[2], np.uint32).astype(np.int64)
    width = 8 * np.dtype(kind).itemsize
    within = np.minimum(by, width - 1).astype(kind)
    shifted = number << within if words[0] == "shl" else number >> within
    keeps_sign = words[0] == "shr" and words[-1][0] == "s"
    state.write(operands[0], shifted if keeps_sign else np.where(by < width, shifted, np.zeros_like(shifted)))


def extract(state: Lanes, words: Words, operands: Operands) -> None:
    """bfe of unsigned or signed bits."""
    kind = KINDS[words[-1]]
    number, start, size = (state.read(operand, np.uint32).astype(np.int64) for operand in operands[1:])
    found = number >> start & ((1 << size) - 1)
    if words[-1][0] == "s":
        found = np.where(found >> (size - 1) & 1, found - (1 << size), found)
    state.write(operands[0], found.astype(kind))


def highest_bit(state: Lanes, words: Words, operands: Operands) -> None:
    """bfind: the place of the highest bit, all ones where there is none."""
    number = state.read(operands[1], np.uint32).astype(np.float64)
    place = np.where(number > 0, np.floor(np.log2(np.maximum(number, 1))), -1)
    state.write(operands[0], place.astype(np.int32))


def population(state: Lanes, words: Words, operands: Operands) -> None:
    """popc."""
    number = state.read(operands[1], KINDS[words[-1]])
    bits = np.unpackbits(number.view(np.uint8).reshape(len(number), -1), axis=1)
    state.write(operands[0], bits.sum(1).astype(np.uint32))


def permute_bytes(state: Lanes, words: Words, operands: Operands) -> None:
    """prmt: four of eight bytes."""
    a, b, chosen = (state.read(operand, np.uint32).astype(np.uint64) for operand in operands[1:])
    pair, made = a | b << np.uint64(32), np.zeros(state.lanes, np.uint64)
    for at in range(4):
        which = (chosen >> np.uint64(4 * at) & np.uint64(7)) * np.uint64(8)
        made |= (pair >> which & np.uint64(255)) << np.uint64(8 * at)
    state.write(operands[0], made.astype(np.uint32))


def compare(state: Lanes, words: Words, operands: Operands) -> None:
    """setp, alone or joined to a predicate; with `u` NaN counts, without it does not."""
    how = words[1]
    a, b = (_floats(state, operand, words[-1]) for operand in operands[1:3])
    missing = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(state.lanes, bool)
    if how in ("nan", "num"):
        found = missing if how == "nan" else ~missing
    elif how in COMPARISONS:
        found = COMPARISONS[how](a, b) & ~missing
    else:
        found = COMPARISONS[how.removesuffix("u")](a, b) | missing
    if len(operands) == 4:
        found = BITWISE[words[2]](found, state.read(operands[3], np.bool_))
    state.write(operands[0], found)


def _floats(state: Lanes, operand: str, word: str) -> Values:
    """Of a type that numpy may not have."""
    if word == "bf16":
        return (state.read(operand, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return state.read(operand, KINDS[word])


def select(state: Lanes, words: Words, operands: Operands) -> None:
    """selp."""
    a, b = (state.read(operand, KINDS[words[-1]]) for operand in operands[1:3])
    state.write(operands[0], np.where(state.read(operands[3], np.bool_), a, b))


OPERATIONS: dict[str, Callable[[Lanes, Words, Operands], None]] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "rem", "min", "max", "neg", "abs"), two),
    **dict.fromkeys(("mad", "fma"), three),
    **dict.fromkeys(("and", "or", "xor", "not"), bitwise),
    **dict.fromkeys(("shl", "shr"), shift),
    "bfe": extract,
    "bfind": highest_bit,
    "popc": population,
    "prmt": permute_bytes,
    "setp": compare,
    "selp": select,
    "sqrt": root,
    "ex2": power,
}
