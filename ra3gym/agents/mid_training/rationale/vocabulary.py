"""What the tokens of a tokenizer mean within a comment line, and a sampled comment as text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ra3gym.abstractions.latents.comments import comment_problem
from ra3gym.agents.mid_training.rationale.layout import Place, breaks_lead
from ra3gym.errors import ModelError
from ra3gym.lm.rendering import encode_part, token_texts
from ra3gym.lm.tokenizer import decode_completion


@dataclass(frozen=True)
class Comment:
    """A comment as tokens.

    Attributes:
        ids: the tokens after the starter. The token of the line break is among them only where the tokenizer joins a
            break to the text before it.
        ended: whether the comment has a line break of its own; false where the token limit cut it off.
    """

    ids: tuple[int, ...]
    ended: bool


class CommentVocabulary:
    """What the tokens of a tokenizer mean within a comment line.

    Attributes:
        breaks_lead: whether pieces begin with a line break; see `ra3gym.agents.mid_training.rationale.layout`.
        stop_V: bool; the tokens that end a comment.
        allowed_V: bool; the tokens that may be sampled: those that end a comment, and all others that are neither
            special tokens nor hold a line end.

    Raises:
        ModelError: no token ends a line.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.breaks_lead = breaks_lead(tokenizer)
        self.stop_V = torch.zeros(vocab_size, dtype=torch.bool)
        self.allowed_V = torch.zeros(vocab_size, dtype=torch.bool)
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        special |= set(tokenizer.all_special_ids)
        texts = token_texts(tokenizer)
        for token in range(min(len(tokenizer), vocab_size)):
            text = texts[token]
            if token in special or not text:
                continue
            if self.breaks_lead:
                # The text after the break is not kept: the expert's line follows with a break of its own.
                stops = text.lstrip(" \t").startswith("\n")
            else:
                stops = text.endswith("\n") and comment_problem("#" + text[:-1]) != "broken"
            self.stop_V[token] = stops
            self.allowed_V[token] = stops or comment_problem("#" + text) != "broken"
        if not bool(self.stop_V.any()):
            raise ModelError("no token of the tokenizer ends a line, so that no comment could end")

    def length(self, comment: Comment | None) -> int:
        """Return the tokens of a comment after its starter, line break not counted; 0 without a comment."""
        if comment is None:
            return 0
        return len(comment.ids) - (comment.ended and not self.breaks_lead)

    def text(self, place: Place, comment: Comment) -> str:
        """Return the comment as text: `#` and what follows, without indent and line break."""
        return "#" + decode_completion(self.tokenizer, [place.starter], comment.ids).rstrip()

    def is_malformed(self, place: Place, comment: Comment | None) -> bool:
        """Return whether a comment was cut off, has no text, or does not fit on one line."""
        if comment is None:
            return False
        return not comment.ended or comment_problem(self.text(place, comment)) is not None

    def encode(self, place: Place, text: str) -> Comment:
        """Return a comment's text (`#` and what follows) in the tokens that a document has for it."""
        starter_text = token_texts(self.tokenizer)[place.starter]
        line = text[1:] + ("" if self.breaks_lead else "\n")
        ids = encode_part(self.tokenizer, starter_text + line)
        # A tokenizer may join `#` to what follows it; the policy never does.
        after_starter = ids[1:] if ids[0] == place.starter else encode_part(self.tokenizer, line)
        return Comment(tuple(after_starter), ended=True)

    def respelled(self, place: Place, comment: Comment | None) -> Comment | None:
        """Return the comment as a document has it; `None` where it has no text or does not fit on one line."""
        text = "" if comment is None else self.text(place, comment)
        return None if comment_problem(text) is not None else self.encode(place, text)


def comment_vocabulary(tokenizer: Any, model: Any) -> CommentVocabulary:
    """Return the vocabulary of a model's comments, on the CPU; cached until a token is added to the tokenizer."""
    return _vocabulary(tokenizer, len(tokenizer), int(model.config.get_text_config().vocab_size))


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Any, num_tokens: int, vocab_size: int) -> CommentVocabulary:
    return CommentVocabulary(tokenizer, vocab_size)
