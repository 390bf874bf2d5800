"""linear_ce_kl: next-token cross-entropy of residual streams and the KL of each from the first, without logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekernels.backends import registry
from saekernels.ops import _check
from saekernels.ops._library import OPS, Op, padded, register


class LinearCeKl(NamedTuple):
    """Per position: ce_p [T], and as h_q has them, [T] or [R, T], ce_q and kl = KL(p || q) in nats; top1_agree is 1.0
    where the argmaxes agree else 0.0, and NaN where a logit of either is NaN."""

    ce_p: Tensor
    ce_q: Tensor
    kl: Tensor
    top1_agree: Tensor


def linear_ce_kl(
    h_p: Tensor,
    h_q: Tensor,
    W_U: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
    backend: str | None = None,
) -> LinearCeKl:
    """Compare two streams under one unembedding, or several with the first, whose logits are then computed once.

    Logits are z = h @ W_U.T + bias, then softcap * tanh(z / softcap) where a softcap is given. Neither
    logits nor probabilities of shape [T, V] exist, forward or backward. A row's result does not depend on the rest of
    the batch.

    Products of bfloat16 inputs are exact and summed in float32. On CPUs that multiply bfloat16 (AMX, AVX512-BF16) the
    order of that sum is the instruction's: results there differ from those of other SIMD levels within the rounding of
    a float32 sum of d terms. Backward rounds each logit's gradient to bfloat16 there before it multiplies it with W_U
    and h, as autograd through bfloat16 logits does; logits themselves are not rounded. Triton does likewise.
    float16 has not the range of a logit's gradient: on Triton those products are of tf32, which has all digits of the
    inputs and 10 bits of the gradient's fraction.

    Args:
        h_p: [T, d], the clean stream after the final norm; float32, bfloat16, float16, or float64 (reference only).
        h_q: [T, d], the stream compared with it, or [R, T, d] for R >= 1 of them; h_p's dtype. A stream's results have
            the same bits whatever others there are. Backward takes one after the other.
        W_U: [V, d]; h_p's dtype.
        targets: [T] int64, each in [0, V) or equal to ignore_index.
        bias: [V], h_p's dtype or float32.
        softcap: the cap of Gemma-like heads, positive, or None.
        ignore_index: a target with this value gives 0 in all four results and no gradient.
        backend: its name (see `saekernels info`), or None for the best one that serves the inputs.

    Returns:
        LinearCeKl: ce_p [T] and three of [T] or [R, T], float32 (float64 for float64 inputs). ce_p, ce_q and kl are
        differentiable, once, with respect to h_p, h_q, W_U and bias; backward starts from their values, which must not
        change before it.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    return LinearCeKl(
        *_linear_ce_kl(h_p, h_q, W_U, targets, bias, softcap=softcap, ignore_index=ignore_index, backend=backend)
    )


@dataclass(slots=True)
class LinearCeKlForward(Op):
    """saekernels::linear_ce_kl."""

    MATRICES = ("h_p", "h_q", "W_U")

    h_p: Tensor
    h_q: Tensor
    W_U: Tensor
    targets: Tensor
    bias: Tensor | None = None
    _: KW_ONLY
    softcap: float | None = None
    ignore_index: int = -100
    backend: str | None = None

    def check(self) -> None:
        h_p, h_q, W_U, targets, softcap = self.h_p, self.h_q, self.W_U, self.targets, self.softcap
        _check.dtype_in("h_p", h_p, _check.FLOATS)
        _check.dtype_of("h_q", h_q, "h_p", h_p)
        _check.dtype_of("W_U", W_U, "h_p", h_p)
        _check.dtype_in("targets", targets, (torch.int64,))
        _check.matrix("W_U", W_U, "V", "d")
        if h_p.dim() != 2:
            raise ValueError(f"h_p: got shape {list(h_p.shape)}, need [T, d]")
        shape = [("T", h_p.shape[0]), ("d", W_U.shape[1])]
        _check.shape("h_p", h_p, shape)
        if h_q.dim() == 3:
            if h_q.shape[0] < 1:
                raise ValueError(f"h_q: got shape {list(h_q.shape)}, need [T, d] or [R, T, d] with R at least 1")
            shape = [("R", h_q.shape[0]), *shape]
        _check.shape("h_q", h_q, shape)
        _check.shape("targets", targets, shape[-2:-1])
        _check.vector_beside("bias", self.bias, ("V", W_U.shape[0]), W_U)
        if softcap is not None and not 0 < softcap < float("inf"):
            raise ValueError(f"softcap: got {softcap}, need a positive finite number or None")

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _check_targets(self.targets, self.W_U.shape[0], self.ignore_index)
        kernels = registry.select("linear_ce_kl", self.h_p.device.type, self.h_p.dtype, self.backend)
        head = (self.W_U, self.targets, self.bias, self.softcap, self.ignore_index)
        return kernels.linear_ce_kl(self.h_p, self.h_q, *head)

    def empty(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = torch.promote_types(self.h_p.dtype, torch.float32)
        ce_p = self.h_p.new_empty(self.h_p.shape[0], dtype=wide)
        ce_q, kl, agree = (self.h_q.new_empty(self.h_q.shape[:-1], dtype=wide) for _ in range(3))
        return ce_p, ce_q, kl, agree

    def save(self, ctx: Any, output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[3])
        ctx.softcap, ctx.ignore_index = self.softcap, self.ignore_index
        ctx.save_for_backward(*output[:3], self.h_p, self.h_q, self.W_U, self.targets, self.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        for_p, for_q, for_W, _, for_bias = padded(ctx.needs_input_grad[:5], 5, False)
        d_hp, d_hq, d_W, d_bias = _gradients(
            grads[:3], ctx.saved_tensors, ctx.softcap, ctx.ignore_index, for_p or for_q, for_W, for_bias
        )
        return (
            d_hp if for_p else None,
            d_hq if for_q else None,
            d_W if for_W else None,
            None,
            d_bias if for_bias else None,
        )


@dataclass(slots=True)
class LinearCeKlBackward(Op):
    """saekernels::linear_ce_kl_backward: the gradients of h_p, h_q, W_U and bias, of size 0 where not needed."""

    grad_ce_p: Tensor
    grad_ce_q: Tensor
    grad_kl: Tensor
    ce_p: Tensor
    ce_q: Tensor
    kl: Tensor
    h_p: Tensor
    h_q: Tensor
    W_U: Tensor
    targets: Tensor
    bias: Tensor | None
    softcap: float | None
    ignore_index: int
    need_h: bool
    need_W: bool
    need_bias: bool

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kernels = registry.select("linear_ce_kl_backward", self.h_p.device.type, self.h_p.dtype)
        return kernels.linear_ce_kl_backward(*(getattr(self, field.name) for field in fields(self)))

    def empty(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        T_d, V_d = self.h_p.shape, self.W_U.shape
        d_hp, d_hq = (self.h_p.new_empty(T_d if self.need_h else 0) for _ in range(2))
        d_W = self.W_U.new_empty(V_d if self.need_W else 0)
        like = self.W_U if self.bias is None else self.bias
        return d_hp, d_hq, d_W, like.new_empty(V_d[0] if self.need_bias else 0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("linear_ce_kl: a second derivative was asked for; it is differentiable once")


def _gradients(grads: Sequence[Tensor], saved: Sequence[Any], *how: Any) -> tuple[Tensor, ...]:
    """Of h_p, h_q, W_U and bias. Streams one after the other: their shares of all but h_q add up."""
    h_q = saved[4]
    backward = OPS.linear_ce_kl_backward
    if h_q.dim() == 2:
        return backward(*grads, *saved, *how)
    grad_p, ce_p, h_p, rest = grads[0], saved[0], saved[3], saved[5:]
    parts = []
    for grad_q, grad_kl, ce_q, kl, stream in zip(*grads[1:], *saved[1:3], h_q, strict=True):
        parts.append(backward(grad_p, grad_q, grad_kl, ce_p, ce_q, kl, h_p, stream, *rest, *how))
        grad_p = torch.zeros_like(grad_p)  # ce_p counts once
    d_hp, d_hq, d_W, d_bias = zip(*parts, strict=True)
    return sum(d_hp[1:], d_hp[0]), torch.stack(d_hq), sum(d_W[1:], d_W[0]), sum(d_bias[1:], d_bias[0])


def _check_targets(targets: Tensor, vocabulary: int, ignore_index: int) -> None:
    if targets.device.type != "cpu":
        return
    wrong = targets[(targets != ignore_index) & ((targets < 0) | (targets >= vocabulary))]
    if wrong.numel():
        raise ValueError(
            f"targets: got {int(wrong[0])}, need 0 <= target < {vocabulary}, the rows of W_U, or {ignore_index}"
        )


_linear_ce_kl = register("linear_ce_kl", LinearCeKlForward)
register("linear_ce_kl_backward", LinearCeKlBackward)
