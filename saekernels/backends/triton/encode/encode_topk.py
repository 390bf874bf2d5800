"""encode_topk on a GPU: sample, screen, certify, recompute what failed, rescore, select; no step asks the host."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.backends.triton.encode.certify import certify, cut
from saekernels.backends.triton.encode.dense import dense
from saekernels.backends.triton.encode.encoder_inputs import Encoder, encoder
from saekernels.backends.triton.encode.exact_rows import exact_rows
from saekernels.backends.triton.encode.rescore import rescore
from saekernels.backends.triton.encode.sample import sample
from saekernels.backends.triton.encode.sampling import Plan, plan
from saekernels.backends.triton.encode.scaled import scale_keys, values_of
from saekernels.backends.triton.encode.screen import screen
from saekernels.backends.triton.select import select
from saekernels.backends.triton.topk import chunks, topk


def encode_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    pre_bias: Tensor | None,
    k: int,
    activation: str,
    prepared: Tensor | None = None,
    *,
    precision: str = "exact",
    hint: Tensor | None = None,
    out: torch.dtype | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Values [T, k] in `out` or x.dtype and indices [T, k] int32, best first; see `saekernels.encode_topk`.

    hint: [T] or scalar float32, a guess of what at least k scores of a row reach; a wrong one costs time, not truth.
    """
    out = out or x.dtype
    if not x.shape[0]:
        return x.new_empty(0, k, dtype=out), torch.empty(0, k, dtype=torch.int32, device=x.device)
    of = encoder(x, W_enc, b_enc, pre_bias, precision, scale, prepared)
    planned = plan(W_enc.shape[0], k, of.growth)
    if planned is None:
        return _dense(of, k, activation, precision, out)
    return _screened(of, planned, k, activation, hint, out)


def _screened(
    of: Encoder, planned: Plan, k: int, activation: str, hint: Tensor | None, out: torch.dtype
) -> tuple[Tensor, Tensor]:
    absolute = activation == "abs"
    if hint is None:
        threshold = sample(of.screen.every(planned.step), planned.rank, absolute=absolute)
    else:
        threshold = hint.float().expand(of.x.shape[0]).contiguous()
    found = screen(of.screen, threshold, planned.capacity, per_latent=False, absolute=absolute)
    failed = cut(found, threshold, of.screen.vectors, k) if of.screen.rescored else certify(found, k)
    scored = found
    if of.factor is not None:
        scored = found._replace(scores=torch.empty_like(found.keys, dtype=torch.float32))
    if of.screen.rescored:
        rescore(of, scored, absolute=absolute)
    elif of.factor is not None:
        scale_keys(scored, of.factor, absolute=absolute)
    exact_rows(of, failed, scored, k, absolute=absolute)
    relu = activation == "relu"
    values, indices = select(found, k, out, relu=relu)
    return (values if of.factor is None else values_of(scored, indices, out, relu=relu)), indices


def _dense(of: Encoder, k: int, activation: str, precision: str, out: torch.dtype) -> tuple[Tensor, Tensor]:
    rows, latents = of.x.shape[0], of.W.shape[0]
    values = torch.empty(rows, k, dtype=out, device=of.x.device)
    indices = torch.empty(rows, k, dtype=torch.int32, device=of.x.device)
    exactly = of.exactly()._replace(float32_product="tf32" if precision == "fast" else "ieee")
    for part in chunks(rows, latents):
        pre = dense(exactly._replace(x=of.x[part]))
        compared = pre if of.factor is None else pre * of.factor
        _, chosen = topk(compared.abs() if activation == "abs" else compared, k)
        kept = pre.gather(1, chosen.long()) + 0.0
        values[part] = (kept.relu() if activation == "relu" else kept).to(out)
        indices[part] = chosen
    return values, indices
