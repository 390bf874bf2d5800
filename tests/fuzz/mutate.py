"""Damage: to bytes, and to the structure of JSON and the like."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**40, 0.5, -1e300, float("nan"), float("inf"), "", "x", "topk",
    "1e9", "../../x", [], [1], [[]], {}, {"a": 1}, ["x"] * 5, "ß\ud800", "\x00",
)  # fmt: skip


def data(rng: random.Random, content: bytes) -> bytes:
    """Some bytes flipped, cut, doubled, removed, zeroed, swapped or put in; or the file's end is missing."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(found) + 1)
        length = rng.choice([1, 2, 8, rng.randint(1, 64)])
        kind = rng.randrange(8)
        if kind == 0 and found:
            found[at % len(found)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[at:]
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at:at] = found[at : at + length]
        elif kind == 4:
            found[at : at + length] = bytes(len(found[at : at + length]))
        elif kind == 5:
            found[at:at] = rng.randbytes(length)
        elif kind == 6:
            found[at : at + 8] = struct.pack("<Q", rng.choice([0, 2**31, 2**40, 2**63, 2**64 - 1]))
        elif found:
            other = rng.randrange(len(found))
            found[at % len(found)], found[other] = found[other], found[at % len(found)]
    return bytes(found)


def structure(rng: random.Random, value: Any) -> Any:
    """A JSON-like value with entries replaced, removed, renamed, nested or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2, 4])):
        value = _once(rng, value)
    return value


def _once(rng: random.Random, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return copy.deepcopy(rng.choice(VALUES))
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    kind = rng.randrange(6)
    if kind < 2:
        value[key] = _once(rng, value[key])
    elif kind == 2:
        value[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 3:
        del value[key]
    elif kind == 4 and isinstance(value, dict):
        value[rng.choice(["x", "", "__class__", str(key).upper()])] = value.pop(key)
    else:
        value[key] = (
            [copy.deepcopy(value[key]) for _ in range(rng.choice([0, 2]))] if rng.random() < 0.5 else {"a": value[key]}
        )
    return value


def text(rng: random.Random, value: Any) -> bytes:
    """Such a value as JSON text, sometimes damaged as text, too."""
    made = json.dumps(structure(rng, value), ensure_ascii=True).encode()
    if rng.random() < 0.05:
        made = b"[" * 100_000 + made  # deeper than a parser recurses
    return data(rng, made) if rng.random() < 0.2 else made
