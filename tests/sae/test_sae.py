"""The SAE module: every architecture against its dense formula, extras, codes, dtypes, gradients."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

import saekernels as sk
from saekernels.sae.activations import Activation, Normalization
from zoo import randomised

ACTIVATIONS: list[Activation] = [
    sk.ReLU(),
    sk.TopK(5),
    sk.AbsTopK(5),
    sk.GroupMax(4),
    sk.JumpReLU(),
    sk.BatchTopK(5),
    sk.Gated(),
]
NORMALIZATIONS: list[Normalization | None] = [None, sk.LayerNorm(), sk.ConstantNorm(), sk.Scale(0.37)]


def dense_codes(sae: sk.SAE, x: Tensor) -> Tensor:
    """The definitions of saekernels.sae.activations on [tokens, F]."""
    centred = x if sae.pre_bias is None else x - sae.pre_bias
    pre = centred @ sae.W_enc.T
    activation = sae.activation
    if isinstance(activation, sk.Gated):
        return (sae.r_mag.exp() * pre + sae.b_mag).relu() * (pre + sae.b_gate > 0)
    assert sae.b_enc is not None
    pre = pre + sae.b_enc
    if sae.rescale_by_decoder_norm:
        pre = pre * sae.W_dec.norm(dim=1)
    if isinstance(activation, sk.TopK):
        best = pre.topk(activation.k)
        return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())
    if isinstance(activation, sk.AbsTopK):
        best = pre.abs().topk(activation.k).indices
        return torch.zeros_like(pre).scatter(-1, best, pre.gather(-1, best))
    if isinstance(activation, sk.GroupMax):
        best = pre.unflatten(-1, (activation.k, -1)).max(-1)
        start = torch.arange(activation.k) * (sae.n_latents // activation.k)
        return torch.zeros_like(pre).scatter(-1, best.indices + start, best.values.relu())
    threshold = 0.0 if sae.threshold is None else sae.threshold
    return pre.relu() * (pre > threshold)


def dense_forward(sae: sk.SAE, x: Tensor) -> Tensor:
    """The formulas of the module's docstring."""
    scale, shift = torch.ones(1, dtype=x.dtype), torch.zeros(1, dtype=x.dtype)
    inner = x
    if isinstance(sae.normalization, sk.LayerNorm):
        shift, scale = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        inner = (x - shift) / (scale + sae.normalization.eps)
    elif isinstance(sae.normalization, sk.ConstantNorm):
        scale = x.norm(dim=-1, keepdim=True) / math.sqrt(sae.d_in)
        inner = x / scale
    elif isinstance(sae.normalization, sk.Scale):
        scale = scale / sae.normalization.factor
        inner = x / scale
    codes = dense_codes(sae, inner)
    if sae.rescale_by_decoder_norm:
        codes = codes / sae.W_dec.norm(dim=1)
    out = (codes @ sae.W_dec + sae.b_dec) * scale + shift
    return out if sae.W_skip is None else out + x @ sae.W_skip.T


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=lambda n: getattr(n, "name", "none"))
@pytest.mark.parametrize("extras", ["plain", "transcoder", "skip", "separate", "rescaled"])
def test_matches_dense_formula(activation: Activation, normalization: Normalization | None, extras: str) -> None:
    if extras == "rescaled" and isinstance(activation, sk.Gated):
        pytest.skip("not defined for Gated; test_errors holds the refusal")
    options: dict[str, object] = {
        "plain": {},
        "transcoder": {"d_out": 7, "pre_bias": "none"},
        "skip": {"d_out": 7, "pre_bias": "none", "skip": True},
        "separate": {"pre_bias": "separate"},
        "rescaled": {"rescale_by_decoder_norm": True},
    }[extras]  # type: ignore[assignment]
    sae = randomised(sk.SAE(12, 60, activation, normalization=normalization, dtype=torch.float64, **options))  # type: ignore
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    out, codes = sae.forward_with_codes(x)
    torch.testing.assert_close(out, dense_forward(sae, x))
    assert torch.equal(out, sae(x))
    assert out.shape == (2, 9, sae.d_out)

    dense = codes.to_dense()
    assert dense.shape == (2, 9, 60)
    assert codes.tokens == 18
    assert torch.equal(codes.l0(), (dense != 0).sum(-1))
    flat = codes.to_csr()
    assert torch.equal(flat.to_dense(), dense)
    assert torch.equal(flat.l0(), codes.l0())

    single = sae.to(torch.float32)
    torch.testing.assert_close(
        single(x.float()).double(), dense_forward(sae.to(torch.float64), x), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
def test_gradients_match_dense_formula(activation: Activation) -> None:
    sae = randomised(sk.SAE(12, 60, activation, dtype=torch.float64, skip=True))
    twin = copy.deepcopy(sae)
    x = torch.randn(9, 12, dtype=torch.float64)
    (sae(x) - x).square().sum().backward()
    (dense_forward(twin, x) - x).square().sum().backward()
    for (name, ours), (_, theirs) in zip(sae.named_parameters(), twin.named_parameters(), strict=True):
        if name in ("threshold", "b_gate"):
            assert ours.grad is None, f"{name} gets no gradient here"
            continue
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_keeps_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    sae = sk.SAE(16, 64, sk.TopK(4))
    x = torch.randn(5, 16)
    assert sae(x.to(dtype)).dtype == dtype
    assert torch.equal(sae(x.to(dtype)), sae(x.to(dtype).float()).to(dtype))
    half = copy.deepcopy(sae).to(dtype)
    assert half(x).dtype == torch.float32
    assert (half(x) - sae(x)).norm() < 0.05 * sae(x).norm()


def test_negative_thresholds_let_nothing_negative_through() -> None:
    for activation in (sk.JumpReLU(), sk.BatchTopK()):
        sae = randomised(sk.SAE(8, 30, activation))
        assert sae.threshold is not None
        with torch.no_grad():
            sae.threshold.fill_(-1.0)
        codes = sae.encode(torch.randn(20, 8))
        assert (codes.values > 0).all()


def test_fresh_weights() -> None:
    sae = sk.SAE(16, 64, sk.TopK(4))
    torch.testing.assert_close(sae.decoder_norms(), torch.ones(64))
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert not sae.b_dec.any()
    assert sae.architecture == "topk"
    assert "TopK(k=4)" in repr(sae)


def test_re_entrant_normalisation() -> None:
    """Statistics travel with the codes, so two encodes before a decode do not mix."""
    sae = randomised(sk.SAE(8, 30, sk.TopK(3), normalization=sk.LayerNorm()))
    first, second = torch.randn(4, 8), 10 * torch.randn(4, 8) + 3
    codes = sae.encode(first)
    sae.encode(second)
    assert torch.equal(sae.decode(codes), sae(first))


@pytest.mark.parametrize("shape", [(0, 8), (8,), (2, 0, 8)])
def test_empty_and_single(shape: tuple[int, ...]) -> None:
    for activation in ACTIVATIONS:
        sae = sk.SAE(8, 32, activation)
        assert sae(torch.randn(shape)).shape == shape
        assert sae.encode(torch.randn(shape)).to_dense().shape == (*shape[:-1], 32)


def test_state_dict_round_trip_and_deepcopy() -> None:
    for activation in ACTIVATIONS:
        sae = randomised(sk.SAE(8, 32, activation, skip=True))
        other = sk.SAE(8, 32, activation, skip=True)
        other.load_state_dict(sae.state_dict())
        x = torch.randn(5, 8)
        assert torch.equal(other(x), sae(x))
        assert torch.equal(copy.deepcopy(sae)(x), sae(x))


def test_training_recovers_planted_features() -> None:
    """Our ops alone train a TopK SAE: sparse combinations of 24 directions are explained after 300 steps."""
    directions = torch.nn.functional.normalize(torch.randn(24, 32), dim=1)
    sae = sk.SAE(32, 96, sk.TopK(3))
    optimizer = torch.optim.Adam(sae.parameters(), lr=5e-3)

    def batch() -> Tensor:
        codes = torch.zeros(256, 24).scatter(1, torch.rand(256, 24).topk(3).indices, 1.0 + torch.rand(256, 3))
        return codes @ directions

    for _ in range(300):
        x = batch()
        loss = (sae(x) - x).square().sum() / x.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = batch()
    assert (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum() < 0.1
