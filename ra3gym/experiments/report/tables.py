"""The tables that a study prints at its end; they fit 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from ra3gym.experiments.report.comparison import Comparison, StudyResults
from ra3gym.experiments.report.formats import format_arm_score, format_effect

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
_PAIRED_HEADINGS = {
    "pass@1": "pass@1\npoints",
    "pass@1_after": "pass@1 after\nRLVR, points",
    "rlvr_area": "RLVR area",
    "steps_to_threshold": "steps,\nratio",
}
_RELATION_STYLE = {"ahead": "bold green", "behind": "bold red", "level": "", "one seed": "dim"}


def final_table(results: StudyResults) -> Table:
    """Return one row per arm: the mean of each score over seeds, with its 95% bootstrap interval below.

    A score that was not measured has no column. "never" means that no run reached the threshold within its budget, "≥"
    that some did not.
    """
    seeds = len(results.seeds)
    table = _table(
        f"Arms, {seeds} seed{'s' * (seeds != 1)}",
        "mean over seeds, 95% bootstrap interval below" if seeds > 1 else "one seed: no intervals",
        "arm",
        [_HEADINGS[info.name] for info in results.measured],
    )
    for arm in results.arms:
        heading = Text(arm.name, style="bold" if arm.role == "method" else "")
        if arm.role != arm.name:
            heading.append(f"\n{arm.role}", style="not bold dim")
        cells = []
        for info in results.measured:
            mean, interval = format_arm_score(results.score(arm.name, info.name), info.kind)
            cell = Text(mean, style="dim" if mean in ("–", "never") else "")
            if interval and info.kind != "count":
                cell.append(f"\n{interval}", style="dim")
            cells.append(cell)
        table.add_row(heading, *cells)
    return table


def paired_table(results: StudyResults) -> Table:
    """Return the method minus each other arm, paired by seed; green or red if the 95% interval excludes no effect."""
    by_score = {score: {c.other.name: c for c in results.comparisons(score)} for score in _PAIRED_HEADINGS}
    shown = [score for score, comparisons in by_score.items() if comparisons]
    table = _table(
        f"{results.method.name if results.method else ''} against the other arms, paired by seed",
        "seeds won on the right, 95% bootstrap interval below; ≤ ≥: a bound, as some runs never arrived"
        if len(results.seeds) > 1
        else "one seed: no intervals",
        "against",
        [_PAIRED_HEADINGS[score] for score in shown],
    )
    for other in dict.fromkeys(arm for score in shown for arm in by_score[score]):
        table.add_row(other, *(_effect(by_score[score].get(other)) for score in shown))
    return table


def _effect(comparison: Comparison | None) -> Text:
    if comparison is None:
        return Text("–", style="dim")
    amount, interval = format_effect(comparison)
    cell = Text(amount, style=_RELATION_STYLE[comparison.relation])
    if interval:
        cell.append(f"  {comparison.effect.wins}/{comparison.effect.n}", style="not bold dim")
        cell.append(f"\n{interval}", style="not bold dim")
    return cell


def _table(title: str, caption: str, first: str, others: Sequence[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
