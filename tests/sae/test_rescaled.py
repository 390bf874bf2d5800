"""SAEs that rescale by decoder norms: the scale goes to the encoder, and W_enc is the one that it multiplies with."""

from __future__ import annotations

import pytest
import torch

import saekernels as sk
from native_helpers import needs_native
from saekernels.sae.activations import AbsTopK, Activation, BatchTopK, Gated, GroupMax, JumpReLU, ReLU, TopK

D, F = 64, 600
ACTIVATIONS = (TopK(9), TopK(9, relu=False), AbsTopK(9), GroupMax(30), ReLU(), JumpReLU(), BatchTopK())


def rescaled(activation: Activation) -> sk.SAE:
    """Decoder norms from 0.1 to 3; a threshold that some pre-activations times them pass."""
    torch.manual_seed(0)
    sae = sk.SAE(D, F, activation, rescale_by_decoder_norm=True)
    with torch.no_grad():
        sae.W_enc.normal_(std=D**-0.5)
        assert sae.b_enc is not None
        sae.b_enc.normal_(std=0.1)
        sae.W_dec.mul_(torch.linspace(0.1, 3, F)[torch.randperm(F)][:, None])
        if sae.threshold is not None:
            sae.threshold.fill_(1.5)
    return sae


@needs_native
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_codes_are_exact_pre_activations_times_norms(activation: Activation) -> None:
    """Bit for bit: each rounded on its own, as the tools multiply them, and not a product with rounded rows."""
    sae, x = rescaled(activation), torch.randn(21, D)
    codes, norms = sae.encode(x), sae.decoder_norms()
    csr = codes.to_csr()
    assert csr.offsets is not None
    pre = sk.encode_at(x, sae.W_enc, sae.b_enc, csr.indices, csr.offsets, pre_bias=sae.b_dec)
    kept = pre if activation in (TopK(9, relu=False), AbsTopK(9)) else pre.relu()
    assert csr.values.numel() > 21
    assert torch.equal(csr.values, kept * norms[csr.indices.long()])


@pytest.mark.parametrize("activation", [*ACTIVATIONS, Gated()], ids=repr)
def test_codes_in_half_precision_are_rounded_once(activation: Activation) -> None:
    """Of whole numbers too large for bfloat16, and norms of 8 bits: float32 has their products, and rounds none."""
    gated = activation == Gated()
    sae = sk.SAE(D, F, activation, rescale_by_decoder_norm=not gated, dtype=torch.bfloat16)
    bias = sae.b_gate if gated else sae.b_enc
    assert bias is not None
    factor = 1 + torch.randint(0, 128, (F,)) / 128
    with torch.no_grad():
        sae.W_enc.copy_(torch.randint(-3, 4, (F, D)))
        bias.copy_(torch.randint(-9, 10, (F,)))
        sae.W_dec.zero_()[:, 0] = factor
        if sae.threshold is not None:
            sae.threshold.fill_(9)
        if gated:  # magnitudes are the products themselves then
            sae.b_mag.copy_(torch.randint(-9, 10, (F,)))
            factor, bias = torch.ones(F), sae.b_mag
    x = torch.randint(-9, 10, (21, D)).bfloat16()
    codes = sae.encode(x).to_csr()
    assert codes.offsets is not None
    rows, latents = torch.arange(21).repeat_interleave(codes.offsets.diff()), codes.indices.long()
    exact = ((x.double() @ sae.W_enc.double().T + bias.double()) * factor.double())[rows, latents]
    want = exact if activation in (TopK(9, relu=False), AbsTopK(9)) else exact.relu()
    assert codes.values.dtype == torch.bfloat16
    assert want.max() > 256
    assert torch.equal(codes.values, want.bfloat16())


@needs_native
def test_weights_are_prepared_and_never_copied() -> None:
    sae, x = rescaled(TopK(9)).requires_grad_(False), torch.randn(21, D)
    plain = sae.encode(x)
    assert sae.prepared() is not None
    assert torch.equal(plain.values, sae.encode(x).values)
    with torch.profiler.profile(profile_memory=True) as profile:
        sae.encode(x)
    assert 0 < max(event.self_cpu_memory_usage for event in profile.key_averages()) < F * D * 4 / 4


def test_a_latent_without_a_decoder_row_comes_last() -> None:
    """Its norm is 0, which no scale may be: as before it is chosen where too few are above 0, and then it is 0."""
    sae = rescaled(TopK(9))
    with torch.no_grad():
        sae.W_dec[5] = 0
        assert sae.b_enc is not None
        sae.b_enc[5] = 100
    assert 5 not in sae.encode(torch.randn(21, D)).indices
    with torch.no_grad():
        sae.b_enc.fill_(-100)
        sae.b_enc[5] = 100
    codes = sae.encode(torch.randn(21, D))
    assert bool((codes.indices[:, 0] == 5).all())
    assert float(codes.values.detach().max()) < 1e-30


@pytest.mark.parametrize("activation", [TopK(9), ReLU(), JumpReLU(), BatchTopK()], ids=lambda one: type(one).__name__)
def test_a_latent_without_a_decoder_row_says_nothing(activation: Activation) -> None:
    """A norm of 0 times a pre-activation is 0: threshold encoders leave it, and no decode divides by it."""
    sae = rescaled(activation)
    with torch.no_grad():
        sae.W_dec[5] = 0
        if sae.threshold is not None:
            sae.threshold.zero_()
        assert sae.b_enc is not None
        sae.b_enc.fill_(-100)
        sae.b_enc[5:7] = 100
    x = torch.randn(21, D)
    codes = sae.encode(x)
    out = sae.decode(codes)
    assert bool(out.isfinite().all())
    if not isinstance(activation, TopK):
        assert codes.indices.unique().tolist() == [6]
    expected = sae.W_dec[6] * (x @ sae.W_enc[6] + 100)[:, None] + sae.b_dec
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
