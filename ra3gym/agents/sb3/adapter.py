"""Gymnasium's vector environments as stable-baselines3's `VecEnv`, and policies that start at the model's own choice.

    vector_env = gymnasium.make_vec("ra3gym/TraceInference-v0", 64, autoreset_mode="SameStep")
    model = stable_baselines3.PPO("MlpPolicy", as_vec_env(vector_env)).learn(100_000)

Batches stay arrays; only episodes that end are handled one by one.

`DecoderPriorPolicy` is for PPO and A2C, `MaskableDecoderPriorPolicy` for MaskablePPO.

Shape letters: see CONTRIBUTING.md (E environments, A actions).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from ra3gym.agents.vector_info import (
    action_masks,
    attribute,
    attributes,
    autoreset_mode,
    entries,
    select,
    set_attribute,
)
from ra3gym.errors import ConfigError

MASKS = "action_masks"
"""The environment method from which sb3-contrib gets masks."""


def as_vec_env(vector_env: VectorEnv[Any, Any, Any]) -> GymnasiumVecEnv:
    """Return a stable-baselines3 `VecEnv` over any Gymnasium vector environment in SAME_STEP mode.

    It has what SB3 and sb3-contrib expect: float32 rewards; infos of ended episodes with "terminal_observation",
    "TimeLimit.truncated" and the keys of the final info; action masks through `env_method("action_masks")`, from
    `info["action_mask"]` or a Dict observation's "mask". The infos of all other steps are empty; `vec_env.info` is the
    batched info. SB3's `VecMonitor` around it logs episode returns.

    The vector environment must return new arrays at each step, as Gymnasium's own do with `copy=True`.

    Raises:
        ConfigError: the environment resets in another mode.
    """
    return GymnasiumVecEnv(vector_env)


class GymnasiumVecEnv(VecEnv):
    """See `as_vec_env`.

    Attributes:
        vector_env: the adapted environment.
        info: its batched info of the last reset or step.
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        autoreset_mode(vector_env, (AutoresetMode.SAME_STEP,))
        self.vector_env = vector_env
        self.info: dict[str, Any] = {}
        self._mask_EA: npt.NDArray[np.bool_] | None = None
        self._was_reset = False
        self._actions: npt.NDArray[Any] | None = None
        super().__init__(vector_env.num_envs, vector_env.single_observation_space, vector_env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start an episode in every environment, with the seeds and options that were set before, once."""
        if any(options != self._options[0] for options in self._options):
            raise ConfigError("the environments' reset options differ: a vector environment takes one dict for all")
        observation, self.info = self.vector_env.reset(seed=self._seeds[0], options=dict(self._options[0]) or None)
        self._reset_seeds()
        self._reset_options()
        self._was_reset = True
        self._mask_EA = action_masks(observation, self.info)
        self.reset_infos = entries(self.info, range(self.num_envs))
        return cast(VecEnvObs, observation)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions (E, ...) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all environments; where an episode has ended, the observation is the first of the next episode."""
        observation, reward_E, terminated_E, truncated_E, self.info = self.vector_env.step(self._actions)
        done_E = np.logical_or(terminated_E, truncated_E)
        self._mask_EA = action_masks(observation, self.info)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(done_E).tolist()
        for i, final in zip(ended, entries(self.info.get("final_info", {}), ended), strict=True):
            final["terminal_observation"] = select(self.info["final_obs"], i)
            final["TimeLimit.truncated"] = bool(truncated_E[i] and not terminated_E[i])
            infos[i] = final
        # A copy: algorithms add a bootstrapped value to the rewards in place.
        return observation, np.array(reward_E, dtype=np.float32), done_E, infos

    def close(self) -> None:
        """Close the vector environment; safe to call twice."""
        self.vector_env.close()

    def get_images(self) -> Sequence[npt.NDArray[Any] | None]:
        """Return one frame per environment, with `render_mode="rgb_array"`."""
        return cast(Sequence[npt.NDArray[Any] | None], list(self.vector_env.render() or [None] * self.num_envs))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute of each environment; see `ra3gym.agents.vector_info.attributes`."""
        if attr_name == MASKS:
            mask_EA = self._masks()
            values: Sequence[Any] = [lambda i=i: mask_EA[i] for i in range(self.num_envs)]
        elif attr_name == "render_mode":
            values = [attribute(self.vector_env, attr_name)] * self.num_envs
        else:
            values = attributes(self.vector_env, attr_name)
        return [values[i] for i in self._ids(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute on all environments; `ConfigError` when `indices` are only some."""
        self._refuse_some(attr_name, indices)
        set_attribute(self.vector_env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of every environment; `ConfigError` when `indices` are only some, except for "action_masks"."""
        if method_name == MASKS:
            mask_EA = self._masks()
            return [mask_EA[i] for i in self._ids(indices)]
        self._refuse_some(method_name, indices)
        if hasattr(self.vector_env.unwrapped, "call"):
            return list(self.vector_env.unwrapped.call(method_name, *method_args, **method_kwargs))
        return [attribute(self.vector_env, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Return whether each environment is wrapped so; False where environments are rows of arrays."""
        environments = getattr(self.vector_env.unwrapped, "envs", None)
        if environments is None:
            return [False for _ in self._ids(indices)]
        return [_is_wrapped(environments[i], wrapper_class) for i in self._ids(indices)]

    def _masks(self) -> npt.NDArray[np.bool_]:
        if not self._was_reset:  # sb3-contrib's evaluation asks for masks before it resets
            self._mask_EA = action_masks(*self.vector_env.reset())
        if self._mask_EA is None:
            raise AttributeError(f"{self.vector_env} has no masks: no info['action_mask'] and no observation['mask']")
        return self._mask_EA

    def _ids(self, indices: VecEnvIndices) -> Iterable[int]:
        return self._get_indices(indices)

    def _refuse_some(self, name: str, indices: VecEnvIndices) -> None:
        if sorted(self._ids(indices)) != list(range(self.num_envs)):
            raise ConfigError(f"{name!r} works for all environments, not for {indices} only: leave indices out")


class _BesideLogprobs(MlpExtractor):
    """SB3's networks over the hidden state; the observed log-probabilities are appended to the actor's features."""

    def __init__(self, feature_dim: int, num_actions: int, **kwargs: Any) -> None:
        super().__init__(feature_dim - num_actions, **kwargs)
        self.num_actions = num_actions
        self.latent_dim_pi += num_actions

    def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
        hidden, logprobs = features[:, : -self.num_actions], features[:, -self.num_actions :]
        return torch.cat([super().forward_actor(hidden), logprobs], dim=1)

    def forward_critic(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward_critic(features[:, : -self.num_actions])


class DecoderPriorPolicy(ActorCriticPolicy):
    """SB3's MlpPolicy for observations of `LogprobObservation`; it starts at the model's own choice of latents.

    Logits are `W h + V log p`, where h is the actor's last hidden layer. W starts at 0 and V at the identity, so before
    the first update latents are drawn exactly as the model draws them. W and V are trained.
    """

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = _beside_logprobs(self)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        _begin_at_logprobs(self)


class MaskableDecoderPriorPolicy(MaskableActorCriticPolicy):
    """`DecoderPriorPolicy` for sb3-contrib's MaskablePPO."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = _beside_logprobs(self)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        _begin_at_logprobs(self)


def _beside_logprobs(policy: DecoderPriorPolicy | MaskableDecoderPriorPolicy) -> _BesideLogprobs:
    """Return the networks; `ConfigError` when the observation has no room for log-probabilities."""
    space = policy.action_space
    if not isinstance(space, gym.spaces.Discrete) or policy.features_dim <= space.n:
        raise ConfigError(
            f"observations of {policy.features_dim} numbers cannot hold a hidden state and log-probabilities of "
            f"{space}: wrap the vector environment in ra3gym.envs.wrappers.LogprobObservation"
        )
    return _BesideLogprobs(
        policy.features_dim,
        int(space.n),
        net_arch=policy.net_arch,
        activation_fn=policy.activation_fn,
        device=policy.device,
    )


def _begin_at_logprobs(policy: DecoderPriorPolicy | MaskableDecoderPriorPolicy) -> None:
    layer = policy.action_net
    assert isinstance(layer, torch.nn.Linear)
    with torch.no_grad():
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        layer.weight[:, -layer.out_features :].fill_diagonal_(1.0)


def _is_wrapped(environment: Any, wrapper_class: type[Any]) -> bool:
    while hasattr(environment, "env"):
        if isinstance(environment, wrapper_class):
            return True
        environment = environment.env
    return False
