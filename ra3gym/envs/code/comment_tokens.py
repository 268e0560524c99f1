"""What the tokens of any tokeniser mean to a program in which comments are decisions: which begin one, which end it.

Tokenisers join line breaks and indents in ways of their own (`agents/mid_training/rationale/layout.py` tells the kinds
apart). Nothing here depends on them: a token is judged by its text, and by whether the line so far is blank.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import torch

from ra3gym.abstractions.latents.comments import comment_problem
from ra3gym.errors import ModelError
from ra3gym.lm import LoadedModel
from ra3gym.lm.stream import end_ids, writable_mask
from ra3gym.lm.tokenizer import decode_completion
from ra3gym.tasks.answers import strip_latents

_BLANK = " \t\f\r\n"
_JOINED = re.compile(r"(.*?\n[ \t\f]*)#", re.DOTALL)
"""What stands ahead of the first `#` that begins a line within a token."""


class CommentTokens:
    """The tokens of a model, told apart by their texts.

    Attributes:
        code_V: bool; what the decoder may write: all that a completion may hold. Latents count as blanks.
        line_V: bool; of these, what may be the first of a line that is not blank. The next two part them.
        asks_V: bool; tokens that begin a comment where the line is blank so far: a `#`, behind any blanks.
        plain_V: bool; the others, end tokens included.
        starts_V: bool; of `asks_V`, tokens that a proposal may begin with: nothing but a comment is in them.
        inside_V: bool; what may stand within a comment, or end it.
        stops_V: bool; tokens that end a comment: a line break, text of the comment ahead of it, blanks behind it.

    Raises:
        ModelError: no token begins a comment, or none ends a line.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._tokenizer: Any = loaded.tokenizer
        self.code_V = writable_mask(loaded)
        vocab_size, ends = len(self.code_V), end_ids(loaded)
        self._texts = token_texts(self._tokenizer, len(self._tokenizer), vocab_size)
        blank, begins, asks, inside, stops = ([False] * vocab_size for _ in range(5))
        for token, writable in enumerate(self.code_V.tolist()):
            if not writable or token in ends:
                continue
            text = self._texts[token]
            head, line_break, rest = text.partition("\n")
            blank[token] = not text.strip(_BLANK)
            begins[token] = text.lstrip(_BLANK).startswith("#")
            asks[token] = begins[token] and head.strip(_BLANK) != ""
            inside[token] = text != "" and comment_problem("#" + head) != "broken" and not rest.strip(_BLANK)
            stops[token] = inside[token] and line_break != ""
        self._blank, self._asks = blank, asks
        self.asks_V, self.inside_V, self.stops_V = map(torch.tensor, (asks, inside, stops))
        self.starts_V = self.asks_V & self.inside_V
        self.line_V = self.code_V & ~torch.tensor(blank)
        # Nor blank lines and then a comment: that would ask for the decision once more, in front of the same line.
        self.plain_V = self.line_V & ~torch.tensor(begins)
        if not bool(self.starts_V.any()) or not bool(self.stops_V.any()):
            missing = "ends a line" if bool(self.starts_V.any()) else "begins a comment"
            raise ModelError(f"no token of the tokenizer {missing}, so that no comment can be proposed")

    def to(self, device: Any) -> CommentTokens:
        """The same with all masks on a device."""
        for name in ("code_V", "line_V", "asks_V", "plain_V", "starts_V", "inside_V", "stops_V"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def asks(self, token: int) -> bool:
        """Whether a token begins a comment where the line is blank so far."""
        return self._asks[token]

    def is_blank(self, token: int) -> bool:
        """Whether a token is nothing but blanks and line breaks, so that the line it leads to is blank too."""
        return self._blank[token]

    def blank_behind(self, token: int, blank: bool) -> bool:
        """Whether the line is blank behind a token, if it was so (or not) ahead of it."""
        _, line_break, last = self._texts[token].rpartition("\n")
        return (blank or line_break != "") and not last.strip(_BLANK)

    def ahead_of_comment(self, token: int) -> list[int] | None:
        """Where a token joins a line break to a comment's `#`: what is to be written ahead of the `#`; else `None`."""
        joined = _JOINED.match(self._texts[token])
        if joined is None:
            return None
        ids: list[int] = self._tokenizer.encode(joined[1], add_special_tokens=False)
        return ids


@lru_cache(maxsize=4)
def token_texts(tokenizer: Any, num_tokens: int, vocab_size: int) -> tuple[str, ...]:
    """What each token writes, latents and the pause token nothing; worked out once as long as no token is added."""
    known = min(num_tokens, vocab_size)
    texts = (strip_latents(decode_completion(tokenizer, [], [token])) for token in range(known))
    return (*texts, *[""] * (vocab_size - known))
