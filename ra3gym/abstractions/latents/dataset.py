"""Annotated traces as a data set, on disk as JSON lines or Parquet, for any trainer and for `ra3gym inspect traces`.

Columns, one row for each trace; a row holds exactly what is trained on:

    task_id      string
    prompt       string: the text before the program, the trace's own or written from its latents
    text         string: the prompt, then each line; a latent comes before the line that starts its segment
    lines        strings, line breaks included: `prompt + "".join(lines)` is the program
    input_ids    token ids of `text`, with the tokens that begin and end a text
    loss_mask    one boolean for each token: whether the M-step predicts it
    prompt_span  {start, stop}: tokens `start` to `stop - 1` are the prompt
    latent_spans {start, stop} of each segment's latent
    line_spans   {start, stop} of each line
    latents      one integer for each line, or null in a row without latents
    switches     one boolean for each line: whether it starts a segment; null without latents
    segments     {latent, start, stop}: lines `start` to `stop - 1`
    gains        for each line, what its latent is worth in nats (see `Annotations`), or null

What latents are called is the same for all rows. It is in a file of its own, `FILE.latents.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra3gym.abstractions.latents.document import Document, Span
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import ConfigError, DataError
from ra3gym.files import replacing, write_atomic
from ra3gym.tasks.records import INPUT_ENCODING, Record, read_records

if TYPE_CHECKING:
    from datasets import Dataset

Names = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class AnnotatedTraces:
    """The rows of a data set, and what their latents are called.

    Attributes:
        documents: one for each trace.
        names: for each latent, the prompt words that call for it.
        comments: for each rationale latent, its comment line; `None` for codebook latents.
    """

    documents: tuple[Document, ...]
    names: Names = ()
    comments: tuple[str, ...] | None = None

    def dataset(self) -> Dataset:
        """Return the rows as a `datasets.Dataset` with the columns above."""
        from datasets import Dataset, Features, List, Value

        span = {"start": Value("int64"), "stop": Value("int64")}
        features = Features(
            {
                "task_id": Value("string"),
                "prompt": Value("string"),
                "text": Value("string"),
                "lines": List(Value("string")),
                "input_ids": List(Value("int64")),
                "loss_mask": List(Value("bool")),
                "prompt_span": span,
                "latent_spans": List(span),
                "line_spans": List(span),
                "latents": List(Value("int64")),
                "switches": List(Value("bool")),
                "segments": List({"latent": Value("int64"), **span}),
                "gains": List(Value("float64")),
            }
        )
        rows = [_columns(document) for document in self.documents]
        return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def _columns(document: Document) -> dict[str, Any]:
    path, gains = document.path, document.gains
    return {
        "task_id": document.task_id,
        "prompt": document.prompt,
        "text": document.text,
        "lines": list(document.lines),
        "input_ids": list(document.ids),
        "loss_mask": list(document.loss_mask),
        "prompt_span": _span_columns(document.prompt_tokens),
        "latent_spans": [_span_columns(span) for span in document.latent_tokens],
        "line_spans": [_span_columns(span) for span in document.line_tokens],
        "latents": None if path is None else list(path.latents),
        "switches": None if path is None else list(path.switches),
        "segments": [{"latent": z, "start": start, "stop": stop} for z, start, stop in document.segments],
        "gains": None if gains is None else list(gains),
    }


def _span_columns(span: Span) -> dict[str, int]:
    return {"start": span[0], "stop": span[1]}


def save_annotated(traces: AnnotatedTraces, path: Path) -> None:
    """Write the rows to `path` (.jsonl or .parquet) and what latents are called next to it, each file atomically.

    Missing folders are made; files that exist are replaced.

    Raises:
        ConfigError: another suffix.
    """
    writers: dict[str, Callable[[Dataset, Path], None]] = {".jsonl": _write_lines, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise ConfigError(f"{path}: annotated traces are saved as {' or '.join(writers)}; name the file so")
    path.parent.mkdir(parents=True, exist_ok=True)
    latents = {"names": traces.names, "comments": traces.comments}
    # Names first: where the rows are, the names are too.
    write_atomic(names_file(path), json.dumps(latents, ensure_ascii=False) + "\n")
    with replacing(path) as temporary:
        writers[path.suffix](traces.dataset(), temporary)


def read_annotated(path: Path) -> AnnotatedTraces:
    """Return what `save_annotated` wrote. Without the file of names, the latents that the rows use have empty ones.

    Raises:
        DataError: no such file, or a damaged one: the message names the file, the line and the field.
    """
    documents = tuple(_document(record) for record in _records(path))
    if not documents:
        raise DataError(f"{path} holds no traces")
    used = max((1 + latent for document in documents for latent in document.latents), default=0)
    latents = _read_names(names_file(path))
    if latents is None:
        return AnnotatedTraces(documents, ((),) * used)
    names, comments = latents
    if len(names) < used:
        raise DataError(
            f"{path} uses latent {used - 1}, but {names_file(path)} names {len(names)}: one is of another run"
        )
    return AnnotatedTraces(documents, names, comments)


def names_file(path: Path) -> Path:
    """Return the path of the file that says what the latents in `path` are called."""
    return path.with_name(f"{path.name}.latents.json")


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
    except (OSError, ValueError) as error:  # a truncated Parquet file, for example
        raise DataError(f"{path}: cannot be read: {error}") from None


def _document(record: Record) -> Document:
    lines = record.texts("lines")
    if not lines:
        raise record.wrong("lines", "is empty: a trace has at least one line")
    fields: dict[str, Any] = {
        "task_id": record.text("task_id"),
        "prompt": record.text("prompt"),
        "text": record.text("text"),
        "lines": tuple(lines),
        "ids": tuple(_of_kind(record, "input_ids", int, "an integer")),
        "prompt_tokens": _read_spans(record, "prompt_span", [record.fields.get("prompt_span")])[0],
        "latent_tokens": _read_spans(record, "latent_spans", record.items("latent_spans")),
        "line_tokens": _read_spans(record, "line_spans", record.items("line_spans")),
        "path": _read_path(record, len(lines)),
        "gains": _read_gains(record, len(lines)),
    }
    try:
        document = Document(**fields)
    except DataError as error:
        raise record.wrong("line_spans", str(error)) from None
    columns = _columns(document)
    for name in ("segments", "loss_mask"):
        if record.items(name) != columns[name]:
            raise record.wrong(name, "is not that of the row's latents, switches and tokens")
    return document


def _read_path(record: Record, num_lines: int) -> LatentPath | None:
    if "latents" not in record:
        return None
    latents = _per_line(record, "latents", int, "an integer", num_lines)
    switches = _per_line(record, "switches", bool, "true or false", num_lines)
    if min(latents) < 0:
        raise record.wrong("latents", f"holds {min(latents)}: latents count from 0")
    if not switches[0]:
        raise record.wrong("switches", "starts with false: the first line starts a segment")
    for line in range(1, num_lines):
        if not switches[line] and latents[line] != latents[line - 1]:
            raise record.wrong(
                "switches", f"line {line} goes from latent {latents[line - 1]} to {latents[line]} without a switch"
            )
    return LatentPath(tuple(latents), tuple(switches))


def _read_gains(record: Record, num_lines: int) -> tuple[float, ...] | None:
    if "gains" not in record:
        return None
    gains = tuple(float(gain) for gain in _per_line(record, "gains", (int, float), "a number", num_lines))
    if not all(map(math.isfinite, gains)):
        raise record.wrong("gains", "must be finite")
    return gains


def _read_spans(record: Record, name: str, items: Sequence[Any]) -> tuple[Span, ...]:
    for item in items:
        if not isinstance(item, dict) or not all(type(item.get(key)) is int for key in ("start", "stop")):
            raise record.wrong(name, f"must be integers start and stop, got {item!r}")
    return tuple((item["start"], item["stop"]) for item in items)


def _per_line(record: Record, name: str, kind: type | tuple[type, ...], described: str, num_lines: int) -> list[Any]:
    items = record.items(name)
    if len(items) != num_lines:
        raise record.wrong(name, f"has {len(items)} entries for {num_lines} lines")
    return _of_kind(record, name, kind, described)


def _of_kind(record: Record, name: str, kind: type | tuple[type, ...], described: str) -> list[Any]:
    items = record.items(name)
    for position, item in enumerate(items):
        # Python counts `True` as an integer; in a file, true is not a number.
        if not isinstance(item, kind) or (kind is not bool and isinstance(item, bool)):
            raise record.wrong(name, f"item {position} must be {described}, got {type(item).__name__}")
    return items


def _read_names(file: Path) -> tuple[Names, tuple[str, ...] | None] | None:
    """Return the names and comments in `file`, `None` when there is no such file."""
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding=INPUT_ENCODING))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON: {error}; delete it to continue without names") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: must be a JSON object, got {type(content).__name__}")
    record = Record(str(file), content)
    names = record.items("names")
    for position, words in enumerate(names):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{file}: field 'names': item {position} must be a list of strings")
    comments = tuple(record.texts("comments")) if "comments" in record else None
    return tuple(tuple(words) for words in names), comments
