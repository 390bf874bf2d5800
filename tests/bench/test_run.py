"""Cases, contenders and records: answers are checked before they are timed, and nothing is left out in silence."""

from __future__ import annotations

import csv
import io
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace

import jsonschema
import pytest
import torch

from saekernels.bench import GROUPS, OPS, Record, Settings, Shape, plan, run, schema
from saekernels.bench.cpu import runner
from saekernels.bench.measure import machine, memory, peers
from saekernels.bench.measure.ceilings import Roofs
from saekernels.bench.measure.contenders import CHUNKED, OURS, Contender, Ready, Work

SHAPE, LOSS_SHAPE = Shape(40, 24, 96, 5), Shape(20, 16, 50)
ROOFS = Roofs(100.0, 50.0, 10.0, 8.0)
QUICK = Settings(rounds=2, budget=5.0, quick=True)


@pytest.fixture(autouse=True)
def no_measured_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "measure", lambda quick: ROOFS)


def shape_of(op: str) -> Shape:
    return SHAPE if OPS[op].shapes[0].k else LOSS_SHAPE


def rows_of(op: str, dtype: torch.dtype = torch.float32, **changes: object) -> dict[str, runner.Row]:
    case = runner.Case(replace(OPS[op], **changes), shape_of(op), dtype)  # type: ignore[arg-type]
    return {row.contender: row for row in runner.run_case(case, QUICK)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_every_contender_that_is_installed_is_right(op: str, dtype: torch.dtype) -> None:
    rows = rows_of(op, dtype)
    assert next(iter(rows)) == OURS
    for row in rows.values():
        assert row.status == "ok" or row.status.startswith(("not installed (pip install", "skipped: --quick")), row
    for name in OPS[op].baselines:
        assert dtype != torch.float32 or name not in rows or rows[name].status in ("ok", runner.NOT_INSTALLED)


@pytest.mark.peers
@pytest.mark.parametrize("op", ["sae_topk", "sae_jumprelu", "sae_train", *GROUPS["train"]])
def test_peers_are_timed(op: str) -> None:
    pytest.importorskip("sae_lens", reason="the peers extra is not installed")
    pytest.importorskip("sparsify", reason="the peers extra is not installed")
    assert {row.status for row in rows_of(op).values()} == {"ok"}


# One change to the answer for each thing that a check looks at.
def _other_latent(output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    values, indices, *rest = output
    return (values, (indices + 1) % SHAPE.F, *rest)


WRONG = {
    "encode": {
        "values": lambda out: (out[0] * 1.01, out[1]),
        "latents": _other_latent,
        "twice": lambda out: (out[0], out[1][:, :1].expand_as(out[1])),
        "nan": lambda out: (out[0] * float("nan"), out[1]),
        "too few": lambda out: (out[0][:, 1:], out[1][:, 1:]),
    },
    "threshold": {
        "values": lambda out: (out[0] * 1.01, *out[1:]),
        "latents": _other_latent,
        "too few": lambda out: (out[0], out[1], torch.zeros_like(out[2])),
    },
    "decode": {"values": lambda out: out * 1.01, "shape": lambda out: out[1:]},
    "sae_topk": {"values": lambda out: out * 1.05, "nothing": torch.zeros_like},
    "sae_jumprelu": {"values": lambda out: out * 1.05},
    "sae_train": {
        name: lambda out, name=name: (out[0], {**out[1], name: 1.05 * out[1][name].to_dense()})
        for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    }
    | {"loss": lambda out: (out[0] * 1.05, out[1])},
    "train_gated": {
        name: lambda out, name=name: out._replace(gradients={**out.gradients, name: 1.05 * out.gradients[name]})
        for name in ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec")
    }
    | {"loss": lambda out: out._replace(loss=out.loss * 1.001)},
    "adam": {
        name: lambda out, name=name: out._replace(weights={**out.weights, name: 1.001 * out.weights[name]})
        for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    }
    | {"a step": lambda out: out._replace(steps=out.steps + 1)},
    "adam_rows": {
        "norms": lambda out: out._replace(weights={**out.weights, "W_dec": 1.001 * out.weights["W_dec"]}),
        "a step": lambda out: out._replace(steps=out.steps + 1),
    },
    "loss": {
        "ce": lambda out: (out[0] * 1.01, *out[1:]),
        "kl": lambda out: (*out[:2], out[2] + 0.01, out[3]),
        "agreement": lambda out: (*out[:3], 1 - out[3]),
    },
    "loss_train": {
        "h_p": lambda out: (out[0] * 1.01, out[1]),
        "h_q": lambda out: (out[0], out[1] * 1.01),
    },
}


@pytest.mark.parametrize(("op", "how"), [(op, how) for op, wrongs in WRONG.items() for how in wrongs])
def test_a_wrong_contender_is_refused(op: str, how: str) -> None:
    right = OPS[op].contenders(torch.float32)[0]

    def prepare(problem):  # type: ignore[no-untyped-def]
        call = right.prepare(problem).call
        return Ready(lambda *tokens: WRONG[op][how](call(*tokens)))

    wrong = Contender("wrong", prepare)
    rows = rows_of(op, contenders=lambda dtype: [right, wrong])
    assert rows["wrong"].status.startswith("failed: wrong answer: "), rows["wrong"]
    assert rows["wrong"].median_ms is None
    assert rows["wrong"].rounds == 0
    assert rows[OURS].status == "ok"
    assert rows[OURS].rounds == 2


def test_a_failing_contender_leaves_the_others() -> None:
    def fail(problem):  # type: ignore[no-untyped-def]
        raise RuntimeError("no such kernel\nand much more")

    right = OPS["decode"].contenders(torch.float32)[0]
    rows = rows_of("decode", contenders=lambda dtype: [Contender("bad", fail), right])
    assert rows["bad"].status == "failed: RuntimeError: no such kernel"
    assert rows[OURS].status == "ok"


def test_a_missing_peer_is_a_row() -> None:
    def missing(problem):  # type: ignore[no-untyped-def]
        peers.load("surely_not_installed")

    def broken(problem):  # type: ignore[no-untyped-def]
        raise ImportError("cannot import name 'x'")

    rows = rows_of("decode", contenders=lambda dtype: [Contender("peer", missing), Contender("broken", broken)])
    assert rows["peer"].status == "not installed (pip install 'saekernels[peers]')"
    assert rows["broken"].status == "failed: ImportError: cannot import name 'x'"


def test_a_case_without_memory_is_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2**10)
    rows = rows_of("encode")
    assert {row.status for row in rows.values()} == {"skipped: needs 0.0 GiB of memory, 0.0 GiB are available"}
    assert list(rows) == [one.name for one in OPS["encode"].contenders(torch.float32)]


def test_a_call_beyond_the_budget_is_a_row_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[float] = iter(range(10**6))
    monkeypatch.setattr(runner.time, "perf_counter", lambda: float(next(ticks)))
    rows = rows_of("decode")
    # By this clock a pilot takes 1 s, whether of 2 or of 10 of the 40 tokens: 20 s, and on a second look 4 s.
    assert rows[OURS].status == "ok"
    monkeypatch.setattr(runner, "_PILOTS", (16,))
    assert rows_of("decode")[OURS].status == "skipped: one call would take about 20 s, and --budget is 5 s"


def test_what_is_like_a_slow_contender_is_skipped_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_PILOTS", (16,))
    right = OPS["decode"].contenders(torch.float32)[0]

    def never(problem):  # type: ignore[no-untyped-def]
        raise AssertionError("was set up")

    slow = Contender("slow", lambda problem: Ready(lambda *tokens: time.sleep(0.3)))
    rows = rows_of("decode", contenders=lambda dtype: [right, slow, Contender("twin", never, like="slow")])
    assert rows["slow"].status == rows["twin"].status
    assert rows["slow"].status.startswith("skipped: one call would take about")


def test_figures_of_a_row() -> None:
    row = runner.Row("decode", "float32", SHAPE.sizes(), "other", "ok")
    times = {OURS: {0: 2.0, 1: 2.0, 2: 2.0}, "other": {0: 4.0, 1: 6.0, 2: 5.0}}
    runner._fill(row, times, Work(bytes=10**9, flops=10**12))
    assert (row.median_ms, row.iqr_ms, row.rounds) == (5000.0, 1000.0, 3)
    assert (row.ratio_to_ours, row.paired_ratio_to_ours) == (2.5, 2.5)
    assert (row.gb_per_s, row.gflop_per_s) == pytest.approx((0.2, 200.0))


def test_shares_of_the_better_ceilings(record: Record) -> None:
    row = runner.Row("decode", "float32", SHAPE.sizes(), OURS, "ok", median_ms=5000.0, bytes=10**9, flops=10**12)
    held = replace(record, rows=[row, replace(row, dtype="bfloat16"), replace(row, bytes=10**12)])
    held.hold_against(Roofs(50.0, 200.0, 10.0, 4.0).best_of(ROOFS))
    assert held.roofs == Roofs(100.0, 200.0, 10.0, 8.0)
    assert [row.share_of_int8 for row in held.rows] == [None] * 3
    held.hold_against(held.roofs.best_of(Roofs(1.0, 1.0, 1.0, 1.0, 400.0)))
    # 10 s at 100 GFLOP/s, 5 s at 200 in bf16, 100 s at 10 GB/s.
    assert [row.share_of_bound for row in held.rows] == pytest.approx([2.0, 1.0, 20.0])
    alone = [[row.share_of_float32, row.share_of_bfloat16, row.share_of_int8, row.share_of_read] for row in held.rows]
    assert alone[0] == alone[1] == pytest.approx([2.0, 1.0, 0.5, 0.025])
    assert alone[2] == pytest.approx([2.0, 1.0, 0.5, 25.0])


def test_shapes_pick_the_ops_that_they_fit() -> None:
    assert {case.op.name for case in plan(Settings(shapes=(LOSS_SHAPE,)))} == {"loss", "loss_train"}
    assert not {"loss", "loss_train"} & {case.op.name for case in plan(Settings(shapes=(SHAPE,)))}
    with pytest.raises(ValueError, match=r"got [\d,]+, loss needs T,d,V"):
        plan(Settings(ops=("loss",), shapes=(SHAPE,)))


def test_cases_of_the_same_weights_stay_together() -> None:
    families = [runner._family(case) for case in plan(Settings())]
    changes = sum(a != b for a, b in itertools.pairwise(families))
    assert changes == len(set(families)) - 1


@pytest.fixture(scope="module")
def record() -> Record:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "measure", lambda quick: ROOFS)
        return run(Settings(ops=("loss", "encode"), shapes=(SHAPE, LOSS_SHAPE), rounds=3, quick=True, threads=1))


def test_record_is_as_its_schema_says(record: Record) -> None:
    data = json.loads(record.to_json())
    jsonschema.validate(data, schema())
    assert [row["op"] for row in data["rows"]] == sorted(row["op"] for row in data["rows"])
    assert data["machine"]["threads"] == 1
    assert data["versions"]["torch"] in (
        torch.__version__,
        torch.__version__.split("+")[0],
    )  # metadata may name no build
    wrong = {**data, "rows": [{**data["rows"][0], "status": "fine"}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema())


def test_csv_has_the_same_rows(record: Record) -> None:
    rows = list(csv.DictReader(io.StringIO(record.to_csv())))
    assert len(rows) == len(record.rows)
    for row, want in zip(rows, record.rows, strict=True):
        assert row["contender"] == want.contender
        assert row["threads"] == "1"
        assert row["median_ms"] == ("" if want.median_ms is None else str(want.median_ms))
    assert rows[0]["shape"] == "T=40 d=24 F=96 k=5"


def test_verdicts_take_the_fastest_baseline(record: Record) -> None:
    for row in record.rows:
        row.paired_ratio_to_ours = row.median_ms = None
    for row in record.rows:
        if (row.op, row.dtype) == ("encode", "float32") and row.contender in (OURS, CHUNKED, "torch"):
            row.median_ms = {OURS: 2.0, CHUNKED: 3.0, "torch": 5.0}[row.contender]
            row.paired_ratio_to_ours = row.median_ms / 2
    found = {verdict.case[:2]: verdict for verdict in record.verdicts()}
    assert found["encode", "float32"][1:] == (CHUNKED, 1.5)
    assert found["encode", "bfloat16"].ratio is None


def test_commit_is_unknown_outside_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    assert machine.commit() == {"commit": None, "dirty": None}


def test_the_checkout_is_looked_for_where_the_package_lies() -> None:
    assert (machine._ROOT / "saekernels" / "bench" / "measure" / "machine.py").is_file()


def test_threads_are_set_back(record: Record) -> None:
    before = torch.get_num_threads()
    run(replace(QUICK, ops=("decode",), shapes=(Shape(3, 8, 16, 2),), threads=before + 1))
    assert torch.get_num_threads() == before


def test_rows_by_a_fallback_fail_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = itertools.count()
    monkeypatch.setattr(machine, "fallback_rows", lambda: next(counted))
    row = rows_of("encode")[OURS]
    assert row.status == "failed: 1 of 40 rows took a fallback (saekernels info --stats)"
    assert row.median_ms is None
    monkeypatch.setattr(machine, "fallback_rows", lambda: 7)
    assert rows_of("encode")[OURS].status == "ok"
