"""Values leave a program's process unchanged, or become opaque, which equals nothing."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import math
import pathlib
import uuid
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ra3gym.verify.compare import same as same_trees
from ra3gym.verify.compare import shown as shown_tree
from ra3gym.verify.sandbox.encoding import MAX_DEPTH, MAX_ITEMS, DecodeError, decode, dumps, encode, parse

any_char = st.characters(exclude_categories=[])  # lone surrogates included
hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(any_char) | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=8,
)
values = st.recursive(
    hashable | st.sets(hashable, max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashable, inner, max_size=4),
    max_leaves=12,
)


class Opaque:
    """A value of no known type, decoded."""

    def __init__(self, body: Any) -> None:
        self.body = body


def loads(text: str) -> Any:
    return decode(parse(text), Opaque)


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    return same_trees(parse(dumps(a)), parse(dumps(b)), tolerance)


def shown(value: Any) -> str:
    return shown_tree(parse(dumps(value)))


def identical(a: Any, b: Any) -> bool:
    """Compare exact types and values in another way: by `repr` where the order is fixed."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(identical, a.items(), b.items()))
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(identical(x, y) for y in b) for x in a)
    if isinstance(a, int) and not isinstance(a, bool):
        return bool(a == b)
    return repr(a) == repr(b)  # -0.0 differs from 0.0, and NaN equals NaN


@given(values)
def test_round_trip(value: Any) -> None:
    text = dumps(value)
    assert "\n" not in text
    assert text.isascii()
    assert identical(loads(text), value)


@given(values, values)
def test_a_value_is_the_same_as_its_copy_alone(value: Any, other: Any) -> None:
    assert same(loads(dumps(value)), value)
    if not identical(value, other) and 0.0 not in (value, other):  # 0.0 == -0.0
        assert same(value, other) == (dumps(value) == dumps(other))


def test_integers_of_any_length() -> None:
    for value in (10**3999, -(10**4000), 10**5000, -(10**5000)):
        assert loads(dumps(value)) == value


Point = namedtuple("Point", "x y")


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize("value", [Liar(3), Point(1, 2), object(), len], ids=lambda value: type(value).__name__)
def test_other_types_equal_nothing(value: Any) -> None:
    for wrapped in (value, [value], {"k": value}):
        assert not same(wrapped, wrapped)
    assert isinstance(loads(dumps(value)), Opaque)


@pytest.mark.parametrize(
    "value",
    [
        Counter("aab"),
        OrderedDict(a=1, b=[2]),
        defaultdict(None, {1: 2}),
        deque([1, 2], maxlen=3),
        Decimal("1.50"),
        Fraction(1, 2),
        datetime.date(2026, 1, 2),
        datetime.timedelta(days=1, seconds=2),
        datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        datetime.datetime(2026, 1, 2, tzinfo=zoneinfo.ZoneInfo("UTC")),
        datetime.time(1, 2, 3, 4, datetime.timezone(datetime.timedelta(hours=1), "here")),
        datetime.UTC,
        uuid.UUID(int=7),
        pathlib.PurePosixPath("/a/b"),
        pathlib.PureWindowsPath("c:/a"),
        pathlib.Path("a/b"),
        {1: 2}.keys(),
        {"a": [2]}.items(),
        bytearray(b"x"),
        range(1, 9, 2),
        int,
    ],
    ids=lambda value: type(value).__name__,
)
def test_types_of_the_standard_library_keep_their_type(value: Any) -> None:
    back = loads(dumps([value]))[0]
    assert type(back) is type(value)
    assert back == value
    assert same(value, value)
    assert not same(value, [value])


def test_the_values_of_a_dict_stay_a_view() -> None:
    values = {"a": [1], "b": 2}.values()
    back = loads(dumps(values))
    assert type(back) is type(values)
    assert list(back) == list(values)
    assert same(values, values)
    assert not same(values, [[1], 2])


class _NoZone(datetime.tzinfo):
    pass


def test_a_time_in_a_zone_of_the_programs_own_is_opaque() -> None:
    assert isinstance(loads(dumps(datetime.datetime(2026, 1, 2, tzinfo=_NoZone()))), Opaque)


@pytest.mark.parametrize(
    "tree",
    [
        {"v": ["pop", []]},
        {"v": ["keys", [[]]]},
        {"x": ["ZoneInfo", ["no/where"]]},
        {"x": ["ZoneInfo", ["../../etc/passwd"]]},
        {"x": ["UUID", ["12"]]},
        {"x": ["datetime", [2026, 13, 1, 0, 0, 0, 0, None]]},
    ],
    ids=str,
)
def test_contents_that_no_value_has_are_refused(tree: Any) -> None:
    with pytest.raises(DecodeError):
        decode(tree, Opaque)


def test_iterators_give_what_they_yield_up_to_a_cap() -> None:
    assert list(loads(dumps(n * n for n in range(3)))) == [0, 1, 4]
    assert len(list(loads(dumps(itertools.count())))) == MAX_ITEMS
    assert not same(iter([1]), [1])


def test_too_deep_is_opaque_not_an_error() -> None:
    value: list[Any] = []
    value.append(value)
    decoded = loads(dumps(value))
    for _ in range(MAX_DEPTH):
        decoded = decoded[0]
    assert isinstance(decoded, Opaque)


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list("tdsfbaciurynxvoz")), inner, max_size=2)
    ),
    max_leaves=10,
)


@given(st.text() | json_trees.map(json.dumps))
def test_no_text_raises_anything_but_a_decode_error(text: str) -> None:
    with contextlib.suppress(DecodeError):
        loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"t":' * 100_000,
        "1" * 5000,
        '{"s":[[1]]}',
        '{"d":[[[],1]]}',
        '{"c":[1]}',
        '{"y":"len"}',
        '{"x":["Counter"]}',
        '{"x":[[],[]]}',
    ],
)
def test_hostile_text_is_a_decode_error(text: str) -> None:
    with pytest.raises(DecodeError):
        loads(text)


@pytest.mark.parametrize(
    ("a", "b"),
    [(1, 1.0), (1, True), ([1], (1,)), ({1: 0}, {True: 0}), ({1}, {1.0}), ("1", b"1"), ([[1]], [[1.0]]), (1, None)],
)
def test_types_are_strict_at_any_depth(a: Any, b: Any) -> None:
    assert same(a, a)
    assert not same(a, b)
    assert not same(b, a)


def test_order_matters_in_lists_only() -> None:
    assert same({"a": 1, "b": [2]}, {"b": [2], "a": 1})
    assert same({3, 1, 2}, {2, 3, 1})
    assert not same([1, 2], [2, 1])


def test_tolerance_is_for_numbers_only() -> None:
    assert same([1.0 + 1e-9, (2,)], [1.0, (2.0,)], tolerance=1e-6)
    assert not same(1.0 + 1e-9, 1.0)
    assert not same(1.1, 1.0, tolerance=1e-6)
    assert not same(True, 1, tolerance=1e-6)
    assert not same("a", 1.0, tolerance=1e-6)
    assert not same(10**400, 1.0, tolerance=1e-6)
    assert same(math.nan, math.nan)
    assert same(math.inf, math.inf, tolerance=1e-6)


def test_nothing_that_a_program_sent_is_hashed() -> None:
    """A set of integers with equal hashes would take hours to build."""
    members = ",".join(str(n * (2**61 - 1)) for n in range(1, 100_000))
    assert not same_trees(parse(f'{{"s":[{members}]}}'), encode({1}, Opaque))
    assert shown_tree(parse(f'{{"s":[{members}]}}')).startswith('{"s":[2305843009213693951')


@given(st.text() | json_trees.map(json.dumps), values)
def test_comparing_and_showing_any_text_raises_nothing_else(text: str, value: Any) -> None:
    with contextlib.suppress(DecodeError):
        tree = parse(text)
        same_trees(tree, encode(value, Opaque))
        assert len(shown_tree(tree)) <= 120


def test_shown_is_short_and_never_fails() -> None:
    assert shown([1, 2]) == "[1, 2]"
    assert len(shown(list(range(1000)))) == 120
    assert shown(10**5000).startswith('{"i":"0x')
