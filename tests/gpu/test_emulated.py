"""The encoder's kernels as Triton compiles them for sm_80, run on a machine for PTX (tests/helpers/ptx) with checks of
alignment, bounds and what shared memory holds, against float64; and mistakes put into the PTX, which it has to find.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch

from places import SCRIPTS

pytest.importorskip("triton")

import triton_emulate as emulated


@cache
def results() -> dict[str, dict[str, Any]]:
    """What a process that does not interpret Triton says of all cases and mistakes."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(SCRIPTS / "triton_emulate.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", emulated.CASES)
def test_topk_is_that_of_exact_scores(name: str) -> None:
    case, got = emulated.CASES[name], results()[name]
    x, W, bias = case.inputs()
    scores = x.double() @ W.double().T + bias.double()
    ranked = (scores.abs() if case.activation == "abs" else scores).nan_to_num(torch.inf)
    values, indices = torch.tensor(got["values"], dtype=torch.float64), torch.tensor(got["indices"])
    assert all(len(set(row)) == emulated.K for row in got["indices"])
    torch.testing.assert_close(ranked.gather(1, indices), ranked.topk(emulated.K).values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(values, scores.gather(1, indices), rtol=1e-6, atol=1e-6, equal_nan=True)
    assert got["failed"] == case.failed


def test_thresholds_of_latents_are_passed_by_those_above_and_by_nan() -> None:
    case = emulated.CASES[emulated.THRESHOLDS_OF]
    x, W, bias = case.inputs()
    scores = x.double() @ W.double().T + bias.double()
    above = (scores > emulated.limits(case.F)) | scores.isnan()
    assert results()[emulated.THRESHOLDS]["passed"] == [row.nonzero()[:, 0].tolist() for row in above]
    assert above[2].all()
    assert 10 < above[0].sum() < 200


@pytest.mark.parametrize("name", emulated.MISTAKES)
def test_mistakes_are_found(name: str) -> None:
    said = results()[name]["faults"]
    assert any(emulated.MISTAKES[name].fault in fault for fault in said), said


def test_without_a_mistake_none_is_found() -> None:
    assert results()["no mistake"]["faults"] == [""]
