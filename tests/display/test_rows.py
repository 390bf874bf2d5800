"""Charts in the rows of tables: scales with round ends, and marks at their values."""

from __future__ import annotations

import pytest

from saekernels.display.rows import bar, interval_line, linear_scale, log_scale, point


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.05, 0.5], (0, 0.2, 0.4, 0.6)),
        ([-0.3, 1.0], (-0.5, 0, 0.5, 1)),
        ([3.0], (0, 1, 2, 3)),
        ([None, 40], (0, 10, 20, 30, 40)),
        ([0.0], (0, 0.5)),
        ([None], (0, 0.5)),
    ],
)
def test_a_linear_scale_has_round_ends_around_zero_and_all_values(
    values: list[float | None], ticks: tuple[float, ...]
) -> None:
    scale = linear_scale(values)
    assert scale.ticks == pytest.approx(ticks)
    assert (scale.low, scale.high) == (scale.ticks[0], scale.ticks[-1])


def test_a_linear_scale_without_zero_starts_near_its_values() -> None:
    assert linear_scale([3.1, 3.4], with_zero=False).ticks == pytest.approx((3.1, 3.2, 3.3, 3.4))


def test_a_logarithmic_scale_has_whole_decades() -> None:
    scale = log_scale([0.02, None, -1.0, 0.0, 30])
    assert scale.ticks == pytest.approx((0.01, 0.1, 1, 10, 100))
    assert [scale.place(value) for value in (0.01, 1.0, 100.0)] == pytest.approx([0, 50, 100])
    assert log_scale([1.0]).ticks == pytest.approx((1, 10))
    assert log_scale([-1.0]).ticks == pytest.approx((1, 10))
    assert len(log_scale([1e-9, 1e9]).ticks) <= 7


def test_marks_lie_at_their_values() -> None:
    scale = linear_scale([-1.0, 1.0])
    assert scale.ticks == pytest.approx((-1, -0.5, 0, 0.5, 1))
    assert bar(scale, 0.5, "red") == '<rect x="50.00%" width="25.00%" y="30%" height="40%" fill="red"/>'
    assert bar(scale, -0.5, "red") == '<rect x="25.00%" width="25.00%" y="30%" height="40%" fill="red"/>'
    assert 'x1="25.00%" x2="75.00%"' in interval_line(scale, (-0.5, 0.5))
    assert 'x="75.00%"' in point(scale, 0.5, "red")
    assert 'x="100.00%"' in point(scale, 7.0, "red"), "what is beyond an end lies on it"


def test_what_is_not_known_has_no_mark() -> None:
    assert bar(linear_scale([1.0]), None, "red") == ""
    assert interval_line(linear_scale([1.0]), None) == ""
    assert point(linear_scale([1.0]), None, "red") == ""
    assert point(log_scale([1.0]), -0.5, "red") == ""
