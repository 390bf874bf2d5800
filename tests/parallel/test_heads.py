"""Heads that are no matrix, over several processes: the figures of one process, however the work is shared."""

from __future__ import annotations

import json
from typing import Any

import pytest

import heads_script
import ranks
import tiny_lm
from interrupted import in_small_chunks
from places import SCRIPTS

WAYS = ("data", "fsdp", "latents")


@pytest.fixture(scope="module")
def together() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ranks.check(2, str(SCRIPTS / "heads_script.py"), *WAYS).splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def apart() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        in_small_chunks(heads_script.CHUNK, patch.setattr)
        made = {kind: heads_script.figures(heads_script.make(kind), tiny_lm.saes()) for kind in ("module", "whole")}
    return json.loads(json.dumps(made))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["module", "whole"])
def test_the_figures_are_those_of_one_process(
    kind: str, way: str, together: dict[str, Any], apart: dict[str, Any]
) -> None:
    want, got = apart[kind], together[f"{kind} {way}"]
    assert got["run"] == want["run"] == kind, "the head is taken as it is in one process"
    if way != "latents":
        for key in ("sites", "all_sites", "documents_table"):
            assert got[key] == want[key], "to the bit: documents are shared, parameters are gathered"
        return
    assert [one["l0"] for one in got["sites"]] == [one["l0"] for one in want["sites"]], "the codes of the first site"
    for one, other in zip([*got["sites"], got["all_sites"]], [*want["sites"], want["all_sites"]], strict=True):
        assert one["ce"]["clean"] == other["ce"]["clean"], "no SAE takes part there"
        assert one["delta_ce"]["nats"] == pytest.approx(other["delta_ce"]["nats"], abs=1e-6)
        assert one["kl"] == pytest.approx(other["kl"], abs=1e-6)
