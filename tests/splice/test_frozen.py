"""Patterns and scales of one pass held in another: what is left of the model is linear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import saekernels as sk
import tiny_lm

IDS = torch.tensor([[5, 17, 80, 33, 200, 9], [7, 8, 9, 10, 11, 12]])


def gpt2() -> Any:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=16, n_embd=32, n_layer=2, n_head=4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


MODELS = {"llama": (tiny_lm.model, "model.layers.{}.mlp@module"), "gpt2": (gpt2, "transformer.h.{}.mlp@module")}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[Any, list[str]]:
    make, site = MODELS[request.param]
    return make(), [site.format(layer) for layer in range(2)]


@torch.no_grad()
def test_the_same_pass_is_the_models_own(case: tuple[Any, list[str]]) -> None:
    model, _ = case
    own, implementation = model(IDS).logits, model.config._attn_implementation
    frozen = sk.Frozen(model)
    with frozen.recording():
        torch.testing.assert_close(model(IDS).logits, own, rtol=1e-4, atol=1e-4)
    with frozen.holding():
        torch.testing.assert_close(model(IDS).logits, own, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(model(IDS.flip(1)).logits[0, 0], model(IDS).logits[0, 0])
    assert model.config._attn_implementation == implementation
    torch.testing.assert_close(model(IDS).logits, own, rtol=0, atol=0)


@torch.no_grad()
def test_the_local_replacement_model_is_linear(case: tuple[Any, list[str]]) -> None:
    """With codes, errors, patterns and scales of the clean pass, logits are affine in what is embedded."""
    model, sites = case
    torch.manual_seed(1)
    clt = sk.CrossLayerTranscoder(tiny_lm.WIDTH, 64, 2, sk.TopK(4))
    layers = sk.layer_sites(clt, sites)
    embedded = model.get_input_embeddings()(IDS)
    frozen = sk.Frozen(model)
    with frozen.recording(), sk.recording(model, layers) as clean:
        own = model(inputs_embeds=embedded).logits
    local = sk.layer_sites(clt, sites, codes=clean.codes, errors=clean.errors)
    change = torch.randn_like(embedded)

    def at(step: float) -> Tensor:
        return model(inputs_embeds=embedded + step * change).logits.double()  # type: ignore[no-any-return]

    with frozen.holding(), sk.splice(model, local):
        zero, plus, minus = at(0), at(1), at(-1)
    torch.testing.assert_close(zero, own.double(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(plus + minus, 2 * zero, rtol=1e-3, atol=1e-3)
    assert (plus - zero).abs().max() > 0.1
    with sk.splice(model, local):  # live patterns and scales bend it
        assert not torch.allclose(at(1) + at(-1), 2 * at(0), rtol=1e-2, atol=1e-2)


def test_what_cannot_be_held_is_told() -> None:
    model = tiny_lm.model()
    frozen = sk.Frozen(model)
    with pytest.raises(ValueError, match="nothing was recorded yet"), frozen.holding():
        pass
    with torch.no_grad(), frozen.recording():
        model(IDS)
    with torch.no_grad(), frozen.holding(), pytest.raises(ValueError, match="this pass needs one for"):
        model(IDS[:, :3])
    with pytest.raises(ValueError, match="Linear has no attention interface"):
        sk.Frozen(nn.Linear(2, 2))
