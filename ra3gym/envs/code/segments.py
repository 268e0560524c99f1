"""Programs that grow by segments: after each decision the frozen decoder writes until the next decision is due.

Shape letters: see CONTRIBUTING.md (E rows of the batch, B rows of this call, V vocabulary).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from torch import Tensor

from ra3gym.envs.batched_episodes import Info
from ra3gym.envs.code.batch import CodeBatch, Step
from ra3gym.envs.code.problem import CodeConfig
from ra3gym.envs.keywords import check_choice
from ra3gym.errors import ConfigError
from ra3gym.lm.fast.batch_stream import draw
from ra3gym.lm.tokenizer import decode_completion

DecoderKind = Literal["sample", "greedy"]


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(CodeConfig):
    """The keywords of environments whose decoder writes segments: those of `CodeConfig`, and these.

    Attributes:
        decoder: "sample" draws the decoder's tokens with `self.np_random`, one number each; "greedy" takes the
            likeliest, so that the decoder depends on the actions alone.
        temperature: of everything that is sampled; below 1 is sharper.
        segment_lines: a segment ends after so many line breaks at the latest. 1 has the agent choose for each line;
            `None` sets no limit.
        segment_tokens: a segment ends after so many tokens at the latest. `None` sets no limit.
        max_decisions: actions per episode; `None` for as many as the tokens allow.

    Raises:
        ConfigError: a value outside its choices or range.
    """

    decoder: DecoderKind = "sample"
    temperature: float = 1.0
    segment_lines: int | None = 8
    segment_tokens: int | None = 64
    max_decisions: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("decoder", self.decoder, DecoderKind)
        if not self.temperature > 0:
            raise ConfigError(f"temperature={self.temperature} must be positive; decoder='greedy' takes the likeliest")
        for name in ("segment_lines", "segment_tokens", "max_decisions"):
            check_limit(name, getattr(self, name))


def check_limit(name: str, value: int | None) -> None:
    """Raise `ConfigError` for a limit below 1."""
    if value is not None and value < 1:
        raise ConfigError(f"{name}={value} must be at least 1, or None for no limit")


C = TypeVar("C", bound=SegmentConfig)


@dataclass
class Segment:
    """What one decision led to.

    Attributes:
        action: the decision; `ILLEGAL` writes nothing.
        tokens: what was written, the decision's own tokens first.
        breaks: line breaks in `tokens`.
        lines: lines written. A last line without a break counts if the program ends in it.
        text: what the decoder wrote, without the end token.
        has_end: an end token was written.
        is_last: the episode is over: an end token came, or the budget is used up.
    """

    action: int
    tokens: list[int] = field(default_factory=list)
    breaks: int = 0
    lines: int = 0
    text: str = ""
    has_end: bool = False
    is_last: bool = False

    @property
    def tokens_without_end(self) -> list[int]:
        return self.tokens[:-1] if self.has_end else self.tokens


class SegmentBatch(CodeBatch[C]):
    """A `CodeBatch` that grows by segments; a base class. Subclasses say what begins and ends a segment."""

    def __init__(self, config: C, num_rows: int) -> None:
        super().__init__(config, num_rows)
        self._writable_V = self.problem.writable_V.to(self.problem.loaded.model.device)
        self._breaks: dict[int, int] = {}

    @abstractmethod
    def write_segments(
        self, rows: Sequence[int], actions: Sequence[int], rngs_E: Sequence[np.random.Generator]
    ) -> Sequence[Segment]:
        """Begin a segment with an action in each of these rows, and have the decoder write them to their ends.

        Args:
            rows: no row twice.
            actions: one per row, legal or `ILLEGAL`, which writes nothing and uses up one token of the budget.
            rngs_E: one generator per environment. A greedy decoder takes no numbers from it.
        """

    def _advance(self, rows: Sequence[int], actions: Sequence[int], rngs_E: Sequence[np.random.Generator]) -> Step:
        segments = self.write_segments(rows, actions, rngs_E)
        last_B = np.array([segment.is_last for segment in segments])
        exhausted_B = np.array([self._is_out_of_decisions(row) for row in rows])
        for i in np.flatnonzero(exhausted_B & ~last_B).tolist():
            self._submit(rows[i])
        terminated_B = np.array([segment.has_end for segment in segments])
        # An illegal action covers one token of the budget, and no line.
        tokens_B = np.array([max(1, len(segment.tokens)) for segment in segments])
        infos: Info = {
            "duration": {"lines": np.array([segment.lines for segment in segments]), "tokens": tokens_B},
            "segment": np.array([segment.text for segment in segments], dtype=object),
            "illegal_action": np.array([segment.action < 0 for segment in segments]),
        }
        return Step(terminated_B, (last_B | exhausted_B) & ~terminated_B, infos)

    def _spent_text(self, row: int) -> str:
        decisions = int(self.decisions_E[row])
        return f"{decisions} {'decision' if decisions == 1 else 'decisions'}, {self.spent_E[row]}"

    def _is_out_of_decisions(self, row: int) -> bool:
        most = self.config.max_decisions
        return most is not None and bool(self.decisions_E[row] >= most)

    def _write(self, tokens: Sequence[int], rows: Sequence[int], segments: Sequence[Segment]) -> None:
        """Write a token, or nothing for -1, in each of these rows, at one token of the budget.

        Programs that are over go to the judge before the forward pass, so that grading runs beside it.
        """
        writing = [i for i, token in enumerate(tokens) if token >= 0]
        written_rows = [rows[i] for i in writing]
        self._append(written_rows, [tokens[i] for i in writing])
        for token, row, segment in zip(tokens, rows, segments, strict=True):
            self.spent_E[row] += 1
            if token >= 0:
                segment.tokens.append(token)
                segment.breaks += self._line_breaks(token)
                segment.has_end = token in self.problem.end_ids
            segment.is_last = segment.has_end or bool(self.spent_E[row] >= self.config.max_new_tokens)
            if segment.is_last:
                self._submit(row)
        if writing:
            self.stream.read(written_rows)

    def _next_tokens(
        self, rows: Sequence[int], rngs_E: Sequence[np.random.Generator], allowed_V: Tensor | None = None
    ) -> list[int]:
        """Return the decoder's next token of each row, without writing it.

        Args:
            rows: no row twice.
            rngs_E: one generator per environment.
            allowed_V: bool `(V,)` or `(B, V)`, the tokens to choose from; all writable ones by default.
        """
        allowed_V = self._writable_V if allowed_V is None else allowed_V
        uniform_B = None if self.config.decoder == "greedy" else [float(rngs_E[row].random()) for row in rows]
        return draw(self.stream.logits_BV(rows), uniform_B, temperature=self.config.temperature, allowed_V=allowed_V)

    def _line_breaks(self, token: int) -> int:
        """Return the number of line breaks in a token's text; some tokenizers have tokens with several."""
        if token not in self._breaks:
            self._breaks[token] = decode_completion(self.problem.loaded.tokenizer, [], [token]).count("\n")
        return self._breaks[token]
