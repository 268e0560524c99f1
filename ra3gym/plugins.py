"""Plug-ins: tables of named parts that users extend, and the import of the modules that extend them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from ra3gym.errors import ConfigError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Parts of one kind by name, in the order in which they were registered.

    Args:
        kind: what an entry is, for errors: "E-step".
        register_with: the function with which users add their own, for errors.
        entries: the parts that come with the package.
    """

    def __init__(self, kind: str, register_with: str, entries: Mapping[str, T] | None = None) -> None:
        self.kind = kind
        self._register_with = register_with
        self._entries: dict[str, T] = dict(entries or {})

    def register(self, name: str, entry: T) -> None:
        """Make `entry` available under `name`; an entry of that name is replaced."""
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        """Return the entry of that name; `UnknownNameError` lists the known ones and how to add one."""
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries, f"Add your own with {self._register_with}.")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def names(self) -> tuple[str, ...]:
        """Return the names, in the order of registration."""
        return tuple(self._entries)


def import_plugins(modules: Sequence[str]) -> None:
    """Import each module, from the current folder too; `ConfigError` names the one that cannot be imported."""
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a user's module raises
            raise ConfigError(
                f"cannot import the plug-in {module!r}: {type(error).__name__}: {error}. Name a module (not a file) "
                "that is installed or lies in the current folder"
            ) from error
