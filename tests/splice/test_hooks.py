"""Hook points of TransformerLens in models of transformers: for every family, what they mean in numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T
from torch import Tensor, nn

import saekernels as sk
from saekernels.splice.hooks import FAMILIES, translated
from saekernels.splice.sites import resolve_site

IDS = torch.tensor([[5, 9, 30, 2, 17, 44], [3, 8, 8, 21, 6, 1]])
SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
OWN = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 24},
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 24, "rotary_dim": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
}
PARALLEL = ("gptj", "gpt_neox", "phi")


def model_of(kind: str) -> nn.Module:
    """A tiny random model of a family, its norms not the identity."""
    torch.manual_seed(0)
    try:
        config = T.AutoConfig.for_model(kind, **{**SIZES, **OWN.get(kind, {})})
    except ValueError as error:
        pytest.skip(f"this transformers has no {kind}: {error}")
    model = T.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or ".ln_" in name:
            parameter.data.normal_()
    return model


def at(model: nn.Module, hook: str) -> Tensor:
    """The activation there, read by a splice that replaces it with itself."""
    seen: list[Tensor] = []

    def keep(x: Tensor, target: Tensor) -> Tensor:
        seen.append(x.clone())
        return target

    with sk.splice(model, {hook: keep}, replace="function"), torch.no_grad():
        model(IDS)
    return seen[0].view(*IDS.shape, -1)  # OPT flattens positions around its MLP


@pytest.mark.parametrize("kind", list(FAMILIES))
@pytest.mark.parametrize("layer", [0, 1])
def test_the_residual_stream_is_the_sum_of_what_is_written_to_it(kind: str, layer: int) -> None:
    model = model_of(kind)

    def found(hook: str) -> Tensor:
        return at(model, f"blocks.{layer}.{hook}")

    before, attention, mlp, after = (found(f"hook_{one}") for one in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    torch.testing.assert_close(before + attention + mlp, after, rtol=1e-5, atol=1e-5)
    if kind in PARALLEL:
        assert translated(model, f"blocks.{layer}.hook_resid_mid", False) is None
    else:
        torch.testing.assert_close(before + attention, found("hook_resid_mid"), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(before + attention, found("hook_mlp_in"), rtol=1e-5, atol=1e-5)
    if layer:
        torch.testing.assert_close(at(model, "blocks.0.hook_resid_post"), before, rtol=0, atol=0)
    else:
        embedded = model.get_input_embeddings()(IDS)
        torch.testing.assert_close(at(model, "hook_embed"), embedded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_heads_and_hidden_units_are_what_the_last_matrices_take(kind: str) -> None:
    model = model_of(kind)
    z, post = at(model, "blocks.1.attn.hook_z"), at(model, "blocks.1.mlp.hook_post")
    assert (z.shape[-1], post.shape[-1]) == (16, 24)
    sites = [resolve_site(model, f"blocks.1.{hook}").read for hook in ("attn.hook_z", "mlp.hook_post")]
    for site, x in zip(sites, (z, post), strict=True):
        assert site.is_input
        assert getattr(site.module, "in_features", getattr(site.module, "nx", x.shape[-1])) == x.shape[-1]
    mlp_in, mlp_out = at(model, "blocks.1.mlp.hook_in"), at(model, "blocks.1.mlp.hook_out")
    assert mlp_in.shape == mlp_out.shape == (2, 6, 16)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_norms_before_their_weights_are_not_taken_for_norms(kind: str) -> None:
    with pytest.raises(ValueError, match=r"has no module 'blocks\.0\.ln2\.hook_normalized'"):
        resolve_site(model_of(kind), "blocks.0.ln2.hook_normalized")


@pytest.mark.parametrize(
    ("name", "path", "is_input"),
    [
        ("layers.1", "model.layers.1", False),
        ("layers.1.mlp@input", "model.layers.1.mlp", True),
        ("resid_post_layer_1", "model.layers.1", False),
        ("mlp_out_layer_0", "model.layers.0.mlp", False),
        ("blocks.0.hook_resid_mid", "model.layers.0.post_attention_layernorm", True),
    ],
)
def test_other_tools_names(name: str, path: str, is_input: bool) -> None:
    site = resolve_site(model_of("llama"), name)
    assert (site.read.path, site.read.is_input) == (path, is_input)


class Lens(nn.Module):
    """As much of a TransformerLens model as names need."""

    def __init__(self) -> None:
        super().__init__()
        names = ("hook_embed", "blocks.1.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out",
                 "blocks.1.hook_resid_mid", "blocks.1.attn.hook_z")  # fmt: skip
        self.hook_dict: dict[str, Any] = {name: nn.Identity() for name in names}


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("model.layers.1", "blocks.1.hook_resid_post"),
        ("model.layers.1@input", "blocks.1.hook_resid_pre"),
        ("transformer.h.1.mlp", "blocks.1.hook_mlp_out"),
        ("transformer.h.1.ln_2@input", "blocks.1.hook_resid_mid"),
        ("gpt_neox.layers.1.attention.dense@input", "blocks.1.attn.hook_z"),
        ("model.embed_tokens", "hook_embed"),
    ],
)
def test_and_back(name: str, hook: str) -> None:
    model = Lens()
    assert resolve_site(model, name).read.module is model.hook_dict[hook]
