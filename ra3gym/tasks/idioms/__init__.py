"""The embedded domain `idioms`: procedurally generated Python with unit tests, no download."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ra3gym.errors import ConfigError
from ra3gym.tasks.idioms.domain import LABELS, Difficulty, IdiomsDomain, Split
from ra3gym.tasks.task import CodeTask

__all__ = ["LABELS", "Difficulty", "IdiomsDomain", "Split", "idioms_tasks"]


def idioms_tasks(split: Split = "eval", **options: Any) -> list[CodeTask]:
    """Return the problems of one split; `options` are fields of `IdiomsDomain`, others raise `ConfigError`."""
    known = [field.name for field in fields(IdiomsDomain)]
    for option in options:
        if option not in known:
            raise ConfigError(f"task set 'idioms' takes no {option!r}; its options are {', '.join(known)}")
    return IdiomsDomain(**options).tasks(split)
