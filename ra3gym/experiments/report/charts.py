"""Geometry of the report's charts: axes, ticks and line paths, in percent of the plot.

The page draws them with HTML and SVG: text can be selected, colors follow the reader's theme, and a chart is as wide as
the screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ra3gym.experiments.report.formats import format_count
from ra3gym.experiments.report.results import ArmInfo
from ra3gym.experiments.report.statistics import Point, curve_band


@dataclass(frozen=True)
class Tick:
    """A labeled position on an axis, in percent from its low end."""

    position: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from `low` to `high`."""

    low: float
    high: float
    ticks: tuple[Tick, ...] = ()
    log: bool = False

    def position(self, value: float) -> float:
        """Return the position of a value in percent from the low end, clipped to the axis."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return min(100.0, max(0.0, 100.0 * (value - low) / (high - low)))


@dataclass(frozen=True)
class Line:
    """One arm's curves, as SVG paths in a 100 by 100 box, y downwards.

    Attributes:
        arm: how the arm is shown.
        path: the mean over seeds.
        band: its pointwise interval, of width 0 below three seeds.
        seeds: the curve of each seed; empty for one seed, whose curve is the mean.
        points: x in percent, y in percent from the bottom, and the text of the tooltip, for each point of the mean.
    """

    arm: ArmInfo
    path: str
    band: str
    seeds: tuple[tuple[int, str], ...]
    points: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class LineChart:
    """A chart of several arms' curves; `threshold` is a level to mark, in percent from the bottom."""

    title: str
    x_title: str
    x_axis: Axis
    y_axis: Axis
    lines: tuple[Line, ...]
    threshold: Tick | None = None


def linear_axis(
    values: Sequence[float], label: Callable[[float], str], *, most_ticks: int = 6, tight: bool = False
) -> Axis:
    """Return an axis over `values` and zero with round ticks; it ends at ticks, or at the values' ends if `tight`."""
    low, high = min(0.0, *values), max(0.0, *values)
    if high == low:
        high = low + 1.0
    step = _round_step((high - low) / (most_ticks - 1))
    numbers = [i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]
    if tight:
        numbers = [number for number in numbers if low <= number <= high * (1 + 1e-9)]
    else:
        low, high = numbers[0], numbers[-1]
    return _with_ticks(Axis(low, high), numbers, label)


def ratio_axis(values: Sequence[float]) -> Axis:
    """Return a logarithmic axis over `values` and 1, which ends at powers of two."""
    first = math.floor(math.log2(min(1.0, *values)) + 1e-9)
    last = max(math.ceil(math.log2(max(1.0, *values)) - 1e-9), first + 1)
    every = 1 if last - first <= 4 else 2
    numbers = [2.0**power for power in range(first, last + 1) if power % every == 0]
    return _with_ticks(Axis(2.0**first, 2.0**last, log=True), numbers, lambda ratio: f"{ratio:g}×")


def percent_label(share: float) -> str:
    """Return 0.125 as "12.5%"."""
    return f"{100 * share:.3g}%"


def signed_label(value: float) -> str:
    """Return a difference with its sign, and zero without one."""
    return "0" if abs(value) < 1e-12 else f"{value:+.3g}".replace("-", "−")


def line_chart(
    curves: Mapping[str, Mapping[int, Sequence[Point]]],
    arms: Mapping[str, ArmInfo],
    *,
    title: str,
    x_title: str,
    threshold: float | None = None,
) -> LineChart | None:
    """Return the arms' mean curves with bands and single seeds; `None` when no arm has two points.

    Args:
        curves: each arm's curves by seed; heights are shares.
        arms: how the arms are shown, by name.
        title: the title of the chart.
        x_title: the title of the x axis.
        threshold: a height to mark, as a share.
    """
    bands = {arm: curve_band(list(by_seed.values()), bounds=(0.0, 1.0)) for arm, by_seed in curves.items() if by_seed}
    bands = {arm: band for arm, band in bands.items() if len(band) > 1}
    if not bands:
        return None
    rows = [row for band in bands.values() for row in band]
    x_axis = linear_axis([row[0] for row in rows], format_count, tight=True)
    heights = [row[3] for row in rows] + [y for arm in bands for curve in curves[arm].values() for _, y in curve]
    heights += [] if threshold is None else [threshold]
    y_axis = linear_axis(heights, percent_label)
    lines = tuple(_line(arms[arm], band, curves[arm], x_axis, y_axis) for arm, band in bands.items())
    mark = None if threshold is None else Tick(y_axis.position(threshold), f"threshold {percent_label(threshold)}")
    return LineChart(title, x_title, x_axis, y_axis, lines, mark)


def _line(
    arm: ArmInfo,
    band: Sequence[tuple[float, float, float, float]],
    by_seed: Mapping[int, Sequence[Point]],
    x_axis: Axis,
    y_axis: Axis,
) -> Line:
    def path(points: Sequence[Point]) -> str:
        places = [f"{x_axis.position(x):.2f},{100 - y_axis.position(y):.2f}" for x, y in points]
        return "M" + " L".join(places)

    mean = [(x, y) for x, y, _, _ in band]
    outline = [(x, high) for x, _, _, high in band] + [(x, low) for x, _, low, _ in reversed(band)]
    many = len(by_seed) > 1

    def text(x: float, y: float) -> str:
        heights = [float(np.interp(x, *np.transpose(curve))) for curve in by_seed.values()]
        single = f" ({', '.join(f'{100 * height:.1f}' for height in heights)})" if many else ""
        return f"{100 * y:.1f}%{single} at {format_count(x)}"

    points = tuple((round(x_axis.position(x), 2), round(y_axis.position(y), 2), text(x, y)) for x, y in mean)
    start, end = mean[0][0], mean[-1][0]
    seeds = tuple(
        (seed, path([point for point in curve if start <= point[0] <= end])) for seed, curve in by_seed.items() if many
    )
    return Line(arm, path(mean), path(outline) + " Z", seeds, points)


def _with_ticks(axis: Axis, numbers: Sequence[float], label: Callable[[float], str]) -> Axis:
    ticks = tuple(Tick(axis.position(number), label(number)) for number in numbers)
    return replace(axis, ticks=ticks)


def _round_step(step: float) -> float:
    size = 10.0 ** math.floor(math.log10(step))
    return next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= step * (1 - 1e-9))
