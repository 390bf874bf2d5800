"""Sharing numbers of synthetic sums whose answer is known: disjoint, common, mixed; with noise, within intervals."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from torch import Tensor

import reuse_by_hooks
from saekernels.errors import InputError
from saekernels.eval.studies.reuse.sharing import (
    carriers,
    chance,
    effective_number,
    overlap,
    shares,
    sharing_figures,
    subsets,
)
from saekernels.eval.studies.reuse.text import Layout
from saekernels.eval.sums.jackknife import estimate

NAMES = ("a", "b", "c")
NUMBERS = {"effective": reuse_by_hooks.effective, "carriers": reuse_by_hooks.carriers}
EACH = 20


def mixture(share: float, noise: float = 0.0, seed: int = 0, groups: int = 16) -> Tensor:
    """Sums [2, G, D, F]: in each domain `share` of what is done by the first 20 latents, the rest by 20 of its own.

    Latents of a set carry in the proportions 1 : 2 : ... : 20; noise is relative to a latent's mean.
    """
    weights = torch.arange(1, EACH + 1, dtype=torch.float64)
    weights /= weights.sum()
    truth = torch.zeros(3, 4 * EACH, dtype=torch.float64)
    for domain in range(3):
        truth[domain, :EACH] = share * weights
        own = slice((1 + domain) * EACH, (2 + domain) * EACH)
        truth[domain, own] = (1 - share) * weights
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, groups, 3, 4 * EACH, generator=generator, dtype=torch.float64)
    return 1000 * truth * (1 + noise * drawn)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6, 1.0])
def test_the_share_that_was_put_in_is_found(share: float) -> None:
    found = sharing_figures(mixture(share), NAMES, 0)
    assert found["general"]["value"] == pytest.approx(share)
    assert found["ceiling"]["value"] == pytest.approx(1)
    assert found["general"]["ci95"] == pytest.approx((share, share))
    of_one, of_all = (found["rarefaction"][at]["effective"]["value"] for at in (0, 2))
    own = float(effective_number(shares(torch.arange(1.0, EACH + 1))))
    # The entropy of a mixture of parts without common latents: that of the parts' shares beside that within them.
    entropies = [float(np.sum([-p * np.log(p) for p in parts if p > 0])) for parts in
                 ([share, 1 - share], [share, *[(1 - share) / 3] * 3])]  # fmt: skip
    assert of_one == pytest.approx(own * np.exp(entropies[0]), rel=1e-5)
    assert of_all == pytest.approx(own * np.exp(entropies[1]), rel=1e-5)
    assert found["distinct"]["value"] == pytest.approx(of_all / of_one)
    assert found["effective"]["value"] == of_all
    json.dumps(found, allow_nan=False)


def test_disjoint_dictionaries_are_as_many_as_domains_and_a_common_one_is_one() -> None:
    disjoint, common = (sharing_figures(mixture(share), NAMES, 0) for share in (0.0, 1.0))
    assert disjoint["distinct"]["value"] == pytest.approx(3)
    assert common["distinct"]["value"] == pytest.approx(1)
    for name in ("effective", "carriers"):
        rising = [row[name]["value"] for row in disjoint["rarefaction"]]
        assert rising == pytest.approx([rising[0], 2 * rising[0], 3 * rising[0]], rel=0.05)
        level = [row[name]["value"] for row in common["rarefaction"]]
        assert level == pytest.approx([level[0]] * 3)
    assert disjoint["domains"]["a"]["carriers"]["value"] == 14  # 20 + 19 + ... + 7 of 210 is the first to reach 189
    assert sum(range(7, 21)) >= 189 > sum(range(8, 21))
    assert disjoint["overlap"][0][1]["value"] == 0
    assert disjoint["overlap"][1][1]["value"] == pytest.approx(1)


def test_mixtures_are_in_order_and_within_their_intervals() -> None:
    """Under noise: common proportions are covered, and the next mixture is not."""
    values = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    hits = 0
    for seed in range(3):
        made = [sharing_figures(mixture(share, 0.3, seed), NAMES, 0) for share in values]
        means = [one["general"]["value"] for one in made]
        assert means == sorted(means)
        distinct = [one["distinct"]["value"] for one in made]
        assert distinct == sorted(distinct, reverse=True)
        for share, one in zip(values, made, strict=True):
            low, high = one["general"]["ci95"]
            assert high < share + 0.2
            assert low > share - 0.2
            # Noise takes from the ceiling what it takes from the share.
            relative = one["ceiling"]["value"]
            hits += low <= share * relative <= high or share == 0.0
    assert hits >= 0.9 * 3 * len(values)


def test_noise_alone_lowers_the_ceiling_and_not_the_share_below_it() -> None:
    quiet, loud = (sharing_figures(mixture(1.0, noise), NAMES, 0) for noise in (0.05, 1.5))
    assert quiet["ceiling"]["value"] > 0.98
    assert loud["ceiling"]["value"] < 0.9
    assert loud["general"]["value"] == pytest.approx(loud["ceiling"]["value"], abs=0.03)


def test_overlap_and_chance_by_hand() -> None:
    a = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.7, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.25, 0.0, 0.75, 0.0], [0.5, 0.5, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(overlap(a, b), torch.tensor([[0.25, 1.0], [0.8, 0.3]], dtype=torch.float64))
    # The fourth latent is used by none.
    every = torch.zeros(2, 2, dtype=torch.float64)
    orders = list(itertools.permutations(range(3)))
    for order in orders:
        every += overlap(a[:, :3], b[:, list(order)]) / len(orders)
    torch.testing.assert_close(chance(a, b), every)


def test_every_number_of_random_sums_by_loops() -> None:
    """Domains of unlike size, halves that are unlike, latents that do harm or are used in one half alone."""
    rng = np.random.default_rng(8)
    sums = rng.normal(0.4, 1, (2, 4, 3, 7)) * np.array([1.0, 5.0, 0.3])[:, None]
    sums[0, :, :, 6], sums[:, :, 0, 2] = 0, -1
    found = sharing_figures(torch.from_numpy(sums), NAMES, 0)
    share, cells = reuse_by_hooks.share, list(itertools.product(range(3), range(3)))

    def by_loops(without: int) -> dict[str, np.ndarray]:
        totals = sums[:, [group for group in range(4) if group != without]].sum(1)
        p, q = ([share(one) for one in half] for half in totals)
        used = len({at for one in (*p, *q) for at in range(7) if one[at] > 0})
        overlaps, lucks = np.zeros((3, 3)), np.zeros((3, 3))
        for a, b in cells:
            overlaps[a, b] = (reuse_by_hooks.overlap(p[a], q[b]) + reuse_by_hooks.overlap(p[b], q[a])) / 2
            dealt = [sum(min(x, y) for x in one for y in other) / used for one, other in ((p[a], q[b]), (p[b], q[a]))]
            lucks[a, b] = sum(dealt) / 2
        both = [share(one) for one in totals.sum(0)]
        sets = [[np.mean([both[i] for i in some], 0) for some in itertools.combinations(range(3), n)]
                for n in (1, 2, 3)]  # fmt: skip
        others = [[b for b in range(3) if b != a] for a in range(3)]
        middle = np.exp(np.mean([reuse_by_hooks.entropy(one) for one in both]))
        return {
            "overlap": overlaps,
            "general": np.array([overlaps[a, others[a]].mean() for a in range(3)]),
            "chance": np.array([lucks[a, others[a]].mean() for a in range(3)]),
            "ceiling": overlaps.diagonal(),
            **{name: np.array([float(of(one)) for one in both]) for name, of in NUMBERS.items()},
            **{f"rising_{name}": np.array([np.mean([of(one) for one in some]) for some in sets])
               for name, of in NUMBERS.items()},
            "distinct": np.array(reuse_by_hooks.effective(np.mean(both, 0)) / middle),
        }  # fmt: skip

    many = [by_loops(without) for without in range(-1, 4)]

    def same(got: dict[str, object], values: list[float]) -> None:
        expected = estimate(values)
        assert got["value"] == pytest.approx(expected.value)
        assert got["ci95"] == pytest.approx(expected.ci95)

    for a, b in cells:
        same(found["overlap"][a][b], [one["overlap"][a, b] for one in many])
    for name in ("general", "chance", "ceiling"):
        same(found[name], [float(one[name].mean()) for one in many])
    for number, domain in enumerate(NAMES):
        for name in ("general", "chance", "ceiling", "effective", "carriers"):
            same(found["domains"][domain][name], [one[name][number] for one in many])
        for name in NUMBERS:
            same(found["rarefaction"][number][name], [one[f"rising_{name}"][number] for one in many])
    same(found["distinct"], [float(one["distinct"]) for one in many])
    for name in NUMBERS:
        same(found[name], [one[f"rising_{name}"][2] for one in many])


def test_numbers_of_latents_by_hand() -> None:
    p = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
    assert effective_number(p)[:2].tolist() == pytest.approx([4, 1])
    assert carriers(p).tolist() == [4, 1, 3]
    assert carriers(p, 0.5).tolist() == [2, 1, 1]
    assert shares(torch.tensor([[3.0, -2.0, 1.0]])).tolist() == [[0.75, 0.0, 0.25]]
    assert shares(torch.tensor([[0.0, -2.0]])).isnan().all()


def test_without_any_effect_there_is_no_figure() -> None:
    sums = mixture(0.5)
    sums[:, :, 1] = -sums[:, :, 1]
    found = sharing_figures(sums, NAMES, 0)
    assert found["general"] == {"value": None, "ci95": None}
    assert found["domains"]["b"]["effective"]["value"] is None
    assert found["domains"]["a"]["effective"]["value"] is not None
    json.dumps(found, allow_nan=False)


def test_sets_of_domains_are_all_or_twenty() -> None:
    found = subsets(7, 0)
    assert [len(one) for one in found] == [7, 20, 20, 20, 20, 7, 1]
    assert all(len(set(one)) == len(one) for one in found)
    assert {len(one) for one in found[3]} == {4}
    assert found == subsets(7, 0)
    assert found != subsets(7, 1)


def test_documents_go_to_halves_and_groups_by_turns() -> None:
    layout = Layout(["y", "x", "y", "z", "x", "y", "y", "x", "x", "x"])
    assert layout.domains == ["x", "y"]
    assert layout.domain.tolist() == [1, 0, 1, -1, 0, 1, 1, 0, 0, 0]
    assert layout.half.tolist() == [0, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert layout.groups == 2
    assert layout.group.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]
    assert layout.first.tolist() == [True, True, True, False, True, True, True, True, True, False]
    assert layout.documents() == {"x": 5, "y": 4}
    assert layout.notes == ["Left out: the domain z, which has 1 document; at least 4 are needed."]
    assert layout.cells(torch.tensor([0, 6])).tolist() == [1, (2 + 1) * 2 + 1]
    assert Layout(["a", "b"] * 40).groups == 16


def test_one_domain_is_too_few() -> None:
    message = (
        r"^data: need at least two domains of 4 documents each \(--domain-field, --tokens\), got a \(5\), b \(3\)$"
    )
    with pytest.raises(InputError, match=message):
        Layout(["a"] * 5 + ["b"] * 3)
