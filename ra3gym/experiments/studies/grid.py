"""Grids of studies: each cell has its own run folder below the grid's, with its own report, and can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from ra3gym.experiments.report.comparison import Comparison, StudyResults
from ra3gym.experiments.report.formats import format_arm_score, format_effect
from ra3gym.experiments.studies.config import StudyConfig
from ra3gym.experiments.studies.study import resume_study, start_study
from ra3gym.runs.folder import RunFolder


@dataclass(frozen=True)
class Cell:
    """One study of a grid.

    Attributes:
        place: its folder below the grid's run.
        study: its configuration.
    """

    place: str
    study: StudyConfig


def run_cells(run: RunFolder, cells: Sequence[Cell], console: Console) -> None:
    """Run the cells one after the other; finished ones are kept, a started one continues."""
    for cell in cells:
        started = open_cell(run, cell)
        if started is None:
            start_study(run.kind, replace(cell.study, output=run.path / cell.place), console)
        elif started.summary is None:
            resume_study(run.kind, started.path, console)


def open_cell(run: RunFolder, cell: Cell) -> RunFolder | None:
    """Return the cell's own run folder; `None` if it has not been started."""
    started = sorted((run.path / cell.place).glob("*/config.json"))
    return RunFolder.open(started[0].parent) if started else None


def is_grid(run: RunFolder) -> bool:
    """Return whether this is the run of a whole grid, whose configuration holds a study's, rather than of one cell."""
    return "study" in run.config


def percent_text(results: StudyResults, arm: str, score: str) -> str:
    """Format a share in percent with its interval below, or a dash if nothing was measured."""
    found = results.score(arm, score)
    if found is None:
        return "–"
    mean, interval = format_arm_score(found, "share")
    return f"{mean}\n{interval}" if interval else mean


def effect_text(comparison: Comparison | None) -> str:
    """Format a paired effect with its interval below, or a dash."""
    if comparison is None:
        return "–"
    effect, interval = format_effect(comparison)
    return f"{effect}\n{interval}" if interval else effect
