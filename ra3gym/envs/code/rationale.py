"""`ra3gym/RationaleCode-v0`: write a Python program by choosing its comments; a frozen decoder writes the code.

Shape letters: see CONTRIBUTING.md (E environments, B rows of this call, A = proposals + 1 actions, V vocabulary).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ra3gym.envs.batched_episodes import Info
from ra3gym.envs.code.comment_tokens import CommentTokens
from ra3gym.envs.code.episodes import CodeEnv, CodeVectorEnv
from ra3gym.envs.code.proposals import NO_COMMENT, only_code, propose
from ra3gym.envs.code.segments import Segment, SegmentBatch, SegmentConfig
from ra3gym.errors import ConfigError
from ra3gym.lm.tokenizer import decode_completion
from ra3gym.tasks.answers import strip_latents


@dataclass(frozen=True, kw_only=True)
class RationaleConfig(SegmentConfig):
    """The keywords of `RationaleCode-v0`: those of `SegmentConfig`, and these.

    Attributes:
        decoder: "sample" draws the decoder's tokens with `self.np_random`, one number each; "greedy" takes the
            likeliest. Proposals are sampled in any case.
        segment_lines: the next decision is due after so many line breaks at the latest, the comment's not counted. 1,
            the paper's form, has the agent choose above each line; `None` waits until the model itself begins a
            comment.
        segment_tokens: the next decision is due at the first new line after so many tokens, the comment's not counted.
            `None` sets no limit.
        proposals: how many comments the model proposes at a decision; 2 to 8. The cost of a decision grows with it.
        max_comment_tokens: longest proposal in tokens, line break included, at least 2; the paper's have 6 on average.

    Raises:
        ConfigError: a value outside its choices or range.
    """

    segment_lines: int | None = 1
    segment_tokens: int | None = None
    proposals: int = 4
    max_comment_tokens: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proposals < 1:
            raise ConfigError(f"proposals={self.proposals} must be at least 1")
        if self.max_comment_tokens < 2:
            raise ConfigError(
                f"max_comment_tokens={self.max_comment_tokens} must be at least 2: a comment begins with one token and "
                "ends with another, its line break"
            )


@dataclass
class CommentSegment(Segment):
    """What one decision led to: the comment, if one was chosen, and the decoder's lines.

    Attributes:
        pending: tokens to write before the decoder draws again.
        comment_tokens: tokens of the comment; they do not count towards the limits.
        comment_breaks: line breaks of the comment; they do not count either.
        needs_code: the next token must begin a line of code, since the agent chose no comment.
        is_opening: the text before an episode's first decision. It cannot end the program.
        model_asked: the decoder's own next token would have begun a comment.
        is_complete: the next decision is due, or nothing was to be written.
    """

    pending: list[int] = field(default_factory=list)
    comment_tokens: int = 0
    comment_breaks: int = 0
    needs_code: bool = False
    is_opening: bool = False
    model_asked: bool = False
    is_complete: bool = False


class RationaleBatch(SegmentBatch[RationaleConfig]):
    """A segment is a comment line or none, then what the frozen decoder writes until the next decision is due.

    A decision comes before the first token of a line that is not blank, after the line's indent. It is due when the
    decoder's next token would begin a comment, or when that token would begin any line and a limit is reached. The
    token is not written.

    Raises:
        ModelError: the tokenizer has no token that begins, or ends, a comment.
    """

    def __init__(self, config: RationaleConfig, num_rows: int) -> None:
        super().__init__(config, num_rows)
        self.tokens = CommentTokens(self.problem.loaded).to(self._writable_V.device)
        ends = torch.tensor(sorted(self.problem.end_ids), device=self._writable_V.device)
        self._opening_V = self._writable_V.index_fill(0, ends, False)
        self._is_blank_E = np.zeros(num_rows, dtype=np.bool_)
        """Whether the line that a row is at is blank so far."""
        self._is_new_E = np.zeros(num_rows, dtype=np.bool_)
        """Whether a row's opening is still to be written."""
        self._is_over_E = np.zeros(num_rows, dtype=np.bool_)
        self._model_asked_E = np.zeros(num_rows, dtype=np.bool_)
        self.choices = [only_code(config.proposals)] * num_rows

    def begin(self, rows: Sequence[int], tasks: Sequence[int], rngs_E: Sequence[np.random.Generator]) -> None:
        forced = [""] * len(self.problem.tasks) if self.problem.forced is None else self.problem.forced.texts
        kept = [self.problem.tasks[task].prompt.removesuffix(forced[task]) for task in tasks]
        last_lines = [prompt.rpartition("\n")[2] for prompt in kept]
        index_B = list(rows)
        self._is_blank_E[index_B] = [line.strip() == "" for line in last_lines]
        self._is_new_E[index_B], self._is_over_E[index_B], self._model_asked_E[index_B] = True, False, False
        super().begin(rows, tasks, rngs_E)

    # Proposals

    def _count_actions(self) -> int:
        return self.config.proposals + 1

    def _update_actions(self, rows: Sequence[int], rngs_E: Sequence[np.random.Generator]) -> None:
        """Write the openings of new rows, then have the model propose comments in all rows where one can stand.

        None can stand after the end of an episode, within a line (where the budget cut the opening off), and with less
        than two tokens of the budget left.
        """
        new = [row for row in rows if self._is_new_E[row]]
        if new:
            self._write_openings(new, rngs_E)
        for row in rows:
            self.choices[row] = only_code(self.config.proposals)
        rooms = {row: self._room(row) for row in rows if self._is_blank_E[row] and not self._is_over_E[row]}
        due = [row for row, room in rooms.items() if room >= 2]
        if due:
            size = (self.config.proposals, self.config.max_comment_tokens)
            uniform_PGT = np.stack([rngs_E[row].random(size) for row in due])
            prefixes = [[*self.stream.prompt_ids[row], *self.stream.written[row]] for row in due]
            proposed = propose(
                self.problem.loaded,
                self.tokens,
                prefixes,
                [rooms[row] for row in due],
                uniform_PGT,
                self.config.temperature,
            )
            for row, choices in zip(due, proposed, strict=True):
                self.choices[row] = choices
        self.legal_EA[list(rows)] = [self.choices[row].legal_A for row in rows]

    def _room(self, row: int) -> int:
        """Return how many tokens a comment may have here, line break included."""
        return min(self.config.max_comment_tokens, self.config.max_new_tokens - int(self.spent_E[row]))

    def _action_infos(self, rows: Sequence[int]) -> Info:
        chosen = [self.choices[row] for row in rows]
        texts_B = np.empty(len(rows), dtype=object)  # np.array would make a table of the tuples
        texts_B[:] = [choices.texts for choices in chosen]
        return {
            "proposals": texts_B,
            "logprobs": np.array([choices.logprobs_A for choices in chosen]),
            "proposal_tokens": np.array([sum(map(len, choices.comments)) for choices in chosen]),
            "asked": self._model_asked_E[list(rows)],
        }

    # Segments

    def write_segments(
        self, rows: Sequence[int], actions: Sequence[int], rngs_E: Sequence[np.random.Generator]
    ) -> list[CommentSegment]:
        """Write a proposal, or none, in each of these rows, and have the decoder write on to their next decisions.

        A sampling decoder takes one number from a row's generator for each token that it draws, written or not.
        """
        segments = [self._new_segment(row, action) for row, action in zip(rows, actions, strict=True)]
        refused = [i for i, action in enumerate(actions) if action < 0]
        self._write([-1] * len(refused), [rows[i] for i in refused], [segments[i] for i in refused])
        self._write_to_end(rows, segments, rngs_E)
        for row, segment in zip(rows, segments, strict=True):
            self._is_over_E[row] = segment.is_last or self._is_out_of_decisions(row)
            if segment.action >= 0:
                self._model_asked_E[row] = segment.model_asked
            self._finish(row, segment)
        return segments

    def _write_openings(self, rows: Sequence[int], rngs_E: Sequence[np.random.Generator]) -> None:
        """Have the decoder write up to the first token of a line: the end of the prompt's last line, and an indent."""
        segments = [CommentSegment(NO_COMMENT, is_opening=True) for _ in rows]
        self._write_to_end(rows, segments, rngs_E)
        self._is_new_E[list(rows)] = False
        self._model_asked_E[list(rows)] = [segment.model_asked for segment in segments]

    def _new_segment(self, row: int, action: int) -> CommentSegment:
        if action < 0:
            return CommentSegment(action, is_complete=True)
        if action == NO_COMMENT:
            return CommentSegment(action, needs_code=bool(self._is_blank_E[row]))
        comment = list(self.choices[row].comments[action - 1])
        breaks = sum(map(self._line_breaks, comment))
        return CommentSegment(action, pending=comment, comment_tokens=len(comment), comment_breaks=breaks)

    def _write_to_end(
        self, rows: Sequence[int], segments: Sequence[CommentSegment], rngs_E: Sequence[np.random.Generator]
    ) -> None:
        """Write all segments to their ends, one token of each in a pass."""
        while True:
            to_draw = [i for i, segment in enumerate(segments) if self._wants_more(rows[i], segment)]
            if to_draw:
                self._draw([rows[i] for i in to_draw], [segments[i] for i in to_draw], rngs_E)
            to_write = [i for i, one in enumerate(segments) if one.pending and not self._is_cut_off(rows[i], one)]
            if not to_write:
                return
            tokens = [segments[i].pending.pop(0) for i in to_write]
            written_rows = [rows[i] for i in to_write]
            for row, token in zip(written_rows, tokens, strict=True):
                self._is_blank_E[row] = self.tokens.leaves_blank(token, bool(self._is_blank_E[row]))
            self._write(tokens, written_rows, [segments[i] for i in to_write])

    def _wants_more(self, row: int, segment: CommentSegment) -> bool:
        """Return whether the decoder is to draw a token for a segment."""
        is_finished = segment.is_complete or segment.model_asked or self._is_cut_off(row, segment)
        return not segment.pending and not is_finished

    def _is_cut_off(self, row: int, segment: CommentSegment) -> bool:
        """Return whether nothing more can be written. An opening leaves a token of the budget for the decision."""
        is_at_last_token = bool(self.spent_E[row] >= self.config.max_new_tokens - 1)
        return segment.is_last or (segment.is_opening and is_at_last_token)

    def _draw(
        self, rows: Sequence[int], segments: Sequence[CommentSegment], rngs_E: Sequence[np.random.Generator]
    ) -> None:
        """Draw the decoder's next token of each row. It becomes pending, unless it shows that a decision is due."""
        allowed_BV = torch.stack([self._allowed_V(row, one) for row, one in zip(rows, segments, strict=True)])
        for row, segment, token in zip(rows, segments, self._next_tokens(rows, rngs_E, allowed_BV), strict=True):
            segment.needs_code = False
            begins_comment = self.tokens.begins_comment(token)
            is_due = begins_comment or (self._is_full(segment) and not self.tokens.is_blank(token))
            before_comment = self.tokens.tokens_before_comment(token)
            if self._is_blank_E[row] and is_due and not self._is_forced(row):
                segment.model_asked, segment.is_complete = begins_comment, True
            elif before_comment is not None:
                segment.pending, segment.model_asked = before_comment, True
            else:
                segment.pending = [token]

    def _is_forced(self, row: int) -> bool:
        """Return whether a row has still to write the end of its prompt."""
        return self.forcing is not None and self.forcing.rests[row] != ""

    def _allowed_V(self, row: int, segment: CommentSegment) -> Tensor:
        """Return the tokens that the decoder may draw next in a segment, bool `(V,)`."""
        if self.forcing is not None and self._is_forced(row):
            return self.forcing.allowed_BV([row], self._opening_V)[0]
        if segment.needs_code:
            return self.tokens.code_first_V
        return self._opening_V if segment.is_opening else self._writable_V

    def _is_full(self, segment: CommentSegment) -> bool:
        """Return whether the next decision is due at the next line."""
        max_lines, max_tokens = self.config.segment_lines, self.config.segment_tokens
        has_all_lines = max_lines is not None and segment.breaks - segment.comment_breaks >= max_lines
        has_all_tokens = max_tokens is not None and len(segment.tokens) - segment.comment_tokens >= max_tokens
        return segment.is_opening or has_all_lines or has_all_tokens

    def _finish(self, row: int, segment: CommentSegment) -> None:
        """Set the segment's text and lines."""
        all_tokens = [*self.stream.prompt_ids[row], *self.stream.written[row]]
        before = all_tokens[: len(all_tokens) - len(segment.tokens)]
        body = segment.tokens_without_end
        text = decode_completion(self.problem.loaded.tokenizer, before[-1:], body) if body else ""
        segment.text = strip_latents(text)
        ends_within_line = segment.is_last and segment.text.rpartition("\n")[2].strip() != ""
        segment.lines = segment.breaks + 1 if ends_within_line else segment.breaks


class RationaleCodeEnv(CodeEnv):
    """Solve a `CodeTask` comment by comment: the rationale form of `LatentCodeEnv`, for any causal language model.

    At each decision the model proposes comments. A step writes one of them, or none. Then the model, frozen, writes
    code until the next decision is due. That is before the first token of a line, when the model's own next token
    would begin a comment (the token is not written: the choice is the agent's), or when `segment_lines` or
    `segment_tokens` is reached. The line's indent is written before the decision. Latents of a model that knows them
    are written by the decoder, and stripped from programs and texts.

    **Actions.** `Discrete(proposals + 1)`. Action 0 writes no comment (the paper's `<act>`): the next line is code.
    Action i writes `info["proposals"][i - 1]` (the paper's `<think>`). A proposal that repeats the text of an earlier
    one is masked. All proposals are masked where no comment can stand, as with less than two tokens of the budget left.
    The mask comes as `info["action_mask"]` (int8), as `action_masks()` (bool) and in the `"dict"` observation. *An
    illegal action* (masked, or out of range) writes nothing, uses up one decision and one token of the budget, leads to
    new proposals, and is reported as `info["illegal_action"]`.

    **Proposals** are sampled from the model with `self.np_random`, in one batch. Their first token is drawn from the
    tokens that begin a comment, the others from the tokens that continue or end it; a comment of `max_comment_tokens`
    ends with its last token. Texts have neither indent nor line break, and appear in the program unchanged. Whether a
    line is a comment is decided by its text alone: a line within a string that begins with `#` counts as a comment.

    **Observations.** As in `LatentCodeEnv`, at the points where a decision is due; in the `"dict"` observation `"mask"`
    is int8 `(proposals + 1,)`. Observations do not hold the proposals; `info` does.

    **Episode.** As in `LatentCodeEnv`. At `reset` the decoder ends the prompt's last line, if it is open, and writes
    the first line's indent. `max_new_tokens` counts everything that is written: that text, comments and code. Proposals
    that were not chosen cost nothing. *Comments are graded with the program.*

    **Reward.** As in `LatentCodeEnv`.

    **Info, always.**

    - `task_id` and `action_mask`.
    - `proposals`: a tuple of texts, empty texts where no comment can stand.
    - `logprobs`: float32 `(proposals + 1,)`, nats. The model's log-probability that the line is code, then of each
      proposal; `-inf` where no comment can stand. All belong to one distribution, at temperature 1, over how a line
      that is not blank can begin within the limits above.
    - `asked`: whether the model's own next token would have begun a comment.
    - `proposal_tokens`: the number of tokens drawn for the proposals.

    **Info, after a step.** `duration`: `{"lines", "tokens"}` that were written, the comment and any end token included;
    `segment`, their text; `illegal_action`; at the end also `verdict` and `reward_terms`. Agents that discount use
    `gamma ** duration`.

    An agent that takes the action `int(info["asked"])`, with the sampling decoder, writes as the model itself does
    within those limits.

    The keywords are the fields of `RationaleConfig`.

    Raises:
        ConfigError: a keyword outside its choices, an empty set of tasks, or a prompt too long for the model.
        ModelError: the model cannot be loaded, or no token of its tokenizer begins or ends a comment.
        UnknownNameError: no such keyword or set of tasks; in `reset`, no such task.
    """

    config_type = RationaleConfig
    batch_type = RationaleBatch


class RationaleCodeVectorEnv(CodeVectorEnv):
    """`RationaleCodeEnv`, `num_envs` times, over one model: one forward pass per token for all that are writing.

    The proposals of all environments are sampled in one batch, and so are their segments. `info["proposals"]` is an
    array of tuples. See `CodeVectorEnv`.
    """

    config_type = RationaleConfig
    batch_type = RationaleBatch
