"""`summary.json`: what a study came to, in numbers that other programs can read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ra3gym.experiments.report.comparison import SCORES, Verdict, comparisons
from ra3gym.experiments.report.results import UnitResult
from ra3gym.experiments.report.statistics import PairedRatio, estimate_mean


def summarise(
    results: Sequence[UnitResult], arm_names: Sequence[str], threshold: float, answer: Verdict
) -> dict[str, Any]:
    """Return the scores of each arm (mean, 95% bootstrap interval, values by seed) and the paired comparisons.

    Args:
        results: of all arms and seeds.
        arm_names: the study's arms, in its order.
        threshold: the mean reward that steps were counted to.
        answer: the verdict on these results.
    """
    arms: dict[str, Any] = {}
    for arm in arm_names:
        of_arm = [result for result in results if result.arm == arm]
        names = sorted({name for result in of_arm for name in result.scores})
        arms[arm] = {name: _score({r.seed: r.scores[name] for r in of_arm if name in r.scores}) for name in names}
    effects = [
        {
            "method": comparison.method.name,
            "other": comparison.other.name,
            "score": comparison.score.name,
            "kind": "ratio" if isinstance(comparison.effect, PairedRatio) else "difference",
            "value": comparison.effect.ratio if isinstance(comparison.effect, PairedRatio) else comparison.effect.mean,
            "interval": _interval(comparison.effect.low, comparison.effect.high),
            "seeds": comparison.effect.n,
            "wins": comparison.effect.wins,
            "relation": comparison.relation,
        }
        for name in SCORES
        for comparison in comparisons(results, name)
    ]
    return {
        "threshold": threshold,
        "verdict": answer.lines,
        "arms": arms,
        "comparisons": effects,
    }


def _score(by_seed: dict[int, float | None]) -> dict[str, Any]:
    known = [value for value in by_seed.values() if value is not None]
    summary: dict[str, Any] = {"by_seed": {str(seed): value for seed, value in by_seed.items()}}
    if known and len(known) == len(by_seed):
        estimate = estimate_mean(known)
        summary |= {"mean": estimate.mean, "interval": _interval(estimate.low, estimate.high)}
    return summary


def _interval(low: float, high: float) -> list[float] | None:
    return None if math.isnan(low) else [low, high]
