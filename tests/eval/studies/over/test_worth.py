"""What a splice is worth in training, against curves whose answer is known."""

from __future__ import annotations

import math

import pytest

from saekernels.errors import InputError
from saekernels.eval.report.data import Documents
from saekernels.eval.studies.over.worth import training_shares

SEEN = [0, 100, 200, 400, 800]


def table(loss: float, spliced: float | None, ids: str = "abcd") -> Documents:
    """Four documents of unlike length; each is so much harder than the mean, in every checkpoint alike."""
    harder = [0.2, -0.1, 0.0, 0.3][: len(ids)]
    tokens = [10, 20, 30, 40][: len(ids)]
    spread = [None if spliced is None else spliced + h for h in harder]
    clean = [loss + h for h in harder]
    return Documents(list(ids), ["x"] * len(ids), tokens, tokens, clean, {"s": spread}, {"s": [0.0] * len(ids)})


def test_a_splice_that_predicts_like_an_earlier_checkpoint_is_worth_what_that_one_saw() -> None:
    """A loss of 10 - ln(seen), spliced as after a quarter of the training: linear in ln(seen), so exact in between."""
    curve = {seen: 10 - math.log(seen) if seen else 10.0 for seen in SEEN}
    tables = [table(loss, loss + math.log(4)) for loss in curve.values()]
    found = training_shares(SEEN, tables, 16, 40, 0)
    assert found[:2] == [{}, {}], "one has seen nothing, the other has nothing before it"
    assert found[2]["s"] == {"value": None, "ci95": None, "outside": "worse than the smallest member"}
    for one in found[3:]:
        assert one["s"]["value"] == pytest.approx(0.25, rel=1e-6)
        assert one["s"]["ci95"] == pytest.approx((0.25, 0.25), rel=1e-6), "what makes a document hard cancels"
    better = training_shares(SEEN, [*tables[:-1], table(curve[800], curve[800] - 0.1)], 16, 0, 0)
    assert better[-1]["s"]["outside"] == "better than the largest member"
    between = training_shares(SEEN, [*tables[:-1], table(curve[800], 10 - math.log(282))], 16, 0, 0)
    assert between[-1]["s"]["value"] == pytest.approx(282 / 800, rel=1e-6)


def test_a_loss_that_is_not_finite_is_left_out_and_another_text_refused() -> None:
    tables = [table(10 - math.log(seen), None if seen == 800 else 9.5 - math.log(seen)) for seen in SEEN[1:]]
    assert training_shares(SEEN[1:], tables, 16, 0, 0)[-1] == {}
    unknown = table(10 - math.log(800), 9.5 - math.log(800))
    unknown.clean[2] = None
    found = training_shares(SEEN[1:], [*tables[:-1], unknown], 16, 0, 0)
    assert found[-1] == {}, "a checkpoint without a loss of its own has no place on the curve"
    assert found[-2]["s"]["outside"] == "better than the largest member"
    with pytest.raises(InputError, match="checkpoint 2: its text has other tokens than that of the first one"):
        training_shares([1, 2], [table(2, 3), table(1, 2, "abc")], 16, 0, 0)
