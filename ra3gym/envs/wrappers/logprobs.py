"""The model's own log-probabilities of the actions, as part of the observation.

`TokenCode-v0` and `LatentCode-v0` give them as `info["logprobs"]`, which the libraries' algorithms do not read. In the
observation they are a warm start: a policy that adds them to its logits begins at the model's own choice
(`ra3gym.agents.sb3.DecoderPriorPolicy`, `ra3gym.agents.tianshou.DecoderPriorActor`).

Shape letters: see CONTRIBUTING.md (E environments, D width of an observation, A actions).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from ra3gym.errors import ConfigError

Float32Array = npt.NDArray[np.float32]

FLOOR = -20.0
"""Log-probabilities are clipped to this many nats: less likely actions are as good as impossible."""


class LogprobObservation(VectorWrapper):
    """Append `info["logprobs"]` to the observations of a vector environment: float32 `(E, D + A)`.

    Observations are a Box of one dimension, or a Dict `{"obs", "mask"}` whose "obs" is extended. The last observations
    of episodes (`info["final_obs"]`) are extended too. Log-probabilities are in nats, clipped to `FLOOR`.

    Args:
        env: a vector environment with Discrete actions whose infos hold `logprobs`, one number per action.

    Raises:
        ConfigError: observations of another form.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        inner, actions = env.single_observation_space, env.single_action_space
        self._is_dict = isinstance(inner, gym.spaces.Dict)
        box = inner["obs"] if isinstance(inner, gym.spaces.Dict) and "obs" in inner.spaces else inner
        if not (isinstance(box, gym.spaces.Box) and len(box.shape) == 1 and np.issubdtype(box.dtype, np.floating)):
            raise ConfigError(
                f"observations {inner} cannot be extended: they must be vectors of floats, or a Dict with such an "
                "'obs'; make the environment with observation='hidden' or 'dict'"
            )
        if not isinstance(actions, gym.spaces.Discrete):
            raise ConfigError(f"{actions} has no log-probabilities: the action space must be Discrete")
        low = np.append(box.low, np.full(actions.n, FLOOR)).astype(np.float32)
        high = np.append(box.high, np.zeros(actions.n)).astype(np.float32)
        extended = gym.spaces.Box(low, high)
        self.single_observation_space = (
            gym.spaces.Dict({**inner.spaces, "obs": extended}) if isinstance(inner, gym.spaces.Dict) else extended
        )
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; the observations have the log-probabilities appended."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._extended(observation, info["logprobs"]), info

    def step(
        self, actions: Any
    ) -> tuple[Any, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Step the environment; the observations, last ones included, have the log-probabilities appended."""
        observation, reward_E, terminated_E, truncated_E, info = self.env.step(actions)
        if "final_obs" in info:
            final_E = info["final_obs"].copy()
            for e in np.flatnonzero(info["_final_obs"]).tolist():
                final_E[e] = self._extended(final_E[e], info["final_info"]["logprobs"][e])
            info = {**info, "final_obs": final_E}
        return self._extended(observation, info["logprobs"]), reward_E, terminated_E, truncated_E, info

    def _extended(self, observation: Any, logprobs: Float32Array) -> Any:
        """Return an observation, or a batch of them, with the log-probabilities appended."""
        if self._is_dict:
            return {**observation, "obs": _append(observation["obs"], logprobs)}
        return _append(observation, logprobs)


def _append(vector: Float32Array, logprobs: Float32Array) -> Float32Array:
    extended: Float32Array = np.concatenate([vector, np.maximum(logprobs, FLOOR)], axis=-1, dtype=np.float32)
    return extended
