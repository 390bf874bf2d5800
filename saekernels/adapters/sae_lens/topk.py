"""TopK's and AbsTopK's training step from sparse entries: the largest pre-activations of each row.

Codes are f = pre * n with n the decoder's norms, where the config rescales by them, and are decoded as f / n, as in
`batch_topk`.
"""

from __future__ import annotations

from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from saekernels.adapters.patch import STATE, State
from saekernels.adapters.sae_lens.dead import NORMALISED, Batch, auxiliary
from saekernels.adapters.sae_lens.step import hidden_pre, mse, output, reason_for_own, reconstruct
from saekernels.ops import decode, encode_topk
from saekernels.ops.sparse_maps import uniform_offsets
from saekernels.sae.codes import Codes
from saekernels.sae.entries import positive


def reason_for_own_topk(module: Any, x: Any) -> str | None:
    """Why a step on x has to be the tool's own; None where sparse entries give all that it asks for."""
    cfg = module.cfg
    if cfg.normalize_activations in NORMALISED:
        return f"its inputs are normalised by {cfg.normalize_activations!r}"
    if not 1 <= cfg.k <= cfg.d_sae:
        return f"it selects {cfg.k} of {cfg.d_sae} latents"
    return reason_for_own(module, x)


def topk_step(module: Any, step_input: TrainStepInput, activation: str) -> TrainStepOutput:
    """The class's `training_forward_pass`: activation "relu" for `TopKTrainingSAE`, "abs" for `AbsTopKTrainingSAE`."""
    x, cfg = step_input.sae_in, module.cfg
    state: State = module.__dict__[STATE]
    state.note_step()
    weights = state.weights.of(module)
    norms = weights.decoder_norms() if cfg.rescale_acts_by_decoder_norm else None
    batch = Batch(module, weights, module.process_sae_in(x), norms)
    scale = None if norms is None else positive(norms.detach())
    pre, indices = encode_topk(batch.sae_in, weights.W_enc, module.b_enc, k=cfg.k, scale=scale, activation=activation)
    out = reconstruct(module, decode(pre, indices, weights.W_dec, module.b_dec))
    losses = {"mse_loss": mse(module, out, x)}
    losses["auxiliary_reconstruction_loss"] = auxiliary(
        batch, step_input, out, [], [], "abs" if activation == "abs" else "none"
    )
    f = pre if norms is None else pre * norms[indices.long()]
    offsets = uniform_offsets(len(x), cfg.k, x.device)
    codes = Codes(f.flatten(), indices.flatten(), offsets, x.shape[:-1], weights.n_latents)
    found = output(step_input, codes, hidden_pre(module, batch.sae_in), out, losses)
    if cfg.use_sparse_activations and activation == "relu":
        found.feature_acts = _coo(f, indices, weights.n_latents)
    return found


def _coo(values: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    """[T, F]: entries as the sparse tensor that the tool's own encoder gives."""
    rows = torch.arange(len(indices), device=indices.device).repeat_interleave(indices.shape[1])
    places = torch.stack([rows, indices.flatten().long()])
    return torch.sparse_coo_tensor(places, values.flatten(), (len(indices), n_latents))
