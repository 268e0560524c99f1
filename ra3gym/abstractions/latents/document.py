"""An annotated trace as a model is trained on it: the token ids, and which of them are prompt, latents and code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import ConfigError, DataError
from ra3gym.lm import encode_prompt, latent_ids, pause_id
from ra3gym.lm.rendering import ends_lines, render
from ra3gym.tasks import ExpertTrace
from ra3gym.tasks.answers import PAUSE_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Tokens `start` to `stop - 1` of a document."""

Segment = tuple[int, int, int]
"""A latent, and the lines under it: `start` to `stop - 1`."""


@dataclass(frozen=True)
class Document:
    """One trace, exactly as it is trained on.

    Attributes:
        task_id: the trace's task.
        prompt: the text before the program: the trace's own prompt, or one written from its latents.
        text: prompt and program, latents included; without the tokens that begin and end a text.
        lines: the program's lines with their line breaks, without latents.
        ids: the token ids: prompt, program with latents, end of text.
        prompt_tokens: the tokens of the prompt, a begin token included.
        latent_tokens: for each segment, the tokens of its latent; an empty span for a latent that writes nothing.
        line_tokens: for each line, its tokens.
        path: the latents of the lines; `None` for a document without latents.
        gains: for each line, what its latent is worth in nats; `None` where the E-step had no likelihood.

    Raises:
        DataError: the spans do not follow one another from the first token to the end of text.
    """

    task_id: str
    prompt: str
    text: str
    lines: tuple[str, ...]
    ids: tuple[int, ...]
    prompt_tokens: Span
    latent_tokens: tuple[Span, ...]
    line_tokens: tuple[Span, ...]
    path: LatentPath | None = None
    gains: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.latent_tokens) != len(self.segments) or len(self.line_tokens) != len(self.lines):
            raise DataError(
                f"{len(self.latent_tokens)} spans of latents for {len(self.segments)} segments, "
                f"{len(self.line_tokens)} spans of lines for {len(self.lines)} lines: give one for each"
            )
        latent_before = dict(zip((start for _, start, _ in self.segments), self.latent_tokens, strict=True))
        spans = [self.prompt_tokens]
        for line, tokens in enumerate(self.line_tokens):
            spans += [latent_before[line], tokens] if line in latent_before else [tokens]
        position = 0
        for start, stop in spans:
            if start != position or stop < start:
                raise DataError(f"the span {start} to {stop} does not continue at token {position}")
            position = stop
        if position != len(self.ids) - 1:
            raise DataError(f"the spans end at token {position}, the text before its end token at {len(self.ids) - 1}")

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments of the path, in order; empty without latents."""
        if self.path is None:
            return ()
        starts = [line for line, switch in enumerate(self.path.switches) if switch]
        stops = [*starts[1:], len(self.lines)]
        return tuple((self.path.latents[start], start, stop) for start, stop in zip(starts, stops, strict=True))

    @property
    def latents(self) -> tuple[int, ...]:
        """The latent of each line; empty without latents."""
        return () if self.path is None else self.path.latents

    @property
    def loss_mask(self) -> tuple[bool, ...]:
        """For each token, whether the M-step predicts it: every token but the first, which nothing comes before."""
        return (False, *(True,) * (len(self.ids) - 1))


class DocumentWriter:
    """Turns traces into documents; where line breaks are tokens of their own, each distinct line is tokenized once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.latent_ids = latent_ids(tokenizer)
        self._ends_lines = ends_lines(tokenizer)
        self._ids: dict[str, list[int]] = {}
        self._prompt_ids: dict[str, list[int]] = {}

    def check(self, traces: Sequence[ExpertTrace], annotations: Annotations) -> None:
        """Raise an error if these traces cannot be written with these latents.

        Raises:
            ConfigError: more latents than the tokenizer has tokens for.
            DataError: annotations of other traces, a gain that is not finite, or a latent without a place in `names`.
            ModelError: the tokenizer lacks the pause token.
        """
        if len(traces) != len(annotations.paths):
            raise DataError(
                f"{len(annotations.paths)} paths for {len(traces)} traces: give the annotations of these traces"
            )
        num_latents = annotations.num_latents
        if annotations.comments is None and annotations.tokens is None and num_latents > len(self.latent_ids):
            raise ConfigError(
                f"the annotations use {num_latents} latents, the tokenizer knows {len(self.latent_ids)}: add the "
                "others with ra3gym.lm.add_latents"
            )
        if PAUSE_TOKEN in (annotations.tokens or ()):
            pause_id(self.tokenizer)
        for index, (trace, path) in enumerate(zip(traces, annotations.paths, strict=True)):
            name = trace.task.task_id
            if len(path.latents) != len(trace.steps):
                raise DataError(f"trace {name!r} has {len(trace.steps)} lines, its path {len(path.latents)}")
            if not 0 <= min(path.latents) <= max(path.latents) < num_latents:
                raise DataError(f"trace {name!r} is under a latent outside 0 to {num_latents - 1}")
            if annotations.gains is not None and not all(map(math.isfinite, annotations.gains[index])):
                raise DataError(f"trace {name!r} has a gain that is not finite: {annotations.gains[index]}")

    def write(
        self, trace: ExpertTrace, annotations: Annotations | None = None, index: int = 0, *, prompt: str | None = None
    ) -> Document:
        """Return the document of one trace.

        Prompt and program are encoded as a whole, as the model reads them. A token that joins two parts belongs to the
        part in which it begins.

        Args:
            trace: the trace.
            annotations: latents of the corpus; a document without latents when `None`.
            index: the place of the trace in the annotations.
            prompt: in place of the trace's own.

        Raises:
            DataError: the tokens do not decode to the text.
        """
        prompt = trace.prompt if prompt is None else prompt
        path = None if annotations is None else annotations.paths[index]
        marks = [""] * len(trace.steps) if annotations is None else annotations.marks(index, trace.steps)
        parts = [part for mark_and_step in zip(marks, trace.steps, strict=True) for part in mark_and_step]
        ids, spans = self._encode(prompt, parts)
        switches = (False,) * len(trace.steps) if path is None else path.switches
        return Document(
            task_id=trace.task.task_id,
            prompt=prompt,
            text=prompt + "".join(parts),
            lines=trace.steps,
            ids=(*ids, self.tokenizer.eos_token_id),
            prompt_tokens=spans[0],
            latent_tokens=tuple(span for span, switch in zip(spans[1::2], switches, strict=True) if switch),
            line_tokens=tuple(spans[2::2]),
            path=path,
            gains=None if annotations is None or annotations.gains is None else annotations.gains[index],
        )

    def _encode(self, prompt: str, parts: Sequence[str]) -> tuple[Sequence[int], Sequence[Span]]:
        """Return the token ids of prompt and parts, and the spans of the prompt and of each part."""
        if not self._ends_lines or not (prompt.endswith("\n") or not prompt):
            rendered = render(self.tokenizer, [prompt, *parts])
            return rendered.ids, rendered.spans
        if prompt not in self._prompt_ids:
            self._prompt_ids[prompt] = encode_prompt(self.tokenizer, prompt)
        pieces = [self._prompt_ids[prompt], *map(self._encode_line, parts)]
        stops = accumulate(map(len, pieces))
        return [token for piece in pieces for token in piece], list(pairwise([0, *stops]))

    def _encode_line(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._ids[text]
