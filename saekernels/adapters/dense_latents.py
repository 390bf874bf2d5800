"""Tensors that tools ask for and mostly do not read, made when they are; dense codes that remember their entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from saekernels.sae.codes import Codes

_MEMO = "_saekernels_codes"
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
