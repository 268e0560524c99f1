"""The idioms: named steps of a program, each with its meaning and the ways in which an expert writes it.

A variant is a block of lines with placeholders. `{x}` is the variable that holds the value so far, `{y}` the variable
that holds it afterwards (equal to `{x}` unless the idiom changes the type). `{o}` and `{t}` are new local variables,
`{v}` and `{i}` loop variables. All variants of an idiom compute its `reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

Kind = Literal["list", "str", "int"]


@dataclass(frozen=True)
class Idiom:
    """One step of a program.

    Attributes:
        name: identifies it.
        words: the two words that may name it in a prompt.
        takes: the type of its input.
        gives: the type of its output.
        reference: computes the output.
        variants: blocks of lines that compute the same.
    """

    name: str
    words: tuple[str, str]
    takes: Kind
    gives: Kind
    reference: Callable[[Any], Any]
    variants: tuple[str, ...]


def _filter(condition: str) -> tuple[str, ...]:
    return (
        f"{{x}} = [{{v}} for {{v}} in {{x}} if {condition}]",
        f"{{x}} = list(filter(lambda {{v}}: {condition}, {{x}}))",
        f"{{o}} = []\nfor {{v}} in {{x}}:\n    if {condition}:\n        {{o}}.append({{v}})\n{{x}} = {{o}}",
    )


def _map(expression: str, other: str) -> tuple[str, ...]:
    return (
        f"{{y}} = [{expression} for {{v}} in {{x}}]",
        f"{{y}} = list(map(lambda {{v}}: {other}, {{x}}))",
        f"{{o}} = []\nfor {{v}} in {{x}}:\n    {{o}}.append({expression})\n{{y}} = {{o}}",
    )


LIST_IDIOMS = (
    Idiom("even", ("evens", "parity"), "list", "list", lambda x: [v for v in x if v % 2 == 0], _filter("{v} % 2 == 0")),
    Idiom("positive", ("positives", "gains"), "list", "list", lambda x: [v for v in x if v > 0], _filter("{v} > 0")),
    Idiom("large", ("large", "above"), "list", "list", lambda x: [v for v in x if abs(v) > 3], _filter("abs({v}) > 3")),
    Idiom("square", ("square", "power"), "list", "list", lambda x: [v * v for v in x], _map("{v} * {v}", "{v} ** 2")),
    Idiom("negate", ("negate", "flip"), "list", "list", lambda x: [-v for v in x], _map("-{v}", "0 - {v}")),
    Idiom("increment", ("increment", "bump"), "list", "list", lambda x: [v + 1 for v in x], _map("{v} + 1", "1 + {v}")),
    Idiom(
        "sort",
        ("sort", "order"),
        "list",
        "list",
        sorted,
        (
            "{x} = sorted({x})",
            "{x} = list({x})\n{x}.sort()",
            "{o} = list({x})\n{o}.sort()\n{x} = {o}",
        ),
    ),
    Idiom(
        "reverse",
        ("reverse", "backward"),
        "list",
        "list",
        lambda x: x[::-1],
        (
            "{x} = {x}[::-1]",
            "{x} = list(reversed({x}))",
            "{o} = []\nfor {v} in {x}:\n    {o}.insert(0, {v})\n{x} = {o}",
        ),
    ),
    Idiom(
        "cumulate",
        ("cumulate", "running"),
        "list",
        "list",
        lambda x: list(accumulate(x)),
        (
            "{t} = 0\n{o} = []\nfor {v} in {x}:\n    {t} += {v}\n    {o}.append({t})\n{x} = {o}",
            "{x} = [sum({x}[:{i} + 1]) for {i} in range(len({x}))]",
            "{o} = []\nfor {i} in range(len({x})):\n    {o}.append(sum({x}[:{i} + 1]))\n{x} = {o}",
        ),
    ),
    Idiom(
        "unique",
        ("unique", "dedupe"),
        "list",
        "list",
        lambda x: list(dict.fromkeys(x)),
        (
            "{x} = list(dict.fromkeys({x}))",
            "{x} = [{v} for {i}, {v} in enumerate({x}) if {v} not in {x}[:{i}]]",
            "{o} = []\nfor {v} in {x}:\n    if {v} not in {o}:\n        {o}.append({v})\n{x} = {o}",
        ),
    ),
    Idiom(
        "differences",
        ("differences", "gaps"),
        "list",
        "list",
        lambda x: [b - a for a, b in pairwise(x)],
        (
            "{x} = [{v} - {i} for {i}, {v} in zip({x}, {x}[1:])]",
            "{x} = [{x}[{i} + 1] - {x}[{i}] for {i} in range(len({x}) - 1)]",
            "{o} = []\nfor {i} in range(len({x}) - 1):\n    {o}.append({x}[{i} + 1] - {x}[{i}])\n{x} = {o}",
        ),
    ),
    Idiom(
        "rest",
        ("rest", "tail"),
        "list",
        "list",
        lambda x: x[1:],
        (
            "{x} = {x}[1:]",
            "{x} = list({x})\ndel {x}[:1]",
            "{x} = [{v} for {i}, {v} in enumerate({x}) if {i} > 0]",
        ),
    ),
)

STR_IDIOMS = (
    Idiom(
        "upper",
        ("upper", "shout"),
        "str",
        "str",
        str.upper,
        (
            "{x} = {x}.upper()",
            '{x} = "".join({v}.upper() for {v} in {x})',
            '{o} = ""\nfor {v} in {x}:\n    {o} += {v}.upper()\n{x} = {o}',
        ),
    ),
    Idiom(
        "mirror",
        ("mirror", "reflect"),
        "str",
        "str",
        lambda x: x[::-1],
        (
            "{x} = {x}[::-1]",
            '{x} = "".join(reversed({x}))',
            '{o} = ""\nfor {v} in {x}:\n    {o} = {v} + {o}\n{x} = {o}',
        ),
    ),
    Idiom(
        "consonants",
        ("consonants", "voiceless"),
        "str",
        "str",
        lambda x: "".join(v for v in x if v not in "aeiou"),
        (
            '{x} = "".join({v} for {v} in {x} if {v} not in "aeiou")',
            'for {v} in "aeiou":\n    {x} = {x}.replace({v}, "")',
            '{o} = ""\nfor {v} in {x}:\n    if {v} not in "aeiou":\n        {o} += {v}\n{x} = {o}',
        ),
    ),
    Idiom(
        "twin",
        ("twin", "echo"),
        "str",
        "str",
        lambda x: x + x,
        ("{x} = {x} + {x}", "{x} = {x} * 2", '{x} = "".join([{x}, {x}])'),
    ),
    Idiom(
        "alphabetic",
        ("alphabetic", "arrange"),
        "str",
        "str",
        lambda x: "".join(sorted(x)),
        (
            '{x} = "".join(sorted({x}))',
            '{o} = list({x})\n{o}.sort()\n{x} = "".join({o})',
            '{o} = sorted({x})\n{x} = "".join({o})',
        ),
    ),
    Idiom(
        "codes",
        ("codes", "ordinals"),
        "str",
        "list",
        lambda x: [ord(v) - 96 for v in x],
        _map("ord({v}) - 96", "ord({v}) - 96"),
    ),
)

INT_IDIOMS = (
    Idiom(
        "double",
        ("double", "twofold"),
        "int",
        "int",
        lambda x: 2 * x,
        ("{x} = {x} * 2", "{x} += {x}", "{t} = {x}\n{x} = {x} + {t}"),
    ),
    Idiom(
        "magnitude",
        ("magnitude", "unsigned"),
        "int",
        "int",
        abs,
        ("{x} = abs({x})", "if {x} < 0:\n    {x} = -{x}", "{x} = max({x}, -{x})"),
    ),
    Idiom(
        "remainder",
        ("remainder", "modulo"),
        "int",
        "int",
        lambda x: x % 7,
        ("{x} = {x} % 7", "{x} %= 7", "{t} = {x} // 7\n{x} = {x} - 7 * {t}"),
    ),
    Idiom(
        "decrement",
        ("decrement", "lower"),
        "int",
        "int",
        lambda x: x - 1,
        ("{x} = {x} - 1", "{x} -= 1", "{t} = 1\n{x} = {x} - {t}"),
    ),
    Idiom(
        "halve",
        ("halve", "middle"),
        "int",
        "int",
        lambda x: x // 2,
        ("{x} = {x} // 2", "{x} //= 2", "{t} = {x} % 2\n{x} = ({x} - {t}) // 2"),
    ),
    Idiom(
        "digits",
        ("digits", "figures"),
        "int",
        "list",
        lambda x: [int(v) for v in str(abs(x))],
        (
            "{y} = [int({v}) for {v} in str(abs({x}))]",
            "{y} = list(map(int, str(abs({x}))))",
            "{o} = []\nfor {v} in str(abs({x})):\n    {o}.append(int({v}))\n{y} = {o}",
        ),
    ),
)

IDIOMS: dict[str, Idiom] = {idiom.name: idiom for idiom in LIST_IDIOMS + STR_IDIOMS + INT_IDIOMS}


@dataclass(frozen=True)
class Modifier:
    """Control flow around an idiom that keeps the type: a head, then the idiom's lines one level deeper."""

    name: str
    words: tuple[str, str]
    head: str
    reference: Callable[[Callable[[Any], Any], Any], Any]
    kinds: frozenset[Kind]


MODIFIERS: dict[str, Modifier] = {
    modifier.name: modifier
    for modifier in (
        Modifier(
            "twice",
            ("twice", "again"),
            "for _ in range(2):",
            lambda step, x: step(step(x)),
            frozenset({"list", "str", "int"}),
        ),
        Modifier(
            "if_long",
            ("iflong", "lengthy"),
            "if len({x}) > 3:",
            lambda step, x: step(x) if len(x) > 3 else x,
            frozenset({"list", "str"}),
        ),
    )
}

PARAMETER_NAMES: dict[Kind, tuple[str, ...]] = {
    "list": ("xs", "items", "nums"),
    "str": ("s", "text", "chars"),
    "int": ("n", "num", "m"),
}
LOCAL_NAMES: dict[str, tuple[str, ...]] = {
    "o": ("out", "res", "acc"),
    "t": ("total", "tmp", "t"),
    "v": ("v", "e", "x"),
    "i": ("i", "j", "k"),
}
