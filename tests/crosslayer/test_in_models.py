"""Cross-layer transcoders in a model of transformers: caches, padding, compilation, and beside ordinary SAEs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import saekernels as sk
import tiny_lm

SITES = [f"model.layers.{layer}.mlp@module" for layer in range(2)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_lm.model()


@pytest.fixture(scope="module")
def clt() -> sk.CrossLayerTranscoder:
    torch.manual_seed(0)
    made = sk.CrossLayerTranscoder(tiny_lm.WIDTH, 64, 2, sk.TopK(4))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 300, (2, 10), generator=torch.Generator().manual_seed(1))


def test_generation_with_a_cache_is_that_without(model: Any, clt: sk.CrossLayerTranscoder, ids: torch.Tensor) -> None:
    with torch.no_grad(), sk.splice(model, sk.layer_sites(clt, SITES)):
        made = [
            model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=2)
            for cache in (True, False)
        ]
    assert made[0].shape[1] == 16
    assert torch.equal(*made)


def test_left_padding_changes_nothing(model: Any, clt: sk.CrossLayerTranscoder, ids: torch.Tensor) -> None:
    padded = torch.cat([torch.full((2, 3), 2), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    with torch.no_grad(), sk.splice(model, sk.layer_sites(clt, SITES)):
        whole = model(ids).logits
        got = model(padded, attention_mask=mask).logits[:, 3:]
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-4)


def test_compiled(model: Any, clt: sk.CrossLayerTranscoder, ids: torch.Tensor) -> None:
    with torch.no_grad(), sk.splice(model, sk.layer_sites(clt, SITES)):
        compiled = torch.compile(model, backend="eager")
        for given in (ids, ids.flip(1)):
            torch.testing.assert_close(compiled(given).logits, model(given).logits)


def test_beside_an_sae_that_it_reads_after(model: Any, clt: sk.CrossLayerTranscoder, ids: torch.Tensor) -> None:
    """Layer 1 of the transcoder alone: layer 0 is read, of the stream that an SAE before it has replaced."""
    torch.manual_seed(2)
    sae = sk.SAE(tiny_lm.WIDTH, 64, sk.TopK(4))
    sites = sk.layer_sites(clt, SITES)
    alone = {SITES[1]: sites[SITES[1]]}
    with torch.no_grad():
        with sk.splice(model, {"model.layers.0@input": sae, **alone}):
            together = model(ids).logits
        with sk.splice(model, {"model.layers.0@input": sae}), sk.splice(model, alone):
            nested = model(ids).logits
        with sk.splice(model, alone):
            without = model(ids).logits
    assert torch.equal(together, nested)
    assert not torch.allclose(together, without)
