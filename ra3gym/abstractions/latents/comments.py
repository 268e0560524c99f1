"""Rationale latents as text: comment lines among the expert's lines of Python.

`<act>` is the line break, `<think>` is a line break and `#`: a new latent is a comment line right above the expert's
line, with that line's indent. An annotated program is still valid Python and differs from the expert's by comment lines
only. Everything here is text; `ra3gym.agents.mid_training.rationale` has a model write it.

Lines are numbered from 0. They end at "\\n" (or "\\r\\n") only, as in Python's own tokenizer: unlike in
`str.splitlines`, a form feed or a Unicode separator inside a string does not end a line.
"""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Mapping

from ra3gym.errors import DataError

_LAYOUT = frozenset({tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER})
# From Python 3.12 on, an f-string is several tokens; before, it is one string token.
_STRING_BEGINS = frozenset(getattr(tokenize, name, -1) for name in ("FSTRING_START", "TSTRING_START"))
_STRING_ENDS = frozenset(getattr(tokenize, name, -1) for name in ("FSTRING_END", "TSTRING_END"))


def legal_places(source: str) -> tuple[int, ...]:
    """Return the lines above which a comment line may be inserted: every line on which code begins.

    These are no legal places: blank lines and the expert's own comments (a comment belongs right above code), lines
    inside a string, and lines that a backslash joins to the line before. Lines inside brackets and between decorators
    are legal.

    Raises:
        DataError: `source` does not parse.
    """
    parsed(source)
    inside: set[int] = set()  # rows that begin within a string, or after a backslash
    begins: set[int] = set()  # rows on which a token of code begins
    open_strings: list[int] = []
    expected = 1  # the row on which the next token begins, unless a backslash hides the line break
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            row, end_row = token.start[0], token.end[0]
            if token.type != tokenize.ENDMARKER:
                inside |= set(range(expected + 1, row + 1))
            if token.type in _STRING_BEGINS:
                open_strings.append(row)
            elif token.type in _STRING_ENDS:
                inside |= set(range(open_strings.pop() + 1, end_row + 1))
            elif token.type == tokenize.STRING:
                inside |= set(range(row + 1, end_row + 1))
            if token.type not in _LAYOUT and token.type != tokenize.COMMENT:
                begins.add(row)
            expected = end_row + (token.type in (tokenize.NL, tokenize.NEWLINE))
    except (tokenize.TokenError, SyntaxError) as error:
        raise DataError(f"cannot cut the program into tokens: {error}") from error
    return tuple(sorted(row - 1 for row in begins - inside))


def insert_comments(source: str, comments: Mapping[int, str]) -> str:
    """Return `source` with `comments[i]` as a line of its own above line `i`, with that line's indent.

    Args:
        source: a program that parses.
        comments: line to comment: `#` and text, without indent and line break.

    Raises:
        DataError: `source` does not parse, a line is no legal place, or a comment is not one line that begins with `#`.
    """
    legal = set(legal_places(source))
    lines = source.split("\n")
    for line, comment in comments.items():
        if line not in legal:
            raise DataError(f"a comment cannot stand above line {line}: legal_places names the lines where it can")
        if not comment.startswith("#") or comment_problem(comment) == "broken":
            raise DataError(f"the comment {comment!r} must be '#' and text on one line")
        lines[line] = f"{indent_of(lines[line])}{comment}\n{lines[line]}"
    return "\n".join(lines)


def find_comments(annotated: str, source: str) -> dict[int, str]:
    """Return the comments of `annotated` by the line of `source` below them: the inverse of `insert_comments`.

    Raises:
        DataError: something other than single comment lines right above code was added or changed.
    """
    expert_lines = source.split("\n")
    comments: dict[int, str] = {}
    due = 0  # the expert's next line
    for number, line in enumerate(annotated.split("\n"), start=1):
        if due < len(expert_lines) and line == expert_lines[due]:
            due += 1
        elif due < len(expert_lines) and due not in comments and _is_comment(line) and _is_code(expert_lines[due]):
            comments[due] = line.lstrip(" \t\f")
        else:
            raise DataError(
                f"line {number} of the annotated program, {line!r}, is neither the expert's nor one comment above code"
            )
    if due < len(expert_lines):
        raise DataError(f"the annotated program lacks the expert's line {expert_lines[due]!r}")
    return comments


def check_comment_only(annotated: str, source: str) -> None:
    """Raise `DataError` unless `annotated` parses and is `source` with comment lines added, and nothing else.

    The three checks share no code: of the syntax trees, of the tokens that are not comments, and of the lines.
    """
    if ast.dump(parsed(annotated)) != ast.dump(parsed(source)):
        raise DataError("the annotated program has another syntax tree than the expert's")
    if _code_tokens(annotated) != _code_tokens(source):
        raise DataError("the annotated program has other tokens than the expert's, comments aside")
    find_comments(annotated, source)


def comment_problem(comment: str) -> str | None:
    """Return what is wrong with a comment as a latent: "empty" (no text), "broken" (not one line), or `None`."""
    # splitlines knows more line ends than Python; readers of the text may split it at them.
    if len(comment.splitlines()) > 1 or comment[-1:].splitlines() == [""] or "\0" in comment:
        return "broken"
    return None if comment.strip("# \t") else "empty"


def indent_of(line: str) -> str:
    """Return the white space that `line` begins with."""
    return line[: len(line) - len(line.lstrip(" \t\f"))]


def _is_comment(line: str) -> bool:
    return line.lstrip(" \t\f").startswith("#")


def _is_code(line: str) -> bool:
    return bool(line.strip()) and not _is_comment(line)


def parsed(source: str) -> ast.Module:
    """Return the syntax tree of `source`.

    Raises:
        DataError: it does not parse, or has a carriage return outside of a line break.
    """
    if "\r" in source.replace("\r\n", "\n"):
        raise DataError("the program holds a carriage return outside of a line break: write its line breaks as \\n")
    try:
        with warnings.catch_warnings():  # about the program's own escapes and comparisons
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"the program does not parse: {error}") from error


def _code_tokens(source: str) -> list[tuple[int, str]]:
    # The text of a line break may be "\n" or "\r\n", and the last one may be missing.
    return [
        (token.type, "" if token.type == tokenize.NEWLINE else token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in (tokenize.COMMENT, tokenize.NL)
    ]
