"""Training SAEs of sae-lens in pairs, plain and accelerated, what a step of each leaves, and their trainer."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import saekernels as sk
from saekernels.adapters.patch import state_of

# (tokens, d_in, latents, k)
SHAPES = [(16, 16, 64, 3), (64, 48, 512, 8.5), (33, 24, 300, 0.5), (1, 8, 40, 4), (200, 20, 1024, 16)]
CLASSES: dict[str, dict[str, Any]] = {
    "topk": {},
    "topk, not rescaled": {"rescale_acts_by_decoder_norm": False, "apply_b_dec_to_input": False},
    "topk, as sparse tensors": {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False},
    "abstopk": {},
    "batchtopk": {},
    "batchtopk, not rescaled": {"rescale_acts_by_decoder_norm": False},
    "batchtopk, no b_dec": {"apply_b_dec_to_input": False, "aux_loss_coefficient": 0.3},
    "matryoshka_batchtopk": {},
    "matryoshka_batchtopk, not rescaled": {"rescale_acts_by_decoder_norm": False},
    "matryoshka_batchtopk, its own AuxK": {"use_matryoshka_aux_loss": True},
    "matryoshka_batchtopk, its own AuxK, not rescaled": {
        "use_matryoshka_aux_loss": True,
        "rescale_acts_by_decoder_norm": False,
    },
}
for mode in ("step", "tanh", "quadratic"):
    for to_input in (False, True):
        CLASSES[f"jumprelu, {mode}{', to its input' if to_input else ''}"] = {
            "jumprelu_sparsity_loss_mode": mode, "jumprelu_ste_to_input": to_input, "target_l0": 5,
            "pre_act_loss_coefficient": 0.01 if to_input else None, "jumprelu_bandwidth": 0.3,
        }  # fmt: skip
CLASSES |= {"standard": {}, "standard, no b_dec": {"apply_b_dec_to_input": False}, "gated": {}}
BATCH = ["batchtopk", "matryoshka_batchtopk"]
ONE_OF_EACH = ["topk", "abstopk", *BATCH, "jumprelu, step", "standard", "gated"]


def pair(name: str, shape: tuple[int, int, int, float], **more: Any) -> tuple[Any, Any, Tensor]:
    """(the tool's own, the same accelerated, a batch), with weights that are all used."""
    tokens, d, latents, k = shape
    architecture, options = name.split(",")[0], {"d_in": d, "d_sae": latents, **CLASSES.get(name, {}), **more}
    if "topk" in architecture:
        options["k"] = k if "batch" in architecture else max(1, int(k))
    if architecture.startswith("matryoshka"):
        options["matryoshka_widths"] = [latents // 8, latents // 4, latents]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind, config = pytest.importorskip("sae_lens").registry.get_sae_training_class(architecture)
        theirs = kind(config(**options)).train()
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(torch.randn_like(value) * 0.1)
        if architecture == "jumprelu":
            theirs.threshold.abs_().add_(0.2 * d**0.5 + 0.3)
        for name in {"standard": ["b_enc"], "gated": ["b_gate", "b_mag"]}.get(architecture, []):
            getattr(theirs, name).sub_(0.2 * d**0.5 + 0.2)
    return theirs, sk.accelerate(copy.deepcopy(theirs)), torch.randn(tokens, d)


def step(module: Any, x: Tensor, dead: Tensor | None = None, coefficient: float = 0.7) -> Any:
    """One step and its backward pass, from gradients of none."""
    from sae_lens.saes.sae import TrainStepInput

    module.zero_grad()
    coefficients = dict.fromkeys(module.get_coefficients(), coefficient)
    out = module.training_forward_pass(TrainStepInput(x, coefficients, dead, 0, False))
    out.loss.backward()
    return out


def near(ours: Tensor, theirs: Tensor, bound: float) -> None:
    """Within a bound of the largest number."""
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0, atol=bound * float(theirs.abs().max()) + 1e-12)


def same(ours: Any, theirs: Any, out: Any, own: Any) -> None:
    """Losses to 1e-6, gradients to 1e-5, and whatever a step leaves."""
    assert list(out.losses) == list(own.losses)
    for name, want in own.losses.items():
        near(out.losses[name].detach(), want.detach(), 1e-6)
    near(out.loss.detach(), own.loss.detach(), 1e-6)
    near(out.sae_out.detach(), own.sae_out.detach(), 1e-5)
    assert out.feature_acts.is_sparse == own.feature_acts.is_sparse
    near(out.feature_acts.to_dense().detach() + 0, own.feature_acts.to_dense().detach(), 1e-5)
    near((out.hidden_pre + 0).detach(), own.hidden_pre.detach(), 1e-5)
    for (name, value), other in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert (value.grad is None) == (other.grad is None), name
        if value.grad is not None:
            near(other.grad, value.grad, 1e-5)
    assert list(out.metrics) == list(own.metrics)
    for (name, value), other in zip(theirs.named_buffers(), ours.buffers(), strict=True):
        assert float(value) == pytest.approx(float(other), rel=1e-6), name


def own_steps(module: Any) -> dict[str, int]:
    """How many steps of an accelerated object ran the tool's own code, by the reason."""
    state = state_of(module)
    assert state is not None
    return dict(state.own_steps)


def trainer_of(sae: Any, tokens: int, window: int, steps: int = 1, batches: Any = None) -> Any:
    """The tool's trainer, for which latents are dead that were silent for more steps than the window."""
    from sae_lens import SAETrainer
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    config = SAETrainerConfig(
        total_training_samples=steps * tokens, train_batch_size_samples=tokens, lr=1e-3, lr_end=1e-3,
        dead_feature_window=window, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    return SAETrainer(config, sae, batches)
