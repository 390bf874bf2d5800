"""splice: what goes in, where, in which dtype, and that nothing is left behind."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from saekernels.splice.context import splice
from splice_helpers import (
    WIDTH,
    count_hooks,
    dense,
    llama_from_layers,
    make_sae,
    patched_forward,
    tiny_model,
    tokens,
)

pytest.importorskip("transformers")

BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "neox": "gpt_neox.layers", "gemma2": "model.layers"}


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return tiny_model("llama")


def first(output: object, new: object) -> object:
    """The oracle's way to put ``new`` in a layer's return value."""
    return (new, *output[1:]) if isinstance(output, tuple) else new


@torch.no_grad()
def test_layer_outputs_match_a_forward_done_by_hand(llama):
    ids, one, two = tokens(), make_sae(seed=1), make_sae(seed=2, k=5)
    clean = llama_from_layers(llama, ids, {})
    assert_close(llama(ids).logits, clean)
    with splice(llama, {"model.layers.0": one, "model.layers.2": two}) as run:
        got = llama(ids).logits
    expected = llama_from_layers(llama, ids, {0: lambda h: dense(one, h), 2: lambda h: dense(two, h)})
    assert_close(got, expected)
    assert (got - clean).abs().max() > 0.1
    assert run.calls == {"model.layers.0": 1, "model.layers.2": 1}


@torch.no_grad()
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("part", ["", ".attention", ".mlp"])
def test_every_architecture(kind, part):
    model, ids, sae = tiny_model(kind), tokens(), make_sae()
    attention = {"llama": ".self_attn", "gpt2": ".attn", "neox": ".attention", "gemma2": ".self_attn"}[kind]
    path = f"{BLOCKS[kind]}.1{attention if part == '.attention' else part}"

    def wrap(old, *args, **kwargs):
        output = old(*args, **kwargs)
        return first(output, dense(sae, output[0] if isinstance(output, tuple) else output))

    with patched_forward(model.get_submodule(path), wrap):
        expected = model(ids).logits
    with splice(model, {path: sae}):
        got = model(ids).logits
    assert_close(got, expected)
    assert (got - model(ids).logits).abs().max() > 0.01


@torch.no_grad()
def test_model_output_keeps_its_class_and_other_fields(llama):
    ids, sae = tokens(), make_sae()
    clean = llama.model(ids)
    with splice(llama, {"model": sae}):
        spliced = llama.model(ids)
        logits = llama(ids).logits
    assert type(spliced) is type(clean)
    assert_close(spliced.last_hidden_state, dense(sae, clean.last_hidden_state))
    assert spliced.past_key_values.get_seq_length() == ids.shape[1]
    assert_close(logits, llama.lm_head(dense(sae, clean.last_hidden_state)))


@torch.no_grad()
def test_input_of_o_proj(llama):
    ids, sae = tokens(), make_sae(k=4)
    with patched_forward(llama.model.layers[1].self_attn.o_proj, lambda old, x: old(dense(sae, x))):
        expected = llama(ids).logits
    with splice(llama, {"model.layers.1.self_attn.o_proj@input": sae}):
        assert_close(llama(ids).logits, expected)


@torch.no_grad()
def test_input_passed_by_keyword(llama):
    ids, sae = tokens(), make_sae()

    def wrap(old, *, hidden_states, **kwargs):
        return old(hidden_states=dense(sae, hidden_states), **kwargs)

    with patched_forward(llama.model.layers[1].self_attn, wrap):
        expected = llama(ids).logits
    with splice(llama, {"model.layers.1.self_attn@input": sae}):
        assert_close(llama(ids).logits, expected)


@torch.no_grad()
def test_transcoder_reads_the_input_and_keeps_its_skip(llama):
    ids, transcoder = tokens(), make_sae(d_out=WIDTH, skip=True)
    mlp = llama.model.layers[1].mlp
    seen: list[tuple[Tensor, ...]] = []
    with patched_forward(mlp, lambda old, x: dense(transcoder, x)):
        expected = llama(ids).logits
    with splice(llama, {"model.layers.1.mlp@module": transcoder}, observer=lambda *a: seen.append(a[1:4])):
        assert_close(llama(ids).logits, expected)
    x, x_hat, target = seen[0]
    assert_close(x_hat, dense(transcoder, x))
    assert_close(target, mlp(x))


@torch.no_grad()
def test_transcoder_of_other_widths(llama):
    ids, transcoder = tokens(), make_sae(WIDTH, 24)
    path = "model.layers.0.mlp.up_proj"
    with patched_forward(llama.get_submodule(path), lambda old, x: dense(transcoder, x)):
        expected = llama(ids).logits
    with splice(llama, {path + "@module": transcoder}):
        assert_close(llama(ids).logits, expected)


@torch.no_grad()
def test_zero_mean_and_a_mode_for_each_site(llama):
    ids, sae, mean = tokens(), make_sae(), torch.randn(WIDTH)
    zero = llama_from_layers(llama, ids, {1: torch.zeros_like})
    constant = llama_from_layers(llama, ids, {1: lambda h: mean.expand_as(h)})
    seen = []
    with splice(llama, {"model.layers.1": None}, replace="zero", observer=lambda *a: seen.append(a)):
        assert_close(llama(ids).logits, zero)
    assert seen[0][4] is None
    assert not seen[0][2].any()
    with splice(llama, {"model.layers.1": sae}, replace="mean", means={"model.layers.1": mean, "elsewhere": mean}):
        assert_close(llama(ids).logits, constant)
    sites = {"model.layers.0": sae, "model.layers.1": None}
    with splice(llama, sites, replace={"model.layers.0": "sae", "model.layers.1": "zero"}) as run:
        assert_close(
            llama(ids).logits, llama_from_layers(llama, ids, {0: lambda h: dense(sae, h), 1: torch.zeros_like})
        )
    assert run.sites == tuple(sites)


@torch.no_grad()
def test_heads_are_folded_where_the_sae_is_as_wide_as_all_of_them():
    model, sae, x = nn.Sequential(nn.Identity()), make_sae(), torch.randn(2, 3, 4, WIDTH // 4)
    with splice(model, {"0": sae}):
        assert_close(model(x), dense(sae, x.reshape(2, 3, WIDTH)).reshape(x.shape))
    one_head = make_sae(WIDTH // 4)
    with splice(model, {"0": one_head}):
        assert_close(model(x), dense(one_head, x))


@torch.no_grad()
def test_splices_on_one_module_compose_in_order(llama):
    ids, a, b = tokens(), make_sae(seed=1), make_sae(seed=2)
    expected = llama_from_layers(llama, ids, {1: lambda h: dense(b, dense(a, h))})
    only_a = llama_from_layers(llama, ids, {1: lambda h: dense(a, h)})
    assert (expected - only_a).abs().max() > 0.1
    with splice(llama, {"model.layers.1": a}):
        with splice(llama, {"model.layers.1": b}):
            assert_close(llama(ids).logits, expected)
        assert_close(llama(ids).logits, only_a)


@torch.no_grad()
def test_used_again_but_not_entered_twice(llama):
    ids, before = tokens(), count_hooks(llama)
    clean = llama(ids).logits
    again = splice(llama, {"model.layers.1": make_sae()})
    results = []
    for _ in range(2):
        with again:
            results.append(llama(ids).logits)
            with pytest.raises(RuntimeError, match="already active"):
                again.__enter__()
            assert torch.equal(llama(ids).logits, results[0])
        assert again.calls == {"model.layers.1": 2}
        assert count_hooks(llama) == before
        assert torch.equal(llama(ids).logits, clean)
    assert torch.equal(*results)
    assert not torch.equal(results[0], clean)


@torch.no_grad()
def test_hooks_go_away_after_any_failure(llama, monkeypatch):
    ids, sae = tokens(), make_sae()
    before, clean = count_hooks(llama), llama(ids).logits

    def bad_observer(*args):
        raise KeyError("observer")

    with pytest.raises(KeyError, match="observer"), splice(llama, {"model.layers.1": sae}, observer=bad_observer):
        llama(ids)
    with pytest.raises(IndexError), splice(llama, {"model.layers.1": sae}, untouched=[0]):
        llama(ids + 10 * ids.max())
    with pytest.raises(ValueError, match="no module"):
        splice(llama, {"model.layers.1": sae, "model.layers.9": sae})

    def no_hooks(*args, **kwargs):
        raise OSError("no hooks here")

    monkeypatch.setattr(llama.model.layers[2], "register_forward_hook", no_hooks)
    broken = splice(llama, {"model.layers.1": sae, "model.layers.2": sae}, untouched=[0])
    with pytest.raises(OSError, match="no hooks here"):
        broken.__enter__()
    assert count_hooks(llama) == before
    assert torch.equal(llama(ids).logits, clean)
    monkeypatch.undo()
    with broken:
        assert not torch.equal(llama(ids).logits, clean)
    assert count_hooks(llama) == before


@torch.no_grad()
def test_a_site_that_is_never_called_is_reported(llama):
    unused = nn.Sequential(nn.Identity())
    unused.spare = nn.Identity()
    unused.forward = lambda x: x
    with pytest.warns(RuntimeWarning, match="nothing was replaced at spare"), splice(unused, {"spare": make_sae()}):
        unused(torch.zeros(1, WIDTH))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with splice(unused, {"spare": make_sae()}):
            pass
        with splice(llama, {"model.layers.1": make_sae()}):
            llama(tokens())
