"""`ra3gym inspect traces`: expert traces coloured by their latents, in the terminal and on a self-contained page."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

import numpy as np
import tyro
from jinja2 import Environment, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ra3gym.abstractions.latents.colours import DARK_COLOURS
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.abstractions.latents.dataset import Names, read_annotated
from ra3gym.abstractions.latents.diagnosis import LatentDiagnosis, diagnose
from ra3gym.abstractions.latents.document import Document
from ra3gym.errors import ConfigError, RunFolderError
from ra3gym.experiments.report.latent_legend import LatentInfo, describe_latents
from ra3gym.files import write_atomic
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests

IN_TERMINAL = 3
"""Traces that the terminal shows."""

_SUFFIXES = (".jsonl", ".parquet")
_STROKES = {"solid": "┃", "dashed": "╏", "dotted": "┋", "double": "║"}


@dataclass(frozen=True)
class ShownLine:
    """One line of a trace: its number, from 1, its text, and what its latent is worth, as text and in percent."""

    number: int
    text: str
    gain: str
    bar: float
    """Length of the gain's bar, 0 to 100; negative for a line that the latent makes less likely."""


@dataclass(frozen=True)
class ShownSegment:
    """A segment: its latent, and its lines."""

    latent: LatentInfo
    lines: tuple[ShownLine, ...]


@dataclass(frozen=True)
class ShownTrace:
    """A trace as the page shows it."""

    task_id: str
    prompt: str
    segments: tuple[ShownSegment, ...]

    @property
    def latents(self) -> list[int]:
        """Those that occur, in ascending order."""
        return sorted({segment.latent.latent for segment in self.segments})


@dataclass(frozen=True)
class InspectionConfig:
    """Show what a run inferred: its expert traces, colored by their latents.

    Attributes:
        run: the run folder, as `ra3gym run` printed it, or a file of annotated traces (.jsonl, .parquet).
        output: the page to write; by default it is written next to the traces.
        limit: most traces on the page. What the page says of latents covers all traces.
        latent: only traces with this latent, a number.
        task: only traces of this task, by its id.
    """

    run: tyro.conf.Positional[Path]
    output: Path | None = None
    limit: int = 200
    latent: int | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"limit={self.limit}: show at least 1 trace")


def inspect_traces(config: InspectionConfig, console: Console) -> Path:
    """Print the first few annotated traces, write the page, and return the page's path.

    Raises:
        RunFolderError: not a run, or a run without annotated traces.
        DataError: a damaged file.
        ConfigError: a latent or task that no trace has.
    """
    file, *others = trace_files(config.run)
    annotated = read_annotated(file)
    traces, names = annotated.documents, annotated.names
    if not any(trace.latents for trace in traces):
        raise ConfigError(f"{file} was written without latents, as for next-token prediction: give another file")
    legend = describe_latents(traces, names)
    chosen = select(traces, file, latent=config.latent, task=config.task)
    shown = chosen[: config.limit]
    page = config.output or file.with_name(f"{file.stem}.html")
    write_page(page, file, traces, names, legend, shown, latent=config.latent)
    _print_traces(console, chosen[:IN_TERMINAL], legend)
    lines = [f"Page, with {len(shown):,} of {len(traces):,} traces: {page}"]
    if others:
        lines.insert(0, f"Other seeds have their own files; name one to see it: {', '.join(map(str, others))}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return page


def trace_files(source: Path) -> list[Path]:
    """The files of annotated traces at `source`, a run folder or such a file, in the order of their seeds.

    `RunFolderError` when there are none.
    """
    if source.is_file():
        return [source]
    found = [file for file in source.glob("traces/*") if file.suffix in _SUFFIXES]
    if found:
        return sorted(found, key=lambda file: (len(file.stem), file.name))
    inside = sorted(str(file.parent.parent) for file in source.glob("**/traces/*") if file.suffix in _SUFFIXES)
    if inside:
        raise RunFolderError(f"{source} holds several runs: give one of {', '.join(dict.fromkeys(inside))}")
    if not (source / "config.json").is_file():
        raise RunFolderError(
            f"{source} is neither a run nor a file of annotated traces: give the folder that `ra3gym run` printed at "
            "its start, or a .jsonl or .parquet file that save_annotated wrote"
        )
    raise RunFolderError(
        f"{source} has no annotated traces (traces/*.jsonl): `ra3gym run STUDY` writes them with each seed's E-step: "
        "start a new run, or give a file that save_annotated wrote"
    )


def select(
    traces: Sequence[Document], file: Path, *, latent: int | None = None, task: str | None = None
) -> list[Document]:
    """The traces with this latent and of this task; `ConfigError` when no trace of `file` has the one or the other."""
    chosen = list(traces)
    if task is not None:
        chosen = [trace for trace in chosen if trace.task_id == task]
        if not chosen:
            ids = dict.fromkeys(trace.task_id for trace in traces)
            close = get_close_matches(task, ids, n=3) or list(ids)[:3]
            raise ConfigError(f"no trace of {file} is of task {task!r}; there are, for instance, {', '.join(close)}")
    if latent is not None:
        used = sorted({z for trace in chosen for z in trace.latents})
        chosen = [trace for trace in chosen if latent in trace.latents]
        if not chosen:
            where = f"{file}" if task is None else f"{file}, task {task!r}"
            raise ConfigError(f"no line of {where} is under latent {latent}; used are {_ranges(used)}")
    return chosen


def write_page(
    page: Path,
    file: Path,
    traces: Sequence[Document],
    names: Names,
    legend: Mapping[int, LatentInfo],
    shown: Sequence[Document],
    *,
    latent: int | None = None,
) -> None:
    """Write the page of `shown`; everything it says of latents is over all `traces`, which came from `file`.

    The page loads nothing: styles and script are inside it. `latent` is chosen in its filter from the start.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("ra3gym.experiments.report").joinpath("inspection_template.html").read_text(encoding="utf-8")
    gains = [gain for trace in traces for gain in trace.gains or ()]
    largest = float(np.quantile(np.abs(gains), 0.95)) if gains else 0.0
    page.parent.mkdir(parents=True, exist_ok=True)
    html = environment.from_string(template).render(
        origin=" · ".join([*file.parts[-3:-2], file.stem]),
        legend=list(legend.values()),
        most=max(info.share for info in legend.values()),
        unused=_ranges([z for z in range(len(names)) if z not in legend]),
        found=_diagnosis(traces, len(names)),
        gain=float(np.mean(gains)) if gains else None,
        num_traces=len(traces),
        num_lines=sum(len(trace.lines) for trace in traces),
        traces=[_shown(trace, legend, largest) for trace in shown],
        chosen=[] if latent is None else [latent],
    )
    write_atomic(page, html)


def _diagnosis(traces: Sequence[Document], num_latents: int) -> LatentDiagnosis:
    lines = [ExpertTrace(CodeTask(t.task_id, t.prompt, "", FunctionTests((), ())), t.lines) for t in traces]
    paths = [trace.path for trace in traces if trace.path is not None]
    return diagnose(encode_traces(lines), paths, num_latents, np.random.default_rng(0))


def _shown(trace: Document, legend: Mapping[int, LatentInfo], largest: float) -> ShownTrace:
    def line(n: int) -> ShownLine:
        gain = None if trace.gains is None else trace.gains[n]
        share = 0.0 if gain is None or largest == 0.0 else max(-1.0, min(1.0, gain / largest))
        text = trace.lines[n].rstrip("\r\n")
        return ShownLine(n + 1, text, "" if gain is None else f"{gain:+.2f}", 100.0 * share)

    segments = tuple(
        ShownSegment(legend[z], tuple(line(n) for n in range(start, stop))) for z, start, stop in trace.segments
    )
    return ShownTrace(trace.task_id, trace.prompt.rstrip("\n"), segments)


def _print_traces(console: Console, traces: Sequence[Document], legend: Mapping[int, LatentInfo]) -> None:
    """The traces, each line behind its latent's stroke, and then the legend of the latents that occur in them."""
    for trace in traces:
        console.print(Text(printable(trace.task_id), "bold"))
        for line in trace.prompt.splitlines():
            console.print(Text("       " + printable(line), "dim"))
        for z, start, stop in trace.segments:
            info = legend[z]
            for n in range(start, stop):
                shown = _label(info, f"z{z}" if n == start else "")
                console.print(shown.append(printable(trace.lines[n].rstrip("\r\n"))))
        console.print()
    seen = [info for z, info in legend.items() if any(z in trace.latents for trace in traces)]
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("latent", "called for by", "lines", "lines a segment", "gain, nats a line", "most typical line"):
        right = heading not in ("latent", "called for by", "most typical line")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for info in seen:
        table.add_row(
            _label(info, f"z{info.latent}"),
            Text(printable(" ".join(info.names))),
            f"{info.share:.1%}",
            f"{info.duration:.1f}",
            "–" if info.gain is None else f"{info.gain:+.2f}",
            Text(printable(info.typical[0] if info.typical else "")),
        )
    console.print(table)
    if more := len(legend) - len(seen):
        console.print(f"{more} other latent{' is' if more == 1 else 's are'} on the page.", highlight=False)


def _label(info: LatentInfo, text: str) -> Text:
    """`text` on the latent's colour, then its stroke; code beside it keeps the terminal's own colours, to be read."""
    ink = "#ffffff" if info.colour in DARK_COLOURS else "#000000"
    return Text.assemble((f"{text:>4} ", f"bold {ink} on {info.colour}"), (f"{_STROKES[info.stroke]} ", info.colour))


def printable(text: str) -> str:
    """`text` with control characters made visible, so that a trace cannot steer the terminal; tabs are widened."""
    return "".join(
        chr(0x2400 + ord(mark)) if ord(mark) < 0x20 else "�" if unicodedata.category(mark) in ("Cc", "Cf") else mark
        for mark in text.expandtabs(4)
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: `0 to 3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
