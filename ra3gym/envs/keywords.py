"""The keywords of environments: their configuration dataclasses, and the checks of values. Nothing heavy here.

An environment that names a frozen dataclass as `config_type` takes its fields as keywords. The dataclass is the one
place of their defaults, their documentation (its `Attributes:` section) and their checks (`__post_init__`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, get_args

from gymnasium.vector import AutoresetMode

from ra3gym.errors import ConfigError, UnknownNameError

C = TypeVar("C")

RENDER_MODES = ("ansi", "rgb_array")
"""What every environment of this package renders."""


def config_from(kind: type[C], owner: object, args: Sequence[Any], keywords: Mapping[str, Any]) -> C:
    """Return the configuration that the arguments of an environment make.

    Args:
        kind: a dataclass.
        owner: the environment, which an error names.
        args: the environment's positional arguments.
        keywords: its keyword arguments.

    Raises:
        UnknownNameError: a keyword that is not a field of `kind`.
    """
    known = field_names(kind)
    for name in keywords:
        if name not in known:
            raise UnknownNameError(f"keyword of {type(owner).__name__}", name, known)
    return kind(*args, **keywords)


def field_names(kind: type[object]) -> list[str]:
    """Return the names of a dataclass's fields, in their order."""
    return [one.name for one in fields(kind)]  # type: ignore[arg-type] # no type says "a dataclass"


def field_meanings(kind: type[object]) -> dict[str, str]:
    """Return what the `Attributes:` sections of a dataclass and its bases say of each field, in one line each."""
    meanings: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        meanings |= section_entries(inspect.cleandoc(vars(one).get("__doc__") or ""), "Attributes")
    return meanings


def section_entries(docstring: str, section: str) -> dict[str, str]:
    """Return the entries of a docstring's section ("Args" or "Attributes"), each in one line."""
    _, _, rest = docstring.partition(f"\n{section}:\n")
    body = re.split(r"^\S", rest, maxsplit=1, flags=re.MULTILINE)[0]
    names_and_texts = re.split(r"^ {4}(\w+): ", body, flags=re.MULTILINE)[1:]
    names, texts = names_and_texts[::2], names_and_texts[1::2]
    return {name: " ".join(text.split()) for name, text in zip(names, texts, strict=True)}


def refuse_unknown_options(options: Iterable[str], known: Collection[str]) -> None:
    """Raise `ConfigError` for an option of `reset` that is not in `known`."""
    if unknown := set(options) - set(known):
        raise ConfigError(
            f"unknown reset option {', '.join(map(repr, sorted(unknown)))}; known: {', '.join(map(repr, known))}"
        )


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise `ConfigError` for a value that is not one of a `Literal`'s."""
    if value not in get_args(choices):
        raise ConfigError(f"{name}={value!r} is not supported; use one of {', '.join(map(repr, get_args(choices)))}")


def check_render_mode(render_mode: str | None) -> None:
    """Raise `ConfigError` for an unknown mode."""
    if render_mode not in (None, *RENDER_MODES):
        known = " or ".join(map(repr, RENDER_MODES))
        raise ConfigError(f"render_mode={render_mode!r} is not supported; use None or {known}")


def check_vector(num_envs: int, autoreset_mode: str | AutoresetMode) -> AutoresetMode:
    """Return the autoreset mode of that name; `ConfigError` for an unknown one, or for less than one environment."""
    if num_envs < 1:
        raise ConfigError(f"num_envs={num_envs} must be at least 1")
    try:
        return AutoresetMode(autoreset_mode)
    except ValueError:
        known = ", ".join(repr(one.value) for one in AutoresetMode)
        raise ConfigError(f"autoreset_mode={autoreset_mode!r} is not supported; use one of {known}") from None
