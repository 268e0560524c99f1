"""What an agent may see beside the hidden state: the model's own log-probabilities of the actions.

`TokenCode-v0` and `LatentCode-v0` give them as `info["logprobs"]`, which the libraries' algorithms do not read. In the
observation they are a warm start: a policy that adds them to its logits begins at the model's own choice
(`ra3gym.agents.sb3.DecoderPriorPolicy`, `ra3gym.agents.tianshou.DecoderPriorActor`).

Shape suffixes: N environments, D sizes of the hidden state, A actions.
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
"""Log-probabilities are clipped to this many nats: what is less likely is as good as impossible."""


class LogprobObservation(VectorWrapper):
    """Append `info["logprobs"]` to the observations of a vector environment: float32 `(N, D + A)`, D first.

    Box observations of one dimension, or a Dict `{"obs", "mask"}`, whose "obs" is appended to. Last observations
    (`info["final_obs"]`) are appended to likewise. Log-probabilities are in nats, clipped to `FLOOR`.

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
                f"observations {inner} cannot be appended to: they must be vectors of floats, or a Dict with such an "
                "'obs'; make the environment with observation='hidden' or 'dict'"
            )
        if not isinstance(actions, gym.spaces.Discrete):
            raise ConfigError(f"{actions} has no log-probabilities: the action space must be Discrete")
        low = np.append(box.low, np.full(actions.n, FLOOR)).astype(np.float32)
        high = np.append(box.high, np.zeros(actions.n)).astype(np.float32)
        longer = gym.spaces.Box(low, high)
        self.single_observation_space = (
            gym.spaces.Dict({**inner.spaces, "obs": longer}) if isinstance(inner, gym.spaces.Dict) else longer
        )
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's, with the log-probabilities appended to the observations."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._appended(observation, info["logprobs"]), info

    def step(
        self, actions: Any
    ) -> tuple[Any, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """As the environment's, with the log-probabilities appended to the observations, last ones included."""
        observation, reward_N, terminated_N, truncated_N, info = self.env.step(actions)
        if "final_obs" in info:
            final_N = info["final_obs"].copy()
            for i in np.flatnonzero(info["_final_obs"]).tolist():
                final_N[i] = self._appended(final_N[i], info["final_info"]["logprobs"][i])
            info = {**info, "final_obs": final_N}
        return self._appended(observation, info["logprobs"]), reward_N, terminated_N, truncated_N, info

    def _appended(self, observation: Any, logprobs: Float32Array) -> Any:
        """Of a batch, or of one environment."""
        if self._is_dict:
            return {**observation, "obs": _append(observation["obs"], logprobs)}
        return _append(observation, logprobs)


def _append(vector: Float32Array, logprobs: Float32Array) -> Float32Array:
    longer: Float32Array = np.concatenate([vector, np.maximum(logprobs, FLOOR)], axis=-1, dtype=np.float32)
    return longer
