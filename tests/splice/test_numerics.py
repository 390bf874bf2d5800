"""splice: the error term, gradients, dtypes and devices."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from saekernels.splice.context import splice
from splice_helpers import WIDTH, dense, llama_from_layers, make_sae, tiny_model, tokens

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return tiny_model("llama")


@torch.no_grad()
def test_error_term_gives_the_clean_model_back(llama):
    ids, sites = tokens(), {f"model.layers.{i}": make_sae(seed=i) for i in range(3)}
    clean = llama(ids).logits
    with splice(llama, sites, error_term=True):
        assert_close(llama(ids).logits, clean, atol=1e-5, rtol=1e-5)
    half = tiny_model("llama", torch.bfloat16)
    clean = half(ids).logits
    with splice(half, sites, error_term=True):
        assert_close(half(ids).logits, clean, atol=0.02, rtol=0.02)


def test_gradients_go_through_the_sae_and_not_through_the_error():
    model, sae, x = nn.Sequential(nn.Identity()), make_sae(), torch.randn(2, 3, WIDTH, requires_grad=True)
    weight = torch.randn(2, 3, WIDTH)
    expected = torch.autograd.grad((dense(sae, x) * weight).sum(), [x, sae.W_enc, sae.W_dec, sae.b_dec])
    for error_term in (False, True):
        with splice(model, {"0": sae}, error_term=error_term):
            out = model(x)
        got = torch.autograd.grad((out * weight).sum(), [x, sae.W_enc, sae.W_dec, sae.b_dec])
        for mine, theirs in zip(got, expected, strict=True):
            assert_close(mine, theirs)


def test_gradients_in_a_language_model(llama):
    ids, sae = tokens(), make_sae(k=4)
    with splice(llama, {"model.layers.1": sae}):
        got = torch.autograd.grad(llama(ids).logits.square().mean(), [sae.W_dec, llama.model.embed_tokens.weight])
    by_hand = llama_from_layers(llama, ids, {1: lambda h: dense(sae, h)})
    expected = torch.autograd.grad(by_hand.square().mean(), [sae.W_dec, llama.model.embed_tokens.weight])
    for mine, theirs in zip(got, expected, strict=True):
        assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sae_dtype", [torch.float32, torch.bfloat16])
def test_sae_computes_in_its_own_dtype(model_dtype, sae_dtype):
    model, sae, seen = nn.Sequential(nn.Identity()), make_sae().to(sae_dtype), []
    x = torch.randn(2, 3, WIDTH, dtype=model_dtype)
    with splice(model, {"0": sae}, observer=lambda *a: seen.append(a)):
        out = model(x)
    _, x_seen, x_hat, target, codes, _ = seen[0]
    assert out.dtype == x_seen.dtype == target.dtype == model_dtype
    assert x_hat.dtype == codes.values.dtype == sae_dtype
    assert torch.equal(x_hat, sae(x.to(sae_dtype)))
    assert torch.equal(out, x_hat.to(model_dtype))


@torch.no_grad()
def test_autocast_around_the_model_does_not_reach_the_sae():
    model, sae, x = nn.Sequential(nn.Identity()), make_sae(), torch.randn(2, 3, WIDTH)
    with torch.autocast("cpu", torch.bfloat16), splice(model, {"0": sae}):
        out = model(x)
    assert torch.equal(out, sae(x))


@torch.no_grad()
def test_activations_go_to_the_device_of_the_sae():
    class Recorder(nn.Module):
        d_in = d_out = WIDTH
        W_dec = torch.empty(1, WIDTH, device="meta", dtype=torch.float64)

        def forward_with_codes(self, x):
            self.got = (x.device.type, x.dtype)
            return torch.ones(x.shape, dtype=x.dtype), None

    model, sae = nn.Sequential(nn.Identity()), Recorder()
    with splice(model, {"0": sae}):
        out = model(torch.zeros(2, WIDTH))
    assert sae.got == ("meta", torch.float64)
    assert out.device.type == "cpu"
    assert out.dtype == torch.float32
    assert bool((out == 1).all())
