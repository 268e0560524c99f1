"""The stable-baselines3 adapter: what SB3's own vector environment returns, from arrays, and its algorithms on it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from ra3gym.abstractions.inference.posterior import LatentChain
from ra3gym.abstractions.inference.problem import InferenceProblem, problem_from_chain
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.agents.sb3 import GymnasiumVecEnv, as_vec_env
from ra3gym.envs.trace_inference.env import TraceInferenceEnv
from ra3gym.envs.trace_inference.vector_env import TraceInferenceVectorEnv
from ra3gym.errors import ConfigError

K, N = 4, 5
SAME_STEP = AutoresetMode.SAME_STEP


class Countdown(gym.Env[Any, Any]):
    """Count down from a random start with the one legal action of each step; a wrong one costs 1.

    Terminates at 0, is truncated after 4 steps; both cannot be known from the observation alone.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, dictionary: bool = False, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.dictionary = dictionary
        self.action_space = gym.spaces.Discrete(3)
        count = gym.spaces.Box(0, 10, (1,), np.float32)
        mask = gym.spaces.Box(0, 1, (3,), np.int8)
        self.observation_space = gym.spaces.Dict({"obs": count, "mask": mask}) if dictionary else count

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = int((options or {}).get("count", self.np_random.integers(1, 7)))
        self.steps = 0
        return self._see()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        legal = action == self.count % 3
        self.count -= 1
        self.steps += 1
        observation, info = self._see()
        terminated = self.count == 0
        return observation, float(legal) - 1.0, terminated, not terminated and self.steps == 4, info

    def action_masks(self) -> Any:
        return np.arange(3) == self.count % 3

    def render(self) -> Any:
        return np.full((4, 4, 3), self.count, dtype=np.uint8)

    def _see(self) -> tuple[Any, dict[str, Any]]:
        mask = self.action_masks().astype(np.int8)
        count = np.array([self.count], dtype=np.float32)
        info = {"action_mask": mask, "count": self.count}
        return ({"obs": count, "mask": mask} if self.dictionary else count), info


def countdowns(num_envs: int = N, mode: AutoresetMode = AutoresetMode.SAME_STEP, **kwargs: Any) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: Countdown(**kwargs) for _ in range(num_envs)], autoreset_mode=mode)


@pytest.fixture(scope="module")
def problem() -> InferenceProblem:
    rng = np.random.default_rng(0)
    emissions = [np.log(rng.dirichlet(np.full(K, 0.3), size=length)) for length in (3, 6, 4)]
    return problem_from_chain(LatentChain.under(StickyPrior(0.7, K), emissions))


def trace_envs(problem: InferenceProblem, num_envs: int = N, **kwargs: Any) -> TraceInferenceVectorEnv:
    return TraceInferenceVectorEnv(problem, num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)


def assert_same(ours: Any, theirs: Any) -> None:
    """Assert that arrays, or dicts of arrays, are equal, dtypes included."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_same(ours[key], value)
    else:
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype


def assert_walks_as(ours: GymnasiumVecEnv, theirs: DummyVecEnv, steps: int = 60) -> None:
    """The same observations, rewards, flags and infos at ends, from the same seed and actions, as SB3's own."""
    rng = np.random.default_rng(1)
    assert ours.seed(7) == theirs.seed(7)
    assert_same(ours.reset(), theirs.reset())
    ended = 0
    for _ in range(steps):
        actions = rng.integers(ours.action_space.n, size=ours.num_envs)
        observation, reward_N, done_N, infos = ours.step(actions)
        expected, expected_reward_N, expected_done_N, expected_infos = theirs.step(actions)
        assert_same(observation, expected)
        assert_same(reward_N, expected_reward_N)
        assert_same(done_N, expected_done_N)
        for done, info, expected_info in zip(done_N, infos, expected_infos, strict=True):
            if not done:
                assert info == {}
                continue
            ended += 1
            assert info["TimeLimit.truncated"] == expected_info["TimeLimit.truncated"]
            assert_same(info["terminal_observation"], expected_info["terminal_observation"])
            assert info.keys() == expected_info.keys()
    assert ended > N
    assert_same(np.stack(ours.env_method("action_masks")), np.stack(theirs.env_method("action_masks")))


@pytest.mark.parametrize("dictionary", [False, True])
def test_it_walks_as_sb3s_own_vector_environment(dictionary: bool) -> None:
    theirs = DummyVecEnv([lambda: Countdown(dictionary)] * N)
    assert_walks_as(as_vec_env(countdowns(dictionary=dictionary)), theirs)


@pytest.mark.parametrize("observation", ["features", "dict"])
def test_arrays_of_traces_walk_as_single_environments(problem: InferenceProblem, observation: Any) -> None:
    theirs = DummyVecEnv([lambda: TraceInferenceEnv(problem, observation=observation)] * N)
    assert_walks_as(as_vec_env(trace_envs(problem, observation=observation)), theirs)


def test_final_info_is_handed_on(problem: InferenceProblem) -> None:
    vec_env = as_vec_env(trace_envs(problem))
    vec_env.seed(0)
    vec_env.reset()
    for _ in range(20):
        _, _, done_N, infos = vec_env.step(np.zeros(N, dtype=np.int64))
        for i in np.flatnonzero(done_N):
            assert infos[i]["gap"] == pytest.approx(infos[i]["evidence"] - infos[i]["log_joint"])
            assert infos[i]["gap"] >= 0.0
            assert infos[i]["duration"] == {"lines": 1}
    assert vec_env.info["log_joint"].shape == (N,)


def test_another_autoreset_mode_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"NEXT_STEP.*autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP"):
        as_vec_env(countdowns(mode=AutoresetMode.NEXT_STEP))
    undeclared = countdowns()
    del undeclared.metadata["autoreset_mode"]
    with pytest.raises(ConfigError, match="declares no autoreset mode"):
        as_vec_env(undeclared)


def test_it_adapts_what_make_vec_makes(problem: InferenceProblem) -> None:
    vec_env = as_vec_env(gym.make_vec("ra3gym/TraceInference-v0", 3, problem=problem, autoreset_mode="SameStep"))
    vec_env.seed(0)
    expected, _ = trace_envs(problem, 3).reset(seed=0)
    np.testing.assert_array_equal(vec_env.reset(), expected)


def test_seeds_and_options_serve_one_reset(problem: InferenceProblem) -> None:
    vec_env = as_vec_env(countdowns())
    vec_env.seed(3)
    first = vec_env.reset()
    again = vec_env.reset()
    vec_env.seed(3)
    np.testing.assert_array_equal(vec_env.reset(), first)
    assert not np.array_equal(first, again)
    vec_env.set_options({"count": 4})
    np.testing.assert_array_equal(vec_env.reset(), np.full((N, 1), 4.0))
    assert not (vec_env.reset() == 4.0).all()
    assert [info["count"] for info in vec_env.reset_infos] == vec_env.get_attr("count")
    vec_env.set_options([{"count": 1}] + [{}] * (N - 1))
    with pytest.raises(ConfigError, match="differ"):
        vec_env.reset()


def test_masks_are_known_before_the_first_reset_and_absent_where_there_are_none() -> None:
    assert as_vec_env(countdowns()).has_attr("action_masks")
    cart_poles = gym.make_vec(
        "CartPole-v1", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    vec_env = as_vec_env(cart_poles)
    assert not vec_env.has_attr("action_masks")
    with pytest.raises(AttributeError, match="has no masks"):
        vec_env.env_method("action_masks")


def test_attributes_methods_and_wrappers_of_the_environments(problem: InferenceProblem) -> None:
    vec_env = as_vec_env(countdowns(dictionary=True))
    vec_env.reset()
    assert vec_env.get_attr("dictionary", indices=[0, 2]) == [True, True]
    vec_env.set_attr("count", 5)
    assert vec_env.get_attr("count") == [5] * N
    assert [mask.tolist() for mask in vec_env.env_method("render")] == [np.full((4, 4, 3), 5).tolist()] * N
    with pytest.raises(ConfigError, match="leave indices out"):
        vec_env.env_method("render", indices=[1])
    assert vec_env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * N
    assert vec_env.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]
    arrays = as_vec_env(trace_envs(problem))
    assert arrays.get_attr("problem", indices=1)[0] is problem
    assert arrays.env_is_wrapped(gym.Wrapper) == [False] * N
    assert not arrays.has_attr("no_such_thing")


def test_rendering_and_closing(problem: InferenceProblem) -> None:
    vec_env = as_vec_env(countdowns(4, render_mode="rgb_array"))
    vec_env.reset()
    assert vec_env.render_mode == "rgb_array"
    tiled = vec_env.render()
    assert tiled is not None
    assert tiled.shape == (8, 8, 3)
    vec_env.close()
    vec_env.close()


def test_sb3s_wrappers_see_episodes(problem: InferenceProblem) -> None:
    vec_env = VecNormalize(VecMonitor(as_vec_env(trace_envs(problem))))
    vec_env.reset()
    returns = []
    for _ in range(12):
        _, _, _, infos = vec_env.step(np.zeros(N, dtype=np.int64))
        returns += [(info["episode"]["r"], info["log_joint"]) for info in infos if "episode" in info]
    assert returns
    for earned, log_joint in returns:
        assert earned == pytest.approx(log_joint, rel=1e-5)


def test_rewards_may_be_changed_in_place(problem: InferenceProblem) -> None:
    rewards = np.zeros(2)
    vector_env = gym.wrappers.vector.TransformReward(trace_envs(problem, 2), lambda reward_N: rewards)
    vec_env = as_vec_env(vector_env)
    vec_env.reset()
    changed = vec_env.step(np.zeros(2, dtype=np.int64))[1]
    changed += 1.0
    assert rewards.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("algorithm", "policy", "options"),
    [
        (PPO, "MlpPolicy", {"n_steps": 64, "batch_size": 64}),
        (A2C, "MlpPolicy", {}),
        (DQN, "MlpPolicy", {"learning_starts": 50}),
        (MaskablePPO, "MlpPolicy", {"n_steps": 64, "batch_size": 64}),
        (RecurrentPPO, "MlpLstmPolicy", {"n_steps": 64, "batch_size": 64}),
        (PPO, "MultiInputPolicy", {"n_steps": 64, "batch_size": 64}),
        (MaskablePPO, "MultiInputPolicy", {"n_steps": 64, "batch_size": 64}),
    ],
)
def test_algorithms_run_unmodified(problem: InferenceProblem, algorithm: Any, policy: str, options: Any) -> None:
    observation: Any = "dict" if policy == "MultiInputPolicy" else "features"

    def learn() -> Any:
        model = algorithm(policy, as_vec_env(trace_envs(problem, observation=observation)), seed=0, **options)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(400)
        assert model.num_timesteps >= 400
        after = model.policy.state_dict()
        assert any(not value.equal(after[name]) for name, value in before.items())
        return after

    first, second = learn(), learn()
    assert all(value.equal(second[name]) for name, value in first.items())


def test_ppo_learns_to_count_down_and_a_mask_leaves_nothing_to_learn() -> None:
    vec_env = VecMonitor(as_vec_env(countdowns(8)))
    model = PPO("MlpPolicy", vec_env, seed=0, n_steps=64, batch_size=64, learning_rate=3e-3, gamma=0.9)
    model.learn(8_000)
    mean, _ = evaluate_policy(model, vec_env, n_eval_episodes=50)
    assert mean > -0.2
    masked = VecMonitor(as_vec_env(countdowns(8)))
    untrained = MaskablePPO("MlpPolicy", masked, seed=0, n_steps=64, batch_size=64)
    mean, _ = evaluate_masked(untrained, masked, n_eval_episodes=50)
    assert mean == 0.0


class Taken(gym.vector.VectorWrapper):
    """Notes which of the actions taken were illegal."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.legal: list[bool] = []

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        self.mask_NA = info["action_mask"]
        return observation, info

    def step(self, actions: Any) -> Any:
        self.legal += self.mask_NA[np.arange(self.num_envs), actions].astype(bool).tolist()
        result = self.env.step(actions)
        self.mask_NA = result[-1]["action_mask"]
        return result


@pytest.mark.parametrize(
    ("algorithm", "policy", "observation", "options"),
    [
        (PPO, "MlpPolicy", "hidden", {"n_steps": 8, "batch_size": 32}),
        (DQN, "MlpPolicy", "hidden", {"learning_starts": 32}),
        (RecurrentPPO, "MlpLstmPolicy", "hidden", {"n_steps": 8, "batch_size": 32}),
        (MaskablePPO, "MlpPolicy", "hidden", {"n_steps": 8, "batch_size": 32}),
        (MaskablePPO, "MultiInputPolicy", "dict", {"n_steps": 8, "batch_size": 32}),
    ],
)
def test_algorithms_run_unmodified_on_latent_code(algorithm: Any, policy: str, observation: str, options: Any) -> None:
    """With the embedded checkpoint; MaskablePPO takes legal latents only, in training and in evaluation."""
    taken = Taken(
        gym.make_vec(
            "ra3gym/LatentCode-v0",
            num_envs=8,
            vectorization_mode="vector_entry_point",
            observation=observation,
            min_prob=0.01,
            max_new_tokens=64,
            autoreset_mode=SAME_STEP,
        )
    )
    vec_env = VecMonitor(as_vec_env(taken))
    model = algorithm(policy, vec_env, seed=0, **options)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(192)
    assert any(not value.equal(before[name]) for name, value in model.policy.state_dict().items())
    if algorithm is MaskablePPO:
        evaluate_masked(model, vec_env, n_eval_episodes=8)
        assert len(taken.legal) > 192
        assert all(taken.legal)
    vec_env.close()
