"""`TraceInference-v0` as arrays: the same as `SyncVectorEnv` over single environments, step by step."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from ra3gym.abstractions.inference.posterior import LatentChain, log_evidence
from ra3gym.abstractions.inference.problem import InferenceProblem, problem_from_chain
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.agents.mid_training.inference.posteriors import ExactAgent, sample_paths
from ra3gym.envs.trace_inference.env import TraceInferenceEnv
from ra3gym.envs.trace_inference.vector_env import TraceInferenceVectorEnv
from ra3gym.errors import ConfigError, UnknownNameError

ID = "ra3gym/TraceInference-v0"
K = 5
AUTORESET = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]


def make_problem(seed: int = 0, traces: int = 7, texts: bool = False) -> InferenceProblem:
    """Traces of 1 to 5 lines with shared rows of emissions, a fifth of them `-inf`, gates and fresh distributions."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(1, 6, size=traces)])
    N = int(offsets[-1])
    log_emission_UK = rng.normal(-3.0, 2.0, size=(6, K))
    log_emission_UK[:, 1:][rng.random((6, K - 1)) < 0.2] = -np.inf
    chain = LatentChain(
        log_emission_UK=log_emission_UK,
        row_N=rng.integers(6, size=N),
        keep_N=rng.random(N),
        fresh_PK=rng.dirichlet(np.ones(K), size=2),
        fresh_row_M=rng.integers(2, size=traces),
        offsets=offsets,
    )
    problem = problem_from_chain(chain, [f"trace {m}" for m in range(traces)])
    lines = tuple(f"    line {n}\n" for n in range(N)) if texts else None
    return InferenceProblem(chain, problem.feature_NF, problem.trace_ids, lines)


def hard_problem() -> InferenceProblem:
    """Priors with hard zeros and keep probabilities of 0 and 1: masks that depend on the previous latent, dead ends."""
    chain = LatentChain(
        log_emission_UK=np.array([[-1.0, -1.0, -1.0], [-1.0, -np.inf, -1.0], [-1.0, -2.0, -np.inf]]),
        row_N=np.array([0, 1, 2, 2, 1]),
        keep_N=np.array([1.0, 1.0, 0.0, 0.5, 1.0]),
        fresh_PK=np.array([[0.5, 0.5, 0.0], [0.2, 0.4, 0.4]]),
        fresh_row_M=np.array([0, 1]),
        offsets=np.array([0, 3, 5]),
    )
    assert np.isfinite(log_evidence(chain)).all()
    return problem_from_chain(chain)


def sync(problem: InferenceProblem, num_envs: int, mode: AutoresetMode, **options: Any) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: TraceInferenceEnv(problem, **options)] * num_envs, autoreset_mode=mode)


def assert_alike(first: VectorEnv, second: VectorEnv, steps: int, seed: int = 3) -> None:
    """Both return the same to the last bit, from the reset on; now and then an action is out of range."""
    rng = np.random.default_rng(seed)
    returned = [env.reset(seed=seed) for env in (first, second)]
    assert data_equivalence(*returned, exact=True)
    for _ in range(steps):
        actions = rng.integers(first.single_action_space.n, size=first.num_envs)
        wrong = rng.random(first.num_envs) < 0.1
        actions = np.where(wrong, rng.choice([-1, first.single_action_space.n], size=first.num_envs), actions)
        returned = [env.step(actions) for env in (first, second)]
        assert data_equivalence(*returned, exact=True)


@pytest.mark.parametrize("mode", AUTORESET)
@pytest.mark.parametrize("observation", ["features", "dict"])
@pytest.mark.parametrize("num_envs", [1, 6])
def test_it_returns_what_gymnasiums_own_vector_returns(mode: AutoresetMode, observation: str, num_envs: int) -> None:
    for problem in (make_problem(), make_problem(texts=True), hard_problem()):
        options: dict[str, Any] = {"observation": observation, "floor": -20.0}
        ours = TraceInferenceVectorEnv(problem, num_envs, autoreset_mode=mode, **options)
        assert_alike(sync(problem, num_envs, mode, **options), ours, steps=200)


@given(seed=st.integers(0, 10_000), num_envs=st.integers(1, 4), mode=st.sampled_from(AUTORESET))
@settings(max_examples=30, deadline=None)
def test_it_does_so_for_any_problem(seed: int, num_envs: int, mode: AutoresetMode) -> None:
    problem = make_problem(seed, traces=1 + seed % 4)
    ours = TraceInferenceVectorEnv(problem, num_envs, autoreset_mode=mode)
    assert_alike(sync(problem, num_envs, mode), ours, steps=25, seed=seed)


@pytest.mark.parametrize("mode", AUTORESET)
def test_long_runs_agree_past_the_traces_drawn_ahead(mode: AutoresetMode) -> None:
    problem = problem_from_chain(LatentChain.under(StickyPrior(0.5, 2), [np.zeros((1, 2))] * 9))
    assert_alike(sync(problem, 2, mode), TraceInferenceVectorEnv(problem, 2, autoreset_mode=mode), steps=1300)


def test_made_by_gymnasium_with_a_spec_that_survives_json(tiny_model_folder: Path) -> None:
    given = {"model": str(tiny_model_folder), "num_traces": 3, "autoreset_mode": "SameStep", "observation": "dict"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gym.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point", **given)
        assert envs.spec is not None
        again = gym.make_vec(gym.envs.registration.EnvSpec.from_json(envs.spec.to_json()))
    json.dumps(envs.spec.kwargs)
    assert isinstance(envs, TraceInferenceVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert TraceInferenceVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert again.num_envs == 3
    assert again.observation_space == envs.observation_space
    assert_alike(envs, again, steps=20)


def test_spaces_are_batches_of_the_single_environments() -> None:
    problem = make_problem()
    for observation in ("features", "dict"):
        single = TraceInferenceEnv(problem, observation=observation)
        envs = TraceInferenceVectorEnv(problem, 3, observation=observation)
        assert envs.single_observation_space == single.observation_space
        assert envs.single_action_space == single.action_space
        observations, _ = envs.reset(seed=0)
        assert observations in envs.observation_space
        observations, *_ = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space


def test_an_environments_traces_depend_on_its_own_seed_alone() -> None:
    problem = make_problem()

    def traces(num_envs: int, seed: Any) -> list[list[str]]:
        envs = TraceInferenceVectorEnv(problem, num_envs, autoreset_mode="SameStep")
        seen = [envs.reset(seed=seed)[1]["trace_id"]]
        seen += [envs.step(np.zeros(num_envs, dtype=np.int64))[4]["trace_id"] for _ in range(40)]
        return np.array(seen).T.tolist()

    many = traces(5, 10)
    assert traces(2, 10) == many[:2]
    assert traces(1, 13) == [many[3]]
    assert traces(3, [14, 10, None])[:2] == [many[4], many[0]]
    assert len({tuple(row) for row in many}) == 5


def test_an_unseeded_reset_goes_on_in_the_same_stream() -> None:
    problem = make_problem()
    ours, theirs = TraceInferenceVectorEnv(problem, 3), sync(problem, 3, AutoresetMode.NEXT_STEP)
    for env in (ours, theirs):
        env.reset(seed=1)
    for _ in range(10):
        assert data_equivalence(ours.reset(), theirs.reset(), exact=True)
    pinned = {"trace_id": "trace 2"}
    assert data_equivalence(ours.reset(options=pinned), theirs.reset(options=dict(pinned)), exact=True)
    assert data_equivalence(ours.reset(), theirs.reset(), exact=True)


def test_returned_arrays_are_the_callers_to_keep() -> None:
    envs = TraceInferenceVectorEnv(make_problem(), 4, observation="dict")
    first = envs.reset(seed=0)
    kept = [array.copy() for array in (first[0]["obs"], first[0]["mask"], first[1]["log_joint"])]
    first[1]["action_mask"][:] = 0
    envs.step(np.zeros(4, dtype=np.int64))
    for array, before in zip((first[0]["obs"], first[0]["mask"], first[1]["log_joint"]), kept, strict=True):
        np.testing.assert_array_equal(array, before)
    assert envs.action_masks().any(axis=1).all()


def test_every_trace_once_earns_what_sampling_says() -> None:
    """One environment per trace, pinned: the exact posterior's paths earn their log joint."""
    problem = make_problem()
    M = problem.chain.num_traces
    rng = np.random.default_rng(0)
    paths = sample_paths(problem, ExactAgent().fit(problem, rng), rng)
    envs = TraceInferenceVectorEnv(problem, M, autoreset_mode="SameStep", floor=-1e6)
    _, info = envs.reset(options={"trace_id": problem.trace_ids})
    assert info["trace_id"].tolist() == list(problem.trace_ids)
    lengths = np.diff(problem.chain.offsets)
    earned, running = np.zeros(M), np.ones(M, dtype=bool)
    for t in range(lengths.max()):
        lines = np.minimum(problem.chain.offsets[:-1] + t, problem.chain.offsets[1:] - 1)
        _, rewards, terminated, _, info = envs.step(np.where(running, paths.latent_N[lines], 0))
        earned += np.where(running, rewards, 0.0)
        over = terminated & running
        np.testing.assert_array_equal(over, lengths == t + 1)
        if over.any():
            final = info["final_info"]
            np.testing.assert_allclose(final["log_joint"][over], paths.log_joint_M[over])
            np.testing.assert_allclose(final["gap"][over], (problem.log_evidence_M - paths.log_joint_M)[over])
        running &= ~over
    np.testing.assert_allclose(earned, paths.log_joint_M)


def test_masks_agree_with_the_infos() -> None:
    envs = TraceInferenceVectorEnv(make_problem(), 5)
    _, info = envs.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        np.testing.assert_array_equal(envs.action_masks(), info["action_mask"])
        *_, info = envs.step(rng.integers(-1, K + 1, size=5))


@pytest.mark.parametrize("observation", ["features", "dict"])
def test_some_are_reset_with_a_mask_when_autoreset_is_disabled(observation: Any) -> None:
    problem = make_problem()
    ours = TraceInferenceVectorEnv(problem, 4, autoreset_mode="Disabled", observation=observation)
    theirs = sync(problem, 4, AutoresetMode.DISABLED, observation=observation)
    rng = np.random.default_rng(0)
    assert data_equivalence(ours.reset(seed=2), theirs.reset(seed=2), exact=True)
    for _ in range(60):
        actions = rng.integers(-1, K + 1, size=4)
        returned = [env.step(actions) for env in (ours, theirs)]
        assert data_equivalence(*returned, exact=True)
        terminated = returned[0][2]
        if terminated.any():
            with pytest.raises(gym.error.ResetNeeded, match="reset_mask"):
                ours.step(actions)
            returned = [env.reset(options={"reset_mask": terminated.copy()}) for env in (ours, theirs)]
            assert data_equivalence(*returned, exact=True)


def test_render_is_that_of_the_single_environments() -> None:
    problem = make_problem(texts=True)
    ours = TraceInferenceVectorEnv(problem, 3, render_mode="ansi")
    theirs = sync(problem, 3, AutoresetMode.NEXT_STEP, render_mode="ansi")
    rng = np.random.default_rng(0)
    for env in (ours, theirs):
        env.reset(seed=0)
    for _ in range(30):
        assert ours.render() == theirs.render()
        actions = rng.integers(-1, K + 1, size=3)
        for env in (ours, theirs):
            env.step(actions)


def test_an_action_out_of_range_is_illegal_and_leaves_the_others_alone() -> None:
    problem = make_problem()
    envs, others = TraceInferenceVectorEnv(problem, 3), TraceInferenceVectorEnv(problem, 3)
    returned = []
    for env, actions in ((envs, [0, K, 0]), (others, [0, 0, 0])):
        env.reset(seed=0, options={"trace_id": "trace 1"})
        returned.append(env.step(np.array(actions)))
    wrong, right = returned
    assert wrong[4]["illegal_action"].tolist() == [False, True, False]
    assert not right[4]["illegal_action"].any()
    assert (wrong[1][1], wrong[4]["log_joint"][1]) == (-100.0, -np.inf)
    for mine, other in zip((*wrong[:4], wrong[4]["log_joint"]), (*right[:4], right[4]["log_joint"]), strict=True):
        np.testing.assert_array_equal(mine[[0, 2]], other[[0, 2]])


def test_a_step_that_is_refused_changes_nothing() -> None:
    problem = make_problem()
    ours, theirs = TraceInferenceVectorEnv(problem, 3), TraceInferenceVectorEnv(problem, 3)
    with pytest.raises(gym.error.ResetNeeded):
        ours.step(np.zeros(3, dtype=np.int64))
    for env in (ours, theirs):
        env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match="one for each of 3"):
        ours.step(np.zeros(2, dtype=np.int64))
    assert data_equivalence(ours.step(np.zeros(3)), theirs.step(np.zeros(3)), exact=True)


def test_wrong_options_are_refused() -> None:
    problem = make_problem()
    with pytest.raises(ConfigError, match="num_envs=0"):
        TraceInferenceVectorEnv(problem, 0)
    with pytest.raises(ConfigError, match=r"'sometimes'.*'NextStep', 'SameStep', 'Disabled'"):
        TraceInferenceVectorEnv(problem, 1, autoreset_mode="sometimes")
    with pytest.raises(ConfigError, match="floor=nan"):
        TraceInferenceVectorEnv(problem, 1, floor=float("nan"))
    envs = TraceInferenceVectorEnv(problem, 2)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'trace 1'"):
        envs.reset(options={"trace_id": ["trace 0", "trase 1"]})
    with pytest.raises(ConfigError, match="3 trace ids for 2"):
        envs.reset(options={"trace_id": ["trace 0"] * 3})
    with pytest.raises(ConfigError, match="1 seeds for 2"):
        envs.reset(seed=[1])
    with pytest.raises(ConfigError, match="unknown reset option 'task_id'"):
        envs.reset(options={"task_id": "trace 0"})
    envs.reset()
    with pytest.raises(ConfigError, match=r"reset_mask must be bool of shape \(2,\)"):
        envs.reset(options={"reset_mask": np.array([1, 0])})
