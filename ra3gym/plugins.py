"""Modules of a user's own that register E-steps, agents or M-steps: imported before a configuration is checked."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from ra3gym.errors import ConfigError


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
