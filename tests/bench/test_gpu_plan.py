"""The plan, the predictions and the targets of the GPU scorecard, without a GPU."""

from __future__ import annotations

import math
import re

import pytest
import torch

from places import ROOT
from saekernels.bench import Shape
from saekernels.bench.gpu import cases, forecast, model
from saekernels.bench.gpu.cards import CARDS
from saekernels.bench.gpu.cases import Settings
from saekernels.bench.gpu.contenders import ALL_PRODUCTS, OPS, PREPARED, PRODUCT, PRODUCTS, SCREENED, chunk_rows, of
from saekernels.bench.gpu.targets import TARGETS
from saekernels.bench.measure.contenders import OURS
from saekernels.bench.ops.decode import BAG
from saekernels.cli import main


def test_the_page_has_the_predictions_of_the_model() -> None:
    """Each row of its table: ours and its ratio, both were L2 no bound, and what they are ratios to."""
    page = (ROOT / "docs" / "explanation" / "gpu_model.md").read_text()
    rows = re.findall(
        r"^\| (.+?) \| ([\d.]+) ms \| ([\d.]+) \| ([\d.]+) ms \| ([\d.]+) \| ([\d.]+) ms", page, re.MULTILINE
    )
    assert len(rows) == 12
    case, card = cases.FULL[0], CARDS["H200"]
    for title, *said in rows:
        ours = SCREENED if "screened" in title else PREPARED if "prepared" in title else OURS
        if not title.startswith("the same"):
            case = case_of(title)
        other = {"encode": PRODUCT, "loss": PRODUCTS, "loss_train": ALL_PRODUCTS, "decode": BAG}[case.op]
        whole, least = (forecast.milliseconds(case, ours, one) for one in (card, card._replace(l2=math.inf)))
        beside = forecast.milliseconds(case, other, card)
        assert whole is not None
        assert least is not None
        assert beside is not None
        expected = (whole, whole / beside, least, least / beside, beside)
        assert [float(number) for number in said] == pytest.approx([round(one, 2) for one in expected], abs=0.006), (
            title
        )


def case_of(title: str) -> cases.Case:
    """Of "encode, float32 (d, F, k)", "linear_ce_kl (d, V = V)" or "linear_ce_kl, gradients (d, V = V)"."""
    op = title.split(" ")[0].strip(",")
    if op == "linear_ce_kl":
        op = "loss_train" if "gradients" in title else "loss"
    sizes = [int(number) for number in re.findall(r"\d+", title[title.index("(") :])]
    return cases.Case(op, Shape(8192, *sizes), torch.float32 if "float32" in title else torch.bfloat16)


def test_candidates_take_little_memory() -> None:
    for k, most in ((32, 0.03), (64, 0.03), (256, 0.05)):
        shape = Shape(8192, 4096, 131072, k)
        assert model.temporaries(shape, torch.bfloat16) / (2 * 8192 * 131072) <= most


@pytest.mark.parametrize(("quick", "limit"), [(False, 8 * 60), (True, 2 * 60)], ids=["full", "quick"])
def test_a_run_fits_its_time_by_prediction(quick: bool, limit: float) -> None:
    assert forecast.run_seconds(Settings(quick=quick), CARDS["H200"]) <= limit


def test_the_plan_is_the_one_asked_for() -> None:
    encoders = {(case.shape, case.dtype) for case in cases.FULL if case.op == "encode"}
    bf16, fp32 = torch.bfloat16, torch.float32
    for d, F, k in ((768, 32768, 32), (768, 131072, 32), (2304, 65536, 64), (4096, 131072, 64)):
        assert (Shape(8192, d, F, k), bf16) in encoders
    assert (Shape(2048, 4096, 1048576, 64), bf16) in encoders
    assert (Shape(8192, 4096, 131072, 256), bf16) in encoders
    assert {T for shape, _ in encoders for T in [shape.T]} == {1, 64, 2048, 8192}
    assert any(dtype == fp32 for _, dtype in encoders)
    assert {case.shape.F for case in cases.FULL if case.op == "loss"} == {50257, 128256, 256000}
    assert {case.op for case in cases.FULL} == set(OPS)


def test_every_target_names_rows_that_the_plan_has() -> None:
    for target in TARGETS:
        assert target.case in cases.FULL
        names = {contender.name for contender in of(target.case).contenders} | {"the model"}
        assert {target.ours, target.other} <= names


def test_targets_judge_in_their_direction() -> None:
    at_most = next(target for target in TARGETS if target.at_most)
    at_least = next(target for target in TARGETS if not target.at_most)
    times = {at_most.ours: 2.0, at_most.other: 1.0, at_least.other: 6.0}
    assert at_most.ratio(lambda case, name: times[name]) == 2.0
    assert not at_most.met(2.0)
    assert at_least.ratio(lambda case, name: {at_least.ours: 2.0}.get(name, 6.0)) == 3.0
    assert at_least.met(at_least.limit)
    assert not at_least.met(at_least.limit - 0.01)
    assert at_most.ratio(lambda case, name: None) is None


def test_chunks_shrink_as_latents_grow() -> None:
    assert [chunk_rows(F) for F in (1000, 32768, 65536, 131072, 1048576, 2**24)] == [4096, 4096, 2048, 1024, 256, 128]


@pytest.mark.parametrize("card", list(CARDS))
def test_the_dry_run_prints_plan_predictions_and_targets(card: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", "--dry-run", "--card", card]) == 0
    text = capsys.readouterr().out
    assert f"predictions for {card}; nothing here was measured" in text
    for case in cases.FULL:
        assert f"{case}: about" in text
        for contender in of(case).contenders:
            assert contender.name in text
    assert text.count(", met") + text.count(", MISSED") >= len(TARGETS)
    assert "nan" not in text
    assert "inf " not in text
    seconds = float(text.split("in all about ")[1].split(" s")[0])
    assert math.isfinite(seconds)
    assert seconds > 60
