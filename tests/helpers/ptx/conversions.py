"""conversions: between the types of PTX, some of which numpy does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.arithmetic import KINDS, Values
from ptx.lanes import Lanes, Operands, Words
from ptx.memory import Fault


def _e4m3() -> NDArray[np.float64]:
    """[256]: the numbers of an 8-bit float with 3 bits of fraction; the largest code of either sign is NaN."""
    code = np.arange(128)
    exponent, fraction = code >> 3, code & 7
    positive = np.where(exponent > 0, (1 + fraction / 8) * 2.0 ** (exponent - 7), fraction * 2.0**-9)
    positive[127] = np.nan
    return np.concatenate([positive, -positive])


E4M3 = _e4m3()


def convert(state: Lanes, words: Words, operands: Operands) -> None:
    """cvt between integers, between floats to the nearest, and between the two."""
    to, of = words[-2], words[-1]
    if to.endswith("x2") and of == "f32":
        high, low = (rounded(state.read(operand, np.float32), to[:-2]) for operand in operands[1:])
        kind = np.uint16 if high.itemsize == 1 else np.uint32
        made: Values = high.astype(kind) << kind(8 * high.itemsize) | low.astype(kind)
    elif (to, of) == ("f16x2", "e4m3x2"):
        bits = state.read(operands[1], np.uint16).copy().view(np.uint8).reshape(-1, 2)
        made = E4M3[bits].astype(np.float16).view(np.uint32)[:, 0]
    elif of == "bf16" and to == "f32":
        made = state.read(operands[1], np.uint16).astype(np.uint32) << np.uint32(16)
    elif of == "f32" and to in ROUNDED:
        made = rounded(state.read(operands[1], np.float32), to)
    elif {to, of} <= KINDS.keys() and of[0] == "f" and to[0] in "su":
        made = _whole(state.read(operands[1], KINDS[of]), words, KINDS[to])
    elif {to, of} <= KINDS.keys():
        made = state.read(operands[1], KINDS[of]).astype(KINDS[to])
    else:
        raise Fault("a conversion that is not known here")
    state.write(operands[0], made)


def _whole(number: Values, words: Words, kind: type[Any]) -> Values:
    """Floats as integers, the nearest that there is; 0 for NaN."""
    how = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[words[1]]
    bounds = np.iinfo(kind)
    return np.clip(np.nan_to_num(how(number.astype(np.float64))), bounds.min, bounds.max).astype(kind)


def rounded(number: Values, to: str) -> Values:
    """The bits of float32 numbers as another type."""
    return ROUNDED[to](number)


def _bf16(number: Values) -> Values:
    bits = number.view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return np.where(np.isnan(number), np.uint32(0x7FFF), nearest >> np.uint32(16)).astype(np.uint16)


def _tf32(number: Values) -> Values:
    """10 bits of fraction, halves away from 0."""
    bits = number.view(np.uint32)
    return np.where(np.isfinite(number), bits + np.uint32(0x1000) & np.uint32(0xFFFFE000), bits)


def _e4m3_of(number: Values) -> Values:
    """The nearest, of two the even one; the largest for what is beyond it."""
    between = (E4M3[:126] + E4M3[1:127]) / 2
    magnitude = np.abs(number.astype(np.float64))
    below, above = np.searchsorted(between, magnitude, "left"), np.searchsorted(between, magnitude, "right")
    code = np.where(np.isnan(number), 127, np.where(below % 2, above, below))
    return (code | np.signbit(number) * 128).astype(np.uint8)


ROUNDED: dict[str, Callable[[Values], Values]] = {
    "bf16": _bf16,
    "tf32": _tf32,
    "e4m3": _e4m3_of,
    "f16": lambda number: number.astype(np.float16).view(np.uint16),
}
OPERATIONS: dict[str, Callable[[Lanes, Words, Operands], None]] = {"cvt": convert}
