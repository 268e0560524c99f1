"""The tokens of any tokenizer, sorted by what they mean to a program whose comments are decisions.

Tokenizers join line breaks and indents in different ways (`agents/mid_training/rationale/layout.py` tells the kinds
apart). Nothing here depends on them: a token is judged by its text, and by whether the line so far is blank.

Shape letters: see CONTRIBUTING.md (V vocabulary).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import torch

from ra3gym.abstractions.latents.comments import comment_problem
from ra3gym.errors import ModelError
from ra3gym.lm import LoadedModel
from ra3gym.lm.rendering import encode_part
from ra3gym.lm.stream import end_ids, writable_mask
from ra3gym.lm.tokenizer import decode_completion
from ra3gym.tasks.answers import strip_latents

_BLANK = " \t\f\r\n"
_TEXT_BEFORE_COMMENT = re.compile(r"(.*?\n[ \t\f]*)#", re.DOTALL)
"""The text of a token up to the first `#` that begins a line within it."""


class CommentTokens:
    """The tokens of a model, classified by their texts. Latents count as blanks.

    Attributes:
        writable_V: bool; tokens that a completion may hold.
        first_V: bool; of these, tokens that can be the first of a line that is not blank. Each of them is in at most
            one of the next two masks.
        comment_first_V: bool; tokens that begin a comment on a line that is blank so far: a `#`, after any blanks.
        code_first_V: bool; tokens that begin a line of code, and end tokens.
        proposal_first_V: bool; of `comment_first_V`, tokens that hold nothing but a comment.
        proposal_next_V: bool; tokens that can continue or end a comment.
        proposal_last_V: bool; of these, tokens that end the comment: a line break, with text of the comment before it
            or blanks after it.

    Raises:
        ModelError: no token begins a comment, or none ends a line.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._tokenizer: Any = loaded.tokenizer
        self.writable_V = writable_mask(loaded)
        vocab_size, ends = len(self.writable_V), end_ids(loaded)
        self._texts = token_texts(self._tokenizer, len(self._tokenizer), vocab_size)
        blank, begins, comment_first, inside, last = ([False] * vocab_size for _ in range(5))
        for token, writable in enumerate(self.writable_V.tolist()):
            if not writable or token in ends:
                continue
            text = self._texts[token]
            head, line_break, rest = text.partition("\n")
            blank[token] = not text.strip(_BLANK)
            begins[token] = text.lstrip(_BLANK).startswith("#")
            comment_first[token] = begins[token] and head.strip(_BLANK) != ""
            inside[token] = text != "" and comment_problem("#" + head) != "broken" and not rest.strip(_BLANK)
            last[token] = inside[token] and line_break != ""
        self._blank, self._comment_first = blank, comment_first
        self.comment_first_V, self.proposal_next_V, self.proposal_last_V = map(
            torch.tensor, (comment_first, inside, last)
        )
        self.proposal_first_V = self.comment_first_V & self.proposal_next_V
        self.first_V = self.writable_V & ~torch.tensor(blank)
        # A token of blank lines and then a comment is in neither mask: it would ask twice for one decision.
        self.code_first_V = self.first_V & ~torch.tensor(begins)
        for mask_V, ability in ((self.proposal_first_V, "begins a comment"), (self.proposal_last_V, "ends a line")):
            if not bool(mask_V.any()):
                raise ModelError(f"no token of the tokenizer {ability}, so that no comment can be proposed")

    def to(self, device: Any) -> CommentTokens:
        """Move all masks to a device."""
        for name in ("writable", "first", "comment_first", "code_first", "proposal_first", "proposal_next"):
            setattr(self, f"{name}_V", getattr(self, f"{name}_V").to(device))
        self.proposal_last_V = self.proposal_last_V.to(device)
        return self

    def begins_comment(self, token: int) -> bool:
        """Return whether a token begins a comment on a line that is blank so far."""
        return self._comment_first[token]

    def is_blank(self, token: int) -> bool:
        """Return whether a token is nothing but blanks and line breaks."""
        return self._blank[token]

    def leaves_blank(self, token: int, blank: bool) -> bool:
        """Return whether the line is blank after a token, given whether it is blank before the token."""
        _, line_break, last = self._texts[token].rpartition("\n")
        return (blank or line_break != "") and not last.strip(_BLANK)

    def tokens_before_comment(self, token: int) -> list[int] | None:
        """Return, for a token that joins a line break and a comment's `#`, the tokens of the text before the `#`.

        `None` for every other token.
        """
        joined = _TEXT_BEFORE_COMMENT.match(self._texts[token])
        if joined is None:
            return None
        return encode_part(self._tokenizer, joined[1])


@lru_cache(maxsize=4)
def token_texts(tokenizer: Any, num_tokens: int, vocab_size: int) -> tuple[str, ...]:
    """Return the text of each token, "" for latents and the pause token. `num_tokens` tells grown tokenizers apart."""
    known = min(num_tokens, vocab_size)
    texts = (strip_latents(decode_completion(tokenizer, [], [token])) for token in range(known))
    return (*texts, *[""] * (vocab_size - known))
