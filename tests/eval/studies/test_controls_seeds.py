"""What two SAEs share: matched decoders against Hungarian matching, activity against dense codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import tiny_lm
from saekernels.eval.studies.controls import seeds
from saekernels.eval.studies.controls.seeds import (
    Activity,
    activity_matches,
    best_cosines,
    decoder_matches,
    mutual,
    overlap,
    shares,
)
from saekernels.sae.controls import control_of
from saekernels.sae.module import SAE


def activity(sae: SAE, portions: list[Tensor], every: int = 1) -> Activity:
    made = Activity(sae.n_latents)
    for x in portions:
        made.add(sae.encode(x), torch.arange(len(x)) % every == 0)
    return made


def inputs(rows: int = 900, seed: int = 0) -> Tensor:
    return torch.randn(rows, tiny_lm.WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def permuted(sae: SAE, seed: int = 0) -> tuple[SAE, Tensor]:
    """The same SAE with its latents in another order; latent i of it is latent order[i]."""
    order = torch.randperm(sae.n_latents, generator=torch.Generator().manual_seed(seed))
    made = SAE(sae.d_in, sae.n_latents, sae.activation)
    for name, value in sae.named_parameters():
        own = getattr(made, name)
        own.copy_(value[order] if len(value) == sae.n_latents else value)
    return made, order


def test_a_permuted_dictionary_shares_every_latent() -> None:
    sae = tiny_lm.sae(0, jump=True)
    other, order = permuted(sae)
    everything = torch.ones(64, dtype=torch.bool)
    found, pairs = decoder_matches(sae, other, (everything, everything))
    for side in ("a_in_b", "b_in_a"):
        assert found[side]["all"] == {"mean": pytest.approx(1, abs=1e-6), "0.7": 1.0, "0.9": 1.0}
    assert found["one_to_one"] == {"0.7": 64, "0.9": 64}
    assert order[pairs[:, 1]].tolist() == pairs[:, 0].tolist() == list(range(64))
    x = inputs()
    same = activity_matches(activity(sae, [x]), activity(other, [x]), pairs)
    for name in ("iou", "correlation"):
        assert same[name]["a_in_b"]["mean"] == pytest.approx(1, abs=1e-5)
        assert same["matched"][name] == pytest.approx(1, abs=1e-5)
    assert same["matched"]["pairs"] == same["latents"][0] > 10


def test_random_directions_share_nothing_and_are_not_active_together() -> None:
    sae = tiny_lm.sae(0)
    other = control_of(sae, "random_decoder")
    everything = torch.ones(64, dtype=torch.bool)
    found, pairs = decoder_matches(sae, other, (everything, everything))
    assert found["one_to_one"] == {"0.7": 0, "0.9": 0}
    assert found["a_in_b"]["all"]["mean"] < 0.6
    x = inputs()
    matches = activity_matches(activity(sae, [x]), activity(other, [x]), pairs)
    # The codes are those of the SAE itself, whatever they are decoded to.
    assert matches["iou"]["a_in_b"]["mean"] == pytest.approx(1)
    assert matches["matched"] == {"pairs": 0, "iou": None, "correlation": None}


def test_mutual_pairs_are_those_of_hungarian_matching_where_latents_are_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seeds, "_LATENTS_AT_ONCE", 7)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, 24, generator=generator)
    order = torch.randperm(40, generator=generator)
    noise = torch.linspace(0.05, 3, 40)[:, None] * torch.randn(40, 24, generator=generator)
    b = torch.cat([a[order] + noise, torch.randn(9, 24, generator=generator)])
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (a, b)]
    cosines = unit[0] @ unit[1].T
    forth, there, back, here = best_cosines(a, b)
    torch.testing.assert_close(forth, cosines.max(1).values)
    torch.testing.assert_close(back, cosines.max(0).values)
    assert there.tolist() == cosines.argmax(1).tolist()
    assert here.tolist() == cosines.argmax(0).tolist()
    rows, columns = linear_sum_assignment(-cosines.numpy())
    assigned = {(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if cosines[i, j] >= 0.7}
    ours = {(i, j) for i, j in mutual(there, here).tolist() if cosines[i, j] >= 0.7}
    assert ours == assigned
    assert 5 < len(ours) < 40
    # Twins in a have the same nearest in b: the nearer one has it alone.
    twins = torch.cat([a, a[order[:5]] + 0.3 * torch.randn(5, 24, generator=generator)])
    forth, there, _, here = best_cosines(twins, b)
    pairs = mutual(there, here)
    assert all(len(set(column)) == len(pairs) for column in pairs.T.tolist())
    assert sum(bool(forth[i] >= 0.7) for i in pairs[:, 0].tolist()) == len(ours)
    assert int((forth >= 0.7).sum()) > len(ours)


@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_overlap_from_dense_codes(jump: bool, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "_ROWS_AT_ONCE", 64)
    a, b, x = tiny_lm.sae(0, jump), tiny_lm.sae(1, not jump), inputs()
    found = overlap(*(activity(sae, list(x.split(250)), every) for sae in (a, b)))
    kept = torch.cat([torch.arange(len(part)) % every == 0 for part in x.split(250)])
    dense = [sae.encode(x[kept]).to_dense().detach().double() for sae in (a, b)]
    busy = [torch.nonzero((one != 0).sum(0) >= 10)[:, 0] for one in dense]
    assert [one.tolist() for one in found[:2]] == [one.tolist() for one in busy]
    dense = [one[:, own] for one, own in zip(dense, busy, strict=True)]
    on = [one != 0 for one in dense]
    both = on[0].double().T @ on[1].double()
    iou = both / (on[0].sum(0)[:, None] + on[1].sum(0) - both)
    torch.testing.assert_close(found[2].double(), iou, rtol=1e-5, atol=1e-6)
    expected = np.corrcoef(dense[0].T.numpy(), dense[1].T.numpy())[: len(busy[0]), len(busy[0]) :]
    np.testing.assert_allclose(found[3].numpy(), expected, atol=1e-4)


def test_the_busiest_latents_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = tiny_lm.sae(0), inputs()
    own = activity(sae, [x])
    counts = (sae.encode(x).to_dense() != 0).sum(0)
    assert own.counts().tolist() == counts.tolist()
    monkeypatch.setattr(seeds, "MOST_LATENTS", 5)
    assert own.busiest().tolist() == counts.topk(5).indices.sort().values.tolist()
    nothing = Activity(64)
    assert nothing.busiest().tolist() == []
    empty = activity_matches(nothing, Activity(64), torch.zeros(0, 2, dtype=torch.int64))
    assert empty["iou"]["a_in_b"] == {"mean": None, "0.7": None, "0.9": None}


def test_shares() -> None:
    assert shares(torch.tensor([0.95, 0.75, 0.5, 0.1])) == {"mean": pytest.approx(0.575), "0.7": 0.5, "0.9": 0.25}
