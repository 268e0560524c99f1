"""Find the program in a sampled text: without latents, and without what a base model writes after its function."""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ra3gym.tasks.task import CodeTask, StdioTests

AnswerReader = Callable[[CodeTask, str], str]
"""From a task and a sampled text, latents included, to the completion that is graded after the task's prompt."""

PAUSE_TOKEN = "<|pause|>"

_LATENT = re.compile(r"<\|(z\d+|pause)\|>")

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


def latent_token(k: int) -> str:
    """Return the special token of latent `k`."""
    return f"<|z{k}|>"


def strip_latents(text: str) -> str:
    """Remove latent and pause tokens from `text`; what remains is the program."""
    return _LATENT.sub("", text)


def split_latents(text: str) -> list[tuple[str | None, str]]:
    """Cut `text` at its latents into `(name of the latent, text up to the next latent)`.

    The name is `None` for text before the first latent, if there is any.
    """
    before, *rest = _LATENT.split(text)
    first: list[tuple[str | None, str]] = [(None, before)] if before else []
    return first + list(zip(rest[::2], rest[1::2], strict=True))


def without_latents(task: CodeTask, text: str) -> str:
    """Read the whole text but its latents as the completion: for models that end a program themselves."""
    return strip_latents(text)


def answer_reader(tokenizer: Any) -> AnswerReader:
    """Return a reader for base models, which continue after the program, and for tokenizers with their own markers.

    It removes latents. It ends the text at the first other special token (a chat marker, say) and where the entry
    function ends (`cut_completion`).
    """
    special = {str(added) for added in tokenizer.added_tokens_decoder.values() if added.special}
    ends = [re.escape(token) for token in special | set(tokenizer.all_special_tokens) if strip_latents(token)]
    first_end = re.compile("|".join(ends) or r"\Z")

    def completion_of(task: CodeTask, text: str) -> str:
        return cut_completion(task, strip_latents(first_end.split(text, maxsplit=1)[0]))

    return completion_of


def cut_completion(task: CodeTask, completion: str) -> str:
    """Cut `completion` where the task's entry function ends; a program that reads stdin stays whole.

    The function ends at the next top-level statement: a line at column 0 that is neither blank nor a comment nor part
    of an open bracket, a string or a line continued with a backslash. Code before the function (imports, helpers,
    decorators) is kept. So are the definitions after it (functions, classes, imports, assignments) up to the last one
    that it needs, directly or through another; the search ends at any other statement. A completion may define the
    prompt's function again instead of continuing inside it. That definition then counts. A completion is returned
    whole if neither it nor the prompt defines the entry point.
    """
    return completion[: answer_end(task, completion)[0]]


def answer_end(task: CodeTask, completion: str) -> tuple[int, bool]:
    """Return the length of `cut_completion`, and whether it is the same for every longer text that begins alike."""
    if isinstance(task.tests, StdioTests) or not task.entry_point:
        return len(completion), False
    source, here = task.prompt + completion, len(task.prompt)
    name = task.entry_point.partition(".")[0]  # `Solution.method`
    statements = list(top_level_statements(source))
    new = [start for start in statements if start >= here]
    begun = any(_defined(source, start) == name for start in statements if start < here)
    goes_on = begun and bool(_COMMENT.sub("", source[here : new[0] if new else len(source)]).strip())
    own = None if goes_on else next((i for i, start in enumerate(new) if _defined(source, start) == name), None)
    if own is None and not begun:
        return len(completion), False
    after = new if own is None else new[own + 1 :]
    if not after:
        return len(completion), False
    before = _definitions(source, [start for start in statements if start < after[0]], after[0])
    following = _definitions(source, after, len(source))
    number, decided = _needed(before, following)
    if number == len(following):
        return len(completion), False
    kept = _without_trailing_comments(source[here : following[number].start])
    return len(kept), decided and (goes_on or own is not None)


def _needed(before: list[_Definition], following: list[_Definition]) -> tuple[int, bool]:
    """Return how many of the following statements belong to the answer, and whether longer texts give the same."""
    defined = {name for part in before for name in part.names}
    candidates: list[_Definition] = []
    for part in following:
        if not part.names or part.names & defined.union(*(earlier.names for earlier in candidates)):
            break  # it does more than define, or defines something anew
        candidates.append(part)
    known = defined | set(dir(builtins))
    used = {name for part in before for name in part.used} - known
    number = 0
    while True:
        missing = set(used)
        for i, part in enumerate(candidates):
            if part.names & used or ("*" in part.names and missing):
                number = max(number, i + 1)
            missing -= part.names
        more = used.union(*(candidates[i].used for i in range(number))) - known
        if more == used:
            break
        used = more
    missing = used.difference(*(part.names for part in candidates[:number]))
    return number, not missing or len(candidates) < len(following) - 1


@dataclass(frozen=True)
class _Definition:
    """A statement at column 0 with its decorators.

    Attributes:
        start: its offset in the source.
        names: what it defines; "*" for an import of everything. Empty for statements that do more than define.
        used: the global names that it uses; empty if it is not Python.
    """

    start: int
    names: frozenset[str]
    used: frozenset[str]


def _definitions(source: str, starts: list[int], end: int) -> list[_Definition]:
    """Return the statements that begin at `starts`, the last of which ends at `end`."""
    parts: list[_Definition] = []
    first: int | None = None
    for start, stop in zip(starts, [*starts[1:], end], strict=True):
        first = start if first is None else first
        if source.startswith("@", start) and stop != end:
            continue  # the function that it decorates comes next
        parts.append(_Definition(first, *_names(source[first:stop])))
        first = None
    return parts


@lru_cache(maxsize=256)
def _names(statement: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that a statement defines and the global names that it uses; see `_Definition`."""
    try:
        with warnings.catch_warnings():  # "\\d" in plain strings
            warnings.simplefilter("ignore")
            nodes = ast.parse(statement).body
            table = symtable.symtable(statement, "<answer>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        begun = _DEFINITION.match(statement)
        return frozenset([begun[1]] if begun else []), frozenset()
    names: set[str] = set()
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                names |= {
                    part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
                }
            case _:
                return frozenset(), _global_names(table)
    return frozenset(names), _global_names(table)


def _global_names(table: symtable.SymbolTable) -> frozenset[str]:
    module = table.get_type() == "module"
    used = {
        symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and (module or symbol.is_global())
    }
    return frozenset(used.union(*map(_global_names, table.get_children())))


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
