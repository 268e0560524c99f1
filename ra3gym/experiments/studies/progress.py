"""Live progress of a study: one row per running unit and one bar for the study, or plain lines without a terminal.

Workers in any process get a `ProgressReporter` and send events through a queue. The process that owns the display
reads the queue in a thread, so a worker never waits for the terminal.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from multiprocessing.queues import SimpleQueue
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Unit = tuple[int, str, str]
"""One piece of work: (seed, arm, stage)."""


@dataclass(frozen=True)
class ProgressEvent:
    """A unit has done `step` of `total` steps; `values` are shown (loss, reward, tokens_per_second, ...)."""

    unit: Unit
    step: int
    total: int
    values: dict[str, float] = field(default_factory=dict)


Message = ProgressEvent | str


@dataclass(frozen=True)
class ProgressReporter:
    """The workers' end: pass it to a process as an argument (of `Process`, or of a pool's initializer)."""

    queue: SimpleQueue[Message]

    def update(self, seed: int, arm: str, stage: str, step: int, total: int, **values: float | None) -> None:
        """Report that a unit has done `step` of `total` steps; `step == total` ends it and removes its row.

        `values` are shown by name, except for `None`; `tokens_per_second` is shown with its unit.
        """
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        self.queue.put(ProgressEvent((seed, arm, stage), step, total, numbers))

    def note(self, text: str) -> None:
        """Print a line of plain text above the display."""
        self.queue.put(text)


class StudyProgress:
    """The display; a context manager. Its `reporter` is what workers send their events to.

    `units` are the units to be done: the study's bar counts them, each weighted by its stage's relative cost in
    `weights` (default 1). Events of other units get a row but do not count. Without a terminal a line is printed when
    a unit starts, every `interval` seconds while it runs, and when it ends.
    """

    def __init__(
        self,
        units: Iterable[Unit],
        *,
        title: str = "study",
        weights: Mapping[str, float] | None = None,
        console: Console | None = None,
        interval: float = 30.0,
        context: BaseContext | None = None,
    ) -> None:
        weights = weights or {}
        self._weight = {unit: weights.get(unit[2], 1.0) for unit in units}
        self._share: dict[Unit, float] = {}
        self._console = console or Console()
        # A queue of the spawn context serves forked processes as well; the reverse does not hold.
        queue: SimpleQueue[Message] = (context or multiprocessing.get_context("spawn")).SimpleQueue()
        self.reporter = ProgressReporter(queue)
        show = _LiveRows if self._console.is_terminal else _PlainLines
        self._view: _LiveRows | _PlainLines = show(self._console, title, interval)
        self._ending = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._drain, name="study-progress", daemon=True)

    @property
    def share(self) -> float:
        """Return the share of the study that is done, in [0, 1]."""
        total = sum(self._weight.values())
        done = sum(self._weight.get(unit, 0.0) * share for unit, share in self._share.items())
        return done / total if total else 1.0

    def __enter__(self) -> Self:
        self._view.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(timeout=5.0)  # a worker killed in the middle of an event leaves a queue that never empties
        self._view.stop()
        if self._error is not None and error is None:
            raise self._error

    def _drain(self) -> None:
        # A flag ends the loop, not a last message: a killed worker may still hold the queue's write lock.
        # The loop continues after an error of the display: a full queue would block the workers.
        queue = self.reporter.queue
        while True:
            if queue.empty():
                if self._ending.wait(0.05) and queue.empty():
                    return
                continue
            message = queue.get()
            if self._error is None:
                try:
                    self._show(message)
                except SystemExit:
                    pass  # rich raises it for a closed pipe; the console stays silent and the study continues
                except Exception as error:
                    self._error = error

    def _show(self, message: Message) -> None:
        if isinstance(message, str):
            self._console.print(message, highlight=False, markup=False)
            return
        self._share[message.unit] = min(1.0, message.step / message.total) if message.total else 1.0
        self._view.show(message, self.share)


class _LiveRows:
    """Rich's live display: a row for each running unit, and the study's bar last."""

    def __init__(self, console: Console, title: str, interval: float) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=18),
            TextColumn("{task.fields[steps]}", justify="right", markup=False),
            TextColumn("{task.fields[values]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
        )
        self._title = title
        self._rows: dict[Unit, TaskID] = {}
        self._overall: TaskID | None = None

    def start(self) -> None:
        self._overall = self._progress.add_task(self._title, total=1.0, steps="0%", values="")
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, event: ProgressEvent, share: float) -> None:
        if event.step >= event.total:
            if (row := self._rows.pop(event.unit, None)) is not None:
                self._progress.remove_task(row)
        else:
            if event.unit not in self._rows:
                self._rows[event.unit] = self._progress.add_task(_name(event.unit), steps="", values="")
            self._progress.update(
                self._rows[event.unit],
                completed=event.step,
                total=event.total,
                steps=f"{event.step}/{event.total}",
                values=_values(event.values),
            )
        if self._overall is not None:
            self._progress.update(self._overall, completed=share, steps=f"{share:.0%}")


class _PlainLines:
    """A line at a unit's start, at its end, and every `interval` seconds between."""

    def __init__(self, console: Console, title: str, interval: float) -> None:
        self._console = console
        self._title = title
        self._interval = interval
        self._printed: dict[Unit, float] = {}

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def show(self, event: ProgressEvent, share: float) -> None:
        now = time.monotonic()
        ended = event.step >= event.total
        last = self._printed.get(event.unit)
        if not ended and last is not None and now - last < self._interval:
            return
        self._printed[event.unit] = now
        parts = (_name(event.unit), f"{event.step}/{event.total}", _values(event.values), f"{self._title} {share:.0%}")
        self._console.print(" · ".join(part for part in parts if part), highlight=False, markup=False, soft_wrap=True)


def _name(unit: Unit) -> str:
    seed, arm, stage = unit
    return f"seed {seed} {arm} {stage}"


def _values(values: Mapping[str, float]) -> str:
    texts = []
    for name, value in values.items():
        if name == "tokens_per_second":
            texts.append(f"{value:,.0f} tok/s")
        else:
            texts.append(f"{name} {value:.3g}")
    return "  ".join(texts)
