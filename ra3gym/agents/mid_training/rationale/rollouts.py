"""Rollouts over one trace: at each place the model thinks (writes a comment) or acts (continues with the line).

The G rollouts of a trace share its prefix, which is read once. From there on all rows are read together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ra3gym.agents.mid_training.rationale.config import RationaleConfig
from ra3gym.agents.mid_training.rationale.layout import TraceLayout
from ra3gym.agents.mid_training.rationale.vocabulary import Comment, CommentVocabulary
from ra3gym.errors import DataError
from ra3gym.lm.sampling import CacheDecoder, distribution, inverse_cdf


@dataclass(frozen=True)
class CommentPolicy:
    """A model that decides where to comment and writes the comments.

    Attributes:
        model: any causal language model of transformers, in evaluation mode.
        vocabulary: what its tokens mean in a comment.
        config: group size, longest comment, temperature, and how decisions are made.
    """

    model: Any
    vocabulary: CommentVocabulary
    config: RationaleConfig


@dataclass(frozen=True)
class Rollout:
    """One way to annotate a trace.

    Attributes:
        comments: for each place, the comment written there, or `None`.
        logp: for each place, the log-probability in nats of the decision and of the comment's tokens, its end included,
            at the sampling temperature. With `always_think` there is no decision to count.
    """

    comments: tuple[Comment | None, ...]
    logp: tuple[float, ...]


@torch.no_grad()
def roll_out(policy: CommentPolicy, layout: TraceLayout, generator: torch.Generator) -> list[Rollout]:
    """Sample `config.group_size` annotations of a trace, place by place, on a growing cache.

    Raises:
        DataError: the trace may need more tokens than the model has positions.
    """
    config = policy.config
    check_length(policy.model, layout, config.max_latent_tokens)
    prefix_1L = torch.tensor([layout.prefix_ids], device=next(policy.model.parameters()).device)
    decoder = CacheDecoder(policy.model, prefix_1L, torch.ones_like(prefix_1L), config.group_size, 0)
    comments: list[list[Comment | None]] = [[] for _ in range(config.group_size)]
    logps: list[list[float]] = [[] for _ in range(config.group_size)]
    unread: list[list[int]] = [[] for _ in range(config.group_size)]
    for place in layout.places:
        decoder.append([[*ids, *place.act_ids[: place.split]] for ids in unread])
        starter_G, line_G = (decoder.logits_BV[:, token] for token in (place.starter, place.line_token))
        think_logp_G, act_logp_G = decision_logp(starter_G, line_G, config)
        thinks_G = torch.ones_like(think_logp_G, dtype=torch.bool)
        logp_G = torch.zeros_like(think_logp_G)
        if not config.always_think:
            thinks_G = _uniform(think_logp_G, generator) < think_logp_G.exp()
            logp_G = torch.where(thinks_G, think_logp_G, act_logp_G)
        thinks = thinks_G.tolist()
        decoder.append([[place.starter] if think else [] for think in thinks])
        written, comment_logp_G = _write(policy, decoder, thinks, generator)
        for g, (comment, logp) in enumerate(zip(written, (logp_G + comment_logp_G).tolist(), strict=True)):
            comments[g].append(comment)
            logps[g].append(logp)
            if comment is None:
                unread[g] = list(place.act_ids[place.split :])
            else:
                unread[g] = [*([] if comment.ended else layout.break_ids), *place.body_ids]
    return [Rollout(tuple(row), tuple(logp)) for row, logp in zip(comments, logps, strict=True)]


def _write(
    policy: CommentPolicy, decoder: CacheDecoder, thinks: Sequence[bool], generator: torch.Generator
) -> tuple[list[Comment | None], Tensor]:
    """Sample a comment in the rows that think; return the comments and their log-probabilities `logp_G` in nats."""
    vocabulary, device = policy.vocabulary, decoder.logits_BV.device
    stop_V, banned_V = vocabulary.stop_V.to(device), ~vocabulary.allowed_V.to(device)
    written: list[list[int]] = [[] for _ in thinks]
    writing = list(thinks)
    logp_G = torch.zeros(len(thinks), device=device)
    for _ in range(policy.config.max_latent_tokens):
        if not any(writing):
            break
        prob_GV = distribution(decoder.logits_BV, policy.config.temperature, banned_V)
        # Below 1 by more than one rounding step, so that the draw stays inside the mass (see ra3gym.lm.sampling).
        token_G = inverse_cdf(prob_GV, _uniform(logp_G, generator).clamp_(max=1 - 2.0**-23))
        stops_G = stop_V[token_G]
        chosen_G = prob_GV.gather(1, token_G[:, None])[:, 0]
        if vocabulary.breaks_lead:  # which token brings the break does not matter: the expert's line has its own
            chosen_G = torch.where(stops_G, (prob_GV * stop_V).sum(-1), chosen_G)
        logp_G = logp_G + torch.where(torch.tensor(writing, device=device), chosen_G.log(), 0.0)
        new: list[list[int]] = [[] for _ in thinks]
        for g, (token, stops) in enumerate(zip(token_G.tolist(), stops_G.tolist(), strict=True)):
            if writing[g] and not (stops and vocabulary.breaks_lead):
                written[g].append(token)
                new[g] = [token]
            writing[g] = writing[g] and not stops
        decoder.append(new)
    comments = [
        Comment(tuple(ids), ended=not cut_off) if think else None
        for ids, cut_off, think in zip(written, writing, thinks, strict=True)
    ]
    return comments, logp_G


def decision_logp(starter_logit: Tensor, line_logit: Tensor, config: RationaleConfig) -> tuple[Tensor, Tensor]:
    """Return `log p(<think>)` and `log p(<act>)` in nats, float32, of decisions at a place.

    The odds are those of a comment's first token against the expert's own next token; `config.min_think` is the share
    of decisions that think whatever the odds.
    """
    gap = (starter_logit.float() - line_logit.float()) / config.temperature
    think_logp, act_logp = F.logsigmoid(gap), F.logsigmoid(-gap)
    if config.min_think == 0:
        return think_logp, act_logp
    return (
        torch.log(config.min_think + (1 - config.min_think) * think_logp.exp()),
        math.log1p(-config.min_think) + act_logp,
    )


def check_length(model: Any, layout: TraceLayout, max_latent_tokens: int) -> None:
    """Raise `DataError` when the longest annotation of a trace has more tokens than the model has positions."""
    positions = getattr(model.config, "max_position_embeddings", None)
    needed = layout.longest(max_latent_tokens)
    if positions is not None and needed > positions:
        raise DataError(
            f"trace {layout.trace.task.task_id!r} may need {needed} tokens with a comment of up to {max_latent_tokens} "
            f"above each of its {len(layout.places)} lines, but the model has {positions} positions: lower "
            "max_latent_tokens, shorten the trace or its prompt, or take a model with a longer context"
        )


def _uniform(like_G: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(like_G), generator=generator, device=generator.device).to(like_G.device)
