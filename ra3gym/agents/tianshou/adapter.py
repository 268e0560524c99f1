"""Gymnasium's vector environments as tianshou's `BaseVectorEnv`; actors and critics for masks and log-probabilities.

    venv = as_vector_env(gymnasium.make_vec("ra3gym/TraceInference-v0", 64, autoreset_mode="SameStep"))
    collector = tianshou.data.Collector(algorithm, venv, VectorReplayBuffer(20_000, len(venv)))

tianshou resets single environments itself. In SAME_STEP mode Gymnasium has already reset an environment whose episode
ended, so tianshou's reset only fetches the observation. In DISABLED mode the reset is forwarded as Gymnasium's
`options={"reset_mask": ...}`.

Shape letters: see CONTRIBUTING.md (E environments, B of them in this call, A actions, D observed numbers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from tianshou.data import Batch
from tianshou.env import BaseVectorEnv
from tianshou.utils.net.common import AbstractDiscreteActor, ModuleWithVectorOutput
from torch import nn

from ra3gym.agents.vector_info import action_masks, attributes, autoreset_mode, select, set_attribute
from ra3gym.errors import ConfigError

EnvIds = int | list[int] | npt.NDArray[np.integer[Any]] | None
IntArray = npt.NDArray[np.int64]

MASKED_LOGIT = -1e8
"""The logit of an illegal action: its probability is 0 in float32, and entropies and gradients remain finite."""


def as_vector_env(vector_env: VectorEnv[Any, Any, Any]) -> GymnasiumVectorEnv:
    """Return a tianshou `BaseVectorEnv` over any Gymnasium vector environment in SAME_STEP or DISABLED mode.

    Observations may be Box, Discrete or (nested) Dict. tianshou's DQN family reads masks from a Dict with "obs" and
    "mask"; actors need a `MaskedActor`. The infos are empty; `venv.info` is the batched info.

    tianshou may step only some environments, as at the end of `collect(n_episode=...)`. The others are then stepped
    too, with a legal action, and the result is dropped: they must be reset before they are stepped again. In SAME_STEP
    mode an environment in the middle of an episode can only be reset together with all others, and only such a reset
    takes options.

    The vector environment must return new arrays at each step, as Gymnasium's own do with `copy=True`.

    Raises:
        ConfigError: the environment resets in another mode.
    """
    return GymnasiumVectorEnv(vector_env)


class GymnasiumVectorEnv(BaseVectorEnv):
    """See `as_vector_env`.

    Attributes:
        vector_env: the adapted environment.
        info: its batched info of the last reset or step.
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        # The base class's own __init__ would start workers; there are none.
        mode = autoreset_mode(vector_env, (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED))
        self.vector_env = vector_env
        self.info: dict[str, Any] = {}
        self._resets_itself = mode is AutoresetMode.SAME_STEP
        self.env_num = num_envs = vector_env.num_envs
        self.workers = []
        self.wait_num, self.timeout, self.is_async = num_envs, None, False
        self.waiting_conn, self.waiting_id, self.ready_id = [], [], list(range(num_envs))
        self.is_closed = False
        self._seed: int | None = None
        self._observation: Any = None
        self._info_E = np.array([{} for _ in range(num_envs)], dtype=object)
        # Environments that tianshou must reset before it steps them, and those of them at the start of an episode.
        self._ended_E = np.ones(num_envs, dtype=np.bool_)
        self._fresh_E = np.zeros(num_envs, dtype=np.bool_)

    def reset(self, env_id: EnvIds = None, **kwargs: Any) -> tuple[Any, npt.NDArray[Any]]:
        """Return the first observations (B, ...) and the infos of some environments, or of all.

        `kwargs` go to Gymnasium's `reset`: `seed` (environment i gets seed + i) and `options`.

        Raises:
            ConfigError: in SAME_STEP mode, a reset of only some environments in mid-episode or with `kwargs`.
        """
        self._assert_is_not_closed()
        ids = self._ids(env_id)
        if len(ids) == self.env_num and not (self._fresh_E.all() and not kwargs and self._seed is None):
            seed = kwargs.pop("seed", self._seed)
            self._seed = None
            self._observation, self.info = self.vector_env.reset(seed=seed, **kwargs)
        elif not self._resets_itself:
            self._reset_masked(ids, **kwargs)
        elif not self._fresh_E[ids].all() or any(value is not None for value in kwargs.values()):
            raise ConfigError(
                f"environments {ids.tolist()} of {self.env_num} cannot be reset alone in the middle of an episode, or "
                f"with {kwargs}: in SAME_STEP mode an environment resets only when its episode ends; reset all, or "
                "make the vector environment with autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED"
            )
        self._ended_E[ids] = False
        self._fresh_E[ids] = False
        return _as_batch(select(self._observation, ids)), self._info_E[ids]

    def step(
        self,
        action: npt.NDArray[Any] | torch.Tensor | None,
        id: EnvIds = None,
    ) -> tuple[Any, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Return observations, rewards, terminated, truncated (B each) and infos after a step of some environments.

        Where an episode ends, the observation is its last one.

        Raises:
            gymnasium.error.ResetNeeded: an environment needs a reset: its episode has ended, or an earlier call stepped
                only the others.
            ConfigError: no action.
        """
        self._assert_is_not_closed()
        ids = self._ids(id)
        if action is None:
            raise ConfigError("step(None) is for asynchronous environments: give actions")
        if self._ended_E[ids].any():
            raise gym.error.ResetNeeded(f"reset environments {ids[self._ended_E[ids]].tolist()} before stepping them")
        actions = np.asarray(action)
        if len(ids) < self.env_num:
            actions = self._with_others(actions, ids)
        else:
            actions = actions[np.argsort(ids)]
        observation, reward_E, terminated_E, truncated_E, self.info = self.vector_env.step(actions)
        done_E = np.logical_or(terminated_E, truncated_E)
        last = select(observation, ids)
        if self._resets_itself and done_E[ids].any():
            last = _with_final(last, ids, done_E, self.info["final_obs"])
        self._observation = observation
        self._ended_E[:] = True
        self._ended_E[ids] = done_E[ids]
        self._fresh_E = done_E if self._resets_itself else np.zeros_like(done_E)
        return _as_batch(last), reward_E[ids], terminated_E[ids], truncated_E[ids], self._info_E[ids]

    def seed(self, seed: int | list[int] | None = None) -> list[list[int] | None]:
        """Seed the next reset of all environments; environment i gets `seed + i`."""
        first = seed[0] if isinstance(seed, list) else seed
        if isinstance(seed, list) and seed != list(range(seed[0], seed[0] + self.env_num)):
            raise ConfigError(f"seeds {seed}: give one number; environment i gets that number + i")
        self._seed = first
        return [None if first is None else [first + i] for i in range(self.env_num)]

    def get_env_attr(self, key: str, id: EnvIds = None) -> list[Any]:
        """Return the attribute of each environment; a space is that of a single environment."""
        ids = self._ids(id)
        vector_env = self.vector_env
        if key in ("action_space", "observation_space"):
            return [getattr(vector_env, f"single_{key}")] * len(ids)
        if hasattr(vector_env, key):
            return [getattr(vector_env, key)] * len(ids)
        values = attributes(vector_env, key)
        return [values[i] for i in ids]

    def set_env_attr(self, key: str, value: Any, id: EnvIds = None) -> None:
        """Set an attribute on all environments; `ConfigError` when `id` names only some."""
        if len(self._ids(id)) != self.env_num:
            raise ConfigError(f"{key!r} can be set on all environments, not on {id} only: leave the ids out")
        set_attribute(self.vector_env, key, value)

    def render(self, **kwargs: Any) -> list[Any]:
        """Return one frame per environment."""
        self._assert_is_not_closed()
        return list(self.vector_env.render() or [None] * self.env_num)

    def close(self) -> None:
        """Close the vector environment; safe to call twice."""
        self.vector_env.close()
        self.is_closed = True

    def _ids(self, env_id: EnvIds) -> IntArray:
        return np.arange(self.env_num) if env_id is None else np.atleast_1d(np.asarray(env_id, dtype=np.int64))

    def _reset_masked(self, ids: IntArray, **kwargs: Any) -> None:
        mask_E = np.zeros(self.env_num, dtype=np.bool_)
        mask_E[ids] = True
        options = {**(kwargs.pop("options", None) or {}), "reset_mask": mask_E}
        self._observation, self.info = self.vector_env.reset(options=options, **kwargs)

    def _with_others(self, actions: npt.NDArray[Any], ids: IntArray) -> npt.NDArray[Any]:
        """Return an action for every environment: those given, and legal ones for the others."""
        if not self._resets_itself:
            others = np.setdiff1d(np.flatnonzero(self._ended_E), ids)
            if len(others):  # in DISABLED mode, stepping an ended environment is an error
                self._reset_masked(others)
        filled = np.repeat(actions[:1], self.env_num, axis=0)
        mask_EA = action_masks(self._observation, self.info)
        space = self.vector_env.single_action_space
        if mask_EA is not None and isinstance(space, gym.spaces.Discrete):
            filled[:] = space.start + mask_EA.argmax(axis=1)
        filled[ids] = actions
        return filled


class MaskedActor(AbstractDiscreteActor):
    """A discrete actor for observations `{"obs", "mask"}`: illegal actions have probability 0.

    tianshou's DQN family reads such masks itself. Its PPO, A2C, Reinforce and DiscreteSAC need this actor, and an
    `UnmaskedCritic`. `actor` gets "obs" alone; its logits become `MASKED_LOGIT` where "mask" is 0.
    """

    def __init__(self, actor: AbstractDiscreteActor) -> None:
        if getattr(actor, "softmax_output", False):
            raise ConfigError(
                "the actor returns probabilities: make it with softmax_output=False, so that it returns logits"
            )
        super().__init__(actor.get_output_dim())
        self.actor = actor

    def get_preprocess_net(self) -> ModuleWithVectorOutput:
        """Return the first network of `actor`."""
        return self.actor.get_preprocess_net()

    def forward(self, obs: Any, state: Any = None, info: dict[str, Any] | None = None) -> tuple[torch.Tensor, Any]:
        """Return logits (B, A) of observations with "obs" (B, ...) and "mask" (B, A), and the actor's state."""
        logits_BA, state = self.actor(obs["obs"], state=state, info=info)
        mask_BA = torch.as_tensor(obs["mask"], device=logits_BA.device).bool()
        return logits_BA.masked_fill(~mask_BA, MASKED_LOGIT), state


class DecoderPriorActor(AbstractDiscreteActor):
    """An actor for observations of `LogprobObservation`; it starts at the model's own choice of latents.

    Its logits are those of `net`, a network over the hidden state, plus the observed log-probabilities. The last layer
    of `net` is set to 0, so before the first update latents are drawn exactly as the model draws them. For masked
    observations wrap it in a `MaskedActor`.

    Args:
        net: maps hidden states (B, D) to logits (B, A), such as tianshou's `Net` or `MLP`. Its last module is linear.

    Raises:
        ConfigError: the last module of `net` is not linear, or a softmax follows it.
    """

    def __init__(self, net: ModuleWithVectorOutput) -> None:
        last = list(net.modules())[-1]
        if not isinstance(last, nn.Linear) or getattr(net, "softmax", False):
            raise ConfigError(f"the net ends with {last}, not with logits: end it with a linear layer and no softmax")
        super().__init__(last.out_features)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = net
        self.num_actions = last.out_features

    def get_preprocess_net(self) -> ModuleWithVectorOutput:
        """Return `net`."""
        return self.net

    def forward(self, obs: Any, state: Any = None, info: dict[str, Any] | None = None) -> tuple[torch.Tensor, Any]:
        """Return logits (B, A) of observations (B, D + A), and the network's state."""
        logits_BA, state = self.net(obs[..., : -self.num_actions], state=state, info=info)
        logprobs_BA = torch.as_tensor(obs[..., -self.num_actions :], device=logits_BA.device)
        return logits_BA + logprobs_BA, state


class UnmaskedCritic(nn.Module):
    """A critic for observations `{"obs", "mask"}`; `critic` gets "obs" alone."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, obs: Any, **kwargs: Any) -> torch.Tensor:
        """Return the value of "obs"."""
        value: torch.Tensor = self.critic(obs["obs"], **kwargs)
        return value


def _as_batch(observation: Any) -> Any:
    """Return a Dict observation as tianshou's `Batch`, any other as it is."""
    return Batch(dict(observation)) if isinstance(observation, Mapping) else observation


def _with_final(observation: Any, ids: IntArray, done_E: npt.NDArray[np.bool_], final: Any) -> Any:
    """Return observations (B, ...) of environments `ids`, with the last one of each episode that has ended."""
    if isinstance(observation, Mapping):
        return {key: _with_final(value, ids, done_E, _column(final, key)) for key, value in observation.items()}
    for row in np.flatnonzero(done_E[ids]).tolist():
        observation[row] = final[ids[row]]
    return observation


def _column(final: Any, key: str) -> Any:
    """Return the values of `key` in final observations: a dict of columns, or a dict or `None` per environment."""
    if isinstance(final, Mapping):
        return final[key]
    return [None if row is None else row[key] for row in final]
