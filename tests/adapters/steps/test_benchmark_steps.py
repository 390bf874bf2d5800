"""The steps that `benchmarks/trainers/peers_trainers.py` times: the same losses both ways, and ours taken over."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from places import ROOT

pytestmark = pytest.mark.peers


def arguments(**changes: Any) -> argparse.Namespace:
    plain = {
        "tool": "dictionary_learning",
        "architecture": "topk",
        "synthetic": 16,
        "latents": 256,
        "k": 32,
        "batch": 64,
    }
    plain |= {"steps": 5, "lr": 1e-3, "late": False, "dead": 0.0, "multi_topk": False, "our_optimizer": False}
    return argparse.Namespace(**{**plain, "cpu_time": True, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "batchtopk", "dead": 0.3},
        {"architecture": "matryoshka_batchtopk", "our_optimizer": True},
        {"architecture": "topk", "late": True},
        {"architecture": "jumprelu", "late": True},
        {"architecture": "standard", "late": True, "our_optimizer": True},
        {"architecture": "gated", "late": True},
        {"tool": "sparsify", "dead": 0.3, "multi_topk": True, "our_optimizer": True},
    ],
    ids=str,
)
def test_both_ways_have_the_same_losses(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(**changes)
    pytest.importorskip(args.tool)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "trainers"))
    import peers_trainers

    (plain, plain_times), (fast, fast_times) = peers_trainers.steps_in_turns(args)
    assert len(plain) == len(fast) == len(plain_times) == len(fast_times) == 5
    assert fast == pytest.approx(plain, rel=1e-4)
    assert len({*plain}) == 5
    assert min(*plain_times, *fast_times) > 0
