"""The config of a SAELens checkpoint: its fields in the names used since 6.0, and what they stand for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from saekernels.formats.config import Config, read_json, text, told
from saekernels.formats.files import FormatError
from saekernels.sae.activations import (
    AbsTopK,
    ConstantNorm,
    Gated,
    JumpReLU,
    LayerNorm,
    Normalization,
    ReLU,
    Scale,
    TopK,
)
from saekernels.sae.metadata import Metadata

# architecture -> (activation, is a transcoder, has a skip connection)
ARCHITECTURES: dict[str, tuple[type, bool, bool]] = {
    "standard": (ReLU, False, False),
    "topk": (TopK, False, False),
    "abstopk": (AbsTopK, False, False),
    "jumprelu": (JumpReLU, False, False),
    "gated": (Gated, False, False),
    "transcoder": (ReLU, True, False),
    "skip_transcoder": (ReLU, True, True),
    "jumprelu_transcoder": (JumpReLU, True, False),
    "jumprelu_skip_transcoder": (JumpReLU, True, True),
}
# Configs of the layout since 6.0 name their architecture; these fields belong to none that could go without.
_NEEDS_ARCHITECTURE = ("metadata", "k", "d_out", "rescale_acts_by_decoder_norm")
LAYER_NORM = LayerNorm()
# Of the model and the text; kept beside what `Metadata` has a field for.
_KEPT = (
    "hf_hook_name", "hf_hook_name_out", "hook_layer", "hook_point_layer", "model_class_name", "seqpos_slice",
    "exclude_special_tokens", "neuronpedia_id", "sae_lens_version", "sae_lens_training_version", "training_tokens",
    "reshape_activations", "sequence_separator_token", "disable_concat_sequences",
)  # fmt: skip
_NAMED = (
    "model_name", "hook_name", "hook_name_out", "hook_head_index", "prepend_bos", "context_size", "dataset_path",
    "model_from_pretrained_kwargs",
)  # fmt: skip
# Where it is computed, and how configs from before 6.0 say that it was trained.
_WITHOUT_EFFECT = """
    device dataset_trust_remote_code streaming is_dataset_tokenized expansion_factor decoder_bias_init_method
    n_batches_in_buffer store_batch_size store_batch_size_prompts train_batch_size train_batch_size_tokens
    use_cached_activations cached_activations_path seed lr lr_scheduler_name lr_warm_up_steps lr_end
    lr_decay_steps n_restart_cycles adam_beta1 adam_beta2 l1_coefficient lp_norm l1_warm_up_steps
    use_ghost_grads feature_sampling_window feature_sampling_method resample_batches feature_reinit_scale
    dead_feature_window dead_feature_threshold dead_feature_estimation_method n_eval_batches log_to_wandb
    eval_batch_size_prompts wandb_project wandb_id run_name wandb_entity wandb_log_frequency resume
    eval_every_n_wandb_logs n_checkpoints checkpoint_path verbose normalize_sae_decoder noise_factor
    mse_loss_normalization decoder_heuristic_init init_encoder_as_decoder_transpose
    scale_sparsity_penalty_by_decoder_norm decoder_orthogonal_init autocast autocast_lm compile_llm compile_sae
    llm_compilation_mode model_kwargs sae_compilation_mode prefetch tokens_per_buffer b_dec_init_method
    act_store_device jumprelu_bandwidth jumprelu_init_threshold matryoshka_widths topk_threshold_lr
    aux_loss_coefficient decoder_init_norm hook_point_out_layer layer_out d_sae subset_size
    n_running_sparsity_samples ctx_len sae_lens_version finetuning_tokens finetuning_method log_optimizer_state_to_wandb
    log_activations_store_to_wandb wandb_group unique_id
""".split()  # noqa: SIM905
DTYPES = {
    name: getattr(torch, name.removeprefix("torch."))
    for base in ("float32", "bfloat16", "float16", "float64")
    for name in (base, f"torch.{base}")
}


def read_since_6_0(path: Path) -> Config:
    """The config in the names that SAELens uses since 6.0: before, TopK was an activation function of `standard`.

    Raises FormatError where the old fields and the new ones speak of different functions.
    """
    config = read_json(path)
    if "architecture" not in config:
        _check_old_layout(config, path)
    function, k = _old_activation(config, path)
    architecture = text(config, "architecture", path, "standard")
    if "metadata" in config and function == "topk" and architecture == "standard":
        raise FormatError(
            f"{path}: 'architecture' is 'standard' with the activation function 'topk', need 'topk' and k"
        )
    if not _agree(architecture, function, k):
        raise FormatError(
            f"{path}: 'architecture' is {architecture!r} with the activation function {function!r} and k = {k!r:.40}; "
            "need 'relu', or 'topk' and a k for the architectures 'standard' and 'topk'"
        )
    renewed: dict[str, Any] = {"architecture": architecture}
    if function == "topk":
        renewed = {"architecture": "topk", "k": k}
    if isinstance(config.get("normalize_activations"), bool):
        renewed["normalize_activations"] = "expected_average_only_in" if config["normalize_activations"] else "none"
    return config.replaced(**renewed)


def _agree(architecture: str, function: str | None, k: Any) -> bool:
    if function == "topk":
        return architecture in ("standard", "topk") and k is not None
    if function == "relu" and architecture == "topk":
        return False
    return function in (None, "relu") and (k is None or architecture != "standard")


def _check_old_layout(config: Config, path: Path) -> None:
    """Only configs from before 6.0 may leave out the architecture, which was then `standard`."""
    found = [name for name in _NEEDS_ARCHITECTURE if name in config]
    if found:
        raise FormatError(f"{path}: 'architecture' is missing, need it beside {found[0]!r}")


def _old_activation(config: Config, path: Path) -> tuple[str | None, Any]:
    """(activation function, its k) as configs from before 6.0 give them; None for what is not there."""
    name = "activation_fn" if "activation_fn" in config else "activation_fn_str"
    function = text(config, name, path) if config.get(name) is not None else None
    kwargs = config.get("activation_fn_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise FormatError(f"{path}: 'activation_fn_kwargs' is {kwargs!r:.40}, need an object")
    others = [name for name, value in kwargs.items() if name != "k" and value]
    if others:
        raise FormatError(f"{path}: 'activation_fn_kwargs' has {others[0]!r}: {kwargs[others[0]]!r:.40}, need k alone")
    k = kwargs.get("k")
    if k is not None and config.get("k", k) != k:
        raise FormatError(f"{path}: 'k' is {config['k']!r:.40} and {k!r:.40} in 'activation_fn_kwargs', need one value")
    return function, config.get("k") if k is None and function == "topk" else k


def dtype_of(config: Config, path: Path) -> torch.dtype | None:
    """The dtype that the config asks for; None where it asks for none."""
    if config.get("dtype") is None:
        return None
    name = text(config, "dtype", path)
    if name not in DTYPES:
        raise FormatError(f"{path}: 'dtype' is {name!r:.40}, need one of {list(DTYPES)}")
    return DTYPES[name]


def normalization_of(config: Config, path: Path, input_scale: float | None) -> Normalization | None:
    """The normalisation of inputs that the config, or the caller in its place, asks for."""
    kind = "none" if config.get("normalize_activations") is None else text(config, "normalize_activations", path)
    kinds = {"none": None, "layer_norm": LAYER_NORM, "constant_norm_rescale": ConstantNorm()}
    if kind == "expected_average_only_in":
        if input_scale is None:
            warnings.warn(
                f"{path}: trained on scaled activations, and the scale is not in the file; running unscaled. "
                "Pass input_scale= unless it was folded into the weights.",
                stacklevel=4,
            )
    elif kind not in kinds:
        raise FormatError(
            f"{path}: 'normalize_activations' is {kind!r}, need one of {[*kinds, 'expected_average_only_in']}"
        )
    if input_scale is None:
        return kinds.get(kind)
    if kinds.get(kind) is not None:
        raise ValueError(f"input_scale: got {input_scale} for a checkpoint whose normalization is {kind!r}, need None")
    return Scale(input_scale)


def metadata_of(config: Config, path: Path, name: str) -> Metadata:
    """What the config says of the model: in "metadata" since 6.0, before in the config itself, under older names.

    Fields that are known nowhere are warned of; those of the text and the model are kept.
    """
    found = config.inner("metadata") if config.get("metadata") is not None else config

    def known(*keys: str, kind: type = str) -> Any:
        return next((value for key in keys if (value := told(found, key, kind)) is not None), None)

    reads = known("hook_name", "hook_point")
    heads = [found.get(key) for key in ("hook_head_index", "hook_point_head_index")]
    head = next((one for one in heads if one is not None), None)
    if head is not None and (isinstance(head, bool) or not isinstance(head, int) or head < 0):
        raise FormatError(f"{path}: 'hook_head_index' is {head!r:.40}, need the number of a head, from 0")
    options = found.get("model_from_pretrained_kwargs") or {}
    if not isinstance(options, dict):
        raise FormatError(f"{path}: 'model_from_pretrained_kwargs' is {options!r:.40}, need an object")
    other = {**config.kept("reshape_activations"), **found.kept(*_KEPT)}
    if found is not config:
        other = {**{key: found[key] for key in found if key not in _NAMED}, **other}
    named = {
        "model": known("model_name"),
        "writes": known("hook_name_out", "hook_point_out") or reads,
        "prepend_bos": known("prepend_bos", kind=bool),
        "context": known("context_size", kind=int),
        "dataset": known("dataset_path"),
    }
    ignored = config.unknown(_WITHOUT_EFFECT)  # last: by now all that is known was looked at
    return Metadata(name, reads=reads, head=head, model_options=options, ignored=ignored, other=other, **named)
