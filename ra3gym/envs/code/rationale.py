"""`ra3gym/RationaleCode-v0`: write a Python program by choosing its comments; a frozen decoder writes the code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ra3gym.envs.code.batch import DecoderKind, SegmentOptions
from ra3gym.envs.code.latent import segment_info
from ra3gym.envs.code.problem import CodeProblem, ObservationKind, RewardKind
from ra3gym.envs.code.rationale_batch import Choices, RationaleBatch
from ra3gym.envs.code.single import CodeEnv
from ra3gym.envs.options import check_render_mode
from ra3gym.lm import LoadedModel
from ra3gym.tasks import CodeTask


class RationaleCodeEnv(CodeEnv):
    """Solve a `CodeTask` comment by comment: the rationale form of `LatentCodeEnv`, for any causal language model.

    Where a comment is due the model proposes k of them. A step writes one, or none; then the model, frozen, writes
    until the next is due: until its own next token would begin a comment line (that token is not written: the choice
    is the agent's), or `segment_lines` or `segment_tokens` are reached. Decisions stand where the first token of a line
    is due, its indent written. A model that knows latents writes them as it does by itself; they are stripped.

    **Actions.** `Discrete(k + 1)`. 0 writes no comment (the paper's `<act>`): what comes next is a line of code. i
    writes `info["proposals"][i - 1]` (`<think>`). Proposals that repeat an earlier one's text are masked; so are all
    where no comment can stand: with less than two tokens of the budget left. The mask comes as `info["action_mask"]`
    (int8), as `action_masks()` (bool) and in the `"dict"` observation. *An illegal action* (masked, or out of range)
    writes nothing, uses up one decision and one token of the budget, brings new proposals, and is reported as
    `info["illegal_action"]`.

    **Proposals** are drawn from the model token by token with `self.np_random`, the first from the tokens that begin
    a comment, the others from those that stand in it or end it; the last of `max_comment_tokens` ends it. They are made
    in one batch, behind one more reading of the program so far. Texts have neither indent nor line break, and stand in
    the program as they are. What is a comment is told by the text of a line alone: a line of a string that begins with
    `#` is taken for one.

    **Observations.** As in `LatentCodeEnv`, at the point where a comment is due; `"mask"` is int8 `(k + 1,)`. They do
    not hold the proposals, which differ from episode to episode: take those from the infos.

    **Episode.** As in `LatentCodeEnv`. `reset` has the decoder write the first line's indent (a prompt's last line is
    ended first, if it is not). `max_new_tokens` counts what is written: that indent, comments and code, not proposals
    that were not taken. *Comments are graded with the program.*

    **Reward.** As in `LatentCodeEnv`.

    **Info.** Always `task_id`; `proposals`, a tuple of k texts, empty where no comment can stand; `logprobs` (float32
    `(k + 1,)`, nats), the model's own log-probabilities, that no comment comes and of each proposal, that a comment
    comes and is this one (`-inf` where none can stand): all of one distribution, at temperature 1, over what the line
    may begin with and within the limits above; `asked`, whether the decoder's own next token would have begun a
    comment; `proposal_tokens`, tokens drawn for the proposals; and `action_mask`. After a step also `duration`:
    `{"lines", "tokens"}` that it wrote, comment and any end token included; `segment`, their text; `illegal_action`;
    at the end also `verdict` and `reward_terms`. Agents that discount use `gamma ** duration`. An agent that takes the
    action `int(info["asked"])`, beside the sampling decoder, writes as the model does by itself within those limits.

    Args:
        model: as in `TokenCodeEnv`; it is not to change while this is in use.
        tasks: as in `TokenCodeEnv`, like `split`, `observation`, `max_new_tokens`, `judge_workers`, `reward`,
            `shaping`, `device`, `dtype` and `render_mode`.
        proposals: the k of the class's text; 2 to 8. Their cost grows with it.
        max_comment_tokens: longest proposal in tokens, line break included, at least 2; the paper's have 6 on average.
        decoder: "sample" draws the decoder's tokens with `self.np_random`, "greedy" takes the likeliest. Proposals are
            drawn in any case.
        temperature: of the sampling decoder and of proposals; below 1 is sharper.
        segment_lines: the next decision is due behind so many line breaks at the latest, the comment's not counted; 1,
            the paper's form, has the agent choose above each line. `None` for no limit: only where the model asks.
        segment_tokens: likewise in tokens, at the next line that begins behind them.
        max_decisions: actions per episode; `None` for as many as the tokens allow.

    Raises:
        ConfigError: an option outside its choices, an empty set of tasks, or a prompt too long for the model.
        ModelError: the model cannot be loaded, or no token of its tokenizer begins or ends a comment.
        UnknownNameError: no such set of tasks; in `reset`, no such task.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel = "embedded",
        tasks: str | Sequence[CodeTask] = "idioms",
        split: str | None = None,
        *,
        proposals: int = 4,
        max_comment_tokens: int = 24,
        decoder: DecoderKind = "sample",
        temperature: float = 1.0,
        segment_lines: int | None = 1,
        segment_tokens: int | None = None,
        max_new_tokens: int = 192,
        max_decisions: int | None = None,
        observation: ObservationKind = "hidden",
        judge_workers: int = 1,
        reward: RewardKind = "fraction",
        shaping: Mapping[str, float] | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        render_mode: str | None = None,
    ) -> None:
        options = SegmentOptions(decoder, temperature, segment_lines, segment_tokens, max_decisions)
        check_render_mode(render_mode, self.metadata["render_modes"])
        problem = CodeProblem(
            model,
            tasks,
            split,
            max_new_tokens=max_new_tokens,
            observation=observation,
            reward=reward,
            shaping=shaping,
            judge_workers=judge_workers,
            device=device,
            dtype=dtype,
        )
        self._rationale_batch = RationaleBatch(
            problem, 1, options, num_proposals=proposals, max_comment_tokens=max_comment_tokens
        )
        super().__init__(self._rationale_batch, proposals + 1, render_mode)

    @property
    def decisions(self) -> int:
        """How many actions this episode has taken."""
        return int(self._rationale_batch.decisions_E[0])

    def _advance(self, action: int) -> tuple[bool, bool, dict[str, Any]]:
        (segment,) = self._rationale_batch.decide([0], [action], [self.np_random])
        truncated = not segment.ended and (segment.over or self._rationale_batch.out_of_decisions(0))
        return segment.ended, truncated, segment_info(segment)

    def _update_actions(self) -> None:
        (self._choices,) = self._rationale_batch.propose([0], [self.np_random])
        self._legal_n = self._choices.legal_n

    def _actions(self) -> dict[str, Any]:
        return {**choices_info(self._choices), "asked": bool(self._rationale_batch.asked_E[0])}


def choices_info(choices: Choices) -> dict[str, Any]:
    """What `info` says of a row's choices, beside the mask; new in memory."""
    return {
        "proposals": choices.texts,
        "logprobs": choices.logprobs_n.copy(),
        "proposal_tokens": sum(map(len, choices.comments)),
    }
