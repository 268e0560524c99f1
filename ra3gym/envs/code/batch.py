"""Programs that a frozen model writes in one batch: the episodes' tokens, and the segments that a decoder adds to them.

A batch holds E rows, each at a task of its own. Rows that end begin anew with `begin` while the others go on. The
environments, single and vector, are bookkeeping over this; a single one has one row.

Shape suffixes: E rows, B rows of this call, K latents, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ra3gym.abstractions.inference.problem import NO_LATENT
from ra3gym.envs.code.problem import CodeProblem, Graded, clipped
from ra3gym.envs.coloured_text import Run, ansi_text
from ra3gym.envs.options import check_choice
from ra3gym.errors import ConfigError, ModelError
from ra3gym.lm.fast.batch_stream import BatchStream, draw
from ra3gym.lm.tokenizer import decode_completion, latent_ids
from ra3gym.tasks.answers import split_latents
from ra3gym.verify import Verdict

DecoderKind = Literal["sample", "greedy"]


@dataclass(frozen=True)
class SegmentOptions:
    """How the frozen decoder writes a segment, and which latents may begin one; see `LatentCodeEnv`.

    Raises:
        ConfigError: a value outside its choices or range.
    """

    decoder: DecoderKind = "sample"
    temperature: float = 1.0
    segment_lines: int | None = 8
    segment_tokens: int | None = 64
    max_decisions: int | None = None
    top_k: int | None = None
    min_prob: float | None = None

    def __post_init__(self) -> None:
        check_choice("decoder", self.decoder, DecoderKind)
        if not self.temperature > 0:
            raise ConfigError(f"temperature={self.temperature} must be positive; decoder='greedy' takes the likeliest")
        for name in ("segment_lines", "segment_tokens", "max_decisions", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1, or None for no limit")
        if self.min_prob is not None and not 0 <= self.min_prob < 1:
            raise ConfigError(f"min_prob={self.min_prob} must be in [0, 1), or None for no threshold")


@dataclass
class Segment:
    """What one decision led to. `over`: an end token came, or the budget is used up."""

    latent: int
    """-1 for an illegal action, which writes nothing."""
    tokens: list[int] = field(default_factory=list)
    """The latent's own token, then what the decoder wrote."""
    breaks: int = 0
    lines: int = 0
    text: str = ""
    """What the decoder wrote, the end token left out."""
    ended: bool = False
    over: bool = False


class CodeBatch:
    """E episodes of a problem in one stream: which task, what is written, how much of the budget is used."""

    def __init__(self, problem: CodeProblem, num_rows: int) -> None:
        self.problem = problem
        self.num_rows = num_rows
        self.task_E = np.zeros(num_rows, dtype=np.int64)
        self.spent_E = np.zeros(num_rows, dtype=np.int64)
        """Tokens written, and illegal actions, which use up one each."""
        self._stream: BatchStream | None = None

    @property
    def stream(self) -> BatchStream:
        """The rows' tokens; all rows begin ahead of its first use."""
        assert self._stream is not None, "no episode has begun"
        return self._stream

    def begin(self, rows: Sequence[int], tasks: Sequence[int]) -> None:
        """Begin these tasks in these rows, in one pass; the first call takes all rows, in order."""
        prompts = [self.problem.prompts[task] for task in tasks]
        self.task_E[list(rows)], self.spent_E[list(rows)] = tasks, 0
        if self._stream is None:
            self._stream = BatchStream(self.problem.loaded, prompts)
        else:
            self._stream.begin(rows, prompts)

    def written(self, row: int) -> list[int]:
        """The tokens behind a row's prompt."""
        return [] if self._stream is None else self._stream.written[row]

    def completion(self, row: int) -> str:
        """What a row has written as text, latents included, without the end token."""
        return self.problem.completion(int(self.task_E[row]), self.written(row))

    def program(self, row: int) -> str:
        """What is graded of a row."""
        return self.problem.program(int(self.task_E[row]), self.written(row))

    def spent(self, row: int) -> str:
        """How much of the budget a row has used, as its status says it."""
        return str(self.spent_E[row])

    def show(self, row: int, verdict: Verdict | None) -> str:
        """What a row holds as text under a line of status: segments behind their latents, in the latents' colours."""
        status = self.problem.status(int(self.task_E[row]), self.spent(row), verdict)
        return f"# {status}\n{ansi_text(self._runs(row, named=True))}\n"

    def frame(self, row: int, verdict: Verdict | None) -> npt.NDArray[np.uint8]:
        """The same as a picture, the latents' numbers beside the lines; see `ra3gym.envs.frames`."""
        from ra3gym.envs.frames import program_frame

        status = self.problem.status(int(self.task_E[row]), self.spent(row), verdict)
        return program_frame(status, self._runs(row, named=False))

    def _runs(self, row: int, *, named: bool) -> list[Run]:
        """The prompt, then what a row has written, cut at its latents; `named`: their tokens are left in."""
        runs, latent = [Run(self.problem.tasks[int(self.task_E[row])].prompt)], NO_LATENT
        for name, text in split_latents(self.completion(row)):
            if name is not None and name != "pause":
                latent = int(name.removeprefix("z"))
            runs.append(Run(f"<|{name}|>{text}" if named and name is not None else text, latent))
        return runs

    def submit(self, row: int) -> Graded:
        """Give a row's program to the judge, without waiting."""
        return self.problem.submit(int(self.task_E[row]), self.written(row), int(self.spent_E[row]))

    def hidden_BD(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """float32 `(B, D)`: last hidden states, clipped."""
        return clipped(self.stream.hidden_BD(rows))

    def padded_BL(self, rows: Sequence[int]) -> npt.NDArray[np.int64]:
        """int64 `(B, L)`: prompts and programs, padded on the right."""
        return np.stack([self.problem.padded(int(self.task_E[row]), self.written(row)) for row in rows])


class SegmentBatch(CodeBatch):
    """A `CodeBatch` that grows by segments, one for each decision; what begins and ends them, subclasses say.

    Args:
        allowed_V: bool, on any device: the tokens that the frozen decoder may write.
    """

    def __init__(self, problem: CodeProblem, num_rows: int, options: SegmentOptions, allowed_V: Tensor) -> None:
        super().__init__(problem, num_rows)
        self.options = options
        self.decisions_E = np.zeros(num_rows, dtype=np.int64)
        self._allowed_V = allowed_V.to(problem.loaded.model.device)
        self._breaks: dict[int, int] = {}

    def begin(self, rows: Sequence[int], tasks: Sequence[int]) -> None:
        self.decisions_E[list(rows)] = 0
        super().begin(rows, tasks)

    def spent(self, row: int) -> str:
        decisions = int(self.decisions_E[row])
        return f"{decisions} {'decision' if decisions == 1 else 'decisions'}, {self.spent_E[row]}"

    def out_of_decisions(self, row: int) -> bool:
        """Whether a row has taken `max_decisions`."""
        most = self.options.max_decisions
        return most is not None and bool(self.decisions_E[row] >= most)

    def _append(
        self,
        tokens: Sequence[int],
        rows: Sequence[int],
        segments: Sequence[Segment],
        on_over: Callable[[int], None],
    ) -> None:
        """Write a token in each of these rows (-1: none), and see which episodes are over.

        What is over is known, and handed on, ahead of the forward pass: grading runs beside it.
        """
        writing = [i for i, token in enumerate(tokens) if token >= 0]
        written_rows = [rows[i] for i in writing]
        self.stream.append(written_rows, [tokens[i] for i in writing])
        for token, row, segment in zip(tokens, rows, segments, strict=True):
            self.spent_E[row] += 1
            if token >= 0:
                segment.tokens.append(token)
                segment.breaks += self._line_breaks(token)
                segment.ended = token in self.problem.end_ids
            segment.over = segment.ended or bool(self.spent_E[row] >= self.problem.max_new_tokens)
            if segment.over:
                on_over(row)
        if writing:
            self.stream.read(written_rows)

    def _next_tokens(
        self, rows: Sequence[int], rngs: Sequence[np.random.Generator], allowed_V: Tensor | None = None
    ) -> list[int]:
        """The decoder's next tokens, not yet written; of `allowed_V`, bool `(V,)` or `(B, V)`, where it is given."""
        allowed_V = self._allowed_V if allowed_V is None else allowed_V
        uniform_B = None if self.options.decoder == "greedy" else [float(rng.random()) for rng in rngs]
        return draw(self.stream.logits_BV(rows), uniform_B, temperature=self.options.temperature, allowed_V=allowed_V)

    def _line_breaks(self, token: int) -> int:
        """Line breaks in a token's text; tokens of other tokenizers may hold several."""
        if token not in self._breaks:
            self._breaks[token] = decode_completion(self.problem.loaded.tokenizer, [], [token]).count("\n")
        return self._breaks[token]


class LatentBatch(SegmentBatch):
    """A segment is a latent, then what the frozen decoder writes until it asks for the next.

    Raises:
        ModelError: the tokenizer knows no latents.
    """

    def __init__(self, problem: CodeProblem, num_rows: int, options: SegmentOptions) -> None:
        super().__init__(problem, num_rows, options, problem.writable_V)
        self.latent_ids = latent_ids(problem.loaded.tokenizer)
        if not self.latent_ids:
            raise ModelError(
                "the model knows no latents, and they are the actions here: take 'embedded', or a model trained with "
                "them (ra3gym.lm.add_latents adds the tokens <|z0|>, <|z1|>, ...)"
            )
        self._latents = frozenset(self.latent_ids)

    def logprobs_BK(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """float32 `(B, K)`, nats: the model's own choice, given that a latent comes."""
        logits_BK = self.stream.logits_BV(rows)[:, self.latent_ids].float()
        found: npt.NDArray[np.float32] = logits_BK.log_softmax(-1).cpu().numpy()
        return found

    def legal_BK(self, logprobs_BK: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """bool `(B, K)`: the latents among the `top_k` likeliest whose probability reaches `min_prob`.

        The likeliest latent is always legal.
        """
        legal_BK = np.ones(logprobs_BK.shape, dtype=np.bool_)
        rank_BK = np.argsort(np.argsort(-logprobs_BK, axis=1, kind="stable"), axis=1)
        if self.options.top_k is not None:
            legal_BK &= rank_BK < self.options.top_k
        if self.options.min_prob is not None:
            legal_BK &= np.exp(logprobs_BK) >= self.options.min_prob
        legal_BK |= rank_BK == 0
        return legal_BK

    def decide(
        self,
        rows: Sequence[int],
        latents: Sequence[int],
        rngs: Sequence[np.random.Generator],
        on_over: Callable[[int], None] = lambda row: None,
    ) -> list[Segment]:
        """Begin a segment with a latent in each of these rows, and have the decoder write them to their ends.

        A segment ends where the decoder's next token is a latent (which is not written: that choice is the agent's),
        at its cap of lines or tokens, with an end token, or with the budget.

        Args:
            rows: whose turn it is; no row twice.
            latents: one per row; -1 for an illegal action: nothing is written, and one token of the budget is gone.
            rngs: one per row; a sampling decoder takes one number per token from it, and one more where it asks for a
                latent. A greedy one takes none.
            on_over: called with a row as soon as its episode is over, while the others write on.
        """
        self.decisions_E[list(rows)] += 1
        segments = [Segment(latent) for latent in latents]
        open_B = list(range(len(rows)))
        token_B = [self.latent_ids[latent] if latent >= 0 else -1 for latent in latents]
        while open_B:
            self._append(token_B, [rows[b] for b in open_B], [segments[b] for b in open_B], on_over)
            open_B = [b for b in open_B if self._wants_more(segments[b])]
            if not open_B:
                break
            token_B = self._next_tokens([rows[b] for b in open_B], [rngs[b] for b in open_B])
            going = [i for i, token in enumerate(token_B) if token not in self._latents]
            open_B, token_B = [open_B[i] for i in going], [token_B[i] for i in going]
        for segment in segments:
            self._finish(segment)
        return segments

    def _wants_more(self, segment: Segment) -> bool:
        """Whether the decoder is to go on with a segment."""
        lines, tokens = self.options.segment_lines, self.options.segment_tokens
        full = (lines is not None and segment.breaks >= lines) or (
            tokens is not None and len(segment.tokens) > tokens  # the latent's own is not counted
        )
        return not (segment.over or full or segment.latent < 0)

    def _finish(self, segment: Segment) -> None:
        """The segment's text and lines; a last line without a break counts where the program stops in it."""
        body = segment.tokens[1 : len(segment.tokens) - segment.ended]
        segment.text = decode_completion(self.problem.loaded.tokenizer, segment.tokens[:1], body) if body else ""
        stops_within = segment.over and segment.text != "" and not segment.text.endswith("\n")
        segment.lines = segment.breaks + stops_within
