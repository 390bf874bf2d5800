"""What training steps share: when the tool's own code has to run, what stays its own, and what a step returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from torch import Tensor

from saekernels.adapters.dense_latents import LazyCodes, LazyTensor
from saekernels.adapters.patch import STATE, State
from saekernels.sae.codes import Codes


def hooked(*points: Any) -> bool:
    """Whether a hook is on one of these points."""
    return any(point._forward_hooks or point._backward_hooks or point._forward_pre_hooks for point in points)


def usual(module: Any) -> bool:
    """Whether the activation function is the one that the configuration asks for."""
    expected = module.get_activation_fn()
    return type(module.activation_fn) is type(expected) and vars(module.activation_fn).get("k") == vars(expected).get(
        "k"
    )


def reason_for_own(module: Any, x: Any) -> str | None:
    """Why a step on x has to be the tool's own; None where sparse entries give all that it asks for."""
    state: State = module.__dict__[STATE]
    kind = type(module)
    if not usual(module):
        return "its activation function is not the one of its config"
    if hooked(module.hook_sae_acts_pre, module.hook_sae_acts_post):
        return "a hook is on its latents"
    replaced = [name for name in vars(module) if name not in state.methods and callable(getattr(kind, name, None))]
    if replaced:
        return f"its {replaced[0]!r} was replaced"
    if isinstance(x, Tensor):
        if torch.is_autocast_enabled(x.device.type):
            return "autocast is on"
        if x.dim() != 2:
            return "its input is not [tokens, d_in]"
    if not state.fits(module, x, dtype=module.dtype):
        return "its input or its weights are none that the kernels serve"
    return None


def own_step(module: Any, step_input: TrainStepInput, reason: str) -> TrainStepOutput:
    """The tool's own step, counted and, the first time for a reason, logged."""
    state: State = module.__dict__[STATE]
    state.note_own_step(type(module).__name__, reason)
    return type(module).training_forward_pass(module, step_input)


def products(module: Any) -> Callable[[Tensor], Tensor]:
    """From inputs [rows, d_in] to the encoder's products [rows, F] of them, without its bias."""

    def of(x: Tensor) -> Tensor:
        rows = module.run_time_activation_norm_fn_in(x.to(module.dtype))
        return (rows - module.b_dec * module.cfg.apply_b_dec_to_input) @ module.W_enc

    return of


def reconstruct(module: Any, decoded: Tensor) -> Tensor:
    """The reconstruction from the decoder's output [T, d_in]: the rest is the tool's own code."""
    out = module.hook_sae_recons(decoded)
    return module.reshape_fn_out(module.run_time_activation_norm_fn_out(out), module.d_head)


def mse(module: Any, out: Tensor, x: Tensor) -> Tensor:
    """The tool's reconstruction loss: a scalar, summed over d_in and averaged over tokens."""
    return module.mse_loss_fn(out, x).sum(dim=-1).mean()


def hidden_pre(module: Any, sae_in: Tensor) -> LazyTensor:
    """[..., F]: the pre-activations that the tool returns beside its codes, computed for who reads them."""

    def make() -> Tensor:
        if hasattr(module, "r_mag"):
            return sae_in @ (module.W_enc * module.r_mag.exp()) + module.b_mag
        pre: Tensor = sae_in @ module.W_enc + module.b_enc
        return pre * module.W_dec.norm(dim=-1) if getattr(module.cfg, "rescale_acts_by_decoder_norm", False) else pre

    return LazyTensor(make, sae_in, (*sae_in.shape[:-1], module.W_enc.shape[1]))


def output(
    step_input: TrainStepInput, codes: Codes, hidden: Tensor, out: Tensor, losses: dict[str, Tensor]
) -> TrainStepOutput:
    """What a step returns: the loss is the sum of the losses; latents are dense for who reads more than activity."""
    return TrainStepOutput(
        sae_in=step_input.sae_in,
        sae_out=out,
        feature_acts=LazyCodes.of(codes),
        hidden_pre=hidden,
        loss=torch.stack([*losses.values()]).sum(),
        losses=losses,
    )


def sample(module: Any, x: Tensor) -> Tensor:
    """What a step makes of a few rows, every other latent dead: the reconstruction and the losses, and no trace of it.

    An accelerated object takes the sparse way here, however dense its codes are.
    """
    state: State | None = module.__dict__.get(STATE)
    small = {name: value for name, value in module.state_dict(keep_vars=True).items() if value.dim() < 2}
    kept = {name: value.detach().clone() for name, value in small.items()}
    if state is not None:
        state.memory = {"density": 0.0}
    normalised = module.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm")
    coefficients = {
        name: one.value if isinstance(one, TrainCoefficientConfig) else one
        for name, one in module.get_coefficients().items()
    }
    dead = None if normalised else torch.arange(module.cfg.d_sae, device=x.device) % 2 == 0
    try:
        out = module.training_forward_pass(TrainStepInput(x, coefficients, dead, 0, False))
    finally:
        for name, value in kept.items():
            getattr(module, name).data.copy_(value)
        if state is not None:
            state.memory = {}
    return torch.cat([out.sae_out.flatten(), torch.stack([*out.losses.values()])])
