"""Numbers as tables and pages show them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ra3gym.experiments.report.comparison import ArmScore, Comparison, Kind
from ra3gym.experiments.report.statistics import PairedDifference, PairedRatio, modes

_LEAST_GAP = 0.05
"""Shares closer than this are one group, however narrow the groups are."""
_WITH_INTERVAL: frozenset[Kind] = frozenset({"share", "area", "steps", "count"})


def format_score(value: float, kind: Kind) -> str:
    """Return a score as text: shares in percent, tokens as "1.2M", seconds as "10 min"."""
    if kind == "share":
        return f"{100 * value:.1f}"
    if kind == "area":
        return f"{value:.2f}"
    if kind == "tokens":
        return format_count(value)
    if kind == "seconds":
        return format_seconds(value)
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def format_arm_score(score: ArmScore | None, kind: Kind) -> tuple[str, str]:
    """Return an arm's mean and its interval, such as `("23.8", "20.1–27.3")`.

    The mean is "–" when nothing was measured, "never" when no run reached the threshold, and starts with "≥" when some
    runs did not. In place of the interval are both values for two seeds, and the groups where the values form two
    (`modes`), such as "8× 0.4, 2× 29.0". It is empty for one seed, and for tokens and seconds.
    """
    if score is None:
        return "–", ""
    if score.never:
        return "never", ""
    estimate = score.estimate
    mean = ("≥ " if score.censored else "") + format_score(estimate.mean, kind)
    if estimate.n == 1 or kind not in _WITH_INTERVAL:
        return mean, ""
    groups = modes(estimate.values, least_gap=_LEAST_GAP)
    if kind == "share" and len(groups) > 1:
        return mean, ", ".join(f"{len(group)}× {format_score(_mean(group), kind)}" for group in groups)
    if math.isnan(estimate.low):
        return mean, ", ".join(format_score(value, kind) for value in estimate.values)
    return mean, f"{format_score(estimate.low, kind)}–{format_score(estimate.high, kind)}"


def format_effect(comparison: Comparison) -> tuple[str, str]:
    """Return an effect and its interval: `("+13.2", "+8.1 to +18.0")` in points, or `("0.55×", "0.43 to 0.68")`.

    In place of the interval are both values for two seeds; it is empty for one. A ratio starts with "≤" or "≥" when it
    is a bound because some runs never reached the threshold, and with "~" when runs of both arms did not.
    """
    effect = comparison.effect
    if isinstance(effect, PairedRatio):
        sign = {"exact": "", "upper": "≤ ", "lower": "≥ ", "unknown": "~ "}[effect.bound]
        return f"{sign}{effect.ratio:.2f}×", _interval(effect, 1.0, "{:.2f}")
    scale, form = (100.0, "{:+.1f}") if comparison.score.kind == "share" else (1.0, "{:+.2f}")
    return form.format(scale * effect.mean).replace("-", "−"), _interval(effect, scale, form)


def format_count(value: float) -> str:
    """Return three significant digits with k, M or G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def format_seconds(value: float) -> str:
    """Return seconds, minutes or hours, depending on the size."""
    if value < 120:
        return f"{value:.0f} s"
    if value < 7_200:
        return f"{value / 60:.0f} min"
    return f"{value / 3_600:.1f} h"


def _interval(effect: PairedDifference | PairedRatio, scale: float, form: str) -> str:
    if effect.n == 1:
        return ""
    if math.isnan(effect.low):
        text = ", ".join(form.format(scale * value) for value in effect.values)
    else:
        text = f"{form.format(scale * effect.low)} to {form.format(scale * effect.high)}"
    return text.replace("-", "−")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
