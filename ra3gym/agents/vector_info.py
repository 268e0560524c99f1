"""Reading one environment's data out of a Gymnasium vector environment's batches; shared by the libraries' adapters.

A vector environment in SAME_STEP mode resets each environment in the step that ends its episode. It returns the first
observation of the new episode, and keeps the last observation and info of the old one in its info, under "final_obs"
and "final_info". Batched infos hold arrays over environments; beside each `key`, a boolean array `_key` says which
environments have it.

Shape letters: see CONTRIBUTING.md (E environments, A actions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from ra3gym.errors import ConfigError


def autoreset_mode(vector_env: VectorEnv[Any, Any, Any], supported: tuple[AutoresetMode, ...]) -> AutoresetMode:
    """Return the autoreset mode that `vector_env` declares; `ConfigError` unless it is one of those supported."""
    declared = vector_env.metadata.get("autoreset_mode")
    names = " or ".join(mode.name for mode in supported)
    if declared is None:
        raise ConfigError(
            f"{vector_env} declares no autoreset mode: set metadata['autoreset_mode'] to "
            f"gymnasium.vector.AutoresetMode.{names}"
        )
    mode = AutoresetMode(declared)
    if mode not in supported:
        raise ConfigError(
            f"{vector_env} resets in mode {mode.name}, this adapter needs {names}: make it with "
            f"autoreset_mode=gymnasium.vector.AutoresetMode.{supported[0].name} (with make_vec: as a keyword, or "
            "inside vector_kwargs for the modes 'sync' and 'async')"
        )
    return mode


def select(batched: Any, index: Any) -> Any:
    """Return the entries at `index` of batched observations: an array, or a (nested) dict or tuple of arrays."""
    if isinstance(batched, Mapping):
        return {key: select(value, index) for key, value in batched.items()}
    if isinstance(batched, tuple):
        return tuple(select(value, index) for value in batched)
    return batched[index]


def entries(info: Mapping[str, Any], ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return one info for each environment of `ids`, with the keys that this environment has; numbers are Python's.

    Works column by column, since many of a thousand environments may end their episodes in one step.
    """
    infos: list[dict[str, Any]] = [{} for _ in ids]
    for key, value in info.items():
        if key.startswith("_") and key[1:] in info:
            continue
        if isinstance(value, Mapping):
            column: list[Any] = entries(value, ids)
        elif isinstance(value, np.ndarray):
            column = value[ids].tolist() if value.ndim == 1 else list(value[ids])
        else:
            column = [value[i] for i in ids]
        has_E = info.get(f"_{key}")
        present = [True] * len(infos) if has_E is None else has_E[ids].tolist()
        for row, entry, has_key in zip(infos, column, present, strict=True):
            if has_key:
                row[key] = entry
    return infos


def action_masks(observation: Any, info: Mapping[str, Any]) -> npt.NDArray[np.bool_] | None:
    """Return which actions are legal now (E, A), or `None` when neither the info nor the observation has a mask.

    The info's "action_mask" comes first, then the "mask" of a Dict observation.
    """
    if "action_mask" in info:
        return np.asarray(info["action_mask"], dtype=np.bool_)
    if isinstance(observation, Mapping) and "mask" in observation:
        return np.asarray(observation["mask"], dtype=np.bool_)
    return None


def attributes(vector_env: VectorEnv[Any, Any, Any], name: str) -> list[Any]:
    """Return the attribute of each environment; of environments that are rows of arrays, the vector environment's."""
    if hasattr(vector_env.unwrapped, "get_attr"):
        return list(vector_env.unwrapped.get_attr(name))
    return [attribute(vector_env, name)] * vector_env.num_envs


def attribute(vector_env: VectorEnv[Any, Any, Any], name: str) -> Any:
    """Return the attribute of the outermost wrapper, or else the unwrapped environment's: wrappers do not forward."""
    return getattr(vector_env if hasattr(vector_env, name) else vector_env.unwrapped, name)


def set_attribute(vector_env: VectorEnv[Any, Any, Any], name: str, value: Any) -> None:
    """Set the attribute on every environment; where environments are rows of arrays, on the vector environment."""
    if hasattr(vector_env.unwrapped, "set_attr"):
        vector_env.unwrapped.set_attr(name, value)
    else:
        setattr(vector_env.unwrapped, name, value)
