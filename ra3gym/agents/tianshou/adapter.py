"""Gymnasium's vector environments for tianshou 2, and the actor with which its policy gradients honour masks.

    venv = as_vector_env(gymnasium.make_vec("ra3gym/TraceInference-v0", 64, autoreset_mode="SameStep"))
    collector = tianshou.data.Collector(algorithm, venv, VectorReplayBuffer(20_000, len(venv)))

tianshou resets by itself, environment by environment, where Gymnasium's vector environments reset what ended. Both
come together in SAME_STEP mode: an episode that ends has begun anew already, and tianshou's reset only picks up the
observation. In DISABLED mode its reset is passed on as Gymnasium's `options={"reset_mask": ...}`.

Shape suffixes: N environments, R of them stepped or reset, A actions.
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

from ra3gym.agents.vector_info import action_masks, autoreset_mode, select
from ra3gym.errors import ConfigError

EnvIds = int | list[int] | npt.NDArray[np.integer[Any]] | None
IntArray = npt.NDArray[np.int64]

MASKED_LOGIT = -1e8
"""The logit of an illegal action: its probability is 0 in float32, while entropies and gradients stay finite."""


def as_vector_env(vector_env: VectorEnv[Any, Any, Any]) -> GymnasiumVectorEnv:
    """A tianshou `BaseVectorEnv` over any Gymnasium vector environment in SAME_STEP or DISABLED mode.

    Box, Discrete and (nested) Dict observations; a Dict with "obs" and "mask" is the form in which tianshou's DQN
    family sees masks (for actors, see `MaskedActor`). Infos are empty; the batched one is `venv.info`.

    Stepping some of the environments (tianshou does so at the end of `collect(n_episode=...)`) steps the others too,
    with a legal action, and forgets what came of it: those must be reset before they are stepped again. In SAME_STEP
    mode an environment in the middle of an episode can only be reset together with all others, and `reset`'s options
    reach whole resets only.

    The vector environment must return new arrays at each step (Gymnasium's own do, with `copy=True`).

    Raises:
        ConfigError: the environment resets in another mode.
    """
    return GymnasiumVectorEnv(vector_env)


class GymnasiumVectorEnv(BaseVectorEnv):
    """See `as_vector_env`.

    vector_env: what is adapted. info: its batched info of the last reset or step.
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        # The base class' own __init__ starts workers, of which there are none.
        mode = autoreset_mode(vector_env, (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED))
        self.vector_env = vector_env
        self.info: dict[str, Any] = {}
        self._resets_itself = mode is AutoresetMode.SAME_STEP
        self.env_num = N = vector_env.num_envs
        self.workers = []
        self.wait_num, self.timeout, self.is_async = N, None, False
        self.waiting_conn, self.waiting_id, self.ready_id = [], [], list(range(N))
        self.is_closed = False
        self._seed: int | None = None
        self._observation: Any = None
        self._info_N = np.array([{} for _ in range(N)], dtype=object)
        # What tianshou has to reset before it steps, and which of these are at an episode's beginning already.
        self._ended_N = np.ones(N, dtype=np.bool_)
        self._begun_N = np.zeros(N, dtype=np.bool_)

    def reset(self, env_id: EnvIds = None, **kwargs: Any) -> tuple[Any, npt.NDArray[Any]]:
        """First observations (R, ...) and infos of some environments, or of all.

        `kwargs` go to Gymnasium's `reset`: `seed` (environment i gets seed + i), `options`.

        Raises:
            ConfigError: in SAME_STEP mode, some environments but not all, in the middle of an episode or with `kwargs`.
        """
        self._assert_is_not_closed()
        ids = self._ids(env_id)
        if len(ids) == self.env_num and not (self._begun_N.all() and not kwargs and self._seed is None):
            seed = kwargs.pop("seed", self._seed)
            self._seed = None
            self._observation, self.info = self.vector_env.reset(seed=seed, **kwargs)
        elif not self._resets_itself:
            self._reset_masked(ids, **kwargs)
        elif not self._begun_N[ids].all() or any(value is not None for value in kwargs.values()):
            raise ConfigError(
                f"environments {ids.tolist()} of {self.env_num} cannot be reset alone in the middle of an episode, or "
                f"with {kwargs}: in SAME_STEP mode only those that ended begin anew; reset all, or make the vector "
                "environment with autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED"
            )
        self._ended_N[ids] = False
        self._begun_N[ids] = False
        return _as_batch(select(self._observation, ids)), self._info_N[ids]

    def step(
        self,
        action: npt.NDArray[Any] | torch.Tensor | None,
        id: EnvIds = None,
    ) -> tuple[Any, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Step environments: observations, rewards, terminated, truncated (R each), infos; last ones where one ended.

        Raises:
            gymnasium.error.ResetNeeded: an environment whose episode has ended, or that was stepped past.
            ConfigError: no action.
        """
        self._assert_is_not_closed()
        ids = self._ids(id)
        if action is None:
            raise ConfigError("step(None) polls asynchronous environments; this one answers at once: give actions")
        if self._ended_N[ids].any():
            raise gym.error.ResetNeeded(f"reset environments {ids[self._ended_N[ids]].tolist()} before stepping them")
        actions = np.asarray(action)
        if len(ids) < self.env_num:
            actions = self._with_others(actions, ids)
        else:
            actions = actions[np.argsort(ids)]
        observation, reward_N, terminated_N, truncated_N, self.info = self.vector_env.step(actions)
        done_N = np.logical_or(terminated_N, truncated_N)
        last = select(observation, ids)
        if self._resets_itself and done_N[ids].any():
            last = _with_final(last, ids, done_N, self.info["final_obs"])
        self._observation = observation
        self._ended_N[:] = True
        self._ended_N[ids] = done_N[ids]
        self._begun_N = done_N if self._resets_itself else np.zeros_like(done_N)
        return _as_batch(last), reward_N[ids], terminated_N[ids], truncated_N[ids], self._info_N[ids]

    def seed(self, seed: int | list[int] | None = None) -> list[list[int] | None]:
        """Seed the next reset of all environments: environment i with `seed + i`."""
        first = seed[0] if isinstance(seed, list) else seed
        if isinstance(seed, list) and seed != list(range(seed[0], seed[0] + self.env_num)):
            raise ConfigError(f"seeds {seed}: give one number; environment i gets that number + i")
        self._seed = first
        return [None if first is None else [first + i] for i in range(self.env_num)]

    def get_env_attr(self, key: str, id: EnvIds = None) -> list[Any]:
        """The attribute of each environment; spaces are those of a single one."""
        ids = self._ids(id)
        vector_env = self.vector_env
        if key in ("action_space", "observation_space"):
            return [getattr(vector_env, f"single_{key}")] * len(ids)
        if hasattr(vector_env.unwrapped, "get_attr") and not hasattr(vector_env, key):
            values = vector_env.unwrapped.get_attr(key)
            return [values[i] for i in ids]
        return [getattr(vector_env, key)] * len(ids)

    def set_env_attr(self, key: str, value: Any, id: EnvIds = None) -> None:
        """Set it on all environments; `ConfigError` when only some are named."""
        if len(self._ids(id)) != self.env_num:
            raise ConfigError(f"{key!r} was to be set on environments {id} only: leave the ids out, for all of them")
        if hasattr(self.vector_env.unwrapped, "set_attr"):
            self.vector_env.unwrapped.set_attr(key, value)
        else:
            setattr(self.vector_env.unwrapped, key, value)

    def render(self, **kwargs: Any) -> list[Any]:
        """One frame per environment."""
        self._assert_is_not_closed()
        return list(self.vector_env.render() or [None] * self.env_num)

    def close(self) -> None:
        """Close the vector environment; safe to call twice."""
        self.vector_env.close()
        self.is_closed = True

    def _ids(self, env_id: EnvIds) -> IntArray:
        return np.arange(self.env_num) if env_id is None else np.atleast_1d(np.asarray(env_id, dtype=np.int64))

    def _reset_masked(self, ids: IntArray, **kwargs: Any) -> None:
        mask_N = np.zeros(self.env_num, dtype=np.bool_)
        mask_N[ids] = True
        options = {**(kwargs.pop("options", None) or {}), "reset_mask": mask_N}
        self._observation, self.info = self.vector_env.reset(options=options, **kwargs)

    def _with_others(self, actions: npt.NDArray[Any], ids: IntArray) -> npt.NDArray[Any]:
        """Actions for all environments: those given, and legal ones for the others."""
        if not self._resets_itself:
            others = np.setdiff1d(np.flatnonzero(self._ended_N), ids)
            if len(others):  # stepping what has ended is an error in DISABLED mode
                self._reset_masked(others)
        filled = np.repeat(actions[:1], self.env_num, axis=0)
        masks_NA = action_masks(self._observation, self.info)
        space = self.vector_env.single_action_space
        if masks_NA is not None and isinstance(space, gym.spaces.Discrete):
            filled[:] = space.start + masks_NA.argmax(axis=1)
        filled[ids] = actions
        return filled


class MaskedActor(AbstractDiscreteActor):
    """A discrete actor for observations `{"obs", "mask"}`: illegal actions have probability 0.

    tianshou's DQN family reads such masks; its PPO, A2C, Reinforce and DiscreteSAC do not, unless their actor is this
    one. The logits are those of `actor`, which sees "obs" alone, with `MASKED_LOGIT` where "mask" is 0. A critic is
    wrapped in `UnmaskedCritic`, so that it too sees "obs" alone.
    """

    def __init__(self, actor: AbstractDiscreteActor) -> None:
        if getattr(actor, "softmax_output", False):
            raise ConfigError("the actor returns probabilities: make it with softmax_output=False, for logits")
        super().__init__(actor.get_output_dim())
        self.actor = actor

    def get_preprocess_net(self) -> ModuleWithVectorOutput:
        """The network that `actor` begins with."""
        return self.actor.get_preprocess_net()

    def forward(self, obs: Any, state: Any = None, info: dict[str, Any] | None = None) -> tuple[torch.Tensor, Any]:
        """Logits (R, A) of observations with "obs" (R, ...) and "mask" (R, A), and the actor's state."""
        logits_RA, state = self.actor(obs["obs"], state=state, info=info)
        mask_RA = torch.as_tensor(obs["mask"], device=logits_RA.device).bool()
        return logits_RA.masked_fill(~mask_RA, MASKED_LOGIT), state


class DecoderPriorActor(AbstractDiscreteActor):
    """An actor for observations by `LogprobObservation`, begun at the model's own choice.

    Logits are those of `net`, a network over the hidden state, plus the observed log-probabilities. The last layer of
    `net` is set to 0 here, so that ahead of the first update latents are drawn just as the model would draw them.
    Under masks it goes inside a `MaskedActor`.

    Args:
        net: from observations (R, D) to logits (R, A): tianshou's `Net` or `MLP`, whose last module is linear.

    Raises:
        ConfigError: the last module of `net` is not linear, or a softmax follows.
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
        """`net`."""
        return self.net

    def forward(self, obs: Any, state: Any = None, info: dict[str, Any] | None = None) -> tuple[torch.Tensor, Any]:
        """Logits (R, A) of observations (R, D + A), and the network's state."""
        logits_RA, state = self.net(obs[..., : -self.num_actions], state=state, info=info)
        logprobs_RA = torch.as_tensor(obs[..., -self.num_actions :], device=logits_RA.device)
        return logits_RA + logprobs_RA, state


class UnmaskedCritic(nn.Module):
    """A critic for observations `{"obs", "mask"}`, of which it sees "obs"."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, obs: Any, **kwargs: Any) -> torch.Tensor:
        """What `critic` says of "obs"."""
        value: torch.Tensor = self.critic(obs["obs"], **kwargs)
        return value


def _as_batch(observation: Any) -> Any:
    """Dicts of arrays are tianshou's `Batch`."""
    return Batch(dict(observation)) if isinstance(observation, Mapping) else observation


def _with_final(last: Any, ids: IntArray, done_N: npt.NDArray[np.bool_], final: Any) -> Any:
    """`last` (R, ...) with the final observations of the environments that ended, whose own begin a new episode."""
    if isinstance(last, Mapping):
        of = (lambda key: final[key]) if isinstance(final, Mapping) else (lambda key: [f and f[key] for f in final])
        return {key: _with_final(value, ids, done_N, of(key)) for key, value in last.items()}
    for row in np.flatnonzero(done_N[ids]).tolist():
        last[row] = final[ids[row]]
    return last
