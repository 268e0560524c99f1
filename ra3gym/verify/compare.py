"""Whether a program's value is the expected one, by their encoded trees, so that nothing a program sent is hashed."""

from __future__ import annotations

import contextlib
import math
from decimal import Decimal
from typing import Any

from ra3gym.tasks.task import TextEquality, ValueEquality
from ra3gym.verify.sandbox.encoding import Tag, text_of

_SHOWN_TEXT = 10_000
"""Most characters of an encoded text that is decoded for a message, which is cut to a line anyway."""


def same_value(got: Any, expected: Any, equality: ValueEquality = "strict", tolerance: float = 0.0) -> bool:
    """Return whether two trees encode equal values, as `FunctionTests.equality` says."""
    if equality == "json":
        if type(got) is dict and type(got.get(Tag.TUPLE)) is list:
            got = got[Tag.TUPLE]
        got, expected = _plain(got), _plain(expected)
    return same(got, expected, tolerance)


def same_text(printed: str, expected: str, equality: TextEquality = "words") -> bool:
    """Return whether a program printed what is expected, as `StdioTests.equality` says."""
    if equality == "words":
        return printed.split() == expected.split()
    lines, expected_lines = (text.strip().split("\n") for text in (printed, expected))
    return len(lines) == len(expected_lines) and all(map(_same_line, lines, expected_lines))


def _same_line(line: str, expected: str) -> bool:
    if line.strip() == expected.strip():
        return True
    try:
        return list(map(Decimal, line.split())) == list(map(Decimal, expected.split()))
    except ArithmeticError:  # not numbers
        return False


def _plain(tree: Any) -> Any:
    """Return a tree in which numbers that Python finds equal are the same: `True`, `1` and `1.0` become `1`."""
    if type(tree) is bool:
        return int(tree)
    if type(tree) is float:
        return int(tree) if tree.is_integer() else tree
    if type(tree) is list:
        return [_plain(item) for item in tree]
    if type(tree) is not dict:
        return tree
    return {tag: body if tag == Tag.OPAQUE else _plain(body) for tag, body in tree.items()}


def same(got: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Return whether two trees (see `sandbox.encoding`) encode equal values of equal types, at any depth.

    `1`, `1.0` and `True` all differ. NaN equals NaN. Opaque values equal nothing. With a positive `tolerance`, `int`
    and `float` values compare as numbers, within `tolerance` absolute or relative, except members of sets and keys of
    dicts, which compare exactly.
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
    if tag not in got or tag == Tag.OPAQUE or type(got[tag]) is not type(body):
        return False
    if tag == Tag.DICT:
        return _same_pairs(got[tag], body, tolerance)
    if tag in (Tag.SET, Tag.FROZENSET):
        return sorted(map(text_of, got[tag])) == sorted(map(text_of, body))
    if tag == Tag.COMPLEX:
        return _same_items(got[tag], body, 0.0)
    return same(got[tag], body, tolerance)


def _same_items(got: list[Any], expected: list[Any], tolerance: float) -> bool:
    return len(got) == len(expected) and all(same(a, b, tolerance) for a, b in zip(got, expected, strict=True))


def _same_pairs(got: list[Any], expected: list[Any], tolerance: float) -> bool:
    if len(got) != len(expected) or not all(type(pair) is list and len(pair) == 2 for pair in got):
        return False
    return all(
        got_key == expected_key and same(got_item, expected_item, tolerance)
        for (got_key, got_item), (expected_key, expected_item) in zip(_by_key(got), _by_key(expected), strict=True)
    )


def _by_key(pairs: list[Any]) -> list[tuple[str, Any]]:
    return sorted(((text_of(key), item) for key, item in pairs), key=lambda pair: pair[0])


def _close(got: float, expected: float, tolerance: float) -> bool:
    if got == expected or (got != got and expected != expected):
        return True
    try:
        return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an int that no float can hold
        return False


def shown(tree: Any, width: int = 120) -> str:
    """Return the `repr` of a tree's value, cut to `width` characters, for messages."""
    text = text_of(tree)
    if len(text) <= _SHOWN_TEXT:
        text = _written(tree)
    return text if len(text) <= width else text[: width - 3] + "..."


def _written(tree: Any) -> str:
    """Return the `repr` of a tree's value without making the value, which could take any time and memory."""
    if type(tree) is list:
        return f"[{_listed(tree)}]"
    if type(tree) is not dict:
        return repr(tree)
    ((tag, body),) = tree.items()
    if type(body) is list:
        match tag, body:
            case Tag.TUPLE, [only]:
                return f"({_written(only)},)"
            case Tag.TUPLE, _:
                return f"({_listed(body)})"
            case Tag.SET | Tag.FROZENSET, _:
                text = f"{{{_listed(body)}}}" if body else "set()"
                return text if tag == Tag.SET else f"frozenset({text if body else ''})"
            case Tag.DICT, _ if all(type(pair) is list and len(pair) == 2 for pair in body):
                return f"{{{', '.join(f'{_written(key)}: {_written(item)}' for key, item in body)}}}"
            case Tag.VIEW, [str(method), [*items]]:
                return f"dict_{method}([{_listed(items)}])"
            case Tag.ITERATOR, _:
                return f"iter([{_listed(body)}])"
            case Tag.RANGE, [start, stop, step]:
                return f"range({_listed([start, stop] if step == 1 else body)})"
            case Tag.LIBRARY, [str(name), [*contents]]:
                return f"{name}({_listed(contents)})"
    elif type(body) is str:
        match tag:
            case Tag.BYTES | Tag.BYTEARRAY | Tag.SURROGATES:
                with contextlib.suppress(ValueError):
                    raw = bytes.fromhex(body)
                    if tag == Tag.SURROGATES:
                        return repr(raw.decode("utf-32-le", "surrogatepass"))
                    return repr(raw if tag == Tag.BYTES else bytearray(raw))
            case Tag.TYPE:
                return body
            case Tag.OPAQUE:
                return f"<a {body[:80]}>"
    return text_of(tree)


def _listed(trees: list[Any]) -> str:
    return ", ".join(map(_written, trees))
