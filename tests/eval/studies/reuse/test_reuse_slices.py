"""Slices of the study of reuse by loops: which positions lie where, and the numbers of each slice and random set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reuse_by_hooks import carriers, effective, overlap, share
from saekernels.eval import Document
from saekernels.eval.store import window_files
from saekernels.eval.studies.reuse import marks
from saekernels.eval.studies.reuse.marks import Marks
from saekernels.eval.studies.reuse.options import Options
from saekernels.eval.studies.reuse.slices import SliceSums
from saekernels.eval.studies.reuse.text import Layout, Text
from saekernels.eval.sums.jackknife import estimate
from saekernels.eval.text.slices import LEVELS, Slices, levels_of
from saekernels.eval.text.windows import chosen
from saekernels.splice.leave import Leave
from tiny_lm import texts, tokens


def test_positions_are_marked_and_drawn_whatever_the_chunks_and_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_files, "CHUNK_POSITIONS", 60)
    monkeypatch.setattr(marks, "_RANK", 1)
    documents = [*texts()[:3], *(Document(f"a light {i}" * 5, "few") for i in range(3)), *texts()[3:]]
    first = 3
    many = list(chosen(iter(documents), tokens(), None, 0))
    drawn: dict[int, dict[tuple[int, int], list[int]]] = {2: {}, 5: {}}
    for size, own in drawn.items():
        folder = tmp_path / str(size)
        folder.mkdir()
        options = Options(parts=["slices"], rule=Leave(first), batch_size=size)
        text = Text(folder, iter(documents), tokens(), 320, options)
        assert text.spool.chunks > 3
        assert text.marks is not None
        places, kept = text.marks.levels, [document.domain != "few" for document, _ in many]
        assert places[:2] == ("token", "template") or "domain" in places
        expected = {
            (window.document, window.start): level
            for document, windows in many
            for window, level in zip(windows, levels_of(document, windows, text.marks.slices, tokens()), strict=True)
        }
        counts = dict.fromkeys(LEVELS, 0)
        for (_, windows), keep in zip(many, kept, strict=True):
            for window in windows:
                for at in range(first, len(window.ids)) if keep else ():
                    if not window.special[at]:
                        counts[LEVELS[expected[window.document, window.start][at]]] += 1
        total = sum(counts.values())
        for level in places[:-1]:
            inside = sum(counts[one] for one in LEVELS[: LEVELS.index(level) + 1])
            assert 0 < text.marks.rates[level] == pytest.approx(inside / total)
        assert text.marks.rates["document"] == pytest.approx(2 / sum(kept))
        assert [rate for _, rate in text.marks.drawn] == sorted(text.marks.rates.values())
        for batch in text.batches(None):
            shells = text.shells(batch)
            assert shells is not None
            for row, window in enumerate(batch.windows):
                levels = [places.index(LEVELS[level]) for level in expected[window.document, window.start]]
                assert shells[0][row, : len(levels)].tolist() == levels
                assert (shells[0][row, len(levels) :] == len(places) - 1).all()
                assert (shells[1][row, len(levels) :] == len(text.marks.rates)).all()
                own[window.document, window.start] = shells[1][row, : len(levels)].tolist()
        flat = np.concatenate([np.array(one) for one in own.values()])
        for at, (level, rate) in enumerate(text.marks.drawn):
            part, error = (flat <= at).mean(), np.sqrt(rate * (1 - rate) / len(flat))
            assert abs(part - rate) < 3 * error, level
    assert drawn[2] == drawn[5]


def test_the_numbers_of_random_sums_by_loops(tmp_path: Path) -> None:
    layout = Layout(["x"] * 7 + ["y"] * 9)
    assert layout.groups == 4
    made = Marks(tmp_path, tokens(), 0)
    made.slices, made.rates = Slices(70, None, "x"), {"token": 0.2, "domain": 0.6, "document": 0.3}
    sums = SliceSums(made, layout, 6)
    rng = np.random.default_rng(2)
    size = 4000
    documents, latents = rng.integers(0, 16, size), rng.integers(0, 6, size)
    slices, drawn = rng.integers(0, 3, size), rng.integers(0, 4, size)
    # What latents do differs between slices, and one of them does harm.
    values = rng.normal(0.3, 1, size) + (latents == slices) - 2.0 * (latents == 5)
    sums.add(*(torch.from_numpy(one) for one in (documents, slices, drawn, latents, values)))
    half, group, first = (of.numpy()[documents] for of in (layout.half, layout.group, layout.first))
    domain = layout.domain.numpy()[documents]

    def total(chosen: np.ndarray) -> np.ndarray:
        """[2, F] by half."""
        found = np.zeros((2, 6))
        np.add.at(found, (half[chosen], latents[chosen]), values[chosen])
        return found

    def numbers(parts: list[tuple[int, np.ndarray]], rest: np.ndarray) -> dict[str, float]:
        """Means over (half, sums [F]); rest [2, F] is what the other half has beside them."""
        known = [(at, share(one)) for at, one in parts if one.max() > 0]
        return {
            "effective": float(np.mean([effective(p) for _, p in known])),
            "carriers": float(np.mean([carriers(p) for _, p in known])),
            "general": float(np.mean([overlap(p, share(rest[1 - at])) for at, p in known])),
        }

    def by_loops(without: int) -> dict[str, dict[str, float]]:
        there = group != without
        everything = total(there)
        found = {}
        for level, at, place in (("token", 0, 0), ("document", -1, 1), ("domain", 1, 2)):
            random = total(there & (drawn <= place))
            if level == "document":
                cells = [(total(there & first & (group == g) & (domain == d)), g) for g in range(4) for d in range(2)]
                own = numbers([(h, cell[h]) for cell, g in cells if g != without for h in (0, 1)], everything)
            else:
                inner = total(there & (slices <= at))
                own = numbers([(h, inner[h]) for h in (0, 1)], everything - inner)
            luck = numbers([(h, random[h]) for h in (0, 1)], everything - random)
            ratios = {f"{name}_ratio": own[name] / luck[name] for name in ("effective", "general")}
            found[level] = {**own, **{f"random_{name}": value for name, value in luck.items()}, **ratios}
        found["everything"] = {
            name: float(np.mean([of(share(one)) for one in everything]))
            for name, of in (("effective", effective), ("carriers", carriers))
        }
        return found

    rows = sums.figures()
    assert [row["level"] for row in rows] == ["token", "document", "domain", "everything"]
    many = [by_loops(without) for without in range(-1, 4)]
    for row in rows:
        assert set(row) - {"level", "name"} == set(many[0][row["level"]])
        for name in many[0][row["level"]]:
            expected = estimate([one[row["level"]][name] for one in many])
            assert row[name]["value"] == pytest.approx(expected.value), (row["level"], name)
            assert row[name]["ci95"] == pytest.approx(expected.ci95), (row["level"], name)
