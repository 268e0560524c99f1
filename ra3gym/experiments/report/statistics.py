"""Statistics over seeds: intervals of means, paired comparisons, areas and crossing points of learning curves.

Pure functions of plain numbers. Comparisons are paired by seed, because the arms of one seed share tasks, traces,
initial weights and sampling noise.

Below 20 values the interval of a mean is Student's t interval. A percentile bootstrap is too narrow there: for normal
data, a nominal 95% interval covers the mean about 90% of the time for n = 10, 83% for n = 5, and 75% for n = 3. The t
interval covers it 95% of the time for normal data. From 20 values on it is the bootstrap, which does not assume that.
Fewer than 3 values have no interval: show the values. Where a mean describes no value because they form two groups
(`modes`), show the groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Point = tuple[float, float]
BOOTSTRAP_FROM = 20
"""From this many values on, the interval of a mean is a bootstrap; below, it is Student's t."""
FEWEST_FOR_INTERVAL = 3
"""Below this many values there is no interval."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` values with its interval; `low` and `high` are NaN if n < 3."""

    mean: float
    low: float
    high: float
    n: int
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class PairedDifference:
    """The mean of `a - b` over `n` common seeds with its interval; `wins` is the number of seeds with `a > b`.

    `low` and `high` are NaN if n < 3; `values` are the differences, by ascending seed.
    """

    mean: float
    low: float
    high: float
    n: int
    wins: int
    values: tuple[float, ...] = ()

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero; False without an interval (n < 3)."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class PairedRatio:
    """The geometric mean of `a / b` over `n` common seeds with its interval, for costs such as steps.

    `low` and `high` are NaN if n < 3; `values` are the ratios, by ascending seed. `wins` is the number of seeds at
    which `a` was cheaper. `censored_a` and `censored_b` are the numbers of runs that never arrived, and count as the
    cap.
    """

    ratio: float
    low: float
    high: float
    n: int
    wins: int
    censored_a: int
    censored_b: int
    values: tuple[float, ...] = ()

    @property
    def bound(self) -> Literal["exact", "upper", "lower", "unknown"]:
        """How the ratio relates to the one without censoring.

        "upper": only `b` was censored, so the true ratio is at most this one. "lower": only `a` was, so it is at least
        this one. "unknown": both were.
        """
        if self.censored_a and self.censored_b:
            return "unknown"
        if self.censored_b:
            return "upper"
        return "lower" if self.censored_a else "exact"


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values`, deterministic in `seed`.

    One value gives (nan, nan), equal values an interval of width 0. `ValueError` when `values` is empty or holds a
    number that is not finite.
    """
    sample = _finite_array(values)
    if sample.size == 1:
        return math.nan, math.nan
    if np.all(sample == sample[0]):
        return float(sample[0]), float(sample[0])
    from scipy.stats import bootstrap  # not at the top: the import takes most of a second

    interval = bootstrap(
        (sample,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval of the mean; (nan, nan) for one value, errors as in `bootstrap_interval`."""
    sample = _finite_array(values)
    if sample.size == 1:
        return math.nan, math.nan
    mean = float(sample.mean())
    half = _t_quantile(sample.size, confidence) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return mean - half, mean + half


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a mean: none (NaN) below 3 values, Student's t below 20, else the percentile bootstrap.

    Errors as in `bootstrap_interval`.
    """
    if 0 < len(values) < FEWEST_FOR_INTERVAL:
        _finite_array(values)
        return math.nan, math.nan
    if len(values) < BOOTSTRAP_FROM:
        return t_interval(values, confidence)
    return bootstrap_interval(values, confidence)


def interval_kind(n: int) -> str:
    """Return the name of the interval that `mean_interval` gives for `n` values."""
    return "t" if n < BOOTSTRAP_FROM else "bootstrap"


def estimate_mean(
    values: Sequence[float], confidence: float = 0.95, *, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """Return the mean and its interval (`mean_interval`), cut at `bounds`, which no value can exceed.

    A t interval knows no bounds: of shares near 0 it would begin below 0.
    """
    low, high = np.clip(mean_interval(values, confidence), *bounds).tolist()
    return Estimate(float(np.mean(values)), low, high, len(values), tuple(values))


def modes(values: Sequence[float], least_gap: float = 0.0) -> list[list[float]]:
    """Return the values in ascending order, in two groups where they are clearly bimodal, else in one.

    They are split at the largest gap. There are two groups if each has at least two values, and the gap is more than
    twice the range of either and at least `least_gap`.
    """
    ordered = sorted(values)
    if len(ordered) < 5:
        return [ordered]
    cut = int(np.argmax(np.diff(ordered))) + 1
    low, high = ordered[:cut], ordered[cut:]
    gap, widest = high[0] - low[-1], max(low[-1] - low[0], high[-1] - high[0])
    return [low, high] if min(len(low), len(high)) >= 2 and gap > max(2 * widest, least_gap) else [ordered]


def paired_difference(
    a_by_seed: Mapping[int, float | None], b_by_seed: Mapping[int, float | None], confidence: float = 0.95
) -> PairedDifference:
    """Return `a - b` over the seeds at which both have a value; `ValueError` when there is none."""
    pairs = [(a, b) for a, b in _common(a_by_seed, b_by_seed) if a is not None and b is not None]
    if not pairs:
        raise ValueError("no seed at which both arms have a value")
    differences = [a - b for a, b in pairs]
    low, high = mean_interval(differences, confidence)
    wins = sum(difference > 0 for difference in differences)
    return PairedDifference(float(np.mean(differences)), low, high, len(pairs), wins, tuple(differences))


def paired_ratio(
    a_by_seed: Mapping[int, float | None],
    b_by_seed: Mapping[int, float | None],
    *,
    cap: float,
    confidence: float = 0.95,
) -> PairedRatio:
    """Return the geometric mean of `a / b` over common seeds; its interval is that of the mean log ratio.

    `None` is a run that had not arrived after `cap` steps. It counts as `cap`, which makes the ratio a bound (see
    `PairedRatio.bound`). Costs below 1 step count as 1, so that a run that starts beyond the threshold has a ratio.
    `ValueError` when there is no common seed, or a cost is above `cap`.
    """
    pairs = _common(a_by_seed, b_by_seed)
    if not pairs:
        raise ValueError("no seed at which both arms have a value")
    costs = np.array([[cap if cost is None else cost for cost in pair] for pair in pairs], dtype=float)
    if not np.all(costs <= cap):
        raise ValueError(f"a cost of {costs.max():g} is above cap={cap:g}; give the budget that both arms had")
    costs = np.maximum(costs, 1.0)
    log_ratios = np.log(costs[:, 0] / costs[:, 1])
    low, high = mean_interval(log_ratios.tolist(), confidence)
    return PairedRatio(
        ratio=math.exp(float(log_ratios.mean())),
        low=math.exp(low),
        high=math.exp(high),
        n=len(pairs),
        wins=int((log_ratios < 0).sum()),
        censored_a=sum(a is None for a, _ in pairs),
        censored_b=sum(b is None for _, b in pairs),
        values=tuple(np.exp(log_ratios).tolist()),
    )


def area_under_curve(curve: Sequence[Point]) -> float:
    """Return the curve's mean height: its trapezoid area divided by its width, or the value of its only point."""
    x, y = _columns(curve)
    if x.size == 1:
        return float(y[0])
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def steps_to_threshold(
    curve: Sequence[Point], threshold: float, window: int = 1, *, interpolate: bool = False
) -> float | None:
    """Return the first x at which the smoothed curve reaches `threshold`; `None` when it never does (censored).

    The curve is smoothed by the trailing mean over `window` points. The first `window - 1` points have no full window
    and do not count, so one lucky batch is not enough. With `interpolate` the crossing is interpolated linearly between
    two points of the smoothed curve, for curves measured at few x (tokens to a pass@1, for example).
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    x, y = _columns(curve)
    if x.size < window:
        return None
    smooth = np.convolve(y, np.full(window, 1.0 / window), mode="valid")
    # The mean of equal values may be smaller than them by a rounding error.
    reached = np.flatnonzero(smooth >= threshold - 1e-12)
    if reached.size == 0:
        return None
    first = int(reached[0])
    ends = x[window - 1 :]
    if not interpolate or first == 0:
        return float(ends[first])
    low, high = smooth[first - 1], smooth[first]
    share = min(1.0, (threshold - low) / (high - low))
    return float(ends[first - 1] + share * (ends[first] - ends[first - 1]))


def curve_band(
    curves: Sequence[Sequence[Point]],
    confidence: float = 0.95,
    seed: int = 0,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> list[tuple[float, float, float, float]]:
    """Return `(x, mean, low, high)` at each x over several seeds' curves; low = high = mean for fewer than 3 curves.

    The x are those of the first curve that are in every curve's range; the other curves are interpolated linearly. The
    band is pointwise: it is no band for the curve as a whole. Its ends are cut at `bounds`.
    """
    columns = [_columns(curve) for curve in curves]
    if not columns:
        raise ValueError("no curve")
    start = max(x[0] for x, _ in columns)
    end = min(x[-1] for x, _ in columns)
    grid = columns[0][0]
    grid = grid[(grid >= start) & (grid <= end)]
    heights = np.array([np.interp(grid, x, y) for x, y in columns])
    mean = heights.mean(axis=0)
    if len(columns) < FEWEST_FOR_INTERVAL:
        low = high = mean
    elif len(columns) < BOOTSTRAP_FROM:
        half = _t_quantile(len(columns), confidence) * heights.std(axis=0, ddof=1) / math.sqrt(len(columns))
        low, high = np.clip(mean - half, *bounds), np.clip(mean + half, *bounds)
    else:
        picks = np.random.default_rng(seed).integers(len(columns), size=(2_000, len(columns)))
        tail = (1.0 - confidence) / 2.0
        low, high = np.quantile(heights[picks].mean(axis=1), [tail, 1.0 - tail], axis=0)
    rows = zip(grid.tolist(), mean.tolist(), low.tolist(), high.tolist(), strict=True)
    return [(x, middle, lower, upper) for x, middle, lower, upper in rows]


def _t_quantile(n: int, confidence: float) -> float:
    """Return how many standard errors the t interval of a mean over `n` values reaches to each side."""
    return float(stdtrit(n - 1, (1.0 + confidence) / 2.0))


def _common(
    a_by_seed: Mapping[int, float | None], b_by_seed: Mapping[int, float | None]
) -> list[tuple[float | None, float | None]]:
    return [(a_by_seed[seed], b_by_seed[seed]) for seed in sorted(a_by_seed.keys() & b_by_seed.keys())]


def _finite_array(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("no values")
    if not np.all(np.isfinite(array)):
        raise ValueError("values must be finite; leave missing ones out")
    return array


def _columns(curve: Sequence[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    array = _finite_array([value for point in curve for value in point]).reshape(-1, 2)
    x, y = array[:, 0], array[:, 1]
    if np.any(np.diff(x) <= 0):
        raise ValueError("a curve's x must increase strictly")
    return x, y
