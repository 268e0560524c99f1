"""Values as JSON text: inputs of programs and their answers. No pickle, no marshal, no eval.

In a tree, `None`, `bool`, `int`, `float`, `str` and `list` are themselves; any other value is a dict with one key, its
`Tag`. Only exact types count: an instance of a subclass of `int` is opaque, and the judge compares opaque values as
unequal to everything.

`parse` returns the tree and hashes nothing of it: a program may choose values with equal hashes, and to put those into
a dict or set would take minutes. `decode` makes the values of a tree, in processes whose time is limited.
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
"""From a value of no known type to the body of its `Tag.OPAQUE`, or from such a body to a value."""


class Tag:
    """The keys of trees, each with the form of its body."""

    TUPLE = "t"  # the items, like the next two
    SET = "s"
    FROZENSET = "f"
    ITERATOR = "n"  # the items it yields, up to MAX_ITEMS
    DICT = "d"  # pairs of key and value
    BYTES = "b"  # hex digits, like the next two
    BYTEARRAY = "a"
    LONG_INT = "i"  # too long for decimal digits
    SURROGATES = "u"  # a str with lone surrogates: hex digits of UTF-32
    COMPLEX = "c"  # real and imaginary part
    RANGE = "r"  # start, stop, step
    TYPE = "y"  # the name of a builtin type or one of `_LIBRARY`
    LIBRARY = "x"  # a value of a type of `_LIBRARY`: its name and contents
    VIEW = "v"  # a view of a dict: its method ("keys", "values" or "items") and the items
    OPAQUE = "o"


class DecodeError(ValueError):
    """Text that `dumps` did not write."""


def dumps(value: Any, opaque: Opaque = lambda value: type(value).__name__) -> str:
    """Return `value` as one line of ASCII, with the members of sets sorted, so that equal sets give equal text."""
    return _to_json(encode(value, opaque))


def loads(text: str, opaque: Opaque) -> Any:
    """Return the value that `dumps` wrote; `DecodeError` on text that it cannot have written."""
    return decode(parse(text), opaque)


def parse(text: str) -> Any:
    """Return the tree of `text`; `DecodeError` when it is not JSON in which every object has one key."""
    try:
        return _decoder.decode(text)
    except DecodeError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise DecodeError(f"not an encoded value: {type(error).__name__}") from None


def encode(value: Any, opaque: Opaque) -> Any:
    """Return the tree of `value`; a container nested deeper than `MAX_DEPTH` counts as opaque."""
    return _encode(value, opaque, 0)


def decode(tree: Any, opaque: Opaque) -> Any:
    """Return the value of a tree; `DecodeError` when the body of a tag has the wrong form."""
    try:
        return _decode(tree, opaque, 0)
    except DecodeError:
        raise
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError, OSError, RecursionError) as error:
        raise DecodeError(f"not an encoded value: {type(error).__name__}") from None


def text_of(tree: Any) -> str:
    """Return a tree as one line of text."""
    return _to_json(tree)


def _one_tag(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) != 1:
        raise DecodeError("an object must hold one tag")
    return dict(pairs)


_decoder = json.JSONDecoder(object_pairs_hook=_one_tag)

# Types of the standard library: their modules, and the arguments that make an equal value. The modules are not imported
# here: a program that has such a value imported them itself, and small processes fork faster.
# A value that cannot be taken apart (`None`) is opaque.
_LIBRARY: dict[str, tuple[str, Callable[[Any], list[Any] | None]]] = {
    "Counter": ("collections", lambda counts: [dict(counts)]),
    "OrderedDict": ("collections", lambda pairs: [list(pairs.items())]),
    "defaultdict": ("collections", lambda pairs: [None, dict(pairs)]),
    "deque": ("collections", lambda items: [list(items), items.maxlen]),
    "Decimal": ("decimal", lambda number: [str(number)]),
    "Fraction": ("fractions", lambda number: [number.numerator, number.denominator]),
    "date": ("datetime", lambda day: [day.year, day.month, day.day]),
    "timedelta": ("datetime", lambda time: [time.days, time.seconds, time.microseconds]),
    "datetime": (
        "datetime",
        lambda time: [time.year, time.month, time.day, *_clock(time)] if _knows_zone(time) else None,
    ),
    "time": ("datetime", lambda time: _clock(time) if _knows_zone(time) else None),
    "timezone": ("datetime", lambda zone: list(zone.__getinitargs__())),
    "ZoneInfo": ("zoneinfo", lambda zone: None if zone.key is None else [zone.key]),
    "UUID": ("uuid", lambda number: [number.hex]),
    **dict.fromkeys(
        ("PosixPath", "PurePosixPath", "PureWindowsPath"),
        ("pathlib", lambda path: [str(path)]),
    ),
}
_ZONES = ("timezone", "ZoneInfo")
_VIEWS = {type(getattr({}, method)()): method for method in ("keys", "values", "items")}
_ATOMS = frozenset((type(None), bool, int, float, str))


def _encode(value: Any, opaque: Opaque, depth: int) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return {Tag.SURROGATES: value.encode("utf-32-le", "surrogatepass").hex()}
        return value
    if kind is int:
        return value if -_LONG_INT < value < _LONG_INT else {Tag.LONG_INT: hex(value)}
    if depth < MAX_DEPTH:
        if kind is list:
            return _encode_items(value, opaque, depth)
        if kind is tuple:
            return {Tag.TUPLE: _encode_items(value, opaque, depth)}
        if kind is dict:
            pairs = value.items()
            return {
                Tag.DICT: [[_encode(key, opaque, depth + 1), _encode(item, opaque, depth + 1)] for key, item in pairs]
            }
        if kind is set or kind is frozenset:
            members = [_encode(item, opaque, depth + 1) for item in value]
            return {Tag.SET if kind is set else Tag.FROZENSET: sorted(members, key=_to_json)}
        if kind.__name__ in _LIBRARY and _known_type(kind.__name__) is kind:
            _, take_apart = _LIBRARY[kind.__name__]
            contents = take_apart(value)
            if contents is not None:
                return {Tag.LIBRARY: [kind.__name__, _encode(contents, opaque, depth + 1)]}
        if kind in _VIEWS:
            return {Tag.VIEW: [_VIEWS[kind], [_encode(item, opaque, depth + 1) for item in value]]}
        if isinstance(value, Iterator):
            items = itertools.islice(value, MAX_ITEMS)
            return {Tag.ITERATOR: [_encode(item, opaque, depth + 1) for item in items]}
    if kind is bytes:
        return {Tag.BYTES: value.hex()}
    if kind is bytearray:
        return {Tag.BYTEARRAY: value.hex()}
    if kind is complex:
        return {Tag.COMPLEX: [value.real, value.imag]}
    if isinstance(value, type) and _known_type(value.__name__) is value:
        return {Tag.TYPE: value.__name__}
    if kind is range:
        return {Tag.RANGE: [_encode(part, opaque, depth) for part in (value.start, value.stop, value.step)]}
    return {Tag.OPAQUE: opaque(value)}


def _clock(time: Any) -> list[Any]:
    return [time.hour, time.minute, time.second, time.microsecond, time.tzinfo]


def _knows_zone(time: Any) -> bool:
    """Return whether a time has no time zone, or one that can be taken apart."""
    kind = type(time.tzinfo)
    return time.tzinfo is None or (kind.__name__ in _ZONES and _known_type(kind.__name__) is kind)


def _known_type(name: str) -> Any:
    """Return the type of this name, builtin or of an imported module of `_LIBRARY`; `None` if there is none."""
    if name in _LIBRARY:
        return getattr(sys.modules.get(_LIBRARY[name][0]), name, None)
    return getattr(builtins, name, None)


def _type_named(name: str) -> Any:
    """Return the type of this name and import its module if necessary; `DecodeError` when there is no such type."""
    if name in _LIBRARY:
        importlib.import_module(_LIBRARY[name][0])
    kind = _known_type(name)
    if not isinstance(kind, type):
        raise DecodeError(f"unknown type {name[:80]!r}")
    return kind


def _encode_items(items: Any, opaque: Opaque, depth: int) -> list[Any]:
    """Return the trees of items. Usually all are atoms, which are their own trees; that case is fast."""
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
    if tag == Tag.OPAQUE:
        return opaque(body)
    if tag in (Tag.BYTES, Tag.BYTEARRAY, Tag.SURROGATES, Tag.LONG_INT, Tag.TYPE):
        if type(body) is not str:
            raise DecodeError(f"tag {tag!r} needs a string")
        if tag == Tag.TYPE:
            return _type_named(body)
        if tag == Tag.LONG_INT:
            return int(body, 16)
        raw = bytes.fromhex(body)
        if tag == Tag.SURROGATES:
            return raw.decode("utf-32-le", "surrogatepass")
        return raw if tag == Tag.BYTES else bytearray(raw)
    if type(body) is not list:
        raise DecodeError(f"tag {tag!r} needs a list")
    if tag == Tag.DICT:
        return {_decode(key, opaque, depth + 1): _decode(item, opaque, depth + 1) for key, item in body}
    if tag == Tag.LIBRARY:
        name, contents = body
        if name not in _LIBRARY:
            raise DecodeError(f"unknown type {str(name)[:80]!r}")
        return _type_named(name)(*_decode(contents, opaque, depth + 1))
    if tag == Tag.VIEW:
        method, trees = body
        return _view(method, [_decode(item, opaque, depth + 1) for item in trees])
    if tag == Tag.COMPLEX:
        real, imaginary = body
        return complex(float(real), float(imaginary))
    items = [_decode(item, opaque, depth + 1) for item in body]
    match tag:
        case Tag.TUPLE:
            return tuple(items)
        case Tag.SET:
            return set(items)
        case Tag.FROZENSET:
            return frozenset(items)
        case Tag.ITERATOR:
            return iter(items)
        case Tag.RANGE:
            return range(*items)
    raise DecodeError(f"unknown tag {tag!r}")


def _view(method: Any, items: list[Any]) -> Any:
    """Return the view of a dict that holds these items."""
    match method:
        case "keys":
            return dict.fromkeys(items).keys()
        case "values":
            return dict(enumerate(items)).values()
        case "items":
            return dict(items).items()
    raise DecodeError(f"unknown view {str(method)[:80]!r}")
