"""Comment lines go in and come out again, above lines where Python allows them, and change nothing else."""

from __future__ import annotations

import ast
import inspect
import io
import json.decoder
import string
import textwrap
import tokenize
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ra3gym.abstractions.latents.comments import (
    check_comment_only,
    comment_problem,
    find_comments,
    insert_comments,
    legal_places,
)
from ra3gym.errors import DataError

TRICKY = '''\
# the expert's own comment
import os, \\
    sys

@property
@staticmethod
def f(
    x,  # why
    y=[
        1,

        2,
    ],
):
    """Doc
    string."""
    text = """
# not a comment
    """ + f"""
{x}
""" + 'a\\
b'
    if x and \\
            y:
        return text

    # own
    else_ = 1; z = """a
b"""; w = 2
    return (x
            # inside
            + y)
'''

MODULES = [inspect.getsource(module) for module in (ast, inspect, io, json.decoder, string, textwrap, tokenize)]


def functions() -> Iterator[str]:
    for text in MODULES:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                yield textwrap.dedent("\n".join(text.split("\n")[first - 1 : node.end_lineno])) + "\n"


SOURCES = sorted(set(functions()), key=len)
COMMENTS = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=20).map(lambda text: "#" + text)


def test_the_places_of_a_tricky_program() -> None:
    lines = TRICKY.split("\n")
    legal = [lines[place].strip() for place in legal_places(TRICKY)]
    assert legal == [
        "import os, \\",
        "@property",
        "@staticmethod",
        "def f(",
        "x,  # why",
        "y=[",
        "1,",
        "2,",
        "],",
        "):",
        '"""Doc',
        'text = """',
        "if x and \\",
        "return text",
        'else_ = 1; z = """a',
        "return (x",
        "+ y)",
    ]


def test_each_comment_has_the_indent_of_its_line() -> None:
    source = "def f(x):\n\tif x:\n\n\t\treturn [\n\t\t  x]\n"
    annotated = insert_comments(source, {1: "# a", 3: "# b", 4: "#c"})
    assert annotated == "def f(x):\n\t# a\n\tif x:\n\n\t\t# b\n\t\treturn [\n\t\t  #c\n\t\t  x]\n"
    assert find_comments(annotated, source) == {1: "# a", 3: "# b", 4: "#c"}


def test_functions_of_the_standard_library_take_comments_everywhere() -> None:
    assert len(SOURCES) > 100
    for source in [*SOURCES, *MODULES, TRICKY, TRICKY.replace("\n", "\r\n")]:
        comments = {place: f"# {place}" for place in legal_places(source)}
        assert comments
        annotated = insert_comments(source, comments)
        check_comment_only(annotated, source)
        assert find_comments(annotated, source) == comments


def test_every_line_of_code_that_is_left_out_would_break() -> None:
    """Above a line of code that is no legal place, a comment changes the program (or does not parse).

    A backslash inside brackets is left out for simplicity: there a comment would do no harm.
    """
    for source in [TRICKY, *SOURCES[-40:]]:
        lines, legal = source.split("\n"), legal_places(source)
        for place, line in enumerate(lines[:-1]):
            if place in legal or not line.strip() or line.lstrip().startswith("#"):
                continue
            if lines[place - 1].endswith("\\") and source is not TRICKY:
                continue
            annotated = "\n".join([*lines[:place], "# here", *lines[place:]])
            with pytest.raises(DataError):
                check_comment_only(annotated, source)


@given(st.sampled_from(SOURCES[:200]), st.data())
def test_comments_come_out_as_they_went_in(source: str, data: st.DataObject) -> None:
    places = st.sampled_from(legal_places(source))
    fine = COMMENTS.filter(lambda comment: comment_problem(comment) != "broken")
    comments = data.draw(st.dictionaries(places, fine, max_size=8))
    annotated = insert_comments(source, comments)
    check_comment_only(annotated, source)
    assert find_comments(annotated, source) == comments
    assert len(annotated.splitlines()) == len(source.splitlines()) + len(comments)


@given(COMMENTS)
def test_only_one_line_with_text_is_a_comment(comment: str) -> None:
    problem = comment_problem(comment)
    assert (problem == "broken") == (len((comment + "x").splitlines()) > 1 or "\0" in comment)
    if problem == "broken":
        with pytest.raises(DataError, match="on one line"):
            insert_comments("x = 1\n", {0: comment})
    elif problem == "empty":
        assert set(comment) <= set("# \t")
    else:
        check_comment_only(insert_comments("x = 1\n", {0: comment}), "x = 1\n")


@pytest.mark.parametrize(
    ("annotated", "message"),
    [
        ("x = 1\ny = 3\n", "syntax tree"),
        ("x = 1\nz = 0\ny = 2\n", "syntax tree"),
        ("x = 1\ny = (2)\n", "other tokens"),
        ("x = 1\n\ny = 2\n", "neither the expert's nor one comment"),
        ("x = 1  # one\ny = 2\n", "neither the expert's nor one comment"),
        ("x = 1\n# a\n# b\ny = 2\n", "neither the expert's nor one comment"),
        ("x = 1\ny = 2\n# after\n", "neither the expert's nor one comment"),
        ("x = 1\ny = 2", "lacks the expert's line"),
        ("x = (1\n", "does not parse"),
    ],
)
def test_other_changes_are_refused(annotated: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_comment_only(annotated, "x = 1\ny = 2\n")


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="does not parse"):
        legal_places("def f(:\n")
    with pytest.raises(DataError, match="does not parse"):
        legal_places("x = '\0'\n")
    with pytest.raises(DataError, match="carriage return"):
        legal_places("x = 1\ry = 2\n")
    with pytest.raises(DataError, match="cannot stand above line 1"):
        insert_comments('x = """\na\n"""\n', {1: "# no"})
    with pytest.raises(DataError, match="must be '#' and text"):
        insert_comments("x = 1\n", {0: "no"})
