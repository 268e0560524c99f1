"""Log-probabilities under a model: of the expert's lines, and of what the policy did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ra3gym.agents.mid_training.rationale.layout import TraceLayout
from ra3gym.agents.mid_training.rationale.rollouts import CommentPolicy, decision_logp
from ra3gym.agents.mid_training.rationale.rows import AnnotatedRow
from ra3gym.lm import group_logits


def row_logits(model: Any, layout: TraceLayout, rows: Sequence[AnnotatedRow]) -> tuple[Tensor, ...]:
    """Return for each row the logits that predict its tokens, shape (T, V), with gradient when enabled."""
    return group_logits(model, [layout.prefix_ids], [row.ids for row in rows], [0] * len(rows))


def line_logp(logits_TV: Tensor, row: AnnotatedRow) -> Tensor:
    """Return `log p(expert's text | all before it)` of each place in nats, summed over tokens, shape (Q,).

    Where a comment could begin, that possibility is excluded first: the choice between `<act>` and `<think>` is the
    policy's, so its probability is no part of the line's. (Else a line would lose likelihood merely because the model
    likes to comment there, and most of all after a comment, where many models write another.)
    """
    logits_TV = logits_TV.float()
    barred = torch.tensor([*row.barred.items()], dtype=torch.int64, device=logits_TV.device).view(-1, 2)
    logits_TV = logits_TV.index_put((barred[:, 0], barred[:, 1]), logits_TV.new_tensor(-torch.inf))
    logp_T = -F.cross_entropy(logits_TV, torch.tensor(row.ids, device=logits_TV.device), reduction="none")
    return torch.stack([logp_T[start:end].sum() for start, end in row.lines])


@torch.no_grad()
def expert_logp(model: Any, layout: TraceLayout, rows: Sequence[AnnotatedRow]) -> Tensor:
    """Return `line_logp` of several annotations of a trace, shape (G, Q), float32 on the CPU."""
    logits = row_logits(model, layout, rows)
    return torch.stack([line_logp(logits_TV, row) for logits_TV, row in zip(logits, rows, strict=True)]).cpu()


def action_logp(
    policy: CommentPolicy, layout: TraceLayout, row: AnnotatedRow, logits_TV: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the log-probability in nats of each action in a row, and the index of its place, int64.

    Actions are the decisions (none with `always_think`), the tokens of comments, and their sampled ends.
    """
    config, vocabulary, device = policy.config, policy.vocabulary, logits_TV.device
    logps: list[Tensor] = []
    places: list[int] = []
    if not config.always_think:
        decision_Q = torch.tensor(row.decisions, device=device)
        starter_Q = torch.tensor([place.starter for place in layout.places], device=device)
        line_Q = torch.tensor([place.line_token for place in layout.places], device=device)
        think_logp_Q, act_logp_Q = decision_logp(
            logits_TV[decision_Q, starter_Q], logits_TV[decision_Q, line_Q], config
        )
        logps.append(torch.where(torch.tensor(row.thinks, device=device), think_logp_Q, act_logp_Q))
        places += range(len(layout.places))
    written = [*row.sampled, *row.ends]
    logits_CV = logits_TV[[column for column, _ in written]].float() / config.temperature
    logp_CV = logits_CV.masked_fill(~vocabulary.allowed_V.to(device), -torch.inf).log_softmax(-1)
    sampled_ids = torch.tensor([row.ids[column] for column, _ in row.sampled], dtype=torch.int64, device=device)
    logps.append(logp_CV[: len(row.sampled)].gather(1, sampled_ids[:, None])[:, 0])
    logps.append(logp_CV[len(row.sampled) :].masked_fill(~vocabulary.stop_V.to(device), -torch.inf).logsumexp(-1))
    places += [place for _, place in written]
    return torch.cat(logps), torch.tensor(places, dtype=torch.int64, device=device)
