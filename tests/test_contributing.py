"""CONTRIBUTING.md describes the package as it is: its floors, and one meaning for each shape letter."""

from __future__ import annotations

import ast
import io
import re
import tokenize

import pytest

from tests.test_layers import FLOORS, PACKAGE

TEXT = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
MEANINGS = dict(re.findall(r"^\| ([A-Z]) \| (.*) \|$", TEXT, re.MULTILINE))

SUFFIXED = re.compile(r"_*[a-z][a-z0-9]*(?:_[a-z0-9]+)*_(?=\w*[A-Z])(\w+)")
LEGEND = re.compile(r"\bShape(?:s| letters?| suffix(?:es)?): (.*?)(?:\n\n|$)", re.DOTALL)
ENTRY = re.compile(r"(?<![\w*/])([A-Zkn]) (?:= [^,;]*? (?=[a-z]{3}))?([a-z][^,;.)]*)")
STOP_WORDS = {"the", "that", "this", "each", "and"}


def modules() -> dict[str, str]:
    """The source of each module of the package, by its path."""
    return {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def floors_of(text: str) -> list[set[str]]:
    """The rooms of each floor in the layout's listing, from the ground up."""
    block = re.search(r"lower floors only:\n\n((?:    .*\n)+)", text)
    assert block is not None
    names = [re.split(r"\s{2,}", line.strip())[0] for line in block.group(1).splitlines()]
    return [set(floor.split(", ")) for floor in reversed(names)]


def unknown_suffixes(source: str) -> set[str]:
    """The identifiers of a module whose shape suffix has an axis that is not in the table."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    suffixed = [
        match for token in tokens if token.type == tokenize.NAME and (match := SUFFIXED.fullmatch(token.string))
    ]
    axes = "".join(MEANINGS)
    return {match.group() for match in suffixed if not re.fullmatch(rf"(?:[{axes}]|\d+)+", match.group(1))}


def other_meanings(source: str) -> set[str]:
    """What a module's legend calls an axis, where the table does not use that word for the letter."""
    legend = LEGEND.search(ast.get_docstring(ast.parse(source)) or "")
    found = set()
    for letter, phrase in [] if legend is None else ENTRY.findall(re.sub(r"\s+", " ", legend.group(1))):
        words = set(re.findall(r"[a-z]{3,}", phrase.replace("of them", "rows"))) - STOP_WORDS
        if not words & set(re.findall(r"\w+", MEANINGS.get(letter, ""))):
            found.add(f"{letter} {phrase}")
    return found


def test_the_layout_lists_the_floors() -> None:
    assert floors_of(TEXT) == [set(floor) for floor in FLOORS]


def test_every_letter_has_one_meaning() -> None:
    letters = re.findall(r"^\| ([A-Z]) \| ", TEXT, re.MULTILINE)
    assert len(letters) == len(set(letters)) > 20


def test_every_shape_suffix_is_made_of_letters_of_the_table() -> None:
    found = {name: unknown_suffixes(source) for name, source in modules().items()}
    assert {name: suffixes for name, suffixes in found.items() if suffixes} == {}


def test_legends_say_what_the_table_says() -> None:
    found = {name: other_meanings(source) for name, source in modules().items()}
    assert {name: meanings for name, meanings in found.items() if meanings} == {}


@pytest.mark.parametrize(
    ("source", "suffixes", "meanings"),
    [
        ("logp_RT = keep_U1 = grad_1d = _X = MAX_LEN = Class_ = 0", set(), set()),
        ("reward_En = 0", {"reward_En"}, set()),
        ('"""Do.\n\nShape letters: see CONTRIBUTING.md (R rows, T\ntokens, P samples).\n"""', set(), {"P samples"}),
        ('"""Do.\n\nShape letters: see CONTRIBUTING.md (R = P * G rows, n actions).\n"""', set(), {"n actions"}),
    ],
)
def test_other_letters_are_found(source: str, suffixes: set[str], meanings: set[str]) -> None:
    assert unknown_suffixes(source) == suffixes
    assert other_meanings(source) == meanings
