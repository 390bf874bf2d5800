"""encode_batch_topk over two and three processes, by gloo, against one process with all rows."""

from __future__ import annotations

import json

import pytest

import ranks
from places import SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_together_are_one_process(count: int) -> None:
    """Codes to the bit, ties and NaN among them, whatever the ranks' rows and guesses; gradients.

    What one rank is given wrongly all of them refuse, and none waits.
    """
    last, others = f"(in rank {count - 1})", count - 1

    def differs(name: str, usual: str, other: str) -> str:
        said = ", ".join(f"{usual} in rank {rank}" for rank in range(others))
        return f"ValueError: {name}: got {said}, {other} in rank {others}, need the same in all"

    for wrong, refused in json.loads(ranks.check(count, str(SCRIPTS / "batch_topk_script.py"))):
        assert wrong == []
        assert refused == {
            "n": f"ValueError: n: got 0, need an int of at least 1 {last}",
            "type of n": f"ValueError: n: got '5', need an int of at least 1 {last}",
            "dimensions": f"ValueError: x: got shape [8], need [T, d] {last}",
            "no tensor": f"TypeError: x: got NoneType, need a torch.Tensor {last}",
            "guess": f"ValueError: guess: got nan, need a finite number or None {last}",
            "negative scale": f"ValueError: scale: must not be below 0, but scale[0] = -1 {last}",
            "shape": f"ValueError: x: got shape [2, 8], need [..., d] with d = 9, the width of W_enc {last}",
            "another n": differs("n", "5", "6"),
            "another encoder": differs("the rows of W_enc", "60", "61"),
            "another dtype": differs("the dtype of x", "float32", "bfloat16"),
            "no scale": differs("whether there is a scale", "True", "False"),
        }
