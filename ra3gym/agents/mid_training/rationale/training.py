"""The policy gradient that teaches a model to write rationales (arXiv 2509.25810).

At each place before an expert line the model, given the prompt and the code and comments so far, acts (continues with
the line) or thinks (writes a comment first). Its comments earn the log-likelihood of the expert's lines after them,
less a fixed cost. docs/rationale.md says what is and is not the paper's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ra3gym.agents.mid_training.rationale.config import RationaleConfig
from ra3gym.agents.mid_training.rationale.layout import TraceLayout, lay_out
from ra3gym.agents.mid_training.rationale.rewards import rewards_to_go, step_rewards
from ra3gym.agents.mid_training.rationale.rollouts import CommentPolicy, check_length, roll_out
from ra3gym.agents.mid_training.rationale.rows import AnnotatedRow, assemble
from ra3gym.agents.mid_training.rationale.scoring import action_logp, expert_logp, row_logits
from ra3gym.agents.mid_training.rationale.vocabulary import Comment, comment_vocabulary
from ra3gym.agents.rlvr.algorithms.advantages import leave_one_out
from ra3gym.agents.rlvr.algorithms.kl import kl_k3
from ra3gym.errors import DataError
from ra3gym.tasks import ExpertTrace


@dataclass(frozen=True)
class RationaleStep:
    """One update of the E-step.

    Attributes:
        step: its number, from 1.
        reward: mean over rollouts and places, costs included.
        logp: nats per place of the expert's text given the rationales, by the reward model.
        logp_without: the same on the same traces without any rationale.
        think_rate: share of places with a comment.
        latent_tokens: mean tokens of a comment, line break not counted; 0 when there is none.
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
class RationaleGroup:
    """The rollouts of one trace, and what the reward model says of them.

    Attributes:
        layout: the trace.
        comments: for each rollout and place, the comment written there, or `None`.
        rows: the rollouts' tokens.
        failed_GQ: bool; a comment was written that has the wrong form.
        logp_GQ: log-likelihood in nats of the expert's text at each place.
        plain_logp_Q: the same of the trace without comments.
        reward_GQ: see `step_rewards`.
    """

    layout: TraceLayout
    comments: list[tuple[Comment | None, ...]]
    rows: list[AnnotatedRow]
    failed_GQ: Tensor
    logp_GQ: Tensor
    plain_logp_Q: Tensor
    reward_GQ: Tensor


def sample_group(
    policy: CommentPolicy, reward_model: Any, layout: TraceLayout, generator: torch.Generator
) -> RationaleGroup:
    """Have the policy annotate a trace `config.group_size` times, and `reward_model` score the results."""
    rollouts = roll_out(policy, layout, generator)
    return score_group(policy, reward_model, layout, [rollout.comments for rollout in rollouts])


def score_group(
    policy: CommentPolicy, reward_model: Any, layout: TraceLayout, comments: list[tuple[Comment | None, ...]]
) -> RationaleGroup:
    """Score annotations of a trace, and the trace without comments, in one pass."""
    rows = [assemble(layout, row) for row in comments]
    plain = assemble(layout, [None] * len(layout.places))
    *logps, plain_logp_Q = expert_logp(reward_model, layout, [*rows, plain])
    logp_GQ = torch.stack(logps)
    failed_GQ = torch.tensor([list(map(policy.vocabulary.is_malformed, layout.places, row)) for row in comments])
    thinks_GQ = torch.tensor([row.thinks for row in rows])
    tokens_Q = torch.tensor([len(place.act_ids) for place in layout.places])
    reward_GQ = step_rewards(logp_GQ, tokens_Q, thinks_GQ, failed_GQ, policy.config)
    return RationaleGroup(layout, comments, rows, failed_GQ, logp_GQ, plain_logp_Q, reward_GQ)


def train_rationales(
    model: Any,
    tokenizer: Any,
    traces: Sequence[ExpertTrace],
    config: RationaleConfig,
    *,
    seed: int,
    reference: Any = None,
    on_step: Callable[[RationaleStep], None] = lambda _: None,
) -> list[RationaleStep]:
    """Train `model` in place to write comments that make the expert's lines likely; the same seed gives the same run.

    Only decisions and the tokens of comments are trained. The expert's lines give the reward, never a gradient: they
    are the M-step's. Dropout stays off, so that what is sampled is what is scored.

    Args:
        model: any causal language model of transformers.
        tokenizer: its tokenizer.
        traces: the expert's, at least one.
        config: how rationales are sampled, rewarded and learned.
        seed: of everything random.
        reference: the model at the start, not to be changed; copied from `model` where it is needed and `None`.
        on_step: called after each update.

    Raises:
        DataError: no traces, or one that `ra3gym.agents.mid_training.rationale.e_step.annotate` would refuse; before
            anything is trained.
        ModelError: no token of the tokenizer ends a line.
    """
    if not traces:
        raise DataError("there are no traces to annotate: the E-step needs at least one expert trace")
    policy = CommentPolicy(model, comment_vocabulary(tokenizer, model), config)
    layouts = [lay_out(tokenizer, trace) for trace in traces]
    for layout in layouts:
        check_length(model, layout, config.max_latent_tokens)
    model.eval()
    if reference is None and (config.reward_model == "reference" or config.kl > 0):
        reference = copy.deepcopy(model).requires_grad_(False)
    reward_model = reference if config.reward_model == "reference" else model
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
    history: list[RationaleStep] = []
    for step in range(1, config.steps + 1):
        order = torch.randperm(len(layouts), generator=generator).repeat(1 + config.traces_per_step // len(layouts))
        groups = [
            sample_group(policy, reward_model, layouts[index], generator)
            for index in order[: config.traces_per_step].tolist()
        ]
        for options in optimizer.param_groups:
            options["lr"] = config.learning_rate * min(1.0, step / 5)
        kl = update(policy, reference, optimizer, groups)
        record = measure(step, policy, groups, kl)
        history.append(record)
        on_step(record)
    return history


def update(
    policy: CommentPolicy, reference: Any, optimizer: torch.optim.Optimizer, groups: Sequence[RationaleGroup]
) -> float:
    """Take one policy-gradient step, the mean over all actions, and return the mean KL from the reference in nats.

    All rollouts of a trace pass the same places, so each place has a leave-one-out baseline of its own. Gradients add
    up trace by trace. The KL is 0 when `config.kl` is.
    """
    config = policy.config
    advantage = [advantages(group.reward_GQ, config.horizon) for group in groups]
    num_actions = sum(_num_actions(row, config) for group in groups for row in group.rows)
    if num_actions == 0 or not (config.kl or any(bool(advantage_GQ.any()) for advantage_GQ in advantage)):
        return 0.0
    optimizer.zero_grad(set_to_none=True)
    kl_sum = 0.0
    for group, advantage_GQ in zip(groups, advantage, strict=True):
        logp, rollout, place = group_actions(policy, group)
        loss = -(advantage_GQ.to(logp.device)[rollout, place] * logp).sum()
        if config.kl:
            with torch.no_grad():
                reference_logp, _, _ = group_actions(replace(policy, model=reference), group)
            kl = kl_k3(logp, reference_logp).sum()
            kl_sum += kl.item()
            loss = loss + config.kl * kl
        if loss.requires_grad:
            (loss / num_actions).backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.max_grad_norm)
    optimizer.step()
    return kl_sum / num_actions


def group_actions(policy: CommentPolicy, group: RationaleGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probability of each action of a group in nats, its rollout and its place, one after the other."""
    logps, places, rollouts = [], [], []
    for g, logits_TV in enumerate(row_logits(policy.model, group.layout, group.rows)):
        logp, place = action_logp(policy, group.layout, group.rows[g], logits_TV)
        logps.append(logp)
        places.append(place)
        rollouts.append(torch.full_like(place, g))
    return torch.cat(logps), torch.cat(rollouts), torch.cat(places)


def advantages(reward_GQ: Tensor, horizon: int | None) -> Tensor:
    """Return what each decision earned above the mean of the other rollouts at the same place, shape (G, Q)."""
    return_GQ = rewards_to_go(reward_GQ, horizon)
    num_rollouts, num_places = return_GQ.shape
    return leave_one_out(return_GQ.T.flatten(), num_rollouts).view(num_places, num_rollouts).T


def _num_actions(row: AnnotatedRow, config: RationaleConfig) -> int:
    """Decisions, sampled tokens and sampled ends."""
    return len(row.sampled) + len(row.ends) + (0 if config.always_think else len(row.decisions))


def measure(step: int, policy: CommentPolicy, groups: Sequence[RationaleGroup], kl: float) -> RationaleStep:
    """Return the means over all rollouts of these groups."""
    comments = [comment for group in groups for row in group.comments for comment in row]
    lengths = [policy.vocabulary.length(comment) for comment in comments if comment is not None]
    return RationaleStep(
        step=step,
        reward=_mean([group.reward_GQ for group in groups]),
        logp=_mean([group.logp_GQ for group in groups]),
        # The plain trace counts once for each of its rollouts, so that both means weigh the traces alike.
        logp_without=_mean([group.plain_logp_Q.expand_as(group.logp_GQ) for group in groups]),
        think_rate=len(lengths) / len(comments),
        latent_tokens=sum(lengths) / max(1, len(lengths)),
        format_failures=sum(int(group.failed_GQ.sum()) for group in groups) / max(1, len(lengths)),
        kl=kl,
        tokens=sum(len(row.ids) for group in groups for row in group.rows),
    )


def _mean(values: Sequence[Tensor]) -> float:
    joined = torch.cat([value.flatten().double() for value in values])
    return float(joined.mean())
