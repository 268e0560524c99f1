"""The run folder: one run's configuration, provenance, metrics, checkpoints and results, each written atomically.

Studies, RLVR, mid-training and evaluation all keep their runs in one.

root/KIND-YYYYmmdd-HHMMSS/
    config.json      the configuration, complete
    manifest.json    command, seeds, start, versions, git revision, machine; one more entry for each resumption
    metrics.jsonl    one line per step; a study merges it from metrics/ at the end (`ra3gym.runs.metrics`)
    tensorboard/     the same numbers for TensorBoard
    checkpoints/     named folders, each written whole or not at all
    summary.json     written last
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from ra3gym.errors import ConfigError, RunFolderError
from ra3gym.files import remove_unfinished, replacing_folder, reporting_output, to_json, write_json
from ra3gym.runs.manifest import describe_start
from ra3gym.runs.metrics import MetricsFile

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config: TypeAlias = DataclassInstance | Mapping[str, Any]


class RunFolder:
    """One run on disk; get one from `create`, `create_at`, `open` or `resume`.

    Attributes:
        path: the folder.
        kind: what kind of run it is: a study's name, "rlvr", "eval", ...
        config: the parsed config.json.
        manifest: the parsed manifest.json.
        metrics: the run's metrics.jsonl.
    """

    def __init__(self, path: Path, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.manifest = manifest
        self.kind = str(manifest["kind"])
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self._changes: dict[str, Any] = {}

    @classmethod
    def create(cls, root: Path, kind: str, config: Config) -> Self:
        """Make a new folder below `root`, which is made if missing; an earlier run is never overwritten.

        `ConfigError` when a value of `config` has no JSON form; nothing is created in that case.
        """
        described = _described(kind, config)
        return cls._write(_new_folder(Path(root), f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"), kind, described)

    @classmethod
    def create_at(cls, path: Path, kind: str, config: Config) -> Self:
        """Make `path` itself the folder of a new run; other files may lie in it.

        `RunFolderError` when there is a run already; `ConfigError` as for `create`.
        """
        path = Path(path)
        described = _described(kind, config)
        for name in ("config.json", "manifest.json"):
            if (path / name).exists():
                raise RunFolderError(
                    f"{path} holds a run already, see its {name}: give a new folder, or resume the run"
                )
        with reporting_output(path):
            path.mkdir(parents=True, exist_ok=True)
        return cls._write(path, kind, described)

    @classmethod
    def open(cls, path: Path, expect_kind: str | None = None) -> Self:
        """Return the run at `path`; `RunFolderError` when it is not a run, is damaged, or is of another kind."""
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
        manifest = contents["manifest.json"]
        manifest.setdefault("kind", manifest.pop("study", None))  # its name in runs of earlier versions
        if expect_kind is not None and manifest["kind"] != expect_kind:
            raise RunFolderError(
                f"{path} is a run of {manifest['kind']!r}, not of {expect_kind!r}: name that one, or give another "
                "folder"
            )
        return cls(path, contents["config.json"], manifest)

    @classmethod
    def resume(cls, path: Path, kind: str, config: Config, *, may_change: Collection[str] = ()) -> Self:
        """Return the run at `path` to continue it: hold it with `exclusive`, then call `record_resume`.

        Args:
            path: the folder.
            kind: what the run must be.
            config: the configuration to continue under.
            may_change: settings that may differ from those the run was started with, as they do not change what it has
                done; "training.steps" is `steps` inside `training`.

        Raises:
            RunFolderError: not a run of that kind, or other settings differ; the message names them.
        """
        run = cls.open(path, kind)
        differences = _differences(run.config, _described(kind, config))
        run._refuse_changes(differences.keys() - set(may_change), "config.json")
        run.change(differences)
        return run

    def change(self, values: Mapping[str, Any]) -> None:
        """Continue under these settings, by dotted name ("training.steps"); `record_resume` stores them."""
        self._changes = dict(values)
        for name, value in values.items():
            *groups, last = name.split(".")
            place = self.config
            for group in groups:
                place = place[group]
            place[last] = value

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary that `write_summary` stored, or `None` before the run has finished."""
        file = self.path / "summary.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Store `summary` as `summary.json`; `ValueError` for NaN and infinities."""
        write_json(self.path / "summary.json", summary)

    def record_resume(self) -> None:
        """Append this start (time, command, versions, revision, machine) to the manifest's `resumed` list.

        Settings that it changes are named there, and stored in config.json; a run that had finished is to be continued
        then, so its summary goes.
        """
        start = describe_start()
        if self._changes:
            start["changed"] = self._changes
            write_json(self.path / "config.json", self.config)
            (self.path / "summary.json").unlink(missing_ok=True)
        self.manifest.setdefault("resumed", []).append(start)
        self._write_manifest()

    def pin(self, **facts: Any) -> None:
        """Keep in the manifest the facts that follow from the configuration, such as the tasks that were loaded.

        `RunFolderError` names the facts that were different at an earlier start.
        """
        facts = json.loads(to_json(facts))
        pinned = self.manifest.setdefault("pinned", {})
        self._refuse_changes(
            {name for name in facts if name in pinned and pinned[name] != facts[name]}, "manifest.json"
        )
        if facts.keys() - pinned.keys():
            pinned |= facts
            self._write_manifest()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the run for this process and its forks; `RunFolderError` when another process holds it.

        The lock ends with the processes that hold it, so a killed run can be resumed at once. What a killed process
        had half written is removed.
        """
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFolderError(
                    f"another process is working on {self.path}; wait for it or end it, then resume again"
                ) from error
            remove_unfinished(self.path)
            yield

    @property
    def checkpoints(self) -> list[Path]:
        """The folders of the checkpoints, ordered by name."""
        return sorted(path for path in (self.path / "checkpoints").glob("*") if not path.name.startswith("."))

    @contextmanager
    def checkpoint(self, name: str) -> Iterator[Path]:
        """Yield an empty folder; it becomes `checkpoints/NAME` at the end, or is removed after an error."""
        with replacing_folder(self.path / "checkpoints" / name) as folder:
            yield folder

    def keep_checkpoints(self, newest: int) -> None:
        """Remove all checkpoints but the last `newest` (at least 1) by name."""
        for old in self.checkpoints[:-newest]:
            shutil.rmtree(old)

    @classmethod
    def _write(cls, path: Path, kind: str, config: dict[str, Any]) -> Self:
        seeds = config.get("seeds", [config["seed"]] if "seed" in config else [])
        run = cls(path, config, {"kind": kind, "seeds": seeds, **describe_start(), "resumed": []})
        write_json(path / "config.json", config)
        run._write_manifest()
        return run

    def _write_manifest(self) -> None:
        write_json(self.path / "manifest.json", self.manifest)

    def _refuse_changes(self, names: Collection[str], file: str) -> None:
        if names:
            raise RunFolderError(
                f"{self.path} was started with another {', '.join(sorted(names))} (see its {file}): resume with the "
                "same, or give a new folder"
            )


def _described(kind: str, config: Config) -> dict[str, Any]:
    """Return a configuration as JSON holds it."""
    values = dict(config) if isinstance(config, Mapping) else dataclasses.asdict(config)
    try:
        described: dict[str, Any] = json.loads(to_json(values))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the configuration of {kind!r} cannot be written as JSON ({error}); "
            "use finite numbers, strings, paths, and lists or dicts of these"
        ) from error
    return described


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `given` that differ, by dotted name."""
    different: dict[str, Any] = {}
    for name, value in given.items():
        before = stored.get(name)
        if before == value:
            continue
        if isinstance(before, dict) and isinstance(value, dict) and before.keys() == value.keys():
            different |= {f"{name}.{inner}": changed for inner, changed in _differences(before, value).items()}
        else:
            different[name] = value
    return different


def _new_folder(root: Path, name: str) -> Path:
    with reporting_output(root):
        root.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            with reporting_output(path):
                path.mkdir()
        except FileExistsError:
            attempt += 1
        else:
            return path
