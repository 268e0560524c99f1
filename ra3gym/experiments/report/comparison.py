"""What the results say: scores per arm, paired comparisons with the method, and the verdict in words.

The terminal's tables and the report page both read from here, so they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ra3gym.experiments.report.results import UnitResult, score_by_seed
from ra3gym.experiments.report.statistics import (
    Estimate,
    PairedDifference,
    PairedRatio,
    estimate_mean,
    paired_difference,
    paired_ratio,
)
from ra3gym.experiments.studies.arms import ARMS, Arm, arm_or_unknown

Kind = Literal["share", "area", "steps", "count", "tokens", "seconds"]

FEW_SEEDS = 5
"""Below this many seeds a bootstrap interval is much too narrow (see `ra3gym.experiments.report.statistics`)."""


@dataclass(frozen=True)
class ScoreInfo:
    """How a score is presented: a short title for a column, and its kind, which decides the format."""

    name: str
    title: str
    kind: Kind


SCORES: dict[str, ScoreInfo] = {
    info.name: info
    for info in (
        ScoreInfo("pass@1", "pass@1", "share"),
        ScoreInfo("pass@8", "pass@8", "share"),
        ScoreInfo("rlvr_area", "RLVR area", "area"),
        ScoreInfo("steps_to_threshold", "RLVR steps to threshold", "steps"),
        ScoreInfo("pass@1_after", "pass@1 after RLVR", "share"),
        ScoreInfo("decisions", "decisions per episode", "count"),
        ScoreInfo("tokens", "tokens", "tokens"),
        ScoreInfo("seconds", "time", "seconds"),
    )
}


@dataclass(frozen=True)
class ArmScore:
    """One score of one arm over its seeds. `censored` of the `estimate.n` runs never arrived and count at the cap."""

    estimate: Estimate
    censored: int = 0

    @property
    def never(self) -> bool:
        """Whether no run arrived."""
        return self.censored == self.estimate.n


@dataclass(frozen=True)
class Comparison:
    """The method against one other arm on one score: a difference, or a ratio where the score is a cost in steps."""

    method: Arm
    other: Arm
    score: ScoreInfo
    effect: PairedDifference | PairedRatio

    @property
    def relation(self) -> Literal["ahead", "level", "behind", "one seed"]:
        """Where the method stands by the 95% interval; a ratio that is only a bound counts where it bounds."""
        if self.effect.n == 1:
            return "one seed"
        if isinstance(self.effect, PairedRatio):
            ahead = self.effect.high < 1 and self.effect.bound in ("exact", "upper")
            behind = self.effect.low > 1 and self.effect.bound in ("exact", "lower")
        else:
            ahead, behind = self.effect.low > 0, self.effect.high < 0
        return "ahead" if ahead else "behind" if behind else "level"


@dataclass(frozen=True)
class Verdict:
    """The answer in words: a headline, the comparisons behind it, each with its sentence, and a caution if due."""

    headline: str
    evidence: tuple[tuple[Comparison, str], ...] = ()
    caution: str = ""

    @property
    def lines(self) -> list[str]:
        """Everything as plain sentences, the headline first."""
        sentences = [self.headline, *(sentence for _, sentence in self.evidence), self.caution]
        return [sentence for sentence in sentences if sentence]


def arms_in_order(results: Sequence[UnitResult]) -> list[str]:
    """The arms that have results: those of `ARMS` in its order, then unknown ones by name."""
    present = {result.arm for result in results}
    return [name for name in ARMS if name in present] + sorted(present.difference(ARMS))


def method_arm(results: Sequence[UnitResult]) -> str | None:
    """The arm the others are compared with: the first whose role is "method", if any has results."""
    return next((arm for arm in arms_in_order(results) if arm_or_unknown(arm).role == "method"), None)


def arm_score(results: Sequence[UnitResult], arm: str, score: str) -> ArmScore | None:
    """One score of one arm; `None` when it was not measured. A run that never arrived counts at the RLVR budget."""
    values = score_by_seed(results, arm, score).values()
    if not values:
        return None
    censored = sum(value is None for value in values)
    budget = rlvr_budget(results)
    if censored and budget is None:
        return ArmScore(Estimate(math.nan, math.nan, math.nan, len(values)), censored)
    numbers = [value if value is not None else budget for value in values]
    return ArmScore(estimate_mean([number for number in numbers if number is not None]), censored)


def rlvr_budget(results: Sequence[UnitResult]) -> float | None:
    """The number of RLVR steps a run that never reached the threshold is known to exceed.

    It is the last step of the longest reward curve; `None` when no run did any RLVR.
    """
    ends = [curve[-1][0] for result in results if (curve := result.curves.get("rlvr_reward"))]
    return max(ends, default=None)


def compare(results: Sequence[UnitResult], method: str, other: str, score: str) -> Comparison | None:
    """The paired comparison of two arms; `None` when they have no common seed with this score."""
    info = SCORES.get(score) or ScoreInfo(score, score, "count")
    a, b = score_by_seed(results, method, score), score_by_seed(results, other, score)
    effect: PairedDifference | PairedRatio
    if info.kind == "steps":
        cap = rlvr_budget(results)
        if cap is None or not a.keys() & b.keys():
            return None
        effect = paired_ratio(a, b, cap=cap)
    else:
        if not any(a[seed] is not None and b[seed] is not None for seed in a.keys() & b.keys()):
            return None
        effect = paired_difference(a, b)
    return Comparison(arm_or_unknown(method), arm_or_unknown(other), info, effect)


def comparisons(results: Sequence[UnitResult], score: str) -> list[Comparison]:
    """The method against every other arm on `score`, in the arms' order; empty without a method arm."""
    method = method_arm(results)
    if method is None:
        return []
    found = [compare(results, method, other, score) for other in arms_in_order(results) if other != method]
    return [comparison for comparison in found if comparison is not None]


def strongest_rival(results: Sequence[UnitResult], score: str) -> str | None:
    """The arm with the highest mean of `score`, other than the method, the base model and the upper bound."""
    means = {
        arm: measured.estimate.mean
        for arm in arms_in_order(results)
        if arm_or_unknown(arm).role not in ("method", "base", "upper bound")
        and (measured := arm_score(results, arm, score)) is not None
    }
    return max(means, key=lambda arm: means[arm], default=None)


def verdict(results: Sequence[UnitResult]) -> Verdict:
    """Did the method beat the strongest other arm and next-token prediction, and how sure is that?

    The primary score is pass@1 after RLVR where it was measured, else pass@1 after mid-training.
    """
    method = method_arm(results)
    if method is None:
        return Verdict("No arm of this run is the method: there is nothing to compare.")
    primary = "pass@1_after" if score_by_seed(results, method, "pass@1_after") else "pass@1"
    rival = strongest_rival(results, primary)
    main = compare(results, method, rival, primary) if rival is not None else None
    if rival is None or main is None:
        return Verdict(f"{arm_or_unknown(method).title} ran alone: there is nothing to compare.")
    found = [
        compare(results, method, other, score)
        for other in dict.fromkeys([rival, "ntp"])
        for score in dict.fromkeys([primary, "pass@1", "steps_to_threshold"])
    ]
    evidence = tuple((comparison, _sentence(results, comparison)) for comparison in found if comparison is not None)
    few = 1 < main.effect.n < FEW_SEEDS
    caution = f"With {main.effect.n} seeds these intervals are too narrow: read them as a hint." if few else ""
    return Verdict(_headline(results, main), evidence, caution)


def format_score(value: float, kind: Kind) -> str:
    """A number as the tables show it: shares in percent, tokens as 1.2M, seconds as minutes where they are many."""
    if kind == "share":
        return f"{100 * value:.1f}"
    if kind == "area":
        return f"{value:.2f}"
    if kind == "tokens":
        return format_count(value)
    if kind == "seconds":
        return format_seconds(value)
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def format_count(value: float) -> str:
    """Three significant digits with k, M or G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def format_seconds(value: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if value < 120:
        return f"{value:.0f} s"
    if value < 7_200:
        return f"{value / 60:.0f} min"
    return f"{value / 3_600:.1f} h"


def format_effect(comparison: Comparison) -> tuple[str, str]:
    """The effect and its interval, such as `("+13.2", "+8.1 to +18.0")` in points or `("0.55×", "0.43 to 0.68")`.

    The interval is empty for one seed. "≤", "≥" and "~" mark a ratio that is a bound, or neither, for lack of arrivals.
    """
    effect = comparison.effect
    if isinstance(effect, PairedRatio):
        sign = {"exact": "", "upper": "≤ ", "lower": "≥ ", "unknown": "~ "}[effect.bound]
        return f"{sign}{effect.ratio:.2f}×", _interval(effect.low, effect.high, "{:.2f}")
    scale, form = (100.0, "{:+.1f}") if comparison.score.kind == "share" else (1.0, "{:+.2f}")
    interval = _interval(scale * effect.low, scale * effect.high, form)
    return form.format(scale * effect.mean).replace("-", "−"), interval


def _interval(low: float, high: float, form: str) -> str:
    return "" if math.isnan(low) else f"{form.format(low)} to {form.format(high)}".replace("-", "−")


def _when(score: ScoreInfo) -> str:
    return "after RLVR" if score.name == "pass@1_after" else "after mid-training"


def _headline(results: Sequence[UnitResult], main: Comparison) -> str:
    method, other = main.method.title, main.other.title
    effect, interval = format_effect(main)
    points = f"{effect} points of pass@1 {_when(main.score)}"
    if main.relation == "ahead":
        return f"{method} is ahead of the strongest other arm, {other}: {points}."
    if main.relation == "behind":
        return f"{method} is behind the strongest other arm, {other}: {points}."
    if main.relation == "level":
        return f"{method} and {other} cannot be told apart: {points}, 95% interval {interval}."
    ours, theirs = _means(results, main)
    return f"One seed, so no verdict: {method} {ours}%, {other} {theirs}% pass@1 {_when(main.score)}."


def _means(results: Sequence[UnitResult], comparison: Comparison) -> tuple[str, str]:
    texts = []
    for arm in (comparison.method.name, comparison.other.name):
        measured = arm_score(results, arm, comparison.score.name)
        texts.append("–" if measured is None else format_score(measured.estimate.mean, comparison.score.kind))
    return texts[0], texts[1]


def _sentence(results: Sequence[UnitResult], comparison: Comparison) -> str:
    effect = comparison.effect
    amount, interval = format_effect(comparison)
    seeds = f"better in {effect.wins} of {effect.n} seeds"
    sure = f" (95% interval {interval}; {seeds})" if effect.n > 1 else " (one seed)"
    if isinstance(effect, PairedRatio):
        sentence = f"RLVR steps to the threshold, against {comparison.other.title}: {amount}{sure}."
        for count, arm in ((effect.censored_a, comparison.method), (effect.censored_b, comparison.other)):
            if count:
                sentence += f" {arm.title} never got there in {count} of {effect.n} runs, which count at the budget."
        return sentence
    ours, theirs = _means(results, comparison)
    return (
        f"pass@1 {_when(comparison.score)}: {ours}% against {theirs}% for {comparison.other.title}, "
        f"{amount} points{sure}."
    )
