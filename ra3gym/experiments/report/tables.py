"""The tables that a study prints at its end.

A table that is wider than the terminal loses whole columns, the least important first, and says which: digits are never
cut.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ra3gym.experiments.report.comparison import SCORES, Comparison, StudyResults
from ra3gym.experiments.report.formats import format_arm_score, format_effect
from ra3gym.experiments.report.statistics import FEWEST_FOR_INTERVAL, interval_kind

_HEADINGS = {
    "pass@1": "pass@1\n%",
    "pass@8": "pass@8\n%",
    "rlvr_area": "RLVR\narea",
    "steps_to_threshold": "steps to\nthreshold",
    "pass@1_after": "pass@1 %\nafter RLVR",
    "decisions": "latents/\nprogram",
    "tokens": "tokens",
    "seconds": "time",
}
_PAIRED_HEADINGS = {
    "pass@1": "pass@1\npoints",
    "pass@1_after": "pass@1 after\nRLVR, points",
    "rlvr_area": "RLVR area",
    "steps_to_threshold": "steps,\nratio",
}
_RELATION_STYLE = {"better": "bold green", "worse": "bold red", "level": "", "few seeds": "dim"}


def interval_note(seeds: int) -> str:
    """Return how a table shows certainty for this number of seeds."""
    if seeds == 1:
        return "one seed: no intervals"
    if seeds < FEWEST_FOR_INTERVAL:
        return "mean over seeds; two seeds give no interval: both values below"
    return f"mean over seeds, 95% {interval_kind(seeds)} interval below"


def final_table(results: StudyResults, width: int = 100) -> Table:
    """Return one row per arm: the mean of each score over seeds, with its 95% interval below.

    A score that was not measured has no column. "never" means that no run reached the threshold within its budget, "≥"
    that some did not.

    Args:
        results: what to show.
        width: columns of the terminal.
    """
    return _fitting(lambda scores: _final_table(results, scores), [info.name for info in results.measured], width)


def _final_table(results: StudyResults, scores: Collection[str]) -> Table:
    seeds = len(results.seeds)
    measured = [info for info in results.measured if info.name in scores]
    table = _table(
        f"Arms, {seeds} seed{'s' * (seeds != 1)}",
        interval_note(seeds),
        "arm",
        [_HEADINGS[info.name] for info in measured],
    )
    for arm in results.arms:
        heading = Text(arm.name, style="bold" if arm.role == "method" else "")
        if arm.role != arm.name:
            heading.append(f"\n{arm.role}", style="not bold dim")
        cells = []
        for info in measured:
            mean, interval = format_arm_score(results.score(arm.name, info.name), info.kind)
            cell = Text(mean, style="dim" if mean in ("–", "never") else "")
            if interval and info.kind != "count":
                cell.append(f"\n{interval}", style="dim")
            cells.append(cell)
        table.add_row(heading, *cells)
    return table


def paired_table(results: StudyResults, width: int = 100) -> Table:
    """Return the method minus each other arm, paired by seed; green or red if the 95% interval excludes no effect.

    Arguments as in `final_table`.
    """
    by_score = {score: {c.other.name: c for c in results.comparisons(score)} for score in _PAIRED_HEADINGS}
    measured = [score for score, comparisons in by_score.items() if comparisons]
    return _fitting(lambda scores: _paired_table(results, by_score, scores), measured, width)


def _paired_table(
    results: StudyResults, by_score: Mapping[str, Mapping[str, Comparison]], shown: Sequence[str]
) -> Table:
    table = _table(
        f"{results.method.name if results.method else ''} against the other arms, paired by seed",
        f"{interval_note(len(results.seeds))}\nseeds won on the right; ≤ ≥: a bound, as some runs never arrived"
        if len(results.seeds) > 1
        else interval_note(1),
        "against",
        [_PAIRED_HEADINGS[score] for score in shown],
    )
    for other in dict.fromkeys(arm for score in shown for arm in by_score[score]):
        table.add_row(other, *(_effect(by_score[score].get(other)) for score in shown))
    return table


_LEAST_IMPORTANT = ("seconds", "tokens", "decisions", "pass@8", "rlvr_area", "steps_to_threshold", "pass@1_after")


def _fitting(build: Callable[[list[str]], Table], scores: Sequence[str], width: int) -> Table:
    """Return `build(scores)` without the least important scores that would make it wider than `width`."""
    shown, left_out = list(scores), []
    unlimited = Console(width=10_000)
    for score in _LEAST_IMPORTANT:
        if unlimited.measure(build(shown)).maximum <= width:
            break
        if score in shown and len(shown) > 1:
            shown.remove(score)
            left_out.append(SCORES[score].title)
    table = build(shown)
    if left_out:
        table.caption = f"{table.caption}\nno room for: {', '.join(left_out)} (see report.html)"
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
