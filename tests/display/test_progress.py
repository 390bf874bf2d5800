"""A progress bar in a notebook, by a stand-in for its kernel; in a terminal and elsewhere."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

import saekernels as sk
from saekernels.display import progress as module
from saekernels.errors import InputError


class Kernel:
    """What IPython's `display` was given, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kernel: object = "a kernel") -> None:
        self.states: list[dict[str, str]] = []
        ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
        ipython.get_ipython = lambda: types.SimpleNamespace(kernel=kernel)  # type: ignore[attr-defined]
        display.display = self.display  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def display(self, state: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        self.states.append(state)
        return self

    def update(self, state: dict[str, str], *, raw: bool) -> None:
        self.states.append(state)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Its `now` is the time."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_a_notebook_draws_the_state_and_keeps_the_last(
    monkeypatch: pytest.MonkeyPatch, clock: types.SimpleNamespace
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    kernel = Kernel(monkeypatch)
    with sk.progress_bar() as progress:
        progress(500, 4000)  # a run that goes on: these 500 took no time
        clock.now += 5
        progress(1500, 4000)
        progress(1501, 4000)  # too soon after the last to be drawn
        clock.now += 15
        progress(4000, 4000)
    texts = [state["text/plain"] for state in kernel.states]
    assert texts == [
        "evaluating",
        "12 %",
        "37 %, 200 tokens x passes/s, 12 s left",
        "100 %, 4,000 tokens x passes, 20.0 s",
        "100 %, 4,000 tokens x passes, 20.0 s",
    ]
    assert kernel.states[2]["text/html"] == f'<progress value="1500" max="4000"></progress> {texts[2]}'


def test_what_fails_leaves_where_it_was(monkeypatch: pytest.MonkeyPatch, clock: types.SimpleNamespace) -> None:
    kernel = Kernel(monkeypatch)
    bar = sk.progress_bar()
    progress = bar.__enter__()
    progress(1, 4)
    progress(2, 4)
    assert not bar.__exit__(KeyError, KeyError(), None)
    assert kernel.states[-1]["text/plain"] == "50 %"


def test_nothing_is_written_where_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(monkeypatch)
    with sk.progress_bar(shown=False) as progress:
        progress(1, 2)
    Kernel(monkeypatch, kernel=None)  # IPython in a terminal, and stderr is a file
    with sk.progress_bar() as progress:
        progress(1, 2)
    assert (kernel.states, capsys.readouterr().err.strip()) == ([], "")


def test_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(InputError, match="the progress bar needs the package 'rich'"), sk.progress_bar():
        pass
