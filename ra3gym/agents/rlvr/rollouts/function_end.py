"""A completion ends where the task's function has ended: what a base model writes behind it costs time and is cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ra3gym.lm import encode_prompt, strip_latents
from ra3gym.lm.tokenizer import decode_completion
from ra3gym.tasks import CodeTask, StdioTests
from ra3gym.tasks.answers import cut_completion, top_level_statements

_COMMENT = re.compile(r"#[^\n]*")
_BEGUN_DEFINITION = re.compile(
    r"(?:d|de|def(?:\s+\w*)?|c|cl|cla|clas|class(?:\s+\w*)?|a|as|asy|asyn|async(?:\s+(?:d|de|def(?:\s+\w*)?)?)?)?"
)
"""What may yet become the definition of a helper, or of one with a longer name."""
_NEW_LINE_OF_CODE = re.compile(r"\n[^\s#]")
_UNFINISHED = "\ufffd"
"""How the first bytes of a character are decoded."""


def function_ended(task: CodeTask, text: str) -> bool:
    """Whether `cut_completion(task, text + more)` is `cut_completion(task, text)` whatever `more` may be.

    That is so once a statement stands at column 0 that is not part of the answer: not the definition of a helper that
    the function uses, nor the beginning of one, nor a statement ahead of the function where a completion restates it.
    """
    kept = cut_completion(task, text)
    if len(kept) == len(text):
        return False
    source, here = task.prompt + text, len(task.prompt)
    new = [start for start in top_level_statements(source) if start >= here]
    end = next(start for start in new if start >= here + len(kept))
    if _BEGUN_DEFINITION.fullmatch(source, end):
        return False
    if _COMMENT.sub("", source[here : new[0]]).strip():
        return True
    # Nothing goes on inside the prompt's function: it may still be restated, unless it has been.
    restated = re.compile(rf"(?:async\s+def|def|class)\s+{re.escape(task.entry_point.partition('.')[0])}\b")
    return any(restated.match(source, start) for start in new if start < end)


class FunctionEnd:
    """`ra3gym.lm.StopRule`: row n ends once the function of `tasks[n // group_size]` has ended (`function_ended`).

    Of the text, latents are taken out, as for grading. The text is decoded only where a token may begin a statement at
    column 0 or decide what it defines; elsewhere a question costs a few microseconds. Programs that read stdin have no
    entry function and go on to their end token.

    Args:
        tokenizer: of the model that writes.
        tasks: of the batch, in its order.
        group_size: rows of each.
    """

    def __init__(self, tokenizer: Any, tasks: Sequence[CodeTask], group_size: int) -> None:
        self._tokenizer, self._tasks, self._group_size = tokenizer, tasks, group_size
        self._pieces = _pieces(tokenizer, len(tokenizer))
        self._prompt_ids: dict[str, list[int]] = {}
        self.watched_ids = _watched(tokenizer, len(tokenizer))
        """Tokens that may begin a statement at column 0, or end the name of what it defines."""

    def ends(self, row: int, completion: Sequence[int]) -> bool:
        """See `ra3gym.lm.StopRule.ends`."""
        task = self._tasks[row // self._group_size]
        if isinstance(task.tests, StdioTests) or not task.entry_point:
            return False
        if not self._may_decide(task, completion):
            return False
        if task.prompt not in self._prompt_ids:
            self._prompt_ids[task.prompt] = encode_prompt(self._tokenizer, task.prompt)[-4:]
        text = decode_completion(self._tokenizer, self._prompt_ids[task.prompt], completion)
        return function_ended(task, strip_latents(text).rstrip(_UNFINISHED))

    def _may_decide(self, task: CodeTask, completion: Sequence[int]) -> bool:
        """Whether the newest token begins a line at column 0, or goes on with one that was undecided before."""
        newest = self._pieces[completion[-1]]
        if _NEW_LINE_OF_CODE.search(newest):
            return True
        line, asked = "", 0  # the line ahead of the newest token, and how much of it a watched token ended
        for token in reversed(completion[:-1]):
            piece = self._pieces[token]
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


@lru_cache(maxsize=2)
def _pieces(tokenizer: Any, size: int) -> list[str]:
    """The text of each token by itself, latents as nothing; `size` marks when tokens were added."""
    texts = tokenizer.batch_decode([[token] for token in range(size)], clean_up_tokenization_spaces=False)
    return [strip_latents(text) for text in texts]


@lru_cache(maxsize=2)
def _watched(tokenizer: Any, size: int) -> frozenset[int]:
    pieces = _pieces(tokenizer, size)
    return frozenset(i for i, piece in enumerate(pieces) if piece[:1].strip() or _NEW_LINE_OF_CODE.search(piece))
