"""`ra3gym/LatentCode-v0`: write a Python program one latent at a time; a frozen decoder turns each into lines.

Shape letters: see CONTRIBUTING.md (E environments, B rows of this call, K latents).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ra3gym.envs.batched_episodes import Info
from ra3gym.envs.code.episodes import CodeEnv, CodeVectorEnv
from ra3gym.envs.code.segments import Segment, SegmentBatch, SegmentConfig, check_limit
from ra3gym.errors import ConfigError, ModelError
from ra3gym.lm.tokenizer import decode_completion, latent_ids


@dataclass(frozen=True, kw_only=True)
class LatentConfig(SegmentConfig):
    """The keywords of `LatentCode-v0`: those of `SegmentConfig`, and these.

    Attributes:
        segment_lines: a segment ends after so many line breaks at the latest; 1 has the agent choose a latent for each
            line. The embedded model's segments are shorter than the default. `None` sets no limit.
        segment_tokens: a segment ends after so many tokens at the latest, its latent's own not counted. It may end
            within a line. `None` sets no limit.
        top_k: only the model's `top_k` likeliest latents are legal; `None` for all.
        min_prob: only latents of at least this probability are legal, given that a latent comes next, and always the
            likeliest. 0.01 leaves the embedded model a handful; `None` sets no threshold.

    Raises:
        ConfigError: a value outside its choices or range.
    """

    top_k: int | None = None
    min_prob: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limit("top_k", self.top_k)
        if self.min_prob is not None and not 0 <= self.min_prob < 1:
            raise ConfigError(f"min_prob={self.min_prob} must be in [0, 1), or None for no threshold")


class LatentBatch(SegmentBatch[LatentConfig]):
    """A segment is a latent, then what the frozen decoder writes until its next token would be a latent.

    Raises:
        ModelError: the tokenizer knows no latents.
    """

    cuts_prompts = False

    def __init__(self, config: LatentConfig, num_rows: int) -> None:
        super().__init__(config, num_rows)
        self._latents = frozenset(self.latent_ids)
        self._logprobs_EK = np.zeros((num_rows, self.num_actions), dtype=np.float32)

    def _count_actions(self) -> int:
        self.latent_ids = latent_ids(self.problem.loaded.tokenizer)
        if not self.latent_ids:
            raise ModelError(
                "the model knows no latents, and they are the actions here: take 'embedded', or a model trained with "
                "them (ra3gym.lm.add_latents adds the tokens <|z0|>, <|z1|>, ...)"
            )
        return len(self.latent_ids)

    def _update_actions(self, rows: Sequence[int], rngs_E: Sequence[np.random.Generator]) -> None:
        logits_BK = self.stream.logits_BV(rows)[:, self.latent_ids].float()
        logprobs_BK: npt.NDArray[np.float32] = logits_BK.log_softmax(-1).cpu().numpy()
        self._logprobs_EK[list(rows)] = logprobs_BK
        self.legal_EA[list(rows)] = self._legal_BK(logprobs_BK)

    def _legal_BK(self, logprobs_BK: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Return the latents among the `top_k` likeliest whose probability reaches `min_prob`, and the likeliest."""
        legal_BK = np.ones(logprobs_BK.shape, dtype=np.bool_)
        rank_BK = np.argsort(np.argsort(-logprobs_BK, axis=1, kind="stable"), axis=1)
        if self.config.top_k is not None:
            legal_BK &= rank_BK < self.config.top_k
        if self.config.min_prob is not None:
            legal_BK &= np.exp(logprobs_BK) >= self.config.min_prob
        legal_BK |= rank_BK == 0
        return legal_BK

    def _action_infos(self, rows: Sequence[int]) -> Info:
        return {"logprobs": self._logprobs_EK[list(rows)]}

    def write_segments(
        self, rows: Sequence[int], actions: Sequence[int], rngs_E: Sequence[np.random.Generator]
    ) -> list[Segment]:
        """Begin a segment with a latent in each of these rows, and have the decoder write them to their ends.

        A segment ends before the decoder's next token if that is a latent (it is not written: that choice is the
        agent's), at its limit of lines or tokens, with an end token, or with the budget. A sampling decoder takes one
        number per token from a row's generator, and one more for a latent that ends the segment.
        """
        segments = [Segment(latent) for latent in actions]
        open_B = list(range(len(rows)))
        tokens = [self.latent_ids[latent] if latent >= 0 else -1 for latent in actions]
        while open_B:
            self._write(tokens, [rows[b] for b in open_B], [segments[b] for b in open_B])
            open_B = [b for b in open_B if self._wants_more(segments[b])]
            if not open_B:
                break
            drawn = self._next_tokens([rows[b] for b in open_B], rngs_E)
            kept = [i for i, token in enumerate(drawn) if token not in self._latents]
            open_B, tokens = [open_B[i] for i in kept], [drawn[i] for i in kept]
        for segment in segments:
            self._finish(segment)
        return segments

    def _wants_more(self, segment: Segment) -> bool:
        """Return whether the decoder is to continue a segment."""
        max_lines, max_tokens = self.config.segment_lines, self.config.segment_tokens
        has_all_lines = max_lines is not None and segment.breaks >= max_lines
        has_all_tokens = max_tokens is not None and len(segment.tokens) - 1 >= max_tokens
        return segment.action >= 0 and not (segment.is_last or has_all_lines or has_all_tokens)

    def _finish(self, segment: Segment) -> None:
        """Set the segment's text and lines."""
        latent, body = segment.tokens[:1], segment.tokens_without_end[1:]
        segment.text = decode_completion(self.problem.loaded.tokenizer, latent, body) if body else ""
        ends_within_line = segment.is_last and segment.text != "" and not segment.text.endswith("\n")
        segment.lines = segment.breaks + 1 if ends_within_line else segment.breaks


class LatentCodeEnv(CodeEnv):
    """Solve a `CodeTask` latent by latent: `TokenCodeEnv`'s tasks, judge and reward, in far fewer decisions.

    A step appends the token of one latent. Then the model, frozen, writes until its own next token would be a latent.
    That token is not written: the choice is the agent's.

    **Actions.** `Discrete(K)`, the latents that the tokenizer knows. All are legal unless `top_k` or `min_prob` prunes
    them. The mask comes as `info["action_mask"]` (int8), as `action_masks()` (bool) and in the `"dict"` observation.
    *An illegal action* (masked, or out of range) writes nothing, uses up one decision and one token of the budget, and
    is reported as `info["illegal_action"]`.

    **Observations.** As in `TokenCodeEnv`, at the points where a latent is due; the first is after the prompt. In the
    `"dict"` observation `"mask"` is int8 `(K,)`.

    **Episode.** `reset` draws a task with `self.np_random`; `reset(options={"task_id": ...})` picks one. An end token
    terminates; `max_new_tokens` (latents count) or `max_decisions` truncate. *Either way the program is graded*, with
    the latents stripped.

    **Reward.** As in `TokenCodeEnv`: 0 until the end, then by the hidden tests, plus the terms of `shaping`.

    **Info.** Always `task_id`; `logprobs` (float32 `(K,)`, nats), the model's own log-probabilities over latents, given
    that a latent comes next; and `action_mask`. After a step also `duration`: `{"lines", "tokens"}` of the segment, its
    latent's token and any end token included; `segment`, its text; `illegal_action`; at the end also `verdict` and
    `reward_terms`. Agents that discount use `gamma ** duration`. An agent that draws its actions from `logprobs`, with
    the sampling decoder at temperature 1 and without limits, writes as the model itself does, except that every
    program begins with a latent.

    The keywords are the fields of `LatentConfig`. The model must know latents.

    Raises:
        ConfigError: a keyword outside its choices, an empty set of tasks, or a prompt too long for the model.
        ModelError: the model cannot be loaded, or knows no latents.
        UnknownNameError: no such keyword or set of tasks; in `reset`, no such task.
    """

    config_type = LatentConfig
    batch_type = LatentBatch


class LatentCodeVectorEnv(CodeVectorEnv):
    """`LatentCodeEnv`, `num_envs` times, over one model: one forward pass per token for all that are writing.

    A step lasts as long as its longest segment; environments whose segment has ended cost nothing more. Those that
    begin a new episode have their prompts read together. See `CodeVectorEnv`.
    """

    config_type = LatentConfig
    batch_type = LatentBatch
