"""Inference agents made of the algorithms of stable-baselines3 and sb3-contrib.

A policy gradient maximizes the expected return. That is the temporal ELBO, whose optimum is the posterior, only if the
return includes the policy's entropy at temperature 1. So each step is paid

    r_t = log p(line_t | z_t) + log p(z_t | z_{t-1}) - log q(z_t | s_t).

`EntropyInReturn` adds the last term; at the posterior the advantage of every latent is then exactly 0. An entropy bonus
in the loss (`ent_coef`) is not enough: it rewards entropy at the visited states, but gives an action no credit for the
entropy of the states that follow. Value learners such as DQN have no entropy term: they find the likeliest path.

Shape letters: see CONTRIBUTING.md (B rows of this call, K latents, D observed numbers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from gymnasium.vector import VectorEnv
from sb3_contrib import ARS
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from ra3gym.abstractions.inference.problem import Float32Array
from ra3gym.agents.mid_training.inference.library_agents import LIBRARY_ALGORITHMS, LibraryAgent, Network
from ra3gym.agents.sb3.adapter import as_vec_env
from ra3gym.errors import ConfigError, UnknownNameError

_NAMES = (*LIBRARY_ALGORITHMS["sb3"], *LIBRARY_ALGORITHMS["sb3contrib"])


def _decaying(rate: float) -> Callable[[float], float]:
    """Return a schedule that falls linearly from `rate` to 0; SB3 passes the fraction of training that remains."""
    return lambda remaining: rate * remaining


def _defaults(algorithm: type[BaseAlgorithm], num_envs: int) -> dict[str, Any]:
    """Return settings for short episodes of cheap steps, paid in nats; SB3's own defaults are for locomotion."""
    shared: dict[str, Any] = {
        "gamma": 1.0,
        "device": "cpu",
        "verbose": 0,
        "policy_kwargs": {"net_arch": [64, 64], "activation_fn": torch.nn.ReLU},
    }
    on_policy = {"n_steps": 16, "gae_lambda": 0.95}
    off_policy = {
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
    if issubclass(algorithm, sb3_contrib.QRDQN):  # its loss compares all pairs of quantiles; its default of 200 is slow
        return {**shared, **off_policy, "policy_kwargs": {**shared["policy_kwargs"], "n_quantiles": 16}}
    if issubclass(algorithm, stable_baselines3.DQN):
        return {**shared, **off_policy}
    return shared


class EntropyInReturn(BaseCallback):
    """Add `-scale * log q(action)` to each reward of an on-policy algorithm: the return then includes the entropy.

    SB3 shows callbacks the rewards of a step and the log-probabilities of its actions before it stores them.

    Args:
        scale: reward units per nat.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def _on_step(self) -> bool:
        self.locals["rewards"] -= self.scale * self.locals["log_probs"].cpu().numpy()
        return True


@dataclass(frozen=True)
class SB3Agent(LibraryAgent):
    """A posterior learned by an algorithm of stable-baselines3 or sb3-contrib.

    Attributes:
        algorithm: "PPO", "A2C", "DQN", "MaskablePPO", "TRPO", "QRDQN", or any SB3 class for discrete actions without
            recurrent memory. On-policy algorithms learn the posterior, value learners a single path.
    """

    algorithm: str | type[BaseAlgorithm] = "PPO"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._class()

    def _train(self, vector_env: VectorEnv[Any, Any, Any], seed: int) -> tuple[Network, bool]:
        algorithm = self._class()
        options = {**_defaults(algorithm, self.num_envs), "seed": seed, **self.options}
        model = algorithm("MlpPolicy", as_vec_env(vector_env), **options)
        on_policy = isinstance(model, OnPolicyAlgorithm)
        model.learn(self.steps, callback=EntropyInReturn(self.reward_scale) if on_policy else None)
        return _network(model), not on_policy

    def _class(self) -> type[BaseAlgorithm]:
        """Return the algorithm's class; `UnknownNameError` for an unknown name, `ConfigError` for an unfit class."""
        if isinstance(self.algorithm, str):
            if self.algorithm not in _NAMES:
                raise UnknownNameError("algorithm of stable-baselines3", self.algorithm, _NAMES)
            library = stable_baselines3 if self.algorithm in LIBRARY_ALGORITHMS["sb3"] else sb3_contrib
            return cast(type[BaseAlgorithm], getattr(library, self.algorithm))
        if issubclass(self.algorithm, sb3_contrib.RecurrentPPO):
            raise ConfigError(
                "RecurrentPPO depends on the whole path, but a posterior scores single lines: take PPO, whose "
                "observation already holds all that the posterior depends on"
            )
        if issubclass(self.algorithm, SAC | TD3 | ARS):
            raise ConfigError(
                f"{self.algorithm.__name__} learns no distribution or values over discrete actions; take one of "
                f"{', '.join(_NAMES)}"
            )
        return self.algorithm


def _network(model: BaseAlgorithm) -> Network:
    """Return the trained network: log-probabilities of an on-policy algorithm, else values."""
    policy = model.policy
    policy.set_training_mode(False)
    num_actions = int(cast(gym.spaces.Discrete, model.action_space).n)

    def network(observation_BD: Float32Array) -> torch.Tensor:
        observed_BD = torch.as_tensor(observation_BD, device=model.device)
        if isinstance(model, OnPolicyAlgorithm):
            logits_BK: torch.Tensor = cast(Any, policy).get_distribution(observed_BD).distribution.logits
            return logits_BK
        if isinstance(model, sb3_contrib.QRDQN):
            return cast(torch.Tensor, model.quantile_net(observed_BD).mean(dim=1))
        if isinstance(model, stable_baselines3.DQN):
            return cast(torch.Tensor, model.q_net(observed_BD))
        chosen_B, _ = model.predict(observation_BD, deterministic=True)
        return torch.as_tensor(np.eye(num_actions)[chosen_B])

    return network
