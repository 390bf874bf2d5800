"""Which objects of sae-lens 6.54 are served, and SAEs, transcoders and TopK training SAEs on sparse codes.

What happens to an activation before the encoder and after the decoder (dtype, reshaping, normalisation, biases, hooks)
stays the tool's own code. Hooks on the latents get dense latents, by the tool's own way; else `forward` makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sae_lens.saes import (
    abstopk_sae,
    batchtopk_sae,
    gated_sae,
    jumprelu_sae,
    matryoshka_batchtopk_sae,
    sae,
    standard_sae,
    topk_sae,
    transcoder,
)
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from saekernels.adapters.dense_latents import dense_of, entries_of
from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.optimizers import Held
from saekernels.adapters.patch import STATE, State, kind_of
from saekernels.adapters.sae_lens.batch_topk import batch_topk_step, matryoshka_step
from saekernels.adapters.sae_lens.jumprelu import jumprelu_step
from saekernels.adapters.sae_lens.l1 import gated_step, standard_step
from saekernels.adapters.sae_lens.step import hidden_pre, hooked, reconstruct, sample, usual
from saekernels.adapters.sae_lens.topk import reason_for_own_topk, topk_step
from saekernels.adapters.weights import CurrentWeights, LiveWeights, Rows, Settings
from saekernels.sae.activations import (
    AbsTopK,
    Activation,
    ConstantNorm,
    Gated,
    JumpReLU,
    LayerNorm,
    Normalization,
    ReLU,
    TopK,
)
from saekernels.sae.codes import Codes

PACKAGE, VERSIONS = "sae-lens", ("6.54",)

_BIASES = {"b_enc": "b_enc", "b_dec": "b_dec"}
_JUMP = {**_BIASES, "threshold": "threshold"}
_GATED = {"b_dec": "b_dec", "b_gate": "b_gate", "b_mag": "b_mag", "r_mag": "r_mag"}
_SAES: dict[type, tuple[Callable[[Any], Activation], dict[str, str]]] = {
    standard_sae.StandardSAE: (lambda _: ReLU(), _BIASES),
    topk_sae.TopKSAE: (lambda cfg: TopK(cfg.k), _BIASES),
    abstopk_sae.AbsTopKSAE: (lambda cfg: AbsTopK(cfg.k), _BIASES),
    jumprelu_sae.JumpReLUSAE: (lambda _: JumpReLU(), _JUMP),
    gated_sae.GatedSAE: (lambda _: Gated(), _GATED),
    topk_sae.TopKTrainingSAE: (lambda cfg: TopK(cfg.k), _BIASES),
    abstopk_sae.AbsTopKTrainingSAE: (lambda cfg: AbsTopK(cfg.k), _BIASES),
}
_TRANSCODERS: dict[type, tuple[Callable[[Any], Activation], dict[str, str]]] = {
    transcoder.Transcoder: (lambda _: ReLU(), _BIASES),
    transcoder.SkipTranscoder: (lambda _: ReLU(), _BIASES),
    transcoder.JumpReLUTranscoder: (lambda _: JumpReLU(), _JUMP),
    transcoder.JumpReLUSkipTranscoder: (lambda _: JumpReLU(), _JUMP),
}
# Of these the training step is served, and nothing else.
_STEPS: dict[type, tuple[Callable[[Any, Any], Any], dict[str, str]]] = {
    batchtopk_sae.BatchTopKTrainingSAE: (batch_topk_step, _BIASES),
    matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE: (matryoshka_step, _BIASES),
    jumprelu_sae.JumpReLUTrainingSAE: (jumprelu_step, _JUMP),
    standard_sae.StandardTrainingSAE: (standard_step, _BIASES),
    gated_sae.GatedTrainingSAE: (gated_step, _GATED),
}
# The scale of "expected_average_only_in" is not in the object, whose own forward takes inputs as they are.
_NORMALIZATIONS: dict[str, Normalization | None] = {
    "none": None,
    "expected_average_only_in": None,
    "layer_norm": LayerNorm(),
    "constant_norm_rescale": ConstantNorm(),
}
_REASONS = {
    "BatchTopKTrainingSAE": "it selects over the whole batch; saved for inference it is a JumpReLUSAE, which is served",
    "MatryoshkaBatchTopKTrainingSAE": "it selects over the whole batch and decodes every prefix of the latents",
    "StandardTrainingSAE": "its codes are dense while it trains; saved for inference it is served",
    "GatedTrainingSAE": "it has an auxiliary path while it trains; saved for inference it is served",
    "JumpReLUTrainingSAE": "its thresholds are being trained; saved for inference it is served",
    "TemporalSAE": "its latents are predicted by attention over time",
    "MatchingPursuitSAE": "it selects latents one after the other",
    "MatchingPursuitTrainingSAE": "it selects latents one after the other",
}


def known(module: object) -> bool:
    """Whether this is an object of the tool."""
    return isinstance(module, sae.SAE | SAETrainer)


def classes() -> list[type]:
    """The classes whose objects are served."""
    return [*_SAES, *_TRANSCODERS, *_STEPS]


def held(trainer: Any) -> Held | None:
    """What of a trainer is accelerated: its SAE; None for an SAE."""
    if not isinstance(trainer, SAETrainer):
        return None

    def put(optimizers: Sequence[torch.optim.Optimizer]) -> None:
        (trainer.optimizer,) = optimizers

    return Held([trainer.sae], [trainer.optimizer], put, [trainer.lr_scheduler])


def plan(module: Any) -> State:
    """How to patch this object. Raises NotAccelerated with the reason where it cannot be."""
    kind = kind_of(module)
    if kind not in classes():
        raise _refusal(kind)
    how, biases = _SAES.get(kind) or _TRANSCODERS.get(kind) or _STEPS[kind]
    weights = LiveWeights(Rows("W_enc", turned=True), Rows("W_dec", turned=False), biases)
    if kind in _STEPS:
        return State("sae_lens", weights, {"training_forward_pass": how}, sample)
    methods: dict[str, Callable[..., Any]] = {"encode": _encode, "decode": _decode}
    if issubclass(kind, sae.TrainingSAE):
        methods = {"encode_with_hidden_pre": _encode_with_hidden_pre, "decode": _decode}
        methods["training_forward_pass"] = _training_forward_pass
    methods["forward"] = _forward_transcoder if kind in _TRANSCODERS else _forward
    return State("sae_lens", weights, methods, _sample_of_topk if issubclass(kind, sae.TrainingSAE) else None)


def _refusal(kind: type) -> NotAccelerated:
    reason = _REASONS.get(kind.__name__, "it is a class of its own, whose maths is not known")
    return NotAccelerated(f"{kind.__name__}: {reason}")


def settings(module: Any) -> Settings:
    """What the object computes now. Raises NotAccelerated, with the reason, where that has no SAE's form."""
    kind, cfg = type(module).__name__, module.cfg
    made = kind_of(module)
    if made in _STEPS:
        raise _refusal(made)
    make, _ = _SAES.get(made) or _TRANSCODERS[made]
    transcoder = made in _TRANSCODERS
    if cfg.normalize_activations not in _NORMALIZATIONS:
        raise NotAccelerated(f"{kind}: its inputs are normalised by {cfg.normalize_activations!r}, which is not served")
    normalization = _NORMALIZATIONS[cfg.normalize_activations]
    if transcoder and normalization is not None:
        raise NotAccelerated(f"{kind}: a transcoder does not undo {cfg.normalize_activations!r}, as an SAE does")
    if module.use_error_term:
        raise NotAccelerated(f"{kind}: it adds its error (use_error_term); give the splice error_term=True")
    if not usual(module):
        raise NotAccelerated(f"{kind}: its activation function is not the one of its config")
    return Settings(
        make(cfg),
        "b_dec" if cfg.apply_b_dec_to_input and not transcoder else "none",
        normalization,
        bool(getattr(cfg, "rescale_acts_by_decoder_norm", False)),
        None if getattr(module, "W_skip", None) is None else "W_skip",
        config=cfg.to_dict(),
    )


def _weights(module: Any) -> CurrentWeights:
    state: State = module.__dict__[STATE]
    return state.weights.of(module, rescale=bool(getattr(module.cfg, "rescale_acts_by_decoder_norm", False)))


def _codes(module: Any, sae_in: Tensor) -> Codes:
    kind = kind_of(module)
    make, _ = _SAES.get(kind) or _TRANSCODERS[kind]
    codes = _weights(module).encode(sae_in, make(module.cfg))
    if codes.offsets is not None:
        module.__dict__[STATE].note(len(codes.values), codes.tokens, codes.n_latents)
    return codes


def _plain(module: Any) -> bool:
    """Whether the latents are what the configuration says: no hook on what comes before them, the usual activation."""
    return usual(module) and not hooked(module.hook_sae_acts_pre)


def _served(module: Any, x: Any) -> bool:
    state: State = module.__dict__[STATE]
    width = None
    if isinstance(x, Tensor) and x.dim() > 1 and module.hook_z_reshaping_mode:
        width = x.shape[-1] * x.shape[-2]
    return _plain(module) and state.fits(module, x, width=width, dtype=module.dtype)


def _encode(module: Any, x: Tensor) -> Tensor:
    if not _served(module, x):
        return type(module).encode(module, x)
    codes = _codes(module, module.process_sae_in(x))
    return module.hook_sae_acts_post(dense_of(codes))


def _encode_with_hidden_pre(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    if not _served(module, x) or getattr(module.cfg, "use_sparse_activations", False):
        return type(module).encode_with_hidden_pre(module, x)
    sae_in = module.process_sae_in(x)
    codes = _codes(module, sae_in)
    return module.hook_sae_acts_post(dense_of(codes)), hidden_pre(module, sae_in)


def _decode(module: Any, feature_acts: Tensor) -> Tensor:
    codes = entries_of(feature_acts)
    state: State = module.__dict__[STATE]
    # Who holds differentiable dense latents may ask for their gradient, which only a dense product gives.
    if codes is None or (feature_acts.requires_grad and not state.trusted):
        return type(module).decode(module, feature_acts)
    return _decode_codes(module, codes)


def _decode_codes(module: Any, codes: Codes) -> Tensor:
    decoded = _weights(module).decode(codes, module.b_dec)
    return module.hook_sae_recons(decoded) if kind_of(module) in _TRANSCODERS else reconstruct(module, decoded)


def _reconstruct(module: Any, x: Tensor) -> Tensor:
    return _decode_codes(module, _codes(module, module.process_sae_in(x)))


def _forward(module: Any, x: Tensor) -> Tensor:
    if hooked(module.hook_sae_acts_post) or not _served(module, x):
        return type(module).forward(module, x)
    out = _reconstruct(module, x)
    if module.use_error_term:
        with torch.no_grad():
            clean = out.detach()
            if hooked(module.hook_sae_input, module.hook_sae_recons):
                with sae._disable_hooks(module):
                    clean = _reconstruct(module, x)
            error = module.hook_sae_error(x - clean)
        out = out + error
    return module.hook_sae_output(out)


def _forward_transcoder(module: Any, x: Tensor) -> Tensor:
    if hooked(module.hook_sae_acts_post) or not _served(module, x):
        return type(module).forward(module, x)
    out = _reconstruct(module, x)
    skip = getattr(module, "W_skip", None)
    return out if skip is None else out + x @ skip.T.to(x.device)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _training_forward_pass(module: Any, step_input: Any) -> Any:
    """The whole step from sparse entries, or the tool's own, in which as much as can be is still served.

    That one asks for no gradient of dense latents.
    """
    state: State = module.__dict__[STATE]
    reason = reason_for_own_topk(module, step_input.sae_in)
    if reason is None:
        return topk_step(module, step_input, "abs" if kind_of(module) is abstopk_sae.AbsTopKTrainingSAE else "relu")
    state.note_own_step(type(module).__name__, reason)
    state.trusted = not hooked(module.hook_sae_acts_post)
    try:
        return type(module).training_forward_pass(module, step_input)
    finally:
        state.trusted = False


def _sample_of_topk(module: Any, x: Tensor) -> Tensor:
    """What a step makes of a few rows, after what `forward` does: both are served."""
    return torch.cat([module(x).flatten(), sample(module, x)])
