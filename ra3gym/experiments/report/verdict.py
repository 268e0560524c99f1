"""The verdict of a study in words: did the method beat the strongest other arm, and how sure is that?"""

from __future__ import annotations

from dataclasses import dataclass

from ra3gym.experiments.report.comparison import Comparison, ScoreInfo, StudyResults
from ra3gym.experiments.report.formats import format_arm_score, format_effect
from ra3gym.experiments.report.statistics import FEWEST_FOR_INTERVAL, PairedRatio

FEW_SEEDS = 5
"""Below this many seeds an interval rests on little (see `ra3gym.experiments.report.statistics`)."""


@dataclass(frozen=True)
class Verdict:
    """The answer in words.

    Attributes:
        headline: one sentence.
        evidence: the comparisons that support it, each with its sentence.
        caution: a warning about few seeds, or empty.
    """

    headline: str
    evidence: tuple[tuple[Comparison, str], ...] = ()
    caution: str = ""

    @property
    def lines(self) -> list[str]:
        """All sentences, the headline first."""
        sentences = [self.headline, *(sentence for _, sentence in self.evidence), self.caution]
        return [sentence for sentence in sentences if sentence]


def verdict(results: StudyResults) -> Verdict:
    """Compare the method with the strongest other arm and with next-token prediction.

    The primary score is pass@1 after RLVR if it was measured for the method and for another arm, else pass@1 after
    mid-training: other arms without RLVR are compared before it.
    """
    method = results.method
    if method is None:
        return Verdict("No arm of this run is the method: there is nothing to compare.")
    for primary in ("pass@1_after", "pass@1"):
        rival = results.strongest_rival(primary)
        main = None if rival is None else results.compare(method.name, rival, primary)
        if rival is not None and main is not None:
            break
    else:
        return Verdict(
            f"{method.title} has no other arm to be compared with: no control or baseline has a score on its seeds."
        )
    found = [
        results.compare(method.name, other, score)
        for other in dict.fromkeys([rival, "ntp"])
        for score in dict.fromkeys([primary, "pass@1", "steps_to_threshold"])
    ]
    evidence = tuple((comparison, _sentence(results, comparison)) for comparison in found if comparison is not None)
    caution = ""
    if FEWEST_FOR_INTERVAL <= main.effect.n < FEW_SEEDS:
        caution = (
            f"With {main.effect.n} seeds the intervals rest on the assumption of normally distributed values: read "
            "them as a hint."
        )
    return Verdict(_headline(results, main), evidence, caution)


def _headline(results: StudyResults, main: Comparison) -> str:
    method, other = main.method.title, main.other.title
    effect, interval = format_effect(main)
    points = f"{effect} points of pass@1 {_stage(main.score)}"
    if main.relation == "better":
        return f"{method} is better than the strongest other arm, {other}: {points}."
    if main.relation == "worse":
        return f"{method} is worse than the strongest other arm, {other}: {points}."
    if main.relation == "level":
        return f"No difference is shown between {method} and {other}: {points}, 95% interval {interval}."
    ours, theirs = _means(results, main)
    seeds = "One seed" if main.effect.n == 1 else "Two seeds"
    return f"{seeds}, so no verdict: {method} {ours}%, {other} {theirs}% pass@1 {_stage(main.score)}."


def _sentence(results: StudyResults, comparison: Comparison) -> str:
    effect = comparison.effect
    amount, interval = format_effect(comparison)
    seeds = f"better in {effect.wins} of {effect.n} seeds"
    certainty = f" (95% interval {interval}; {seeds})"
    if effect.n < FEWEST_FOR_INTERVAL:
        certainty = " (one seed)" if effect.n == 1 else f" (the two seeds: {interval})"
    if isinstance(effect, PairedRatio):
        sentence = f"RLVR steps to the threshold, against {comparison.other.title}: {amount}{certainty}."
        for count, arm in ((effect.censored_a, comparison.method), (effect.censored_b, comparison.other)):
            if count:
                sentence += f" {arm.title} never reached it in {count} of {effect.n} runs, which count as the budget."
        return sentence
    ours, theirs = _means(results, comparison)
    return (
        f"pass@1 {_stage(comparison.score)}: {ours}% against {theirs}% for {comparison.other.title}, "
        f"{amount} points{certainty}."
    )


def _stage(score: ScoreInfo) -> str:
    return "after RLVR" if score.name == "pass@1_after" else "after mid-training"


def _means(results: StudyResults, comparison: Comparison) -> tuple[str, str]:
    name, kind = comparison.score.name, comparison.score.kind
    ours, theirs = (
        format_arm_score(results.score(arm.name, name), kind)[0] for arm in (comparison.method, comparison.other)
    )
    return ours, theirs
