"""Metrics of a run: JSON lines are the record, TensorBoard shows the same numbers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from ra3gym.errors import MissingExtraError
from ra3gym.files import reporting_output, write_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from ra3gym.runs.folder import RunFolder


def quote_name(name: object) -> str:
    """Return `name` as one path component that can neither leave its folder nor collide with another name."""
    return quote(str(name), safe="@+ ").replace(".", "%2E")


class MetricsFile:
    """A file of JSON lines, one record per step.

    Each line is flushed at once. A line torn by a kill is removed before the next one is written.

    Args:
        path: made, with its folder, by the first `append` or `cut`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._repaired = False

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record. A number that is not finite is stored as null: JSON has no NaN."""
        if not self._repaired:
            self._rewrite(self.lines())
        with reporting_output(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: _finite(value) for name, value in record.items()}, allow_nan=False) + "\n")

    def lines(self) -> list[str]:
        """Return the complete lines, with their line breaks; none where the file is missing."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        return lines[:-1] if lines and not lines[-1].endswith("\n") else lines

    def records(self) -> list[dict[str, Any]]:
        """Return the records in order."""
        return [json.loads(line) for line in self.lines()]

    def cut(self, from_step: int) -> None:
        """Remove the records whose "step" is `from_step` or later, because these steps are done again.

        A file that is missing is made, empty.
        """
        self._rewrite([line for line in self.lines() if json.loads(line)["step"] < from_step])

    def _rewrite(self, lines: Iterable[str]) -> None:
        with reporting_output(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, "".join(lines))
        self._repaired = True


class MetricsLogger:
    """Writes a study's metrics as JSON lines and mirrors them to TensorBoard.

    Every unit (seed, arm, stage) has a file of its own, `metrics/seed-SEED/ARM/STAGE.jsonl`. So processes that work on
    different units need no lock, and a unit that is run again starts by `drop`ping its file. TensorBoard may lose the
    last seconds before a kill. Make one logger per process, in that process.

    Args:
        run: the run that the metrics belong to.
        tensorboard: also write TensorBoard's files, which needs the extra of that name; where it is installed when
            `None`.
    """

    def __init__(self, run: RunFolder, *, tensorboard: bool | None = None) -> None:
        self._run = run
        self._tensorboard = find_spec("tensorboard") is not None if tensorboard is None else tensorboard
        self._files: dict[tuple[int, str, str], MetricsFile] = {}
        self._writers: dict[tuple[int, str, str], SummaryWriter] = {}

    def log(self, step: int, *, seed: int, arm: str, stage: str, **values: float | None) -> None:
        """Append one record to a unit's file."""
        numbers = {name: None if value is None else _finite(_plain(value)) for name, value in values.items()}
        self._file(seed, arm, stage).append({"seed": seed, "arm": arm, "stage": stage, "step": step, **numbers})
        if self._tensorboard:
            writer = self._writer(seed, arm, stage)
            for name, number in numbers.items():
                if number is not None:
                    writer.add_scalar(f"{stage}/{name}", number, step)

    def drop(self, seed: int, arm: str, stage: str, *, from_step: int = 0) -> None:
        """Forget a unit's records from `from_step` on, because the unit is run again from there.

        TensorBoard forgets the whole unit when `from_step` is 0; otherwise it hides the steps from `from_step` on.
        """
        file = self._file(seed, arm, stage)
        if file.path.is_file():
            file.cut(from_step)
        if (writer := self._writers.pop((seed, arm, stage), None)) is not None:
            writer.close()
        folder = self._tensorboard_folder(seed, arm, stage)
        if from_step == 0:
            shutil.rmtree(folder, ignore_errors=True)
        elif self._tensorboard:
            self._writer(seed, arm, stage, purge_step=from_step)

    def close(self) -> None:
        """Flush and close TensorBoard's files; the logger may still be used and opens new ones."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _file(self, seed: int, arm: str, stage: str) -> MetricsFile:
        path = self._run.path / "metrics" / f"seed-{seed}" / quote_name(arm) / f"{quote_name(stage)}.jsonl"
        return self._files.setdefault((seed, arm, stage), MetricsFile(path))

    def _tensorboard_folder(self, seed: int, arm: str, stage: str) -> Path:
        return self._run.path / "tensorboard" / f"seed-{seed}" / quote_name(arm) / quote_name(stage)

    def _writer(self, seed: int, arm: str, stage: str, purge_step: int | None = None) -> SummaryWriter:
        unit = (seed, arm, stage)
        if unit not in self._writers:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise MissingExtraError("tensorboard", "tensorboard", "logging to TensorBoard") from None
            self.close()  # units of one process follow one another: the files of earlier ones are complete
            self._writers[unit] = SummaryWriter(str(self._tensorboard_folder(*unit)), purge_step=purge_step)
        return self._writers[unit]


def merge_metrics(run: RunFolder) -> Path:
    """Write all units' metrics into `metrics.jsonl`, ordered by seed, arm and stage; return its path."""
    lines: list[str] = []
    for folder in sorted((run.path / "metrics").glob("seed-*"), key=lambda path: int(path.name[5:])):
        for file in sorted(folder.glob("*/*.jsonl")):
            lines += MetricsFile(file).lines()
    write_atomic(run.metrics.path, "".join(lines))
    return run.metrics.path


def _plain(value: float) -> float:
    """Return a Python number for one of numpy or torch."""
    return value if isinstance(value, int) else float(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
