"""Standard's and Gated's training steps, with L1 losses, from the entries that are active or whose gate is open."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from saekernels.adapters.density import is_dense, note
from saekernels.adapters.patch import STATE, State
from saekernels.adapters.sae_lens.step import (
    hidden_pre,
    hooked,
    mse,
    output,
    own_step,
    products,
    reason_for_own,
    reconstruct,
)
from saekernels.ops import CsrCodes, decode_csr, encode_threshold
from saekernels.sae.codes import Codes, row_sums
from saekernels.sae.gated import encode_gated


@torch.compiler.disable  # type: ignore[untyped-decorator]
def standard_step(module: Any, step_input: TrainStepInput) -> TrainStepOutput:
    """`StandardTrainingSAE.training_forward_pass`."""
    state: State = module.__dict__[STATE]
    x: Tensor = step_input.sae_in
    reason = reason_for_own(module, x)
    if reason is None and module.cfg.lp_norm != 1:
        reason = f"its lp_norm is {module.cfg.lp_norm}"
    if reason is None and is_dense(state, x, products(module), -module.b_enc):
        reason = "more than 1 in 10 latents are active"
    if reason is not None:
        return own_step(module, step_input, reason)
    weights = state.weights.of(module)
    sae_in = module.process_sae_in(x)
    found = encode_threshold(sae_in, weights.W_enc, module.b_enc, 0.0)
    note(state, found.indices.numel(), len(x) * weights.n_latents)
    state.note_step()
    codes = Codes(*found, x.shape[:-1], weights.n_latents)
    out = reconstruct(module, decode_csr(*found, weights.W_dec, module.b_dec))
    losses = {"mse_loss": mse(module, out, x), "l1_loss": _l1(module, step_input, found)}
    return output(step_input, codes, hidden_pre(module, sae_in), out, losses)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gated_step(module: Any, step_input: TrainStepInput) -> TrainStepOutput:
    """`GatedTrainingSAE.training_forward_pass`. Only open gates let a latent be active."""
    state: State = module.__dict__[STATE]
    x: Tensor = step_input.sae_in
    reason = reason_for_own(module, x)
    # The tool's auxiliary path reads the input as it comes, past hooks and normalisation.
    if reason is None and hooked(module.hook_sae_input):
        reason = "a hook is on its input"
    if reason is None and module.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm"):
        reason = f"its inputs are normalised by {module.cfg.normalize_activations!r}"
    if reason is None and is_dense(state, x, products(module), -module.b_gate):
        reason = "more than 1 in 10 gates are open"
    if reason is not None:
        return own_step(module, step_input, reason)
    weights = state.weights.of(module)
    sae_in = module.process_sae_in(x)
    found, gates = encode_gated(sae_in, weights.W_enc, module.b_gate, module.r_mag, module.b_mag)
    note(state, found.indices.numel(), len(x) * weights.n_latents)
    state.note_step()
    out = reconstruct(module, decode_csr(*found, weights.W_dec, module.b_dec))
    via_gates = decode_csr(*gates, weights.W_dec, module.b_dec)
    losses = {
        "mse_loss": mse(module, out, x),
        "l1_loss": _l1(module, step_input, gates),
        "auxiliary_reconstruction_loss": (via_gates - x).pow(2).sum(dim=-1).mean(),
    }
    codes = Codes(*found, x.shape[:-1], weights.n_latents)
    return output(step_input, codes, hidden_pre(module, sae_in), out, losses)


def _l1(module: Any, step_input: TrainStepInput, codes: CsrCodes) -> Tensor:
    """The mean over rows of the sum of values times their decoder rows' norms, times the coefficient; a scalar."""
    terms = codes.values * module.W_dec.norm(dim=1).index_select(0, codes.indices)
    return (step_input.coefficients["l1"] * row_sums(terms, codes.offsets)).mean()
