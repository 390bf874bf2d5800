"""Kernels as Triton compiles them for sm_80 and sm_90, run on a machine for PTX (tests/helpers/ptx) with checks of
alignment, bounds and what happened before what, against float64; and mistakes put into the PTX, which it has to find.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch

from places import GPU_SCRIPTS
from saekernels.backends import reference

pytest.importorskip("triton")

import emulated_cases as emulated

EVERY = (
    *emulated.CASES, *(f"product: {name}" for name in emulated.PRODUCTS),
    *(f"loss: {name}" for name in emulated.LOSSES), emulated.THRESHOLDS, *emulated.MISTAKES, *emulated.NO_MISTAKE,
)  # fmt: skip


@cache
def _results(quick: bool) -> dict[str, dict[str, Any]]:
    """What a process that does not interpret Triton says of all quick cases and mistakes, or of all others."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    names = [name for name in EVERY if (name in emulated.QUICK) == quick]
    command = [sys.executable, "-W", "ignore", str(GPU_SCRIPTS / "triton_emulate.py"), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


def result(name: str) -> dict[str, Any]:
    """What was said of one."""
    return _results(name in emulated.QUICK)[name]


def each(names: Iterable[str], prefix: str = "") -> Any:
    """A test of each name, slow but for the quick ones."""
    marks = {name: () if prefix + name in emulated.QUICK else pytest.mark.slow for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


def test_the_quick_ones_are_there() -> None:
    assert set(EVERY) > emulated.QUICK


@each(emulated.CASES)
def test_topk_is_that_of_exact_scores(name: str) -> None:
    case, got = emulated.CASES[name], result(name)
    x, W, bias = case.inputs()
    scores = x.double() @ W.double().T + bias.double()
    compared = scores if not case.scaled else scores * case.scale()
    ranked = (compared.abs() if case.activation == "abs" else compared).nan_to_num(torch.inf)
    values, indices = torch.tensor(got["values"], dtype=torch.float64), torch.tensor(got["indices"])
    assert all(len(set(row)) == emulated.K for row in got["indices"])
    torch.testing.assert_close(ranked.gather(1, indices), ranked.topk(emulated.K).values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(values, scores.gather(1, indices), rtol=1e-6, atol=1e-6, equal_nan=True)
    assert got["failed"] == case.failed
    assert ("screen_hopper_kernel" in got["kernels"]) == (case.tile.ring is not None)


@each(emulated.PRODUCTS, "product: ")
def test_products_of_whole_numbers_are_exact(name: str) -> None:
    x, W = emulated.factors(emulated.PRODUCTS[name])
    assert result(f"product: {name}")["scores"] == (x.double() @ W.double().T).tolist()


@each(emulated.LOSSES, "loss: ")
def test_losses_are_those_of_exact_logits(name: str) -> None:
    case = emulated.LOSSES[name]
    h_p, h_q, W, targets, bias = case.inputs()
    exact = (tensor.double() for tensor in (h_p, h_q, W))
    expected = reference.linear_ce_kl(*exact, targets, bias.double(), case.softcap, -100)
    got = torch.tensor(result(f"loss: {name}")["found"], dtype=torch.float64)
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_thresholds_of_latents_are_passed_by_those_above_and_by_nan() -> None:
    case = emulated.CASES[emulated.THRESHOLDS_OF]
    x, W, bias = case.inputs()
    scores = x.double() @ W.double().T + bias.double()
    above = (scores > emulated.limits(case.F)) | scores.isnan()
    assert result(emulated.THRESHOLDS)["passed"] == [row.nonzero()[:, 0].tolist() for row in above]
    assert above[2].all()
    assert 10 < above[0].sum() < 200


@each(emulated.MISTAKES)
def test_mistakes_are_found(name: str) -> None:
    said = result(name)["faults"]
    assert any(emulated.MISTAKES[name].fault in fault for fault in said), said


def test_no_wait_of_warps_with_roles_is_left_out_unseen() -> None:
    said = result("sm_90, roles, no wait for a tile")["faults"]
    assert len(said) == 5
    assert all(said)


@each(emulated.NO_MISTAKE)
def test_without_a_mistake_none_is_found(name: str) -> None:
    assert result(name)["faults"] == [""]
