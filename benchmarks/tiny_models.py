"""Builds any class that AutoModelForCausalLM knows, tiny and random, from the defaults of its config class."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from saekernels.errors import first_line

VOCABULARY, LAYERS = 64, 2
# The first pattern that a field's whole name matches gives its size.
_SIZES: tuple[tuple[str, int], ...] = (
    (r".*vocab_size(_per_layer_input|_base)?|.*vocabulary_size|.*group_vocab", VOCABULARY),
    (r"bos_token_id|decoder_start_token_id", 0),
    (r"eos_token_id|pad_token_id|sep_token_id", 1),
    (r".*token_(id|index)", 2),
    (r".*lora_rank|.*rank_dim|.*_lora_dim|lora_r", 8),
    (r"mamba_d_head", 16),
    (r"mamba_d_ssm", 64),
    (r"d_kv|.*head_dim|.*head_size|d_head|attention_head_dim|.*rope_dim|.*nope_dim|rotary_dim", 8),
    (
        r".*(intermediate|ffn|inner|ff)_?(size|dim)?(_mlp)?|.*ffn_hidden_size|d_ff|n_inner|.*mlp_(hidden_)?(size|dim)",
        48,
    ),
    (r".*num_(key_value|kv)_heads|n_kv_heads|.*num_query_groups", 2),
    (
        r".*(attention_heads|num_heads|n_heads?|num_v_heads|num_k_heads|n_mamba_heads|mamba_n_heads|linear_num.*heads)",
        4,
    ),
    (r"hidden_size_per_layer_input", 8),
    (r"hidden_size(_global)?|d_model|n_embd|emb_dim|embed_dim|embedding_size|word_embed_proj_dim", 32),
    (r"dim|hidden_dim|lru_width", 32),
    (r"(num_)?nextn_predict_layers|mtp_num_layers|num_mtp_layers|.*shared_layers|first_k_dense_replace", 0),
    (r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|num_blocks", LAYERS),
    (r"n_groups?|topk_group|.*n_groups|n_shared_experts|num_shared_experts|num_expert_group", 1),
    # All positions of a row: what is left out may hang on ties among rectified scores, and so on the row's length.
    (r"index_topk|indexer_budget", 16),
    (r"num_experts_per_tok(en)?|.*top_?k.*|moe_k|num_selected_experts", 2),
    (r".*(num|n)_.*experts|num_experts|moe_num_experts", 4),
    (r".*state_size|.*d_state|ssm_state.*", 8),
    (
        r".*(max_position_embeddings|n_positions|n_ctx|max_target_positions|max_source_positions|max_seq_len|seq_length)",
        64,
    ),
    (r".*sliding_window.*|attention_window_size|window_size|.*chunk_size", 8),
    (r"image_size", 32),
    (r"patch_size", 16),
)
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
# Where the defaults say something that does not fit a model of this size. The key is the model's type.
_OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_d_head": 16},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROTARY, "sliding_attention": _ROTARY}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "falcon_h1": {"mamba_d_head": 16},
    "granitemoehybrid": {"mamba_d_head": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4": {"moe_layers": [1]},
    "llama4_text": {"moe_layers": [1]},
    "mamba2": {"head_dim": 16},
    "musicgen": {"num_codebooks": 1},
    "musicgen_melody": {"num_codebooks": 1},
    "reformer": {"axial_pos_embds": False},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},
}
# What a model asks for where its config's class says None.
_UNSAID = {
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "head_dim": 8, "num_key_value_heads": 2,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
    "indexer_compress_ratio": 2,
}  # fmt: skip
# What follows from other fields.
_DERIVED = ("qk_head_dim",)


class CannotBuildError(Exception):
    """This model type cannot be made here, small and from its config alone."""


def model_types() -> list[str]:
    """All that AutoModelForCausalLM knows."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(model_type: str, seed: int = 0) -> nn.Module:
    """A model of that type in eval mode, float32, with weights so large that every layer matters."""
    torch.manual_seed(seed)
    try:
        names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
        kind = getattr(transformers, names if isinstance(names, str) else names[0])
        config = kind.config_class(**_shrunk(kind.config_class, model_type))
        for name in ("is_decoder", "use_cache"):
            if isinstance(getattr(config, name, None), bool):
                setattr(config, name, name == "is_decoder")
        config._attn_implementation = "eager"
        made = kind(config).float().eval().requires_grad_(False)
        if hasattr(made, "set_default_language"):
            made.set_default_language(config.languages[0])
    except Exception as error:
        raise CannotBuildError(f"{type(error).__name__}: {first_line(error)}") from error
    size = sum(parameter.numel() for parameter in made.parameters())
    if size > 20_000_000:
        raise CannotBuildError(f"{size / 1e6:.0f} M parameters even so")
    for name, parameter in made.named_parameters():
        if parameter.ndim in (2, 3) and "conv" not in name and not torch.isinf(parameter).any():
            parameter.normal_(std=1.0 / parameter.shape[-1] ** 0.5)
    return made


def _shrunk(config_class: Any, model_type: str) -> dict[str, Any]:
    return {**_small(config_class(), {}), **_OVERRIDES.get(model_type, {})}


def _small(config: Any, made: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a config's class: every size of the default `config`, made small."""
    fields = config.to_dict()
    layers = [fields.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers")]
    depth = next((one for one in layers if isinstance(one, int)), None)
    for name, value in fields.items():
        own = vars(config).get(name)
        if isinstance(own, transformers.PretrainedConfig):
            made[name] = {**_small(own, {}), "model_type": own.model_type} if own.model_type else _small(own, {})
        elif isinstance(value, list) and isinstance(depth, int) and len(value) == depth > LAYERS:
            # The first and the last, as hybrids begin and end with different kinds.
            made[name] = [value[0], value[-1]]
        elif isinstance(value, list) and "token_id" in name:
            made[name] = 1
        elif isinstance(value, int) and not isinstance(value, bool) and name not in _DERIVED:
            size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)
            if size is not None:
                made[name] = min(value, size) if value >= 0 and "token" not in name else size
        elif value is None and name in _UNSAID:
            made[name] = _UNSAID[name]
    if "rope_parameters" in fields and not fields["rope_parameters"]:
        made["rope_parameters"] = _ROTARY
    if "kv_lora_rank" in fields:  # latent attention has as many keys as queries
        made["num_key_value_heads"] = made.get("num_attention_heads", 4)
    return made
