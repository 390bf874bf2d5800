"""splice: the positions that keep their activation, by mask and by token ids."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from saekernels.splice.context import splice
from splice_helpers import WIDTH, count_hooks, dense, llama_from_layers, make_sae, tiny_model, tokens

pytest.importorskip("transformers")

SITE = "model.layers.1"


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return tiny_model("llama")


def by_hand(model, ids, sae, stays):
    """Logits with layer 1 replaced except where ``stays``."""
    return llama_from_layers(model, ids, {1: lambda h: torch.where(stays[..., None], h, dense(sae, h))})


@torch.no_grad()
def test_mask(llama):
    ids, sae, seen = tokens(), make_sae(), []
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    masks = [mask, ~mask, None]
    stays = [mask, ~mask, torch.zeros_like(mask)]
    expected = [by_hand(llama, ids, sae, m) for m in stays]
    with splice(llama, {SITE: sae}, untouched=mask, observer=lambda *a: seen.append(a)) as run:
        for untouched, logits in zip(masks, expected, strict=True):
            run.untouched = untouched
            assert run.untouched is untouched
            assert_close(llama(ids).logits, logits)
    for call, m in zip(seen, stays, strict=True):
        assert torch.equal(call[5], ~m)
        assert call[5].dtype == torch.bool


@torch.no_grad()
def test_untouched_positions_are_bitwise_the_same(llama):
    ids, mask = tokens(), torch.ones(2, 7, dtype=torch.bool)
    clean = llama(ids).logits
    for replace in ("sae", "zero"):
        with splice(llama, {SITE: make_sae()}, replace=replace, untouched=mask):
            assert torch.equal(llama(ids).logits, clean)


@torch.no_grad()
@pytest.mark.parametrize("untouched", [[0, 9], {0, 9}, torch.tensor([9, 0]), (9, 0, 9)])
def test_token_ids_are_the_mask_of_their_positions(llama, untouched):
    ids, sae = tokens(), make_sae()
    ids[1, 3] = 9
    expected = by_hand(llama, ids, sae, (ids == 0) | (ids == 9))
    with splice(llama, {SITE: sae}, untouched=untouched):
        assert_close(llama(ids).logits, expected)
        assert_close(llama(input_ids=ids).logits, expected)
        assert_close(llama.lm_head(llama.model(ids)[0]), expected)
        assert_close(llama.lm_head(llama.base_model(input_ids=ids)[0]), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "neox", "gemma2"])
def test_token_ids_on_other_architectures(kind):
    path = {"gpt2": "transformer.h.1", "neox": "gpt_neox.layers.1", "gemma2": "model.layers.1"}[kind]
    model, ids, sae = tiny_model(kind), tokens(), make_sae()
    with splice(model, {path: sae}, untouched=ids == 0):
        expected = model(ids).logits
    with splice(model, {path: sae}, untouched=[0]):
        assert torch.equal(model(ids).logits, expected)
    with splice(model, {path: sae}):
        assert not torch.equal(model(ids).logits, expected)


@torch.no_grad()
def test_token_types_do_not_pass_for_tokens():
    model, ids, sae = tiny_model("gpt2"), tokens(), make_sae()
    types = torch.zeros_like(ids)
    with splice(model, {"transformer.h.1": sae}, untouched=ids == 0):
        expected = model(ids, token_type_ids=types).logits
    with splice(model, {"transformer.h.1": sae}, untouched=[0]):
        assert torch.equal(model(ids, token_type_ids=types).logits, expected)


@torch.no_grad()
def test_generate_with_a_cache_equals_generate_without(llama):
    ids, sae = tokens(), make_sae()
    untouched = list(range(0, 50, 2))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    with splice(llama, {SITE: sae}, untouched=untouched) as run:
        cached = llama.generate(ids, use_cache=True, **options)
        assert run.calls[SITE] == 8
        plain = llama.generate(ids, use_cache=False, **options)
    rebuilt = ids
    for _ in range(8):
        stays = torch.isin(rebuilt, torch.tensor(untouched))
        rebuilt = torch.cat([rebuilt, by_hand(llama, rebuilt, sae, stays)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, rebuilt)
    assert torch.equal(plain, rebuilt)
    assert not torch.equal(cached, llama.generate(ids, use_cache=True, **options))


@torch.no_grad()
def test_ids_never_outlive_their_forward_pass(llama):
    ids, sae = tokens(), make_sae()
    embeds = llama.get_input_embeddings()(ids)
    clear = "no tokens reached the model's embedding"
    with splice(llama, {SITE: sae}, untouched=[0]) as run:
        first = llama(ids).logits
        with pytest.raises(ValueError, match=clear):
            llama(inputs_embeds=embeds)
        llama.get_input_embeddings()(ids)
        with pytest.raises(ValueError, match=clear):
            llama.model(inputs_embeds=embeds)
        with pytest.raises(IndexError):
            llama(ids + 1000)
        with pytest.raises(ValueError, match=clear):
            llama.model.layers[1](embeds, position_embeddings=llama.model.rotary_emb(embeds, torch.arange(7)[None]))
        assert torch.equal(llama(ids).logits, first)
        run.untouched = ids == 0
        assert_close(llama(inputs_embeds=embeds).logits, first)


def test_an_interrupted_pass_leaves_nothing_behind(llama):
    ids, sae = tokens(), make_sae()

    def interrupt(*args):
        raise KeyboardInterrupt

    with splice(llama, {SITE: sae}, untouched=[0]):
        expected = llama.model(ids)[0]
        handle = llama.model.layers[0].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            llama(torch.zeros_like(ids))
        handle.remove()
        assert torch.equal(llama.model(ids)[0], expected)


@torch.no_grad()
def test_ids_may_come_later_and_go(llama):
    ids, sae, before = tokens(), make_sae(), count_hooks(llama)
    expected = by_hand(llama, ids, sae, ids == 0)
    with splice(llama, {SITE: sae}) as run:
        everywhere = llama(ids).logits
        run.untouched = [0]
        assert_close(llama(ids).logits, expected)
        run.untouched = [0, 9]
        run.untouched = []
        assert torch.equal(llama(ids).logits, everywhere)
        with pytest.raises(TypeError, match="untouched"):
            run.untouched = ["0"]
    assert count_hooks(llama) == before


@torch.no_grad()
def test_flattened_and_per_head_activations():
    sae, mask = make_sae(), torch.tensor([[True, False, False], [False, True, False]])
    model = nn.Sequential(nn.Identity())
    flat, heads = torch.randn(6, WIDTH), torch.randn(2, 3, 4, WIDTH)
    with splice(model, {"0": sae}, untouched=mask):
        assert_close(model(flat), torch.where(mask.reshape(6, 1), flat, dense(sae, flat)))
        assert_close(model(heads), torch.where(mask[..., None, None], heads, dense(sae, heads)))


@torch.no_grad()
def test_a_mask_that_does_not_fit(llama):
    ids, sae = tokens(), make_sae()
    shapes = r"site 'model.layers.1'.*\(2, 6\).*\(2, 7\)"
    with splice(llama, {SITE: sae}, untouched=ids[:, 1:] == 0), pytest.raises(ValueError, match=shapes):
        llama(ids)
    with splice(llama, {SITE: sae}, untouched=ids == 0), pytest.raises(ValueError, match="token ids"):
        llama.generate(ids, max_new_tokens=3, do_sample=False)


@pytest.mark.parametrize(
    ("untouched", "error"),
    [
        (torch.ones(7, dtype=torch.bool), ValueError),
        (torch.ones(2, 7, dtype=torch.int64), TypeError),
        (torch.ones(7), TypeError),
        ([True, False], TypeError),
        ([0.5], TypeError),
        ("12", TypeError),
        (3, TypeError),
        ([2**70], ValueError),
    ],
)
def test_bad_untouched(llama, untouched, error):
    with pytest.raises(error, match="untouched"):
        splice(llama, {SITE: make_sae()}, untouched=untouched)


def test_ids_need_an_embedding():
    with pytest.raises(ValueError, match="get_input_embeddings"):
        splice(nn.Sequential(nn.Identity()), {"0": make_sae()}, untouched=[0])
