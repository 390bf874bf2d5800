"""Every layout of a cross-layer transcoder gives the same function: one of them, written as each tool writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import saekernels as sk
from layouts import IN, OUT, WRITERS, clt_forge, crosslayer_coding, decoder, gemma_scope, llamascopium, made, save


@torch.no_grad()
def agree(clt: sk.CrossLayerTranscoder, other: object, rtol: float = 1e-6) -> None:
    assert isinstance(other, sk.CrossLayerTranscoder)
    xs = [torch.linspace(-2, 2, 5 * clt.d_in).view(5, clt.d_in) * (s + 1) for s in range(clt.n_layers)]
    for got, wanted in zip(other(xs), clt(xs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("name", WRITERS)
def test_the_case_by_hand(name: str, lazy: bool, tmp_path: Path) -> None:
    """Codes (1, 0), (0, 2), (0, 0); what is written is (1.1, 0), (4, 1.1), (1.1, 7.1)."""
    clt = sk.CrossLayerTranscoder(2, 2, 3, sk.JumpReLU())
    with torch.no_grad():
        for s in range(3):
            source = clt.source(s)
            source.W_enc.copy_(torch.eye(2))
            source.threshold.fill_(0.5)  # type: ignore[union-attr]
            source.W_dec.fill_(9)
        clt.source(0).W_dec[0] = torch.tensor([1.0, 0, 0, 1, 1, 1])
        clt.source(1).W_dec[1] = torch.tensor([2.0, 0, 0, 3])
        for target, bias in enumerate(((0.1, 0.0), (0.0, 0.1), (0.1, 0.1))):
            clt.b_dec[target].copy_(torch.tensor(bias))
    WRITERS[name](clt, tmp_path)
    found = sk.load_cross_layer(tmp_path, lazy=lazy)
    assert isinstance(found, sk.CrossLayerTranscoder)
    assert found.metadata is not None
    assert found.metadata.format == name
    xs = [torch.tensor([row]) for row in ((1, 0.5), (0.25, 2), (0.0, -1))]
    torch.testing.assert_close(torch.cat(found(xs)), torch.tensor([(1.1, 0), (4, 1.1), (1.1, 7.1)]))
    if name in ("circuit-tracer CLT", "Llamascopium CLT", "crosslayer-coding"):
        assert found.sites == tuple(f"blocks.{s}.{IN} -> blocks.{s}.{OUT}" for s in range(3))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(list(WRITERS)), d=st.integers(1, 5), half=st.integers(1, 4), n_layers=st.integers(1, 4))
def test_any_sizes(name: str, d: int, half: int, n_layers: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    clt = made(d, 2 * half, n_layers)
    folder = tmp_path_factory.mktemp("clt")
    WRITERS[name](clt, folder)
    agree(clt, sk.load_cross_layer(folder))


def test_skips_are_transposed(tmp_path: Path) -> None:
    clt = made(3, 4, 2, skip=True)
    gemma_scope(clt, tmp_path)
    agree(clt, sk.load_cross_layer(tmp_path))


def test_shards_and_factors(tmp_path: Path) -> None:
    clt = made(3, 6, 3)
    clt_forge(clt, tmp_path, shards=3, ins=0.5)
    agree(clt, sk.load_cross_layer(tmp_path))


def test_a_torch_file(tmp_path: Path) -> None:
    clt = made(3, 4, 3)
    crosslayer_coding(clt, tmp_path, pt=True)
    agree(clt, sk.load_cross_layer(tmp_path))


@pytest.mark.parametrize("scale", [1.0, 2.0])
@torch.no_grad()
def test_thresholds_of_weighted_pre_activations(scale: float, tmp_path: Path) -> None:
    """Against the formula: pre-activations times norms of all targets concatenated are compared, codes are not so."""
    clt = made(3, 6, 3)
    for s in range(3):
        clt.source(s).threshold.mul_(16)  # type: ignore[union-attr]  # so that norms decide
    llamascopium(clt, tmp_path, norms=True, scale=scale)
    found = sk.load_cross_layer(tmp_path)
    xs = [torch.linspace(-2, 2, 15).view(5, 3) * (s + 1) for s in range(3)]
    codes = []
    for s, x in enumerate(xs):
        own = clt.source(s)
        pre, norms = x @ own.W_enc.T + own.b_enc, own.W_dec.norm(dim=1) * scale
        codes.append(torch.where(pre * norms > own.threshold, pre, 0.0))
        first = own.decoder_to(0).norm(dim=1) * scale
        assert s == 2 or bool(((pre * first > own.threshold) != (codes[-1] != 0)).any())
    for t, got in enumerate(found(xs)):  # type: ignore[operator]
        wanted = clt.b_dec[t] + sum(codes[s] @ decoder(clt, s, t) for s in range(t + 1))
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


def test_a_crosscoder_has_one_end(tmp_path: Path) -> None:
    folder = tmp_path / "crosscoder" / "layer_5_9_12_width_16k_l0_big"
    folder.mkdir(parents=True)
    gemma_scope(made(3, 4, 3), folder)
    assert sk.load_cross_layer(folder).sites == tuple(f"blocks.{s}.hook_resid_post" for s in (5, 9, 12))


def test_transcoders_apart(tmp_path: Path) -> None:
    clt = made(3, 4, 3)
    tensors = {
        "W_enc": torch.stack([clt.source(s).W_enc.T / 2 for s in range(3)]),
        "b_enc": torch.stack([clt.source(s).b_enc for s in range(3)]),  # type: ignore[misc]
        "log_threshold": torch.stack([clt.source(s).threshold.log() for s in range(3)]),  # type: ignore[union-attr]
        "W_dec": torch.stack([decoder(clt, s, s) for s in range(3)]),
        "b_dec": torch.stack([clt.b_dec[s] for s in range(3)]),
        "estimated_norm_scaling_factor_in": torch.full((3,), 2.0),
    }
    save(tensors, tmp_path / "clt_weights.safetensors")
    config = {"d_in": 3, "d_latent": 4, "n_layers": 3, "cross_layer_decoders": False}
    (tmp_path / "clt_cfg.json").write_text(json.dumps(config))
    found = sk.load_cross_layer(tmp_path)
    assert isinstance(found, sk.TranscoderSet)
    x = torch.linspace(-2, 2, 15).view(5, 3)
    for s, codes in enumerate(clt.encode([x] * 3)):
        torch.testing.assert_close(found.transcoder(s)(x), codes.to_dense() @ decoder(clt, s, s) + clt.b_dec[s])
    assert list(found.at_sites())[1] == "blocks.1.ln2.hook_normalized -> blocks.1.hook_mlp_out"
