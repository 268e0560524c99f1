"""Reading what a Gymnasium vector environment says of one sub-environment; shared by the libraries' adapters.

A vector environment in SAME_STEP mode resets whatever ended within the same step: it returns the new episode's first
observation and keeps the last one of the old episode, and its info, under "final_obs" and "final_info". Batched infos
hold arrays over environments, with a boolean array `_key` beside each `key` for the environments that have it.

Shape suffixes: N environments, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from ra3gym.errors import ConfigError


def autoreset_mode(vector_env: VectorEnv[Any, Any, Any], supported: tuple[AutoresetMode, ...]) -> AutoresetMode:
    """The declared mode; `ConfigError` if there is none or it is not one of those supported."""
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
    """The entries at `index` of batched observations: of an array, of each value of a (nested) dict, or of a tuple."""
    if isinstance(batched, Mapping):
        return {key: select(value, index) for key, value in batched.items()}
    if isinstance(batched, tuple):
        return tuple(select(value, index) for value in batched)
    return batched[index]


def entries(info: Mapping[str, Any], ids: Sequence[int]) -> list[dict[str, Any]]:
    """The infos of environments `ids`, one each, without what only others have; numbers are Python's.

    Column by column: many episodes end in one step of a thousand environments.
    """
    found: list[dict[str, Any]] = [{} for _ in ids]
    for key, value in info.items():
        if key.startswith("_") and key[1:] in info:
            continue
        if isinstance(value, Mapping):
            column: list[Any] = entries(value, ids)
        elif isinstance(value, np.ndarray):
            column = value[ids].tolist() if value.ndim == 1 else list(value[ids])
        else:
            column = [value[i] for i in ids]
        has_N = info.get(f"_{key}")
        present = [True] * len(found) if has_N is None else has_N[ids].tolist()
        for one, entry, here in zip(found, column, present, strict=True):
            if here:
                one[key] = entry
    return found


def action_masks(observation: Any, info: Mapping[str, Any]) -> npt.NDArray[np.bool_] | None:
    """Which actions are legal now, (N, A): `info["action_mask"]`, else the "mask" of a Dict observation, else None."""
    if "action_mask" in info:
        return np.asarray(info["action_mask"], dtype=np.bool_)
    if isinstance(observation, Mapping) and "mask" in observation:
        return np.asarray(observation["mask"], dtype=np.bool_)
    return None
