"""Checkpoints written by the real sae-lens and eai-sparsify, read by us, compared with their forward; and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saekernels as sk

pytestmark = pytest.mark.peers
sae_lens = pytest.importorskip("sae_lens", reason="the peers extra is not installed")
sparsify = pytest.importorskip("sparsify", reason="the peers extra is not installed")

D, F = 12, 48
SAELENS = {
    "standard": {},
    "standard-layer_norm": {"normalize_activations": "layer_norm"},
    "standard-constant_norm": {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False},
    "topk": {"k": 5},
    "topk-rescaled": {"k": 5, "rescale_acts_by_decoder_norm": True},
    "topk-layer_norm": {"k": 5, "normalize_activations": "layer_norm"},
    "abstopk": {"k": 5},
    "jumprelu": {},
    "jumprelu-no_b_dec": {"apply_b_dec_to_input": False},
    "gated": {},
    "transcoder": {"d_out": 7, "apply_b_dec_to_input": False},
    "skip_transcoder": {"d_out": 7, "apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"d_out": 7, "apply_b_dec_to_input": False},
    "jumprelu_skip_transcoder": {"d_out": 7, "apply_b_dec_to_input": False},
}


def randomise(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, value in module.named_parameters():
            scale = 0.3 if name.startswith(("b_", "r_")) or "bias" in name else 1.0
            value.copy_(torch.randn_like(value) * scale)
            if name == "threshold":
                value.abs_()


def saelens(name: str, **options: Any) -> Any:
    architecture = name.split("-")[0]
    kind, config = sae_lens.registry.get_sae_class(architecture)
    sae = kind(config(d_in=D, d_sae=F, **options))
    randomise(sae)
    return sae.eval()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", SAELENS)
def test_reads_saelens(name: str, tmp_path: Path) -> None:
    theirs = saelens(name, **SAELENS[name])
    theirs.save_model(tmp_path / "sae")
    ours = sk.load(tmp_path / "sae")
    x = torch.randn(3, 11, D)
    codes = ours.encode(x)
    close(codes.to_dense(), theirs.encode(x))
    close(ours(x), theirs(x))
    assert ours(x).shape == (3, 11, theirs.cfg.__dict__.get("d_out", D))


@pytest.mark.parametrize("name", [name for name in SAELENS if "norm" not in name])
def test_saelens_reads_ours(name: str, tmp_path: Path) -> None:
    theirs = saelens(name, **SAELENS[name])
    theirs.save_model(tmp_path / "sae")
    sk.save(sk.load(tmp_path / "sae"), tmp_path / "again")
    again = sae_lens.SAE.load_from_disk(tmp_path / "again")
    x = torch.randn(11, D)
    close(again(x), theirs(x))
    assert again.cfg.architecture() == theirs.cfg.architecture()


def test_saelens_reads_a_folded_scale(tmp_path: Path) -> None:
    ours = sk.SAE(D, F, sk.TopK(5), normalization=sk.Scale(1.9))
    randomise(ours)
    sk.save(ours, tmp_path / "sae")
    x = torch.randn(11, D)
    close(sae_lens.SAE.load_from_disk(tmp_path / "sae")(x), ours(x))


def test_saelens_reads_batchtopk_as_jumprelu(tmp_path: Path) -> None:
    ours = sk.SAE(D, F, sk.BatchTopK(5))
    randomise(ours)
    assert ours.threshold is not None
    ours.threshold.fill_(1.3)
    sk.save(ours, tmp_path / "sae")
    again = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    x = torch.randn(11, D)
    close(again(x), ours(x))
    close(again.encode(x), ours.encode(x).to_dense())


def test_reads_training_batchtopk_saved_for_inference(tmp_path: Path) -> None:
    theirs = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(d_in=D, d_sae=F, k=5))
    randomise(theirs)
    theirs.topk_threshold.fill_(0.8)
    theirs.save_inference_model(tmp_path / "sae")
    ours, x = sk.load(tmp_path / "sae"), torch.randn(11, D)
    assert ours.architecture == "jumprelu"
    close(ours(x), sae_lens.SAE.load_from_disk(tmp_path / "sae")(x))


SPARSIFY = {
    "topk": {},
    "groupmax": {"activation": "groupmax", "k": 6},
    "transcoder": {"transcode": True},
    "skip transcoder": {"transcode": True, "skip_connection": True},
    "num_latents": {"num_latents": 36},
}


@pytest.mark.parametrize("name", SPARSIFY)
def test_reads_sparsify(name: str, tmp_path: Path) -> None:
    config = sparsify.SparseCoderConfig(**{"k": 5, "expansion_factor": 4} | SPARSIFY[name])
    theirs = sparsify.SparseCoder(D, config)
    randomise(theirs)
    theirs.save_to_disk(tmp_path / "sae")
    ours, x = sk.load(tmp_path / "sae"), torch.randn(33, D)
    out = theirs(x, y=x)
    close(ours(x), out.sae_out)
    dense = torch.zeros(33, theirs.num_latents).scatter(1, out.latent_indices, out.latent_acts)
    close(ours.encode(x).to_dense(), dense)
