"""Axes end on round numbers, hold what they show, and place it exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ra3gym.experiments.report.charts import line_chart, linear_axis, percent_label, ratio_axis, signed_label
from ra3gym.experiments.studies.arms import ARMS as REGISTERED

ARMS = {name: REGISTERED[name] for name in REGISTERED}
value = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6)


def test_linear_axis_by_hand() -> None:
    axis = linear_axis([0.07, 0.42], percent_label)
    assert [axis.low, axis.high] == pytest.approx([0.0, 0.5])
    assert [tick.label for tick in axis.ticks] == ["0%", "10%", "20%", "30%", "40%", "50%"]
    assert axis.position(0.25) == pytest.approx(50.0)


def test_signed_axis_includes_zero_and_writes_a_true_minus() -> None:
    axis = linear_axis([-13.0, 23.0], signed_label, most_ticks=5)
    assert [tick.label for tick in axis.ticks] == ["−20", "−10", "0", "+10", "+20", "+30"]


def test_a_tight_axis_ends_where_the_values_end() -> None:
    axis = linear_axis([90.0], "{:g}".format, tight=True)
    assert (axis.low, axis.high) == (0.0, 90.0)
    assert [tick.label for tick in axis.ticks] == ["0", "20", "40", "60", "80"]
    assert axis.ticks[-1].position == pytest.approx(100 * 80 / 90)


def test_ratio_axis_by_hand() -> None:
    axis = ratio_axis([0.3, 1.5])
    assert [tick.label for tick in axis.ticks] == ["0.25×", "0.5×", "1×", "2×"]
    assert axis.position(1.0) == pytest.approx(100 * 2 / 3)


@given(st.lists(value, min_size=1, max_size=8), st.integers(3, 8))
def test_a_linear_axis_holds_its_values_and_zero(values: list[float], most: int) -> None:
    axis = linear_axis(values, signed_label, most_ticks=most)
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low - slack <= min(0.0, *values)
    assert max(0.0, *values) <= axis.high + slack
    positions = [tick.position for tick in axis.ticks]
    assert positions == sorted(positions)
    assert 2 <= len(positions) <= most + 1


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_a_ratio_axis_holds_its_values_and_one(values: list[float]) -> None:
    axis = ratio_axis(values)
    assert axis.low <= min(1.0, *values) * (1 + 1e-6)
    assert axis.high >= max(1.0, *values) * (1 - 1e-6)
    assert 0 <= axis.position(1.0) <= 100


def test_a_chart_draws_the_mean_over_seeds_in_percent_of_the_plot() -> None:
    curves = {"ntp": {3: [(0.0, 0.0), (10.0, 0.4)], 4: [(0.0, 0.0), (10.0, 0.8)]}, "ra3": {}}
    chart = line_chart(curves, ARMS, title="reward", x_title="steps", threshold=0.5)
    assert chart is not None
    assert [line.arm.name for line in chart.lines] == ["ntp"]
    assert chart.y_axis.high == pytest.approx(0.8)
    assert chart.lines[0].path == "M0.00,100.00 L100.00,25.00"
    assert chart.lines[0].points[-1] == (100.0, 75.0, "60.0% (40.0, 80.0) at 10")
    assert chart.lines[0].seeds == ((3, "M0.00,100.00 L100.00,50.00"), (4, "M0.00,100.00 L100.00,0.00"))
    assert chart.threshold is not None
    assert chart.threshold.position == pytest.approx(62.5)


def test_a_chart_without_two_points_is_not_drawn() -> None:
    assert line_chart({"ntp": {3: [(0.0, 0.1)]}, "ra3": {}}, ARMS, title="", x_title="") is None
