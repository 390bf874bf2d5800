"""TopK(k, relu=False): the k largest as they are, where fewer than k are positive, against plain torch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import saekernels as sk
from saekernels.sae.edits import Edit, EditedSAE
from saekernels.training import auxk_loss, encode_among
from zoo import D, F, K, openai, random, randomised

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "transcoder": {"d_out": 7, "pre_bias": "none", "skip": True},
    "rescaled": {"rescale_by_decoder_norm": True},
    "layer norm": {"normalization": sk.LayerNorm()},
}


def few_positive(relu: bool = False, dtype: torch.dtype = torch.float32, **options: Any) -> sk.SAE:
    """An SAE of which hardly any pre-activation is positive."""
    sae = randomised(sk.SAE(D, F, sk.TopK(K, relu=relu), dtype=dtype, **options))
    with torch.no_grad():
        sae.W_enc.mul_(0.3)
        assert sae.b_enc is not None
        sae.b_enc.sub_(2.0)
    return sae


def pre_activations(sae: sk.SAE, x: Tensor) -> Tensor:
    centred = x if sae.pre_bias is None else x - sae.pre_bias
    pre = centred @ sae.W_enc.T + sae.b_enc
    return pre * sae.W_dec.norm(dim=1) if sae.rescale_by_decoder_norm else pre


def dense_forward(sae: sk.SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """(output, codes [T, F]) with every latent written out."""
    scale, shift = torch.ones(()), torch.zeros(())
    inner = x
    if sae.normalization is not None:
        shift, scale = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        inner = (x - shift) / (scale + 1e-5)
    pre = pre_activations(sae, inner)
    best = pre.topk(K)
    codes = torch.zeros_like(pre).scatter(-1, best.indices, best.values)
    inside = codes / sae.W_dec.norm(dim=1) if sae.rescale_by_decoder_norm else codes
    out = (inside @ sae.W_dec + sae.b_dec) * scale + shift
    return (out if sae.W_skip is None else out + x @ sae.W_skip.T), codes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_are_those_of_plain_torch(name: str, dtype: torch.dtype) -> None:
    sae = few_positive(dtype=dtype, **OPTIONS[name])
    twin = copy.deepcopy(sae)
    x = torch.randn(40, D, dtype=dtype)
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    (out, codes), (want, dense) = sae.forward_with_codes(own), dense_forward(twin, other)
    close = {"rtol": 2e-5, "atol": 2e-5}
    torch.testing.assert_close(codes.to_dense(), dense, **close)
    torch.testing.assert_close(out, want, **close)
    assert (codes.values < 0).any(1).float().mean() > 0.8, "rows with fewer than k positive ones are what this is for"
    assert torch.equal(codes.l0(), torch.full((40,), K))
    (out.square().sum() + codes.values.pow(3).sum()).backward()
    (want.square().sum() + dense.pow(3).sum()).backward()
    torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-4)
    for (path, got), (_, theirs) in zip(sae.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(got.grad, theirs.grad, rtol=1e-4, atol=1e-4, msg=lambda m, path=path: f"{path}: {m}")


def test_with_a_relu_the_same_choice_is_cut_at_zero() -> None:
    sae, x = few_positive(), torch.randn(40, D)
    cut = copy.deepcopy(sae)
    cut.activation = sk.TopK(K)
    ours, theirs = sae.encode(x), cut.encode(x)
    assert torch.equal(ours.indices, theirs.indices)
    assert torch.equal(ours.values.relu(), theirs.values)
    assert (sae(x) - cut(x)).abs().max() > 0.1


def test_it_is_said_only_where_it_is_not_the_rule() -> None:
    assert repr(sk.TopK(4)) == "TopK(k=4)"
    assert repr(sk.TopK(4, relu=False)) == "TopK(k=4, relu=False)"
    assert "TopK(k=5, relu=False)" in repr(few_positive())
    assert sk.TopK(4) != sk.TopK(4, relu=False)
    assert sk.TopK(4).name == sk.TopK(4, relu=False).name == "topk"
    with pytest.raises(ValueError, match=r"^relu: got 'no', need True or False"):
        sk.TopK(4, relu="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("edit", [("zero", ()), ("scale", (2.0,)), ("clamp", (-0.1, 0.5)), ("add", (1.0,))])
def test_edits_reach_negative_latents(edit: tuple[Any, tuple[float, ...]]) -> None:
    sae, x = few_positive(), torch.randn(40, D)
    _, z = dense_forward(sae, x)
    latent = int((z < 0).sum(0).argmax())
    operation, values = edit
    done = {
        "zero": lambda v: v * 0,
        "scale": lambda v: v * 2,
        "clamp": lambda v: v.clamp(-0.1, 0.5),
        "add": lambda v: v + 1,
    }
    z = z.clone()
    z[:, latent] = torch.where(z[:, latent] != 0, done[operation](z[:, latent]), 0)
    edited = EditedSAE(sae, [Edit(latent, operation, values, only_active=True)])
    torch.testing.assert_close(edited.encode(x).to_dense(), z, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(edited(x), z @ sae.W_dec + sae.b_dec, rtol=2e-5, atol=2e-5)


def test_the_auxiliary_encoder_has_no_relu_either() -> None:
    sae, x = few_positive(), torch.randn(20, D)
    dead = torch.arange(0, F, 2)
    best = pre_activations(sae, x)[:, dead].topk(K)
    codes = encode_among(sae, x, dead, K)
    torch.testing.assert_close(codes.values, best.values, rtol=2e-5, atol=2e-5)
    assert torch.equal(codes.indices.long(), dead[best.indices])
    whole = encode_among(sae, x, torch.arange(F), K)
    assert torch.equal(whole.values, sae.encode(x).values)
    guess = torch.zeros(20, F).scatter(1, dead[best.indices], best.values) @ sae.W_dec
    error = x - sae(x)
    want = (guess - error).square().sum() / error.square().sum()
    torch.testing.assert_close(auxk_loss(sae, x, sae(x), dead, K), want, rtol=1e-4, atol=1e-5)


class Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(D, F), torch.nn.Linear(F, D)
        torch.nn.init.constant_(self.encoder.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        best = self.encoder(x).topk(K)
        return self.decoder(torch.zeros(*x.shape[:-1], F).scatter(-1, best.indices, best.values))


def test_a_module_of_ones_own_is_accelerated_with_it() -> None:
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
    module, x = Plain(), torch.randn(9, D)
    want = module(x).detach()
    sk.accelerate(module, activation=sk.TopK(K, relu=False), names=names)
    with torch.no_grad():
        torch.testing.assert_close(module(x), want, rtol=2e-5, atol=2e-5)
    with pytest.raises(sk.NotAccelerated, match="on a small batch the result differs"):
        sk.accelerate(Plain(), activation=sk.TopK(K), names=names)


def test_formats_whose_topk_has_no_relu(tmp_path: Path) -> None:
    """circuit-tracer's TopK, Qwen Scope's model cards, and OpenAI's `postact_fn` Identity."""
    W, b = random(F, D) * 0.3, random(F) * 0.1 - 2.0
    dec, b_dec = random(F, D), random(D)
    best = (random(9, D, seed=5) @ W.T + b).topk(K)
    assert (best.values < 0).any()
    right = torch.zeros(9, F).scatter(-1, best.indices, best.values) @ dec + b_dec
    tensors = {"W_enc": W, "b_enc": b, "W_dec": dec, "b_dec": b_dec}
    save_file({**tensors, "k": torch.tensor(K)}, tmp_path / "layer_3.safetensors")
    torch.save({**tensors, "W_dec": dec.T.contiguous()}, tmp_path / "layer3.sae.pt")
    for path, options in (("layer_3.safetensors", {}), ("layer3.sae.pt", {"k": K})):
        sae = sk.load(tmp_path / path, **options)
        assert sae.activation == sk.TopK(K, relu=False)
        torch.testing.assert_close(sae(random(9, D, seed=5)).detach(), right, rtol=2e-5, atol=2e-5)
    identity = {"k": K, "postact_fn": "Identity"}
    w = openai(tmp_path / "7.pt", activation_state_dict=identity, latent_bias=b, **{"encoder.weight": W})
    x = random(9, D, seed=5)
    mu, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    best = (((x - mu) / (std + 1e-5) - w["pre_bias"]) @ W.T + b).topk(K)
    codes = torch.zeros(9, F).scatter(-1, best.indices, best.values)
    right = (codes @ w["decoder.weight"].T + w["pre_bias"]) * std + mu
    torch.testing.assert_close(sk.load(tmp_path / "7.pt")(x).detach(), right, rtol=2e-5, atol=2e-5)


def test_a_jumprelu_without_relu_is_refused_where_it_would_differ(tmp_path: Path) -> None:
    tensors = {"W_enc": random(F, D), "b_enc": random(F), "W_dec": random(F, D), "b_dec": random(D)}
    threshold = random(F, seed=4).abs()
    threshold[7] = -0.25
    save_file({**tensors, "activation_function.threshold": threshold}, tmp_path / "layer_3.safetensors")
    with pytest.raises(
        sk.FormatError, match=r"a threshold is -0\.25, need at least 0: negative latents are not served"
    ):
        sk.load(tmp_path / "layer_3.safetensors")
