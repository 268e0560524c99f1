"""Where the method helps and where it does not: one study for each share of documented traces and each budget.

Each regime has a run folder of its own below the regimes' run, with its own report, and can be resumed by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ra3gym.errors import ConfigError
from ra3gym.experiments.report.comparison import StudyResults
from ra3gym.experiments.report.formats import format_score
from ra3gym.experiments.report.results import load_results
from ra3gym.experiments.report.tables import interval_note
from ra3gym.experiments.studies.arms import ARMS
from ra3gym.experiments.studies.config import StudyConfig, typed_config
from ra3gym.experiments.studies.grid import Cell, effect_text, is_grid, open_cell, percent_text, run_cells
from ra3gym.experiments.studies.study import resume_study
from ra3gym.runs.folder import RunFolder

REGIMES = "regimes"
_METHOD, _SCORE = "ra3", "pass@1"


@dataclass(frozen=True)
class RegimesConfig:
    """A grid of regimes.

    Attributes:
        study: what runs in each regime, with another share of documented traces and another budget.
        documented: shares of documented traces.
        budgets: mid-training tokens, as multiples of the study's.
    """

    study: StudyConfig = field(
        default_factory=lambda: StudyConfig(
            seeds=(100, 101, 102, 103, 104), arms=("ntp", "pseudo", _METHOD), rlvr_arms=()
        )
    )
    documented: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)
    budgets: tuple[float, ...] = (1.0, 2.0)

    def __post_init__(self) -> None:
        if not self.documented or not self.budgets or min(self.budgets) <= 0:
            raise ConfigError(
                f"documented={self.documented}, budgets={self.budgets}: give at least one of each, budgets above 0"
            )
        self.cells()  # a value out of range is an error here, before a run folder exists

    def cells(self) -> list[Cell]:
        """Return one study for each share of documented traces and each budget."""
        return [
            Cell(
                f"documented-{documented:g}-tokens-{budget:g}x",
                replace(
                    self.study,
                    domain=replace(self.study.domain, documented=documented),
                    m_step=replace(self.study.m_step, tokens=round(self.study.m_step.tokens * budget)),
                ),
            )
            for documented in self.documented
            for budget in self.budgets
        ]


def start_regimes(name: str, config: RegimesConfig, console: Console) -> RunFolder:
    """Run all regimes, one after the other, in a new run folder."""
    return _run(RunFolder.create(config.study.output, name, config), config, console)


def resume_regimes(name: str, folder: Path, console: Console) -> RunFolder:
    """Continue a run of regimes, or a single regime; what is finished is kept."""
    run = RunFolder.open(folder, name)
    if not is_grid(run):
        return resume_study(name, folder, console)
    run.record_resume()
    return _run(run, typed_config(RegimesConfig, run.config, run.path / "config.json"), console)


def show_regimes(run: RunFolder, console: Console) -> None:
    """Print the table of a run of regimes, and write its `summary.json`."""
    config = typed_config(RegimesConfig, run.config, run.path / "config.json")
    arms = config.study.arms
    table = Table(title="pass@1 % after mid-training, by regime", title_justify="left", box=box.SIMPLE_HEAD)
    others = [arm for arm in arms if arm != _METHOD]
    differences = [f"{_METHOD} − {arm}, points" for arm in others] if _METHOD in arms else []
    for column in ("documented", "tokens", *(ARMS[arm].title for arm in arms), *differences):
        table.add_column(column, justify="right")
    rows: list[dict[str, Any]] = []
    for cell in config.cells():
        documented, tokens = cell.study.domain.documented, cell.study.m_step.tokens
        started = open_cell(run, cell)
        results = StudyResults([] if started is None else load_results(started))
        table.add_row(
            f"{documented:g}",
            format_score(tokens, "tokens"),
            *(percent_text(results, arm, _SCORE) for arm in arms),
            *(effect_text(results.compare(_METHOD, arm, _SCORE)) for arm in others if differences),
        )
        summary = None if started is None else started.summary
        rows.append(
            {
                "documented": documented,
                "tokens": tokens,
                "run": None if started is None else str(started.path.relative_to(run.path)),
                "arms": None if summary is None else summary["arms"],
                "comparisons": None if summary is None else summary["comparisons"],
            }
        )
    run.write_summary({"regimes": rows})
    console.print(table)
    console.print(f"{interval_note(len(config.study.seeds))}; differences paired by seed", highlight=False)


def _run(run: RunFolder, config: RegimesConfig, console: Console) -> RunFolder:
    console.print(f"Run folder: {run.path}", highlight=False, soft_wrap=True)
    with run.exclusive():
        run_cells(run, config.cells(), console)
    show_regimes(run, console)
    return run
