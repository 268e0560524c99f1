"""Where the answer ends in what a base language model writes: such a model goes on after the function asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ra3gym.tasks.task import CodeTask, StdioTests

_TOKEN = re.compile(
    r"""
      (?P<comment>\#[^\n]*)
    | (?P<quote>'''|\"\"\"|'|\")
    | (?P<open>[(\[{])
    | (?P<close>[)\]}])
    | (?P<joined>\\\r?\n)
    | (?P<line>\n)
    """,
    re.VERBOSE,
)
# The rest of a string; an unfinished one ends with its line, or with the text where it may span lines.
_STRING_REST = {quote: re.compile(rf"(?:\\.|(?!{quote}).)*(?:{quote}|\Z)", re.DOTALL) for quote in ("'''", '"""')} | {
    quote: re.compile(rf"(?:\\(?:.|\Z)|[^\\\n{quote}])*{quote}?", re.DOTALL) for quote in ("'", '"')
}
_COMMENT = re.compile(r"#[^\n]*")
_DEFINITION = re.compile(r"(?:async\s+def|def|class)\s+(\w+)")


def cut_completion(task: CodeTask, completion: str) -> str:
    """`completion` up to where the task's entry function ends; all of it for a program that reads stdin.

    The function ends at the first new top-level statement: a line at column 0 that is neither blank, nor a comment,
    nor goes on with an open bracket, a string or a backslash. What stands ahead of the function (imports, helpers,
    decorators) is kept, and so are definitions right behind it that it uses. A completion that restates the prompt's
    function, rather than going on inside it, counts from its own definition. Without a definition of the entry point
    anywhere, nothing is cut.
    """
    if isinstance(task.tests, StdioTests) or not task.entry_point:
        return completion
    source, here = task.prompt + completion, len(task.prompt)
    name = task.entry_point.partition(".")[0]  # `Solution.method`
    statements = list(top_level_statements(source))
    new = [start for start in statements if start >= here]
    begun = any(_defined(source, start) == name for start in statements if start < here)
    goes_on = begun and bool(_COMMENT.sub("", source[here : new[0] if new else len(source)]).strip())
    own = None if goes_on else next((i for i, start in enumerate(new) if _defined(source, start) == name), None)
    if own is None and not begun:
        return completion
    defined = {name}
    for start in new if own is None else new[own + 1 :]:
        helper = _defined(source, start)
        if helper is None or helper in defined or not re.search(rf"\b{helper}\b", source[:start]):
            return _without_trailing_comments(source[here:start])
        defined.add(helper)
    return completion


def _defined(source: str, start: int) -> str | None:
    """The name of the function or class that the statement at `start` defines."""
    found = _DEFINITION.match(source, start)
    return found[1] if found else None


def top_level_statements(source: str) -> Iterator[int]:
    """Offsets of the lines that begin a statement at column 0; `source` need not be valid Python."""
    depth, position, begins_line = 0, 0, True
    while position <= len(source):
        if begins_line and depth == 0 and source[position : position + 1].strip() not in ("", "#"):
            yield position
        begins_line = False
        token = _TOKEN.search(source, position)
        if token is None:
            return
        position = token.end()
        kind = token.lastgroup
        if kind == "quote":
            rest = _STRING_REST[token["quote"]].match(source, position)
            position = rest.end() if rest else position
        elif kind == "open":
            depth += 1
        elif kind == "close":
            depth = max(0, depth - 1)
        elif kind == "line":
            begins_line = True


def _without_trailing_comments(text: str) -> str:
    """`text` without the blank lines and column-0 comments at its end: they belong to what follows."""
    lines = re.split(r"(?<=\n)", text)
    while len(lines) > 1 and (not lines[-1].strip() or lines[-1].startswith("#")):
        lines.pop()
    return "".join(lines)
