"""Completions that end with the task's function: what a base model writes after it costs time and is cut anyway."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ra3gym.lm.rendering import Prompt, completion_text
from ra3gym.tasks import CodeTask, StdioTests
from ra3gym.tasks.answers import answer_end, strip_latents

_BEGUN_DEFINITION = re.compile(
    r"(?:d|de|def(?:\s+\w*)?|c|cl|cla|clas|class(?:\s+\w*)?|a|as|asy|asyn|async(?:\s+(?:d|de|def(?:\s+\w*)?)?)?)?"
)
"""Text that may still become the definition of a helper, or of a helper with a longer name."""
_NEW_LINE_OF_CODE = re.compile(r"\n[^\s#]")
_UNFINISHED = "\ufffd"
"""What the first bytes of a character are decoded to."""


def function_ended(task: CodeTask, text: str) -> bool:
    """Return whether `cut_completion(task, text + more)` equals `cut_completion(task, text)` for every `more`.

    It does when a statement begins at column 0 after a function that has all the names that it uses. If names are
    missing, later definitions may still be part of the answer, up to the first other statement.
    """
    return answer_end(task, text)[1]


class FunctionEnd:
    """`ra3gym.lm.StopRule`: row n ends with the function of `tasks[n // group_size]` (`function_ended`).

    Latents are removed from the text, as for grading. The text is decoded only when the newest token may begin a
    statement at column 0 or decide what such a statement defines; otherwise `ends` takes a few microseconds. Programs
    that read stdin have no entry function; they continue to their end token.

    Args:
        tokenizer: the model's.
        tasks: of the batch, in its order.
        prompts: theirs.
        group_size: rows of each task.
    """

    def __init__(self, tokenizer: Any, tasks: Sequence[CodeTask], prompts: Sequence[Prompt], group_size: int) -> None:
        self._tokenizer, self._tasks, self._group_size = tokenizer, tasks, group_size
        self._prompt_ends = [Prompt(prompt.ids[-4:], prompt.forced) for prompt in prompts]
        self._pieces = _pieces(tokenizer, len(tokenizer))
        self.watched_ids = _watched(tokenizer, len(tokenizer))
        """Tokens that may begin a statement at column 0, or end the name of what it defines."""

    def ends(self, row: int, completion: Sequence[int]) -> bool:
        """See `ra3gym.lm.StopRule.ends`."""
        group = row // self._group_size
        task = self._tasks[group]
        if isinstance(task.tests, StdioTests) or not task.entry_point:
            return False
        if not self._may_decide(task, completion):
            return False
        text = completion_text(self._tokenizer, self._prompt_ends[group], completion)
        return function_ended(task, strip_latents(text).rstrip(_UNFINISHED))

    def _may_decide(self, task: CodeTask, completion: Sequence[int]) -> bool:
        """Return whether the newest token begins a line at column 0, or continues one that was undecided."""
        newest = self._piece(completion[-1])
        if _NEW_LINE_OF_CODE.search(newest):
            return True
        line = ""  # the text of the line before the newest token
        asked = 0  # characters of it up to the last watched token
        for token in reversed(completion[:-1]):
            piece = self._piece(token)
            begin = piece.rfind("\n") + 1
            line = piece[begin:] + line
            asked = asked + len(piece) - begin if asked or token in self.watched_ids else 0
            if begin:
                break
        else:
            if not task.prompt.endswith("\n"):
                return False  # the line begins in the prompt
        if (line + newest)[:1].strip() in ("", "#"):
            return False
        return _BEGUN_DEFINITION.fullmatch(line[:asked].rstrip(_UNFINISHED)) is not None

    def _piece(self, token: int) -> str:
        """Return the text of a token; "" for an id that only the model's padded vocabulary has."""
        return self._pieces[token] if token < len(self._pieces) else ""


@lru_cache(maxsize=2)
def _pieces(tokenizer: Any, size: int) -> list[str]:
    """Return the text of each token by itself, "" for latents; `size` renews the cache when tokens are added."""
    texts = tokenizer.batch_decode([[token] for token in range(size)], clean_up_tokenization_spaces=False)
    return [strip_latents(text) for text in texts]


@lru_cache(maxsize=2)
def _watched(tokenizer: Any, size: int) -> frozenset[int]:
    pieces = _pieces(tokenizer, size)
    return frozenset(i for i, piece in enumerate(pieces) if piece[:1].strip() or _NEW_LINE_OF_CODE.search(piece))
