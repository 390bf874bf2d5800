"""Every layout of a cross-layer transcoder gives the same function: one of them, written as each tool writes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import saekernels as sk

IN, OUT = "hook_resid_mid", "hook_mlp_out"


@torch.no_grad()
def made(d: int, n_latents: int, n_layers: int, *, skip: bool = False) -> sk.CrossLayerTranscoder:
    """Weights that are small integers over 4, thresholds that are powers of two: exact in every layout."""
    clt = sk.CrossLayerTranscoder(d, n_latents, n_layers, sk.JumpReLU(), skip=skip)
    generator = torch.Generator().manual_seed(d + 10 * n_latents + 100 * n_layers)
    for name, value in clt.named_parameters():
        value.copy_(torch.randint(-8, 9, value.shape, generator=generator) / 4)
        if name.endswith("threshold"):
            value.copy_(2.0 ** torch.randint(-2, 1, value.shape, generator=generator))
    return clt


def decoder(clt: sk.CrossLayerTranscoder, s: int, t: int) -> Tensor:
    return clt.source(s).decoder_to(t - s).detach()


def circuit_tracer(clt: sk.CrossLayerTranscoder, folder: Path) -> None:
    for s in range(clt.n_layers):
        own = clt.source(s)
        encoder = {"W_enc": own.W_enc, "b_enc": own.b_enc, "b_dec": clt.b_dec[s], "threshold": own.threshold}
        save_file({f"{name}_{s}": value.detach() for name, value in encoder.items()}, folder / f"W_enc_{s}.safetensors")
        rows = own.W_dec.detach().view(own.n_latents, own.targets, clt.d_out)
        save_file({f"W_dec_{s}": rows}, folder / f"W_dec_{s}.safetensors")
    (folder / "config.yaml").write_text(
        f"model_name: m\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: {IN}\nfeature_output_hook: {OUT}\n"
    )


def gemma_scope(clt: sk.CrossLayerTranscoder, folder: Path) -> None:
    for s in range(clt.n_layers):
        own = clt.source(s)
        square = torch.zeros(own.n_latents, clt.n_layers, clt.d_out)
        square[:, s:] = own.W_dec.detach().view(own.n_latents, own.targets, clt.d_out)
        tensors = {"w_enc": own.W_enc.T, "b_enc": own.b_enc, "threshold": own.threshold, "w_dec": square}
        tensors["b_dec"] = clt.b_dec[s]
        if clt.W_skip is not None:
            tensors["affine_skip_connection"] = clt.W_skip[s].T
        save(tensors, folder / f"params_layer_{s}.safetensors")


def llamascopium(clt: sk.CrossLayerTranscoder, folder: Path, *, norms: bool = False, scale: float = 1.0) -> None:
    L = range(clt.n_layers)
    hooks = {end: [f"blocks.{s}.{hook}" for s in L] for end, hook in (("in", IN), ("out", OUT))}
    tensors = {
        "W_E": torch.stack([clt.source(s).W_enc.T / scale for s in L]),
        "b_E": torch.stack([clt.source(s).b_enc for s in L]),
        "activation_function.log_jumprelu_threshold": torch.stack([clt.source(s).threshold.log() for s in L]),
        **{f"W_D.{t}": torch.stack([decoder(clt, s, t) * scale for s in range(t + 1)]) for t in L},
        **{f"b_D.{t}": clt.b_dec[t] * scale for t in L},
    }
    config = {"sae_type": "clt", "d_model": clt.d_in, "act_fn": "jumprelu", "norm_activation": "none",
              "sparsity_include_decoder_norm": norms, "hook_points_in": hooks["in"], "hook_points_out": hooks["out"]}  # fmt: skip
    if scale != 1:
        config["norm_activation"] = "dataset-wise"
        norm = torch.tensor(clt.d_in**0.5 / scale)
        tensors |= {f"dataset_average_activation_norm.{hook}": norm for end in hooks.values() for hook in end}
    save(tensors, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def clt_forge(clt: sk.CrossLayerTranscoder, folder: Path, *, shards: int = 1, ins: float = 1.0) -> None:
    n, F = clt.n_layers, clt.source(0).n_latents
    pairs = list(zip(*torch.triu_indices(n, n).tolist(), strict=True))
    biases = torch.stack([clt.b_dec[t].detach() / (t + 1) for _, t in pairs]) * 2
    size = F // shards
    for rank in range(shards):
        own = slice(rank * size, (rank + 1) * size)
        tensors = {
            "W_enc": torch.stack([clt.source(s).W_enc[own].T / ins for s in range(n)]),
            "b_enc": torch.stack([clt.source(s).b_enc[own] for s in range(n)]),
            "log_threshold": torch.stack([clt.source(s).threshold[own].log() for s in range(n)]),
            "W_dec": torch.stack([decoder(clt, s, t)[own] * 2 for s, t in pairs]),
            "b_dec": biases,
            "estimated_norm_scaling_factor_in": torch.full((n,), ins),
            "estimated_norm_scaling_factor_out": torch.full((n,), 2.0),
            "layer_mask": torch.zeros(n, len(pairs)),
            "feature_count": torch.zeros(n, size, dtype=torch.long),
        }
        save(tensors, folder / (f"rank{rank}_" * (shards > 1) + "clt_weights.safetensors"))
    config = {"model_name": "gpt2", "d_in": clt.d_in, "d_latent": F, "n_layers": n, "cross_layer_decoders": True,
              "feature_sharding": shards > 1, "jumprelu_bandwidth": 1.0}  # fmt: skip
    (folder / "clt_cfg.json").write_text(json.dumps(config))


def crosslayer_coding(clt: sk.CrossLayerTranscoder, folder: Path, *, pt: bool = False) -> None:
    n = clt.n_layers
    tensors = {"theta_manager.log_threshold": torch.stack([clt.source(s).threshold.log() for s in range(n)])}
    for s in range(n):
        tensors[f"encoder_module.encoders.{s}.weight"] = clt.source(s).W_enc
        tensors[f"encoder_module.encoders.{s}.bias_param"] = clt.source(s).b_enc
        for t in range(s, n):
            tensors[f"decoder_module.decoders.{s}->{t}.weight"] = decoder(clt, s, t).T
            tensors[f"decoder_module.decoders.{s}->{t}.bias_param"] = clt.b_dec[t] / (t + 1)
    if pt:
        torch.save({name: value.detach() for name, value in tensors.items()}, folder / "clt.pt")
    else:
        save(tensors, folder / "model.safetensors")
    config = {"num_features": clt.source(0).n_latents, "num_layers": n, "d_model": clt.d_in,
              "activation_fn": "jumprelu", "tl_input_template": f"blocks.{{}}.{IN}",
              "tl_output_template": f"blocks.{{}}.{OUT}"}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))


def save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, path)


WRITERS: dict[str, Callable[[sk.CrossLayerTranscoder, Path], None]] = {
    "circuit-tracer CLT": circuit_tracer,
    "Gemma Scope 2": gemma_scope,
    "Llamascopium CLT": llamascopium,
    "CLT-Forge": clt_forge,
    "crosslayer-coding": crosslayer_coding,
}


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


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    llamascopium(clt, tmp_path, norms=True, scale=scale)
    found = sk.load_cross_layer(tmp_path)
    xs = [torch.linspace(-2, 2, 15).view(5, 3) * (s + 1) for s in range(3)]
    codes = []
    for s, x in enumerate(xs):
        own = clt.source(s)
        pre, norms = x @ own.W_enc.T + own.b_enc, own.W_dec.norm(dim=1) * scale
        codes.append(torch.where(pre * norms > own.threshold, pre, 0.0))
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
