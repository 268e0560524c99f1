"""A trace as tokens with places for comment lines: the fixed tokens, and where the model decides.

Tokenizers join a line break either to the text after it (GPT-2's kind: "\\n   ", " return") or to the text before it
(the kind of Llama 3 and Qwen: "):\\n", "   ", " return"). A program is cut into pieces on the side that the tokenizer
does not join, so that the tokens of the pieces are, nearly always, the tokens of the whole program. With the first kind
a piece begins with its line break, as the paper's `<act>` = "\\n" and `<think>` = "\\n#" do; with the second it ends
with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ra3gym.abstractions.latents.comments import indent_of, legal_places
from ra3gym.errors import DataError
from ra3gym.lm import encode_prompt
from ra3gym.lm.rendering import encode_part
from ra3gym.tasks import ExpertTrace

_PROBE = "def f(x):\n    if x:\n        return [x]\n    return g(x)\n"


@dataclass(frozen=True)
class Place:
    """An expert line above which the model may write a comment; its text runs up to the next place.

    Attributes:
        step: the index of the line among the trace's steps.
        act_ids: tokens of the expert's text when no comment is written, line break included.
        body_ids: tokens of the same text after a comment line.
        split: how many tokens of `act_ids` a comment line begins with too: a line break, an indent.
        starter: the token that begins a comment there; the expert's text has `act_ids[split]` in its place.
        body_split, body_starter: the same within `body_ids`; `None` where the two do not part in this way.
    """

    step: int
    act_ids: tuple[int, ...]
    body_ids: tuple[int, ...]
    split: int
    starter: int
    body_split: int | None
    body_starter: int | None

    @property
    def line_token(self) -> int:
        """The expert's token at the decision."""
        return self.act_ids[self.split]


@dataclass(frozen=True)
class TraceLayout:
    """A trace as tokens: `prefix_ids`, then the places one after the other, each with or without a comment.

    Attributes:
        trace: the expert's.
        prefix_ids: the tokens before the first place.
        places: at least one.
        breaks_lead: whether pieces begin, rather than end, with a line break.
        break_ids: the line break that follows a comment which the token limit cut off; empty where pieces begin with
            one.
    """

    trace: ExpertTrace
    prefix_ids: tuple[int, ...]
    places: tuple[Place, ...]
    breaks_lead: bool
    break_ids: tuple[int, ...]

    def longest(self, max_latent_tokens: int) -> int:
        """Return the tokens of the trace when every comment is as long as it may be."""
        comment = 2 + max_latent_tokens  # its starter, and a line break where the limit cuts it off
        lines = sum(place.split + comment + max(len(place.act_ids), len(place.body_ids)) for place in self.places)
        return len(self.prefix_ids) + lines


def lay_out(tokenizer: Any, trace: ExpertTrace) -> TraceLayout:
    """Cut a trace at the legal places that are beginnings of steps.

    A place where the expert's line and a comment line part before the comment's `#` is left out, and its text belongs
    to the place before: there is no single token at which to choose.

    Raises:
        DataError: the program does not parse, has no place, or has nothing that a model could read before the first
            (no prompt, and a tokenizer without a begin token); the message names the trace and the way out.
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
    first = end = len(program)
    for step, start, cut in reversed(cuts):
        place = _place(tokenizer, step, program[cut:start], program[start:end], "\n" if leads else "")
        if place is not None:
            places.append(place)
            first = end = cut
    prefix = encode_prompt(tokenizer, program[:first])
    if not places or not prefix:
        missing = "line above which a comment could stand" if not places else "prompt, and the tokenizer no begin token"
        raise DataError(f"trace {trace.task.task_id!r} has no {missing}: give it one, or leave the trace out")
    break_ids = () if leads else tuple(encode_part(tokenizer, "\n"))
    return TraceLayout(trace, tuple(prefix), tuple(reversed(places)), leads, break_ids)


def breaks_lead(tokenizer: Any) -> bool:
    """Return whether the tokens of pieces that begin with their line break are closer to those of whole programs."""
    lines = _PROBE.splitlines(keepends=True)
    trailing = sum(len(encode_part(tokenizer, line)) for line in lines)
    pieces = [lines[0][:-1], *("\n" + line[:-1] for line in lines[1:])]
    leading = sum(len(encode_part(tokenizer, piece)) for piece in pieces)
    return leading + len(encode_part(tokenizer, "\n")) <= trailing


def _place(tokenizer: Any, step: int, lead: str, body: str, line_break: str) -> Place | None:
    """Return the place before `body`, or `None` when no token parts it; `lead` is the white space before its line."""
    indent = indent_of(body)
    act_ids = encode_part(tokenizer, lead + body)
    parting = _parting(tokenizer, act_ids, lead + indent)
    if parting is None:
        return None
    body_ids = encode_part(tokenizer, line_break + body)
    body_parting = _parting(tokenizer, body_ids, line_break + indent) or (None, None)
    return Place(step, tuple(act_ids), tuple(body_ids), *parting, *body_parting)


def _parting(tokenizer: Any, line_ids: Sequence[int], space: str) -> tuple[int, int] | None:
    """`(split, starter)`: a comment after `space` begins with `line_ids[:split]` and then with the token `starter`."""
    whole = encode_part(tokenizer, space + "#")
    apart = [*encode_part(tokenizer, space), *encode_part(tokenizer, "#")] if space else whole
    for ids in (whole, apart):
        split = len(ids) - 1
        if ids[:split] == list(line_ids[:split]) and split < len(line_ids) and ids[split] != line_ids[split]:
            return split, ids[split]
    return None
