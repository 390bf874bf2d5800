"""splice(leave_first=, leave_norm=): attention sinks keep their activation, whatever the caches and the padding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from saekernels.splice.context import splice
from saekernels.splice.norms import RunningMedian, outlying
from splice_helpers import make_sae, tiny_model, tokens

pytest.importorskip("transformers")

SITE = "model.layers.1"


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return tiny_model("llama")


def masked(model, ids, sae, mask, **options):
    with splice(model, {SITE: sae}, untouched=mask):
        return model(ids, **options).logits


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60), st.integers(1, 5))
def test_running_median_is_the_median_to_its_bin(values, portions):
    norms = torch.tensor(values, dtype=torch.float64)
    whole, parts, other = RunningMedian(), RunningMedian(), RunningMedian()
    whole.add(norms)
    for index, part in enumerate(norms.chunk(portions)):
        (parts if index % 2 else other).add(part)
    parts.merge(other.state())
    assert parts.value == whole.value
    assert whole.value == pytest.approx(
        float(norms.sort().values[(len(norms) - 1) // 2]), rel=2 ** (1 / 128) - 1 + 1e-9
    )


def test_running_median_leaves_out_what_is_no_norm():
    median = RunningMedian()
    assert math.isnan(median.value)
    assert not outlying(torch.ones(3, 2), median.value, 2.0).any()
    median.add(torch.tensor([0.0, math.inf, math.nan, 4.0]))
    assert median.value == pytest.approx(4.0, rel=0.006)


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 3, 50])
def test_first_positions_of_each_sequence(llama, first):
    ids, sae = tokens(), make_sae()
    mask = (torch.arange(ids.shape[1]) < first).expand(ids.shape)
    expected = masked(llama, ids, sae, mask)
    with splice(llama, {SITE: sae}, leave_first=first):
        assert torch.equal(llama(ids).logits, expected)
        assert torch.equal(llama.lm_head(llama.model(input_ids=ids)[0]), expected)


@torch.no_grad()
def test_first_positions_are_those_of_the_whole_text_where_there_is_a_cache(llama):
    ids, sae = tokens(), make_sae()
    with splice(llama, {SITE: sae}, leave_first=2):
        whole = llama(ids).logits
        begun = llama(ids[:, :4], use_cache=True)
        rest = llama(ids[:, 4:], past_key_values=begun.past_key_values).logits
    assert_close(rest, whole[:, 4:])


@torch.no_grad()
def test_first_positions_come_after_left_padding(llama):
    ids, sae = tokens(), make_sae()
    with splice(llama, {SITE: sae}, leave_first=1):
        plain = llama(ids[:1]).logits
        padded = torch.cat([torch.zeros(1, 3, dtype=ids.dtype), ids[:1]], dim=1)
        attention = torch.cat([torch.zeros(1, 3), torch.ones(1, ids.shape[1])], dim=1).long()
        positions = (attention.cumsum(1) - 1).clamp_min(0)
        assert_close(llama(padded, attention_mask=attention, position_ids=positions).logits[:, 3:], plain)


@torch.no_grad()
def test_norms_above_the_ratio_to_the_median(llama):
    ids, sae, seen = tokens(), make_sae(), []
    with splice(llama, {SITE: sae}, observer=lambda *a: seen.append(a[1].norm(dim=-1))):
        llama(ids)
    (norms,) = seen
    median = RunningMedian()
    median.add(norms)
    distinct = norms.unique()
    ratio = float(distinct[-3:-1].mean()) / median.value
    stays = norms > ratio * median.value
    assert 0 < stays.sum() < stays.numel()
    both = stays | (torch.arange(ids.shape[1]) < 1) | (ids == ids[0, 3])
    expected, expected_both = masked(llama, ids, sae, stays), masked(llama, ids, sae, both)
    with splice(llama, {SITE: sae}, leave_norm=ratio):
        assert torch.equal(llama(ids).logits, expected)
    with splice(llama, {SITE: sae}, leave_norm=ratio, leave_first=1, untouched=[int(ids[0, 3])]):
        assert torch.equal(llama(ids).logits, expected_both)


@torch.no_grad()
def test_masks_by_site(llama):
    ids, sae = tokens(), make_sae()
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    other = "model.layers.0"
    with splice(llama, {SITE: sae, other: sae}, untouched={SITE: mask}) as run:
        found = llama(ids).logits
        assert run.untouched == {SITE: mask}
    with splice(llama, {other: sae}), splice(llama, {SITE: sae}, untouched=mask):
        assert torch.equal(llama(ids).logits, found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leave_first": -1}, "leave_first: got -1, need at least 0 positions"),
        ({"leave_first": True}, "leave_first: got True, need an int"),
        ({"leave_norm": 1}, "leave_norm: got 1, need a finite ratio to the median above 1"),
        ({"leave_norm": math.inf}, "leave_norm: got inf, need a finite ratio to the median above 1"),
        ({"leave_norm": "2"}, "leave_norm: got '2', need a number or None"),
        ({"untouched": {SITE: [1]}}, "untouched: 'model.layers.1': got [1], need a bool tensor [B, S]"),
    ],
)
def test_what_is_no_rule_is_refused(llama, options, message):
    with pytest.raises((ValueError, TypeError)) as error:
        splice(llama, {SITE: make_sae()}, **options)
    assert str(error.value) == message
