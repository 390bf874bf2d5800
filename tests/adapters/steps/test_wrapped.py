"""Training SAEs on several processes, in DDP and FSDP and in sparsify's Trainer: what the tool's own gives there."""

from __future__ import annotations

import json
from typing import Any

import pytest

import ranks
from places import SCRIPTS

pytestmark = pytest.mark.peers
SAME: dict[str, list[str]] = {"early": [], "before": [], "after": []}
# By the number of processes; when it is accelerated before there is a process group, before it is wrapped, or wrapped.
EXPECTED: dict[int, dict[str, dict[str, list[str]]]] = {
    2: {
        "topk DDP": SAME,
        "topk DDP, gradients as views": SAME,
        "topk FSDP2": {**SAME, "early": ["FSDP does not support non-contiguous parameters yet"]},
        "topk FSDP1": SAME,
        "batchtopk DDP": {"after": []},
        "batchtopk FSDP2": {"before": []},
        "jumprelu, step FSDP2": {"after": []},
        "coder DDP": {"early": []},
        "coder FSDP2": {"before": []},
    },
    3: {"topk DDP": {"after": []}, "topk FSDP2": {"before": []}, "batchtopk DDP": {"early": []}},
}


def told(count: int, script: str) -> list[dict[str, Any]]:
    """What every rank of a script says."""
    pytest.importorskip("sae_lens")
    pytest.importorskip("sparsify")
    found: list[dict[str, Any]] = json.loads(ranks.check(count, str(SCRIPTS / script)).splitlines()[-1])
    assert len(found) == count
    return found


@pytest.mark.parametrize("count", EXPECTED)
def test_wrapped_steps_are_those_of_its_own_wrapped_alike(count: int) -> None:
    """Losses, gradients, reconstructions after each of two steps and thresholds, whenever it was accelerated."""
    for rank in told(count, "wrapped_steps_script.py"):
        assert rank == {
            **EXPECTED[count],
            "whole": [],
            "restored": [],
            "registered": ["FSDPTopKTrainingSAE: its 'training_forward_pass' was replaced; accelerate it before that"],
            "strides": [],
        }


def test_the_trainer_of_sparsify_on_two_processes() -> None:
    """With a coder per rank as it is; with DDP it asks for GPUs, and is given a DDP that does not."""
    first, second = told(2, "sparsify_ranks_script.py")
    for rank in (first, second):
        assert rank["refused"] == ["DistributedDataParallel device_ids and output_device arguments "[:62]] * 2
        for way in ("apart", "DDP"):
            assert rank[way]["steps"] == [15, 15]
            assert rank[way]["auxk"], "no latent died"
            assert rank[way]["loss"] < 1e-5
            assert rank[way]["weights"] < 1e-5
            assert rank[way]["fired"]
    assert [rank["apart"]["layer"] for rank in (first, second)] == ["layers.0", "layers.1"]
    assert first["DDP"]["bits"] == second["DDP"]["bits"], "ranks have other weights"
