"""The run folder: one study's configuration, provenance, metrics, results and report, each written atomically.

root/STUDY-YYYYmmdd-HHMMSS/
    config.json      the configuration, complete
    manifest.json    command, seeds, start, versions, git revision, machine; one entry more per resumption
    metrics/         one file per unit of work (see `MetricsLogger`); merged into metrics.jsonl at the end
    tensorboard/     the same numbers for TensorBoard
    results/         one file per seed and arm (see `ra3gym.experiments.report.results`)
    checkpoints/
    summary.json, report.html
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from ra3gym.errors import ConfigError, RunFolderError
from ra3gym.files import UNFINISHED, to_json, write_atomic, write_json
from ra3gym.runs.manifest import describe_start

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch.utils.tensorboard import SummaryWriter


def quote_name(name: object) -> str:
    """`name` as one path component that can neither climb out of its folder nor collide with another name."""
    return quote(str(name), safe="@+ ").replace(".", "%2E")


class RunFolder:
    """One run of a study on disk; get one from `create` or `open`.

    `path` is the folder, `config` and `manifest` are the parsed JSON files.
    """

    def __init__(self, path: Path, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.manifest = manifest

    @classmethod
    def create(cls, root: Path, study: str, config: DataclassInstance) -> Self:
        """A new folder below `root`, which is made if missing; an earlier run is never overwritten.

        `ConfigError` when a value of `config` has no JSON form; nothing is created then.
        """
        try:
            config_json = json.loads(to_json(dataclasses.asdict(config)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the configuration of study {study!r} cannot be written as JSON ({error}); "
                "use finite numbers, strings, paths, and lists or dicts of these"
            ) from error
        manifest = {"study": study, "seeds": list(config_json.get("seeds", [])), **describe_start(), "resumed": []}
        path = _new_folder(Path(root), f"{study}-{datetime.now():%Y%m%d-%H%M%S}")
        write_json(path / "config.json", config_json)
        write_json(path / "manifest.json", manifest)
        return cls(path, config_json, manifest)

    @classmethod
    def open(cls, path: Path, expect_study: str | None = None) -> Self:
        """The run at `path`; `RunFolderError` when it is not a run, is damaged, or is of another study."""
        path = Path(path)
        contents = {}
        for name in ("config.json", "manifest.json"):
            file = path / name
            if not file.is_file():
                raise RunFolderError(
                    f"{path} is not a run: it has no {name}. Give the folder that `ra3gym run` printed at its start, "
                    "or start a new run by leaving the folder out"
                )
            try:
                contents[name] = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RunFolderError(f"{file} is damaged ({error}); restore it or start a new run") from error
            if not isinstance(contents[name], dict):
                raise RunFolderError(f"{file} holds no JSON object; restore it or start a new run")
        config, manifest = contents["config.json"], contents["manifest.json"]
        study = manifest.get("study")
        if expect_study is not None and study != expect_study:
            raise RunFolderError(
                f"{path} is a run of {study!r}, not of {expect_study!r}: name that study, or give another folder"
            )
        return cls(path, config, manifest)

    @property
    def study(self) -> str:
        """The study's name."""
        return str(self.manifest["study"])

    @property
    def summary(self) -> dict[str, Any] | None:
        """What `write_summary` stored last, or `None` before the run has ended."""
        file = self.path / "summary.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Store `summary` as `summary.json`; `ValueError` for NaN and infinities."""
        write_json(self.path / "summary.json", summary)

    def record_resume(self) -> None:
        """Append this start (time, command, versions, revision, machine) to the manifest's `resumed` list."""
        self.manifest.setdefault("resumed", []).append(describe_start())
        write_json(self.path / "manifest.json", self.manifest)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the run for this process and its forks; `RunFolderError` when another process holds it.

        The lock dies with its holders, so a killed run can be resumed at once; what they had half written is removed.
        """
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFolderError(
                    f"another process is working on {self.path}; wait for it or end it, then resume again"
                ) from error
            for unfinished in list(self.path.rglob(UNFINISHED)):
                if unfinished.is_dir():
                    shutil.rmtree(unfinished)
                else:
                    unfinished.unlink(missing_ok=True)
            yield

    def merge_metrics(self) -> Path:
        """Write all units' metrics into one `metrics.jsonl`, ordered by seed, arm and stage; the path comes back."""
        lines: list[str] = []
        for folder in sorted((self.path / "metrics").glob("seed-*"), key=lambda path: int(path.name[5:])):
            for file in sorted(folder.glob("*/*.jsonl")):
                lines += _complete_lines(file)
        target = self.path / "metrics.jsonl"
        write_atomic(target, "".join(lines))
        return target


class MetricsLogger:
    """Writes metrics as JSON lines and mirrors them to TensorBoard.

    Every unit (seed, arm, stage) has a file of its own, `metrics/seed-SEED/ARM/STAGE.jsonl`. So processes that
    work on different units need no lock, and a unit that is run again starts by `drop`ping its file. Lines are
    flushed one by one; a line torn by a kill is cut off before the next one is written. JSON lines are the record;
    TensorBoard may lose the last seconds before a kill. Make one logger per process, in that process.
    """

    def __init__(self, run: RunFolder, *, tensorboard: bool = True) -> None:
        self._run = run
        self._tensorboard = tensorboard
        self._repaired: set[Path] = set()
        self._writers: dict[tuple[int, str, str], SummaryWriter] = {}

    def log(self, step: int, *, seed: int, arm: str, stage: str, **values: float | None) -> None:
        """Append one record. A value that is not finite is stored as null: JSON has no NaN."""
        numbers = {name: _finite(value) for name, value in values.items()}
        file = self._file(seed, arm, stage)
        if file not in self._repaired:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_file():
                write_atomic(file, "".join(_complete_lines(file)))
            self._repaired.add(file)
        record = {"seed": seed, "arm": arm, "stage": stage, "step": step, **numbers}
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record, allow_nan=False) + "\n")
        if self._tensorboard:
            writer = self._writer(seed, arm, stage)
            for name, number in numbers.items():
                if number is not None:
                    writer.add_scalar(f"{stage}/{name}", number, step)

    def drop(self, seed: int, arm: str, stage: str, *, from_step: int = 0) -> None:
        """Forget a unit's records from `from_step` on, because the unit is run again from there.

        TensorBoard forgets the whole unit when `from_step` is 0, and else hides what follows `from_step`.
        """
        file = self._file(seed, arm, stage)
        if file.is_file():
            kept = [line for line in _complete_lines(file) if json.loads(line)["step"] < from_step]
            write_atomic(file, "".join(kept))
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

    def _file(self, seed: int, arm: str, stage: str) -> Path:
        return self._run.path / "metrics" / f"seed-{seed}" / quote_name(arm) / f"{quote_name(stage)}.jsonl"

    def _tensorboard_folder(self, seed: int, arm: str, stage: str) -> Path:
        return self._run.path / "tensorboard" / f"seed-{seed}" / quote_name(arm) / quote_name(stage)

    def _writer(self, seed: int, arm: str, stage: str, purge_step: int | None = None) -> SummaryWriter:
        key = (seed, arm, stage)
        if key not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self.close()  # units of one process follow one another: an earlier one's file is complete
            folder = self._tensorboard_folder(*key)
            self._writers[key] = SummaryWriter(str(folder), purge_step=purge_step)
        return self._writers[key]


def _new_folder(root: Path, name: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            attempt += 1
        else:
            return path


def _complete_lines(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return lines[:-1] if lines and not lines[-1].endswith("\n") else lines


def _finite(value: float | None) -> float | None:
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
