"""Watched latents: events and what the splice costs at them, against dense codes and full logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import left_by_hand
import tiny_lm
from cli import arguments, fails
from saekernels.cli import main
from saekernels.eval import InputError
from saekernels.eval.studies.monitor import Event, Watch, monitor
from saekernels.eval.text.windows import Tokens, chosen
from saekernels.splice.context import splice
from tiny_lm import SITES

DOCUMENTS = tiny_lm.documents()


def commonest(site: str) -> int:
    """The latent of that site's SAE that is active at most tokens of one text."""
    model, sae = tiny_lm.trained_model(), tiny_lm.saes()[site]
    ids = tiny_lm.tokenizer()(tiny_lm.PARAGRAPH[:60], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        hidden = model(ids, output_hidden_states=True).hidden_states[1]
        return int((sae.encode(hidden).to_dense() > 0).sum((0, 1)).argmax())


def expected(
    watches: list[Watch], first: int = 0, ratio: float | None = None
) -> tuple[list[tuple[Any, ...]], list[list[list[float]]]]:
    """(events, per watch the ΔCE of predictions without and with one), window by window with dense codes."""
    model, saes, cut = tiny_lm.trained_model(), tiny_lm.saes(), Tokens(tiny_lm.tokenizer(), 24)
    events, deltas = [], [[[], []] for _ in watches]
    masks = left_by_hand.replaced(model, every(cut), SITES, first, ratio)
    for _, windows in chosen(DOCUMENTS, cut, None, 0):
        for window in windows:
            touched = masks.pop(0)
            ids, codes = torch.from_numpy(window.ids).long()[None], {}
            alone = {site: ~mask[None] for site, mask in touched.items()}
            with torch.inference_mode():
                clean = model(ids).logits[0, :-1].double()
                with splice(model, saes, untouched=alone, observer=lambda s, *a, c=codes: c.update({s: a[3]})):
                    spliced = model(ids).logits[0, :-1].double()
            ce = [F.cross_entropy(logits, ids[0, 1:], reduction="none") for logits in (clean, spliced)]
            for number, watch in enumerate(watches):
                level = codes[watch.entry].to_dense().reshape(len(window.ids), -1)[:, watch.latent]
                fired = (level > watch.threshold) & touched[watch.entry]
                events += [
                    (window.document, window.start + at - 1, watch.entry, watch.latent, float(level[at]))
                    for at in fired.nonzero()[:, 0].tolist()
                ]
                for at in torch.from_numpy(window.counted).nonzero()[:, 0].tolist():
                    deltas[number][int(fired[at])].append(float(ce[1][at] - ce[0][at]))
    return events, deltas


def every(cut: Tokens) -> list[Any]:
    return [window for _, windows in chosen(DOCUMENTS, cut, None, 0) for window in windows]


def test_nothing_happens_where_a_site_is_left_as_it_is() -> None:
    """Events, costs and shares are those of the positions that each watch's site replaces."""
    model, cut = tiny_lm.trained_model(), Tokens(tiny_lm.tokenizer(), 24)
    watches = [Watch(site, commonest(site)) for site in SITES]
    events: list[Event] = []
    found = monitor(model, cut, tiny_lm.saes(), watches, DOCUMENTS, events.append, leave_first=2, leave_norm=1.1)
    want, deltas = expected(watches, 2, 1.1)
    assert [(e.document, e.position, e.entry, e.latent) for e in events] == [w[:4] for w in sorted(want)]
    masks = left_by_hand.replaced(model, every(cut), SITES, 2, 1.1)
    for one, (elsewhere, at) in zip(found, deltas, strict=True):
        assert one.share == one.events / sum(int(mask[one.entry].sum()) for mask in masks)
        assert one.delta_ce_at_events == pytest.approx(sum(at) / len(at), abs=1e-4)
        assert one.delta_ce_elsewhere == pytest.approx(sum(elsewhere) / len(elsewhere), abs=1e-4)
    assert len(want) < len(expected(watches, 2)[0]) < len(expected(watches)[0])


@pytest.mark.parametrize("batch_size", [1, 5])
def test_events_and_costs_by_dense_codes(batch_size: int) -> None:
    watches = [
        Watch(SITES[0], commonest(SITES[0])),
        Watch(SITES[1], commonest(SITES[1]), 0.5),
        Watch(SITES[0], 0, 99.0),
    ]
    events: list[Event] = []
    found = monitor(
        tiny_lm.trained_model(), Tokens(tiny_lm.tokenizer(), 24), tiny_lm.saes(), watches, DOCUMENTS, events.append,
        batch_size=batch_size,
    )  # fmt: skip
    want, deltas = expected(watches)
    assert [(e.document, e.position, e.entry, e.latent) for e in events] == [w[:4] for w in sorted(want)]
    assert [e.value for e in events] == pytest.approx([w[4] for w in sorted(want)], abs=1e-4)
    for number, one in enumerate(found[:2]):
        own = [w for w in want if w[2:4] == (one.entry, one.latent)]
        assert one.events == len(own) > 0
        assert one.mean_value == pytest.approx(sum(w[4] for w in own) / len(own), abs=1e-4)
        elsewhere, at = deltas[number]
        assert one.delta_ce_at_events == pytest.approx(sum(at) / len(at), abs=1e-4)
        assert one.delta_ce_elsewhere == pytest.approx(sum(elsewhere) / len(elsewhere), abs=1e-4)
    assert found[2].events == 0
    assert found[2].mean_value is None
    assert found[2].delta_ce_at_events is None
    assert found[2].share == 0.0


def test_an_event_says_where_it_is() -> None:
    cut, events = Tokens(tiny_lm.tokenizer(), 24), []
    monitor(tiny_lm.trained_model(), cut, tiny_lm.saes(), [Watch(SITES[1], commonest(SITES[1]))], DOCUMENTS,
            events.append)  # fmt: skip
    order = [document for document, _ in chosen(DOCUMENTS, cut, None, 0)]
    for event in events:
        document = order[event.document]
        assert (event.domain, event.source) == (document.domain, document.source)
        ids = tiny_lm.tokenizer()(document.text, add_special_tokens=False)["input_ids"]
        assert event.token == tiny_lm.tokenizer().decode([ids[event.position]])


@pytest.mark.parametrize(
    ("watch", "saes", "message"),
    [
        (Watch("x", 0), tiny_lm.saes(), "there is no SAE 'x'"),
        (Watch(SITES[0], 64), tiny_lm.saes(), "has latents 0 to 63, got 64"),
        (Watch(SITES[0], 0), {SITES[0]: tiny_lm.sae(), f"{SITES[0]}#b": tiny_lm.sae()}, "several for the site"),
    ],
)
def test_watches_that_cannot_be(watch: Watch, saes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        monitor(tiny_lm.trained_model(), Tokens(tiny_lm.tokenizer(), 24), saes, [watch], DOCUMENTS, print)


def test_monitor_from_the_command_line(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["monitor", *(a for a in arguments(files)[1:] if a not in ("--bootstrap", "50"))]
    out = tmp_path / "events.jsonl"
    watched = ["--watch", f"{SITES[0]}:3", f"{SITES[1]}:7>0.25"]
    assert main([*base, *watched, "--leave-norm", "1.1"]) == 0
    left = "Left as they are, in every run: those whose norm at a site exceeds 1.1 times the site's median"
    assert left in capsys.readouterr().out.replace("\n", " ")
    assert main([*base, *watched, "--events", str(out)]) == 0
    told = capsys.readouterr().out
    assert "Left as they are" not in told
    assert f"{SITES[1]}:7 > 0.25" in told
    events = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(event["value"] > (0.25 if event["latent"] == 7 else 0) for event in events)
    assert events
    for watch, message in (
        ("x", "need SITE:LATENT or SITE:LATENT>THRESHOLD"),
        (f"{SITES[0]}:3>1e", "need SITE:LATENT"),
        (f"{SITES[0]}:3>nan", "need SITE:LATENT"),
        (f"{SITES[0]}:-1", "need SITE:LATENT"),
        (f"{SITES[0]}:64", "latents 0 to 63"),
        ("model.layers.7:1", "there is no SAE 'model.layers.7'"),
    ):
        assert message in fails(capsys, [*base, "--watch", watch])
    assert "no does not exist" in fails(
        capsys, [*base, "--watch", f"{SITES[0]}:3", "--events", str(tmp_path / "no" / "x")]
    )
