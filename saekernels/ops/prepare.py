"""prepare: what the encoders' screen needs to know of W_enc, worked out once per version of it."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from saekernels.backends import registry
from saekernels.ops import _check

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class PreparedWeights:
    """A screening copy of an encoder's weights with its error norms; made by `prepare`, passed to the encoders.

    It notices that the weights were changed in place, by their version counter or by a look at 512 of their elements,
    other ones at each of eight uses in turn, and is then made again. A partial write past the version counter
    (`W.data[i] = ...`) may go unnoticed, or be noticed some uses later: call `refresh()` after one.

    Attributes:
        weights: the tensor that it was made from.
        block: [nbytes] uint8, opaque. With F' = F rounded up to 32 and d' = d rounded up to 32: for each screen that
            may serve the weights 8 F' bytes (12 F' for integers), and 2 F' d' more for bf16 or int16, F' d' for int8
            (d' rounded up to 64). With int8 beside another, to d = 4096, that is 3/4 of what float32 weights take.
    """

    block: Tensor

    def __init__(self, W_enc: Tensor) -> None:
        self.weights = W_enc
        self.refresh()

    def refresh(self) -> None:
        """Make the block from the present weights."""
        weights = self.weights.detach()
        kernels = registry.select("prepare", weights.device.type, weights.dtype)
        self.block = kernels.prepare(weights.resolve_neg())
        self._look = 0
        self._made_from = [self._fingerprint(kernels, look) for look in range(kernels.LOOKS)]

    def block_for(self, W_enc: Tensor) -> Tensor:
        """The block, up to date. Raises ValueError if it was made from another tensor."""
        if W_enc is not self.weights:
            raise ValueError(
                f"prepared: made from another tensor, of shape {list(self.weights.shape)}; need prepare(W_enc) of the "
                "W_enc given"
            )
        kernels = registry.select("prepare", W_enc.device.type, W_enc.dtype)
        self._look = (self._look + 1) % kernels.LOOKS
        if self._fingerprint(kernels, self._look) != self._made_from[self._look]:
            self.refresh()
        return self.block

    @property
    def nbytes(self) -> int:
        """Memory held beside the weights."""
        return self.block.numel()

    def _fingerprint(self, kernels: ModuleType, look: int) -> tuple[object, ...]:
        return (*kernels.fingerprint(self.weights, look), self.weights._version, kernels.screening())


def prepare(W_enc: Tensor) -> PreparedWeights:
    """Prepare encoder weights for repeated use: `encode_topk(..., prepared=prepare(W_enc))`.

    Results do not depend on it, only speed, most of all for few rows. An SAE module does this by itself.

    Args:
        W_enc: [F, d], float32, bfloat16 or float16, on the CPU. Not an inference tensor, whose changes cannot be seen.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape, or no backend that prepares weights.
    """
    _check.tensor("W_enc", W_enc)
    _check.dtype_in("W_enc", W_enc, _DTYPES)
    _check.matrix("W_enc", W_enc, "F", "d")
    if W_enc.is_inference():
        raise ValueError("W_enc: got an inference tensor, need a normal one, whose changes can be noticed")
    return PreparedWeights(W_enc)


def usable(W_enc: Tensor) -> bool:
    """Whether `prepare` serves these weights here and now: a real CPU tensor, nothing traced, a backend that can."""
    return (
        type(W_enc) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(W_enc)
        and not torch.is_autocast_enabled(W_enc.device.type)
        and not W_enc.is_inference()
        and registry.serves("prepare", W_enc.device.type, W_enc.dtype)
    )


def block_of(prepared: PreparedWeights | None, W_enc: Tensor) -> Tensor | None:
    """What the encoders' op takes; None where nothing was prepared, or where autocast will replace W_enc."""
    if prepared is None:
        return None
    if not isinstance(prepared, PreparedWeights):
        raise TypeError(f"prepared: got {type(prepared).__name__}, need what prepare(W_enc) returns")
    _check.tensor("W_enc", W_enc)
    if torch.is_autocast_enabled(W_enc.device.type):
        return None
    return prepared.block_for(W_enc)
