"""Rollouts over one trace: at each place the model thinks (writes a comment) or acts (goes on with the expert's line).

The G rollouts of a trace share what is ahead of the first place: it is read once and its cache repeated. From there on
all rows are read together, left-padded to the same columns; padding is masked out and counts for no position.

Shape suffixes: G rollouts, S new columns, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ra3gym.agents.mid_training.rationale.layout import Comment, CommentVocabulary, Place, TraceLayout
from ra3gym.errors import DataError


@dataclass(frozen=True)
class Rollout:
    """One way to annotate a trace.

    Attributes:
        comments: for each place, the comment written there, or `None`.
        logp: for each place, in nats, the log-probability of what was decided and of the comment's tokens, its end
            included, at the sampling temperature; a comment that was not a choice (`always_think`) has no decision.
    """

    comments: tuple[Comment | None, ...]
    logp: tuple[float, ...]


class GroupReader:
    """G continuations of one prefix under a model: the prefix is read once, the rows grow together."""

    def __init__(self, model: Any, prefix_ids: Sequence[int], group_size: int) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        output = model(input_ids=torch.tensor([prefix_ids], device=self._device), use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        self._cache.batch_repeat_interleave(group_size)
        self._mask_GS = torch.ones(group_size, len(prefix_ids), dtype=torch.int64, device=self._device)
        self.logits_GV: Tensor = output.logits[:, -1].float().expand(group_size, -1)
        """float32; the next-token logits of each row."""

    def read(self, rows: Sequence[Sequence[int]]) -> None:
        """Append tokens to each row, to some rows none."""
        width = max(map(len, rows))
        if width == 0:
            return
        # Left padding: the last column holds the last token of every row that has any.
        ids_GS = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=self._device)
        new_GS = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self._device)
        self._mask_GS = torch.cat([self._mask_GS, new_GS], dim=1)
        output = self._model(
            input_ids=ids_GS,
            attention_mask=self._mask_GS,
            position_ids=(self._mask_GS.cumsum(1) - 1)[:, -width:].clamp_(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits_GV = torch.where(new_GS[:, -1:].bool(), output.logits[:, -1].float(), self.logits_GV)


def group_logits(model: Any, prefix_ids: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
    """The logits that predict each token of G continuations of one prefix, with gradient when enabled.

    The prefix is read once; where gradients are enabled they flow through its cache into the weights.

    Args:
        model: any causal language model of transformers.
        prefix_ids: at least one token.
        rows: G continuations, at least one token in the longest.

    Returns:
        `logits_GTV`, in the model's dtype; `[g, t]` predicts `rows[g][t]`; what stands behind a row's end means
        nothing.
    """
    device = next(model.parameters()).device
    head = model(input_ids=torch.tensor([prefix_ids], device=device), use_cache=True, logits_to_keep=1)
    head.past_key_values.batch_repeat_interleave(len(rows))
    length = max(map(len, rows))
    ids_GT = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=device)
    real_GT = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
    output = model(
        input_ids=ids_GT,
        attention_mask=F.pad(real_GT, (len(prefix_ids), 0), value=1),
        position_ids=len(prefix_ids) + torch.arange(length, device=device).expand(len(rows), -1),
        past_key_values=head.past_key_values,
        use_cache=True,
    )
    return torch.cat([head.logits[:, -1:].expand(len(rows), -1, -1), output.logits[:, :-1]], dim=1)


@torch.no_grad()
def roll_out(
    model: Any,
    vocabulary: CommentVocabulary,
    layout: TraceLayout,
    *,
    group_size: int,
    max_latent_tokens: int,
    always_think: bool,
    min_think: float = 0.0,
    temperature: float,
    generator: torch.Generator,
) -> list[Rollout]:
    """Sample `group_size` annotations of a trace, place by place, on a growing cache.

    Args:
        model: any causal language model of transformers, in evaluation mode.
        vocabulary: what its tokens mean in a comment.
        layout: the trace.
        group_size: G.
        max_latent_tokens: longest comment in tokens, its line break included.
        always_think: a comment at each place, without a choice.
        min_think: share of decisions that think whatever the model says.
        temperature: divides the logits of decisions and comments.
        generator: the source of randomness; its device may differ from the model's.

    Raises:
        DataError: the trace may need more tokens than the model has positions.
    """
    check_length(model, layout, max_latent_tokens)
    reader = GroupReader(model, layout.prefix_ids, group_size)
    comments: list[list[Comment | None]] = [[] for _ in range(group_size)]
    logps: list[list[float]] = [[] for _ in range(group_size)]
    pending: list[list[int]] = [[] for _ in range(group_size)]
    for place in layout.places:
        reader.read([row + list(place.act_ids[: place.split]) for row in pending])
        think_logp_G, act_logp_G = decision_logp(reader.logits_GV, place, temperature, min_think)
        thinks_G = torch.ones_like(think_logp_G, dtype=torch.bool)
        logp_G = torch.zeros_like(think_logp_G)
        if not always_think:
            thinks_G = _uniform(think_logp_G, generator) < think_logp_G.exp()
            logp_G = torch.where(thinks_G, think_logp_G, act_logp_G)
        thinks = thinks_G.tolist()
        reader.read([[place.starter] if think else [] for think in thinks])
        written, comment_logp_G = _write(reader, vocabulary, thinks, max_latent_tokens, temperature, generator)
        for g, (comment, logp) in enumerate(zip(written, (logp_G + comment_logp_G).tolist(), strict=True)):
            comments[g].append(comment)
            logps[g].append(logp)
            pending[g] = behind(place, comment, vocabulary)
    return [Rollout(tuple(row), tuple(logp)) for row, logp in zip(comments, logps, strict=True)]


def _write(
    reader: GroupReader,
    vocabulary: CommentVocabulary,
    thinks: Sequence[bool],
    max_latent_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> tuple[list[Comment | None], Tensor]:
    """Sample a comment in the rows that think; returns the comments and their log-probabilities `logp_G` in nats."""
    device = reader.logits_GV.device
    stop_V, allowed_V = vocabulary.stop_V.to(device), vocabulary.allowed_V.to(device)
    written: list[list[int]] = [[] for _ in thinks]
    writing = list(thinks)
    logp_G = torch.zeros(len(thinks), device=device)
    for _ in range(max_latent_tokens):
        if not any(writing):
            break
        logits_GV = (reader.logits_GV / temperature).masked_fill(~allowed_V, -torch.inf)
        prob_GV = torch.softmax(logits_GV, dim=-1)
        cdf_GV = prob_GV.cumsum(-1)
        # Below 1 by more than one rounding step, so that the draw stays inside the mass (see ra3gym.lm.sampling).
        draw_G = _uniform(logp_G, generator).clamp(max=1 - 2.0**-23) * cdf_GV[:, -1]
        token_G = torch.searchsorted(cdf_GV, draw_G[:, None], right=True)[:, 0]
        stops_G = stop_V[token_G]
        chosen_G = prob_GV.gather(1, token_G[:, None])[:, 0]
        if vocabulary.breaks_lead:  # which token brings the break does not matter: the expert's line has its own
            chosen_G = torch.where(stops_G, (prob_GV * stop_V).sum(-1), chosen_G)
        logp_G = logp_G + torch.where(torch.tensor(writing, device=device), chosen_G.log(), 0.0)
        read: list[list[int]] = [[] for _ in thinks]
        for g, (token, stops) in enumerate(zip(token_G.tolist(), stops_G.tolist(), strict=True)):
            if writing[g] and not (stops and vocabulary.breaks_lead):
                written[g].append(token)
                read[g] = [token]
            writing[g] = writing[g] and not stops
        reader.read(read)
    comments = [
        Comment(tuple(ids), ended=not cut_off) if think else None
        for ids, cut_off, think in zip(written, writing, thinks, strict=True)
    ]
    return comments, logp_G


def _uniform(like_G: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(like_G), generator=generator, device=generator.device).to(like_G.device)


def decision_logp(logits_V: Tensor, place: Place, temperature: float, min_think: float) -> tuple[Tensor, Tensor]:
    """`log p(<think>)` and `log p(<act>)` at a place, in nats.

    The odds are those of a comment's first token against the expert's own next one; `min_think` is the share of
    decisions that think whatever the odds. `logits_V` may have leading dimensions; the results have these.
    """
    comment, line = logits_V[..., place.starter].float(), logits_V[..., place.act_ids[place.split]].float()
    gap = (comment - line) / temperature
    think_logp, act_logp = F.logsigmoid(gap), F.logsigmoid(-gap)
    if min_think == 0:
        return think_logp, act_logp
    return torch.log(min_think + (1 - min_think) * think_logp.exp()), math.log1p(-min_think) + act_logp


def behind(place: Place, comment: Comment | None, vocabulary: CommentVocabulary) -> list[int]:
    """The tokens that follow a decision (and its comment, if any) up to the next place."""
    if comment is None:
        return list(place.act_ids[place.split :])
    return [*([] if comment.ended else vocabulary.break_ids), *place.body_ids]


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
