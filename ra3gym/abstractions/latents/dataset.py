"""Annotated traces as a data set, on disk as JSON lines or Parquet, for any trainer and for `ra3gym inspect traces`.

Columns, one row per trace:

    task_id   string
    prompt    string, as it stood ahead of the trace
    text      string: the prompt, then each line, a latent token ahead of a line that starts a segment
    lines     strings, line breaks included: `prompt + "".join(lines)` is the program
    latents   one integer per line
    switches  one boolean per line: whether it starts a segment
    segments  {latent, start, stop}: lines `start` to `stop - 1`
    gains     nats per line that its latent is worth (see `Annotations`), or null

What latents are called is the same for all rows. It lies beside the file, in `FILE.latents.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import ConfigError, DataError
from ra3gym.files import replacing, write_atomic
from ra3gym.lm import latent_ids
from ra3gym.tasks import ExpertTrace
from ra3gym.tasks.records import Record, read_records

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Names = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class AnnotatedTrace:
    """One row: a trace with its latents. `gains` is `None` where the E-step had no likelihood."""

    task_id: str
    prompt: str
    text: str
    lines: tuple[str, ...]
    path: LatentPath
    gains: tuple[float, ...] | None = None

    @property
    def segments(self) -> tuple[tuple[int, int, int], ...]:
        """(latent, start, stop) of each segment, in order."""
        starts = [n for n, switch in enumerate(self.path.switches) if switch]
        stops = [*starts[1:], len(self.lines)]
        return tuple((self.path.latents[start], start, stop) for start, stop in zip(starts, stops, strict=True))


def annotated_dataset(
    traces: Sequence[ExpertTrace], annotations: Annotations, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> Dataset:
    """Traces and their latents as a `datasets.Dataset` with the columns above.

    Args:
        traces: the corpus that the annotations belong to.
        annotations: latents of every trace.
        tokenizer: checked to know all latents; without one, latents are written as `ra3gym.lm.add_latents` names them.

    Raises:
        ConfigError: the tokenizer knows fewer latents than there are.
        DataError: annotations of other traces; a gain that is not finite; a latent without a place in `names`.
    """
    known = None if tokenizer is None or annotations.comments is not None else len(latent_ids(tokenizer))
    if known is not None and known < annotations.num_latents:
        raise ConfigError(
            f"the annotations use {annotations.num_latents} latents, the tokenizer knows {known}: add the others with "
            "ra3gym.lm.add_latents"
        )
    if len(traces) != len(annotations.paths):
        raise DataError(
            f"{len(annotations.paths)} paths for {len(traces)} traces: give the annotations of these traces"
        )
    rows = []
    for m, (trace, path) in enumerate(zip(traces, annotations.paths, strict=True)):
        name, gains = trace.task.task_id, None if annotations.gains is None else annotations.gains[m]
        if len(path.latents) != len(trace.steps):
            raise DataError(f"trace {name!r} has {len(trace.steps)} lines, its path {len(path.latents)}")
        if not 0 <= min(path.latents) <= max(path.latents) < annotations.num_latents:
            raise DataError(f"trace {name!r} is under a latent outside 0 to {annotations.num_latents - 1}")
        if gains is not None and not all(map(math.isfinite, gains)):
            raise DataError(f"trace {name!r} has a gain that is not finite: {gains}")
        rows.append(
            AnnotatedTrace(
                name, trace.prompt, _text(trace, annotations.marks(m, trace.steps)), trace.steps, path, gains
            )
        )
    return _dataset(rows)


def save_annotated(dataset: Dataset, names: Sequence[Sequence[str]], path: Path) -> None:
    """Write the rows to `path` (.jsonl or .parquet) and the latents' names beside it, each file atomically.

    Missing folders are made; files that exist are replaced.

    Raises:
        ConfigError: another suffix.
    """
    writers: dict[str, Callable[[Path], None]] = {
        ".jsonl": lambda file: _write_lines(dataset, file),
        ".parquet": lambda file: _write_parquet(dataset, file),
    }
    if path.suffix not in writers:
        raise ConfigError(f"{path}: annotated traces are saved as {' or '.join(writers)}; name the file so")
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = json.dumps({"names": [list(words) for words in names]}, ensure_ascii=False) + "\n"
    # Names first: where the rows are, the names are too.
    write_atomic(names_file(path), listed)
    with replacing(path) as fresh:
        writers[path.suffix](fresh)


def load_annotated(path: Path) -> tuple[Dataset, Names]:
    """The data set and the latents' names that `save_annotated` wrote; errors as in `read_annotated`."""
    rows, names = read_annotated(path)
    return _dataset(rows), names


def read_annotated(path: Path) -> tuple[list[AnnotatedTrace], Names]:
    """The rows and the latents' names in a file that `save_annotated` wrote.

    Without the file of names, as many latents as the rows use have empty ones.

    Raises:
        DataError: no such file, or a damaged one: the message names the file, the line and the field.
    """
    rows = [_row(record) for record in _records(path)]
    if not rows:
        raise DataError(f"{path} holds no traces")
    used = 1 + max(max(row.path.latents) for row in rows)
    names = _read_names(names_file(path))
    if names is None:
        return rows, ((),) * used
    if len(names) < used:
        raise DataError(
            f"{path} uses latent {used - 1}, but {names_file(path)} names {len(names)}: one is of another run"
        )
    return rows, names


def names_file(path: Path) -> Path:
    """Where the names of the latents in `path` are."""
    return path.with_name(f"{path.name}.latents.json")


def _text(trace: ExpertTrace, marks: Sequence[str]) -> str:
    return trace.prompt + "".join(mark + step for mark, step in zip(marks, trace.steps, strict=True))


def _dataset(rows: Sequence[AnnotatedTrace]) -> Dataset:
    from datasets import Dataset, Features, List, Value

    features = Features(
        {
            "task_id": Value("string"),
            "prompt": Value("string"),
            "text": Value("string"),
            "lines": List(Value("string")),
            "latents": List(Value("int64")),
            "switches": List(Value("bool")),
            "segments": List({"latent": Value("int64"), "start": Value("int64"), "stop": Value("int64")}),
            "gains": List(Value("float64")),
        }
    )
    columns = {
        "task_id": [row.task_id for row in rows],
        "prompt": [row.prompt for row in rows],
        "text": [row.text for row in rows],
        "lines": [list(row.lines) for row in rows],
        "latents": [list(row.path.latents) for row in rows],
        "switches": [list(row.path.switches) for row in rows],
        "segments": [[{"latent": z, "start": a, "stop": b} for z, a, b in row.segments] for row in rows],
        "gains": [None if row.gains is None else list(row.gains) for row in rows],
    }
    return Dataset.from_dict(columns, features=features)


def _write_lines(dataset: Iterable[dict[str, Any]], file: Path) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as lines:
        for row in dataset:
            lines.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _write_parquet(dataset: Dataset, file: Path) -> None:
    import pyarrow.parquet

    # `Dataset.to_parquet` draws a progress bar, into a study's own.
    pyarrow.parquet.write_table(dataset.with_format("arrow")[:], file)


def _records(path: Path) -> Iterator[Record]:
    try:
        yield from read_records(path)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # a Parquet file cut off behind its head, say
        raise DataError(f"{path}: cannot be read: {error}") from None


def _row(record: Record) -> AnnotatedTrace:
    lines = record.texts("lines")
    latents = _per_line(record, "latents", int, "an integer", len(lines))
    switches = _per_line(record, "switches", bool, "true or false", len(lines))
    if not lines:
        raise record.wrong("lines", "is empty: a trace has at least one line")
    if min(latents) < 0:
        raise record.wrong("latents", f"holds {min(latents)}: latents count from 0")
    if not switches[0]:
        raise record.wrong("switches", "starts with false: the first line starts a segment")
    for n in range(1, len(lines)):
        if not switches[n] and latents[n] != latents[n - 1]:
            raise record.wrong("switches", f"line {n} goes from latent {latents[n - 1]} to {latents[n]} without one")
    gains = None
    if "gains" in record:
        gains = tuple(float(gain) for gain in _per_line(record, "gains", (int, float), "a number", len(lines)))
        if not all(map(math.isfinite, gains)):
            raise record.wrong("gains", "must be finite")
    row = AnnotatedTrace(
        task_id=record.text("task_id"),
        prompt=record.text("prompt"),
        text=record.text("text"),
        lines=tuple(lines),
        path=LatentPath(tuple(latents), tuple(switches)),
        gains=gains,
    )
    stored = [tuple(part.get(key) for key in ("latent", "start", "stop")) for part in _objects(record, "segments")]
    if stored != list(row.segments):
        raise record.wrong("segments", "are not those of the latents and switches")
    return row


def _per_line(record: Record, name: str, kind: type | tuple[type, ...], described: str, count: int) -> list[Any]:
    items = record.items(name)
    if len(items) != count:
        raise record.wrong(name, f"has {len(items)} entries for {count} lines")
    for position, item in enumerate(items):
        # JSON's true is no number, though Python's is.
        if not isinstance(item, kind) or (kind is not bool and isinstance(item, bool)):
            raise record.wrong(name, f"item {position} must be {described}, got {type(item).__name__}")
    return items


def _objects(record: Record, name: str) -> list[dict[str, Any]]:
    items = record.items(name)
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise record.wrong(name, f"item {position} must be an object, got {type(item).__name__}")
    return items


def _read_names(file: Path) -> Names | None:
    """The names in `file`, `None` when there is no such file."""
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON: {error}; delete it to go on without names") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: must be a JSON object, got {type(content).__name__}")
    names = Record(str(file), content).items("names")
    for position, words in enumerate(names):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{file}: field 'names': item {position} must be a list of strings")
    return tuple(tuple(words) for words in names)
