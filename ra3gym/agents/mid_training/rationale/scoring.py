"""What a rollout is worth: log-likelihoods of expert lines and of decisions, rewards, returns and advantages.

Shape suffixes: G rollouts of one trace, D places, T tokens behind the prefix, A actions (a decision, a token of a
comment, or its end), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ra3gym.abstractions.latents.comments import comment_problem
from ra3gym.agents.mid_training.rationale.layout import Comment, CommentVocabulary, TraceLayout
from ra3gym.agents.mid_training.rationale.rollouts import behind, decision_logp, group_logits

Normalise = Literal["token", "line", "none"]


@dataclass(frozen=True)
class AnnotatedRow:
    """One annotated trace as tokens behind the prefix, and where in them each place's parts stand.

    Attributes:
        ids: T tokens.
        split: for each place, the column of the decision.
        comment: for each place, the columns of the sampled tokens, `start, end`; equal where there is none.
        end_drawn: for each place, whether the end of its comment was an event of its own, drawn at column `end`.
        lines: for each place, the columns of the expert's text, `start, end`.
        barred: column to token: a comment could begin there, and the expert's text is scored on condition that none
            does.
    """

    ids: tuple[int, ...]
    split: tuple[int, ...]
    comment: tuple[tuple[int, int], ...]
    end_drawn: tuple[bool, ...]
    lines: tuple[tuple[int, int], ...]
    barred: dict[int, int]


def assemble(layout: TraceLayout, vocabulary: CommentVocabulary, comments: Sequence[Comment | None]) -> AnnotatedRow:
    """The tokens of a trace with these comments, one (or `None`) for each place."""
    ids: list[int] = []
    splits, spans, ends, lines = [], [], [], []
    barred: dict[int, int] = {}
    for place, comment in zip(layout.places, comments, strict=True):
        begin = len(ids)
        ids += place.act_ids[: place.split]
        split = len(ids)
        if comment is None:
            ids += behind(place, None, vocabulary)
            barred[split] = place.starter
            spans.append((split, split))
            lines.append((begin, len(ids)))
        else:
            ids += [place.starter, *comment.ids]
            spans.append((split + 1, len(ids)))
            ids += behind(place, comment, vocabulary)
            body = len(ids) - len(place.body_ids)
            if place.body_split is not None and place.body_starter is not None:
                barred[body + place.body_split] = place.body_starter
            lines.append((body, len(ids)))
        splits.append(split)
        ends.append(comment is not None and comment.ended and vocabulary.breaks_lead)
    return AnnotatedRow(tuple(ids), tuple(splits), tuple(spans), tuple(ends), tuple(lines), barred)


def line_logp(logits_TV: Tensor, row: AnnotatedRow) -> Tensor:
    """`log p(expert's text | what is ahead of it)` of each place in nats, summed over tokens; shape (D,).

    Where a comment could begin, that possibility is excluded first: the choice between `<act>` and `<think>` is the
    policy's, so its probability is no part of the line's. (Else a line would lose likelihood merely because the model
    likes to comment there, and after a comment, where many models go on commenting, most of all.)
    """
    logits_TV = logits_TV[: len(row.ids)].float()
    ids_T = torch.tensor(row.ids, device=logits_TV.device)
    logp_T = logits_TV.gather(1, ids_T[:, None])[:, 0] - logits_TV.logsumexp(-1)
    if row.barred:
        at, tokens = list(row.barred), torch.tensor(list(row.barred.values()), device=logits_TV.device)
        barred_logits = logits_TV[at].scatter(1, tokens[:, None], -torch.inf)
        logp_T = logp_T.index_put(
            (torch.tensor(at, device=logp_T.device),),
            barred_logits.log_softmax(-1)[torch.arange(len(at), device=logp_T.device), ids_T[at]],
        )
    return torch.stack([logp_T[start:end].sum() for start, end in row.lines])


def action_logp(
    logits_TV: Tensor,
    row: AnnotatedRow,
    layout: TraceLayout,
    vocabulary: CommentVocabulary,
    *,
    temperature: float,
    always_think: bool,
    min_think: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all that the policy did, in nats, shape (A,), and the place of each, int64, shape (A,).

    Actions are the decisions (none when `always_think`), the tokens of comments, and ends that were drawn.
    """
    device = logits_TV.device
    logps: list[Tensor] = []
    places: list[int] = []
    for index, (place, split, (start, end)) in enumerate(zip(layout.places, row.split, row.comment, strict=True)):
        if not always_think:
            think_logp, act_logp = decision_logp(logits_TV[split], place, temperature, min_think)
            logps.append((think_logp if row.ids[split] == place.starter else act_logp)[None])
            places.append(index)
        drawn = row.end_drawn[index]
        if start == end and not drawn:
            continue
        logits_CV = logits_TV[start : end + drawn].float() / temperature
        logits_CV = logits_CV.masked_fill(~vocabulary.allowed_V.to(device), -torch.inf)
        total_C = logits_CV.logsumexp(-1)
        ids_C = torch.tensor(row.ids[start:end], dtype=torch.int64, device=device)
        logps.append(logits_CV[: end - start].gather(1, ids_C[:, None])[:, 0] - total_C[: end - start])
        if drawn:
            stop = logits_CV[-1].masked_fill(~vocabulary.stop_V.to(device), -torch.inf).logsumexp(-1)
            logps.append((stop - total_C[-1])[None])
        places += [index] * (end - start + drawn)
    if not logps:
        return logits_TV.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=device)
    return torch.cat(logps), torch.tensor(places, device=device)


@torch.no_grad()
def expert_logp(model: Any, layout: TraceLayout, rows: Sequence[AnnotatedRow]) -> Tensor:
    """`line_logp` of several annotations of a trace, shape (G, D), float32 on the CPU."""
    logits_GTV = group_logits(model, layout.prefix_ids, [row.ids for row in rows])
    return torch.stack([line_logp(logits_TV, row) for logits_TV, row in zip(logits_GTV, rows, strict=True)]).cpu()


def format_failure(layout: TraceLayout, vocabulary: CommentVocabulary, index: int, comment: Comment | None) -> bool:
    """Whether the comment at a place was cut off, has no text, or cannot stand on one line."""
    if comment is None:
        return False
    return not comment.ended or comment_problem(vocabulary.text(layout.places[index], comment)) is not None


def step_rewards(
    logp_GD: Tensor,
    tokens_D: Tensor,
    thinks_GD: Tensor,
    failed_GD: Tensor,
    *,
    normalise: Normalise,
    switch_penalty: float,
    format_penalty: float,
) -> Tensor:
    """The reward of each place, shape (G, D): normalised log-likelihood of its line, less what its comment costs.

    Args:
        logp_GD: nats of the expert's text at each place.
        tokens_D: tokens of that text without a comment.
        thinks_GD: bool; a comment was written.
        failed_GD: bool; it has the wrong form.
        normalise: "token": nats per token of the line, so that every line has the same say; "line": nats of the line,
            divided by the mean number of tokens of the trace's lines (the ELBO up to a factor); "none": nats (the ELBO
            itself). How the paper normalises is not known to us.
        switch_penalty: the paper's `c`, in the units of the normalised log-likelihood.
        format_penalty: in the same units.
    """
    scale_D = {"token": tokens_D.float(), "line": tokens_D.float().mean(), "none": torch.ones(())}[normalise]
    return logp_GD / scale_D - switch_penalty * thinks_GD.float() - format_penalty * failed_GD.float()


def rewards_to_go(reward_GD: Tensor, horizon: int | None) -> Tensor:
    """`R_t = r_t + ... + r_{t+h-1}` along the last axis, up to the end of the trace: what a decision at t answers for.

    With `horizon=None` to the end: the rewards of a segment up to its next switch, plus all later segments. With
    `horizon=1` the line alone (BRiTE).
    """
    to_end_GD = reward_GD.flip(-1).cumsum(-1).flip(-1)
    if horizon is None or horizon >= reward_GD.shape[-1]:
        return to_end_GD
    beyond_GD = torch.nn.functional.pad(to_end_GD[..., horizon:], (0, horizon))
    return to_end_GD - beyond_GD


def leave_one_out(return_GD: Tensor) -> Tensor:
    """Advantages over the mean of the group's other rollouts, place by place; (G, D), G at least 2.

    The baseline of a rollout does not depend on its own actions, so the gradient stays unbiased (RLOO,
    arXiv 2402.14740). All rollouts of a trace pass the same places, so each place has a baseline of its own.
    """
    group_size = len(return_GD)
    return (return_GD - return_GD.mean(0)) * (group_size / (group_size - 1))
