"""`summary.json`: the outcome of a study, in numbers that other programs can read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ra3gym.experiments.report.comparison import SCORES, Comparison, StudyResults
from ra3gym.experiments.report.statistics import PairedRatio, estimate_mean
from ra3gym.experiments.report.verdict import Verdict


def summarize(results: StudyResults, arms: Sequence[str], threshold: float, answer: Verdict) -> dict[str, Any]:
    """Return the scores of each arm (mean, 95% interval, values by seed) and the paired comparisons.

    Args:
        results: the results of all arms and seeds.
        arms: the study's arms, in its order.
        threshold: the mean reward that steps were counted to.
        answer: the verdict on these results.
    """
    scores = {}
    for arm in arms:
        names = sorted({name for unit in results.units if unit.arm == arm for name in unit.scores})
        scores[arm] = {name: _score(results.by_seed(arm, name)) for name in names}
    effects = [_effect(comparison) for name in SCORES for comparison in results.comparisons(name)]
    return {"threshold": threshold, "verdict": answer.lines, "arms": scores, "comparisons": effects}


def _score(by_seed: dict[int, float | None]) -> dict[str, Any]:
    known = [value for value in by_seed.values() if value is not None]
    summary: dict[str, Any] = {"by_seed": {str(seed): value for seed, value in by_seed.items()}}
    if known and len(known) == len(by_seed):
        estimate = estimate_mean(known)
        summary |= {"mean": estimate.mean, "interval": _interval(estimate.low, estimate.high)}
    return summary


def _effect(comparison: Comparison) -> dict[str, Any]:
    effect = comparison.effect
    return {
        "method": comparison.method.name,
        "other": comparison.other.name,
        "score": comparison.score.name,
        "kind": "ratio" if isinstance(effect, PairedRatio) else "difference",
        "value": effect.ratio if isinstance(effect, PairedRatio) else effect.mean,
        "interval": _interval(effect.low, effect.high),
        "seeds": effect.n,
        "wins": effect.wins,
        "relation": comparison.relation,
    }


def _interval(low: float, high: float) -> list[float] | None:
    return None if math.isnan(low) else [low, high]
