"""A trace as tokens with places for comment lines: what is fixed, where the model decides, what it may write.

A tokeniser may join a line break to what follows it (GPT-2's kind: "\\n   ", " return") or to what stands ahead of it
(Llama 3's and Qwen's: "):\\n", "   ", " return"). Text is cut into pieces on the side that the tokeniser does not join,
so that pieces encoded one by one are, nearly always, the encoding of the whole program. With the first kind a piece
begins with its line break, as the paper's `<act>` = "\\n" and `<think>` = "\\n#" do; with the second it ends with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ra3gym.abstractions.latents.comments import comment_problem, indent_of, legal_places
from ra3gym.errors import DataError, ModelError
from ra3gym.lm import encode_prompt
from ra3gym.lm.tokenizer import decode_completion
from ra3gym.tasks import ExpertTrace

_PROBE = "def f(x):\n    if x:\n        return [x]\n    return g(x)\n"


@dataclass(frozen=True)
class Place:
    """An expert line above which the model may write a comment; its text runs up to the next place.

    Attributes:
        step: the index of the line among the trace's steps.
        act_ids: tokens of the expert's text when no comment is written, line break included.
        body_ids: tokens of the same text behind a comment line.
        split: how many tokens of `act_ids` a comment line begins with too: a line break, an indent.
        starter: the token that then begins a comment, where the expert has `act_ids[split]`.
        body_split, body_starter: the same within `body_ids`; `None` when the two part in no such way.
    """

    step: int
    act_ids: tuple[int, ...]
    body_ids: tuple[int, ...]
    split: int
    starter: int
    body_split: int | None
    body_starter: int | None


@dataclass(frozen=True)
class TraceLayout:
    """A trace as tokens: `prefix_ids`, then the places one after the other, each with or without a comment."""

    trace: ExpertTrace
    prefix_ids: tuple[int, ...]
    places: tuple[Place, ...]

    def longest(self, max_latent_tokens: int) -> int:
        """Tokens of the trace when every comment is as long as it may be."""
        comment = 2 + max_latent_tokens  # its starter, and a line break where the limit cuts it off
        lines = sum(place.split + comment + max(len(place.act_ids), len(place.body_ids)) for place in self.places)
        return len(self.prefix_ids) + lines


@dataclass(frozen=True)
class Comment:
    """A sampled comment: its tokens behind the starter, and whether it ended by itself (else the limit cut it off).

    `ids` holds the token of the line break only where the tokeniser joins breaks to what is ahead of them.
    """

    ids: tuple[int, ...]
    ended: bool


class CommentVocabulary:
    """What the tokens of a tokeniser mean within a comment line.

    Attributes:
        breaks_lead: pieces begin, rather than end, with a line break (see the module).
        stop_V: bool; tokens that end a comment.
        allowed_V: bool; tokens that may be sampled: stops, and all others without a line end in them that are not
            special tokens.
        break_ids: tokens of a line break behind a comment that the limit cut off.

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
        for token in range(min(len(tokenizer), vocab_size)):
            text = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if token in special or not text:
                continue
            if self.breaks_lead:
                # What stands behind the break is not kept: the expert's line follows with a break of its own.
                stops = text.lstrip(" \t").startswith("\n")
            else:
                stops = text.endswith("\n") and comment_problem("#" + text[:-1]) != "broken"
            self.stop_V[token] = stops
            self.allowed_V[token] = stops or comment_problem("#" + text) != "broken"
        if not bool(self.stop_V.any()):
            raise ModelError("no token of the tokenizer ends a line, so that no comment could end")
        self.break_ids = () if self.breaks_lead else tuple(_encode(tokenizer, "\n"))

    def length(self, comment: Comment | None) -> int:
        """Tokens of a comment behind its starter, line break aside; 0 for none."""
        if comment is None:
            return 0
        return len(comment.ids) - (comment.ended and not self.breaks_lead)

    def text(self, place: Place, comment: Comment) -> str:
        """The comment as text: `#` and what follows, without indent and line break."""
        return "#" + decode_completion(self.tokenizer, [place.starter], comment.ids).rstrip()


def comment_vocabulary(tokenizer: Any, model: Any) -> CommentVocabulary:
    """The vocabulary of a model's comments, on the CPU; made once for a tokeniser as long as no token is added."""
    return _vocabulary(tokenizer, len(tokenizer), int(model.config.get_text_config().vocab_size))


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Any, num_tokens: int, vocab_size: int) -> CommentVocabulary:
    return CommentVocabulary(tokenizer, vocab_size)


def breaks_lead(tokenizer: Any) -> bool:
    """Whether pieces that begin with their line break come closer to the tokens of a whole program than the others."""
    lines = _PROBE.splitlines(keepends=True)
    trailing = sum(len(_encode(tokenizer, line)) for line in lines)
    leading = sum(
        len(_encode(tokenizer, piece)) for piece in [lines[0][:-1], *("\n" + line[:-1] for line in lines[1:])]
    )
    return leading + len(_encode(tokenizer, "\n")) <= trailing


def lay_out(tokenizer: Any, trace: ExpertTrace) -> TraceLayout:
    """Cut a trace at the legal places that are beginnings of steps.

    A place where the expert's line and a comment line part before the comment's `#` has been read is left out (it
    belongs to the text of the place before): there is no token at which one could choose.

    Raises:
        DataError: the program does not parse, has no place, or has nothing that a model could read ahead of the first
            (no prompt, and a tokeniser without a begin token); the message names the trace and the way out.
    """
    program = trace.prompt + "".join(trace.steps)
    try:
        legal = set(legal_places(program))
    except DataError as error:
        raise DataError(
            f"trace {trace.task.task_id!r}: {error}. Rationales are comment lines, so prompt and steps together must "
            "be a valid Python module: mend the source or leave the trace out"
        ) from error
    leads = breaks_lead(tokenizer)
    cuts: list[tuple[int, int, int]] = []  # step, where its line starts, where its piece starts
    offset = len(trace.prompt)
    for step, text in enumerate(trace.steps):
        at_line_start = offset == 0 or program[offset - 1] == "\n"
        if at_line_start and program.count("\n", 0, offset) in legal:
            cuts.append((step, offset, len(program[:offset].rstrip(" \t\n")) if leads else offset))
        offset += len(text)
    places: list[Place] = []
    first = len(program)
    end = len(program)
    for step, start, cut in reversed(cuts):
        place = _place(tokenizer, step, program[cut:start], program[start:end], "\n" if leads else "")
        if place is not None:
            places.append(place)
            first = end = cut
    prefix = encode_prompt(tokenizer, program[:first])
    if not places or not prefix:
        missing = "line above which a comment could stand" if not places else "prompt, and the tokenizer no begin token"
        raise DataError(f"trace {trace.task.task_id!r} has no {missing}: give it one, or leave the trace out")
    return TraceLayout(trace, tuple(prefix), tuple(reversed(places)))


def _place(tokenizer: Any, step: int, lead: str, body: str, line_break: str) -> Place | None:
    """The place in front of `body` (the white space ahead of its line is `lead`); `None` when nothing parts it."""
    indent = indent_of(body)
    act_ids = _encode(tokenizer, lead + body)
    parting = _parting(tokenizer, act_ids, lead + indent)
    if parting is None:
        return None
    body_ids = _encode(tokenizer, line_break + body)
    body_parting = _parting(tokenizer, body_ids, line_break + indent) or (None, None)
    return Place(step, tuple(act_ids), tuple(body_ids), *parting, *body_parting)


def _parting(tokenizer: Any, line_ids: Sequence[int], space: str) -> tuple[int, int] | None:
    """`(split, starter)`: a comment behind `space` begins with `line_ids[:split]` and then with the token `starter`."""
    whole = _encode(tokenizer, space + "#")
    apart = [*_encode(tokenizer, space), *_encode(tokenizer, "#")] if space else whole
    for ids in (whole, apart):
        split = len(ids) - 1
        if ids[:split] == list(line_ids[:split]) and split < len(line_ids) and ids[split] != line_ids[split]:
            return split, ids[split]
    return None


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids
