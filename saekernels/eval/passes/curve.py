"""What a model does to its output embedding's product, measured: logits = softcap(scale * raw) + offset.

Planted values of many sizes are given in place of the product and the logits are looked at. So nothing hangs on the
names of a config's fields, nor on whether a trial's own logits are large enough to meet the cap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MANTISSAS = 64
_EXPONENTS = range(-6, 10)


@dataclass(frozen=True)
class Curve:
    """logits = softcap * tanh(scale * raw / softcap) + offset, or scale * raw + offset; offset [V] fp32 or None."""

    scale: float = 1.0
    softcap: float | None = None
    offset: Tensor | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """Of raw [..., V] float64."""
        z = raw * self.scale
        z = z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)
        return z if self.offset is None else z + self.offset.to(z)


def measure_curve(plant: Callable[[Tensor], Tensor | None], like: Tensor, numbers: Any) -> Curve | None:
    """The curve by which logits follow from raw values, or None if they follow otherwise.

    plant(values) gives the model's logits [..., V] for raw `values` of the shape and dtype of `like` [..., V];
    numbers: the model's config, whose numbers stand in for measured ones that agree with them to rounding.
    """
    width = like.shape[-1]
    at_zero = plant(torch.zeros_like(like))
    raw = _grid(like)
    gave = None if at_zero is None else plant(raw)
    if at_zero is None or gave is None:
        return None
    eps = max(torch.finfo(one.dtype).eps for one in (like, gave))
    offsets = at_zero.double().reshape(-1, width)
    x, y = raw.double().reshape(-1, width).to(gave.device), gave.double().reshape(-1, width)
    if not bool(torch.isfinite(offsets).all()) or bool((offsets != offsets[0]).any()):
        return None
    offset = offsets[0].float() if bool(offsets.any()) else None
    curve = _fitted(x.reshape(-1), (y - offsets).reshape(-1), eps, set(_numbers(numbers)))
    if curve is None or (offset is not None and curve.softcap is not None):
        return None
    found = Curve(curve.scale, curve.softcap, offset)
    known = torch.isfinite(y)
    # Where an offset was added, its rounding is that of the larger of the two.
    close = (found(x) - y).abs() <= 16 * eps * torch.maximum(y.abs(), offsets.abs())
    return found if bool(close[known].all()) and int(known.sum()) * 2 > known.numel() else None


def _grid(like: Tensor) -> Tensor:
    """Values of both signs between 1/64 and 1000, each of them exact in bfloat16, in an order without a pattern."""
    sizes = torch.tensor([2.0**e * (1 + m / _MANTISSAS) for e in _EXPONENTS for m in range(_MANTISSAS)])
    values = torch.cat([sizes, -sizes])
    # 769 is prime to the number of values, so that few of them still have all sizes and both signs.
    order = torch.arange(like.numel()) * 769 % len(values)
    return values[order].reshape(like.shape).to(like)


def _fitted(x: Tensor, y: Tensor, eps: float, numbers: set[float]) -> Curve | None:
    """The curve through finite points (x, y), float64, without an offset."""
    known = torch.isfinite(y) & (y != 0)
    x, y = x[known], y[known]
    if len(x) < 8 or bool((x.sign() != y.sign()).any()):
        return None
    x, y = x.abs(), y.abs()
    small, large = x <= x.min() * 4, int(x.argmax())
    scale = float((y[small] / x[small]).mean())
    far, top = float(x[large]), float(y[large])
    if top >= scale * far * (1 - 32 * eps):
        return Curve(_snapped(float((y / x).mean()), numbers, eps))
    cap = top
    for _ in range(30):
        cap = _cap_of(scale * far, top)
        inside = (y[small] / cap).clamp(max=1 - 1e-12)
        scale = float((cap * torch.atanh(inside) / x[small]).mean())
    return Curve(_snapped(scale, numbers, eps), _snapped(cap, numbers, eps))


def _cap_of(z: float, top: float) -> float:
    """c with c * tanh(z / c) = top, for 0 < top < z."""
    low, high = top, top
    while high * math.tanh(z / high) < top:
        high *= 2
    # What a cap gives grows with it; `top` itself gives too little unless tanh is 1 to rounding.
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * math.tanh(z / middle) < top else (low, middle)
    return high


def _snapped(value: float, numbers: set[float], eps: float) -> float:
    """The config's number (or its inverse, or the root of either) that is nearest, if it is the value to rounding."""
    exact = {1.0}
    for number in numbers:
        exact |= {number, 1 / number, math.sqrt(number), 1 / math.sqrt(number)}
    nearest = min(exact, key=lambda one: abs(one - value))
    return nearest if abs(nearest - value) <= 8 * eps * abs(value) else value


def _numbers(config: Any) -> Iterator[float]:
    """All positive numbers of a config and of the configs in it."""
    if isinstance(config, bool):
        return
    if isinstance(config, int | float):
        if 1e-6 < config < 1e9:
            yield float(config)
        return
    to_dict = getattr(config, "to_dict", lambda: getattr(config, "__dict__", {}))
    fields = config if isinstance(config, Mapping) else to_dict()
    for value in fields.values():
        if isinstance(value, int | float | Mapping):
            yield from _numbers(value)
