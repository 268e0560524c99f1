"""Inference agents made of the algorithms of tianshou 2.

DiscreteSAC with an entropy coefficient of 1 *is* the E-step: it maximizes the expected return plus the policy's entropy
at temperature 1, which is the temporal ELBO. Its soft-optimal policy is the posterior, its soft-optimal value the log
evidence. PPO has no such term, so a hook on the collector adds `-log q(z_t | s_t)` to each reward (see
`ra3gym.agents.sb3.inference`). DQN has no entropy term: it finds the likeliest path.

Shape letters: see CONTRIBUTING.md (B rows of this call, K latents, D observed numbers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv
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

from ra3gym.abstractions.inference.problem import Float32Array
from ra3gym.agents.mid_training.inference.library_agents import LIBRARY_ALGORITHMS, LibraryAgent, Network
from ra3gym.agents.tianshou.adapter import GymnasiumVectorEnv, as_vector_env
from ra3gym.errors import ConfigError, UnknownNameError

_ROLLOUT = 16
"""Steps of each environment between two updates of PPO."""

_QUIET: dict[str, Any] = {"verbose": False, "show_progress": False, "test_collector": None}


class EntropyHook:
    """Add `-scale * log q(action)` to each collected reward: the return then includes the entropy.

    An `on_step_hook` of tianshou's `Collector`.

    Args:
        scale: reward units per nat.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, action_batch: Any, rollout_batch: Any) -> None:
        """Change the rewards of a step before they are stored."""
        log_q_E = action_batch.dist.log_prob(torch.as_tensor(action_batch.act)).detach().cpu().numpy()
        rollout_batch.rew = rollout_batch.rew - self.scale * log_q_E


@dataclass(frozen=True)
class TianshouAgent(LibraryAgent):
    """A posterior learned by an algorithm of tianshou 2.

    Attributes:
        algorithm: "PPO" and "DiscreteSAC" learn the posterior, "DQN" a single path.
        learning_rate: Adam's learning rate for all networks, 3e-4 to 3e-3.
        hidden: widths of each network's layers.
        updates_per_step: gradient steps of DiscreteSAC and DQN for each step of all environments, 1 to 8. More need
            fewer environment steps, but each step takes longer.
    """

    algorithm: str = "PPO"
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (64, 64)
    updates_per_step: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm not in LIBRARY_ALGORITHMS["tianshou"]:
            raise UnknownNameError("algorithm of tianshou", self.algorithm, LIBRARY_ALGORITHMS["tianshou"])
        if not (self.learning_rate > 0 and self.updates_per_step > 0):
            raise ConfigError(
                f"learning_rate={self.learning_rate} and updates_per_step={self.updates_per_step} must be positive"
            )

    def _train(self, vector_env: VectorEnv[Any, Any, Any], seed: int) -> tuple[Network, bool]:
        venv = as_vector_env(vector_env)
        venv.seed(seed)
        space = vector_env.single_action_space
        assert isinstance(space, gym.spaces.Discrete)
        assert vector_env.single_observation_space.shape is not None
        (observed,) = vector_env.single_observation_space.shape
        if self.algorithm == "PPO":
            return _network(self._train_ppo(venv, observed, space)), False
        if self.algorithm == "DiscreteSAC":
            return _network(self._train_sac(venv, observed, space)), False
        return _network(self._train_dqn(venv, observed, space)), True

    def _train_ppo(self, venv: GymnasiumVectorEnv, observed: int, space: gym.spaces.Discrete) -> torch.nn.Module:
        actor = DiscreteActor(preprocess_net=self._net(observed), action_shape=int(space.n), softmax_output=False)
        defaults = {"gamma": 1.0, "gae_lambda": 0.95, "ent_coef": 0.0, "max_grad_norm": 0.5}
        algorithm = PPO(
            policy=DiscreteActorPolicy(actor=actor, action_space=space),
            critic=DiscreteCritic(preprocess_net=self._net(observed)),
            optim=self._optimizer(),
            **{**defaults, **self.options},
        )
        steps_per_update = _ROLLOUT * self.num_envs
        buffer = VectorReplayBuffer(steps_per_update, self.num_envs)
        collector = Collector[CollectStats](
            algorithm, venv, buffer, on_step_hook=EntropyHook(self.reward_scale), raise_on_nan_in_buffer=False
        )
        params = OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=self.steps,
            collection_step_num_env_steps=steps_per_update,
            update_step_num_repetitions=5,
            batch_size=256,
            **_QUIET,
        )
        algorithm.run_training(params)
        return actor

    def _train_sac(self, venv: GymnasiumVectorEnv, observed: int, space: gym.spaces.Discrete) -> torch.nn.Module:
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
        return actor

    def _train_dqn(self, venv: GymnasiumVectorEnv, observed: int, space: gym.spaces.Discrete) -> torch.nn.Module:
        model = Net(state_shape=observed, action_shape=int(space.n), hidden_sizes=self.hidden)
        defaults = {"gamma": 1.0, "target_update_freq": 50}
        policy: DiscreteQLearningPolicy[Net] = DiscreteQLearningPolicy(
            model=model, action_space=space, eps_training=0.2
        )
        algorithm: DQN[Any] = DQN(policy=policy, optim=self._optimizer(), **{**defaults, **self.options})
        self._train_on_replay(algorithm, venv, exploration_noise=True)
        return model

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

    def _net(self, observed: int) -> Net:
        return Net(state_shape=observed, hidden_sizes=self.hidden)

    def _optimizer(self) -> AdamOptimizerFactory:
        return AdamOptimizerFactory(lr=self.learning_rate)


def _network(module: torch.nn.Module) -> Network:
    """Return the module as a function of observations; tianshou's modules return a state beside the scores."""
    module.eval()

    def network(observation_BD: Float32Array) -> torch.Tensor:
        score_BK: torch.Tensor = module(observation_BD)[0]
        return score_BK

    return network
