"""Where the numbers of a running unit go: the progress display, the metrics, and the curves of results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ra3gym.agents.mid_training import MStepProgress
from ra3gym.experiments.report.results import Curve
from ra3gym.experiments.studies.progress import ProgressReporter
from ra3gym.runs.metrics import MetricsLogger

_LOG_EVERY_TOKENS = 20_000


@dataclass
class UnitReporter:
    """Sends a unit's numbers to the progress display and the metrics, under its seed and arm."""

    seed: int
    arm: str
    progress: ProgressReporter
    metrics: MetricsLogger

    def start(self, stage: str) -> None:
        """Remove what an earlier, unfinished attempt at this stage logged."""
        self.metrics.drop(self.seed, self.arm, stage)

    def report(self, stage: str, step: int, total: int, **values: float) -> None:
        """Report one point of a stage."""
        self.metrics.log(step, seed=self.seed, arm=self.arm, stage=stage, **values)
        self.progress.update(self.seed, self.arm, stage, step, total, **values)


@dataclass
class TrainingCourse:
    """The loss of one training, reported now and then and kept as a curve over tokens.

    Attributes:
        reporter: where reports go.
        stage: the name they go under.
        budget: tokens of the whole training.
        on_batch: gets the tokens seen after each batch, and says whether to stop.
        losses: the curve.
    """

    reporter: UnitReporter
    stage: str
    budget: int
    on_batch: Callable[[int], bool] = lambda _: False
    losses: Curve = field(default_factory=list)
    _recent: list[float] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.reporter.start(self.stage)

    def on_progress(self, iteration: int, progress: MStepProgress) -> bool:
        """Take in one batch; true stops the training."""
        self._recent.append(progress.loss)
        last = self.losses[-1][0] if self.losses else 0.0
        paused = time.perf_counter()
        stop = self.on_batch(progress.tokens)
        self._since += time.perf_counter() - paused  # evaluations do not count towards the speed
        if stop or progress.tokens - last >= _LOG_EVERY_TOKENS or progress.tokens >= self.budget:
            loss, now = float(np.mean(self._recent)), time.perf_counter()
            self.losses.append((float(progress.tokens), loss))
            shown = self.budget if stop else min(progress.tokens, self.budget)
            speed = (progress.tokens - last) / (now - self._since)
            self.reporter.report(self.stage, shown, self.budget, loss=loss, tokens_per_second=speed)
            self._recent.clear()
            self._since = now
        return stop
