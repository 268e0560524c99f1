"""Pruning: each rule by hand, errors against exact values, and the sample-size theorem."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra3gym.abstractions.options import (
    expert_episodes,
    optimal_values,
    pruning_error,
    random_option_mdp,
    random_task_family,
)
from ra3gym.abstractions.pruning import (
    Evidence,
    assess,
    at_random,
    by_elimination,
    by_expert_frequency,
    by_policy_mass,
    by_syntax,
    elimination,
    token_category,
)
from ra3gym.abstractions.pruning.elimination import candidate_errors, candidate_sets, samples_needed, smallest_good_set
from ra3gym.errors import ConfigError, DataError, UnknownNameError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "pruning.md"
EXPERTS = [[3, 3, 1], [3, 0], [1]]

# What a report says


def test_a_report_counts_what_is_kept() -> None:
    report = assess([3, 1], 5, rule="mine", samples=7, evidence=Evidence(experts=EXPERTS))
    assert report.kept == (1, 3)
    assert report.size == 2
    assert report.mask.tolist() == [False, True, False, True, False]
    assert report.expert_coverage == pytest.approx(5 / 6)
    assert (report.pruning_error, report.error_is, report.samples) == (None, "unknown", 7)
    assert assess([3], 5, rule="mine").expert_coverage is None


def test_the_error_is_exact_where_tasks_are_known() -> None:
    tasks = random_task_family(0, num_tasks=3)
    report = assess([0, 5], 10, rule="mine", evidence=Evidence(tasks=tasks, actions="options"))
    by_hand = [float(t.start_S @ (optimal_values(t, "options") - optimal_values(t, [4 + 0, 4 + 5]))) for t in tasks]
    assert report.error_is == "exact"
    assert report.pruning_error == pytest.approx(np.mean(by_hand))
    assert by_hand[0] == pytest.approx(0.0, abs=1e-10)


def test_the_bound_on_the_error_is_clopper_pearsons() -> None:
    """No episode of 100 holds a dropped action: at 95%, the probability of one is below 1 - 0.05^(1/100)."""
    clean: list[Any] = [[0, 1]] * 100
    report = assess([0, 1], 3, rule="mine", evidence=Evidence(experts=clean, return_range=2.0))
    assert report.error_is == "bound"
    assert report.pruning_error == pytest.approx(2.0 * (1.0 - 0.05 ** (1 / 100)))
    all_lost = assess([2], 3, rule="mine", evidence=Evidence(experts=clean, return_range=2.0))
    assert all_lost.pruning_error == 2.0


@given(seed=st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_the_bound_is_above_the_exact_error(seed: int) -> None:
    """An optimal expert's episodes, the range of values for that of returns."""
    mdp = random_option_mdp(seed, num_states=12, num_good=4)
    episodes = [one - 4 for one in expert_episodes(mdp, np.random.default_rng(seed), 300, "options")]
    kept = np.random.default_rng(seed).choice(8, size=6, replace=False)
    evidence = {"experts": episodes, "return_range": float(optimal_values(mdp, "options").max())}
    bound = assess(kept, 8, rule="mine", evidence=Evidence(**evidence, confidence=0.999))
    assert bound.pruning_error is not None
    assert bound.pruning_error >= pruning_error(mdp, kept + 4, "options") - 1e-10


# The rules


def test_frequency_keeps_what_experts_do_most() -> None:
    assert by_expert_frequency(EXPERTS, 5, size=1).kept == (3,)
    assert by_expert_frequency(EXPERTS, 5, size=4).kept == (0, 1, 2, 3)
    assert by_expert_frequency(EXPERTS, 5, coverage=5 / 6).kept == (1, 3)
    assert by_expert_frequency(EXPERTS, 5, coverage=0.84).kept == (0, 1, 3)
    everything = by_expert_frequency(EXPERTS, 5, coverage=1.0, evidence=Evidence(experts=EXPERTS))
    assert (everything.kept, everything.samples, everything.expert_coverage) == ((0, 1, 3), 6, 1.0)


def test_policy_mass_is_top_p_of_the_mean() -> None:
    assert by_policy_mass([0.5, 0.1, 0.4], mass=0.9).kept == (0, 2)
    assert by_policy_mass([0.5, 0.1, 0.4], mass=0.91).kept == (0, 1, 2)
    assert by_policy_mass([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], mass=0.5).kept == (0,)
    assert by_policy_mass(np.full(10, 0.1), mass=0.3).size == 3


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=12), st.floats(0.05, 1.0))
def test_policy_mass_is_reached_and_not_with_one_fewer(weights: list[float], mass: float) -> None:
    probabilities = np.array(weights) / np.sum(weights)
    kept = list(by_policy_mass(probabilities, mass=mass).kept)
    assert probabilities[kept].sum() >= mass - 1e-9
    assert probabilities[kept].sum() - probabilities[kept].min() < mass + 1e-9


def test_random_subsets_have_their_size_and_differ() -> None:
    found = {at_random(10, 4, np.random.default_rng(seed)).kept for seed in range(20)}
    assert {len(one) for one in found} == {4}
    assert len(found) > 10


@pytest.mark.parametrize(
    ("text", "category"),
    [
        (" for", "keyword"),
        ("len", "builtin"),
        (" total", "name"),
        ("été_2", "name"),
        ("12", "number"),
        (" 0x1f", "number"),
        ("'a", "string"),
        ('"""', "string"),
        ("  # sum", "comment"),
        (" +=", "operator"),
        ("):\n", "operator"),
        ("\n    ", "newline"),
        ("    ", "space"),
        ("f(x", "mixed"),
        ("", "empty"),
    ],
)
def test_categories_of_tokens(text: str, category: str) -> None:
    assert token_category(text) == category


def test_syntax_keeps_and_drops_categories() -> None:
    texts = [" for", "x", "'a'", "# so", "\n", "<z1>"]
    assert by_syntax(texts, keep=["keyword", "name", "newline"]).kept == (0, 1, 4)
    assert by_syntax(texts, drop=["string", "comment"]).kept == (0, 1, 4, 5)
    with pytest.raises(UnknownNameError, match="Did you mean 'comment'"):
        by_syntax(texts, drop=["coment"])
    with pytest.raises(ConfigError, match="no action is of the categories number"):
        by_syntax(texts, keep=["number"])


# Elimination


def test_elimination_of_a_table_is_the_smallest_hitting_set() -> None:
    suits_MZ = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1]], dtype=bool)
    assert by_elimination(suits_MZ).kept == (1, 2)
    report = by_elimination(suits_MZ, size=3)
    assert (report.size, report.samples, report.rule) == (3, 4, "elimination")
    assert suits_MZ[:, list(report.kept)].any(axis=1).all()
    with pytest.raises(ConfigError, match="no set of 1 actions is left"):
        by_elimination(suits_MZ, size=1)


def test_elimination_of_tasks_finds_the_planted_options() -> None:
    tasks = random_task_family(1, num_tasks=3)
    report = by_elimination(list(tasks), eps=1e-6, evidence=Evidence(tasks=tasks, actions="options"))
    assert report.kept == (0, 1, 2)
    assert (report.error_is, report.samples) == ("exact", 3)
    assert report.pruning_error == pytest.approx(0.0, abs=1e-9)
    assert smallest_good_set(tasks, 1e-6).tolist() == [0, 1, 2]
    assert by_elimination([tasks[1]] * 5, eps=1e-6).kept == (1,)


@pytest.mark.parametrize("size", [None, 5])
def test_with_many_candidates_it_drops_greedily(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    tasks = random_task_family(1, num_tasks=3)
    monkeypatch.setattr(elimination, "MAX_CANDIDATES", 5)
    report = by_elimination(list(tasks), eps=1e-6, size=size)
    assert report.rule == "elimination (greedy)"
    assert set(report.kept) >= {0, 1, 2}
    assert report.size == (size or 3)
    with pytest.raises(ConfigError, match="raise size=2 or eps"):
        by_elimination(list(tasks), eps=1e-6, size=2)


def test_samples_needed_is_the_theorems_number() -> None:
    assert samples_needed(3, 10, sigma=0.2, delta=0.1) == int(np.ceil(3 * np.log(100.0) / 0.2))
    assert samples_needed(3, 10, sigma=0.1, delta=0.1) == pytest.approx(
        2 * samples_needed(3, 10, sigma=0.2, delta=0.1), abs=1
    )


@pytest.mark.parametrize(("num_tasks", "num_options", "sigma"), [(2, 6, 0.1), (3, 8, 0.2)])
def test_so_many_samples_eliminate_every_suboptimal_set_often_enough(
    num_tasks: int, num_options: int, sigma: float
) -> None:
    """500 draws of as many tasks as the theorem asks for: suboptimal sets survive in at most delta of them.

    The rarest task has probability sigma exactly, so that sets without its option are just (eps, sigma)-suboptimal. And
    a tenth of the samples is not enough: the test could fail.
    """
    delta, eps = 0.1, 0.05
    tasks = random_task_family(num_tasks, num_tasks=num_tasks, num_options=num_options)
    share_T = np.append(np.full(num_tasks - 1, (1.0 - sigma) / (num_tasks - 1)), sigma)
    size = len(smallest_good_set(tasks, eps))
    wrong_CT = candidate_errors(tasks, candidate_sets(num_options, size)) > eps
    suboptimal_C = wrong_CT @ share_T >= sigma - 1e-12
    assert suboptimal_C.any()
    rng = np.random.default_rng(0)

    def failures(samples: int) -> float:
        seen_RT = rng.multinomial(samples, share_T, size=500) > 0
        left_RC = ~(seen_RT[:, None, :] & wrong_CT).any(axis=2)
        return float((left_RC & suboptimal_C).any(axis=1).mean())

    needed = samples_needed(size, num_options, sigma=sigma, delta=delta)
    assert failures(needed) <= delta
    assert failures(needed // 10) > delta


@pytest.mark.parametrize(("size", "num_actions", "sigma"), [(1, 8, 0.2), (2, 6, 0.2), (2, 12, 0.2)])
def test_so_many_samples_are_enough_near_the_worst_case(size: int, num_actions: int, sigma: float) -> None:
    """Sets that fail on different samples, 60 times through the rule itself: what it keeps is suboptimal seldom.

    One of the first `size` actions always does; every set of others fails with probability sigma.
    """
    delta = 0.1
    rng = np.random.default_rng(size * num_actions)
    does = 1.0 - sigma ** (1.0 / size)
    needed = samples_needed(size, num_actions, sigma=sigma, delta=delta)
    wrong = 0
    for _ in range(60):
        suits_MZ = rng.random((needed, num_actions)) < does
        suits_MZ[np.arange(needed), rng.integers(size, size=needed)] = True
        kept = by_elimination(suits_MZ, size=size).kept
        wrong += min(kept) >= size
    assert wrong <= 60 * delta


def test_the_pages_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text()
    names: dict[str, Any] = {}
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert blocks
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block.group(1), str(PAGE), "exec"), names)
        printed = capsys.readouterr().out.splitlines()
        # Where a comment at the end of a line says what is printed, it is.
        shown = re.findall(r"^print\(.*\)  # (\d[\d.]*)$", block.group(1), re.MULTILINE)
        for number, expected in zip(printed[len(printed) - len(shown) :], shown, strict=True):
            decimals = len(expected.partition(".")[2])
            assert f"{abs(float(number)):.{decimals}f}" == expected
    assert names["small"].action_space.n == 3


# Bad input


def test_bad_input_is_refused() -> None:
    for kept in ([], [0, 0], [5], [-1]):
        with pytest.raises(ConfigError, match="from 0 to 4"):
            assess(kept, 5, rule="mine")
    with pytest.raises(DataError, match=r"from 0 to 1; \[3, 3, 1\]"):
        assess([0], 2, rule="mine", evidence=Evidence(experts=EXPERTS))
    with pytest.raises(DataError, match="a task has 12 actions"):
        assess([0], 8, rule="mine", evidence=Evidence(tasks=[random_option_mdp(0)]))
    with pytest.raises(ConfigError, match=r"confidence=1\.0"):
        assess([0], 8, rule="mine", evidence=Evidence(confidence=1.0))
    with pytest.raises(ConfigError, match="either size or coverage"):
        by_expert_frequency(EXPERTS, 5)
    with pytest.raises(ConfigError, match="size=6"):
        by_expert_frequency(EXPERTS, 5, size=6)
    with pytest.raises(ConfigError, match=r"coverage=1\.5"):
        by_expert_frequency(EXPERTS, 5, coverage=1.5)
    with pytest.raises(DataError, match="no decision"):
        by_expert_frequency([], 5, size=1)
    with pytest.raises(ConfigError, match="mass=0"):
        by_policy_mass([1.0], mass=0)
    with pytest.raises(DataError, match="rows must be distributions"):
        by_policy_mass([0.5, 0.4])
    with pytest.raises(ConfigError, match="size=0"):
        at_random(5, 0, np.random.default_rng(0))
    with pytest.raises(DataError, match="there are no samples"):
        by_elimination([])
    with pytest.raises(DataError, match="a table is bool"):
        by_elimination(np.ones((3, 4)))
    with pytest.raises(DataError, match="sample 1 has no suitable action"):
        by_elimination(np.array([[True], [False]]))
    with pytest.raises(ConfigError, match=r"eps=-1\.0"):
        by_elimination(np.ones((3, 4), dtype=bool), eps=-1.0)
    with pytest.raises(ConfigError, match=r"sigma=0\.0"):
        samples_needed(2, 5, sigma=0.0, delta=0.1)
