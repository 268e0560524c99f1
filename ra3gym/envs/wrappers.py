"""Wrappers for any environment with Discrete actions: pruning of the action space, as a mask or as a smaller space.

Shape suffixes: E environments, Z actions, K kept ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector.utils import batch_space

from ra3gym.abstractions.pruning import PrunedActions
from ra3gym.errors import ConfigError

PER_ACTION = ("candidates", "logprobs")
"""Keys of `info` that hold one number per action, in `TokenCode-v0` and `LatentCode-v0`."""


class PruneActions(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Leave an environment only a subset of its actions.

    **As a mask** (default): the action space stays, and masks are and-ed with the subset: `info["action_mask"]` (added
    where the environment has none), `action_masks()` and the `"mask"` of a Dict observation. Where the environment
    allows none of the kept actions, its own mask gives way and the kept ones are open: choosing one is then illegal
    there. *A pruned action* reaches the environment as -1, which is out of range: for the environments of this package
    an illegal action, each documents what it does; one that takes no illegal actions raises.

    **Re-indexed** (`reindex=True`): actions are `Discrete(K)`, the kept ones in ascending order; masks, and the arrays
    of `info` that hold one number per action, are cut to them.

    Args:
        env: any environment with a `Discrete` action space that starts at 0.
        subset: the actions to keep: indices, or the report of a rule in `ra3gym.abstractions.pruning`.
        reindex: see above.
        per_action: the keys of `info` that hold one number per action, beside the mask.

    Raises:
        ConfigError: another action space, an empty subset, an index out of range or twice, or a report on another
            number of actions.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        subset: Sequence[int] | PrunedActions,
        reindex: bool = False,
        per_action: Sequence[str] = PER_ACTION,
    ) -> None:
        self._cut = _Cut(env.action_space, subset, reindex, per_action)
        kept = self._cut.kept_K.tolist()
        RecordConstructorArgs.__init__(self, subset=kept, reindex=reindex, per_action=list(per_action))
        gym.Wrapper.__init__(self, env)
        self.action_space = self._cut.action_space
        self.observation_space = self._cut.observation_space(env.observation_space)

    @property
    def kept(self) -> tuple[int, ...]:
        """The environment's own numbers of the kept actions, ascending."""
        return tuple(self._cut.kept_K.tolist())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The environment's, with masks cut."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._cut.observation(observation), self._cut.info(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The environment's; `gymnasium.error.InvalidAction` for a pruned action where it takes no illegal ones."""
        inner = self._cut.inner(np.asarray(action))
        with _Explained(self._cut, inner):
            observation, reward, terminated, truncated, info = self.env.step(np.int64(inner))
        return self._cut.observation(observation), reward, terminated, truncated, self._cut.info(info)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """bool `(Z,)`, or `(K,)` when re-indexed: which actions are legal now."""
        if not self.env.has_wrapper_attr("action_masks"):
            return self._cut.mask(np.ones(self._cut.num_actions, dtype=np.bool_))
        return self._cut.mask(np.asarray(self.env.get_wrapper_attr("action_masks")(), dtype=np.bool_))


class PruneVectorActions(gym.vector.VectorWrapper, RecordConstructorArgs):
    """`PruneActions` around a vector environment: the same masks, spaces and rules, for all environments alike."""

    def __init__(
        self,
        env: gym.vector.VectorEnv[Any, Any, Any],
        subset: Sequence[int] | PrunedActions,
        reindex: bool = False,
        per_action: Sequence[str] = PER_ACTION,
    ) -> None:
        self._cut = _Cut(env.single_action_space, subset, reindex, per_action)
        kept = self._cut.kept_K.tolist()
        RecordConstructorArgs.__init__(self, subset=kept, reindex=reindex, per_action=list(per_action))
        gym.vector.VectorWrapper.__init__(self, env)
        self.single_action_space = self._cut.action_space
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self.single_observation_space = self._cut.observation_space(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """The environments', with masks cut."""
        # The ignore: Gymnasium's vector environments take a seed for each environment, the types of its base do not.
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        return self._cut.observation(observation), self._cut.info(info, self.num_envs)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """The environments'; `gymnasium.error.InvalidAction` for a pruned action where they take no illegal ones."""
        inner_E = self._cut.inner(np.asarray(actions))
        with _Explained(self._cut, inner_E):
            observation, reward_E, terminated_E, truncated_E, info = self.env.step(inner_E)
        cut = self._cut
        return cut.observation(observation), reward_E, terminated_E, truncated_E, cut.info(info, self.num_envs)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """bool `(E, Z)`, or `(E, K)` when re-indexed: which actions are legal now."""
        own = getattr(self.env, "action_masks", None)
        mask_EZ = np.ones((self.num_envs, self._cut.num_actions), dtype=np.bool_) if own is None else own()
        return self._cut.mask(np.asarray(mask_EZ, dtype=np.bool_))


class _Cut:
    """A subset of actions, and what it makes of actions, masks, observations and infos, of one environment or many."""

    def __init__(
        self, space: gym.Space[Any], subset: Sequence[int] | PrunedActions, reindex: bool, per_action: Sequence[str]
    ) -> None:
        if not isinstance(space, gym.spaces.Discrete) or space.start != 0:
            raise ConfigError(f"the action space is {space}: pruning takes Discrete(n) from 0")
        self.num_actions = int(space.n)
        if isinstance(subset, PrunedActions):
            if subset.num_actions != self.num_actions:
                raise ConfigError(
                    f"the subset was chosen among {subset.num_actions} actions; this environment has {self.num_actions}"
                )
            subset = subset.kept
        kept = sorted(int(one) for one in subset)
        if not kept or len(set(kept)) < len(kept) or kept[0] < 0 or kept[-1] >= self.num_actions:
            raise ConfigError(f"subset={kept}: give at least one action, each once, from 0 to {self.num_actions - 1}")
        self.kept_K = np.array(kept, dtype=np.int64)
        self.kept_Z = np.isin(np.arange(self.num_actions), self.kept_K)
        self._reindex = reindex
        self._per_action = tuple(per_action)
        self.action_space = gym.spaces.Discrete(len(kept)) if reindex else space

    def inner(self, action: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The environment's own number of each action; -1 for what is not kept."""
        known = self.kept_K if self._reindex else np.where(self.kept_Z, np.arange(self.num_actions), -1)
        given = action.astype(np.int64)
        valid = (given >= 0) & (given < len(known))
        return np.where(valid, known[np.where(valid, given, 0)], -1)

    def mask(self, mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A mask over all actions, `(..., Z)`, cut to the subset."""
        cut = mask * self.kept_Z.astype(mask.dtype)
        cut = np.where(cut.any(axis=-1, keepdims=True), cut, self.kept_Z.astype(mask.dtype))
        return self._columns(cut)

    def observation_space(self, space: gym.Space[Any]) -> gym.Space[Any]:
        """The space of observations: a mask in it shrinks with the actions."""
        if not (self._reindex and isinstance(space, gym.spaces.Dict) and "mask" in space.spaces):
            return space
        own = space.spaces["mask"]
        assert isinstance(own, gym.spaces.Box)
        mask = gym.spaces.Box(0, 1, (len(self.kept_K),), own.dtype.type)
        return gym.spaces.Dict({**space.spaces, "mask": mask})

    def observation(self, observation: Any) -> Any:
        """An observation, or a batch of them, with the mask in it cut."""
        if isinstance(observation, Mapping) and "mask" in observation:
            return {**observation, "mask": self.mask(observation["mask"])}
        return observation

    def info(self, info: Mapping[str, Any], num_envs: int | None = None) -> dict[str, Any]:
        """An info, of one environment or in Gymnasium's batched form, with what holds one number per action cut."""
        cut = dict(info)
        if num_envs is None:
            cut["action_mask"] = self.mask(info.get("action_mask", np.ones(self.num_actions, dtype=np.int8)))
        else:
            self._cut_batched_mask(cut, num_envs)
        for key in self._per_action:
            if isinstance(info.get(key), np.ndarray):
                cut[key] = self._columns(info[key])
        if "final_info" in info:
            cut["final_info"] = self.info(info["final_info"], num_envs)
        if "final_obs" in info:
            cut["final_obs"] = np.empty(len(info["final_obs"]), dtype=object)
            for e, observation in enumerate(info["final_obs"]):
                cut["final_obs"][e] = self.observation(observation)
        return cut

    def _cut_batched_mask(self, cut: dict[str, Any], num_envs: int) -> None:
        if "action_mask" not in cut:
            cut["action_mask"] = np.tile(np.ones(self.num_actions, dtype=np.int8), (num_envs, 1))
            cut["_action_mask"] = np.ones(num_envs, dtype=np.bool_)
        has_E = np.asarray(cut.get("_action_mask", np.ones(num_envs, dtype=np.bool_)))
        cut["action_mask"] = self.mask(cut["action_mask"]) * has_E[:, None].astype(cut["action_mask"].dtype)

    def _columns(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values[..., self.kept_K] if self._reindex else values


class _Explained:
    """Says of an environment's complaint about an illegal action that pruning brought it about."""

    def __init__(self, cut: _Cut, inner: npt.NDArray[np.int64]) -> None:
        self._cut, self._pruned = cut, bool((inner < 0).any())

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._pruned and isinstance(error, gym.error.InvalidAction):
            raise gym.error.InvalidAction(
                "an action was chosen that was pruned, and this environment takes no illegal ones: choose by "
                f"action_masks() among {len(self._cut.kept_K)}, or give PruneActions reindex=True"
            ) from error
