"""The report page: one self-contained HTML file, drawn from the contents of the run folder."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ra3gym.abstractions.latents.colors import COLORS
from ra3gym.errors import RunFolderError
from ra3gym.experiments.report.charts import (
    Axis,
    LineChart,
    line_chart,
    linear_axis,
    percent_label,
    ratio_axis,
    signed_label,
)
from ra3gym.experiments.report.comparison import (
    SCORES,
    Comparison,
    StudyResults,
)
from ra3gym.experiments.report.formats import format_arm_score, format_effect, format_score
from ra3gym.experiments.report.latent_legend import LatentInfo
from ra3gym.experiments.report.results import ArmInfo, ProgramSample
from ra3gym.experiments.report.statistics import FEWEST_FOR_INTERVAL, PairedRatio
from ra3gym.experiments.report.tables import interval_note
from ra3gym.experiments.report.verdict import Verdict
from ra3gym.files import write_atomic
from ra3gym.runs.folder import RunFolder

SHOWN_TASKS = 4
_SHOWN_WORDS = 3


@dataclass(frozen=True)
class Bar:
    """A bar with its interval and one dot per seed, all in percent of the axis.

    Attributes:
        width: of the bar.
        low: of the interval; `None` without one.
        high: of the interval.
        dots: place and text of each seed.
        text: the value.
        tip: the value, its interval and the seeds, shown when the reader points at the bar.
    """

    width: float
    low: float | None
    high: float | None
    dots: tuple[tuple[float, str], ...]
    text: str
    tip: str


@dataclass(frozen=True)
class BarRow:
    """One arm's bars: pass@1 after mid-training, and after RLVR if it was measured."""

    arm: ArmInfo
    before: Bar | None
    after: Bar | None


@dataclass(frozen=True)
class ForestRow:
    """One paired comparison: a point and its interval in percent of the axis."""

    comparison: Comparison
    point: float
    low: float | None
    high: float | None
    text: str
    interval: str


@dataclass(frozen=True)
class Forest:
    """The method against every other arm on one score; `neutral` is the position of no effect."""

    title: str
    better: str
    axis: Axis
    neutral: float
    rows: tuple[ForestRow, ...]


@dataclass(frozen=True)
class KeyFigure:
    """A number at the top of the page: the score, the effect with its unit, the other arm, and the certainty."""

    title: str
    amount: str
    unit: str
    against: ArmInfo
    certainty: str
    relation: str


@dataclass(frozen=True)
class Program:
    """A sampled program of one arm; a segment is its latent's label and words, its color, and its text."""

    arm: ArmInfo
    passed: bool
    segments: tuple[tuple[str | None, str | None, str], ...]


@dataclass(frozen=True)
class TaskPrograms:
    """One held-out task, as several arms solved it."""

    task_id: str
    prompt: str
    programs: tuple[Program, ...]


def write_report(
    run: RunFolder,
    results: StudyResults,
    answer: Verdict,
    *,
    legends: Mapping[str, Mapping[int, LatentInfo]] | None = None,
    trace_pages: Sequence[Path] = (),
) -> Path:
    """Draw `report.html` from the run's configuration, manifest and summary, its results and their verdict.

    The page loads nothing: styles, charts and script are inside it. A number `threshold` in `summary.json` is
    marked in the reward chart.

    Args:
        run: the run folder.
        results: its results.
        answer: their verdict.
        legends: by arm, how its latents are called and colored; the pages of the traces show them alike.
        trace_pages: pages of annotated traces to link to, relative to the run folder.

    Returns the page's path; `RunFolderError` when the run has no result yet.
    """
    if not results.units:
        raise RunFolderError(f"{run.path} has no finished result yet; continue it with --resume, then draw the report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("ra3gym.experiments.report").joinpath("report_template.html").read_text(encoding="utf-8")
    path = run.path / "report.html"
    write_atomic(path, environment.from_string(source).render(_page(run, results, answer, legends or {}, trace_pages)))
    return path


def _page(
    run: RunFolder,
    results: StudyResults,
    answer: Verdict,
    legends: Mapping[str, Mapping[int, LatentInfo]],
    trace_pages: Sequence[Path],
) -> dict[str, Any]:
    summary = run.summary or {}
    scores = results.measured
    cells = [
        [format_arm_score(results.score(arm.name, info.name), info.kind) for info in scores] for arm in results.arms
    ]
    forests = [_forest(results, *compared) for compared in _COMPARED]
    return {
        "study": run.kind,
        "run_name": run.path.name,
        "manifest": run.manifest,
        "seeds": results.seeds,
        "verdict": answer,
        "figures": [_figure(comparison) for comparison, _ in answer.evidence],
        "arms": results.arms,
        "scores": scores,
        "interval_note": interval_note(len(results.seeds)),
        "has_intervals": len(results.seeds) >= FEWEST_FOR_INTERVAL,
        "table": list(zip(results.arms, cells, strict=True)),
        "bars": _bars(results),
        "charts": _line_charts(results, summary.get("threshold")),
        "forests": [forest for forest in forests if forest is not None],
        "tasks": _tasks(results, legends),
        "trace_pages": [page.as_posix() for page in trace_pages],
        "data": _data(results),
        "config": _flatten(run.config),
        "versions": run.manifest.get("versions", {}),
        "machine": run.manifest.get("machine", {}),
        "unfinished": run.summary is None,
    }


def _figure(comparison: Comparison) -> KeyFigure:
    amount, interval = format_effect(comparison)
    effect = comparison.effect
    certainty = f"{interval} · better in {effect.wins} of {effect.n} seeds" if interval else "one seed"
    if effect.n == 2:
        certainty = f"two seeds: {interval}"
    titles = {"pass@1": "pass@1 after mid-training", "steps_to_threshold": "RLVR steps to the threshold"}
    return KeyFigure(
        title=titles.get(comparison.score.name, comparison.score.title),
        amount=amount,
        unit="points" if comparison.score.kind == "share" else "",
        against=comparison.other,
        certainty=certainty,
        relation=comparison.relation,
    )


def _bars(results: StudyResults) -> dict[str, Any] | None:
    names = ("pass@1", "pass@1_after")
    values = [value for name in names for unit in results.units if (value := unit.scores.get(name)) is not None]
    if not values:
        return None
    axis = linear_axis(values, percent_label)

    def bar(arm: ArmInfo, name: str) -> Bar | None:
        score = results.score(arm.name, name)
        if score is None:
            return None
        estimate = score.estimate
        has_interval = not math.isnan(estimate.low)
        by_seed = {seed: value for seed, value in results.by_seed(arm.name, name).items() if value is not None}
        seeds = ", ".join(f"{seed}: {format_score(value, 'share')}" for seed, value in sorted(by_seed.items()))
        ends = f"{format_score(estimate.low, 'share')}–{format_score(estimate.high, 'share')}" if has_interval else ""
        interval = f" (95% interval {ends})" if ends else ""
        return Bar(
            width=axis.position(estimate.mean),
            low=axis.position(estimate.low) if has_interval else None,
            high=axis.position(estimate.high) if has_interval else None,
            dots=tuple(
                (axis.position(value), f"{arm.title}, seed {seed}: {format_score(value, 'share')}%")
                for seed, value in by_seed.items()
            ),
            text=format_score(estimate.mean, "share"),
            tip=f"{arm.title}, {SCORES[name].title}: {format_score(estimate.mean, 'share')}%{interval}; seeds {seeds}",
        )

    rows = [BarRow(arm, bar(arm, "pass@1"), bar(arm, "pass@1_after")) for arm in results.arms]
    return {"axis": axis, "rows": rows, "after": any(row.after for row in rows)}


def _line_charts(results: StudyResults, threshold: float | None) -> list[LineChart]:
    arms = {arm.name: arm for arm in results.arms}

    def curves(name: str) -> dict[str, dict[int, list[tuple[float, float]]]]:
        return {
            arm: {unit.seed: unit.curves[name] for unit in results.units if unit.arm == arm and unit.curves.get(name)}
            for arm in arms
        }

    charts = [
        line_chart(curves("midtrain_pass@1"), arms, title="Mid-training: pass@1", x_title="tokens"),
        line_chart(curves("rlvr_reward"), arms, title="RLVR: reward", x_title="RL steps", threshold=threshold),
    ]
    return [chart for chart in charts if chart is not None]


_COMPARED = (
    ("pass@1", "pass@1 after mid-training, points", "{method} better →"),
    ("pass@1_after", "pass@1 after RLVR, points", "{method} better →"),
    ("steps_to_threshold", "RLVR steps to the threshold, ratio", "← {method} faster"),
)
"""Scores with a forest plot, the plot's title, and the direction in which the method is better."""


def _forest(results: StudyResults, score: str, title: str, better: str) -> Forest | None:
    comparisons = results.comparisons(score)
    if not comparisons:
        return None
    scale = 100.0 if SCORES[score].kind == "share" else 1.0
    places = []
    for comparison in comparisons:
        effect = comparison.effect
        middle = effect.ratio if isinstance(effect, PairedRatio) else effect.mean
        ends = None if math.isnan(effect.low) else (scale * effect.low, scale * effect.high)
        places.append((scale * middle, ends))
    numbers = [number for middle, ends in places for number in (middle, *(ends or ()))]
    is_ratio = SCORES[score].kind == "steps"
    axis = ratio_axis(numbers) if is_ratio else linear_axis(numbers, signed_label, most_ticks=5)
    rows = []
    for comparison, (middle, ends) in zip(comparisons, places, strict=True):
        text, interval = format_effect(comparison)
        low, high = (axis.position(ends[0]), axis.position(ends[1])) if ends else (None, None)
        rows.append(ForestRow(comparison, axis.position(middle), low, high, text, interval))
    method = comparisons[0].method.title
    return Forest(title, better.format(method=method), axis, axis.position(1.0 if is_ratio else 0.0), tuple(rows))


def _data(results: StudyResults) -> dict[str, list[list[Any]]]:
    """Return the tables that the page offers as CSV, each with its heading: scores by arm and seed, and curves."""
    scores: list[list[Any]] = [["arm", "seed", "score", "value"]]
    curves: list[list[Any]] = [["arm", "seed", "curve", "x", "y"]]
    for unit in results.units:
        scores += [[unit.arm, unit.seed, name, value] for name, value in unit.scores.items()]
        curves += [[unit.arm, unit.seed, name, x, y] for name, curve in unit.curves.items() for x, y in curve]
    return {"scores": scores, "curves": curves}


def _tasks(results: StudyResults, legends: Mapping[str, Mapping[int, LatentInfo]]) -> list[TaskPrograms]:
    """Return tasks of the first seed that next-token prediction, the strongest other arm and the method all sampled.

    Tasks are sorted by id, regardless of the outcome, so that the choice flatters no arm.
    """
    rival = results.strongest_rival("pass@1_after") or results.strongest_rival("pass@1")
    compared = {"ntp", rival, results.method.name if results.method else None}
    of_first_seed = {unit.arm: unit for unit in results.units if unit.seed == results.seeds[0] and unit.samples}
    shown = [arm for arm in results.arms if arm.name in compared & of_first_seed.keys()]
    columns = [
        (arm, {sample.task_id: sample for sample in of_first_seed[arm.name].samples})
        for arm in shown or [arm for arm in results.arms if arm.name in of_first_seed]
    ]
    if not columns:
        return []
    common = set.intersection(*(set(samples) for _, samples in columns))
    tasks = []
    for task_id in sorted(common)[:SHOWN_TASKS]:
        programs = tuple(_program(arm, samples[task_id], legends.get(arm.name, {})) for arm, samples in columns)
        tasks.append(TaskPrograms(task_id, columns[0][1][task_id].prompt.rstrip("\n"), programs))
    return tasks


def _program(arm: ArmInfo, sample: ProgramSample, legend: Mapping[int, LatentInfo]) -> Program:
    def look(label: str | None) -> tuple[str | None, str | None]:
        """Return a latent's label with its words, and its color; a latent that the legend lacks has its number's."""
        if label is None:
            return None, None
        number = int(label[1:]) if label[1:].isdecimal() else zlib.crc32(label.encode())
        info = legend.get(number)
        if info is None:
            return label, COLORS[number % len(COLORS)]
        return " ".join([label, *info.names[:_SHOWN_WORDS]]), info.color

    segments = tuple((*look(label), text.strip("\n")) for label, text in sample.segments)
    return Program(arm, sample.passed, segments)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            rows.append((prefix + name, ", ".join(str(item) for item in value)))
        else:
            rows.append((prefix + name, str(value)))
    return rows
