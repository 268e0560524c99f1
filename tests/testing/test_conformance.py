"""The conformance suite: everything of ours passes it, and everything broken in a known way is caught, by name."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from ra3gym import lm
from ra3gym.abstractions.inference.posterior import LatentChain
from ra3gym.abstractions.inference.problem import problem_from_chain
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.abstractions.latents import Annotations
from ra3gym.abstractions.latents.codebook import CodebookConfig, learn_codebook
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.agents.mid_training import make_e_step
from ra3gym.agents.mid_training.e_steps.exact import ExactEStep
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.agents.mid_training.e_steps.statement_kinds import AstEStep
from ra3gym.envs.code.latent import LatentCodeEnv, LatentCodeVectorEnv
from ra3gym.envs.code.rationale import RationaleCodeEnv, RationaleCodeVectorEnv
from ra3gym.envs.code.token import TokenCodeEnv, TokenCodeVectorEnv
from ra3gym.envs.option_mdp.env import OptionMDPEnv
from ra3gym.envs.option_mdp.vector_env import OptionMDPVectorEnv
from ra3gym.envs.trace_inference.env import TraceInferenceEnv
from ra3gym.envs.trace_inference.vector_env import TraceInferenceVectorEnv
from ra3gym.envs.wrappers import PruneActions
from ra3gym.errors import UnknownNameError
from ra3gym.tasks import ExpertTrace
from ra3gym.tasks.idioms import IdiomsDomain
from ra3gym.testing import (
    ENVIRONMENT_CHECKS,
    VECTOR_CHECKS,
    check_codebook,
    check_e_step,
    check_environment,
    check_vector_environment,
    difference,
)
from ra3gym.testing.differences import MEASURED
from ra3gym.testing.vector import record_vector
from ra3gym.testing.walks import walk_difference
from tests.envs.code.code_vector_cases import TASKS
from tests.envs.code.commenting_models import commenting_model, save_commenting_model
from tests.testing.broken_environments import MUTANTS, VECTOR_MUTANTS, NativeWalk, Walk

OPTION_MDP: list[dict[str, Any]] = [
    {},
    {"actions": "primitives", "observation": "dict"},
    {"actions": "options", "observation": "index"},
    {"actions": [0, 5, 9], "horizon": 9},
    {"instance_seed": 3, "num_states": 7, "mean_duration": 2.0, "num_terminals": 0, "gamma": 0.8, "horizon": 12},
]
TOKEN_CODE: list[dict[str, Any]] = [
    {"max_new_tokens": 5},
    {"max_new_tokens": 5, "observation": "tokens", "top_k": 6},
    {"max_new_tokens": 5, "action_space": "full", "observation": "dict", "reward": "all", "shaping": {"format": 0.5}},
]
LATENT_CODE: list[dict[str, Any]] = [
    {"max_new_tokens": 12, "segment_tokens": 3},
    {"max_new_tokens": 12, "segment_tokens": 3, "observation": "tokens", "decoder": "greedy", "segment_lines": 1},
    {"max_new_tokens": 12, "segment_tokens": 3, "observation": "dict", "top_k": 2, "reward": "all", "temperature": 0.5},
    {"max_new_tokens": 12, "min_prob": 0.2, "max_decisions": 3, "segment_tokens": 4, "segment_lines": None},
]
RATIONALE_CODE: list[dict[str, Any]] = [
    {"max_new_tokens": 30},
    {"max_new_tokens": 30, "observation": "tokens", "decoder": "greedy", "segment_lines": 2, "proposals": 2},
    {"max_new_tokens": 30, "observation": "dict", "segment_lines": None, "segment_tokens": 4, "reward": "all"},
    {"max_new_tokens": 30, "max_comment_tokens": 4, "max_decisions": 3, "temperature": 0.5},
]
TRACE_INFERENCE: list[dict[str, Any]] = [{}, {"observation": "dict"}, {"observation": "dict", "floor": -3.0}]


@pytest.fixture(scope="session")
def loaded(tiny_model_folder: Path) -> lm.LoadedModel:
    """In float64, so that rounding in batches of other sizes decides nothing."""
    loaded = lm.load(tiny_model_folder)
    loaded.model.double()
    return loaded


@pytest.fixture(scope="session")
def traces() -> list[ExpertTrace]:
    return IdiomsDomain(length=3, difficulty="easy", documented=0.5, num_compositions=20, num_held_out=1).traces(40)


def inference_problem() -> Any:
    """Random emissions, of which some are `-inf`."""
    rng = np.random.default_rng(0)
    emissions = [np.log(rng.dirichlet(np.ones(4), size=length)) for length in (5, 1, 3, 8)]
    for emission in emissions:
        emission[:, 1:][rng.random((len(emission), 3)) < 0.3] = -np.inf
    return problem_from_chain(LatentChain.under(StickyPrior(0.6, 4), emissions), ["five", "one", "three", "eight"])


# What is ours


def cases(loaded: lm.LoadedModel) -> dict[str, tuple[Callable[..., Any], Callable[..., Any], list[dict[str, Any]]]]:
    code = {"model": loaded, "tasks": TASKS}
    comments = code | {"model": commenting_model("llama", "own")}  # the other never ends a line
    problem = inference_problem()
    return {
        "OptionMDP": (OptionMDPEnv, OptionMDPVectorEnv, OPTION_MDP),
        "TraceInference": (
            partial(TraceInferenceEnv, problem),
            partial(TraceInferenceVectorEnv, problem),
            TRACE_INFERENCE,
        ),
        "TokenCode": (partial(TokenCodeEnv, **code), partial(TokenCodeVectorEnv, **code), TOKEN_CODE),
        "LatentCode": (partial(LatentCodeEnv, **code), partial(LatentCodeVectorEnv, **code), LATENT_CODE),
        "RationaleCode": (
            partial(RationaleCodeEnv, **comments),
            partial(RationaleCodeVectorEnv, **comments),
            RATIONALE_CODE,
        ),
    }


ALL = [
    *(("OptionMDP", one) for one in OPTION_MDP),
    *(("TraceInference", one) for one in TRACE_INFERENCE),
    *(("TokenCode", one) for one in TOKEN_CODE),
    *(("LatentCode", one) for one in LATENT_CODE),
    *(("RationaleCode", one) for one in RATIONALE_CODE),
]


@pytest.mark.parametrize(("name", "options"), ALL, ids=lambda value: str(value))
def test_every_environment_with_every_keyword_conforms(
    loaded: lm.LoadedModel, name: str, options: dict[str, Any]
) -> None:
    single, _, _ = cases(loaded)[name]
    steps = 150 if name == "OptionMDP" else 12
    check_environment(single, options, steps=steps, seeds=(0,) if name.endswith("Code") else (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = single(**options)
        check_env_sb3(env)
        env.close()


@pytest.mark.parametrize(("name", "options"), ALL, ids=lambda value: str(value))
def test_every_vector_form_conforms(loaded: lm.LoadedModel, name: str, options: dict[str, Any]) -> None:
    single, vector, _ = cases(loaded)[name]
    # float64 rounds in batches of other sizes too, just less.
    few = {"steps": 6, "num_envs": 2, "tolerance": 1e-6} if name.endswith("Code") else {"steps": 150}
    check_vector_environment(single, vector, options, **few)


@pytest.mark.parametrize("name", ["OptionMDP", "TraceInference", "TokenCode", "LatentCode", "RationaleCode"])
def test_a_pickled_vector_form_behaves_the_same(loaded: lm.LoadedModel, name: str) -> None:
    """Also one whose judge is at work."""
    _, vector, (options, *_) = cases(loaded)[name]
    with closing(vector(num_envs=2, **options)) as env:
        steps = record_vector(env, 0, 150 if name == "OptionMDP" else 40)[1:]
        assert any(moment.terminated.any() or moment.truncated.any() for moment in steps)
        with closing(pickle.loads(pickle.dumps(env))) as again:
            assert walk_difference(record_vector(env, 1, 8), record_vector(again, 1, 8), MEASURED, 1e-12) is None


@pytest.mark.parametrize("name", ["OptionMDP", "TokenCode", "LatentCode", "RationaleCode", "TraceInference"])
def test_every_id_conforms_by_name(tiny_model_folder: Path, tmp_path: Path, name: str) -> None:
    """Made by Gymnasium from JSON-able keywords, as users make them: this is where specs are checked."""
    kwargs: dict[str, Any] = {"horizon": 20} if name == "OptionMDP" else {"model": str(tiny_model_folder)}
    if name == "RationaleCode":
        save_commenting_model(tmp_path)
        kwargs = {"model": str(tmp_path), "max_new_tokens": 80}
    kwargs |= {
        "TraceInference": {"num_traces": 3},
        "TokenCode": {"max_new_tokens": 6},
        "LatentCode": {"max_new_tokens": 9, "segment_tokens": 2},
    }.get(name, {})
    env_id = f"ra3gym/{name}-v0"
    by_name = {"gymnasiums_own_check", "step_needs_reset", "spec_survives_json"}
    by_name |= {"pickled_copies_behave_the_same", "deep_copies_continue_alike"}
    rest = [one.__name__ for one in ENVIRONMENT_CHECKS if one.__name__ not in by_name]
    check_environment(env_id, kwargs, steps=40, seeds=(0,), skip=rest)
    by_name = {"spaces_and_mode_are_declared", "trajectories_equal_sync_vector_env"}
    rest = [one.__name__ for one in VECTOR_CHECKS if one.__name__ not in by_name]
    check_vector_environment(env_id, kwargs=kwargs, num_envs=2, steps=40, tolerance=1e-4, skip=rest)


@pytest.mark.parametrize("reindex", [False, True])
def test_a_pruned_environment_conforms(reindex: bool) -> None:
    check_environment(lambda **kwargs: PruneActions(OptionMDPEnv(**kwargs), [0, 3, 5], reindex=reindex), steps=150)


def test_gymnasiums_own_environments_pass_but_for_what_is_ours_to_ask() -> None:
    ours = ("illegal_actions_are_reported", "step_needs_reset", "gymnasiums_own_check", "renders_what_it_declares")
    check_environment("CartPole-v1", steps=60, skip=ours)
    check_environment("FrozenLake-v1", {"render_mode": "ansi"}, steps=60, skip=ours)
    check_environment("Taxi-v4" if "Taxi-v4" in gym.registry else "Taxi-v3", steps=60, skip=ours)


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'masks_agree'"):
        check_environment(OptionMDPEnv, skip=["mask_agree"])


# What is broken


def test_the_sound_one_passes() -> None:
    check_environment(Walk)
    check_vector_environment(Walk, partial(NativeWalk, Walk))


@pytest.mark.parametrize(("broken", "check", "message"), MUTANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_broken_is_caught_by_the_right_check(broken: type[Walk], check: str, message: str) -> None:
    others = [one.__name__ for one in ENVIRONMENT_CHECKS if one.__name__ != check]
    with pytest.raises(AssertionError, match=message) as caught:
        check_environment(broken, skip=others)
    assert str(caught.value).startswith(f"{check}: ")


def test_every_check_has_its_mutant() -> None:
    with_spec = {"spec_survives_json"}  # below
    assert {check for _, check, _ in MUTANTS} | with_spec == {one.__name__ for one in ENVIRONMENT_CHECKS}


def test_a_spec_with_an_object_in_it_is_caught() -> None:
    gym.register("ra3gym-test/Walk-v0", entry_point=lambda how=None, **kwargs: Walk(**kwargs))
    try:
        others = [one.__name__ for one in ENVIRONMENT_CHECKS if one.__name__ != "spec_survives_json"]
        with pytest.raises(AssertionError, match=r"have no JSON form .* take names instead of objects"):
            check_environment("ra3gym-test/Walk-v0", {"how": object()}, skip=others)
    finally:
        del gym.registry["ra3gym-test/Walk-v0"]


@pytest.mark.parametrize(
    ("broken", "check", "message"), VECTOR_MUTANTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_broken_vector_form_is_caught(broken: type[NativeWalk], check: str, message: str) -> None:
    others = [one.__name__ for one in VECTOR_CHECKS if one.__name__ != check]
    with pytest.raises(AssertionError, match=message) as caught:
        check_vector_environment(Walk, partial(broken, Walk), skip=others)
    assert str(caught.value).startswith(f"{check}: ")


def test_every_vector_check_has_its_mutant() -> None:
    assert {check for _, check, _ in VECTOR_MUTANTS} == {one.__name__ for one in VECTOR_CHECKS}


def test_make_vector_is_required_without_an_id() -> None:
    with pytest.raises(ValueError, match="make_vector=None needs an id"):
        check_vector_environment(Walk)


# Codebooks and E-steps


@pytest.fixture(scope="session")
def codebook(traces: list[ExpertTrace]) -> Any:
    return learn_codebook(encode_traces(traces), CodebookConfig(8, 1, 4), np.random.default_rng(0))


def test_a_learned_codebook_conforms(codebook: Any, traces: list[ExpertTrace]) -> None:
    check_codebook(codebook, traces)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda book: {"emission_YK": book.emission_YK[1:]}, r"emission_YK has shape .* these traces need"),
        (lambda book: {"emission_YK": 3 * book.emission_YK}, "which is not a probability|above 1"),
        (lambda book: {"emission_YK": np.clip(book.emission_YK, 0.8, 1.0)}, "above 1, over"),
        (lambda book: {"emission_YK": 0 * book.emission_YK}, r"trace 0 \('idioms.*'\) is impossible"),
        (lambda book: {"keep_U1": book.keep_U1 - 1.0}, "keep_U1 holds -.*, which is not a probability"),
        (lambda book: {"word_WK": 0.5 * book.word_WK}, r"p\(latent \| word\) of word .* sums to 0.500000, not to 1"),
        (lambda book: {"word_WK": book.word_WK * np.nan}, "word_WK is not finite at"),
        (lambda book: {"evidence": ()}, "evidence is"),
    ],
)
def test_a_broken_codebook_is_caught(
    codebook: Any, traces: list[ExpertTrace], change: Callable[[Any], dict[str, Any]], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check_codebook(replace(codebook, **change(codebook)), traces)


@pytest.mark.parametrize("name", ["exact", "pause", "random", "shuffled", "macro", "ast"])
def test_every_cheap_e_step_conforms(name: str, traces: list[ExpertTrace]) -> None:
    check_e_step(make_e_step(name, CodebookConfig(8, 1, 3)), traces)


def test_an_oracle_conforms_if_it_may_read_labels(traces: list[ExpertTrace]) -> None:
    check_e_step(OracleEStep(), [traces[0]] * 2, reads_planted_labels=True)
    assert isinstance(ExactEStep().infer(traces[:3], np.random.default_rng(0)), Annotations)


class Changed:
    """An E-step that spoils what a sound one infers."""

    def __init__(self, change: Callable[[Any, Any, Any], Any]) -> None:
        self.change = change

    def infer(self, traces: Any, rng: Any) -> Any:
        return self.change(AstEStep().infer(traces, rng), traces, rng)


def with_first(found: Annotations, path: Any) -> Annotations:
    return replace(found, paths=(path, *found.paths[1:]), gains=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found, traces, rng: replace(found, paths=found.paths[1:], gains=None), "39 paths for 40 traces"),
        (
            lambda found, traces, rng: with_first(found, LatentPath((0,), (True,))),
            r"the path of trace 0 \('idioms.*'\) has 1 latents and 1 switches for \d+ lines",
        ),
        (
            lambda found, traces, rng: with_first(
                found, replace(found.paths[0], latents=(999, *found.paths[0].latents[1:]))
            ),
            r"has latent 999 at line 0, but there are names for \d+ latents",
        ),
        (
            lambda found, traces, rng: with_first(
                found,
                LatentPath((0, *[1] * (len(traces[0].steps) - 1)), (True, *[False] * (len(traces[0].steps) - 1))),
            ),
            "goes from latent 0 to 1 at line 1 without a switch",
        ),
        (lambda found, traces, rng: replace(found, metrics={"evidence": np.nan}), "metric 'evidence' is nan"),
        (lambda found, traces, rng: replace(found, names=tuple("name" for _ in found.names)), "the names of latent 0"),
        (
            lambda found, traces, rng: replace(found, metrics={"luck": np.random.default_rng().random()}),
            r"other annotations the second time: metrics\['luck'\]",
        ),
        (
            lambda found, traces, rng: replace(found, metrics={"luck": np.random.random()}),  # noqa: NPY002
            "drew from numpy's global generator",
        ),
        (
            lambda found, traces, rng: replace(found, metrics={"planted": float(traces[0].planted is None)}),
            "reads planted labels",
        ),
    ],
)
def test_a_broken_e_step_is_caught(
    traces: list[ExpertTrace], change: Callable[[Any, Any, Any], Any], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check_e_step(Changed(change), traces)


# As tests


SUITE = """
import gymnasium as gym
from ra3gym.testing import EnvironmentConformance, VectorEnvironmentConformance
from ra3gym.envs.option_mdp.env import OptionMDPEnv
from ra3gym.envs.option_mdp.vector_env import OptionMDPVectorEnv

class TestSound(EnvironmentConformance):
    steps = 150
    def make(self, **kwargs):
        return OptionMDPEnv(horizon=20, **kwargs)

class TestBroken(TestSound):
    test_pickled_copies_behave_the_same = None
    def make(self, **kwargs):
        env = super().make(**kwargs)
        env.action_masks = lambda: __import__("numpy").zeros(12, bool)
        return env

class TestVector(VectorEnvironmentConformance):
    def make_single(self):
        return OptionMDPEnv(horizon=20)
    def make_vector(self, **kwargs):
        return OptionMDPVectorEnv(horizon=20, **kwargs)
"""


def test_pytest_runs_each_check_as_a_test_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", str(tmp_path / "test_mine.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith("FAILED")]
    assert len([line for line in lines if line.startswith("PASSED")]) == (
        2 * len(ENVIRONMENT_CHECKS) - 2 + len(VECTOR_CHECKS)
    ), done.stdout
    assert len(failed) == 1
    assert "TestBroken::test_masks_agree" in failed[0]


# Differences


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.5}]}, "x['a'][1]['b']: 2.0 is not 2.5"),
        ({"a": 1}, {"b": 1}, "x: only one of the two has 'a', 'b'"),
        (np.zeros(3), np.array([0.0, 0.0, 1.0]), "x[2]: 0.0 is not 1.0 (1 of 3 differ)"),
        (np.zeros(3), np.zeros(3, np.float32), "x: float64 of shape (3,) is not float32 of shape (3,)"),
        (1, 1.0, "x: 1 (int) is not 1.0 (float)"),
        ((1, 2), (1,), "x: 2 entries, not 1"),
        (np.array([None, "a"], object), np.array([None, "b"], object), "x[1]: 'a' is not 'b'"),
        (float("nan"), float("nan"), None),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), None),
        ({"seconds": 1.0, "a": 1}, {"seconds": 2.0, "a": 1}, None),
        (None, None, None),
    ],
)
def test_the_first_difference_is_named(one: Any, other: Any, expected: str | None) -> None:
    assert difference(one, other, path="x") == expected


def test_a_tolerance_is_for_floats_only() -> None:
    assert difference({"a": 1.0}, {"a": 1.0 + 1e-7}, tolerance=1e-5) is None
    assert difference({"a": 1}, {"a": 2}, tolerance=10.0) is not None
