"""JumpReLU's training step from sparse entries: those above their threshold, or within its band below."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from saekernels.adapters.density import is_dense, note
from saekernels.adapters.patch import STATE, State
from saekernels.adapters.sae_lens.step import (
    hidden_pre,
    mse,
    output,
    own_step,
    products,
    reason_for_own,
    reconstruct,
)
from saekernels.adapters.weights import CurrentWeights
from saekernels.ops import CsrCodes, decode_csr, encode_threshold
from saekernels.sae.codes import Codes, row_sums
from saekernels.sae.jumprelu import jump
from saekernels.sae.pre_act import shortfall, wide

_TOO_DENSE = "more than 1 in 10 pre-activations are above their threshold or within its band"


@torch.compiler.disable  # type: ignore[untyped-decorator]
def jumprelu_step(module: Any, step_input: TrainStepInput) -> TrainStepOutput:
    """`JumpReLUTrainingSAE.training_forward_pass`."""
    state: State = module.__dict__[STATE]
    x: Tensor = step_input.sae_in
    reason = reason_for_own(module, x) or _odd(module.cfg)
    if reason is None and is_dense(state, x, products(module), module.threshold - module.bandwidth / 2 - module.b_enc):
        reason = _TOO_DENSE
    return _step(module, step_input, state) if reason is None else own_step(module, step_input, reason)


def _odd(cfg: Any) -> str | None:
    """Settings that the tool's own code refuses, in its own words."""
    if cfg.jumprelu_sparsity_loss_mode not in ("step", "tanh", "quadratic"):
        return f"its sparsity loss is {cfg.jumprelu_sparsity_loss_mode!r}"
    if cfg.jumprelu_sparsity_loss_mode == "quadratic" and cfg.target_l0 is None:
        return "it has no target_l0"
    return None


def _step(module: Any, step_input: TrainStepInput, state: State) -> TrainStepOutput:
    with torch.no_grad():
        module.threshold.data.clamp_(min=0.0)
    x, weights, width = step_input.sae_in, state.weights.of(module), module.bandwidth
    sae_in = module.process_sae_in(x)
    threshold = module.threshold.to(sae_in.dtype)
    # A little lower, so that rounding loses no entry of the band: what is in it is decided per entry.
    low = threshold.detach().float()
    low = low - width / 2 - 8 * torch.finfo(sae_in.dtype).eps * (low + width)
    found = encode_threshold(sae_in, weights.W_enc, module.b_enc, low)
    latents = found.indices.long()
    note(state, latents.numel(), len(x) * weights.n_latents)
    state.note_step()
    at_entries = threshold.index_select(0, latents)
    values, active = jump(found.values, at_entries, width, to_input=module.cfg.jumprelu_ste_to_input)
    out = reconstruct(module, decode_csr(values, found.indices, found.offsets, weights.W_dec, module.b_dec))
    codes = Codes(values, found.indices, found.offsets, x.shape[:-1], weights.n_latents)
    losses = {
        "mse_loss": mse(module, out, x),
        "l0_loss": _sparsity(module, step_input, CsrCodes(values, *found[1:]), active),
    }
    if module.cfg.pre_act_loss_coefficient is not None:
        losses["pre_act_loss"] = _pre_act(module, step_input, weights, sae_in, found, threshold)
    return output(step_input, codes, hidden_pre(module, sae_in), out, losses)


def _sparsity(module: Any, step_input: TrainStepInput, codes: CsrCodes, active: Tensor) -> Tensor:
    """The mean over rows of what the mode makes of L0, or of tanh of the values; a scalar."""
    cfg, coefficient = module.cfg, step_input.coefficients["l0"]
    if cfg.jumprelu_sparsity_loss_mode == "tanh":
        norms = module.W_dec.norm(dim=1).index_select(0, codes.indices)
        terms = torch.tanh(cfg.jumprelu_tanh_scale * codes.values * norms)
        return coefficient * row_sums(terms, codes.offsets).mean()
    l0 = row_sums(active, codes.offsets)
    if cfg.jumprelu_sparsity_loss_mode == "quadratic":
        l0 = 2 / cfg.target_l0 * (l0 - cfg.target_l0) ** 2
    return (coefficient * l0).mean()


def _pre_act(
    module: Any, step_input: TrainStepInput, weights: CurrentWeights, sae_in: Tensor, found: CsrCodes, threshold: Tensor
) -> Tensor:
    """The tool's loss on dead latents, c / T * sum of relu(threshold - pre) * norm; a scalar."""
    dead = step_input.dead_neuron_mask
    if dead is None or not bool(dead.any()):
        return sae_in.new_tensor(0.0)
    loss = shortfall(
        found.values, found.indices, len(sae_in), wide(sae_in).mean(0), weights.W_enc, module.b_enc, threshold,
        dead.nonzero()[:, 0], module.W_dec.norm(dim=1),
    )  # fmt: skip
    return module.cfg.pre_act_loss_coefficient * loss.to(sae_in.dtype)
