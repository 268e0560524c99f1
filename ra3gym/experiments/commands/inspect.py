"""`ra3gym inspect traces`: expert traces colored by their latents, in the terminal and on a self-contained page."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import tyro
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ra3gym.abstractions.latents.colors import DARK_COLORS
from ra3gym.abstractions.latents.dataset import read_annotated
from ra3gym.abstractions.latents.document import Document
from ra3gym.errors import ConfigError, RunFolderError
from ra3gym.experiments.report.inspection_page import ranges, write_page
from ra3gym.experiments.report.latent_legend import LatentInfo, describe_latents
from ra3gym.plugins import import_plugins
from ra3gym.tasks.ids import IdFinder

IN_TERMINAL = 3
"""Number of traces that the terminal shows."""

_SUFFIXES = (".jsonl", ".parquet")
_LABEL_WIDTH, _WORDS_WIDTH, _CODE_WIDTH = 7, 20, 48
"""Columns of the legend: of a latent's label, of its words, and of a line of code, which is folded beyond that."""
_STROKES = {"solid": "┃", "dashed": "╏", "dotted": "┋", "double": "║"}


@dataclass(frozen=True)
class InspectionConfig:
    """Show what a run inferred: its expert traces, colored by their latents.

    Attributes:
        run: the run folder, as `ra3gym run` printed it, or a file of annotated traces (.jsonl, .parquet).
        output: the page to write; by default it is written next to the traces.
        limit: most traces on the page. The legend and the figures are about all traces.
        latent: only traces with this latent, a number.
        task: only traces of this task, by its id.
        plugins: modules to import first.
    """

    run: tyro.conf.Positional[Path]
    output: Path | None = None
    limit: int = 200
    latent: int | None = None
    task: str | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        import_plugins(self.plugins)
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
    """Return the files of annotated traces in a run folder, in the order of their seeds; or `source`, if it is a file.

    `RunFolderError` when there are none.
    """
    if source.is_file():
        return [source]
    own = [file for file in source.glob("traces/*") if file.suffix in _SUFFIXES]
    if own:
        return sorted(own, key=lambda file: (len(file.stem), file.name))
    runs = sorted({str(file.parent.parent) for file in source.glob("**/traces/*") if file.suffix in _SUFFIXES})
    if runs:
        raise RunFolderError(f"{source} holds several runs: give one of {', '.join(runs)}")
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
    """Return the traces of this task that use this latent; `ConfigError` when there are none."""
    chosen = list(traces)
    if task is not None:
        ids = dict.fromkeys(trace.task_id for trace in traces)
        named = IdFinder(ids).find(task)
        chosen = [trace for trace in chosen if trace.task_id == named]
        if not chosen:
            close = get_close_matches(task, ids, n=3) or list(ids)[:3]
            raise ConfigError(f"no trace of {file} is of task {task!r}; it has traces of {', '.join(close)}")
    if latent is not None:
        used = sorted({z for trace in chosen for z in trace.latents})
        chosen = [trace for trace in chosen if latent in trace.latents]
        if not chosen:
            source = f"{file}" if task is None else f"{file}, task {task!r}"
            raise ConfigError(f"no line of {source} is under latent {latent}; these latents are used: {ranges(used)}")
    return chosen


def _print_traces(console: Console, traces: Sequence[Document], legend: Mapping[int, LatentInfo]) -> None:
    """Print the traces, each line after its latent's stroke, then the legend of the latents in them."""
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
    console.print(_legend_table(seen, console.width))
    if more := len(legend) - len(seen):
        console.print(f"{more} other latent{' is' if more == 1 else 's are'} on the page.", highlight=False)


def _legend_table(latents: Sequence[LatentInfo], width: int) -> Table:
    """Return one row for each latent. Figures give way, whole columns at a time, until code has room for its line."""
    figures = {
        "lines": [f"{info.share:.1%}" for info in latents],
        "lines a\nsegment": [f"{info.duration:.1f}" for info in latents],
        "gain,\nnats a line": ["–" if info.gain is None else f"{info.gain:+.2f}" for info in latents],
    }
    least_important = ["lines a\nsegment", "gain,\nnats a line", "lines"]
    code = [printable(info.typical[0] if info.typical else "") for info in latents]
    code_width = min(max(map(cell_len, code), default=0), _CODE_WIDTH)
    while figures:
        widths = [max(map(cell_len, [*heading.split("\n"), *cells])) for heading, cells in figures.items()]
        if width - _LABEL_WIDTH - _WORDS_WIDTH - sum(widths) - 2 * (len(widths) + 3) >= code_width:
            break
        del figures[least_important.pop(0)]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("latent", no_wrap=True)
    table.add_column("called for by", max_width=_WORDS_WIDTH, overflow="fold")
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("most typical line", min_width=min(code_width, width // 2), overflow="fold")
    for row, info in enumerate(latents):
        cells = [column[row] for column in figures.values()]
        table.add_row(_label(info, f"z{info.latent}"), Text(printable(" ".join(info.names))), *cells, Text(code[row]))
    return table


def _label(info: LatentInfo, text: str) -> Text:
    """Return `text` on the latent's color, then its stroke; the code after it has the terminal's own colors."""
    ink = "#ffffff" if info.color in DARK_COLORS else "#000000"
    return Text.assemble((f"{text:>4} ", f"bold {ink} on {info.color}"), (f"{_STROKES[info.stroke]} ", info.color))


def printable(text: str) -> str:
    """Return `text` with visible control characters, so that a trace cannot control the terminal; tabs are expanded."""

    def visible(character: str) -> str:
        if ord(character) < 0x20:
            return chr(0x2400 + ord(character))
        return "�" if unicodedata.category(character) in ("Cc", "Cf") else character

    return "".join(map(visible, text.expandtabs(4)))
