"""Reuse by plain hooks and dense codes: effects, masses, lists, masks, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import domains
import tiny_lm
from reuse_by_hooks import SIZES, measured, saes, spliced, text, used
from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.eval import InputError
from saekernels.eval.studies.reuse.lists import Run, like, lists, probes, sampled
from saekernels.eval.studies.reuse.measure import measure_reuse
from saekernels.eval.studies.reuse.options import Options
from saekernels.eval.studies.reuse.sharing import effective_number, shares
from saekernels.eval.studies.reuse.text import Text
from saekernels.eval.studies.reuse.use import Use
from saekernels.sae.activations import GroupMax, TopK
from saekernels.sae.edits import Edit, EditedSAE
from saekernels.sae.module import SAE
from saekernels.splice.leave import Leave
from tiny_lm import SITES, texts, tokens


@pytest.mark.parametrize("entry", list(saes()))
def test_effects_and_masses_by_dense_codes_and_full_logits(entry: str) -> None:
    windows, layout = text()
    sae, use = saes()[entry], used(entry)
    shape = (2, layout.groups, len(layout.domains), 64)
    effect, mass, first = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    active = torch.zeros(len(layout.domains), 64)
    norms = torch.ones(64) if sae.rescale_by_decoder_norm else sae.W_dec.detach().norm(dim=1)
    for window in windows:
        held: list[Tensor] = []

        def dense(x: Tensor, held: list[Tensor] = held) -> Tensor:
            with torch.no_grad():
                codes = sae.encode(x)
                z = codes.to_dense()
            held.append(z.requires_grad_())
            own = z / sae.decoder_norms().detach() if sae.rescale_by_decoder_norm else z
            out = own @ sae.W_dec.detach() + sae.b_dec.detach()
            return out if codes.scale is None else out * codes.scale + codes.shift

        losses, _, touched = spliced(window, entry, dense)
        (slope,) = torch.autograd.grad(losses.sum(), held[0])
        a = -(held[0] * slope).detach().double()[touched]
        z = held[0].detach()[touched]
        at = tuple(int(part[window.document]) for part in (layout.half, layout.group, layout.domain))
        first[at] += a.sum(0)
        effect[at] += (a + a.square() / 2).sum(0)
        mass[at] += (z.abs() * norms).double().sum(0)
        if at[0] == 0:
            active[at[2]] += (z != 0).sum(0)
    for got, expected in ((use.sums["effect"], effect), (use.sums["mass"], mass)):
        assert float(expected.abs().max()) > 0.5
        torch.testing.assert_close(got, expected, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(use.first_order, first[1].sum(1), rtol=2e-3, atol=1e-4)
    assert torch.equal(use.active, active.long())
    assert use.l0() == pytest.approx(float(active.sum()) / int(use.positions.sum()))


def test_lists_of_like_frequency() -> None:
    active = torch.tensor([0, 0, 1, 2, 3, 2, 4, 7, 5, 100])
    for seed in range(5):
        drawn = like(torch.tensor([3, 6, 7, 9]), active, np.random.default_rng(seed))
        assert len(set(drawn.tolist())) == 4
        assert drawn[0] in (3, 4, 5)
        assert set(drawn[1:3].tolist()) <= {6, 7, 8}
        assert drawn[3] == 9
    many = {tuple(like(torch.tensor([3, 6]), active, np.random.default_rng(seed)).tolist()) for seed in range(40)}
    assert len(many) == 9
    assert like(torch.tensor([], dtype=torch.int64), active, np.random.default_rng(0)).tolist() == []


def one_sae(**options: Any) -> dict[str, Any]:
    """The study of the first SAE alone."""
    given = Options(**{"latents": SIZES, "removed": 4, "batch_size": 3, **options})
    return measure_reuse(tiny_lm.trained_model(), tokens(), {SITES[0]: saes()[SITES[0]]}, iter(texts()), given)


@pytest.mark.parametrize("entry", list(saes()))
def test_random_lists_have_the_frequencies_of_their_domain(entry: str) -> None:
    """As many latents in each octave of active positions there; in the other domain they differ."""
    use = used(entry)
    held = lists(use, [20], 0)
    differ = 0
    for number, domain in enumerate(use.layout.domains):
        own, random = (held[Run(kind, domain, 20)] for kind in ("own", "random"))
        assert len(set(random.tolist())) == len(own) == 20
        assert set(random.tolist()) != set(own.tolist())
        here, there = ([sorted(use.active[at, many].clamp_min(0.5).log2().floor().tolist()) for many in (own, random)]
                       for at in (number, 1 - number))  # fmt: skip
        assert here[0] == here[1]
        differ += there[0] != there[1]
    assert differ
    again = lists(use, [20], 1)
    assert any(again[run].tolist() != held[run].tolist() for run in held if run.kind == "random")


def test_removed_latents_are_spread_over_what_is_carried() -> None:
    _, layout = text()
    use = Use([tiny_lm.sae(0)], layout)
    # Of 100, on average over domains: 45, 30, 15 and 10, in latents 7, 3, 50 and 9; one domain has ten times the text.
    made = torch.tensor([[60.0, 30, 10, 0], [300, 300, 200, 200]], dtype=torch.float64)
    use.sums["effect"][0, 0, :, torch.tensor([7, 3, 50, 9])] = made
    use.sums["effect"][0, 1, :, 8] = -5
    use.sums["effect"][1, 0, :, 1] = 1000
    held = lists(use, [2, 20], 0)
    for size, domain, expected in ((2, "code", [7, 3]), (20, "code", [7, 3, 50]), (20, "prose", [3, 7, 9, 50])):
        assert held[Run("own", domain, size)].tolist() == expected, "as many as have an effect, by its size"
        assert len(held[Run("random", domain, size)]) == len(expected)
    assert held[Run("union", "", 20)].tolist() == [3, 7, 9, 50]
    for number, expected in ((0, []), (1, [3]), (2, [3, 7]), (5, [3, 7, 50]), (10, [3, 7, 9, 50])):
        assert sampled(use, number) == expected
    use.sums["effect"][0] = -1
    assert sampled(use, 4) == []
    assert lists(use, [20], 0)[Run("own", "code", 20)].tolist() == []


def test_as_many_directions_as_latents_are_active() -> None:
    use = used(f"{SITES[0]}#jump")
    assert round(use.l0()) not in (1, 8)
    for run, (probe,) in probes(use).items():
        assert (run.kind, probe.rank) == ("pca", round(use.l0()))
    assert {probe.rank for (probe,) in probes(used(SITES[0])).values()} == {8}


def test_a_model_that_gives_no_gradients_is_refused() -> None:
    class Closed(domains.Language):
        def forward(self, ids: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(ids)

    model = Closed(2).eval()
    message = r"^model: effects need gradients, and none come back from its loss to the site 'layer'$"
    with pytest.raises(InputError, match=message):
        measure_reuse(model, domains.tokens(), {domains.SITE: domains.sae()}, model.documents(4, 12))


@pytest.mark.slow
def test_the_same_beside_others_and_with_batches_of_another_size() -> None:
    first = measured()["sites"][0]
    assert json.dumps(one_sae()["sites"][0]) == json.dumps(first)
    row = one_sae(batch_size=1)["sites"][0]
    for kind in ("effect", "mass"):
        assert row[kind]["general"]["value"] == pytest.approx(first[kind]["general"]["value"], abs=1e-4)
    for one, two in zip(row["transfer"]["curve"], first["transfer"]["curve"], strict=True):
        assert one["away"]["value"] == pytest.approx(two["away"]["value"], abs=1e-3)


@pytest.mark.slow
def test_masks_leave_positions_out() -> None:
    """What is left costs nothing, and is not fitted on: no latents at all cost less where less is touched."""
    less, few = (one_sae(rule=rule, removed=0) for rule in (Leave(first=6), Leave(2, 1.2)))
    costs = [one["sites"][0]["transfer"]["none"]["mean"]["value"] for one in (measured(), less, few)]
    assert costs[0] > costs[1] > 0
    assert costs[0] > costs[2] > 0
    assert few["mask"] == {"leave_first": 2, "leave_norm": 1.2}


def test_transcoders_and_the_part_of_sharing_alone() -> None:
    torch.manual_seed(0)
    sae = SAE(32, 64, TopK(8), pre_bias="none", skip=True)
    site = f"{SITES[0]}.mlp@module"
    model = tiny_lm.model()  # its parameters need gradients
    found = measure_reuse(model, tokens(), {site: sae}, iter(texts()), Options(latents=[16], removed=2))["sites"][0]
    whole = found["transfer"]["whole"]["mean"]["value"]
    assert abs(whole) > 1e-3
    assert found["transfer"]["pca"]["home"]["value"] != pytest.approx(whole)
    alone = measure_reuse(model, tokens(), {site: sae}, iter(texts()), Options(parts=["sharing"], removed=2))
    assert alone["sites"][0]["transfer"] is None
    for name in ("effect", "mass", "removal"):
        assert alone["sites"][0][name] == found[name]
    assert all(one.requires_grad and one.grad is None for one in [*model.parameters(), *sae.parameters()])


def test_slices_by_the_sums_of_domains() -> None:
    """The slice that is a domain has what that domain's sums have, and the rest is all else."""
    entries = {site: saes()[site] for site in SITES[:1]}
    found = measure_reuse(
        tiny_lm.trained_model(), tokens(), entries, iter(texts()), Options(parts=["slices"], removed=0, batch_size=3)
    )
    use = used(SITES[0])
    everything = use.sums["effect"].sum((1, 2))
    rows = {row["level"]: row for row in found["sites"][0]["slices"]["effect"]}
    effective = [float(effective_number(shares(half))) for half in everything]
    assert rows["everything"]["effective"]["value"] == pytest.approx(sum(effective) / 2, rel=1e-3)
    at = use.layout.domains.index(rows["domain"]["name"])
    own = use.sums["effect"][:, :, at].sum(1)
    effective = [float(effective_number(shares(half))) for half in own]
    assert rows["domain"]["effective"]["value"] == pytest.approx(sum(effective) / 2, rel=1e-3)
    p, rest = shares(own), shares(everything - own)
    general = [float(torch.minimum(p[half], rest[1 - half]).sum()) for half in (0, 1)]
    assert rows["domain"]["general"]["value"] == pytest.approx(sum(general) / 2, rel=1e-3)
    assert found["links"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ("luck",)}, r"^parts: got luck, need some of sharing, slices, links, transfer$"),
        ({"parts": ()}, r"^parts: got none, need some of sharing, slices, links, transfer$"),
        ({"latents": [8, 65]}, r"^latents: model.layers.0 has 64, need 1 to as many, got 65$"),
        ({"latents": [0]}, r"^latents: model.layers.0 has 64, need 1 to as many, got 0$"),
        ({"wanted": 40}, r"^data: need at least two domains of 4 documents each \(--domain-field, --tokens\), got "),
    ],
)
def test_what_cannot_be_measured(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_reuse(
            tiny_lm.trained_model(), tokens(), {SITES[0]: saes()[SITES[0]]}, iter(texts()), Options(**options)
        )


def test_what_cannot_be_restricted() -> None:
    model = tiny_lm.trained_model()
    groups = {SITES[0]: SAE(32, 64, GroupMax(8))}
    message = r"^parts: transfer selects among latents, which the groups of model.layers.0 do not allow$"
    with pytest.raises(InputError, match=message):
        measure_reuse(model, tokens(), groups, iter(texts()))
    found = measure_reuse(model, tokens(), groups, iter(texts()), Options(parts=["sharing"], removed=0))
    assert found["sites"][0]["removal"]["latents"] == []
    assert found["sites"][0]["removal"]["effect"]["error"] == {"value": None, "ci95": None}
    clt = {SITES[0]: CrossLayerTranscoder(32, 8, 2, TopK(2))}
    message = (
        r"^sae: model.layers.0 is CrossLayerTranscoder, need a saekernels.SAE; its latents write at several layers"
    )
    with pytest.raises(InputError, match=message):
        measure_reuse(model, tokens(), clt, iter(texts()))
    edited = {SITES[0]: EditedSAE(tiny_lm.sae(0), [Edit(0, "zero")])}
    with pytest.raises(InputError, match=r"^sae: model.layers.0 is EditedSAE, need a saekernels.SAE$"):
        measure_reuse(model, tokens(), edited, iter(texts()))


def test_batches_for_gradients_are_small(tmp_path: Path) -> None:
    """Windows of 24 positions, eight to a batch elsewhere; every document is in them all the same."""
    whole = Text(tmp_path, iter(tiny_lm.texts()), tiny_lm.tokens(), 320, Options(parts=["sharing"], batch_size=8))
    many, few = ([batch.ids.shape for batch in whole.batches(None, most=most)] for most in (None, 48))
    assert max(rows * length for rows, length in many) > 48 >= max(rows * length for rows, length in few)
    assert sum(rows for rows, _ in many) == sum(rows for rows, _ in few)
