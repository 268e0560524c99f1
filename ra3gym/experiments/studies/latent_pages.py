"""The pages of a run's annotated traces, and the legend that the report shares with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ra3gym.abstractions.latents.dataset import AnnotatedTraces, read_annotated
from ra3gym.agents.mid_training.recipe import PLANTED
from ra3gym.experiments.report.inspection_page import write_page
from ra3gym.experiments.report.latent_legend import LatentInfo, describe_latents
from ra3gym.experiments.studies.arms import ARMS
from ra3gym.runs.folder import RunFolder

_SHOWN_TRACES = 200


@dataclass(frozen=True)
class LatentPages:
    """Where annotated traces are shown.

    Attributes:
        legends: for each arm that writes inferred latents, how each latent is shown, by its number.
        pages: the pages, relative to the run folder.
    """

    legends: Mapping[str, Mapping[int, LatentInfo]]
    pages: tuple[Path, ...]


def write_latent_pages(run: RunFolder, seed: int, arms: Iterable[str]) -> LatentPages:
    """Write a page next to each file of annotated traces of a seed, as `ra3gym inspect traces` does.

    An arm with an E-step of its own has its own file. Arms without latents, or with planted ones (other latents of the
    same numbers), have no legend.
    """
    legends: dict[str, Mapping[int, LatentInfo]] = {}
    of_file: dict[Path, Mapping[int, LatentInfo]] = {}
    for name in arms:
        recipe = ARMS[name].recipe if name in ARMS else None
        if recipe is None or recipe.latents in (None, PLANTED):
            continue
        own = run.path / "traces" / f"seed-{seed}-{name}.jsonl"
        file = own if own.is_file() else own.with_name(f"seed-{seed}.jsonl")
        if file not in of_file:
            if not file.is_file():
                continue
            of_file[file] = _write(file, read_annotated(file))
        legends[name] = of_file[file]
    pages = (file.with_suffix(".html").relative_to(run.path) for file, legend in of_file.items() if legend)
    return LatentPages(legends, tuple(pages))


def _write(file: Path, traces: AnnotatedTraces) -> Mapping[int, LatentInfo]:
    documents = traces.documents
    if not all(document.latents for document in documents):
        return {}
    legend = describe_latents(documents, traces.names)
    page = file.with_suffix(".html")
    write_page(page, file, documents, traces.names, legend, documents[:_SHOWN_TRACES])
    return legend
