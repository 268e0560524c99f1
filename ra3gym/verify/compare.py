"""Whether a program's value is the expected one. Works on encoded trees, so that nothing a program sent is hashed."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from ra3gym.verify.sandbox.encoding import DecodeError, decode, text_of

_SHOWN_TEXT = 10_000
"""Longest encoded text that is decoded for a message; more than fits a line anyway."""


def same(got: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Whether two trees (see `sandbox.encoding`) stand for equal values of equal types, at any depth.

    `1`, `1.0` and `True` all differ; NaN equals NaN; what is opaque equals nothing. With a positive `tolerance`, `int`
    and `float` values compare as numbers, within `tolerance` absolute or relative; members of sets and keys of dicts
    compare exactly all the same.
    """
    if tolerance > 0 and type(got) in (int, float) and type(expected) in (int, float):
        return _close(got, expected, tolerance)
    if type(got) is not type(expected):
        return False
    if type(expected) is list:
        return _same_items(got, expected, tolerance)
    if type(expected) is not dict:
        return bool(got == expected or (got != got and expected != expected))
    ((tag, body),) = expected.items()
    if tag not in got or tag == "o" or type(got[tag]) is not type(body):
        return False
    if tag == "d":
        return _same_pairs(got[tag], body, tolerance)
    if tag in ("s", "f"):
        return sorted(map(text_of, got[tag])) == sorted(map(text_of, body))
    if tag == "c":
        return _same_items(got[tag], body, 0.0)
    return same(got[tag], body, tolerance)


def _same_items(got: list[Any], expected: list[Any], tolerance: float) -> bool:
    return len(got) == len(expected) and all(same(a, b, tolerance) for a, b in zip(got, expected, strict=True))


def _same_pairs(got: list[Any], expected: list[Any], tolerance: float) -> bool:
    if len(got) != len(expected) or not all(type(pair) is list and len(pair) == 2 for pair in got):
        return False
    ours = sorted(((text_of(key), item) for key, item in expected), key=lambda pair: pair[0])
    theirs = sorted(((text_of(key), item) for key, item in got), key=lambda pair: pair[0])
    return all(a[0] == b[0] and same(a[1], b[1], tolerance) for a, b in zip(theirs, ours, strict=True))


def _close(got: float, expected: float, tolerance: float) -> bool:
    if got == expected or (got != got and expected != expected):
        return True
    try:
        return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an int beyond the floats
        return False


def shown(tree: Any, width: int = 120) -> str:
    """The value of a tree as a message shows it: its `repr`, cut to `width` characters."""
    text = text_of(tree)
    if len(text) <= _SHOWN_TEXT:
        with contextlib.suppress(DecodeError, ValueError):  # an int may have more digits than Python prints
            text = repr(decode(tree, _Opaque))
    return text if len(text) <= width else text[: width - 3] + "..."


class _Opaque:
    """How a value of no known type reads."""

    def __init__(self, type_name: Any) -> None:
        self._type_name = str(type_name)[:80]

    def __repr__(self) -> str:
        return f"<a {self._type_name}>"
