"""`ra3gym/TraceInference-v0`: Gymnasium's contract, and rewards that are log probabilities."""

from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import ra3gym
from ra3gym import lm
from ra3gym.abstractions.inference.posterior import LatentChain, viterbi_paths
from ra3gym.abstractions.inference.problem import NO_LATENT, InferenceProblem, problem_from_chain
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.agents.mid_training.inference.posteriors import ExactAgent, PathPosterior, ViterbiAgent, sample_paths
from ra3gym.envs.trace_inference.env import TraceInferenceEnv
from ra3gym.envs.trace_inference.problem import TraceInferenceConfig, load_problem
from ra3gym.errors import ConfigError, DataError, ModelError, UnknownNameError
from ra3gym.tasks.idioms import IdiomsDomain

ID = "ra3gym/TraceInference-v0"
K = 4
LENGTHS = (5, 1, 3, 8)
VARIANTS: list[dict[str, Any]] = [{}, {"observation": "dict"}]


def make_problem(seed: int = 0, impossible: float = 0.0, alpha: float = 0.6) -> InferenceProblem:
    """Random emissions, of which a share is `-inf`; latent 0 always stays possible."""
    rng = np.random.default_rng(seed)
    emissions = [np.log(rng.dirichlet(np.ones(K), size=length)) for length in LENGTHS]
    for emission in emissions:
        emission[:, 1:][rng.random((len(emission), K - 1)) < impossible] = -np.inf
    chain = LatentChain.under(StickyPrior(alpha, K), emissions)
    return problem_from_chain(chain, ["five", "one", "three", "eight"])


def walk(env: TraceInferenceEnv, latents: list[int], **reset: Any) -> tuple[list[float], dict[str, Any]]:
    """Take these actions from a reset on: the rewards, and the last info."""
    env.reset(**reset)
    steps = [env.step(np.int64(latent)) for latent in latents]
    assert [step[2] for step in steps] == [False] * (len(steps) - 1) + [True]
    assert not any(step[3] for step in steps)
    return [step[1] for step in steps], steps[-1][4]


# Gymnasium's contract


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gymnasium_and_stable_baselines3_find_nothing_to_say(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID, problem=make_problem(impossible=0.3), **options)
        check_env(env.unwrapped)
        check_env_sb3(env.unwrapped)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_default_environment_is_clean_and_made_of_the_embedded_model(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID, **options)
        check_env(env.unwrapped)
    problem = env.unwrapped.problem
    assert env.action_space.n == 48
    assert problem.chain.num_traces == 32
    assert problem.trace_ids[0] == "idioms/0/train/0"
    assert problem.line_texts == tuple(line for trace in IdiomsDomain().traces(32) for line in trace.steps)
    # Two hidden states of 64 numbers, the previous latent, and position.
    assert problem.observation_size == 128 + 48 + 2
    assert (problem.log_evidence_M < 0.0).all()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_spec_survives_json_and_pickle(tiny_model_folder: Path, options: dict[str, Any]) -> None:
    given = {"model": str(tiny_model_folder), "num_traces": 3, "alpha": 0.5, "context_lines": 2, **options}
    env = gym.make(ID, **given)
    assert env.spec is not None
    json.dumps(env.spec.kwargs)
    for spec in (gym.envs.registration.EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):
        again = gym.make(spec)
        assert spec.kwargs == env.spec.kwargs
        assert again.observation_space == env.observation_space
        assert data_equivalence(again.reset(seed=3), env.reset(seed=3), exact=True)
        assert data_equivalence(again.step(np.int64(1)), env.step(np.int64(1)), exact=True)


def test_registering_twice_changes_nothing() -> None:
    spec = gym.spec(ID)
    ra3gym.register_envs()
    assert gym.spec(ID) is spec


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_same_seed_same_episodes(options: dict[str, Any]) -> None:
    def episodes(seed: int) -> list[Any]:
        env = TraceInferenceEnv(make_problem(), **options)
        env.action_space.seed(seed)
        trail: list[Any] = [env.reset(seed=seed)]
        for _ in range(60):
            step = env.step(env.action_space.sample(trail[-1][-1]["action_mask"]))
            trail.append(step if not step[2] else env.reset())
        return trail

    assert data_equivalence(episodes(1), episodes(1), exact=True)
    assert not data_equivalence(episodes(1), episodes(2))


def test_stable_baselines3_learns_from_it_with_masks() -> None:
    env = TraceInferenceEnv(make_problem(impossible=0.5))
    model = MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=32, seed=0).learn(128)
    obs, info = env.reset(seed=0)
    action, _ = model.predict(obs, action_masks=env.action_masks())
    assert info["action_mask"][action] == 1


# Rewards are log probabilities


@given(seed=st.integers(0, 1000), trace=st.integers(0, 3), impossible=st.sampled_from([0.0, 0.3]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_rewards_observations_and_sums_are_those_of_the_problem(
    seed: int, trace: int, impossible: float, data: st.DataObject
) -> None:
    problem = make_problem(seed, impossible)
    env = TraceInferenceEnv(problem, floor=-1e6)
    start, end = problem.chain.offsets[trace : trace + 2]
    observation, info = env.reset(options={"trace_id": problem.trace_ids[trace]})
    previous, total = NO_LATENT, 0.0
    for line in range(start, end):
        assert info["line"] == line - start
        previous_1 = np.array([previous])
        np.testing.assert_array_equal(observation, problem.observations(np.array([line]), previous_1)[0])
        reward_K = problem.rewards(np.array([line]), previous_1)[0]
        np.testing.assert_array_equal(info["action_mask"], np.isfinite(reward_K))
        np.testing.assert_array_equal(env.action_masks(), np.isfinite(reward_K))
        previous = data.draw(st.sampled_from(np.flatnonzero(np.isfinite(reward_K)).tolist()))
        observation, reward, terminated, truncated, info = env.step(np.int64(previous))
        total += reward
        assert reward == reward_K[previous]
        assert (terminated, truncated) == (line + 1 == end, False)
        assert info["log_joint"] == pytest.approx(total, rel=1e-12)
        assert info["duration"] == {"lines": 1}
        assert ("gap" in info) == terminated
        assert observation in env.observation_space
    assert info["evidence"] == problem.log_evidence_M[trace]
    assert info["gap"] == info["evidence"] - info["log_joint"] >= -1e-9
    features = problem.feature_NF.shape[1]
    assert observation.tolist() == [0.0] * features + [float(k == previous) for k in range(K)] + [1.0, 0.0]


@pytest.mark.parametrize("agent", [ExactAgent(), ViterbiAgent()], ids=["exact", "viterbi"])
def test_agents_earn_in_it_what_sampling_says(agent: Any) -> None:
    problem = make_problem()
    env = TraceInferenceEnv(problem)
    rng = np.random.default_rng(1)
    paths = sample_paths(problem, agent.fit(problem, rng), rng)
    for m, trace_id in enumerate(problem.trace_ids):
        lines = slice(*problem.chain.offsets[m : m + 2])
        rewards, info = walk(env, paths.latent_N[lines].tolist(), options={"trace_id": trace_id})
        assert sum(rewards) == pytest.approx(paths.log_joint_M[m])
        assert info["log_joint"] == pytest.approx(paths.log_joint_M[m])


def test_an_exact_agents_gap_is_its_entropy() -> None:
    """`gap + log q(path)` is 0 on every path: the return with entropy at temperature 1 is the evidence."""
    problem = make_problem()
    env = TraceInferenceEnv(problem)
    rng = np.random.default_rng(0)
    exact: PathPosterior = ExactAgent().fit(problem, rng)
    for _ in range(30):
        env.reset(seed=int(rng.integers(1 << 30)))
        line, previous, log_q, done, info = env._line, NO_LATENT, 0.0, False, {}
        while not done:
            log_q_K = exact.log_probs(np.array([line]), np.array([previous]))[0]
            previous = int(rng.choice(K, p=np.exp(log_q_K)))
            log_q += log_q_K[previous]
            _, _, done, _, info = env.step(np.int64(previous))
            line += 1
        assert info["gap"] + log_q == pytest.approx(0.0, abs=1e-10)


def test_no_path_earns_more_than_the_viterbi_path() -> None:
    problem = make_problem()
    env = TraceInferenceEnv(problem)
    best, _ = viterbi_paths(problem.chain)
    rewards, _ = walk(env, best[:5].tolist(), options={"trace_id": "five"})
    for seed in range(200):
        others = np.random.default_rng(seed).integers(K, size=5).tolist()
        assert sum(walk(env, others, options={"trace_id": "five"})[0]) <= sum(rewards) + 1e-9


# Illegal latents


def test_impossible_latent_is_masked_pays_the_floor_and_spoils_the_joint() -> None:
    emissions = np.log([[0.5, 0.5], [0.2, 0.8], [0.3, 0.7]])
    emissions[1, 1] = -np.inf
    problem = problem_from_chain(LatentChain.under(StickyPrior(0.5, 2), [emissions]))
    env = TraceInferenceEnv(problem, floor=-50.0, observation="dict")
    env.reset()
    observation, _, _, _, info = env.step(np.int64(1))
    assert observation["mask"].tolist() == info["action_mask"].tolist() == env.action_masks().tolist() == [1, 0]
    assert not info["illegal_action"]
    _, reward, _, _, info = env.step(np.int64(1))
    assert (reward, info["log_joint"], info["illegal_action"]) == (-50.0, -np.inf, True)
    assert info["action_mask"].tolist() == [1, 1]
    # The illegal latent is the previous latent now, and the prior prefers to keep it.
    observation, reward, terminated, _, info = env.step(np.int64(1))
    assert reward == pytest.approx(np.log(0.7) + np.log(0.75))
    assert (terminated, info["gap"]) == (True, np.inf)
    assert observation["mask"].tolist() == [1, 1]


@pytest.mark.parametrize("wrong", [-1, 2, 1 << 40])
def test_an_action_out_of_range_is_illegal_and_leaves_no_previous_latent(
    wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    emissions = np.log([[0.5, 0.5], [0.2, 0.8], [0.3, 0.7]])
    problem = problem_from_chain(LatentChain.under(StickyPrior(0.5, 2), [emissions]))
    env = TraceInferenceEnv(problem, floor=-50.0, render_mode="ansi")
    first, _ = env.reset()
    env.step(np.int64(1))
    features = problem.feature_NF.shape[1]
    observation, reward, terminated, _, info = env.step(np.int64(wrong))
    assert (reward, terminated, info["log_joint"], info["illegal_action"]) == (-50.0, False, -np.inf, True)
    assert observation[features : features + 2].tolist() == first[features : features + 2].tolist() == [0.0, 0.0]
    assert info["action_mask"].tolist() == [1, 1]
    assert env.render().splitlines()[1:] == ["z1 | line 0", " ? | line 1", " . | line 2"]
    # There is no previous latent, so the prior is that of a first line.
    _, reward, terminated, _, info = env.step(np.int64(1))
    assert reward == pytest.approx(np.log(0.7) + np.log(0.5))
    assert (terminated, info["gap"], info["illegal_action"]) == (True, np.inf, False)
    env.reset()
    for _ in range(3):
        observation, reward, terminated, _, info = env.step(np.int64(wrong))
        assert observation in env.observation_space
    assert observation.tolist() == [0.0] * (features + 2) + [1.0, 0.0]
    assert (reward, terminated) == (-50.0, True)


def test_reward_of_an_unlikely_line_is_raised_to_the_floor_but_its_joint_is_not() -> None:
    problem = problem_from_chain(LatentChain.under(StickyPrior(0.5, 2), [np.array([[-300.0, -1.0]])]))
    rewards, info = walk(TraceInferenceEnv(problem), [0])
    assert rewards == [-100.0]
    assert info["log_joint"] == pytest.approx(-300.0 + np.log(0.5))


def test_hard_zeros_of_a_prior_are_illegal_and_a_dead_end_opens_the_mask() -> None:
    """Latent 2 is never drawn afresh; with keep = 1 a wrong first latent leaves nothing legal on the second line."""
    chain = LatentChain(
        log_emission_UK=np.array([[-1.0, -1.0, -1.0], [-1.0, -np.inf, -1.0]]),
        row_N=np.array([0, 1]),
        keep_N=np.ones(2),
        fresh_PK=np.array([[0.5, 0.5, 0.0]]),
        fresh_row_M=np.array([0]),
        offsets=np.array([0, 2]),
    )
    env = TraceInferenceEnv(problem_from_chain(chain))
    assert env.reset()[1]["action_mask"].tolist() == [1, 1, 0]
    assert env.step(np.int64(0))[4]["action_mask"].tolist() == [1, 0, 0]
    env.reset()
    assert env.step(np.int64(1))[4]["action_mask"].tolist() == [1, 1, 1]
    assert env.step(np.int64(0))[1] == -100.0


# Choosing and refusing


def test_pinned_and_random_traces() -> None:
    env = TraceInferenceEnv(make_problem())
    env.reset(seed=0)
    assert {env.reset()[1]["trace_id"] for _ in range(60)} == set(env.trace_ids) == {"five", "one", "three", "eight"}
    assert env.reset(options={"trace_id": "three"})[1]["trace_id"] == "three"


def test_unknown_trace_and_option_name_the_way_out() -> None:
    env = TraceInferenceEnv(make_problem())
    with pytest.raises(UnknownNameError, match=r"'eigth'.*Did you mean 'eight'.*4 traces.*trace_ids"):
        env.reset(options={"trace_id": "eigth"})
    with pytest.raises(UnknownNameError, match=r"\['eight'\].*Did you mean 'eight'"):
        env.reset(options={"trace_id": ["eight"]})
    with pytest.raises(ConfigError, match=r"'task_id'.*'trace_id'"):
        env.reset(options={"task_id": "eight"})


def test_step_outside_an_episode_is_refused() -> None:
    env = TraceInferenceEnv(make_problem())
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))
    env.reset(options={"trace_id": "one"})
    env.step(np.int64(0))
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation": "hidden"}, "'features', 'dict'"),
        ({"floor": -np.inf}, "floor=-inf"),
        ({"render_mode": "human"}, "None or 'ansi'"),
        ({"problem": None, "num_traces": 0}, "num_traces=0"),
        ({"problem": None, "num_traces": None}, "without end"),
        ({"problem": None, "num_traces": 2, "alpha": 1.0}, r"alpha=1\.0"),
        ({"problem": None, "num_traces": 2, "switch_penalty": -0.1}, r"penalty=-0\.1"),
        ({"problem": None, "num_traces": 2, "context_lines": -1}, "context_lines=-1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TraceInferenceEnv(**{"problem": make_problem(), **options})


def test_problems_without_a_posterior_are_refused() -> None:
    nowhere = np.full((2, 2), -1.0)
    nowhere[1] = -np.inf
    prior = StickyPrior(0.5, 2)
    with pytest.raises(DataError, match=r"'b'.*probability 0"):
        TraceInferenceEnv(problem_from_chain(LatentChain.under(prior, [np.zeros((1, 2)), nowhere]), ["a", "b"]))
    with pytest.raises(DataError, match=r"row 0.*NaN"):
        LatentChain.under(prior, [np.array([[np.nan, 0.0]])])
    with pytest.raises(ConfigError, match="at least 2 latents"):
        StickyPrior(0.5, 1)
    with pytest.raises(DataError, match="texts"):
        replace(make_problem(), line_texts=("one",))


def test_render_shows_lines_after_their_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    prior = StickyPrior(0.5, 2)
    problem = problem_from_chain(LatentChain.under(prior, [np.log(np.full((2, 2), 0.5))]), ["t"])
    env = TraceInferenceEnv(replace(problem, line_texts=("    y = x\n", "    return y\n")), render_mode="ansi")
    _, info = env.reset()
    assert info["line"] == "    y = x\n"
    assert env.render() == "# t: 0 of 2 lines, log joint 0.00 nats\n . |     y = x\n . |     return y\n"
    assert env.step(np.int64(1))[4]["line"] == "    return y\n"
    assert env.step(np.int64(0))[4]["line"] == ""
    assert env.render() == ("# t: 2 of 2 lines, log joint -3.47 nats, gap 2.08\nz1 |     y = x\nz0 |     return y\n")


# Problems by name


def test_a_switch_penalty_gives_the_prior_that_it_means(tiny_model_folder: Path) -> None:
    penalty = StickyPrior(0.8, 4).switch_penalty
    named = {"model": str(tiny_model_folder), "num_traces": 2}
    by_penalty, by_alpha = (
        load_problem(TraceInferenceConfig(**named, switch_penalty=penalty)),
        load_problem(TraceInferenceConfig(**named, alpha=0.8)),
    )
    np.testing.assert_allclose(by_penalty.log_evidence_M, by_alpha.log_evidence_M)


def test_problem_by_name_is_built_once_until_the_folder_changes(tmp_path: Path, tiny_model_folder: Path) -> None:
    loaded = lm.load(tiny_model_folder)
    lm.save(loaded.model, loaded.tokenizer, tmp_path / "model")

    def build() -> InferenceProblem:
        return load_problem(TraceInferenceConfig(model=tmp_path / "model", num_traces=2))

    first = build()
    assert build() is first
    with_noise = lm.tiny_llama(loaded.tokenizer, hidden=16, layers=1, heads=2, seed=5)
    lm.save(with_noise, loaded.tokenizer, tmp_path / "model")
    assert (build().log_evidence_M != first.log_evidence_M).all()


def test_task_sets_give_their_canonical_solutions(tmp_path: Path, tiny_model_folder: Path) -> None:
    solved = {
        "task_id": "one",
        "prompt": "def g(a, b):\n",
        "entry_point": "g",
        "inputs": [[1, 2]],
        "outputs": [3],
        "canonical_solution": "    c = a + b\n    return c\n",
    }
    unsolved = {key: value for key, value in solved.items() if key != "canonical_solution"} | {"task_id": "two"}
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps(solved) + "\n" + json.dumps(unsolved) + "\n")
    problem = load_problem(TraceInferenceConfig(model=tiny_model_folder, traces=f"jsonl:{file}"))
    assert problem.trace_ids == ("one",)
    assert problem.line_texts == ("    c = a + b\n", "    return c\n")
    file.write_text(json.dumps(unsolved) + "\n")
    with pytest.raises(DataError, match="no expert trace"):
        load_problem(TraceInferenceConfig(model=tiny_model_folder, traces=f"jsonl:{file}"))


def test_model_without_latents_is_refused(tiny_model_folder: Path) -> None:
    plain = lm.train_tokenizer(["def f(x):\n    return x\n"], vocab_size=270)
    model = lm.tiny_llama(plain, hidden=16, layers=1, heads=2, seed=0)
    with pytest.raises(ModelError, match=r"0 latent tokens.*add_latents"):
        TraceInferenceEnv(model=lm.LoadedModel(model, plain), num_traces=2)
