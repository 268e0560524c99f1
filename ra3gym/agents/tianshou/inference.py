"""Inference agents made of the algorithms of tianshou 2.

DiscreteSAC at a fixed entropy coefficient of 1 nat per nat *is* the E-step: its objective is the expected return plus
the policy's entropy at temperature 1, which is the temporal ELBO; its soft-optimal policy is the posterior and its
soft-optimal value the log evidence. PPO has no such term, so a hook on the collector pays `-log q(z_t | s_t)` with each
step (see `ra3gym.agents.sb3.inference`). DQN has no entropy: it finds the likeliest path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import TransformReward
from tianshou.algorithm.algorithm_base import Algorithm
from tianshou.algorithm.modelfree.discrete_sac import DiscreteSAC, DiscreteSACPolicy
from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
from tianshou.algorithm.modelfree.ppo import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, CollectStats, VectorReplayBuffer
from tianshou.trainer import OffPolicyTrainerParams, OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

from ra3gym.abstractions.inference.posterior import FloatArray
from ra3gym.abstractions.inference.problem import Float32Array, InferenceProblem
from ra3gym.agents.mid_training.inference.conditioning import LearntPosterior, conditioned, global_seeds
from ra3gym.agents.mid_training.inference.posteriors import PathPosterior
from ra3gym.agents.tianshou.adapter import GymnasiumVectorEnv, as_vector_env
from ra3gym.envs.trace_inference.vector_env import TraceInferenceVectorEnv
from ra3gym.errors import ConfigError, UnknownNameError

TIANSHOU_NAMES = ("DQN", "DiscreteSAC", "PPO")

_ROLLOUT = 16
"""Steps of each environment between two updates of PPO."""


class EntropyHook:
    """Pay `-scale * log q(action)` at each step collected: entropy at temperature 1 in the return.

    An `on_step_hook` for tianshou's `Collector`. scale: what a nat of reward counts as.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, action_batch: Any, rollout_batch: Any) -> None:
        """Change the rewards of a step before they are stored."""
        log_q_R = action_batch.dist.log_prob(torch.as_tensor(action_batch.act)).detach().cpu().numpy()
        rollout_batch.rew = rollout_batch.rew - self.scale * log_q_R


@dataclass(frozen=True)
class TianshouAgent:
    """A posterior learnt by an algorithm of tianshou 2.

    algorithm: "PPO" and "DiscreteSAC" learn the posterior, "DQN" a single path.
    steps: lines walked in training, over all environments. 30,000 do on a small hidden Markov model; grow it with the
        number of distinct lines.
    num_envs: environments stepped at once. More are faster per step, fewer update more often; 16 to 256.
    reward_scale: what a nat counts as, in rewards and entropy alike, so that no optimum changes; 0.05 to 1.
    floor: emissions are raised to this many nats below their line's mean; -10 to -50. Higher learns faster, lower is
        truer where a latent is nearly impossible.
    learning_rate: Adam's, for all networks; 3e-4 to 3e-3.
    hidden: widths of each network's layers.
    updates_per_step: gradient steps for each step of all environments, of DiscreteSAC and DQN; more learn from fewer
        steps, at their cost; 1 to 8.
    options: keyword arguments for the algorithm's class, over the defaults here (`gamma=1`: a nat is a nat, early or
        late; episodes are finite).
    """

    algorithm: str = "PPO"
    steps: int = 100_000
    num_envs: int = 64
    reward_scale: float = 0.2
    floor: float = -20.0
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (64, 64)
    updates_per_step: int = 4
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.algorithm not in TIANSHOU_NAMES:
            raise UnknownNameError("algorithm of tianshou", self.algorithm, TIANSHOU_NAMES)
        positive = (self.steps, self.num_envs, self.reward_scale, self.learning_rate, self.updates_per_step)
        if not min(positive) > 0 or not self.floor < 0.0:
            raise ConfigError(
                f"steps={self.steps}, num_envs={self.num_envs}, reward_scale={self.reward_scale}, learning_rate="
                f"{self.learning_rate} and updates_per_step={self.updates_per_step} must be positive, floor="
                f"{self.floor} negative"
            )

    def fit(
        self, problem: InferenceProblem, rng: np.random.Generator, start: PathPosterior | None = None
    ) -> LearntPosterior:
        """See `InferenceAgent`; `start` is not read, and the global generators are left as they were."""
        seed = int(rng.integers(2**31))
        learnt = conditioned(problem, self.floor)
        vector_env = TransformReward(
            TraceInferenceVectorEnv(
                learnt, self.num_envs, autoreset_mode=AutoresetMode.SAME_STEP, floor=min(2 * self.floor, -50.0)
            ),
            lambda reward_N: reward_N * self.reward_scale,
        )
        venv = as_vector_env(vector_env)
        venv.seed(seed)
        space = vector_env.single_action_space
        assert isinstance(space, gym.spaces.Discrete)
        with global_seeds(seed):
            if self.algorithm == "PPO":
                scores = self._train_ppo(venv, learnt.observation_size, space)
            elif self.algorithm == "DiscreteSAC":
                scores = self._train_sac(venv, learnt.observation_size, space)
            else:
                scores = self._train_dqn(venv, learnt.observation_size, space)
        venv.close()
        return LearntPosterior(learnt, scores, greedy=self.algorithm == "DQN")

    def _train_ppo(self, venv: GymnasiumVectorEnv, observed: int, space: gym.spaces.Discrete) -> _Scores:
        actor = DiscreteActor(preprocess_net=self._net(observed), action_shape=int(space.n), softmax_output=False)
        defaults = {"gamma": 1.0, "gae_lambda": 0.95, "ent_coef": 0.0, "max_grad_norm": 0.5}
        algorithm = PPO(
            policy=DiscreteActorPolicy(actor=actor, action_space=space),
            critic=DiscreteCritic(preprocess_net=self._net(observed)),
            optim=self._optimizer(),
            **{**defaults, **self.options},
        )
        buffer = VectorReplayBuffer(_ROLLOUT * self.num_envs, self.num_envs)
        collector = Collector[CollectStats](
            algorithm, venv, buffer, on_step_hook=EntropyHook(self.reward_scale), raise_on_nan_in_buffer=False
        )
        per_update = _ROLLOUT * self.num_envs
        params = OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=self.steps,
            collection_step_num_env_steps=per_update,
            update_step_num_repetitions=5,
            batch_size=256,
            **_QUIET,
        )
        algorithm.run_training(params)
        return _log_probs(actor)

    def _train_sac(self, venv: GymnasiumVectorEnv, observed: int, space: gym.spaces.Discrete) -> _Scores:
        actor = DiscreteActor(preprocess_net=self._net(observed), action_shape=int(space.n), softmax_output=False)
        defaults = {"gamma": 1.0, "alpha": self.reward_scale, "tau": 0.02}
        algorithm = DiscreteSAC(
            policy=DiscreteSACPolicy(actor=actor, action_space=space),
            policy_optim=self._optimizer(),
            critic=DiscreteCritic(preprocess_net=self._net(observed), last_size=int(space.n)),
            critic_optim=self._optimizer(),
            critic2=DiscreteCritic(preprocess_net=self._net(observed), last_size=int(space.n)),
            critic2_optim=self._optimizer(),
            **{**defaults, **self.options},
        )
        self._train_on_replay(algorithm, venv, exploration_noise=False)
        return _log_probs(actor)

    def _train_dqn(self, venv: GymnasiumVectorEnv, observed: int, space: gym.spaces.Discrete) -> _Scores:
        model = Net(state_shape=observed, action_shape=int(space.n), hidden_sizes=self.hidden)
        defaults = {"gamma": 1.0, "target_update_freq": 50}
        policy: DiscreteQLearningPolicy[Net] = DiscreteQLearningPolicy(
            model=model, action_space=space, eps_training=0.2
        )
        algorithm: DQN[Any] = DQN(policy=policy, optim=self._optimizer(), **{**defaults, **self.options})
        self._train_on_replay(algorithm, venv, exploration_noise=True)
        return _scores(model, lambda value_BK: value_BK)

    def _train_on_replay(
        self, algorithm: Algorithm[Any, Any], venv: GymnasiumVectorEnv, exploration_noise: bool
    ) -> None:
        buffer = VectorReplayBuffer(50_000, self.num_envs)
        collector = Collector[CollectStats](
            algorithm, venv, buffer, exploration_noise=exploration_noise, raise_on_nan_in_buffer=False
        )
        params = OffPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=self.steps,
            collection_step_num_env_steps=self.num_envs,
            update_step_num_gradient_steps_per_sample=self.updates_per_step / self.num_envs,
            batch_size=256,
            **_QUIET,
        )
        algorithm.run_training(params)

    def _net(self, observation_size: int) -> Net:
        return Net(state_shape=observation_size, hidden_sizes=self.hidden)

    def _optimizer(self) -> AdamOptimizerFactory:
        return AdamOptimizerFactory(lr=self.learning_rate)


_Scores = Callable[[Float32Array], FloatArray]
_QUIET: dict[str, Any] = {"verbose": False, "show_progress": False, "test_collector": None}


def _log_probs(actor: torch.nn.Module) -> _Scores:
    return _scores(actor, lambda logit_BK: torch.log_softmax(logit_BK, dim=1))


def _scores(network: torch.nn.Module, of: Callable[[torch.Tensor], torch.Tensor]) -> _Scores:
    """Observations (B, O) to scores (B, K), read from a network that answers as tianshou's do."""
    network.eval()

    def scores(observation_BD: Float32Array) -> FloatArray:
        with torch.no_grad():
            output_BK, _ = network(observation_BD)
        return np.asarray(of(output_BK.double()).cpu().numpy())

    return scores
