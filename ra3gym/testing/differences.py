"""The first difference between two observations, infos or other nested data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

MEASURED = frozenset({"seconds", "cpu_seconds"})
"""Keys and dataclass fields that hold a measured time, and so differ from run to run."""

SHOWN = 60
"""Most characters of a value in a message."""


def difference(
    one: Any, other: Any, *, measured: Collection[str] = MEASURED, tolerance: float = 0.0, path: str = ""
) -> str | None:
    """Return the first difference between two nested data, or `None`; as "info['duration']['tokens']: 3 is not 4".

    Types, dtypes and shapes must be equal too. NaN equals NaN.

    Args:
        one, other: mappings, sequences, dataclasses, arrays, and anything with `==`.
        measured: keys and dataclass fields to leave out.
        tolerance: absolute and relative tolerance of floats; 0 compares exactly.
        path: the name of the data in the message.
    """

    def inner(a: Any, b: Any, step: str) -> str | None:
        return difference(a, b, measured=measured, tolerance=tolerance, path=path + step)

    if type(one) is not type(other):
        return f"{path}: {_shown(one)} ({type(one).__name__}) is not {_shown(other)} ({type(other).__name__})"
    if is_dataclass(one) and not isinstance(one, type):
        names = [field.name for field in fields(one) if field.name not in measured]
        return _first(inner(getattr(one, name), getattr(other, name), f".{name}") for name in names)
    if isinstance(one, Mapping):
        if unmatched := sorted(map(repr, (one.keys() ^ other.keys()) - set(measured))):
            return f"{path}: only one of the two has {', '.join(unmatched)}"
        return _first(inner(one[key], other[key], f"[{key!r}]") for key in one if key not in measured)
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f"{path}: {len(one)} entries, not {len(other)}"
        return _first(inner(a, b, f"[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
    if isinstance(one, np.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape:
            return f"{path}: {one.dtype} of shape {one.shape} is not {other.dtype} of shape {other.shape}"
        if one.dtype == object:
            return _first(inner(a, b, f"[{i}]") for i, (a, b) in enumerate(zip(one.flat, other.flat, strict=True)))
        unequal = np.argwhere(~_equal(one, other, tolerance))
        if len(unequal):
            at = tuple(unequal[0].tolist())
            index = "".join(f"[{i}]" for i in at)
            return f"{path}{index}: {one[at]} is not {other[at]} ({len(unequal)} of {one.size} differ)"
        return None
    same = _equal(np.asarray(one), np.asarray(other), tolerance).all() if np.isscalar(one) else one == other
    return None if same else f"{path}: {_shown(one)} is not {_shown(other)}"


def _equal(one: Any, other: Any, tolerance: float) -> Any:
    if not np.issubdtype(one.dtype, np.inexact):
        return np.asarray(one == other)
    if tolerance:
        return np.isclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    return (one == other) | (np.isnan(one) & np.isnan(other))


def _first(differences: Iterable[str | None]) -> str | None:
    return next((found for found in differences if found is not None), None)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
