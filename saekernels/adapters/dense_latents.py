"""Tensors that tools ask for and mostly do not read, made when they are; dense codes that remember their entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from saekernels.ops import decode_csr
from saekernels.sae.codes import Codes, row_sums

_MEMO = "_saekernels_codes"
_MATMUL = {Tensor.matmul, Tensor.__matmul__, torch.matmul}
_POW = {Tensor.pow, Tensor.__pow__, torch.pow}
_EQUAL = {Tensor.eq, Tensor.__eq__, torch.eq}
_KNOWN_WITHOUT_VALUES = {Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.device.__get__, Tensor.size, Tensor.dim}  # type: ignore[attr-defined]


class LazyTensor(Tensor):
    """A tensor whose values are computed at its first use, with the gradients of that moment.

    Every operation of torch on it is one on its values; only shape, dtype and device are known before.
    """

    _make: Callable[[], Tensor] | None
    _value: Tensor | None

    def __new__(cls, make: Callable[[], Tensor], like: Tensor, shape: tuple[int, ...]) -> LazyTensor:
        """A tensor of `shape`, with `like`'s dtype and device, whose values `make` returns at their first use."""
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        made._make, made._value = make, None
        return made

    def value(self) -> Tensor:
        """The values."""
        if self._value is None:
            assert self._make is not None
            self._value, self._make = self._make(), None
        return self._value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KNOWN_WITHOUT_VALUES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return func(*tree_map(_value, args), **tree_map(_value, kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*tree_map(_value, args), **tree_map(_value, kwargs or {}))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.value().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.value().__deepcopy__(memo)


class LazyCodes(LazyTensor):
    """Dense latents [..., F] from their entries, made at their first use.

    Told without making them: which are active (`bool()`) or never are (`== 0`, then `all(0)`), and of latents [T, F]
    in CSR sums of their powers, differentiable, and products with a matrix [F, d] of the same dtype.
    """

    _codes: Codes

    @classmethod
    def of(cls, codes: Codes) -> LazyCodes:
        """The codes with their zeros."""
        made: Any = cls(lambda: dense_of(codes), codes.values, (*codes.shape, codes.n_latents))
        made._codes = codes
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        codes: Codes | None = getattr(args[0], "_codes", None) if args else None
        if codes is None or kwargs:
            return super().__torch_function__(func, types, args, kwargs)
        if func is Tensor.bool and len(args) == 1:
            return Activity.of(replace(codes, values=codes.values.detach() != 0))
        if len(args) == 2 and codes.offsets is not None and len(codes.shape) == 1 and not _autocast(codes):
            other = args[1]
            if func in _EQUAL and type(other) in (int, float) and other == 0:
                return Silence.of(codes)
            if func in _POW and type(other) in (int, float):
                return Powers.of(codes, other)
            if func in _MATMUL and type(other) is Tensor and other.dim() == 2 and other.dtype == codes.values.dtype:
                return decode_csr(codes.values, codes.indices, codes.offsets, other)
        return super().__torch_function__(func, types, args, kwargs)


def _autocast(codes: Codes) -> bool:
    return torch.is_autocast_enabled(codes.values.device.type)


class Activity(LazyTensor):
    """Which latents are active, bool or float 0 and 1, [T, F]: what trainers count, by latent or by row.

    `float()` is another one, and of float ones the sum over either dimension is exact without making them.
    """

    _codes: Codes

    @classmethod
    def of(cls, codes: Codes) -> Activity:
        """Of codes in CSR whose values are bool, or float 0 and 1."""
        made: Any = cls(codes.to_dense, codes.values, (*codes.shape, codes.n_latents))
        made._codes = codes
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        codes: Codes | None = getattr(args[0], "_codes", None) if args else None
        if codes is not None and len(codes.shape) == 1 and not kwargs:
            if func is Tensor.float and len(args) == 1:
                return cls.of(replace(codes, values=codes.values.float()))
            if func is Tensor.sum and len(args) == 2 and args[1] in (0, 1, -1, -2) and codes.values.is_floating_point():
                return codes.l0().to(codes.values.dtype) if args[1] in (1, -1) else _times_active(codes)
        return super().__torch_function__(func, types, args, kwargs)


class Powers(LazyTensor):
    """Latents [T, F] to the power of a number: the sum over a row is that of its entries, as 0 to it is 0, or 1."""

    _codes: Codes
    _exponent: float

    @classmethod
    def of(cls, codes: Codes, exponent: float) -> Powers:
        """Of codes in CSR whose values are not negative."""
        made: Any = cls(lambda: codes.to_dense().pow(exponent), codes.values, (*codes.shape, codes.n_latents))
        made._codes, made._exponent = codes, exponent
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.sum and (args[1:], kwargs) in (((-1,), None), ((), {"dim": -1})) and args[0]._exponent >= 0:
            codes, exponent = args[0]._codes, args[0]._exponent
            sums = row_sums(codes.values.pow(exponent), codes.offsets)
            return sums if exponent > 0 else sums.new_full((codes.tokens,), codes.n_latents)
        return super().__torch_function__(func, types, args, kwargs)


class Silence(LazyTensor):
    """Which latents are 0, bool [T, F]; those that are in every row are told without making it."""

    _codes: Codes

    @classmethod
    def of(cls, codes: Codes) -> Silence:
        """Of codes in CSR."""
        made: Any = cls(lambda: codes.to_dense() == 0, codes.values.detach() == 0, (*codes.shape, codes.n_latents))
        made._codes = codes
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.all and (args[1:], kwargs) in (((0,), None), ((), {"dim": 0})):
            return _times_active(args[0]._codes) == 0
        return super().__torch_function__(func, types, args, kwargs)


def _times_active(codes: Codes) -> Tensor:
    """[F], in the dtype of the values."""
    counts = torch.bincount(codes.indices[codes.values != 0], minlength=codes.n_latents)
    return counts.to(codes.values.dtype)


def _value(one: Any) -> Any:
    return one.value() if isinstance(one, LazyTensor) else one


def dense_of(codes: Codes) -> Tensor:
    """[..., F]: the codes with their zeros, remembering the entries until they are changed in place."""
    if torch.is_grad_enabled() and codes.values.requires_grad:
        dense = codes.to_dense()
    else:
        # An inference tensor would not tell that it was changed.
        with torch.inference_mode(False):
            dense = torch.zeros(*codes.shape, codes.n_latents, dtype=codes.values.dtype, device=codes.values.device)
        _fill(dense, codes)
    setattr(dense, _MEMO, (codes, dense._version))
    return dense


def _fill(dense: Tensor, codes: Codes) -> None:
    if codes.offsets is None:
        dense.scatter_(-1, codes.indices.long(), codes.values)
        return
    rows = torch.arange(codes.tokens, device=dense.device).repeat_interleave(codes.offsets.diff())
    dense.view(-1, codes.n_latents).index_put_((rows, codes.indices.long()), codes.values)


def entries_of(dense: Tensor) -> Codes | None:
    """The codes that `dense_of` made this very tensor from, or None if it is another one or was changed."""
    memo = getattr(dense, _MEMO, None)
    if memo is None or dense.is_inference() or dense._version != memo[1]:
        return None
    codes: Codes = memo[0]
    return codes
