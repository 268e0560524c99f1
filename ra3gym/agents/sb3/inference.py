"""Inference agents made of the algorithms of stable-baselines3 and sb3-contrib.

A policy gradient maximises the expected return. For that to be the temporal ELBO, whose optimum is the posterior, the
return must hold the policy's entropy at temperature 1: each step is paid

    r_t = log p(line_t | z_t) + log p(z_t | z_{t-1}) - log q(z_t | s_t).

(An entropy bonus in the loss, `ent_coef`, is not that: it rewards entropy at the visited states, but no action for the
entropy of the states that it leads to.) `EntropyInReturn` adds the last term; the advantage is then 0 for every latent
exactly at the posterior. Value learners such as DQN have no entropy: they find the likeliest path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import TransformReward
from sb3_contrib import ARS
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from ra3gym.abstractions.inference.posterior import FloatArray
from ra3gym.abstractions.inference.problem import Float32Array, InferenceProblem
from ra3gym.agents.mid_training.inference.conditioning import LearntPosterior, conditioned, global_seeds
from ra3gym.agents.mid_training.inference.posteriors import PathPosterior
from ra3gym.agents.sb3.adapter import as_vec_env
from ra3gym.envs.trace_inference.vector_env import TraceInferenceVectorEnv
from ra3gym.errors import ConfigError, UnknownNameError

_ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "A2C": stable_baselines3.A2C,
    "DQN": stable_baselines3.DQN,
    "MaskablePPO": sb3_contrib.MaskablePPO,
    "PPO": stable_baselines3.PPO,
    "QRDQN": sb3_contrib.QRDQN,
    "TRPO": sb3_contrib.TRPO,
}


def _decaying(rate: float) -> Callable[[float], float]:
    """A learning rate that falls linearly to 0; SB3 passes the progress that remains."""
    return lambda remaining: rate * remaining


def _defaults(algorithm: type[BaseAlgorithm], num_envs: int) -> dict[str, Any]:
    """Settings for short episodes of cheap steps in nats; SB3's own are for locomotion."""
    shared: dict[str, Any] = {
        "gamma": 1.0,
        "device": "cpu",
        "verbose": 0,
        "policy_kwargs": {"net_arch": [64, 64], "activation_fn": torch.nn.ReLU},
    }
    on_policy = {"n_steps": 16, "gae_lambda": 0.95}
    replayed = {
        "learning_rate": _decaying(1e-3),
        "buffer_size": 50_000,
        "learning_starts": 2_000,
        "batch_size": 256,
        "train_freq": 1,
        "gradient_steps": 4,
        "target_update_interval": 2_000,
        "exploration_fraction": 0.5,
    }
    if issubclass(algorithm, stable_baselines3.PPO | sb3_contrib.MaskablePPO):
        return {**shared, **on_policy, "learning_rate": _decaying(3e-3), "batch_size": 4 * num_envs, "n_epochs": 5}
    if issubclass(algorithm, stable_baselines3.A2C):
        return {**shared, **on_policy, "learning_rate": _decaying(5e-3), "n_steps": 4}
    if issubclass(algorithm, OnPolicyAlgorithm):
        return {**shared, **on_policy}
    if issubclass(algorithm, sb3_contrib.QRDQN):  # its loss compares all pairs of quantiles: 200 of them are slow
        return {**shared, **replayed, "policy_kwargs": {**shared["policy_kwargs"], "n_quantiles": 16}}
    if issubclass(algorithm, stable_baselines3.DQN):
        return {**shared, **replayed}
    return shared


class EntropyInReturn(BaseCallback):
    """Pay `-scale * log q(action)` at each step of an on-policy algorithm: entropy at temperature 1 in the return.

    SB3 shows callbacks the rewards of a step before it stores them, with the log-probabilities of the actions taken.
    scale: what one nat of reward counts as, in the units that the environment pays.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def _on_step(self) -> bool:
        self.locals["rewards"] -= self.scale * self.locals["log_probs"].cpu().numpy()
        return True


@dataclass(frozen=True)
class SB3Agent:
    """A posterior learnt by an algorithm of stable-baselines3 or sb3-contrib.

    algorithm: "PPO", "A2C", "DQN", "MaskablePPO", "TRPO", "QRDQN", or any SB3 class for discrete actions that keeps no
        memory. On-policy ones learn the posterior, value learners a single path.
    steps: lines walked in training, over all environments. 30,000 do on a small hidden Markov model; grow it with the
        number of distinct lines.
    num_envs: environments stepped at once. More are faster per step, fewer update more often; 16 to 256.
    reward_scale: what a nat counts as. Rewards of a few units are easiest for value networks; 0.05 to 1. It changes no
        optimum, since entropy is scaled with it.
    floor: emissions are raised to this many nats below their line's mean; -10 to -50. Higher learns faster, lower is
        truer where a latent is nearly impossible.
    options: keyword arguments for the algorithm's class, over the defaults here (`gamma=1`: a nat is a nat, early or
        late; episodes are finite).
    """

    algorithm: str | type[BaseAlgorithm] = "PPO"
    steps: int = 100_000
    num_envs: int = 64
    reward_scale: float = 0.2
    floor: float = -20.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.num_envs < 1 or not self.reward_scale > 0.0 or not self.floor < 0.0:
            raise ConfigError(
                f"steps={self.steps}, num_envs={self.num_envs} and reward_scale={self.reward_scale} must be positive, "
                f"floor={self.floor} negative"
            )
        self._class()

    def fit(
        self, problem: InferenceProblem, rng: np.random.Generator, start: PathPosterior | None = None
    ) -> LearntPosterior:
        """See `InferenceAgent`; `start` is not read, and the global generators are left as they were."""
        seed = int(rng.integers(2**31))
        learnt, algorithm = conditioned(problem, self.floor), self._class()
        vector_env = TransformReward(
            TraceInferenceVectorEnv(
                learnt, self.num_envs, autoreset_mode=AutoresetMode.SAME_STEP, floor=min(2 * self.floor, -50.0)
            ),
            lambda reward_N: reward_N * self.reward_scale,
        )
        options = {**_defaults(algorithm, self.num_envs), "seed": seed, **self.options}
        with global_seeds(seed):
            model = algorithm("MlpPolicy", as_vec_env(vector_env), **options)
            on_policy = isinstance(model, OnPolicyAlgorithm)
            model.learn(self.steps, callback=EntropyInReturn(self.reward_scale) if on_policy else None)
        vector_env.close()
        return LearntPosterior(learnt, _scores(model), greedy=not on_policy)

    def _class(self) -> type[BaseAlgorithm]:
        """The algorithm's class; `UnknownNameError` if no such name is known, `ConfigError` if it cannot serve."""
        if isinstance(self.algorithm, str):
            if self.algorithm not in _ALGORITHMS:
                raise UnknownNameError("algorithm of stable-baselines3", self.algorithm, _ALGORITHMS)
            return _ALGORITHMS[self.algorithm]
        if issubclass(self.algorithm, sb3_contrib.RecurrentPPO):
            raise ConfigError(
                "RecurrentPPO remembers the path, a posterior is asked about single lines: take PPO, whose observation "
                "already says all that the posterior depends on"
            )
        if issubclass(self.algorithm, SAC | TD3 | ARS):
            raise ConfigError(
                f"{self.algorithm.__name__} learns no distribution or values over discrete actions; take one of "
                f"{', '.join(_ALGORITHMS)}"
            )
        return self.algorithm


def _scores(model: BaseAlgorithm) -> Callable[[Float32Array], FloatArray]:
    """Log-probabilities, or values, (B, K), of observations (B, O)."""
    policy = model.policy
    policy.set_training_mode(False)
    K = int(cast(gym.spaces.Discrete, model.action_space).n)

    def scores(observation_BD: Float32Array) -> FloatArray:
        with torch.no_grad():
            observed = torch.as_tensor(observation_BD, device=model.device)
            if isinstance(model, OnPolicyAlgorithm):
                score_BK = cast(Any, policy).get_distribution(observed).distribution.logits
            elif isinstance(model, sb3_contrib.QRDQN):
                score_BK = model.quantile_net(observed).mean(dim=1)
            elif isinstance(model, stable_baselines3.DQN):
                score_BK = model.q_net(observed)
            else:
                chosen_B, _ = model.predict(observation_BD, deterministic=True)
                return np.asarray(np.eye(K)[chosen_B])
        return np.asarray(score_BK.double().cpu().numpy())

    return scores
