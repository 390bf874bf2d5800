"""splice on TransformerLens hook points, against its own hooks and SAELens' own attachment of SAEs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from saekernels.sae.module import SAE
from saekernels.splice.context import splice
from splice_helpers import VOCAB, WIDTH, count_hooks, dense, make_sae, tiny_model, tokens

pytestmark = pytest.mark.peers
lens = pytest.importorskip("transformer_lens")

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "blocks.1.hook_mlp_out", "hook_embed"]


def tiny_lens(cls: Any = None, **options: Any) -> Any:
    """A HookedTransformer with 2 layers, width 16 and loud random weights."""
    config = {"n_layers": 2, "d_model": WIDTH, "n_ctx": 32, "d_head": 4, "n_heads": 4, "d_vocab": VOCAB, "d_mlp": 24}
    options.setdefault("normalization_type", "LNPre")
    torch.manual_seed(0)
    model = (cls or lens.HookedTransformer)(lens.HookedTransformerConfig(**config, act_fn="gelu", seed=0, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_lens()


def hook_for(sae: SAE, stays: Tensor | None = None) -> Any:
    """A TransformerLens hook that does by hand what the splice does."""

    def hook(x: Tensor, hook: object) -> Tensor:
        new = dense(sae, x.flatten(2)).view_as(x)
        return new if stays is None else torch.where(stays.view(*stays.shape, *[1] * (x.ndim - 2)), x, new)

    return hook


@torch.no_grad()
@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("untouched", [None, [0, 9]])
def test_hook_points_by_name(model, name, untouched):
    ids, sae = tokens(), make_sae()
    stays = None if untouched is None else torch.isin(ids, torch.tensor(untouched))
    expected = model.run_with_hooks(ids, fwd_hooks=[(name, hook_for(sae, stays))])
    with splice(model, {name: sae}, untouched=untouched):
        got = model(ids)
    assert_close(got, expected)
    assert (got - model(ids)).abs().max() > 0.01


@torch.no_grad()
def test_several_hook_points_and_a_transcoder(model):
    ids, saes, transcoder = tokens(), [make_sae(seed=i) for i in range(2)], make_sae(d_out=WIDTH, skip=True)
    read: list[Tensor] = []
    hooks = [
        ("blocks.0.ln2.hook_normalized", lambda x, hook: read.append(x)),
        ("blocks.0.hook_mlp_out", lambda x, hook: dense(transcoder, read[0])),
        ("blocks.0.hook_resid_post", hook_for(saes[0])),
        ("blocks.1.attn.hook_z", hook_for(saes[1])),
    ]
    expected = model.run_with_hooks(ids, fwd_hooks=hooks)
    sites = {"blocks.0.mlp@module": transcoder, "blocks.0.hook_resid_post": saes[0], "blocks.1.attn.hook_z": saes[1]}
    with splice(model, sites):
        assert_close(model(ids), expected)


@torch.no_grad()
def test_the_lens_own_hooks_live_beside_the_splice(model):
    ids, sae, name = tokens(), make_sae(), "blocks.0.hook_resid_post"
    clean, cache = model.run_with_cache(ids)
    before = count_hooks(model)
    with splice(model, {name: sae}):
        _, spliced = model.run_with_cache(ids)
        model.reset_hooks()
        logits = model(ids)
    assert_close(spliced[name], dense(sae, cache[name]))
    assert_close(logits, model.run_with_hooks(ids, fwd_hooks=[(name, hook_for(sae))]))
    assert count_hooks(model) == before
    assert torch.equal(model(ids), clean)


@torch.no_grad()
def test_generate(model):
    ids, sae, name = tokens(), make_sae(), "blocks.1.hook_resid_post"
    options = {"max_new_tokens": 6, "stop_at_eos": False, "do_sample": False, "verbose": False, "return_type": "tokens"}
    with model.hooks(fwd_hooks=[(name, hook_for(sae))]):
        expected = model.generate(ids, **options)
    with splice(model, {name: sae}):
        assert torch.equal(model.generate(ids, **options), expected)
    assert not torch.equal(model.generate(ids, **options), expected)


@torch.no_grad()
def test_token_ids_need_a_pass_that_has_tokens(model):
    with splice(model, {"blocks.1.hook_resid_post": make_sae()}, untouched=[0]):
        model(tokens())
        with pytest.raises(ValueError, match="no tokens reached the model's embedding"):
            model(torch.zeros(2, 7, WIDTH), start_at_layer=1)
        with pytest.raises(ValueError, match="no tokens reached the model's embedding"):
            model.generate(tokens(), max_new_tokens=2, stop_at_eos=False, verbose=False)


@torch.no_grad()
def test_unknown_hook_point_and_one_that_is_off(model):
    with pytest.raises(ValueError, match=r"'blocks.0.hook_resid_post'"):
        splice(model, {"blocks.0.hook_resid_pos": make_sae()})
    with (
        pytest.warns(RuntimeWarning, match="blocks.0.hook_mlp_in"),
        splice(model, {"blocks.0.hook_mlp_in": make_sae()}),
    ):
        model(tokens())


@torch.no_grad()
@pytest.mark.parametrize("name", ["blocks.1.hook_out", "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"])
def test_bridge_under_its_own_names_and_the_old_ones(tmp_path, name):
    ids, sae, source = tokens(), make_sae(), tiny_model("gpt2")
    source.save_pretrained(tmp_path)
    bridge = lens.model_bridge.TransformerBridge.boot_transformers(str(tmp_path), hf_model=source)
    expected = bridge.run_with_hooks(ids, fwd_hooks=[(name, hook_for(sae, ids == 0))])
    with splice(bridge, {name: sae}, untouched=[0]) as run:
        assert_close(bridge(ids), expected)
    assert run.calls == {name: 1}
    assert not torch.equal(bridge(ids), expected)


@pytest.mark.parametrize("error_term", [False, True])
@pytest.mark.parametrize("untouched", [None, [0, 9]])
def test_the_same_as_saelens_run_with_saes(error_term, untouched):
    sae_lens = pytest.importorskip("sae_lens")
    name, ids, sae = "blocks.0.hook_resid_post", tokens(), make_sae()
    model = tiny_lens(sae_lens.HookedSAETransformer)
    theirs = sae_lens.StandardSAE(
        sae_lens.StandardSAEConfig(
            d_in=WIDTH, d_sae=sae.n_latents, metadata=sae_lens.saes.sae.SAEMetadata(hook_name=name)
        )
    )
    theirs.load_state_dict(
        {"W_enc": sae.W_enc.T.contiguous(), "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    )
    options = {"use_error_term": error_term, "exclude_special_tokens": untouched or False}
    expected = model.run_with_saes(ids, saes=[theirs], **options)
    their_gradient = torch.autograd.grad(expected.square().mean(), theirs.W_dec)[0]
    with splice(model, {name: sae}, error_term=error_term, untouched=untouched):
        got = model(ids)
    assert_close(got, expected)
    my_gradient = torch.autograd.grad(got.square().mean(), sae.W_dec)[0]
    assert_close(my_gradient, their_gradient, atol=1e-4, rtol=1e-4)
    assert my_gradient.abs().max() > 0
