"""The order in which windows are trained on: what is left out, how often, how many at a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny_lm
from saekernels.eval import Document
from saekernels.training import TrainingWindows, training_windows

BOS = 0


def windows(tokens: int = 200, batch: int = 40, **options: object) -> TrainingWindows:
    settings = {"context": 12, "tokens": tokens, "batch": batch, **options}
    return training_windows(tiny_lm.documents(), tiny_lm.tokenizer(), **settings)  # type: ignore[arg-type]


def read(found: TrainingWindows, step: int) -> list[tuple[list[int], list[bool]]]:
    """(ids, trained) of each window of a step, without what it was padded with."""
    rows = []
    sizes = found.offsets[found.steps[step] + 1] - found.offsets[found.steps[step]]
    for ids, trained in found.pieces(step):
        for row, wanted in zip(ids.tolist(), trained.tolist(), strict=True):
            rows.append((row, wanted))
    assert len(rows) == len(sizes)
    return [(row[:size], wanted[:size]) for (row, wanted), size in zip(rows, sorted(sizes.tolist()), strict=True)]


def test_steps_hold_what_they_say_and_no_more_than_is_asked_for() -> None:
    found = windows(tokens=200, batch=40)
    assert len(found.steps) == 5
    for step in range(5):
        trained = sum(sum(wanted) for _, wanted in read(found, step))
        assert found.tokens(step) == trained
        assert 40 - 12 < trained < 40 + 12
        padded = torch.cat([wanted.flatten() for _, wanted in found.pieces(step)])
        assert int(padded.sum()) == trained, "nothing of the padding"


def test_windows_are_the_evaluators_and_each_comes_once_an_epoch() -> None:
    cut = tiny_lm.Tokens(tiny_lm.tokenizer(), 12).cut([one.text for one in tiny_lm.documents()], 0)
    want = sorted(tuple(window.ids.tolist()) for group in cut for window in group)
    total = sum(int((~window.special).sum()) for group in cut for window in group)
    found = windows(tokens=2 * total, batch=total // 3)
    assert len(found.steps) == 6
    seen = [tuple(ids) for step in range(6) for ids, _ in read(found, step)]
    assert set(seen) == set(want)
    assert len(found.offsets) - 1 == len(want)
    order = np.concatenate(found.steps)
    first, second = order[: len(want)], order[len(want) :]
    assert sorted(first) == list(range(len(want)))
    assert len(set(second)) == len(second)
    assert list(first[: len(second)]) != list(second)


@pytest.mark.parametrize("leave_first", [0, 1, 3])
def test_special_tokens_and_first_positions_are_left_out(leave_first: int) -> None:
    found = windows(tokens=600, leave_first=leave_first)
    seen = False
    for step in range(len(found.steps)):
        for ids, trained in read(found, step):
            want = [token > 2 and place >= leave_first for place, token in enumerate(ids)]
            assert trained == want
            assert ids[0] == BOS
            seen |= 1 in ids[1:]
    assert seen, "the document with <eos> in its middle"


def test_a_seed_is_an_order() -> None:
    def all_of(seed: int) -> list[list[tuple[list[int], list[bool]]]]:
        found = windows(seed=seed)
        return [read(found, step) for step in range(len(found.steps))]

    assert all_of(0) == all_of(0) != all_of(1)


def test_too_little_text_is_named() -> None:
    with pytest.raises(ValueError, match=r"^data: got \d+ tokens to train on, need at least 50000, those of one step$"):
        windows(tokens=100_000, batch=50_000)
    text = [Document("light")]
    with pytest.raises(ValueError, match=r"^data: "):
        training_windows(text, tiny_lm.tokenizer(), context=12, tokens=10, batch=10, leave_first=12)
