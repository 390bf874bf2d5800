"""PAnnealTrainer's and GatedAnnealTrainer's losses, whose sparsity is a power p of the latents that falls in training.

When p falls, how the coefficient follows and what is kept for that is the tool's own code, which gets latents that know
their entries: of them it asks for sums of powers over rows, one product with the decoder, and which are never active.
A power p > 0 of 0 is 0, and its gradient ends in the ReLU before it, so that entries are all there is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from saekernels.adapters.dense_latents import LazyCodes
from saekernels.adapters.dictionary_learning.l1 import encode, encode_gates, reason_for_dense, reason_for_dense_gates
from saekernels.adapters.dictionary_learning.step import own_loss, weights_of
from saekernels.ops import CsrCodes, decode_csr
from saekernels.sae.codes import Codes


@torch.compiler.disable  # type: ignore[untyped-decorator]
def anneal_loss(trainer: Any, x: Tensor, step: Any, logging: bool = False) -> Any:
    """`PAnnealTrainer.loss`."""
    reason = reason_for_dense(trainer, x)
    if reason is not None:
        return own_loss(trainer, reason, x, step=step, logging=logging)
    weights = weights_of(trainer)
    csr = encode(trainer, weights, x)
    x_hat, f = decode_csr(*csr, weights.W_dec, trainer.ae.bias), _latents(csr, x, weights.n_latents)
    with _given(trainer.ae, forward=lambda *_, **__: (x_hat, f)):
        return type(trainer).loss(trainer, x, step, logging)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gated_anneal_loss(trainer: Any, x: Tensor, step: Any, logging: bool = False, **rest: Any) -> Any:
    """`GatedAnnealTrainer.loss`. The product of the gates with the decoder is of what the tool detaches itself."""
    reason = reason_for_dense_gates(trainer, x)
    if reason is not None:
        return own_loss(trainer, reason, x, step=step, logging=logging, **rest)
    weights = weights_of(trainer)
    csr, gates = encode_gates(trainer, weights, x)
    x_hat = decode_csr(*csr, weights.W_dec, trainer.ae.decoder_bias)
    f, f_gate = (_latents(one, x, weights.n_latents) for one in (csr, gates))
    with _given(trainer.ae, encode=lambda *_, **__: (f, f_gate), decode=lambda *_: x_hat):
        return type(trainer).loss(trainer, x, step, logging, **rest)


def _latents(csr: CsrCodes, x: Tensor, n_latents: int) -> LazyCodes:
    return LazyCodes.of(Codes(*csr, x.shape[:-1], n_latents))


@contextlib.contextmanager
def _given(ae: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """In here an accelerated dictionary's methods give what is known already."""
    own = {name: vars(ae)[name] for name in methods}
    vars(ae).update(methods)
    try:
        yield
    finally:
        vars(ae).update(own)
