"""`ra3gym run` and `ra3gym study`: the studies by name, with their default configurations, and how each is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ra3gym.experiments.studies.config import STUDIES, STUDY_DESCRIPTIONS
from ra3gym.experiments.studies.e_step import E_STEP_STUDY, EStepStudyConfig, resume_e_step_study, start_e_step_study
from ra3gym.experiments.studies.regimes import REGIMES, RegimesConfig, resume_regimes, start_regimes
from ra3gym.experiments.studies.study import resume_study, start_study


@dataclass(frozen=True)
class NamedStudy:
    """A study that the command line runs.

    Attributes:
        description: one line for the list of studies.
        default: the configuration that options change; its type gives the options.
        start: called with the study's name, a configuration and the console; runs it in a new run folder.
        resume: called with the study's name, a run folder and the console; continues that run.
    """

    description: str
    default: Any
    start: Callable[[str, Any, Console], object]
    resume: Callable[[str, Path, Console], object]


RUN_STUDIES: dict[str, NamedStudy] = {
    **{
        name: NamedStudy(STUDY_DESCRIPTIONS[name], config, start_study, resume_study)
        for name, config in STUDIES.items()
    },
    REGIMES: NamedStudy(
        "where RA3 helps: shares of documented traces, token budgets", RegimesConfig(), start_regimes, resume_regimes
    ),
}
"""What `ra3gym run` takes: every arm on every seed."""

PART_STUDIES: dict[str, NamedStudy] = {
    E_STEP_STUDY: NamedStudy(
        "E-steps: the gap to the exact posterior, and pass@1 after the M-step",
        EStepStudyConfig(),
        start_e_step_study,
        resume_e_step_study,
    ),
}
"""What `ra3gym study` takes: the variants of one part of the method, side by side."""
