"""Inference agents made of other libraries' RL algorithms: their names, and what they share.

`SB3Agent` (`ra3gym.agents.sb3.inference`) and `TianshouAgent` (`ra3gym.agents.tianshou.inference`) add the training.
This module imports no library, so that the names are known without the extra `rl`.

Shape letters: see CONTRIBUTING.md (B rows of this call, K latents, D observed numbers, E environments).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import TransformReward
from scipy.special import log_softmax

from ra3gym.abstractions.inference.posterior import FloatArray, IntArray
from ra3gym.abstractions.inference.problem import Float32Array, InferenceProblem
from ra3gym.agents.mid_training.inference.conditioning import conditioned, global_seeds
from ra3gym.agents.mid_training.inference.posteriors import PathPosterior
from ra3gym.envs.trace_inference.vector_env import TraceInferenceVectorEnv
from ra3gym.errors import ConfigError

LIBRARY_ALGORITHMS = {
    "sb3": ("A2C", "DQN", "PPO"),
    "sb3contrib": ("MaskablePPO", "QRDQN", "TRPO"),
    "tianshou": ("DQN", "DiscreteSAC", "PPO"),
}
"""The algorithms of each library that are inference agents by name: "sb3:PPO", "tianshou:DQN", ..."""

Network: TypeAlias = Callable[[Float32Array], torch.Tensor]
"""Maps observations (B, D) to scores (B, K): log-probabilities up to a constant per row, or values."""


@dataclass(frozen=True)
class LibraryAgent(ABC):
    """The options and the frame of an agent that learns a posterior with another library's algorithm.

    Attributes:
        algorithm: the algorithm's name in its library.
        steps: lines to step through in training, over all environments. 30,000 suffice for a small hidden Markov model;
            increase it with the number of distinct lines.
        num_envs: environments stepped at once, 16 to 256. More take less time per step, fewer update more often.
        reward_scale: reward units per nat, 0.05 to 1. Value networks learn rewards of a few units most easily. The
            entropy is scaled with the rewards, so the optimum does not change.
        floor: emissions are raised to this many nats below their line's mean, -10 to -50. A higher floor learns faster,
            a lower one is more accurate for latents that are nearly impossible.
        options: keyword arguments for the algorithm's class; they replace the agent's defaults. `gamma` is 1, since
            a nat counts the same at every step and episodes are finite.
    """

    algorithm: Any = "PPO"
    steps: int = 100_000
    num_envs: int = 64
    reward_scale: float = 0.2
    floor: float = -20.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "num_envs", "reward_scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        if not self.floor < 0.0:
            raise ConfigError(f"floor={self.floor} must be negative")

    @classmethod
    def named(cls, algorithm: str, **options: Any) -> Self:
        """Return the agent of an algorithm; `ConfigError` names an option that it does not have."""
        known = sorted(field.name for field in fields(cls) if field.name != "algorithm")
        if unknown := sorted(options.keys() - set(known)):
            raise ConfigError(
                f"the agent of {algorithm} has no option {', '.join(map(repr, unknown))}; it has {', '.join(known)}. "
                "Arguments of the algorithm's class go into `options`"
            )
        return cls(algorithm, **options)

    def fit(
        self, problem: InferenceProblem, rng: np.random.Generator, start: PathPosterior | None = None
    ) -> LearnedPosterior:
        """See `InferenceAgent`. `start` is ignored; the global random generators keep their states."""
        seed = int(rng.integers(2**31))
        easier = conditioned(problem, self.floor)
        vector_env = TransformReward(
            TraceInferenceVectorEnv(
                easier, self.num_envs, autoreset_mode=AutoresetMode.SAME_STEP, floor=min(2 * self.floor, -50.0)
            ),
            lambda reward_E: reward_E * self.reward_scale,
        )
        with closing(vector_env), global_seeds(seed):
            network, greedy = self._train(vector_env, seed)

        def scores(observation_BD: Float32Array) -> FloatArray:
            with torch.no_grad():
                return np.asarray(network(observation_BD).double().cpu().numpy())

        return LearnedPosterior(easier, scores, greedy)

    @abstractmethod
    def _train(self, vector_env: VectorEnv[Any, Any, Any], seed: int) -> tuple[Network, bool]:
        """Train on the environments; return the network, and whether its scores are values instead of log-probs."""


@dataclass(frozen=True)
class LearnedPosterior:
    """A posterior that a library's network has learned. Impossible latents get no mass, unless all are impossible.

    Attributes:
        problem: the problem that it was learned on, which makes the observations.
        scores: maps float32 observations (B, D) to scores (B, K).
        greedy: whether all mass goes to the highest score; else scores are log-probabilities up to a constant per row.
    """

    problem: InferenceProblem
    scores: Callable[[Float32Array], FloatArray]
    greedy: bool

    def log_probs(self, line_B: IntArray, previous_B: IntArray) -> FloatArray:
        """See `PathPosterior`."""
        score_BK = self.scores(self.problem.observations(line_B, previous_B))
        possible_BK = self.problem.rewards(line_B, previous_B) > -np.inf
        possible_BK |= ~possible_BK.any(axis=1, keepdims=True)
        score_BK = np.where(possible_BK, score_BK, -np.inf)
        if self.greedy:
            best_B1 = score_BK.argmax(axis=1)[:, None]
            return np.where(np.arange(score_BK.shape[1]) == best_B1, 0.0, -np.inf)
        return np.asarray(log_softmax(score_BK, axis=1))
