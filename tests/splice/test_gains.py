"""Dictionaries of a norm before its gain: the gain is told by what the norm gives, and folded into encoders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import saekernels as sk
from saekernels.example import MODEL_DIR
from saekernels.splice.gains import gain_and_bias


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm, nn.LayerNorm])
@torch.no_grad()
def test_the_gain_is_told(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    norm = kind(6)
    for value in norm.parameters():
        value.normal_()
    gain, bias = gain_and_bias(norm)
    own = norm.weight.double()
    assert torch.equal(gain, 1 + own if kind is Gemma2RMSNorm else own)
    assert (bias is None) is (kind is not nn.LayerNorm)
    assert bias is None or torch.equal(bias, norm.bias.double())


@torch.no_grad()
def test_norms_that_are_none() -> None:
    norm = LlamaRMSNorm(6)
    norm.weight[2] = 0
    with pytest.raises(ValueError, match="a gain is 0"):
        gain_and_bias(norm)
    with pytest.raises(ValueError, match="Identity, which has no weight"):
        gain_and_bias(nn.Identity())

    class Odd(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).abs()

    with pytest.raises(ValueError, match="whose gain can be told"):
        gain_and_bias(Odd(6))


@pytest.mark.parametrize("apart", [False, True])
@torch.no_grad()
def test_against_a_hand_computation(apart: bool) -> None:
    """What a spliced model puts in at a layer is what the dictionary gives of the norm's output over its gain."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    d, n = model.config.hidden_size, model.config.num_hidden_layers
    for block in model.model.layers:
        block.post_attention_layernorm.weight.uniform_(0.5, 2)
    given: sk.TranscoderSet | sk.CrossLayerTranscoder
    if apart:
        given = sk.TranscoderSet([sk.SAE(d, 32, sk.ReLU(), pre_bias="separate") for _ in range(n)])
    else:
        given = sk.CrossLayerTranscoder(d, 32, n, sk.ReLU())
    for value in given.parameters():
        value.normal_(std=0.3)
    given.sites = tuple(f"blocks.{s}.ln2.hook_normalized -> blocks.{s}.hook_mlp_out" for s in range(n))
    before = {name: value.clone() for name, value in given.named_parameters()}
    refused = given.at_sites() if isinstance(given, sk.TranscoderSet) else sk.layer_sites(given)
    with pytest.raises(ValueError, match="fold_norm_gains"), sk.splice(model, refused):
        pass
    made = sk.fold_norm_gains(given, model)
    assert all(torch.equal(value, before[name]) for name, value in given.named_parameters())
    sites = made.at_sites() if isinstance(made, sk.TranscoderSet) else sk.layer_sites(made)
    normalised, put = [], []
    for block in model.model.layers:
        norm = block.post_attention_layernorm
        norm.register_forward_hook(lambda m, _, out: normalised.append(out / m.weight))
    with sk.splice(model, sites):
        for block in model.model.layers:
            block.mlp.register_forward_hook(lambda _, __, out: put.append(out))
        model(torch.arange(5, 20)[None])
    if isinstance(given, sk.TranscoderSet):
        wanted = [given.transcoder(s)(x) for s, x in enumerate(normalised)]
    else:
        wanted = given(normalised)
    for got, one in zip(put, wanted, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-3, atol=1e-3)
    assert sk.fold_norm_gains(made, model) is made
    given.sites = None
    with pytest.raises(ValueError, match="do not say where it reads"):
        sk.fold_norm_gains(given, model)
