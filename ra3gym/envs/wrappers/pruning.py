"""Wrappers for any environment with Discrete actions: pruning of the action space, as a mask or as a smaller space.

Shape letters: see CONTRIBUTING.md (E environments, A actions of the environment). Arrays over the kept actions have no
letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector.utils import batch_space

from ra3gym.abstractions.pruning import PrunedActions
from ra3gym.errors import ConfigError

PER_ACTION = ("candidates", "logprobs")
"""The keys of `info` that hold one number per action in `TokenCode-v0` and `LatentCode-v0`."""


class PruneActions(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Leave an environment only a subset of its actions.

    **As a mask** (default): the action space stays, and the subset is and-ed into every mask: `info["action_mask"]`
    (added if the environment has none), `action_masks()` and the `"mask"` of a Dict observation. If the environment
    allows none of the kept actions, the mask shows all kept actions; the environment then treats each as illegal. *A
    pruned action* reaches the environment as -1, which is out of range. In the environments of this package that is an
    illegal action, and each documents what it does; an environment that takes no illegal actions raises.

    **Re-indexed** (`reindex=True`): the action space is Discrete over the kept actions, in ascending order. Masks, and
    the arrays of `info` that hold one number per action, are cut to them.

    Args:
        env: any environment with a `Discrete` action space that starts at 0.
        subset: the actions to keep: indices, or the report of a rule in `ra3gym.abstractions.pruning`.
        reindex: whether to number the kept actions anew, see above.
        per_action: the keys of `info` that hold one number per action, besides the mask.

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
        self._subset = _Subset(env.action_space, subset, reindex, per_action)
        kept = self._subset.kept.tolist()
        RecordConstructorArgs.__init__(self, subset=kept, reindex=reindex, per_action=list(per_action))
        gym.Wrapper.__init__(self, env)
        self.action_space = self._subset.action_space
        self.observation_space = self._subset.observation_space(env.observation_space)

    @property
    def kept(self) -> tuple[int, ...]:
        """The environment's own numbers of the kept actions, ascending."""
        return tuple(self._subset.kept.tolist())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, and cut its masks."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._subset.observation(observation), self._subset.info(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment; `InvalidAction` for a pruned action if the environment takes no illegal ones."""
        inner = self._subset.inner(np.asarray(action))
        with self._subset.explaining(inner):
            observation, reward, terminated, truncated, info = self.env.step(np.int64(inner))
        return self._subset.observation(observation), reward, terminated, truncated, self._subset.info(info)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which actions are legal now, bool `(A,)`, or over the kept ones when re-indexed."""
        if not self.env.has_wrapper_attr("action_masks"):
            return self._subset.mask(np.ones(self._subset.num_actions, dtype=np.bool_))
        return self._subset.mask(np.asarray(self.env.get_wrapper_attr("action_masks")(), dtype=np.bool_))


class PruneVectorActions(gym.vector.VectorWrapper, RecordConstructorArgs):
    """`PruneActions` around a vector environment: the same masks, spaces and rules, for all environments alike."""

    def __init__(
        self,
        env: gym.vector.VectorEnv[Any, Any, Any],
        subset: Sequence[int] | PrunedActions,
        reindex: bool = False,
        per_action: Sequence[str] = PER_ACTION,
    ) -> None:
        self._subset = _Subset(env.single_action_space, subset, reindex, per_action)
        kept = self._subset.kept.tolist()
        RecordConstructorArgs.__init__(self, subset=kept, reindex=reindex, per_action=list(per_action))
        gym.vector.VectorWrapper.__init__(self, env)
        self.single_action_space = self._subset.action_space
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self.single_observation_space = self._subset.observation_space(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environments, and cut their masks."""
        # The ignore: Gymnasium's vector environments take a seed for each environment, the types of its base do not.
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        return self._subset.observation(observation), self._subset.info(info, self.num_envs)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environments; `InvalidAction` for a pruned action if they take no illegal ones."""
        inner_E = self._subset.inner(np.asarray(actions))
        with self._subset.explaining(inner_E):
            observation, reward_E, terminated_E, truncated_E, info = self.env.step(inner_E)
        info = self._subset.info(info, self.num_envs)
        return self._subset.observation(observation), reward_E, terminated_E, truncated_E, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which actions are legal now, bool `(E, A)`, or over the kept ones when re-indexed."""
        own_masks = getattr(self.env, "action_masks", None)
        if own_masks is None:
            return self._subset.mask(np.ones((self.num_envs, self._subset.num_actions), dtype=np.bool_))
        return self._subset.mask(np.asarray(own_masks(), dtype=np.bool_))


class _Subset:
    """A subset of actions, and what it makes of actions, masks, observations and infos, of one environment or many.

    Attributes:
        num_actions: A.
        kept: int64, the kept actions in ascending order.
        is_kept_A: bool.
        action_space: of the wrapper.
    """

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
        kept = sorted(int(action) for action in subset)
        if not kept or len(set(kept)) < len(kept) or kept[0] < 0 or kept[-1] >= self.num_actions:
            raise ConfigError(f"subset={kept}: give at least one action, each once, from 0 to {self.num_actions - 1}")
        self.kept = np.array(kept, dtype=np.int64)
        self.is_kept_A = np.isin(np.arange(self.num_actions), self.kept)
        self._reindex = reindex
        self._per_action = tuple(per_action)
        self.action_space = gym.spaces.Discrete(len(kept)) if reindex else space

    def inner(self, action: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the environment's own number of each action, -1 for pruned and out-of-range ones."""
        numbers = self.kept if self._reindex else np.where(self.is_kept_A, np.arange(self.num_actions), -1)
        chosen = action.astype(np.int64)
        in_range = (chosen >= 0) & (chosen < len(numbers))
        return np.where(in_range, numbers[np.where(in_range, chosen, 0)], -1)

    def mask(self, mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Cut a mask over all actions, `(..., A)`, to the subset."""
        is_kept_A = self.is_kept_A.astype(mask.dtype)
        cut = mask * is_kept_A
        cut = np.where(cut.any(axis=-1, keepdims=True), cut, is_kept_A)
        return self._columns(cut)

    def observation_space(self, space: gym.Space[Any]) -> gym.Space[Any]:
        """Return the space of observations; a mask in it shrinks with the actions."""
        if not (self._reindex and isinstance(space, gym.spaces.Dict) and "mask" in space.spaces):
            return space
        own = space.spaces["mask"]
        assert isinstance(own, gym.spaces.Box)
        mask = gym.spaces.Box(0, 1, (len(self.kept),), own.dtype.type)
        return gym.spaces.Dict({**space.spaces, "mask": mask})

    def observation(self, observation: Any) -> Any:
        """Cut the mask in an observation, or in a batch of them."""
        if isinstance(observation, Mapping) and "mask" in observation:
            return {**observation, "mask": self.mask(observation["mask"])}
        return observation

    def info(self, info: Mapping[str, Any], num_envs: int | None = None) -> dict[str, Any]:
        """Cut the mask, and all arrays of one number per action, in an info.

        Args:
            info: of one environment, or of several in Gymnasium's batched form.
            num_envs: how many; `None` for an info of one environment.
        """
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
        has_mask_E = np.asarray(cut.get("_action_mask", np.ones(num_envs, dtype=np.bool_)))
        cut["action_mask"] = self.mask(cut["action_mask"]) * has_mask_E[:, None].astype(cut["action_mask"].dtype)

    def _columns(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values[..., self.kept] if self._reindex else values

    @contextmanager
    def explaining(self, inner: npt.NDArray[np.int64]) -> Iterator[None]:
        """Say in an environment's `InvalidAction` that the action was pruned, if it was."""
        try:
            yield
        except gym.error.InvalidAction as error:
            if not bool((inner < 0).any()):
                raise
            raise gym.error.InvalidAction(
                "an action was chosen that was pruned, and this environment takes no illegal ones: choose by "
                f"action_masks() among {len(self.kept)}, or give PruneActions reindex=True"
            ) from error
