"""Rationale latents, the paper's form: a comment line that the model writes above the expert's lines.

The E-step is policy gradient on the model itself (arXiv 2509.25810). At each place before an expert line the model,
given the prompt and the code and comments so far, acts (goes on with the line) or thinks (writes a comment first). Its
comments earn the log-likelihood of the expert's lines behind them, less a fixed cost. See docs/rationale.md for what is
and is not the paper's.

Shape suffixes: G rollouts of one trace, D places, A actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ra3gym.abstractions.latents.comments import check_comment_only, comment_problem, indent_of
from ra3gym.agents.mid_training.rationale.config import RationaleConfig, brite_config
from ra3gym.agents.mid_training.rationale.layout import CommentVocabulary, TraceLayout, comment_vocabulary, lay_out
from ra3gym.agents.mid_training.rationale.rollouts import Rollout, check_length, group_logits, roll_out
from ra3gym.agents.mid_training.rationale.scoring import (
    AnnotatedRow,
    action_logp,
    assemble,
    expert_logp,
    format_failure,
    leave_one_out,
    rewards_to_go,
    step_rewards,
)
from ra3gym.errors import DataError
from ra3gym.lm import encode_prompt
from ra3gym.tasks import ExpertTrace

__all__ = [
    "RationaleConfig",
    "RationaleStep",
    "RationaleTrace",
    "annotate",
    "brite_config",
    "rationale_documents",
    "train_rationales",
]


@dataclass(frozen=True)
class RationaleTrace:
    """A trace with its comments, and what they were worth.

    Attributes:
        trace: the expert's.
        comments: for each step, the comment line above it (`#` and text), or `None`.
        places: the steps where a comment was possible.
        logp: for each place, log-likelihood in nats of the expert's text there, given all comments so far.
        rewards: for each place, see `step_rewards`.
        latent_tokens: for each place, tokens sampled there, line break aside.
        failed: for each place, whether a comment was cut off, empty or not one line. Cut-off comments stay in the text;
            comments without text, or of several lines, do not.
    """

    trace: ExpertTrace
    comments: tuple[str | None, ...]
    places: tuple[int, ...]
    logp: tuple[float, ...]
    rewards: tuple[float, ...]
    latent_tokens: tuple[int, ...]
    failed: tuple[bool, ...]

    @property
    def reward(self) -> float:
        """Mean over places."""
        return sum(self.rewards) / len(self.rewards)

    @property
    def completion(self) -> str:
        """The steps with their comments, behind the prompt."""
        written = []
        for step, comment in zip(self.trace.steps, self.comments, strict=True):
            written.append(step if comment is None else f"{indent_of(step)}{comment}\n{step}")
        return "".join(written)

    @property
    def text(self) -> str:
        """The whole annotated program: valid Python that differs from the expert's by comment lines only."""
        return self.trace.prompt + self.completion


@dataclass(frozen=True)
class RationaleStep:
    """One update of the E-step.

    Attributes:
        step: its number, from 1.
        reward: mean over rollouts and places, costs included.
        logp: nats per place of the expert's text given the rationales, by the reward model.
        logp_without: the same on the same traces without any rationale.
        think_rate: share of places with a comment.
        latent_tokens: mean tokens of a comment, line break aside; 0 when there is none.
        format_failures: share of the comments that have the wrong form; 0 when there is none.
        kl: mean divergence from the reference per action, nats; 0 when it is not measured (`kl=0`).
        tokens: of all rollouts, prompts not counted.
    """

    step: int
    reward: float
    logp: float
    logp_without: float
    think_rate: float
    latent_tokens: float
    format_failures: float
    kl: float
    tokens: int


@dataclass(frozen=True)
class _Group:
    """The rollouts of one trace; `plain` is the trace without comments, a yardstick and no rollout."""

    layout: TraceLayout
    rollouts: list[Rollout]
    rows: list[AnnotatedRow]
    plain: AnnotatedRow
    thinks_GD: Tensor
    failed_GD: Tensor

    def num_actions(self, always_think: bool) -> int:
        """Decisions, sampled tokens and drawn ends."""
        sampled = sum(end - start for row in self.rows for start, end in row.comment)
        ends = sum(sum(row.end_drawn) for row in self.rows)
        return sampled + ends + (0 if always_think else self.thinks_GD.numel())


@dataclass(frozen=True)
class _Scores:
    """What the reward model says of a group; `plain_logp_D` belongs to the trace without comments."""

    logp_GD: Tensor
    plain_logp_D: Tensor
    reward_GD: Tensor


def annotate(
    model: Any, tokenizer: Any, trace: ExpertTrace, config: RationaleConfig, generator: torch.Generator
) -> tuple[RationaleTrace, ...]:
    """Sample `config.group_size` annotations of a trace; their rewards are the log-likelihoods of `model` itself.

    `max(annotate(...), key=lambda annotated: annotated.reward)` is the best of the group. The same generator state
    gives the same annotations; the model's training mode is restored.

    Raises:
        DataError: a trace that does not parse, has no line to comment, or may outgrow the model's context; the message
            names the trace and the way out.
        ModelError: no token of the tokenizer ends a line.
    """
    vocabulary = comment_vocabulary(tokenizer, model)
    was_training = model.training
    model.eval()
    try:
        group = _group(model, vocabulary, lay_out(tokenizer, trace), replace(config, min_think=0.0), generator)
        scores = _score(model, group, config)
    finally:
        model.train(was_training)
    return tuple(_annotated(group, scores, vocabulary, g) for g in range(config.group_size))


def train_rationales(
    model: Any,
    tokenizer: Any,
    traces: Sequence[ExpertTrace],
    config: RationaleConfig,
    *,
    seed: int,
    on_step: Callable[[RationaleStep], None] = lambda _: None,
) -> list[RationaleStep]:
    """Train `model` in place to write comments that make the expert's lines likely; the same seed gives the same run.

    Only decisions and the tokens of comments are trained; the expert's lines give the reward, never a gradient (that is
    the M-step's: `distill` on `rationale_documents`). Dropout stays off, so that what is sampled is what is scored.

    Raises:
        DataError: no traces, or one that `annotate` would refuse; before anything is trained.
        ModelError: no token of the tokenizer ends a line.
    """
    if not traces:
        raise DataError("there are no traces to annotate: the E-step needs at least one expert trace")
    vocabulary = comment_vocabulary(tokenizer, model)
    layouts = [lay_out(tokenizer, trace) for trace in traces]
    for layout in layouts:
        check_length(model, layout, config.max_latent_tokens)
    model.eval()
    needs_reference = config.reward_model == "reference" or config.kl > 0
    reference = copy.deepcopy(model).requires_grad_(False) if needs_reference else model
    judge = reference if config.reward_model == "reference" else model
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
    history: list[RationaleStep] = []
    for step in range(1, config.steps + 1):
        order = torch.randperm(len(layouts), generator=generator).repeat(1 + config.traces_per_step // len(layouts))
        chosen = [layouts[index] for index in order[: config.traces_per_step].tolist()]
        groups = [_group(model, vocabulary, layout, config, generator) for layout in chosen]
        scores = [_score(judge, group, config) for group in groups]
        for options in optimizer.param_groups:
            options["lr"] = config.learning_rate * min(1.0, step / 5)
        kl = _update(model, reference, optimizer, vocabulary, groups, scores, config)
        record = _record(step, groups, scores, vocabulary, kl)
        history.append(record)
        on_step(record)
    return history


def rationale_documents(tokenizer: Any, annotated: Sequence[RationaleTrace]) -> list[list[int]]:
    """Token ids for the M-step (`distill`): prompt, annotated steps, end of text.

    The prompt is encoded by itself, as it is when the model is later asked to go on from it.
    """
    return [
        [
            *encode_prompt(tokenizer, row.trace.prompt),
            *tokenizer.encode(row.completion, add_special_tokens=False),
            tokenizer.eos_token_id,
        ]
        for row in annotated
    ]


def _group(
    model: Any, vocabulary: CommentVocabulary, layout: TraceLayout, config: RationaleConfig, generator: torch.Generator
) -> _Group:
    rollouts = roll_out(
        model,
        vocabulary,
        layout,
        group_size=config.group_size,
        max_latent_tokens=config.max_latent_tokens,
        always_think=config.always_think,
        min_think=config.min_think,
        temperature=config.temperature,
        generator=generator,
    )
    comments = [rollout.comments for rollout in rollouts]
    return _Group(
        layout=layout,
        rollouts=rollouts,
        rows=[assemble(layout, vocabulary, row) for row in comments],
        plain=assemble(layout, vocabulary, [None] * len(layout.places)),
        thinks_GD=torch.tensor([[comment is not None for comment in row] for row in comments]),
        failed_GD=torch.tensor(
            [[format_failure(layout, vocabulary, d, comment) for d, comment in enumerate(row)] for row in comments]
        ),
    )


def _score(judge: Any, group: _Group, config: RationaleConfig) -> _Scores:
    """One pass of the reward model over the rollouts and the trace without comments."""
    logp_RD = expert_logp(judge, group.layout, [*group.rows, group.plain])
    reward_GD = step_rewards(
        logp_RD[:-1],
        torch.tensor([len(place.act_ids) for place in group.layout.places]),
        group.thinks_GD,
        group.failed_GD,
        normalise=config.normalise,
        switch_penalty=config.switch_penalty,
        format_penalty=config.format_penalty,
    )
    return _Scores(logp_RD[:-1], logp_RD[-1], reward_GD)


def _update(
    model: Any,
    reference: Any,
    optimizer: torch.optim.Optimizer,
    vocabulary: CommentVocabulary,
    groups: Sequence[_Group],
    scores: Sequence[_Scores],
    config: RationaleConfig,
) -> float:
    """One policy-gradient step, the mean over all actions; gradients add up trace by trace. Returns the mean KL."""
    advantages = [leave_one_out(rewards_to_go(score.reward_GD, config.horizon)) for score in scores]
    num_actions = sum(group.num_actions(config.always_think) for group in groups)
    if num_actions == 0 or not (config.kl or any(bool(advantage_GD.any()) for advantage_GD in advantages)):
        return 0.0
    optimizer.zero_grad(set_to_none=True)
    kl_sum = 0.0
    for group, advantage_GD in zip(groups, advantages, strict=True):
        logp_A, advantage_A = _actions(model, group, vocabulary, config, advantage_GD)
        loss = -(advantage_A * logp_A).sum()
        if config.kl:
            with torch.no_grad():
                reference_logp_A, _ = _actions(reference, group, vocabulary, config, advantage_GD)
            # Never negative and unbiased, with less variance than the plain difference (Schulman's k3, as in GRPO).
            gap_A = reference_logp_A - logp_A
            kl = (torch.exp(gap_A) - gap_A - 1).sum()
            kl_sum += kl.item()
            loss = loss + config.kl * kl
        if loss.requires_grad:
            (loss / num_actions).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()
    return kl_sum / num_actions


def _actions(
    model: Any, group: _Group, vocabulary: CommentVocabulary, config: RationaleConfig, advantage_GD: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability and advantage of each action of a group, both of shape (A,)."""
    logits_GTV = group_logits(model, group.layout.prefix_ids, [row.ids for row in group.rows])
    logps, advantages = [], []
    for logits_TV, row, advantage_D in zip(logits_GTV, group.rows, advantage_GD.to(logits_GTV.device), strict=True):
        logp_A, place_A = action_logp(
            logits_TV,
            row,
            group.layout,
            vocabulary,
            temperature=config.temperature,
            always_think=config.always_think,
            min_think=config.min_think,
        )
        logps.append(logp_A)
        advantages.append(advantage_D[place_A])
    return torch.cat(logps), torch.cat(advantages)


def _record(
    step: int, groups: Sequence[_Group], scores: Sequence[_Scores], vocabulary: CommentVocabulary, kl: float
) -> RationaleStep:
    def mean(values: Sequence[Tensor]) -> float:
        joined = torch.cat([value.flatten().double() for value in values])
        return float(joined.mean()) if len(joined) else 0.0

    thinks = [group.thinks_GD for group in groups]
    lengths = [
        vocabulary.length(comment)
        for group in groups
        for rollout in group.rollouts
        for comment in rollout.comments
        if comment is not None
    ]
    # The plain trace counts once for each of its rollouts, so that both means weigh the traces alike.
    plain = [score.plain_logp_D.expand_as(score.logp_GD) for score in scores]
    return RationaleStep(
        step=step,
        reward=mean([score.reward_GD for score in scores]),
        logp=mean([score.logp_GD for score in scores]),
        logp_without=mean(plain),
        think_rate=mean(thinks),
        latent_tokens=sum(lengths) / max(1, len(lengths)),
        format_failures=mean([group.failed_GD[group.thinks_GD] for group in groups]),
        kl=kl,
        tokens=sum(len(row.ids) for group in groups for row in group.rows),
    )


def _annotated(group: _Group, scores: _Scores, vocabulary: CommentVocabulary, g: int) -> RationaleTrace:
    layout = group.layout
    comments: list[str | None] = [None] * len(layout.trace.steps)
    for place, comment in zip(layout.places, group.rollouts[g].comments, strict=True):
        if comment is not None:
            text = vocabulary.text(place, comment)
            comments[place.step] = text if comment_problem(text) is None else None
    annotated = RationaleTrace(
        trace=layout.trace,
        comments=tuple(comments),
        places=tuple(place.step for place in layout.places),
        logp=tuple(scores.logp_GD[g].tolist()),
        rewards=tuple(scores.reward_GD[g].tolist()),
        latent_tokens=tuple(vocabulary.length(comment) for comment in group.rollouts[g].comments),
        failed=tuple(group.failed_GD[g].tolist()),
    )
    check_comment_only(annotated.text, layout.trace.prompt + "".join(layout.trace.steps))
    return annotated
