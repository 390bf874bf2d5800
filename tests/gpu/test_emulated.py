"""Kernels as Triton compiles them for sm_80 and sm_90, run on a machine for PTX (tests/helpers/ptx) with checks of
alignment, bounds and what happened before what, against float64; and mistakes put into the PTX, which it has to find.
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

from places import GPU_SCRIPTS
from saekernels.backends import reference

pytest.importorskip("triton")

import emulated_cases as emulated


@cache
def results() -> dict[str, dict[str, Any]]:
    """What a process that does not interpret Triton says of all cases and mistakes."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(GPU_SCRIPTS / "triton_emulate.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", emulated.CASES)
def test_topk_is_that_of_exact_scores(name: str) -> None:
    case, got = emulated.CASES[name], results()[name]
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


@pytest.mark.parametrize("name", emulated.PRODUCTS)
def test_products_of_whole_numbers_are_exact(name: str) -> None:
    x, W = emulated.factors(emulated.PRODUCTS[name])
    assert results()[f"product: {name}"]["scores"] == (x.double() @ W.double().T).tolist()


@pytest.mark.parametrize("name", emulated.LOSSES)
def test_losses_are_those_of_exact_logits(name: str) -> None:
    case = emulated.LOSSES[name]
    h_p, h_q, W, targets, bias = case.inputs()
    exact = (tensor.double() for tensor in (h_p, h_q, W))
    expected = reference.linear_ce_kl(*exact, targets, bias.double(), case.softcap, -100)
    got = torch.tensor(results()[f"loss: {name}"]["found"], dtype=torch.float64)
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-6, atol=1e-6)


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


def test_no_wait_of_warps_with_roles_is_left_out_unseen() -> None:
    said = results()["sm_90, roles, no wait for a tile"]["faults"]
    assert len(said) == 5
    assert all(said)


@pytest.mark.parametrize("name", emulated.NO_MISTAKE)
def test_without_a_mistake_none_is_found(name: str) -> None:
    assert results()[name]["faults"] == [""]
