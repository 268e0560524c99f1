"""Values as JSON text: what programs get, and what comes back. No pickle, no marshal, no eval.

`None`, `bool`, `int`, `float`, `str` and `list` are themselves in JSON; the rest is an object with one key, its tag:
`t` tuple, `d` dict (pairs), `s` set, `f` frozenset, `b` bytes and `a` bytearray (hex), `c` complex, `i` an int too long
for decimal digits (hex), `u` a str with lone surrogates (hex of UTF-32), `r` range, `y` a type by its name (a builtin,
or one of the standard library's below), `x` a value of one of those (name and contents), `n` an iterator (what it
yields, up to a cap), `o` anything else. Only exact types count: an instance of a subclass of `int` is "anything else",
and the judge holds that equal to no value.

`parse` stops at the tree, which hashes nothing: a program may choose values whose hashes collide, and a dict or set of
them would keep its reader busy for minutes. `decode` makes the values; it is for where time is limited.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

MAX_DEPTH = 100
MAX_ITEMS = 100_000
"""Most items taken from an iterator: it may have no end."""
_LONG_INT = 10**4000
_to_json = json.JSONEncoder(separators=(",", ":")).encode

Opaque = Callable[[Any], Any]
"""What to write for a value of no known type, or to make of what was written (the body of the tag `o`)."""


class DecodeError(ValueError):
    """Text that `dumps` did not write."""


def dumps(value: Any, opaque: Opaque = lambda value: type(value).__name__) -> str:
    """`value` as one line of ASCII. Sets are sorted by their members' text, so equal sets give equal text."""
    return _to_json(encode(value, opaque))


def loads(text: str, opaque: Opaque) -> Any:
    """The value that `dumps` was given; `DecodeError` on text that it cannot have written."""
    return decode(parse(text), opaque)


def parse(text: str) -> Any:
    """The tree of `text`, in which every dict has one key, the tag; `DecodeError` when it is not JSON of this form."""
    try:
        return _decoder.decode(text)
    except DecodeError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise DecodeError(f"not an encoded value: {type(error).__name__}") from None


def encode(value: Any, opaque: Opaque) -> Any:
    """The tree of `value`; a container nested deeper than `MAX_DEPTH` counts as opaque."""
    return _encode(value, opaque, 0)


def decode(tree: Any, opaque: Opaque) -> Any:
    """The value of a tree; `DecodeError` when a tag does not hold what it should."""
    try:
        return _decode(tree, opaque, 0)
    except DecodeError:
        raise
    except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        raise DecodeError(f"not an encoded value: {type(error).__name__}") from None


def text_of(tree: Any) -> str:
    """A tree as the line of text it stands for."""
    return _to_json(tree)


def _one_tag(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) != 1:
        raise DecodeError("an object must hold one tag")
    return dict(pairs)


_decoder = json.JSONDecoder(object_pairs_hook=_one_tag)

# Types of the standard library: where each is from, and what to call it with for an equal one. None is imported before
# it is met: a program has such a value only if it imported the module, and small processes are quickly forked.
_LIBRARY: dict[str, tuple[str, Callable[[Any], list[Any]]]] = {
    "Counter": ("collections", lambda counts: [dict(counts)]),
    "OrderedDict": ("collections", lambda pairs: [list(pairs.items())]),
    "defaultdict": ("collections", lambda pairs: [None, dict(pairs)]),
    "deque": ("collections", lambda items: [list(items), items.maxlen]),
    "Decimal": ("decimal", lambda number: [str(number)]),
    "Fraction": ("fractions", lambda number: [number.numerator, number.denominator]),
    "date": ("datetime", lambda day: [day.year, day.month, day.day]),
    "timedelta": ("datetime", lambda time: [time.days, time.seconds, time.microseconds]),
}
_ATOMS = frozenset((type(None), bool, int, float, str))


def _encode(value: Any, opaque: Opaque, depth: int) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"u": value.encode("utf-32-le", "surrogatepass").hex()}
        return value
    if kind is int:
        return value if -_LONG_INT < value < _LONG_INT else {"i": hex(value)}
    if depth < MAX_DEPTH:
        if kind is list:
            return _encode_items(value, opaque, depth)
        if kind is tuple:
            return {"t": _encode_items(value, opaque, depth)}
        if kind is dict:
            return {
                "d": [
                    [_encode(key, opaque, depth + 1), _encode(item, opaque, depth + 1)] for key, item in value.items()
                ]
            }
        if kind is set or kind is frozenset:
            members = [_encode(item, opaque, depth + 1) for item in value]
            return {"s" if kind is set else "f": sorted(members, key=_to_json)}
        if kind.__name__ in _LIBRARY:
            _, take_apart = _LIBRARY[kind.__name__]
            if _known_type(kind.__name__) is kind:
                return {"x": [kind.__name__, _encode(take_apart(value), opaque, depth + 1)]}
        if isinstance(value, Iterator):
            items = itertools.islice(value, MAX_ITEMS)
            return {"n": [_encode(item, opaque, depth + 1) for item in items]}
    if kind is bytes:
        return {"b": value.hex()}
    if kind is bytearray:
        return {"a": value.hex()}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if isinstance(value, type) and _known_type(value.__name__) is value:
        return {"y": value.__name__}
    if kind is range:
        return {"r": [_encode(part, opaque, depth) for part in (value.start, value.stop, value.step)]}
    return {"o": opaque(value)}


def _known_type(name: str) -> Any:
    """The builtin type of this name, or the library's where its module was imported; `None` where there is none."""
    if name in _LIBRARY:
        return getattr(sys.modules.get(_LIBRARY[name][0]), name, None)
    return getattr(builtins, name, None)


def _type_named(name: str) -> Any:
    """`_known_type` that imports what it needs; `DecodeError` when there is no such type."""
    if name in _LIBRARY:
        importlib.import_module(_LIBRARY[name][0])
    kind = _known_type(name)
    if not isinstance(kind, type):
        raise DecodeError(f"unknown type {name[:80]!r}")
    return kind


def _encode_items(items: Any, opaque: Opaque, depth: int) -> list[Any]:
    """The trees of a list's or tuple's items; at once where all are atoms that stand for themselves, as most are."""
    kinds = set(map(type, items))
    if kinds <= _ATOMS and not (int in kinds and any(type(item) is int and abs(item) >= _LONG_INT for item in items)):
        with contextlib.suppress(UnicodeEncodeError):
            "".join([item for item in items if type(item) is str]).encode()
            return list(items)
    return [_encode(item, opaque, depth + 1) for item in items]


def _decode(tree: Any, opaque: Opaque, depth: int) -> Any:
    if depth > MAX_DEPTH + 1:
        raise DecodeError("nested too deeply")
    if type(tree) is list:
        if _ATOMS.issuperset(map(type, tree)):
            return list(tree)
        return [_decode(item, opaque, depth + 1) for item in tree]
    if type(tree) is not dict:
        return tree
    ((tag, body),) = tree.items()
    if tag == "o":
        return opaque(body)
    if tag in ("b", "a", "u", "i", "y"):
        if type(body) is not str:
            raise DecodeError(f"tag {tag!r} needs a string")
        if tag == "y":
            return _type_named(body)
        if tag == "i":
            return int(body, 16)
        raw = bytes.fromhex(body)
        return raw if tag == "b" else bytearray(raw) if tag == "a" else raw.decode("utf-32-le", "surrogatepass")
    if type(body) is not list:
        raise DecodeError(f"tag {tag!r} needs a list")
    if tag == "d":
        return {_decode(key, opaque, depth + 1): _decode(item, opaque, depth + 1) for key, item in body}
    if tag == "x":
        name, contents = body
        if name not in _LIBRARY:
            raise DecodeError(f"unknown type {str(name)[:80]!r}")
        return _type_named(name)(*_decode(contents, opaque, depth + 1))
    if tag == "c":
        real, imaginary = body
        return complex(float(real), float(imaginary))
    items = [_decode(item, opaque, depth + 1) for item in body]
    match tag:
        case "t":
            return tuple(items)
        case "s":
            return set(items)
        case "f":
            return frozenset(items)
        case "n":
            return iter(items)
        case "r":
            return range(*items)
    raise DecodeError(f"unknown tag {tag!r}")
