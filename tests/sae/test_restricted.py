"""An SAE of some of the latents: what the whole one gives if the other pre-activations are minus infinity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saekernels.sae.activations import (
    AbsTopK,
    BatchTopK,
    ConstantNorm,
    Gated,
    GroupMax,
    JumpReLU,
    LayerNorm,
    ReLU,
    TopK,
)
from saekernels.sae.module import SAE
from saekernels.sae.restricted import restricted

ALLOWED = torch.tensor([30, 2, 11, 47, 5, 19, 8])
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (ReLU(), {"normalization": LayerNorm()}),
    (TopK(4), {}),
    (TopK(20), {"pre_bias": "separate"}),
    (TopK(3, relu=False), {"rescale_by_decoder_norm": True}),
    (AbsTopK(4), {}),
    (JumpReLU(), {"skip": True}),
    (BatchTopK(4), {"normalization": ConstantNorm()}),
    (Gated(), {}),
]


@torch.no_grad()
def made(activation: Any, options: dict[str, Any]) -> SAE:
    generator = torch.Generator().manual_seed(1)
    sae = SAE(16, 48, activation, **options)
    for name, value in [*sae.named_parameters(), *sae.named_buffers()]:
        value.copy_(0.3 * torch.randn(value.shape, generator=generator))
        if name == "threshold":
            value.abs_()
    return sae


@pytest.mark.parametrize(("activation", "options"), KINDS)
def test_it_is_the_sae_without_the_others(activation: Any, options: dict[str, Any]) -> None:
    """The other latents are shut by their biases, by which no encoder selects them, and their values are none."""
    sae = made(activation, options)
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(2))
    shut = made(activation, options)
    others = torch.ones(48, dtype=torch.bool)
    others[ALLOWED] = False
    with torch.no_grad():
        # No direction and a bias far below, or for magnitudes none at all, so that any other comes first.
        shut.W_enc[others] = 0
        for name in ("b_enc", "b_gate", "b_mag"):
            if getattr(shut, name, None) is not None:
                getattr(shut, name)[others] = 0 if isinstance(activation, AbsTopK) else -1e6
        shut.W_dec[others] = 0 if not sae.rescale_by_decoder_norm else shut.W_dec[others]
        got, codes = restricted(sae, ALLOWED).forward_with_codes(x)
        expected_codes = dense(shut, x)
        expected_codes[:, others] = 0
        whole = torch.zeros(50, 48)
        whole[:, ALLOWED] = codes.to_dense()
        torch.testing.assert_close(whole, expected_codes, rtol=1e-5, atol=1e-5)
        assert (whole != 0).any(1).float().mean() > 0.5
        torch.testing.assert_close(got, decoded(sae, x, expected_codes), rtol=1e-4, atol=1e-5)
        assert float((got - sae(x)).abs().max()) > 0.01, "the list changes nothing"


def dense(sae: SAE, x: Tensor) -> Tensor:
    return sae.encode(x).to_dense()


def decoded(sae: SAE, x: Tensor, z: Tensor) -> Tensor:
    """The output for codes z [T, F], by plain products."""
    scale = shift = None
    if sae.normalization is not None:
        _, scale, shift = sae.normalization.apply(x)
    if sae.rescale_by_decoder_norm:
        z = z / sae.decoder_norms()
    out = z @ sae.W_dec + sae.b_dec
    out = out if scale is None else out * scale
    out = out if shift is None else out + shift
    return out if sae.W_skip is None else out + x @ sae.W_skip.T


def test_all_latents_give_the_whole_in_any_order() -> None:
    sae = made(TopK(5), {})
    x = torch.randn(20, 16)
    order = torch.randperm(48)
    with torch.no_grad():
        part = restricted(sae, order)
        torch.testing.assert_close(part(x), sae(x))
        assert torch.equal(part.encode(x).to_dense(), sae.encode(x).to_dense()[:, order])
    assert (part.n_latents, part.activation, part.b_dec) == (48, TopK(5), sae.b_dec)
    assert restricted(sae, order[:3]).activation == TopK(3)
    assert sae.n_latents == 48
    assert sae.activation == TopK(5)


@pytest.mark.parametrize(
    ("activation", "latents", "message"),
    [
        (GroupMax(4), torch.tensor([1]), r"^sae: got GroupMax\(k=4\), need an activation that is not by groups of lat"),
        (
            TopK(4),
            torch.tensor([], dtype=torch.int64),
            r"^latents: got torch.int64 of shape \[0\], need int64 \[m\] wi",
        ),
        (TopK(4), torch.tensor([1.0]), r"^latents: got torch.float32 of shape \[1\], need int64 \[m\] with m >= 1$"),
        (TopK(4), torch.tensor([1, 48]), r"^latents: must lie in \[0, 48\), but entry 1 is 48$"),
        (TopK(4), torch.tensor([3, 3]), r"^latents: got some of them more than once, need each once$"),
    ],
)
def test_what_is_no_list(activation: Any, latents: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restricted(SAE(16, 48, activation), latents)
