"""Inference agents of stable-baselines3 and tianshou: how much of the gap to the exact posterior they close."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor

from ra3gym.abstractions.inference.posterior import LatentChain
from ra3gym.abstractions.inference.problem import NO_LATENT, InferenceProblem, problem_from_chain
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.agents.mid_training.inference.agents import make_inference_agent
from ra3gym.agents.mid_training.inference.conditioning import conditioned, global_seeds
from ra3gym.agents.mid_training.inference.library_agents import LIBRARY_ALGORITHMS, LearnedPosterior
from ra3gym.agents.mid_training.inference.posteriors import ExactAgent, UniformPosterior, ViterbiAgent, elbo_gap
from ra3gym.agents.sb3 import as_vec_env
from ra3gym.agents.sb3.inference import EntropyInReturn, SB3Agent
from ra3gym.agents.tianshou import as_vector_env
from ra3gym.agents.tianshou.inference import EntropyHook, TianshouAgent
from ra3gym.envs.trace_inference.vector_env import TraceInferenceVectorEnv
from ra3gym.errors import ConfigError, UnknownNameError

K, SYMBOLS = 5, 12
PRIOR = StickyPrior(0.7, K)


def planted_traces(num_traces: int, seed: int) -> list[np.ndarray]:
    """Emissions (T, K) of traces of 6 to 12 lines drawn from a hidden Markov model; a line is one of 12 symbols."""
    rng = np.random.default_rng(seed)
    symbol_KV = rng.dirichlet(np.full(SYMBOLS, 0.3), size=K) + 1e-4
    symbol_KV /= symbol_KV.sum(axis=1, keepdims=True)
    traces = []
    for length in rng.integers(6, 13, size=num_traces):
        latent, rows = int(rng.integers(K)), []
        for t in range(length):
            if t and rng.random() > PRIOR.alpha:
                latent = int(rng.integers(K))
            rows.append(np.log(symbol_KV[:, rng.choice(SYMBOLS, p=symbol_KV[latent])]))
        traces.append(np.array(rows))
    return traces


@pytest.fixture(scope="module")
def problem() -> InferenceProblem:
    """24 traces of a planted model; a line costs 30 nats whatever its latent, as lines of code do."""
    return problem_from_chain(LatentChain.under(PRIOR, [rows - 30.0 for rows in planted_traces(24, seed=0)]))


def closed(problem: InferenceProblem, posterior: Any) -> float:
    """The part of the gap between the uniform posterior and the exact one that is closed; 1 at the exact one."""
    gap = elbo_gap(problem, posterior, np.random.default_rng(1), samples=16)
    return 1.0 - gap / elbo_gap(problem, UniformPosterior(problem.num_latents), np.random.default_rng(1), samples=16)


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("sb3:PPO", {"steps": 15_000}, 0.9),
        ("tianshou:PPO", {"steps": 12_288, "learning_rate": 3e-3}, 0.9),
        ("tianshou:DiscreteSAC", {"steps": 6_400}, 0.9),
        ("sb3contrib:MaskablePPO", {"steps": 10_000}, 0.8),
        ("sb3contrib:TRPO", {"steps": 15_000}, 0.8),
        ("sb3:A2C", {"steps": 15_000}, 0.7),
    ],
)
def test_policies_close_the_gap(problem: InferenceProblem, name: str, options: Any, least: float) -> None:
    posterior = make_inference_agent(name, **options).fit(problem, np.random.default_rng(0))
    assert least <= closed(problem, posterior) <= 1.0 + 1e-6


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sb3:DQN", {"steps": 10_000}),
        ("tianshou:DQN", {"steps": 10_000}),
        ("sb3contrib:QRDQN", {"steps": 10_000}),
    ],
)
def test_value_learners_find_a_path_nearly_as_likely_as_the_likeliest(
    problem: InferenceProblem, name: str, options: Any
) -> None:
    posterior = make_inference_agent(name, **options).fit(problem, np.random.default_rng(0))
    lines = problem.chain.offsets[:-1]
    certain = np.exp(posterior.log_probs(lines, np.full(len(lines), NO_LATENT)))
    np.testing.assert_array_equal(np.sort(certain, axis=1)[:, -1], 1.0)
    np.testing.assert_array_equal(certain.sum(axis=1), 1.0)
    rng = np.random.default_rng(1)
    likeliest = closed(problem, ViterbiAgent().fit(problem, rng))
    assert likeliest - 0.15 < closed(problem, posterior) <= likeliest


@pytest.mark.parametrize("name", ["sb3:PPO", "sb3:DQN", "tianshou:PPO", "tianshou:DiscreteSAC", "tianshou:DQN"])
def test_a_seed_decides_and_global_generators_are_left_alone(problem: InferenceProblem, name: str) -> None:
    agent = make_inference_agent(name, steps=1_000, num_envs=16)
    if name == "sb3:DQN":
        agent = replace(agent, options={"learning_starts": 200})
    lines = problem.chain.offsets[:-1]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    first, again, other = (
        agent.fit(problem, np.random.default_rng(seed)).log_probs(lines, np.full(len(lines), NO_LATENT))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]


def test_they_are_quiet(problem: InferenceProblem, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("sb3:PPO", "sb3contrib:MaskablePPO", "tianshou:PPO", "tianshou:DiscreteSAC"):
        make_inference_agent(name, steps=200, num_envs=8).fit(problem, np.random.default_rng(0))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["sb3:PPO", "sb3:DQN", "sb3contrib:MaskablePPO", "tianshou:PPO", "tianshou:DQN"])
def test_impossible_latents_get_nothing(name: str) -> None:
    rng = np.random.default_rng(2)
    emissions = []
    for rows in planted_traces(6, seed=1):
        rows[np.arange(len(rows)), rng.integers(K, size=len(rows))] = -np.inf
        emissions.append(rows)
    problem = problem_from_chain(LatentChain.under(PRIOR, emissions))
    posterior = make_inference_agent(name, steps=500, num_envs=8).fit(problem, np.random.default_rng(0))
    lines = np.arange(len(problem.chain.row_N))
    log_q_BK = posterior.log_probs(lines, np.where(np.isin(lines, problem.chain.offsets), NO_LATENT, 0))
    np.testing.assert_allclose(np.exp(log_q_BK).sum(axis=1), 1.0)
    assert np.isneginf(log_q_BK[np.isneginf(problem.chain.log_emission_UK)]).all()
    assert np.isfinite(elbo_gap(problem, posterior, rng))


@given(seed=st.integers(0, 2**16), offset=st.floats(-200.0, 0.0), impossible=st.booleans())
@settings(max_examples=25, deadline=None)
def test_conditioning_keeps_the_posterior(seed: int, offset: float, impossible: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(scale=3.0, size=(6, 3)) + offset
    if impossible:
        rows[np.arange(6), rng.integers(3, size=6)] = -np.inf
    problem = problem_from_chain(LatentChain.under(StickyPrior(0.6, 3), [rows[:2], rows[2:]]))
    easier = conditioned(problem, floor=-60.0)
    lines, previous = np.arange(6), np.array([NO_LATENT, 1, NO_LATENT, 0, 2, 1])
    exact = ExactAgent().fit(problem, rng).log_probs(lines, previous)
    np.testing.assert_allclose(ExactAgent().fit(easier, rng).log_probs(lines, previous), exact, atol=1e-9)
    centered = np.exp(easier.chain.log_emission_UK).mean(axis=1)
    np.testing.assert_allclose(centered, 1.0)
    np.testing.assert_allclose(easier.feature_NF.mean(axis=0), 0.0, atol=1e-5)


def test_the_floor_raises_what_is_unlikely_and_leaves_the_impossible() -> None:
    rows = np.log(np.array([[1.0, 1e-30, 0.0, 1.0]]), where=[[True, True, False, True]], out=np.full((1, 4), -np.inf))
    problem = problem_from_chain(LatentChain.under(StickyPrior(0.6, 4), [rows]))
    found = conditioned(problem, floor=-20.0).chain.log_emission_UK
    np.testing.assert_allclose(found, [[np.log(2.0), -20.0, -np.inf, np.log(2.0)]])


def unpaid(problem: InferenceProblem) -> Any:
    """Traces whose steps pay nothing, so that what is stored as reward is the entropy's part."""
    vector_env = TraceInferenceVectorEnv(problem, 4, autoreset_mode=AutoresetMode.SAME_STEP)
    return gym.wrappers.vector.TransformReward(vector_env, np.zeros_like)


def test_entropy_is_in_the_return_of_sb3(problem: InferenceProblem) -> None:
    model = stable_baselines3.PPO("MlpPolicy", as_vec_env(unpaid(problem)), n_steps=8, batch_size=32, seed=0)
    model.learn(8 * 4, callback=EntropyInReturn(0.5))
    stored = model.rollout_buffer  # after training its log-probabilities are flat, environment by environment
    np.testing.assert_allclose(stored.rewards, -0.5 * stored.log_probs.reshape(4, 8).T, rtol=1e-6)
    assert (stored.rewards > 0.0).all()


def test_entropy_is_in_the_return_of_tianshou(problem: InferenceProblem) -> None:
    net = Net(state_shape=problem.observation_size, hidden_sizes=(8,))
    actor = DiscreteActor(preprocess_net=net, action_shape=K, softmax_output=False)
    policy = DiscreteActorPolicy(actor=actor, action_space=gym.spaces.Discrete(K))
    buffer = VectorReplayBuffer(400, 4)
    collector = Collector(policy, as_vector_env(unpaid(problem)), buffer, on_step_hook=EntropyHook(0.5))
    collector.reset()
    collector.collect(n_step=40)
    stored = buffer.sample_indices(0)
    logits = actor(buffer.obs[stored])[0]
    log_q = torch.distributions.Categorical(logits=logits).log_prob(torch.as_tensor(buffer.act[stored]))
    np.testing.assert_allclose(buffer.rew[stored], -0.5 * log_q.detach().numpy(), rtol=1e-5)


def test_a_posterior_of_scores_is_normalized_over_possible_latents() -> None:
    rows = np.array([[0.0, -np.inf, 0.0], [0.0, 0.0, 0.0]])
    problem = problem_from_chain(LatentChain.under(StickyPrior(0.6, 3), [rows]))
    lines, previous = np.array([0, 1]), np.array([NO_LATENT, 0])

    def scores(observation_BD: Any) -> np.ndarray:
        return np.array([[1.0, 5.0, 1.0], [0.0, 2.0, 1.0]])

    soft = np.exp(LearnedPosterior(problem, scores, greedy=False).log_probs(lines, previous))
    np.testing.assert_allclose(soft[0], [0.5, 0.0, 0.5])
    np.testing.assert_allclose(soft[1], np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum())
    hard = np.exp(LearnedPosterior(problem, scores, greedy=True).log_probs(lines, previous))
    np.testing.assert_array_equal(hard, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def test_global_seeds_are_put_back_after_an_error() -> None:
    before = torch.get_rng_state(), random.getstate()
    drawn = []

    def draw_and_stop() -> None:
        with global_seeds(3):
            drawn.append((torch.rand(1), random.random()))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        draw_and_stop()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    with global_seeds(3):
        assert [(torch.rand(1), random.random())] == drawn


def test_names() -> None:
    for library, algorithms in LIBRARY_ALGORITHMS.items():
        for algorithm in algorithms:
            agent: Any = make_inference_agent(f"{library}:{algorithm}", steps=10)
            assert (agent.algorithm, agent.steps) == (algorithm, 10)
    with pytest.raises(UnknownNameError, match=r"sb3:PPO.*tianshou:PPO.*Did you mean 'sb3:PPO'"):
        make_inference_agent("sb3:PP0")
    with pytest.raises(UnknownNameError):
        make_inference_agent("tianshou")
    with pytest.raises(ConfigError, match="no option 'step'; it has floor"):
        make_inference_agent("sb3:PPO", step=3)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps=0"):
        SB3Agent(steps=0)
    with pytest.raises(ConfigError, match=r"floor=1\.0"):
        TianshouAgent(floor=1.0)
    with pytest.raises(UnknownNameError, match="DiscreteSAC"):
        TianshouAgent("SAC")
    with pytest.raises(UnknownNameError, match="MaskablePPO"):
        SB3Agent("PP0")


def test_a_class_of_ones_own_serves_unless_it_cannot(problem: InferenceProblem) -> None:
    class MyPPO(stable_baselines3.PPO):
        """PPO under another name."""

    rng = np.random.default_rng(0)
    mine = SB3Agent(MyPPO, steps=500, num_envs=8).fit(problem, rng)
    assert closed(problem, mine) < 1.0
    with pytest.raises(ConfigError, match="take PPO"):
        SB3Agent(sb3_contrib.RecurrentPPO)
    with pytest.raises(ConfigError, match="discrete"):
        SB3Agent(stable_baselines3.SAC)
