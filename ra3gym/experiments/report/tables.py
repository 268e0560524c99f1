"""The tables that end a study in the terminal; they fit 100 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from ra3gym.experiments.report.comparison import (
    SCORES,
    ArmScore,
    Kind,
    arm_score,
    comparisons,
    format_effect,
    format_score,
    method_arm,
)
from ra3gym.experiments.report.results import UnitResult
from ra3gym.experiments.studies.arms import arm_or_unknown

_HEADINGS = {
    "pass@1": "pass@1\n%",
    "pass@8": "pass@8\n%",
    "rlvr_area": "RLVR\narea",
    "steps_to_threshold": "steps to\nthreshold",
    "pass@1_after": "pass@1 %\nafter RLVR",
    "decisions": "deci-\nsions",
    "tokens": "tokens",
    "seconds": "time",
}
_WITH_INTERVAL: frozenset[Kind] = frozenset({"share", "area", "steps"})
_RELATION_STYLE = {"ahead": "bold green", "behind": "bold red", "level": "", "one seed": "dim"}


def final_table(
    results: Sequence[UnitResult], arms_order: Sequence[str], labels: Mapping[str, str] | None = None
) -> Table:
    """One row per arm: the mean of each score over seeds, with its 95% bootstrap interval beneath.

    `labels` replaces the arms' titles. A score nobody measured has no column; "never" means that no run
    reached the threshold within its budget, "≥" that some did not.
    """
    labels = labels or {}
    seeds = len({result.seed for result in results})
    shown = [name for name in SCORES if any(name in result.scores for result in results)]
    caption = "mean over seeds, 95% bootstrap interval beneath" if seeds > 1 else "one seed: no intervals"
    table = Table(
        title=f"Arms, {seeds} seed{'s' * (seeds != 1)}",
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("arm", no_wrap=True)
    for name in shown:
        table.add_column(_HEADINGS[name], justify="right", no_wrap=True)
    for arm in arms_order:
        info = arm_or_unknown(arm)
        style = "bold" if info.role == "method" else ""
        heading = Text(labels.get(arm, arm), style=style)
        if info.role != arm:
            heading.append(f"\n{info.role}", style="not bold dim")
        cells = [_cell(arm_score(results, arm, name), SCORES[name].kind) for name in shown]
        table.add_row(heading, *cells)
    return table


def paired_table(results: Sequence[UnitResult], labels: Mapping[str, str] | None = None) -> Table:
    """The method minus each other arm, paired by seed; green and red where the 95% interval excludes no effect."""
    labels = labels or {}
    method = method_arm(results)
    name = "" if method is None else labels.get(method, method)
    columns = {
        "pass@1": "pass@1\npoints",
        "pass@1_after": "pass@1 after\nRLVR, points",
        "rlvr_area": "RLVR area",
        "steps_to_threshold": "steps,\nratio",
    }
    found = {score: {c.other.name: c for c in comparisons(results, score)} for score in columns}
    shown = [score for score in columns if found[score]]
    table = Table(
        title=f"{name} against the other arms, paired by seed",
        title_justify="left",
        caption="seeds won beside, 95% bootstrap interval beneath; ≤ ≥: a bound, as some runs never arrived"
        if len({result.seed for result in results}) > 1
        else "one seed: no intervals",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("against", no_wrap=True)
    for score in shown:
        table.add_column(columns[score], justify="right", no_wrap=True)
    for other in dict.fromkeys(arm for score in shown for arm in found[score]):
        cells = []
        for score in shown:
            comparison = found[score].get(other)
            if comparison is None:
                cells.append(Text("–", style="dim"))
                continue
            amount, interval = format_effect(comparison)
            cell = Text(amount, style=_RELATION_STYLE[comparison.relation])
            if interval:
                cell.append(f"  {comparison.effect.wins}/{comparison.effect.n}", style="not bold dim")
                cell.append(f"\n{interval}", style="not bold dim")
            cells.append(cell)
        table.add_row(labels.get(other, other), *cells)
    return table


def _cell(score: ArmScore | None, kind: Kind) -> Text:
    if score is None:
        return Text("–", style="dim")
    if score.never:
        return Text("never", style="dim")
    estimate = score.estimate
    text = Text(("≥ " if score.censored else "") + format_score(estimate.mean, kind))
    if kind in _WITH_INTERVAL and not math.isnan(estimate.low):
        text.append(f"\n{format_score(estimate.low, kind)}–{format_score(estimate.high, kind)}", style="dim")
    return text
