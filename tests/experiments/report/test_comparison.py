"""Comparisons and the verdict in words: right when the method wins, ties, loses, or ran once."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import pytest
from rich.console import Console

from ra3gym.experiments.report.comparison import StudyResults
from ra3gym.experiments.report.formats import (
    format_arm_score,
    format_count,
    format_effect,
    format_score,
    format_seconds,
)
from ra3gym.experiments.report.results import UnitResult, load_results
from ra3gym.experiments.report.statistics import PairedRatio
from ra3gym.experiments.report.tables import final_table, paired_table
from ra3gym.experiments.report.verdict import verdict
from ra3gym.experiments.studies.arms import ARMS
from ra3gym.runs.folder import RunFolder


def study(scores: Mapping[str, Sequence[float | None]], score: str = "pass@1", budget: int = 100) -> StudyResults:
    """One result per arm and seed; every run did `budget` steps of RLVR."""
    curves = {"rlvr_reward": [(0.0, 0.0), (float(budget), 0.5)]}
    return among_known_arms(
        [
            UnitResult(seed, arm, {score: value}, curves)
            for arm, values in scores.items()
            for seed, value in enumerate(values)
        ]
    )


def among_known_arms(units: Sequence[UnitResult]) -> StudyResults:
    return StudyResults(units, [ARMS[name] for name in ARMS])


def test_arms_come_in_the_registrys_order_with_the_users_own_last() -> None:
    results = study({"mine": [0.1], "ra3": [0.2], "ntp": [0.1]})
    assert [arm.name for arm in results.arms] == ["ntp", "ra3", "mine"]


def test_the_strongest_rival_is_neither_the_method_nor_the_oracle_nor_the_base() -> None:
    results = study({"base": [0.9], "ntp": [0.1], "pseudo": [0.3], "ra3": [0.5], "oracle": [0.8]})
    assert results.strongest_rival("pass@1") == "pseudo"
    assert study({"ra3": [0.5]}).strongest_rival("pass@1") is None


@pytest.mark.parametrize(
    ("ours", "relation", "headline"),
    [
        (
            [0.5, 0.6, 0.55, 0.7, 0.65],
            "better",
            "RA3 is better than the strongest other arm, Next-token prediction: +30.0",
        ),
        (
            [0.1, 0.2, 0.15, 0.3, 0.25],
            "worse",
            "RA3 is worse than the strongest other arm, Next-token prediction: −10.0",
        ),
        ([0.2, 0.4, 0.15, 0.5, 0.25], "level", "No difference is shown between RA3 and Next-token prediction: +0.0"),
    ],
)
def test_the_headline_follows_the_interval(ours: list[float], relation: str, headline: str) -> None:
    results = study({"ntp": [0.2, 0.3, 0.25, 0.4, 0.35], "ra3": ours})
    comparison = results.compare("ra3", "ntp", "pass@1")
    assert comparison is not None
    assert comparison.relation == relation
    assert verdict(results).headline.startswith(headline)


def test_one_seed_gets_no_verdict_and_few_seeds_a_caution() -> None:
    one = verdict(study({"ntp": [0.2], "ra3": [0.5]}))
    assert one.headline == (
        "One seed, so no verdict: RA3 50.0%, Next-token prediction 20.0% pass@1 after mid-training."
    )
    two = verdict(study({"ntp": [0.2, 0.3], "ra3": [0.5, 0.7]}))
    assert two.lines == [
        "Two seeds, so no verdict: RA3 60.0%, Next-token prediction 25.0% pass@1 after mid-training.",
        "pass@1 after mid-training: 60.0% against 25.0% for Next-token prediction, +35.0 points "
        "(the two seeds: +30.0, +40.0).",
    ]
    few = verdict(study({"ntp": [0.2, 0.3, 0.2], "ra3": [0.5, 0.6, 0.5]}))
    assert "3 seeds" in few.lines[-1]
    assert few.lines[1] == (
        "pass@1 after mid-training: 53.3% against 23.3% for Next-token prediction, +30.0 points "
        "(95% interval +30.0 to +30.0; better in 3 of 3 seeds)."
    )


def test_rivals_without_rlvr_are_compared_after_mid_training() -> None:
    units = [UnitResult(seed, "ra3", {"pass@1": 0.5, "pass@1_after": 0.8}) for seed in range(5)]
    units += [UnitResult(seed, "ntp", {"pass@1": 0.1 + 0.01 * seed}) for seed in range(5)]
    answer = verdict(among_known_arms(units))
    assert answer.headline == (
        "RA3 is better than the strongest other arm, Next-token prediction: +38.0 points of pass@1 after mid-training."
    )


def test_two_groups_of_seeds_are_shown_instead_of_an_interval_of_their_mean() -> None:
    scores = [0.013, 0.004, 0.0, 0.0, 0.005, 0.0, 0.261, 0.318, 0.0, 0.014]
    bimodal = study({"latents": scores, "ra3": [0.6 + 0.01 * seed for seed in range(10)]})
    assert format_arm_score(bimodal.score("latents", "pass@1"), "share") == ("6.2", "8× 0.4, 2× 28.9")
    assert format_arm_score(bimodal.score("ra3", "pass@1"), "share") == ("64.5", "62.3–66.7")
    assert format_arm_score(study({"ra3": [0.5, 0.7]}).score("ra3", "pass@1"), "share") == ("60.0", "50.0, 70.0")


def test_results_without_a_rival_or_a_method_say_so() -> None:
    assert "no other arm to be compared with" in verdict(study({"ra3": [0.2], "oracle": [0.5]})).headline
    assert "nothing to compare" in verdict(study({"ntp": [0.2], "pause": [0.5]})).headline
    assert study({"ntp": [0.2]}).comparisons("pass@1") == []


def test_steps_are_compared_as_a_ratio_and_censored_runs_make_it_a_bound() -> None:
    results = study({"ntp": [40.0, None, 40.0], "ra3": [20.0, 50.0, 20.0]}, "steps_to_threshold")
    comparison = results.compare("ra3", "ntp", "steps_to_threshold")
    assert comparison is not None
    assert format_effect(comparison)[0] == "≤ 0.50×"
    assert comparison.relation == "better"
    assert isinstance(comparison.effect, PairedRatio)
    assert comparison.effect.values == pytest.approx((0.5, 0.5, 0.5))
    score = results.score("ntp", "steps_to_threshold")
    assert score is not None
    assert (score.estimate.mean, score.censored, score.never) == (60.0, 1, False)


def test_a_bound_on_the_wrong_side_claims_nothing() -> None:
    results = study({"ntp": [90.0, 100.0, 100.0], "ra3": [10.0, 10.0, None]}, "steps_to_threshold")
    comparison = results.compare("ra3", "ntp", "steps_to_threshold")
    assert comparison is not None
    assert comparison.relation == "level"


def test_arms_that_never_arrive_and_were_never_trained_are_not_compared() -> None:
    results = StudyResults([UnitResult(1, arm, {"steps_to_threshold": None}) for arm in ("ra3", "ntp")])
    score = results.score("ra3", "steps_to_threshold")
    assert score is not None
    assert score.never
    assert results.compare("ra3", "ntp", "steps_to_threshold") is None
    assert results.score("ra3", "pass@1") is None


def test_formats() -> None:
    assert format_score(0.2384, "share") == "23.8"
    assert format_score(0.748, "area") == "0.75"
    assert format_score(6.24, "count") == "6.2"
    assert [format_count(n) for n in (12, 1_234, 2_000_000, 3.5e9)] == ["12", "1.23k", "2M", "3.5G"]
    assert [format_seconds(s) for s in (12, 600, 9_000)] == ["12 s", "10 min", "2.5 h"]


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("seeds", [(10,), (10, 11), (10, 11, 12), tuple(range(10))])
def test_tables_lose_columns_but_never_digits(
    make_run: Callable[..., RunFolder], seeds: tuple[int, ...], width: int
) -> None:
    results = among_known_arms(load_results(make_run(seeds)))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(final_table(results, width))
    console.print(paired_table(results, width))
    text = console.export_text()
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for arm in results.arms:
        after_mid_training = results.score(arm.name, "pass@1")
        assert after_mid_training is not None
        assert f" {100 * after_mid_training.estimate.mean:.1f}" in text
    assert ("no room for: time" in text) == (width < 100)
    assert "never" in text or width < 80
    for arm in results.arms:
        assert arm.name in text


def test_tables_show_unmeasured_scores_as_missing() -> None:
    results = StudyResults([UnitResult(1, "ntp", {"pass@1": 0.5}), UnitResult(1, "ra3", {})])
    assert [column.header for column in final_table(results).columns] == ["arm", "pass@1\n%"]
