"""Results survive the disk unchanged; what JSON or a reader could misunderstand is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ra3gym.errors import RunFolderError
from ra3gym.experiments.report.comparison import StudyResults
from ra3gym.experiments.report.results import (
    ProgramSample,
    UnitResult,
    has_result,
    load_result,
    load_results,
    save_result,
)
from ra3gym.experiments.studies.arms import ARMS
from ra3gym.runs.folder import RunFolder


@dataclass
class Config:
    seeds: tuple[int, ...] = (1,)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "baseline", Config())


number = st.floats(allow_nan=False, allow_infinity=False)
samples = st.builds(
    ProgramSample,
    prompt=st.text(),
    segments=st.lists(st.tuples(st.none() | st.text(), st.text()), max_size=3).map(tuple),
    passed=st.booleans(),
    task_id=st.text(),
)
results = st.builds(
    UnitResult,
    seed=st.integers(0, 99),
    arm=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    scores=st.dictionaries(st.text(), st.none() | number, max_size=4),
    curves=st.dictionaries(
        st.text(),
        st.lists(st.tuples(number, number), max_size=4, unique_by=lambda point: point[0]).map(sorted),
        max_size=2,
    ),
    samples=st.lists(samples, max_size=2),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(result=results)
def test_a_result_comes_back_as_it_was_saved(run: RunFolder, result: UnitResult) -> None:
    save_result(run, result)
    assert has_result(run, result.seed, result.arm)
    assert load_result(run, result.seed, result.arm) == result


def test_results_are_ordered_by_seed_and_arm(run: RunFolder) -> None:
    for seed, arm in [(10, "ra3"), (9, "ra3"), (10, "ntp")]:
        save_result(run, UnitResult(seed, arm, {"pass@1": 0.5}))
    assert [(r.seed, r.arm) for r in load_results(run)] == [(9, "ra3"), (10, "ntp"), (10, "ra3")]
    assert not has_result(run, 9, "ntp")


def test_scores_by_seed_tell_never_from_not_measured() -> None:
    measured = [
        UnitResult(1, "ra3", {"steps_to_threshold": 12.0}),
        UnitResult(2, "ra3", {"steps_to_threshold": None}),
        UnitResult(3, "ra3", {}),
        UnitResult(1, "ntp", {"steps_to_threshold": 30.0}),
    ]
    assert StudyResults(measured).by_seed("ra3", "steps_to_threshold") == {1: 12.0, 2: None}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_json_cannot_hold_are_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match=r"score 'pass@1' of arm 'ra3', seed 3"):
        UnitResult(3, "ra3", {"pass@1": bad})
    with pytest.raises(ValueError, match="curve 'rlvr_reward' of arm 'ra3'"):
        UnitResult(3, "ra3", {}, curves={"rlvr_reward": [(0.0, bad)]})


def test_a_curve_that_does_not_move_on_is_refused() -> None:
    with pytest.raises(ValueError, match="x must increase strictly"):
        UnitResult(3, "ra3", {}, curves={"rlvr_reward": [(1.0, 0.1), (1.0, 0.2)]})


@pytest.mark.parametrize("content", ["{", "[]", '{"seed": 1}'])
def test_a_damaged_result_names_its_file_and_the_way_out(run: RunFolder, content: str) -> None:
    save_result(run, UnitResult(1, "ra3", {})).write_text(content)
    with pytest.raises(RunFolderError, match=r"ra3\.json is not a readable result .* resume"):
        load_results(run)


def test_every_arm_has_a_color_of_its_own_and_unknown_arms_are_presentable() -> None:
    assert len({ARMS[name].color for name in ARMS}) == len(ARMS.names())
    known = [ARMS[name] for name in ARMS]
    oracle, mine = StudyResults([UnitResult(1, arm, {}) for arm in ("mine", "oracle")], known).arms
    assert (oracle.role, mine.title, mine.role) == ("upper bound", "mine", "other")
