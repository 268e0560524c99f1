"""Settings on the command line, as key=value."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Sequence
from typing import Any

from ra3gym.errors import ConfigError


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of a command line of the form key=value that belong to no option, and all others."""
    settings: list[str] = []
    others: list[str] = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        is_setting = "=" in word and not word.startswith("-") and before != "--option"
        (settings if is_setting else others).append(word)
    return settings, others


def parse_setting(text: str) -> tuple[str, Any]:
    """Return "top_k=8" as ("top_k", 8). A value that is not a Python literal stays text.

    Raises:
        ConfigError: a text without "=", or without a name before it.
    """
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise ConfigError(f"{text!r}: give settings as key=value, such as top_k=8")
    try:
        return name, literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
