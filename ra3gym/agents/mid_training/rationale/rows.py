"""A trace with its comments as tokens: what the policy samples and is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ra3gym.agents.mid_training.rationale.layout import TraceLayout
from ra3gym.agents.mid_training.rationale.vocabulary import Comment


@dataclass(frozen=True)
class AnnotatedRow:
    """The tokens of an annotated trace after the layout's prefix, and where in them each place's parts are.

    Attributes:
        ids: T tokens.
        thinks: for each place, whether it has a comment.
        decisions: for each place, the column of the decision.
        sampled: `(column, place)` of each sampled token of a comment.
        ends: `(column, place)` of each end of a comment that was sampled without being written: there the first token
            of the expert's text is the line break that ends the comment.
        lines: for each place, the columns `start, end` of the expert's text.
        barred: column to token: a comment could begin there with this token, and the expert's text is scored on
            condition that none does.
    """

    ids: tuple[int, ...]
    thinks: tuple[bool, ...]
    decisions: tuple[int, ...]
    sampled: tuple[tuple[int, int], ...]
    ends: tuple[tuple[int, int], ...]
    lines: tuple[tuple[int, int], ...]
    barred: dict[int, int]


def assemble(layout: TraceLayout, comments: Sequence[Comment | None]) -> AnnotatedRow:
    """Return the tokens of a trace with these comments, one (or `None`) for each place."""
    ids: list[int] = []
    decisions, sampled, ends, lines = [], [], [], []
    barred: dict[int, int] = {}
    for index, (place, comment) in enumerate(zip(layout.places, comments, strict=True)):
        decision = len(ids) + place.split
        decisions.append(decision)
        expert_ids = place.act_ids
        if comment is None:
            barred[decision] = place.starter
        else:
            ids += [*place.act_ids[: place.split], place.starter, *comment.ids]
            sampled += [(column, index) for column in range(decision + 1, len(ids))]
            if comment.ended and layout.breaks_lead:
                ends.append((len(ids), index))
            ids += [] if comment.ended else layout.break_ids
            expert_ids = place.body_ids
            if place.body_split is not None and place.body_starter is not None:
                barred[len(ids) + place.body_split] = place.body_starter
        lines.append((len(ids), len(ids) + len(expert_ids)))
        ids += expert_ids
    thinks = tuple(comment is not None for comment in comments)
    return AnnotatedRow(tuple(ids), thinks, tuple(decisions), tuple(sampled), tuple(ends), tuple(lines), barred)
