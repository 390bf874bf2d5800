"""BatchTopK's and Matryoshka's training steps from sparse entries: the largest pre-activations of the whole batch.

Codes are f = pre * n with n the decoder's norms, where the config rescales by them, and are decoded as f / n: n chooses
the entries, what is decoded is pre, and the losses' gradient with respect to n is 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from saekernels.adapters.patch import STATE, State
from saekernels.adapters.sae_lens.dead import NORMALISED, Batch, auxiliary
from saekernels.adapters.sae_lens.step import hidden_pre, mse, output, own_step, reason_for_own, reconstruct
from saekernels.ops import CsrCodes
from saekernels.sae.batch_topk import encode_batch_topk
from saekernels.sae.codes import Codes
from saekernels.sae.prefixes import decode_prefixes


@torch.compiler.disable  # type: ignore[untyped-decorator]
def batch_topk_step(module: Any, step_input: TrainStepInput) -> TrainStepOutput:
    """`BatchTopKTrainingSAE.training_forward_pass`."""
    return _step(module, step_input, [])


@torch.compiler.disable  # type: ignore[untyped-decorator]
def matryoshka_step(module: Any, step_input: TrainStepInput) -> TrainStepOutput:
    """`MatryoshkaBatchTopKTrainingSAE.training_forward_pass`."""
    return _step(module, step_input, list(module.cfg.matryoshka_widths))


def _step(module: Any, step_input: TrainStepInput, widths: list[int]) -> TrainStepOutput:
    x: Tensor = step_input.sae_in
    reason = reason_for_own(module, x) or _odd(module, x, widths)
    if reason is not None:
        return own_step(module, step_input, reason)
    state: State = module.__dict__[STATE]
    state.note_step()
    weights = state.weights.of(module)
    norms = weights.decoder_norms() if module.cfg.rescale_acts_by_decoder_norm else None
    batch = Batch(module, weights, module.process_sae_in(x), norms)
    csr, codes = _encode(batch, state)
    levels = decode_prefixes(csr, weights.W_dec, widths or [weights.n_latents])
    prefixes = [decoded + module.b_dec for decoded in levels.unbind(1)]
    out = reconstruct(module, prefixes[-1])
    losses = {"mse_loss": mse(module, out, x)}
    losses["auxiliary_reconstruction_loss"] = auxiliary(batch, step_input, out, prefixes, widths)
    module.update_topk_threshold(codes.values)
    for width, partial in zip(widths[:-1], prefixes, strict=False):
        losses[f"inner_mse_loss_{width}"] = mse(module, partial, x)
    found = output(step_input, codes, hidden_pre(module, batch.sae_in), out, losses)
    found.metrics["topk_threshold"] = module.topk_threshold
    return found


def _odd(module: Any, x: Tensor, widths: list[int]) -> str | None:
    """What this class's own code does in a way of its own."""
    latents = module.cfg.d_sae
    if module.cfg.normalize_activations in NORMALISED:
        return f"its inputs are normalised by {module.cfg.normalize_activations!r}"
    if not 1 <= int(module.cfg.k * len(x)) <= len(x) * latents:
        return f"it selects {int(module.cfg.k * len(x))} of {len(x) * latents} latents"
    if widths and (widths != sorted({*widths}) or widths[0] < 1 or widths[-1] != latents):
        return f"its widths are {widths}"
    return None


def _encode(batch: Batch, state: State) -> tuple[CsrCodes, Codes]:
    """Entries with the values pre, and codes with f; both differentiable."""
    x, module, norms = batch.sae_in, batch.module, batch.norms
    csr = encode_batch_topk(
        x,
        batch.weights.W_enc,
        module.b_enc,
        n=int(module.cfg.k * len(x)),
        scale=None if norms is None else norms.detach(),
        guess=state.memory.get("least"),
    )
    f = csr.values if norms is None else csr.values * norms.index_select(0, csr.indices)
    least = float(f.detach().min()) if f.numel() else 0.0
    state.memory["least"] = least if math.isfinite(least) else 0.0
    return csr, Codes(f, csr.indices, csr.offsets, x.shape[:-1], batch.weights.n_latents)
