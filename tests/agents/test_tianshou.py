"""The tianshou adapter: what tianshou's own vector environment returns, from arrays; its algorithms on it; masks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tianshou.algorithm.algorithm_base import policy_within_training_step
from tianshou.algorithm.modelfree.discrete_sac import DiscreteSAC, DiscreteSACPolicy
from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
from tianshou.algorithm.modelfree.ppo import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams, OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

from ra3gym.abstractions.inference.posterior import LatentChain
from ra3gym.abstractions.inference.problem import InferenceProblem, problem_from_chain
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.agents.tianshou import DecoderPriorActor, GymnasiumVectorEnv, MaskedActor, UnmaskedCritic, as_vector_env
from ra3gym.envs.trace_inference.env import TraceInferenceEnv
from ra3gym.envs.trace_inference.vector_env import TraceInferenceVectorEnv
from ra3gym.envs.wrappers import LogprobObservation
from ra3gym.errors import ConfigError

K, N = 4, 5
SAME_STEP, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


@pytest.fixture(scope="module")
def problem() -> InferenceProblem:
    """Every line is impossible under one latent, so that there is something to mask."""
    rng = np.random.default_rng(0)
    emissions = []
    for length in (3, 6, 4):
        log_b = np.log(rng.dirichlet(np.full(K, 0.3), size=length))
        log_b[np.arange(length), rng.integers(K, size=length)] = -np.inf
        emissions.append(log_b)
    return problem_from_chain(LatentChain.under(StickyPrior(0.7, K), emissions))


def trace_envs(problem: InferenceProblem, num_envs: int = N, mode: AutoresetMode = SAME_STEP, **kwargs: Any) -> Any:
    return TraceInferenceVectorEnv(problem, num_envs, autoreset_mode=mode, **kwargs)


def fields(observation: Any) -> dict[str, Any]:
    """Observations as named arrays; tianshou's own vector environment gives arrays of dicts."""
    batch = observation if isinstance(observation, np.ndarray) and observation.dtype != object else Batch(observation)
    return dict(batch.items()) if isinstance(batch, Batch) else {"obs": batch}


def assert_same(ours: Any, theirs: Any) -> None:
    found, expected = fields(ours), fields(theirs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
        assert found[key].dtype == value.dtype


@pytest.mark.parametrize("mode", [SAME_STEP, DISABLED])
@pytest.mark.parametrize("observation", ["features", "dict"])
@pytest.mark.parametrize("arrays", [True, False])
def test_it_walks_as_tianshous_own(
    problem: InferenceProblem, mode: AutoresetMode, observation: Any, arrays: bool
) -> None:
    def single() -> TraceInferenceEnv:
        return TraceInferenceEnv(problem, observation=observation)

    theirs = DummyVectorEnv([single] * N)
    ours = as_vector_env(
        trace_envs(problem, mode=mode, observation=observation)
        if arrays
        else SyncVectorEnv([single] * N, autoreset_mode=mode)
    )
    assert len(ours) == len(theirs) == N
    rng = np.random.default_rng(1)
    seeds = [{"seed": 7 + i} for i in range(N)]
    first = [theirs.reset(i, **seed)[0] for i, seed in enumerate(seeds)]
    ours.seed(7)
    assert_same(ours.reset()[0], np.concatenate(first))
    ended = 0
    for _ in range(40):
        actions = rng.integers(K, size=N)
        found, expected = ours.step(actions, np.arange(N)), theirs.step(actions, np.arange(N))
        assert_same(found[0], expected[0])
        for ours_R, theirs_R in zip(found[1:4], expected[1:4], strict=True):
            np.testing.assert_array_equal(ours_R, theirs_R)
        (done_D,) = np.nonzero(found[2] | found[3])
        if len(done_D):
            ended += len(done_D)
            assert_same(ours.reset(done_D)[0], theirs.reset(done_D)[0])
    assert ended > N


@pytest.mark.parametrize("mode", [SAME_STEP, DISABLED])
def test_some_are_stepped_and_the_others_must_be_reset(problem: InferenceProblem, mode: AutoresetMode) -> None:
    venv = as_vector_env(trace_envs(problem, mode=mode))
    with pytest.raises(gym.error.ResetNeeded, match="0, 1"):
        venv.step(np.zeros(N, dtype=np.int64))
    venv.reset(seed=0)
    ids = np.array([3, 1])
    observation, reward_R, terminated_R, truncated_R, info_R = venv.step(np.array([0, 2]), ids)
    line_R = venv.vector_env.unwrapped._state.line_E[ids]
    np.testing.assert_array_equal(observation, problem.observations(line_R, np.array([0, 2])))
    assert len(reward_R) == len(terminated_R) == len(truncated_R) == len(info_R) == 2
    with pytest.raises(gym.error.ResetNeeded, match=r"\[0, 2, 4\]"):
        venv.step(np.zeros(N, dtype=np.int64))
    for _ in range(20):  # the others end and begin in the background
        _, _, terminated_R, _, _ = venv.step(np.array([0, 2]), ids)
        if terminated_R.any():
            venv.reset(ids[terminated_R])
    venv.reset()
    venv.step(np.zeros(N, dtype=np.int64))
    with pytest.raises(ConfigError, match="give actions"):
        venv.step(None)


def test_resets_of_some_in_the_middle_need_disabled_mode(problem: InferenceProblem) -> None:
    venv = as_vector_env(trace_envs(problem))
    venv.reset(seed=0)
    with pytest.raises(ConfigError, match=r"\[2\] of 5 cannot be reset alone.*AutoresetMode.DISABLED"):
        venv.reset(2)
    venv = as_vector_env(trace_envs(problem, mode=DISABLED))
    venv.reset(seed=0)
    pinned, _ = venv.reset([2, 4], options={"trace_id": "1"})
    first = problem.observations(problem.chain.offsets[[1, 1]], np.array([-1, -1]))
    np.testing.assert_array_equal(pinned, first)
    last, *_ = venv.step(np.zeros(N, dtype=np.int64))
    np.testing.assert_array_equal(
        last[[2, 4]], problem.observations(problem.chain.offsets[[1, 1]] + 1, np.zeros(2, int))
    )


def test_seeding_attributes_rendering_closing(problem: InferenceProblem) -> None:
    venv = as_vector_env(trace_envs(problem, render_mode="ansi"))
    assert venv.seed(3) == [[3 + i] for i in range(N)]
    first, _ = venv.reset()
    venv.seed([3 + i for i in range(N)])
    np.testing.assert_array_equal(venv.reset()[0], first)
    with pytest.raises(ConfigError, match="give one number"):
        venv.seed([1] * N)
    assert venv.action_space == [gym.spaces.Discrete(K)] * N
    assert venv.observation_space[0] == venv.vector_env.single_observation_space
    assert venv.get_env_attr("problem", [1]) == [problem]
    venv.set_env_attr("marked", 3)
    assert venv.get_env_attr("marked", 0) == [3]
    with pytest.raises(ConfigError, match="leave the ids out"):
        venv.set_env_attr("marked", 4, 0)
    assert len(venv.render()) == N
    venv.close()
    venv.close()
    singles = as_vector_env(SyncVectorEnv([lambda: TraceInferenceEnv(problem)] * 2, autoreset_mode=SAME_STEP))
    assert singles.get_env_attr("trace_ids") == [["0", "1", "2"]] * 2


def test_another_autoreset_mode_is_refused_with_the_way_out(problem: InferenceProblem) -> None:
    with pytest.raises(ConfigError, match=r"NEXT_STEP, this adapter needs SAME_STEP or DISABLED"):
        as_vector_env(trace_envs(problem, mode=AutoresetMode.NEXT_STEP))


@pytest.mark.parametrize("mode", [SAME_STEP, DISABLED])
def test_a_collector_stores_whole_episodes(problem: InferenceProblem, mode: AutoresetMode) -> None:
    """By steps and by episodes: each stored episode is one trace, from its first line to its end."""
    venv = as_vector_env(trace_envs(problem, mode=mode))
    venv.seed(0)
    collector = Collector(_policy(problem), venv, VectorReplayBuffer(1000, N))
    collector.reset()
    collector.collect(n_step=20 * N)
    stats = collector.collect(n_episode=7)
    assert stats.n_collected_episodes == 7
    stored = collector.buffer
    ends = np.flatnonzero(stored.terminated)
    assert len(ends) > 10
    chain = problem.chain
    after_last = problem.end_observations(np.arange(K))
    for end in ends:
        latents = [int(stored.act[end])]
        start = end
        while (before := stored.prev(start)[()]) != start:
            start = before
            latents.insert(0, int(stored.act[start]))
        traces = [
            m
            for m in range(chain.num_traces)
            if np.array_equal(stored.obs[start], problem.observations(chain.offsets[m : m + 1], np.array([-1]))[0])
        ]
        assert len(traces) == 1
        assert len(latents) == chain.offsets[traces[0] + 1] - chain.offsets[traces[0]]
        np.testing.assert_array_equal(stored.obs_next[end], after_last[latents[-1]])


def _actor(problem: InferenceProblem) -> DiscreteActor:
    net = Net(state_shape=problem.observation_size, hidden_sizes=(32,))
    return DiscreteActor(preprocess_net=net, action_shape=K, softmax_output=False)


def _critic(problem: InferenceProblem, outputs: int = 1) -> DiscreteCritic:
    return DiscreteCritic(
        preprocess_net=Net(state_shape=problem.observation_size, hidden_sizes=(32,)), last_size=outputs
    )


def _policy(problem: InferenceProblem) -> DiscreteActorPolicy:
    return DiscreteActorPolicy(actor=_actor(problem), action_space=gym.spaces.Discrete(K))


def _algorithm(name: str, problem: InferenceProblem, masked: bool) -> Any:
    actor: Any = MaskedActor(_actor(problem)) if masked else _actor(problem)

    def critic(outputs: int = 1) -> torch.nn.Module:
        return UnmaskedCritic(_critic(problem, outputs)) if masked else _critic(problem, outputs)

    model = Net(state_shape=problem.observation_size, action_shape=K, hidden_sizes=(32,))
    return _algorithm_of(name, actor, critic, model, gym.spaces.Discrete(K))


def _algorithm_of(name: str, actor: Any, critic: Any, model: Net, space: gym.spaces.Discrete) -> Any:
    optim = AdamOptimizerFactory(lr=1e-3)
    if name == "PPO":
        return PPO(policy=DiscreteActorPolicy(actor=actor, action_space=space), critic=critic(), optim=optim)
    if name == "DiscreteSAC":
        return DiscreteSAC(
            policy=DiscreteSACPolicy(actor=actor, action_space=space),
            policy_optim=optim,
            critic=critic(int(space.n)),
            critic_optim=optim,
        )
    policy = DiscreteQLearningPolicy(model=model, action_space=space, eps_training=0.5)
    return DQN(policy=policy, optim=optim, target_update_freq=10)


def _train(name: str, algorithm: Any, collector: Any, steps: int, rollout: int) -> None:
    shared = {
        "training_collector": collector,
        "max_epochs": 1,
        "epoch_num_steps": steps,
        "verbose": False,
        "show_progress": False,
    }
    params = (
        OnPolicyTrainerParams(collection_step_num_env_steps=rollout, update_step_num_repetitions=2, **shared)
        if name == "PPO"
        else OffPolicyTrainerParams(
            collection_step_num_env_steps=rollout // 5, update_step_num_gradient_steps_per_sample=0.1, **shared
        )
    )
    algorithm.run_training(params)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["PPO", "DQN", "DiscreteSAC"])
def test_algorithms_run_unmodified_and_masks_are_kept(problem: InferenceProblem, name: str, masked: bool) -> None:
    venv = as_vector_env(trace_envs(problem, observation="dict" if masked else "features"))
    algorithm = _algorithm(name, problem, masked)
    before = [parameter.detach().clone() for parameter in algorithm.policy.parameters()]
    buffer = VectorReplayBuffer(2000, N)
    collector = Collector(algorithm, venv, buffer, exploration_noise=name == "DQN")
    _train(name, algorithm, collector, 200 * N, 20 * N)
    assert collector.collect_step >= 200 * N
    assert any(not new.equal(old) for new, old in zip(algorithm.policy.parameters(), before, strict=True))
    if masked:
        collector.reset_buffer()
        collector.collect(n_step=40 * N)
        stored = buffer.sample_indices(0)
        assert len(stored) == 40 * N
        assert buffer.obs.mask[stored, buffer.act[stored]].all()
        assert not buffer.obs.mask[stored].all()


@pytest.mark.parametrize("name", ["PPO", "DQN", "DiscreteSAC"])
def test_algorithms_run_unmodified_on_latent_code(name: str) -> None:
    """With the embedded checkpoint: no masked latent is ever taken, neither in collection nor in evaluation."""
    envs = LogprobObservation(
        gym.make_vec(
            "ra3gym/LatentCode-v0",
            num_envs=8,
            vectorization_mode="vector_entry_point",
            observation="dict",
            min_prob=0.01,
            max_new_tokens=64,
            autoreset_mode=SAME_STEP,
        )
    )
    space: Any = envs.single_action_space
    size, latents = envs.single_observation_space["obs"].shape[0], int(space.n)
    net = Net(state_shape=size - latents, action_shape=latents, hidden_sizes=(16,))

    def critic(outputs: int = 1) -> torch.nn.Module:
        return UnmaskedCritic(
            DiscreteCritic(preprocess_net=Net(state_shape=size, hidden_sizes=(16,)), last_size=outputs)
        )

    model = Net(state_shape=size, action_shape=latents, hidden_sizes=(16,))
    algorithm = _algorithm_of(name, MaskedActor(DecoderPriorActor(net)), critic, model, space)
    before = [parameter.detach().clone() for parameter in algorithm.policy.parameters()]
    venv = as_vector_env(envs)
    venv.seed(0)
    buffer = VectorReplayBuffer(1000, 8)
    collector = Collector(algorithm, venv, buffer, exploration_noise=name == "DQN", raise_on_nan_in_buffer=False)
    _train(name, algorithm, collector, 160, 40)
    assert any(not new.equal(old) for new, old in zip(algorithm.policy.parameters(), before, strict=True))
    for evaluates in (False, True):
        collector.reset()
        with policy_within_training_step(algorithm.policy, enabled=not evaluates):
            collector.collect(n_step=160)
        stored = buffer.sample_indices(0)
        assert len(stored) == 160
        assert buffer.obs.mask[stored, buffer.act[stored]].all()
        assert not buffer.obs.mask[stored].all()
    venv.close()


def test_masked_actor_gives_illegal_actions_no_probability(problem: InferenceProblem) -> None:
    actor = _actor(problem)
    policy = DiscreteActorPolicy(actor=MaskedActor(actor), action_space=gym.spaces.Discrete(K))
    observed = np.ones((2, problem.observation_size), dtype=np.float32)
    mask = np.array([[1, 0, 1, 1], [0, 1, 0, 0]], dtype=np.int8)
    dist = policy(Batch(obs=Batch(obs=observed, mask=mask), info=Batch())).dist
    legal = torch.as_tensor(mask).bool()
    expected = torch.softmax(actor(observed)[0].masked_fill(~legal, -float("inf")), dim=1)
    torch.testing.assert_close(dist.probs, expected)
    assert (dist.probs[~legal] == 0.0).all()
    assert dist.entropy()[1] == 0.0
    dist.entropy().sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in actor.parameters())


def test_masked_actor_needs_logits(problem: InferenceProblem) -> None:
    net = Net(state_shape=problem.observation_size, hidden_sizes=(8,))
    with pytest.raises(ConfigError, match="softmax_output=False"):
        MaskedActor(DiscreteActor(preprocess_net=net, action_shape=K))


def test_classic_control_by_tianshous_collector() -> None:
    cart_poles = gym.make_vec("CartPole-v1", 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": SAME_STEP})
    venv = as_vector_env(cart_poles)
    assert isinstance(venv, GymnasiumVectorEnv)
    venv.seed(0)
    net = Net(state_shape=4, hidden_sizes=(16,))
    actor = DiscreteActor(preprocess_net=net, action_shape=2, softmax_output=False)
    policy = DiscreteActorPolicy(actor=actor, action_space=gym.spaces.Discrete(2))
    collector = Collector(policy, venv, VectorReplayBuffer(3000, 3))
    collector.reset()
    stats = collector.collect(n_episode=10)
    assert stats.n_collected_episodes == 10
    np.testing.assert_array_equal(stats.returns, stats.lens)
