"""`ra3gym report`: print a finished run's tables again, and redraw a study's report page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from ra3gym.agents.rlvr.checkpoint import RUN_KIND
from ra3gym.errors import RunFolderError
from ra3gym.experiments.commands.eval import EVALUATION, show_summary
from ra3gym.experiments.commands.rlvr import show_post_training
from ra3gym.experiments.studies.config import config_from_json
from ra3gym.experiments.studies.e_step import E_STEP_STUDY, show_e_step_study
from ra3gym.experiments.studies.grid import is_grid
from ra3gym.experiments.studies.regimes import show_regimes
from ra3gym.experiments.studies.study import finish
from ra3gym.runs.folder import RunFolder


@dataclass(frozen=True)
class ReportConfig:
    """Show a finished run's tables again, and redraw a study's report page.

    Attributes:
        run: the run folder, as `ra3gym run`, `ra3gym rlvr` or `ra3gym eval` printed it.
        threshold: count RLVR's steps to this mean reward instead of the one that the study was run with.
    """

    run: tyro.conf.Positional[Path]
    threshold: float | None = None


def show_run(config: ReportConfig, console: Console) -> None:
    """Print what a run of any kind came to; a study's summary and page are written anew.

    Raises:
        RunFolderError: not a run, or an evaluation or post-training that has not finished.
    """
    folder = config.run
    run = RunFolder.open(folder)
    if is_grid(run):
        (show_e_step_study if run.kind == E_STEP_STUDY else show_regimes)(run, console)
    elif run.kind == RUN_KIND:
        if run.summary is None:
            raise RunFolderError(f"{folder} has not finished: continue it with ra3gym rlvr --resume {folder}")
        show_post_training(run, console)
    elif run.kind == EVALUATION:
        if run.summary is None:
            raise RunFolderError(
                f"{folder} is an evaluation that did not finish: it has no summary.json. Start a new one"
            )
        show_summary(run.summary, console)
    else:
        finish(run, config_from_json(run.config, folder / "config.json"), console, config.threshold)
