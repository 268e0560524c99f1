"""The results of a study, compared: scores of each arm, and paired comparisons of the method with every other arm.

The terminal's tables, the report page, `summary.json` and the verdict all read one `StudyResults`, so they agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ra3gym.experiments.report.results import ArmInfo, UnitResult
from ra3gym.experiments.report.statistics import (
    FEWEST_FOR_INTERVAL,
    Estimate,
    PairedDifference,
    PairedRatio,
    estimate_mean,
    paired_difference,
    paired_ratio,
)

Kind = Literal["share", "area", "steps", "count", "tokens", "seconds"]


@dataclass(frozen=True)
class ScoreInfo:
    """How a score is shown: its name in results, a short title, and its kind, which decides the format."""

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
        ScoreInfo("decisions", "latents (else tokens) per program", "count"),
        ScoreInfo("tokens", "tokens", "tokens"),
        ScoreInfo("seconds", "time", "seconds"),
    )
}


@dataclass(frozen=True)
class ArmScore:
    """One score of one arm over its seeds.

    Attributes:
        estimate: mean and interval over the seeds.
        censored: how many of the `estimate.n` runs never reached the threshold; they count as the budget.
    """

    estimate: Estimate
    censored: int = 0

    @property
    def never(self) -> bool:
        """Whether no run reached the threshold."""
        return self.censored == self.estimate.n


@dataclass(frozen=True)
class Comparison:
    """The method against one other arm on one score: a ratio if the score is a number of steps, else a difference."""

    method: ArmInfo
    other: ArmInfo
    score: ScoreInfo
    effect: PairedDifference | PairedRatio

    @property
    def relation(self) -> Literal["better", "level", "worse", "few seeds"]:
        """Compare the method with the other arm by the 95% interval.

        A ratio of which only a bound is known counts on the side where the bound holds. One or two seeds have no
        interval: "few seeds".
        """
        if self.effect.n < FEWEST_FOR_INTERVAL:
            return "few seeds"
        if isinstance(self.effect, PairedRatio):
            better = self.effect.high < 1 and self.effect.bound in ("exact", "upper")
            worse = self.effect.low > 1 and self.effect.bound in ("exact", "lower")
        else:
            better, worse = self.effect.low > 0, self.effect.high < 0
        if better:
            return "better"
        return "worse" if worse else "level"


class StudyResults:
    """All results of a study, with its arms.

    Args:
        units: the result of each seed of each arm.
        arms: how arms are shown, in the order of tables and charts. An arm that is missing here comes last, with its
            name as title and in a neutral color.

    Attributes:
        units: as given.
        arms: the arms that have results, in order.
    """

    def __init__(self, units: Sequence[UnitResult], arms: Iterable[ArmInfo] = ()) -> None:
        self.units = units
        present = {unit.arm for unit in units}
        known = [arm for arm in arms if arm.name in present]
        unknown = sorted(present - {arm.name for arm in known})
        self.arms = [*known, *(ArmInfo(name, name, "other", "#5f6b7a", "An arm of a plug-in.") for name in unknown)]
        self._arms = {arm.name: arm for arm in self.arms}

    @property
    def seeds(self) -> list[int]:
        """The seeds that have results, ascending."""
        return sorted({unit.seed for unit in self.units})

    @property
    def method(self) -> ArmInfo | None:
        """The arm that the others are compared with: the first whose role is "method", if any has results."""
        return next((arm for arm in self.arms if arm.role == "method"), None)

    @property
    def measured(self) -> list[ScoreInfo]:
        """The scores of `SCORES` that at least one result has."""
        return [info for name, info in SCORES.items() if any(name in unit.scores for unit in self.units)]

    @cached_property
    def rlvr_budget(self) -> float | None:
        """The last step of the longest reward curve: a run that never reached the threshold took more steps.

        `None` when no run did any RLVR.
        """
        ends = [curve[-1][0] for unit in self.units if (curve := unit.curves.get("rlvr_reward"))]
        return max(ends, default=None)

    def by_seed(self, arm: str, score: str) -> dict[int, float | None]:
        """Return `{seed: value}` of one score of one arm; seeds at which it was not measured are left out."""
        return {unit.seed: unit.scores[score] for unit in self.units if unit.arm == arm and score in unit.scores}

    def score(self, arm: str, score: str) -> ArmScore | None:
        """Return one score of one arm, `None` if it was not measured."""
        values = self.by_seed(arm, score).values()
        if not values:
            return None
        censored = sum(value is None for value in values)
        if censored and self.rlvr_budget is None:
            return ArmScore(Estimate(math.nan, math.nan, math.nan, len(values)), censored)
        numbers = [self.rlvr_budget if value is None else value for value in values]
        known = [number for number in numbers if number is not None]
        info = SCORES.get(score)
        highest = 1.0 if info is not None and info.kind in ("share", "area") else math.inf
        lowest = -math.inf if info is None else 0.0
        return ArmScore(estimate_mean(known, bounds=(lowest, highest)), censored)

    def compare(self, method: str, other: str, score: str) -> Comparison | None:
        """Return the paired comparison of two arms, `None` if they have no common seed with this score."""
        info = SCORES.get(score) or ScoreInfo(score, score, "count")
        a, b = self.by_seed(method, score), self.by_seed(other, score)
        common = a.keys() & b.keys()
        effect: PairedDifference | PairedRatio
        if info.kind == "steps":
            if self.rlvr_budget is None or not common:
                return None
            effect = paired_ratio(a, b, cap=self.rlvr_budget)
        else:
            if not any(a[seed] is not None and b[seed] is not None for seed in common):
                return None
            effect = paired_difference(a, b)
        return Comparison(self._arms[method], self._arms[other], info, effect)

    def comparisons(self, score: str) -> list[Comparison]:
        """Return the method against every other arm on one score, in the arms' order; empty without a method."""
        method = self.method
        if method is None:
            return []
        found = [self.compare(method.name, other.name, score) for other in self.arms if other != method]
        return [comparison for comparison in found if comparison is not None]

    def strongest_rival(self, score: str) -> str | None:
        """Return the arm with the highest mean, other than methods, the base model and the upper bound."""
        means = {
            arm.name: measured.estimate.mean
            for arm in self.arms
            if arm.role not in ("method", "base", "upper bound")
            and (measured := self.score(arm.name, score)) is not None
        }
        return max(means, key=lambda name: means[name], default=None)
