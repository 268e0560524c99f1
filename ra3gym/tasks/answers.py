"""Find the program in a sampled text: without latents, and without what a base model writes after its function."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
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
    decorators) is kept. So are definitions directly after it that it uses. A completion may define the prompt's
    function again instead of continuing inside it. That definition then counts. A completion is returned whole if
    neither it nor the prompt defines the entry point.
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
