"""prepare: what the encoders need to know of W_enc, worked out once per version of it."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from saekernels.backends import registry
from saekernels.ops import _check

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class PreparedWeights:
    """What the encoders need of an encoder's weights alone; made by `prepare`, passed to the encoders.

    It notices that the weights were changed in place, by their version counter or by a look at 512 of their elements
    (on a GPU 4,096), other ones at each of eight uses in turn (on a GPU the same), and is then made again. A partial
    write past the version counter (`W.data[i] = ...`) may go unnoticed, or be noticed some uses later: call `refresh()`
    after one.

    On a GPU it is for one `pre_bias` and `precision` at a time, and made for others at their second use in a row.
    The host waits for it when it is made, so any stream can use it, and CUDA graphs. Writes past the version counter
    are noticed, and made good, on the device, in the order of the stream: after one that several streams shall see,
    call `refresh()`. A graph keeps the block with which it was captured, and needs this object to live on. At each
    replay it looks at the 4,096 elements, not at the version counter: after a change of a few rows capture it again.
    What would have to be made during a capture is left out, so that the graph does that work itself.

    Attributes:
        weights: the tensor that it was made from.
        block: [nbytes] uint8, opaque. On a CPU, with F' = F rounded up to 32 and d' = d rounded up to 32: for each
            screen that may serve the weights 8 F' bytes (12 F' for integers), and 2 F' d' more for bf16 or int16, F' d'
            for int8 (d' rounded up to 64). With int8 beside another, to d = 4096, that is 3/4 of what float32 weights
            take. On a GPU 16 KiB and 4 F bytes, for 16-bit weights only with a `pre_bias`, and 4 d more then; with
            precision="screened" 12 F + F d' bytes more (d' = d rounded up to 128), and not the 4 F of float32.
            Nothing for 16-bit weights without a `pre_bias`, nor for float32 with precision="fast".
    """

    block: Tensor

    def __init__(self, W_enc: Tensor) -> None:
        self.weights = W_enc
        self._pre_bias: Tensor | None = None
        self._asked_with: Tensor | None = None
        self._precision = "exact"
        self._kernels = registry.select("prepare", W_enc.device.type, W_enc.dtype)
        self._captured: list[Tensor] = []
        self.refresh()

    def refresh(self) -> None:
        """Make the block from the present weights. Raises RuntimeError while a CUDA graph is captured."""
        if _capturing(self.weights):
            raise RuntimeError("prepare: a CUDA graph is being captured, need weights that were prepared before")
        kernels, weights = self._kernels, self.weights.detach().resolve_neg()
        self.block = kernels.prepare(weights, self._pre_bias, self._precision)
        self._variant = self._asked = self._variant_of(kernels, self._pre_bias, self._precision)
        self._look = 0
        self._made_from = [self._fingerprint(look) for look in range(kernels.LOOKS)]

    def block_for(
        self, W_enc: Tensor, pre_bias: Tensor | None = None, precision: str = "exact", backend: str | None = None
    ) -> Tensor | None:
        """The block, up to date, for encoders with such arguments; None where there is none, or none yet.

        Raises ValueError if it was made from another tensor.
        """
        if W_enc is not self.weights:
            raise ValueError(
                f"prepared: made from another tensor, of shape {list(self.weights.shape)}; need prepare(W_enc) of the "
                "W_enc given"
            )
        device, dtype = W_enc.device.type, W_enc.dtype
        if backend is not None and registry.refusal(backend, "prepare", device, dtype) is not None:
            return None
        capturing, kernels = _capturing(W_enc), registry.select("prepare", device, dtype, backend)
        variant = self._variant_of(kernels, pre_bias, precision)
        if variant != self._variant:
            again = variant == self._asked
            # Kept, so that its place in memory is not another's at the next use.
            self._asked, self._asked_with = variant, None if pre_bias is None else pre_bias.detach()
            if capturing or not again:
                return None
            self._kernels, self._precision = kernels, precision
            self._pre_bias = None if pre_bias is None else pre_bias.detach()
            self.refresh()
        self._look = (self._look + 1) % kernels.LOOKS
        if self._fingerprint(self._look) != self._made_from[self._look]:
            if capturing:
                return None
            self.refresh()
        if capturing:
            self._captured += [self.block] if all(block is not self.block for block in self._captured) else []
        elif self.block.is_cuda:
            # Another stream's memory, perhaps: not to be given away before this one is done with it.
            self.block.record_stream(torch.cuda.current_stream(self.block.device))
        return self.block

    @property
    def nbytes(self) -> int:
        """Memory held beside the weights."""
        return self.block.numel()

    def _variant_of(self, kernels: ModuleType, pre_bias: Tensor | None, precision: str) -> tuple[object, ...]:
        return (kernels.NAME, *kernels.variant(self.weights, pre_bias, precision))

    def _fingerprint(self, look: int) -> tuple[object, ...]:
        return (*self._kernels.fingerprint(self.weights, look), self.weights._version)


def _capturing(W_enc: Tensor) -> bool:
    """Whether what is started now becomes part of a CUDA graph."""
    return W_enc.is_cuda and torch.cuda.is_current_stream_capturing()


def prepare(W_enc: Tensor) -> PreparedWeights:
    """Prepare encoder weights for repeated use: `encode_topk(..., prepared=prepare(W_enc))`.

    Results do not depend on it, only speed, most of all for few rows. An SAE module does this by itself.

    Args:
        W_enc: [F, d], float32, bfloat16 or float16. Not an inference tensor, whose changes cannot be seen.

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
    """Whether `prepare` serves these weights here and now: a real tensor, nothing traced or captured, a backend.

    A CUDA graph whose author does not know of it would go on with it after the weights have changed.
    """
    return (
        type(W_enc) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(W_enc)
        and registry.serves("prepare", W_enc.device.type, W_enc.dtype)
        and not torch.is_autocast_enabled(W_enc.device.type)  # not to be asked of a meta tensor
        and not W_enc.is_inference()
        and not _capturing(W_enc)
    )


def block_of(
    prepared: PreparedWeights | None,
    W_enc: Tensor,
    pre_bias: Tensor | None,
    precision: str = "exact",
    backend: str | None = None,
) -> Tensor | None:
    """What the encoders' op takes; None where nothing was prepared, or where autocast will replace W_enc."""
    if prepared is None:
        return None
    if not isinstance(prepared, PreparedWeights):
        raise TypeError(f"prepared: got {type(prepared).__name__}, need what prepare(W_enc) returns")
    _check.tensor("W_enc", W_enc)
    if torch.is_autocast_enabled(W_enc.device.type) or not _fits(pre_bias, W_enc):
        return None
    return prepared.block_for(W_enc, pre_bias, precision, backend)


def _fits(pre_bias: Tensor | None, W_enc: Tensor) -> bool:
    """Whether the op will take it, which says what is wrong."""
    if pre_bias is None:
        return True
    return isinstance(pre_bias, Tensor) and pre_bias.shape == W_enc.shape[1:] and pre_bias.device == W_enc.device
