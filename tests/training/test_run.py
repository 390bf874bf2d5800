"""The loop: the same bits whatever the threads and however often it was stopped, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_lm
from saekernels.training import Recipe, Run, Schedule, TrainingWindows, train, training_windows

SITES = ["model.layers.0", "model.layers.1.mlp@module"]
RECIPE = Recipe(48, 4, activation="batch_topk", leave_norm=1.3, dead_after=60, aux_k=4)


def windows(**options: Any) -> TrainingWindows:
    settings = {"context": 12, "tokens": 600, "batch": 50, "leave_first": 1, **options}
    return training_windows(tiny_lm.documents(), tiny_lm.tokenizer(), **settings)


def go(folder: Path, **changes: Any) -> Run:
    folder.mkdir(exist_ok=True)
    given = {"model": tiny_lm.model(), "sites": SITES, "windows": windows(), "recipe": RECIPE, "seeds": (0, 1)}
    return train(folder=folder, **{**given, **changes})  # type: ignore[arg-type]


def assert_same_bits(one: Run, other: Run) -> None:
    for mine, theirs in zip(one.trainers, other.trainers, strict=True):
        assert mine.label == theirs.label
        for name, value in mine.sae.state_dict().items():
            assert torch.equal(value, theirs.sae.state_dict()[name]), (mine.label, name)
        assert mine.fvu == theirs.fvu


class StoppedError(Exception):
    pass


def test_bits_hang_neither_on_threads_nor_on_stops(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", threads=1)
    assert (whole.step, [one.label for one in whole.trainers]) == (
        12,
        [f"{site}, seed {seed}" for site in SITES for seed in (0, 1)],
    )
    assert_same_bits(whole, go(tmp_path / "threads", threads=3))
    reached = []

    def stop_sometimes(run: Run, steps: int) -> None:
        reached.append(run.step)
        if len(reached) in (5, 9):
            raise StoppedError

    for _ in range(2):
        with pytest.raises(StoppedError):
            go(tmp_path / "stopped", threads=2, save_every=1e-9, stepped=stop_sometimes)
    last = go(tmp_path / "stopped", threads=2, stepped=stop_sometimes)
    # What was not in a checkpoint yet is done once more.
    assert reached == [1, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 12]
    assert_same_bits(whole, last)
    assert (last.tokens, last.step, len(last.entries)) == (whole.tokens, 12, 12)
    assert torch.get_num_threads() == 1


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    first = go(tmp_path)
    again = go(tmp_path, stepped=lambda run, steps: pytest.fail("a step"))
    assert_same_bits(first, again)
    assert again.entries == first.entries
    assert first.tokens == sum(windows().tokens(step) for step in range(12))
    assert first.entries[-1]["fvu"] == {one.label: round(one.fvu or 0, 5) for one in first.trainers}


@pytest.mark.parametrize("change", ["sites", "recipe", "seeds", "schedule", "windows", "model"])
def test_a_checkpoint_of_another_run_is_refused(change: str, tmp_path: Path) -> None:
    go(tmp_path)
    options: dict[str, Any] = {
        "sites": SITES[::-1],
        "recipe": Recipe(48, 5, activation="batch_topk"),
        "seeds": (0, 2),
        "schedule": Schedule(0.5),
        "windows": windows(seed=1),
        "model": tiny_lm.model(seed=1),
    }
    path = re.escape(str(tmp_path / "checkpoint.pt"))
    said = f"^{path}: it is of a run with other sites, options or text; remove it, or name another folder$"
    with pytest.raises(ValueError, match=said):
        go(tmp_path, **{change: options[change]})


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    schedule = Schedule(warmup=0.1, decay=0.2)
    rates = [schedule.rate(step, 100) for step in range(100)]
    assert rates[:11] == pytest.approx([*(0.1 * (step + 1) for step in range(10)), 1.0])
    assert set(rates[9:81]) == {1.0}
    assert rates[80:] == pytest.approx([1 - step / 20 for step in range(20)])
    assert Schedule(0, 0).rate(0, 10) == Schedule(0, 0).rate(9, 10) == 1
    with pytest.raises(ValueError, match=r"^decay: got 1.5, need a share of the steps, from 0 to 1$"):
        Schedule(decay=1.5)


def test_transcoders_that_no_file_could_hold_are_refused_at_once(tmp_path: Path) -> None:
    said = "site 'model.layers.0.mlp.gate_proj@module': got topk for a transcoder of widths 32 and 48, which"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        go(tmp_path, sites=["model.layers.0.mlp.gate_proj@module"], recipe=Recipe(48, 4))


def test_memory_is_stated_from_what_is_made(tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = Recipe(50_000, 4)
    with pytest.raises(StoppedError):
        go(tmp_path, sites=["model.layers.0"], recipe=recipe, seeds=(0,), told=lines.append, stepped=_stop)
    # 2 matrices of 32 x 50,000 floats, their gradients and two moments each.
    said = f"{2 * 32 * 50_000 * 4 * 4 / 2**30:.2f} GiB SAEs and their optimizers"
    assert len(lines) == 1
    assert said in lines[0]
    assert "the checkpoint takes 0.04 GiB of disk" in lines[0]


def _stop(run: Run, steps: int) -> None:
    raise StoppedError
