"""Kernels of single rows, in the interpreter: rows that no screen could serve, and candidates scored once more."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from triton_cases import encoder, module, skip_unless_interpreting

skip_unless_interpreting()
from saekernels.backends.triton import stats  # noqa: E402
from saekernels.backends.triton.encode.encoder_inputs import Encoder  # noqa: E402
from saekernels.backends.triton.encode.operands import Operands, Vectors  # noqa: E402
from saekernels.backends.triton.keys import Candidates  # noqa: E402
from saekernels.backends.triton.launch import record  # noqa: E402
from saekernels.backends.triton.select import unpack  # noqa: E402


def inputs(x: Tensor, W: Tensor, bias: Tensor | None) -> Encoder:
    """Of an encoder without a scale."""
    return Encoder(Operands(x, W, Vectors(bias)), x, W, bias, None, 1.0)


@pytest.mark.parametrize(
    ("failing", "capacity", "arrived"),
    [(1, 24, [5]), (2, 40, [2, 2, 2, 2]), (9, 16, [])],
    ids=["one row, five shares", "two rows, two places, two shares", "more rows than programs"],
)
def test_failed_rows_are_shared_by_all_programs(
    monkeypatch: pytest.MonkeyPatch, failing: int, capacity: int, arrived: list[int]
) -> None:
    """8 programs, 5 blocks of 16 latents, the last ragged; a row's keys have the same bits however it is shared."""
    monkeypatch.setattr(module("encode.sampling"), "LEAST_KEPT", 16)
    case, k = encoder(9, 75, 20, biased=False), 12
    failed = module("failed").none_yet(9, case.x.device)
    failed.rows[:failing], failed.number[0] = torch.arange(9)[:failing].flip(0), failing
    found = Candidates(torch.full((9, capacity), 5), torch.full((9,), 3, dtype=torch.int32), capacity)
    exact_rows = module("encode.exact_rows").exact_rows
    before = stats()["fallback_rows"]
    exact_rows(inputs(case.x, case.W, None), failed, found, k)
    assert stats()["fallback_rows"] - before == failing
    assert failed.arrived[failed.arrived > 0].tolist() == arrived
    values, indices = select(found._replace(keys=found.keys[:failing], counts=found.counts[:failing]), k)
    scores = (case.x.double() @ case.W.double().T)[:failing]
    assert torch.equal(indices.long(), scores.topk(k).indices)
    torch.testing.assert_close(values.double(), scores.topk(k).values, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.counts[failing:], torch.full((9 - failing,), 3, dtype=torch.int32))
    assert (found.keys[failing:] == 5).all()
    alone, again = module("failed").none_yet(9, case.x.device), found._replace(keys=found.keys.clone())
    alone.rows[0], alone.number[0] = 0, 1
    exact_rows(inputs(case.x, case.W, None), alone, again, k)
    assert torch.equal(select(again, k)[0][0], values[0])


def select(found, k: int) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    return module("select").select(found, k, torch.float32, relu=False)


def test_counters_outlast_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory from the thread at work may be a graph's; in a capture there is none that lasts, which is said.

    A stream has its own, so that none is waited for; a graph has that of a stream.
    """
    failed, threads = module("failed"), []
    monkeypatch.setattr(failed, "_counters", {})
    zero = failed._zero

    def noted(device: torch.device, stream: object) -> Tensor:
        threads.append(threading.get_ident())
        return zero(torch.device("cpu"), None)

    monkeypatch.setattr(failed, "_zero", noted)
    assert failed.counter(torch.device("cpu")) is failed.counter(torch.device("cpu"))
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with FakeTensorMode(), pytest.warns(UserWarning, match="its fallback rows will not be counted"):
        assert failed.counter(torch.device("cuda", 0)).shape == (1,)
    assert list(failed._counters) == [(None, 0)]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("the device is waited for"))
    made = {}
    for number in (7, 8, 7):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_, n=number: SimpleNamespace(cuda_stream=n))
        with FakeTensorMode():
            made[number] = failed.counter(torch.device("cuda", 0))
    assert made[7] is not made[8]
    assert len(threads) == 3
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert failed.counter(torch.device("cuda", 0)) is made[7]


@pytest.mark.parametrize("T", [1, 9])
def test_rescoring_stops_where_candidates_end(monkeypatch: pytest.MonkeyPatch, T: int) -> None:
    """Any number of programs for a row gives the same bits, and nothing behind its candidates is touched."""
    case, rescoring = encoder(T, 50, 37), module("encode.rescore")
    capacity, counts = 22, torch.tensor([22, 0, 1, 3, 4, 5, 8, 9, 21], dtype=torch.int32)[:T]
    chosen = torch.stack([torch.randperm(50) for _ in range(T)])[:, :capacity]
    before = (0x7FFFFFFF - chosen) << 1
    results = []
    for programs in (32, 1):
        monkeypatch.setattr(rescoring, "PROGRAMS", programs)
        found = Candidates(before.clone(), counts, capacity)
        rescoring.rescore(inputs(case.x, case.W, case.bias), found)
        results.append(found.keys)
    assert torch.equal(*results)
    here = torch.arange(capacity) < counts[:, None]
    values, indices = unpack(results[0], torch.float32, relu=False)
    assert torch.equal(indices, chosen.int())
    scores = (case.x.double() @ case.W.double().T + case.bias.double()).gather(1, chosen)
    torch.testing.assert_close(values.double()[here], scores[here], rtol=1e-6, atol=1e-6)
    assert torch.equal(results[0][~here], before[~here])


@pytest.mark.parametrize(("T", "programs"), [(8192, 1), (2048, 3), (64, 66), (1, 368)])
def test_rescoring_starts_what_fills_the_card(T: int, programs: int) -> None:
    """Of 132 multiprocessors, whatever the room; 368 programs of 8 entries are one for each place."""
    with record(90) as launches, FakeTensorMode():
        x, W, keys = torch.empty(T, 4096), torch.empty(9, 4096), torch.empty(T, 2944, dtype=torch.int64)
        module("encode.rescore").rescore(inputs(x, W, None), Candidates(keys, torch.empty(T, dtype=torch.int32), 2944))
    assert [launch.grid for launch in launches] == [(T, programs)]
