"""Refusals that the environments share: arguments and options of `reset` outside their choices. Nothing heavy here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import get_args

from gymnasium.vector import AutoresetMode

from ra3gym.errors import ConfigError


def refuse_unknown_options(options: Iterable[str], known: Collection[str]) -> None:
    """Refuse options of `reset` other than `known` with `ConfigError`."""
    if unknown := set(options) - set(known):
        raise ConfigError(
            f"unknown reset option {', '.join(map(repr, sorted(unknown)))}; known: {', '.join(map(repr, known))}"
        )


def check_choice(name: str, value: object, choices: object) -> None:
    """Refuse a value that is not one of a `Literal`'s with `ConfigError`."""
    if value not in get_args(choices):
        raise ConfigError(f"{name}={value!r} is not supported; use one of {', '.join(map(repr, get_args(choices)))}")


def check_render_mode(render_mode: str | None, known: Sequence[str]) -> None:
    """Refuse an unknown mode with `ConfigError`."""
    if render_mode not in (None, *known):
        raise ConfigError(f"render_mode={render_mode!r} is not supported; use None or {' or '.join(map(repr, known))}")


def check_vector(num_envs: int, autoreset_mode: str | AutoresetMode) -> AutoresetMode:
    """The autoreset mode of that name; `ConfigError` if there is none, or for less than one environment."""
    if num_envs < 1:
        raise ConfigError(f"num_envs={num_envs} must be at least 1")
    try:
        return AutoresetMode(autoreset_mode)
    except ValueError:
        known = ", ".join(repr(one.value) for one in AutoresetMode)
        raise ConfigError(f"autoreset_mode={autoreset_mode!r} is not supported; use one of {known}") from None
