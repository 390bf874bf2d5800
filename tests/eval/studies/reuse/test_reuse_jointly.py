"""A cross-layer transcoder's reuse against dense products and plain hooks, with codes of the clean model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import saekernels as sk
import tiny_lm
from reuse_by_hooks import summed, text
from saekernels.errors import InputError
from saekernels.eval.passes.head import find_head
from saekernels.eval.studies.reuse.jointly import Jointly, stands_of
from saekernels.eval.studies.reuse.lists import Run, lists, sampled
from saekernels.eval.studies.reuse.measure import measure_reuse
from saekernels.eval.studies.reuse.options import Options
from saekernels.eval.studies.reuse.sharing import sharing_figures
from saekernels.eval.studies.reuse.use import Use
from saekernels.eval.studies.site_passes import Passes
from saekernels.eval.text.batches import batches
from saekernels.eval.text.windows import Window
from saekernels.sae.probes import Moments, fit_probes
from saekernels.splice.leave import Leave
from tiny_lm import texts, tokens

LATENTS, ACTIVE = 40, 5
MLPS = [f"model.layers.{layer}.mlp" for layer in range(2)]
SITES = [f"{mlp}@module" for mlp in MLPS]
SIZES = [6, 50]


@functools.cache
@torch.no_grad()
def transcoder(k_across: int | None = None) -> sk.CrossLayerTranscoder:
    torch.manual_seed(1)
    activation, across = sk.TopK(ACTIVE if k_across is None else k_across), k_across is not None
    clt = sk.CrossLayerTranscoder(tiny_lm.WIDTH, LATENTS, 2, activation, skip=True, across_layers=across)
    for parameter in clt.parameters():
        parameter.normal_(std=0.15)
    clt.sites = tuple(SITES)
    return clt.eval()


@functools.cache
def measured() -> dict[str, Any]:
    options = Options(latents=SIZES, removed=4, batch_size=3)
    return measure_reuse(tiny_lm.trained_model(), tokens(), transcoder(), iter(texts()), options)


@functools.cache
def used() -> Use:
    """The sums, as the study makes them."""
    model, clt = tiny_lm.trained_model(), transcoder().requires_grad_(False)
    with torch.no_grad():
        return summed(Jointly(Passes(model, find_head(model), stands_of(clt, None), Leave()), clt))


def dense(xs: list[Tensor], allowed: Tensor | None = None) -> list[Tensor]:
    """Codes [S, F] of every layer; of the allowed latents of all alone."""
    found = []
    for number, x in enumerate(xs):
        source = transcoder().source(number)
        pre = x @ source.W_enc.T + source.b_enc
        own = torch.ones(LATENTS, dtype=torch.bool)
        if allowed is not None:
            own = torch.isin(torch.arange(LATENTS) + number * LATENTS, allowed)
        best = torch.where(own, pre, -torch.inf).topk(min(ACTIVE, max(1, int(own.sum()))), dim=-1)
        values = best.values.relu() if own.any() else torch.zeros_like(best.values)
        found.append(torch.zeros_like(pre).scatter(-1, best.indices, values))
    return found


def passed(window: Window, puts: Callable[[int, Tensor], Tensor] | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(losses that count, what MLPs read, what they gave), with puts(layer, what is read now) where touched."""
    reads: list[Tensor] = []
    gave: list[Tensor] = []
    touched = torch.from_numpy(~window.special)

    def hook(module: Any, given: Any, out: Tensor) -> Tensor:
        reads.append(given[0][0])
        gave.append(out[0].detach())
        put = out[0] if puts is None else puts(len(reads) - 1, given[0][0])
        return torch.where(touched[:, None], put, out[0])[None]

    model = tiny_lm.trained_model()
    handles = [model.get_submodule(mlp).register_forward_hook(hook) for mlp in MLPS]
    ids = torch.from_numpy(window.ids).long()
    logits = model(ids[None]).logits[0]
    for handle in handles:
        handle.remove()
    losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")[torch.from_numpy(window.counted)]
    return losses, reads, gave


def forced(codes: list[Tensor]) -> Callable[[int, Tensor], Tensor]:
    """What these codes write, whatever is read; the skip connection is of that."""
    clt = transcoder()

    def put(target: int, x: Tensor) -> Tensor:
        assert clt.W_skip is not None
        written = [codes[s] @ clt.source(s).decoder_to(target - s) for s in range(target + 1)]
        return sum(written, clt.b_dec[target] + x @ clt.W_skip[target].T)  # type: ignore[no-any-return]

    return put


@torch.no_grad()
def deltas(change: Callable[[list[Tensor]], Callable[[int, Tensor], Tensor]]) -> np.ndarray:
    """[D]: ΔCE of the second half by domain, with what `change` makes of what the clean model reads."""
    windows, layout = text()
    sums, counts = np.zeros(len(layout.domains)), np.zeros(len(layout.domains))
    for window in windows:
        if layout.half[window.document] == 1:
            at = int(layout.domain[window.document])
            clean, reads, _ = passed(window, None)
            sums[at] += float((passed(window, change(reads))[0] - clean).double().sum())
            counts[at] += len(clean)
    return sums / counts


def values_of(cells: Any) -> list[float]:
    return [cell["value"] for cell in cells]


def test_effects_are_those_of_dense_gradients() -> None:
    """Of all latents of both layers at once, by domain; the first layer's act at both sites."""
    windows, layout = text()
    effect, mass = (torch.zeros(2, len(layout.domains), 2 * LATENTS, dtype=torch.float64) for _ in range(2))
    norms = torch.cat([transcoder().source(s).W_dec.norm(dim=1) for s in range(2)])
    for window in windows:
        _, reads, _ = passed(window, None)
        codes = [one.detach().requires_grad_() for one in dense(reads)]
        slopes = torch.autograd.grad(passed(window, forced(codes))[0].sum(), codes)
        own = -torch.cat([z.detach() * g for z, g in zip(codes, slopes, strict=True)], 1).double()
        touched = torch.from_numpy(~window.special)
        at = int(layout.half[window.document]), int(layout.domain[window.document])
        effect[at] += (own + own.square() / 2)[touched].sum(0)
        mass[at] += (torch.cat(codes, 1).detach() * norms)[touched].sum(0).double()
    torch.testing.assert_close(used().totals("effect"), effect, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(used().totals("mass"), mass, rtol=1e-5, atol=1e-5)
    assert used().l0() == pytest.approx(2 * used().l0(0), rel=0.3)


def test_losses_of_lists_over_all_layers() -> None:
    use, found = used(), measured()["sites"][0]
    held = lists(use, SIZES, 0)
    assert (found["site"], found["architecture"], found["n_latents"]) == ("clt", "clt-topk", 2 * LATENTS)
    for size, row in zip(SIZES, found["transfer"]["curve"], strict=True):
        for number, domain in enumerate(use.layout.domains):
            for kind, name in (("own", "matrix"), ("random", "random_matrix")):
                latents = held[Run(kind, domain, size)]
                expected = deltas(lambda reads, own=latents: forced(dense(reads, own)))
                assert values_of(row[name][number]) == pytest.approx(expected, abs=5e-4)
    whole = deltas(lambda reads: forced(dense(reads)))
    assert values_of(found["transfer"]["whole"]["domains"]) == pytest.approx(whole, abs=5e-4)
    none = deltas(lambda reads: forced([torch.zeros(len(x), LATENTS) for x in reads]))
    assert values_of(found["transfer"]["none"]["domains"]) == pytest.approx(none, abs=5e-4)


def test_removals_over_all_layers() -> None:
    use, found = used(), measured()["sites"][0]["removal"]
    chosen = sampled(use, 4)
    assert [one["latent"] for one in found["latents"]] == chosen
    assert {latent // LATENTS for latent in chosen} == {0, 1}, "latents of both layers"
    windows, layout = text()
    counts = np.zeros(2)
    for window in windows:
        if layout.half[window.document] == 1:
            counts[int(layout.domain[window.document])] += window.counted.sum()
    whole = deltas(lambda reads: forced(dense(reads)))
    for one in found["latents"]:

        def without(reads: list[Tensor], latent: int = one["latent"]) -> Callable[[int, Tensor], Tensor]:
            codes = dense(reads)
            codes[latent // LATENTS][:, latent % LATENTS] = 0
            return forced(codes)

        expected = float(((deltas(without) - whole) * counts).sum() / counts.sum())
        assert one["removed"]["value"] == pytest.approx(expected, abs=2e-4)


def test_directions_stand_at_every_site() -> None:
    windows, layout = text()
    probes = []
    for layer in range(2):
        moments = Moments(tiny_lm.WIDTH, tiny_lm.WIDTH)
        for window in windows:
            if layout.half[window.document] == 0 and layout.domain[window.document] == 0:
                with torch.no_grad():
                    _, reads, gave = passed(window, None)
                touched = torch.from_numpy(~window.special)
                moments.add(reads[layer][touched], gave[layer][touched])
        probes.append(fit_probes(moments, [ACTIVE])[ACTIVE])

    def put(reads: list[Tensor]) -> Callable[[int, Tensor], Tensor]:
        return lambda layer, x: probes[layer](reads[layer])

    found = measured()["sites"][0]["transfer"]["pca"]["matrix"][0]
    assert values_of(found) == pytest.approx(deltas(put), abs=2e-3)


def test_each_layer_has_its_sharing_and_the_links_are_between_layers() -> None:
    found = measured()
    row, use = found["sites"][0], used()
    assert [one["site"] for one in row["layers"]] == SITES
    for number, one in enumerate(row["layers"]):
        own = use.sums["effect"][..., number * LATENTS : (number + 1) * LATENTS]
        general = sharing_figures(own, use.layout.domains, 0)["general"]["value"]
        assert one["effect"]["general"]["value"] == pytest.approx(general, rel=1e-4)
        assert one["l0"] == pytest.approx(use.l0(number))
    assert [(one["upstream"], one["downstream"]) for one in found["links"]] == [tuple(SITES)]


def test_topk_over_all_layers_chooses_among_what_is_allowed() -> None:
    """All latents allowed are the whole dictionary, and no others take the places of those that are not."""
    clt, model = transcoder(7), tiny_lm.trained_model()
    head = find_head(model)
    with torch.no_grad():
        passes = Passes(model, head, stands_of(clt, None), Leave())
        subject = Jointly(passes, clt.requires_grad_(False))
        (batch, *_) = batches(text()[0], 3, 24)
        seen, clean = passes.look(batch, losses=True)
        assert clean is not None
        runs = {Run("own", name): torch.tensor(latents) for name, latents in
                (("all", range(2 * LATENTS)), ("first", range(LATENTS)), ("few", range(3)))}  # fmt: skip
        _, losses = subject.losses(batch, seen, clean, runs)
        codes = [subject._restricted(runs[Run("own", name)], list(seen.values())) for name in ("all", "first", "few")]
    torch.testing.assert_close(losses[Run("own", "all")], losses[Run("whole")], rtol=0, atol=1e-6)
    assert (losses[Run("own", "first")] - losses[Run("whole")]).abs().max() > 0.01
    most = [torch.stack([one.l0() for one in many if one is not None]).sum(0).max() for many in codes]
    assert most[0] == most[1] == 7
    assert most[2] <= 3
    assert codes[1][1] is None
    with pytest.raises(InputError, match=r"^parts: links needs codes of single layers, and TopK\(k=7\) is of all$"):
        measure_reuse(tiny_lm.trained_model(), tokens(), clt, iter(texts()))


def test_one_clear_line() -> None:
    def refused(options: Options, **changes: Any) -> str:
        with pytest.raises(InputError) as caught:
            measure_reuse(tiny_lm.trained_model(), tokens(), transcoder(), iter(texts()), options, **changes)
        return str(caught.value)

    assert refused(Options(latents=[81])) == "latents: clt has 80, need 1 to as many, got 81"
    assert refused(Options(), sites=SITES[:1]).endswith("need one for each of 2 layers, all different")
    told = refused(Options(), sites=SITES[::-1])
    assert told == f"clt: its layers are at {SITES[::-1]}, but the model runs them as {SITES}"
