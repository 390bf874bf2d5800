"""Input checks shared by the ops: each failure names the argument, what came and what was needed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PRECISIONS = ("exact", "fast", "screened")
ACTIVATIONS = ("relu", "none", "abs")
INDEX_DTYPES = (torch.int32, torch.int64)
_ALLOWED = {int: (int, torch.SymInt), float: (int, float, torch.SymInt, torch.SymFloat)}


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def tensor(name: str, value: object) -> None:
    """TypeError unless `value` is a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, need a torch.Tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}, need a dense (strided) tensor")


def tensors(**values: object) -> None:
    """`tensor` for each argument, before the dispatcher turns a wrong type into a RuntimeError; None is let through.

    NotImplementedError for a tensor with a forward-mode tangent.
    """
    for name, value in values.items():
        if value is not None:
            tensor(name, value)
    no_tangents(**values)


def no_tangents(**values: Any) -> None:
    """NotImplementedError for a tensor with a forward-mode tangent, which the ops would drop without a word."""
    for name, value in values.items() if forward_ad._current_level >= 0 else ():
        if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(
                f"{name}: got a forward-mode tangent; only reverse-mode gradients are implemented"
            )


def scalars(backend: object, **values: tuple[object, type]) -> None:
    """TypeError unless each value, given as (value, type), is of its type. A bool is no number; backend may be None."""
    if backend is not None:
        scalar("backend", backend, str)
    for name, (value, kind) in values.items():
        scalar(name, value, kind)


def integer(value: object) -> int | None:
    """The int that `value` stands for, an integer of numpy too; None for a bool, and for what is no integer."""
    return None if isinstance(value, bool) or not isinstance(value, Integral) else operator.index(value)


def scalar(name: str, value: Any, kind: type) -> Any:
    """`value`, as an int where it stands for one.

    TypeError unless it is of its type, ValueError for an int of more than 64 bits. A bool is no number.
    """
    whole = integer(value) if kind in _ALLOWED else None
    value = value if whole is None else whole
    if not isinstance(value, _ALLOWED.get(kind, kind)) or isinstance(value, bool) != (kind is bool):
        raise TypeError(f"{name}: got {value!r}, need {'a number' if kind is float else kind.__name__}")
    if kind is int and isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}: got {value}, need a number of 64 bits")
    return value


def dtype_in(name: str, value: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """TypeError unless the dtype is one of `allowed`."""
    if value.dtype not in allowed:
        raise TypeError(f"{name}: got dtype {_names([value.dtype])}, need one of {_names(allowed)}")


def dtype_of(name: str, value: Tensor, partner: str, of: Tensor) -> None:
    """TypeError unless the dtype is that of the argument `partner`."""
    if value.dtype != of.dtype:
        raise TypeError(f"{name}: got dtype {_names([value.dtype])}, need {_names([of.dtype])}, that of {partner}")


def shape(name: str, value: Tensor, expected: Sequence[tuple[str, int | torch.SymInt | str]]) -> None:
    """ValueError unless the shape is `expected`: (symbol, size) pairs; a size that may be any is its symbol."""
    if value.shape != tuple([size for _, size in expected]):
        symbols = ", ".join(symbol for symbol, _ in expected)
        sizes = ", ".join(str(size) for _, size in expected)
        raise ValueError(f"{name}: got shape {list(value.shape)}, need [{symbols}] = [{sizes}]")


def in_one_place(**values: Tensor | None) -> None:
    """TypeError unless all are dense, ValueError unless all live where the first does; None is let through."""
    first = device = None
    for name, value in values.items():
        if value is None:
            continue
        tensor(name, value)
        if first is None:
            first, device = name, value.device
        elif value.device != device:
            raise ValueError(f"{name}: got device {value.device}, need {device}, the device of {first}")


def matrix(name: str, value: Tensor, rows: str, columns: str) -> None:
    """ValueError unless `value` is 2-D with at least one row and column, and fewer than 2^31 rows."""
    if value.dim() != 2 or 0 in value.shape:
        raise ValueError(f"{name}: got shape {list(value.shape)}, need [{rows}, {columns}] with both at least 1")
    if value.shape[0] >= 2**31:
        raise ValueError(f"{name}: got {value.shape[0]} rows, need fewer than 2^31 (indices are int32)")


def vector_beside(name: str, value: Tensor | None, size: tuple[str, int | torch.SymInt], partner: Tensor) -> None:
    """A bias, threshold or gate: [size], in the partner's dtype or float32."""
    if value is not None:
        beside(name, value, partner)
        shape(name, value, [size])


def beside(name: str, value: Tensor, partner: Tensor) -> None:
    """TypeError unless the dtype is the partner's or float32."""
    if value.dtype not in (partner.dtype, torch.float32):
        dtype_in(name, value, tuple(dict.fromkeys((partner.dtype, torch.float32))))


def above_zero(name: str, value: Tensor | None) -> None:
    """ValueError unless every element is above 0, or NaN. Reads the data, so for CPU tensors only."""
    if value is None or value.device.type != "cpu":
        return
    wrong = value <= 0
    if wrong.any():
        at = int(wrong.nonzero()[0, 0])
        raise ValueError(f"{name}: must be above 0, but {name}[{at}] = {float(value[at]):g}")


def none_below_zero(name: str, value: Tensor) -> None:
    """ValueError if an element is below 0. Reads the data, which a GPU's host waits for."""
    wrong = value < 0
    if wrong.any():
        at = int(wrong.nonzero()[0, 0])
        raise ValueError(f"{name}: must not be below 0, but {name}[{at}] = {float(value[at]):g}")


def choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, need one of {', '.join(map(repr, allowed))}")


def k_of(k: int | torch.SymInt, latents: int | torch.SymInt, of: str) -> None:
    """ValueError unless 1 <= k <= latents."""
    if not 1 <= k <= latents:
        raise ValueError(f"k: got {k}, need 1 <= k <= {latents}, the number of latents in {of}")


def encoder(x: Tensor, W_enc: Tensor, b_enc: Tensor | None, pre_bias: Tensor | None, precision: str) -> None:
    """What both encoders ask of x [..., d], W_enc [F, d], b_enc [F], pre_bias [d]."""
    dtype_in("x", x, FLOATS)
    dtype_of("W_enc", W_enc, "x", x)
    matrix("W_enc", W_enc, "F", "d")
    latents, width = W_enc.shape
    if x.dim() < 1 or x.shape[-1] != width:
        raise ValueError(f"x: got shape {list(x.shape)}, need [..., d] with d = {width}, the width of W_enc")
    vector_beside("b_enc", b_enc, ("F", latents), x)
    vector_beside("pre_bias", pre_bias, ("d", width), x)
    choice("precision", precision, PRECISIONS)


def indices_in_range(indices: Tensor, latents: int | torch.SymInt, name: str = "indices") -> None:
    """ValueError unless every index is in [0, latents). Reads the data, so for CPU tensors only."""
    if indices.device.type != "cpu" or indices.numel() == 0:
        return
    low, high = indices.aminmax()
    if low < 0 or high >= latents:
        wrong = int(((indices < 0) | (indices >= latents)).nonzero()[0, 0])
        raise ValueError(f"{name}: must lie in [0, {latents}), but entry {wrong} is {int(indices[wrong])}")


def offsets_of(offsets: Tensor) -> None:
    """TypeError or ValueError unless `offsets` is int64 [T+1]."""
    dtype_in("offsets", offsets, (torch.int64,))
    if offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets: got shape {list(offsets.shape)}, need [T+1] with at least one element")


def offsets_data(offsets: Tensor, entries: int) -> None:
    """ValueError unless offsets run from 0 to `entries` and never fall. Reads the data, so CPU tensors only."""
    if offsets.device.type != "cpu":
        return
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != entries:
        raise ValueError(
            f"offsets: must begin with 0 and end with the number of entries ({entries}), got {first} and {last}"
        )
    falls = (offsets.diff() < 0).nonzero()
    if falls.numel():
        at = int(falls[0, 0])
        raise ValueError(
            f"offsets: must not decrease, but offsets[{at + 1}] = {int(offsets[at + 1])} follows {int(offsets[at])}"
        )


def entries(kernels: Any, indices: Tensor, offsets: Tensor | None, latents: int | torch.SymInt) -> Tensor:
    """The indices as int32, after the checks of their data that `kernels` do not make themselves."""
    narrow = indices.dtype == torch.int32
    if narrow and kernels.CHECKS_ENTRIES:
        return indices
    # Narrowing could turn a wrong index into a right one, so what is wider is checked before.
    indices_in_range(indices.reshape(-1), latents)
    if offsets is not None and not kernels.CHECKS_ENTRIES:
        offsets_data(offsets, indices.numel())
    return indices if narrow else indices.int()
