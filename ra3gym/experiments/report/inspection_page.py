"""The inspection page: expert traces colored by their latents, in one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.abstractions.latents.dataset import Names
from ra3gym.abstractions.latents.diagnosis import LatentDiagnosis, diagnose
from ra3gym.abstractions.latents.document import Document
from ra3gym.experiments.report.latent_legend import LatentInfo
from ra3gym.files import write_atomic
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests


@dataclass(frozen=True)
class ShownLine:
    """One line of a trace.

    Attributes:
        number: from 1.
        text: without the line break.
        gain: the gain of its latent as text, in nats; empty if it was not measured.
        bar: length of the gain's bar, 0 to 100; negative if the latent makes the line less likely.
    """

    number: int
    text: str
    gain: str
    bar: float


@dataclass(frozen=True)
class ShownSegment:
    """A segment: its latent and its lines."""

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
        """The latents that occur, in ascending order."""
        return sorted({segment.latent.latent for segment in self.segments})


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
    """Write the page; it loads nothing, since styles and script are inside it.

    Args:
        page: the file to write.
        file: the file that the traces were read from, for the title.
        traces: all traces; the figures and the legend are about them.
        names: the prompt words of each latent.
        legend: how each latent is shown.
        shown: the traces on the page.
        latent: selected in the page's filter when it opens.
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
        unused=ranges([z for z in range(len(names)) if z not in legend]),
        diagnosis=_diagnosis(traces, len(names)),
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


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers in short form: "0 to 3, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
