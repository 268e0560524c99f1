"""Whether a program's value is the expected one. Works on encoded trees, so that nothing a program sent is hashed."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from ra3gym.verify.sandbox.encoding import text_of

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
        text = _written(tree)
    return text if len(text) <= width else text[: width - 3] + "..."


def _written(tree: Any) -> str:
    """A tree as its value's `repr`; no value is made of it, since that can take any time and memory."""
    if type(tree) is list:
        return f"[{_listed(tree)}]"
    if type(tree) is not dict:
        return repr(tree)
    ((tag, body),) = tree.items()
    if type(body) is list:
        match tag, body:
            case "t", [only]:
                return f"({_written(only)},)"
            case "t", _:
                return f"({_listed(body)})"
            case "s" | "f", _:
                text = f"{{{_listed(body)}}}" if body else "set()"
                return text if tag == "s" else f"frozenset({text if body else ''})"
            case "d", _ if all(type(pair) is list and len(pair) == 2 for pair in body):
                return f"{{{', '.join(f'{_written(key)}: {_written(item)}' for key, item in body)}}}"
            case "n", _:
                return f"iter([{_listed(body)}])"
            case "r", [start, stop, step]:
                return f"range({_listed([start, stop] if step == 1 else body)})"
            case "x", [str(name), [*contents]]:
                return f"{name}({_listed(contents)})"
    elif type(body) is str:
        match tag:
            case "b" | "a" | "u":
                with contextlib.suppress(ValueError):
                    raw = bytes.fromhex(body)
                    if tag == "u":
                        return repr(raw.decode("utf-32-le", "surrogatepass"))
                    return repr(raw if tag == "b" else bytearray(raw))
            case "y":
                return body
            case "o":
                return f"<a {body[:80]}>"
    return text_of(tree)


def _listed(trees: list[Any]) -> str:
    return ", ".join(map(_written, trees))
