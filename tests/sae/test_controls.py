"""Controls made from an SAE: what differs is what they are named for, and nothing else."""

from __future__ import annotations

import pytest
import torch

import tiny_lm
from saekernels.sae.activations import JumpReLU, TopK
from saekernels.sae.controls import CONTROLS, control_of
from saekernels.sae.edits import Edit, EditedSAE
from saekernels.sae.module import SAE


@pytest.mark.parametrize("kind", CONTROLS)
def test_only_the_named_directions_differ_and_rows_keep_their_norms(kind: str) -> None:
    sae = tiny_lm.sae(0, jump=True)
    made = control_of(sae, kind, 3)
    name = "W_enc" if kind == "random_encoder" else "W_dec"
    own, before = dict(made.named_parameters()), dict(sae.named_parameters())
    assert list(own) == list(before)
    for key, value in own.items():
        assert (value is before[key]) == (key != name), key
    changed, kept = own[name], before[name]
    torch.testing.assert_close(changed.norm(dim=1), kept.norm(dim=1), rtol=1e-5, atol=0)
    cosines = torch.nn.functional.cosine_similarity(changed, kept)
    assert cosines.abs().mean() < 0.3
    assert made.activation == sae.activation
    assert not changed.requires_grad


def test_a_shuffled_decoder_has_the_same_directions_and_the_same_codes() -> None:
    sae = tiny_lm.sae(0)
    made = control_of(sae, "shuffled_decoder", 0)
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (made.W_dec, sae.W_dec)]
    best = (unit[0] @ unit[1].T).max(1)
    torch.testing.assert_close(best.values, torch.ones(64), rtol=0, atol=1e-5)
    assert best.indices.sort().values.tolist() == list(range(64))
    x = torch.randn(5, tiny_lm.WIDTH)
    assert torch.equal(made.encode(x).to_dense(), sae.encode(x).to_dense())


def test_selection_by_decoder_norms_is_kept() -> None:
    torch.manual_seed(0)
    sae = SAE(16, 32, TopK(4), rescale_by_decoder_norm=True)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(32, 1) + 0.1)
    x = torch.randn(9, 16)
    for kind in ("shuffled_decoder", "random_decoder"):
        torch.testing.assert_close(control_of(sae, kind).encode(x).to_dense(), sae.encode(x).to_dense())


def test_the_seed_decides_and_nothing_else() -> None:
    sae = tiny_lm.sae(0)
    for kind in CONTROLS:
        one, same, other = (dict(control_of(sae, kind, seed).named_parameters()) for seed in (1, 1, 2))
        name = "W_enc" if kind == "random_encoder" else "W_dec"
        assert torch.equal(one[name], same[name])
        assert not torch.equal(one[name], other[name])
    half = SAE(8, 16, JumpReLU(), dtype=torch.bfloat16)
    assert control_of(half, "random_decoder").W_dec.dtype == torch.bfloat16


def test_what_cannot_be_a_control() -> None:
    sae = tiny_lm.sae(0)
    with pytest.raises(ValueError, match=r"^kind: got 'frozen', need one of shuffled_decoder, random_decoder, random_"):
        control_of(sae, "frozen")
    with pytest.raises(TypeError, match=r"^sae: got EditedSAE, need a saekernels.SAE that holds its own weights$"):
        control_of(EditedSAE(sae, [Edit(3, "zero")]), "random_decoder")  # type: ignore[arg-type]
