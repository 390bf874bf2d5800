"""encode_batch_topk over two and three processes, by gloo, against one process with all rows."""

from __future__ import annotations

import json

import pytest

import ranks
from places import SCRIPTS


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_together_are_one_process(count: int) -> None:
    """Codes to the bit, ties and NaN among them, whatever the ranks' rows and guesses; gradients; another n."""
    last = 4 + count
    for rank, (wrong, refusal) in enumerate(json.loads(ranks.check(count, str(SCRIPTS / "batch_topk_script.py")))):
        assert wrong == []
        assert refusal == f"n: got {5 + rank} here and from 5 to {last} in the ranks, need the same in all"
