"""Programs that a frozen model writes in one batch, with the choice of their comment lines left to someone else.

Shape suffixes: E rows, B rows of this call, k proposals, n = k + 1 choices, N = B * k comments, M of them unfinished,
T tokens of a comment, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from ra3gym.envs.code.batch import Segment, SegmentBatch, SegmentOptions
from ra3gym.envs.code.comment_tokens import CommentTokens
from ra3gym.envs.code.problem import CodeProblem
from ra3gym.errors import ConfigError
from ra3gym.lm.fast.batch_stream import draw
from ra3gym.lm.sampling import read_prompts
from ra3gym.lm.tokenizer import decode_completion
from ra3gym.tasks.answers import strip_latents

NO_COMMENT = 0
"""The choice to write no comment; choice i is proposal i - 1."""


@dataclass(frozen=True)
class Choices:
    """What a row may choose from, now."""

    texts: tuple[str, ...]
    """The k proposals, from their `#` on; empty texts where no comment can stand."""
    comments: tuple[tuple[int, ...], ...]
    """Their tokens, the line break's included."""
    logprobs_n: npt.NDArray[np.float32]
    legal_n: npt.NDArray[np.bool_]


@dataclass
class CommentSegment(Segment):
    """What one choice led to: the comment, if there is one, and the decoder's lines. `latent` is the choice."""

    waiting: list[int] = field(default_factory=list)
    """Tokens to be written ahead of the decoder's next."""
    given: int = 0
    """How many tokens, and line breaks, are the comment's: they do not count towards the caps."""
    given_breaks: int = 0
    barred: bool = False
    """The next token is to begin a line of code: that there is no comment here has been decided."""
    opening: bool = False
    """Ahead of the first decision: up to the first line, without an end."""
    asked: bool = False
    closed: bool = False


class RationaleBatch(SegmentBatch):
    """A segment is a comment line or none, then what the frozen decoder writes until the next decision is due.

    A decision stands where the first token of a line that is not blank is due, its indent written. It is due when the
    decoder's next token would begin a comment, or would begin any line behind a cap; that token is not written.

    Args:
        num_proposals: k.
        max_comment_tokens: of a proposal, line break included; at least 2.

    Raises:
        ConfigError: a number out of its range.
        ModelError: the tokenizer has no token that begins, or ends, a comment.
    """

    def __init__(
        self,
        problem: CodeProblem,
        num_rows: int,
        options: SegmentOptions,
        *,
        num_proposals: int,
        max_comment_tokens: int,
    ) -> None:
        if num_proposals < 1:
            raise ConfigError(f"proposals={num_proposals} must be at least 1")
        if max_comment_tokens < 2:
            raise ConfigError(
                f"max_comment_tokens={max_comment_tokens} must be at least 2: a comment begins with one token and ends "
                "with another, its line break"
            )
        self.num_proposals, self.max_comment_tokens = num_proposals, max_comment_tokens
        self._tokens = CommentTokens(problem.loaded).to(problem.loaded.model.device)
        super().__init__(problem, num_rows, options, self._tokens.code_V)
        ends = torch.tensor(sorted(problem.end_ids), device=self._allowed_V.device)
        self._opening_V = self._allowed_V.index_fill(0, ends, False)
        self._blank_E = np.zeros(num_rows, dtype=np.bool_)
        self._fresh_E = np.zeros(num_rows, dtype=np.bool_)
        self._over_E = np.zeros(num_rows, dtype=np.bool_)
        self.asked_E = np.zeros(num_rows, dtype=np.bool_)
        """Whether the decoder itself began a comment at the decision that is due."""
        self._choices: list[Choices] = [self._no_choice()] * num_rows

    def begin(self, rows: Sequence[int], tasks: Sequence[int]) -> None:
        """Begin these tasks in these rows; `propose` then writes up to their first decisions."""
        super().begin(rows, tasks)
        at = list(rows)
        prompts = [self.problem.tasks[task].prompt for task in tasks]
        self._blank_E[at] = [not prompt.rpartition("\n")[2].strip() for prompt in prompts]
        self._fresh_E[at], self._over_E[at], self.asked_E[at] = True, False, False

    # Proposals

    def propose(self, rows: Sequence[int], rngs: Sequence[np.random.Generator]) -> list[Choices]:
        """Have the model propose k comments in each of these rows, in one batch.

        A comment is drawn token by token from the model at the options' temperature: its first token from those that
        begin one, the others from those that stand in or end one, the last that there is room for from those that end
        one. No text is proposed where none can stand: behind the end of an episode, within a line (where the opening
        was cut off by the budget), and with less than two tokens of the budget left.

        Args:
            rows: no row twice; those that have just begun are first written up to their first decision.
            rngs: one per row; k times `max_comment_tokens` numbers are taken from each, whatever is needed of them, so
                that a row's proposals do not depend on other rows.
        """
        fresh = [i for i, row in enumerate(rows) if self._fresh_E[row]]
        if fresh:
            self._open([rows[i] for i in fresh], [rngs[i] for i in fresh])
        due = [i for i, row in enumerate(rows) if self._blank_E[row] and not self._over_E[row] and self._room(row) >= 2]
        for row in rows:
            self._choices[row] = self._no_choice()
        if due:
            for i, choices in zip(due, self._sample([rows[i] for i in due], [rngs[i] for i in due]), strict=True):
                self._choices[rows[i]] = choices
        return [self._choices[row] for row in rows]

    def _room(self, row: int) -> int:
        """How many tokens a comment may have here, line break included."""
        return min(self.max_comment_tokens, self.problem.max_new_tokens - int(self.spent_E[row]))

    def _no_choice(self) -> Choices:
        k = self.num_proposals
        only_n = np.arange(k + 1) == NO_COMMENT
        return Choices(("",) * k, ((),) * k, np.where(only_n, 0.0, -np.inf).astype(np.float32), only_n)

    @torch.inference_mode()
    def _sample(self, rows: Sequence[int], rngs: Sequence[np.random.Generator]) -> list[Choices]:
        """Read these rows once more, and draw k comments behind each."""
        k, longest, tokens = self.num_proposals, self.max_comment_tokens, self._tokens
        uniform_NT = np.concatenate([rng.random((k, longest)) for rng in rngs])
        room_N = np.repeat([self._room(row) for row in rows], k)
        prefixes = [[*self.stream.prompt_ids[row], *self.stream.written[row]] for row in rows]
        decoder = read_prompts(self.problem.loaded.model, prefixes, k, int(room_N.max()))
        # That a line of code, or a comment, begins here is given: blanks are not counted.
        first_NV = decoder.logits_BV.double().masked_fill(~tokens.line_V, -torch.inf).log_softmax(-1)
        none_N = first_NV.masked_fill(~tokens.plain_V, -torch.inf).logsumexp(-1).cpu().numpy()
        comments: list[list[int]] = [[] for _ in room_N]
        logp_N = np.zeros(len(room_N))
        open_M = np.arange(len(room_N))
        for t in range(int(room_N.max())):
            last_M1 = torch.from_numpy(room_N[open_M] == t + 1)[:, None].to(tokens.stops_V.device)
            allowed_MV = tokens.starts_V[None] if t == 0 else torch.where(last_M1, tokens.stops_V, tokens.inside_V)
            logits_MV = decoder.logits_BV.double().masked_fill(~allowed_MV, -torch.inf)
            token_M = draw(logits_MV, uniform_NT[open_M, t].tolist(), temperature=self.options.temperature)
            drawn_M1 = torch.tensor(token_M, device=logits_MV.device)[:, None]
            scored_MV = first_NV if t == 0 else logits_MV.log_softmax(-1)
            logp_N[open_M] += scored_MV.gather(1, drawn_M1)[:, 0].cpu().numpy()
            for n, token in zip(open_M.tolist(), token_M, strict=True):
                comments[n].append(token)
            going = torch.nonzero(~tokens.stops_V[drawn_M1[:, 0]])[:, 0]
            if not len(going):
                break
            if len(going) < len(open_M):
                decoder.keep(going)
                open_M = open_M[going.cpu().numpy()]
            decoder.read(drawn_M1[going, 0])
        return [
            self._as_choices(prefix, comments[b * k : b * k + k], float(none_N[b * k]), logp_N[b * k : b * k + k])
            for b, prefix in enumerate(prefixes)
        ]

    def _as_choices(
        self, prefix: list[int], comments: list[list[int]], none: float, logp_k: npt.NDArray[np.float64]
    ) -> Choices:
        decoded = [decode_completion(self.problem.loaded.tokenizer, prefix[-1:], comment) for comment in comments]
        texts = tuple(text.strip(" \t\f").partition("\n")[0].rstrip() for text in decoded)
        legal_n = np.array([True, *(text not in texts[:i] for i, text in enumerate(texts))])
        return Choices(texts, tuple(map(tuple, comments)), np.array([none, *logp_k], dtype=np.float32), legal_n)

    # Segments

    def decide(
        self,
        rows: Sequence[int],
        choices: Sequence[int],
        rngs: Sequence[np.random.Generator],
        on_over: Callable[[int], None] = lambda row: None,
    ) -> list[CommentSegment]:
        """Write a proposal, or none, in each of these rows, and have the decoder go on to their next decisions.

        Args:
            rows: whose turn it is; no row twice.
            choices: one per row: `NO_COMMENT`, or 1 + the number of a proposal; -1 for an illegal action: nothing is
                written, and one token of the budget is gone.
            rngs: one per row; a sampling decoder takes one number per token that it draws, written or not. A greedy one
                takes none.
            on_over: called with a row as soon as its episode is over, while the others write on.
        """
        self.decisions_E[list(rows)] += 1
        segments = [self._begun(row, choice) for row, choice in zip(rows, choices, strict=True)]
        refused = [i for i, choice in enumerate(choices) if choice < 0]
        self._append([-1] * len(refused), [rows[i] for i in refused], [segments[i] for i in refused], on_over)
        self._write(rows, segments, rngs, on_over)
        for row, segment in zip(rows, segments, strict=True):
            self._over_E[row] = segment.over or self.out_of_decisions(row)
            if segment.latent >= 0:
                self.asked_E[row] = segment.asked
            self._finish(row, segment)
        return segments

    def _open(self, rows: Sequence[int], rngs: Sequence[np.random.Generator]) -> None:
        """Have the decoder write up to the first line's first token: its indent, and the prompt's last line if open."""
        segments = [CommentSegment(NO_COMMENT, opening=True) for _ in rows]
        self._write(rows, segments, rngs, lambda row: None)
        self._fresh_E[list(rows)] = False
        self.asked_E[list(rows)] = [segment.asked for segment in segments]

    def _begun(self, row: int, choice: int) -> CommentSegment:
        segment = CommentSegment(choice, closed=choice < 0, barred=choice == NO_COMMENT and bool(self._blank_E[row]))
        if choice > NO_COMMENT:
            segment.waiting = list(self._choices[row].comments[choice - 1])
            segment.given = len(segment.waiting)
            segment.given_breaks = sum(map(self._line_breaks, segment.waiting))
        return segment

    def _write(
        self,
        rows: Sequence[int],
        segments: Sequence[CommentSegment],
        rngs: Sequence[np.random.Generator],
        on_over: Callable[[int], None],
    ) -> None:
        """Write all segments to their ends, one token of each in a pass."""
        while True:
            drawing = [i for i, one in enumerate(segments) if not (one.waiting or self._stops(rows[i], one))]
            if drawing:
                self._draw([rows[i] for i in drawing], [segments[i] for i in drawing], [rngs[i] for i in drawing])
            writing = [i for i, one in enumerate(segments) if one.waiting and not self._is_cut_off(rows[i], one)]
            if not writing:
                return
            tokens = [segments[i].waiting.pop(0) for i in writing]
            for i, token in zip(writing, tokens, strict=True):
                self._blank_E[rows[i]] = self._tokens.blank_behind(token, bool(self._blank_E[rows[i]]))
            self._append(tokens, [rows[i] for i in writing], [segments[i] for i in writing], on_over)

    def _stops(self, row: int, segment: CommentSegment) -> bool:
        """Whether the decoder is to draw no more."""
        return segment.closed or segment.asked or self._is_cut_off(row, segment)

    def _is_cut_off(self, row: int, segment: CommentSegment) -> bool:
        """Whether nothing more can be written. An opening leaves a token of the budget for the first decision."""
        return segment.over or (segment.opening and bool(self.spent_E[row] >= self.problem.max_new_tokens - 1))

    def _draw(
        self, rows: Sequence[int], segments: Sequence[CommentSegment], rngs: Sequence[np.random.Generator]
    ) -> None:
        """The decoder's next tokens: to be written, or the end of a segment."""
        allowed_V = {(False, False): self._allowed_V, (False, True): self._opening_V}
        kinds = [(one.barred, one.opening) for one in segments]
        allowed_BV = torch.stack([allowed_V.get(kind, self._tokens.plain_V) for kind in kinds])
        for row, segment, token in zip(rows, segments, self._next_tokens(rows, rngs, allowed_BV), strict=True):
            segment.barred = False
            asks = self._tokens.asks(token)
            if self._blank_E[row] and (asks or (self._is_full(segment) and not self._tokens.is_blank(token))):
                segment.asked, segment.closed = asks, True
            elif (ahead := self._tokens.ahead_of_comment(token)) is not None:
                segment.waiting, segment.asked = ahead, True
            else:
                segment.waiting = [token]

    def _is_full(self, segment: CommentSegment) -> bool:
        """Whether the next decision is due at the next line."""
        lines, tokens = self.options.segment_lines, self.options.segment_tokens
        return (
            segment.opening
            or (lines is not None and segment.breaks - segment.given_breaks >= lines)
            or (tokens is not None and len(segment.tokens) - segment.given >= tokens)
        )

    def _finish(self, row: int, segment: CommentSegment) -> None:
        """The segment's text and lines; a last line without a break counts where the program stops in it."""
        written = [*self.stream.prompt_ids[row], *self.stream.written[row]]
        body = segment.tokens[: len(segment.tokens) - segment.ended]
        ahead = written[: len(written) - len(segment.tokens)]
        text = decode_completion(self.problem.loaded.tokenizer, ahead[-1:], body) if body else ""
        segment.text = strip_latents(text)
        segment.lines = segment.breaks + (segment.over and segment.text.rpartition("\n")[2].strip() != "")
