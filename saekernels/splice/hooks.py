"""Hook points of TransformerLens as places in the models of transformers, by model family, and back.

One table: where a family keeps its layers, and which end of which of their modules a hook point is. A family whose
attention and MLP read the same residual stream has no `hook_resid_mid`. `ln1.hook_normalized` and `ln2.hook_normalized`
are in no table: they lie before the norm's weights, which the norms of transformers give only multiplied in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

_HOOK = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<hook>.+)")
# Other tools' names of modules: what is their output, and what their input.
_SPELLINGS = (
    (re.compile(r"resid_post_layer_(\d+)"), r"blocks.\1.hook_resid_post", r"blocks.\1.hook_resid_pre"),
    (re.compile(r"(?:mlp|mlp_out)_layer_(\d+)"), r"blocks.\1.hook_mlp_out", r"blocks.\1.mlp.hook_in"),
    (re.compile(r"(?:attn|attention_out)_layer_(\d+)"), r"blocks.\1.hook_attn_out", r"blocks.\1.attn.hook_in"),
)


@dataclass(frozen=True)
class Family:
    """layers: the list of blocks. hooks: hook point within a block -> end within a layer ("" for the layer itself)."""

    layers: str
    embed: str
    hooks: Mapping[str, str] = field(default_factory=dict)


def _family(
    layers: str,
    embed: str,
    attention: str,
    mlp: str,
    norm: str,
    z: str,
    post: str,
    written: tuple[str, str] | None = None,
    parallel: bool = False,
) -> Family:
    """norm: before the MLP. z, post: the modules that take heads and hidden units. written: what gives the
    outputs of attention and MLP as they are added to the residual stream, where that is not those modules.
    """
    attention_out, mlp_out = written or (attention, mlp)
    hooks = {
        "hook_resid_pre": "@input",
        "hook_resid_post": "",
        "hook_attn_out": attention_out,
        "hook_mlp_out": mlp_out,
        "mlp.hook_in": f"{mlp}@input",
        "mlp.hook_out": mlp,
        "attn.hook_in": f"{attention}@input",
        "attn.hook_z": f"{z}@input",
        "mlp.hook_post": f"{post}@input",
    }
    if not parallel:
        hooks["hook_resid_mid"] = hooks["hook_mlp_in"] = f"{norm}@input"
    return Family(layers, embed, hooks)


_LLAMA = _family(
    "model.layers", "model.embed_tokens", "self_attn", "mlp", "post_attention_layernorm",
    "self_attn.o_proj", "mlp.down_proj",
)  # fmt: skip
_GEMMA_2 = _family(
    "model.layers", "model.embed_tokens", "self_attn", "mlp", "pre_feedforward_layernorm",
    "self_attn.o_proj", "mlp.down_proj", ("post_attention_layernorm", "post_feedforward_layernorm"),
)  # fmt: skip
# By the `model_type` of a config of transformers.
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "smollm3", "olmo", "stablelm", "ministral"), _LLAMA
    ),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA_2),
    "starcoder2": _family(
        "model.layers", "model.embed_tokens", "self_attn", "mlp", "post_attention_layernorm",
        "self_attn.o_proj", "mlp.c_proj",
    ),
    "gpt2": _family("transformer.h", "transformer.wte", "attn", "mlp", "ln_2", "attn.c_proj", "mlp.c_proj"),
    "gpt_neo": _family(
        "transformer.h", "transformer.wte", "attn", "mlp", "ln_2", "attn.attention.out_proj", "mlp.c_proj"
    ),
    "gptj": _family(
        "transformer.h", "transformer.wte", "attn", "mlp", "ln_1", "attn.out_proj", "mlp.fc_out",
        parallel=True,
    ),
    "gpt_neox": _family(
        "gpt_neox.layers", "gpt_neox.embed_in", "attention", "mlp", "post_attention_layernorm",
        "attention.dense", "mlp.dense_4h_to_h", parallel=True,
    ),
    "phi": _family(
        "model.layers", "model.embed_tokens", "self_attn", "mlp", "input_layernorm",
        "self_attn.dense", "mlp.fc2", parallel=True,
    ),
    "opt": _family(
        "model.decoder.layers", "model.decoder.embed_tokens", "self_attn", "fc2",
        "final_layer_norm", "self_attn.out_proj", "fc2",
    ),
}  # fmt: skip
# OPT's MLP is no module: what it reads is what its first matrix reads.
FAMILIES["opt"] = replace(FAMILIES["opt"], hooks={**FAMILIES["opt"].hooks, "mlp.hook_in": "fc1@input"})


def dotted(path: str) -> list[tuple[str, bool]]:
    """[(path, whether its input)] of an end as Gemma Scope 2 and nnsight spell it, "model.layers.3.output"."""
    stem, _, side = path.rpartition(".")
    return [(stem, side == "input")] if stem and side in ("input", "output") else []


def translated(model: nn.Module, path: str, is_input: bool) -> tuple[str, bool] | None:
    """(path, whether its input) of an end that `model` has no module for; None if nobody knows what it is.

    A hook point of TransformerLens in a model of transformers, a module of transformers in a model of TransformerLens,
    or a module named from within the model's body, as sparsify does ("layers.3").
    """
    for pattern, *ends in _SPELLINGS:
        path = pattern.sub(ends[is_input], path) if pattern.fullmatch(path) else path
    hooks = getattr(model, "hook_dict", None)
    if isinstance(hooks, dict):
        found = [hook for hook in (path, *_hooks_of(path, is_input)) if hook in hooks]
        return (found[0], False) if found else None
    names = {name for name, _ in model.named_modules()}
    family = FAMILIES.get(_model_type(model))
    place = None if family is None else _in_family(family, path)
    inner = f"{getattr(model, 'base_model_prefix', '')}.{path}"
    if place is not None and place[0] in names:
        return place
    return (inner, is_input) if inner in names else None


def _model_type(model: Any) -> str:
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", None)
    return str(getattr(text_config() if callable(text_config) else config, "model_type", ""))


def _in_family(family: Family, hook: str) -> tuple[str, bool] | None:
    if hook == "hook_embed":
        return family.embed, False
    block = _HOOK.fullmatch(hook)
    end = family.hooks.get(block["hook"]) if block else None
    if block is None or end is None:
        return None
    inside, _, side = end.partition("@")
    layer = f"{family.layers}.{block['layer']}"
    return f"{layer}.{inside}" if inside else layer, bool(side)


def _hooks_of(path: str, is_input: bool) -> list[str]:
    """The hook points that an end is in some family."""
    found = []
    for family in FAMILIES.values():
        if path == family.embed and not is_input:
            found.append("hook_embed")
        layer = re.fullmatch(rf"{re.escape(family.layers)}\.(?P<number>\d+)(?:\.(?P<inside>.+))?", path)
        end = (layer["inside"] or "") + ("@input" if is_input else "") if layer else None
        found += [f"blocks.{layer['number']}.{hook}" for hook, own in family.hooks.items() if layer and own == end]
    return found
