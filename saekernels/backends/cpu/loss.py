"""Cross-entropies and KL of two hidden states under one head, on the native CPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.backends.cpu.native import module, vector, view


def linear_ce_kl(
    h_p: Tensor,
    h_q: Tensor,
    W_U: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ce_p, ce_q, KL(p || q) and top-1 agreement, each [T] float32."""
    targets = targets.contiguous()
    ce_p, ce_q, kl, agree = (torch.empty(h_p.shape[0], dtype=torch.float32, device="cpu") for _ in range(4))
    module().linear_ce_kl(
        view(h_p),
        view(h_q),
        view(W_U),
        vector(bias),
        targets.data_ptr(),
        softcap or 0.0,
        ignore_index,
        torch.get_num_threads(),
        ce_p.data_ptr(),
        ce_q.data_ptr(),
        kl.data_ptr(),
        agree.data_ptr(),
    )
    return ce_p, ce_q, kl, agree
