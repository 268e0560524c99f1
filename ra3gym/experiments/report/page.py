"""The report page: one self-contained HTML file, drawn from what the run folder holds and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

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
    ScoreInfo,
    Verdict,
    arm_score,
    arms_in_order,
    comparisons,
    format_effect,
    format_score,
    method_arm,
    strongest_rival,
)
from ra3gym.experiments.report.results import ProgramSample, UnitResult, score_by_seed
from ra3gym.experiments.report.statistics import PairedRatio
from ra3gym.experiments.studies.arms import Arm, arm_or_unknown
from ra3gym.files import write_atomic
from ra3gym.runs.folder import RunFolder

SHOWN_TASKS = 4
_HUES = (262, 158, 28, 205, 330, 95, 48, 185, 0, 235, 300, 130)


@dataclass(frozen=True)
class Cell:
    """A table's cell: the mean as text, the interval beneath it (empty for one seed)."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar with its interval and one dot per seed, all in percent of the axis; `text` is the value."""

    width: float
    low: float | None
    high: float | None
    dots: tuple[float, ...]
    text: str


@dataclass(frozen=True)
class BarRow:
    """One arm's bars: pass@1 after mid-training, and after RLVR where it was measured."""

    arm: Arm
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
    """The method against every other arm on one score; `neutral` is the place of no effect."""

    title: str
    better: str
    axis: Axis
    neutral: float
    rows: tuple[ForestRow, ...]


@dataclass(frozen=True)
class KeyFigure:
    """A number of the page's head: what is compared, with which arm, how large, how sure."""

    title: str
    amount: str
    unit: str
    against: Arm
    certainty: str
    relation: str


@dataclass(frozen=True)
class Program:
    """A sampled program of one arm; each segment has its latent's label, its hue in degrees, and its text."""

    arm: Arm
    passed: bool
    segments: tuple[tuple[str | None, int | None, str], ...]


@dataclass(frozen=True)
class TaskPrograms:
    """One held-out task, as several arms solved it."""

    task_id: str
    prompt: str
    programs: tuple[Program, ...]


def write_report(run: RunFolder, results: Sequence[UnitResult], answer: Verdict) -> Path:
    """Draw `report.html` from the run's configuration, manifest and summary, its results and their verdict.

    The page loads nothing: styles, charts and script are inside it. A number `threshold` in `summary.json` is
    marked in the reward chart. Returns the page's path; `RunFolderError` when the run has no result yet.
    """
    if not results:
        raise RunFolderError(f"{run.path} has no finished result yet; continue it with --resume, then draw the report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("ra3gym.experiments.report").joinpath("report_template.html").read_text(encoding="utf-8")
    path = run.path / "report.html"
    write_atomic(path, environment.from_string(source).render(_page(run, results, answer)))
    return path


def _page(run: RunFolder, results: Sequence[UnitResult], answer: Verdict) -> dict[str, Any]:
    arms = arms_in_order(results)
    scores = [info for name, info in SCORES.items() if any(name in result.scores for result in results)]
    summary = run.summary or {}
    return {
        "study": run.kind,
        "run_name": run.path.name,
        "manifest": run.manifest,
        "seeds": sorted({result.seed for result in results}),
        "verdict": answer,
        "figures": [_figure(comparison) for comparison, _ in answer.evidence],
        "arms": [arm_or_unknown(arm) for arm in arms],
        "scores": scores,
        "table": [(arm_or_unknown(arm), [_cell(results, arm, info) for info in scores]) for arm in arms],
        "bars": _bars(results, arms),
        "charts": _line_charts(results, arms, summary.get("threshold")),
        "forests": [forest for name in _COMPARED if (forest := _forest(results, name)) is not None],
        "tasks": _tasks(results),
        "config": _flatten(run.config),
        "versions": run.manifest.get("versions", {}),
        "machine": run.manifest.get("machine", {}),
        "unfinished": run.summary is None,
    }


def _figure(comparison: Comparison) -> KeyFigure:
    amount, interval = format_effect(comparison)
    effect = comparison.effect
    sure = f"{interval} · better in {effect.wins} of {effect.n} seeds" if interval else "one seed"
    titles = {"pass@1": "pass@1 after mid-training", "steps_to_threshold": "RLVR steps to the threshold"}
    return KeyFigure(
        title=titles.get(comparison.score.name, comparison.score.title),
        amount=amount,
        unit="points" if comparison.score.kind == "share" else "",
        against=comparison.other,
        certainty=sure,
        relation=comparison.relation,
    )


def _cell(results: Sequence[UnitResult], arm: str, info: ScoreInfo) -> Cell:
    score = arm_score(results, arm, info.name)
    if score is None:
        return Cell("–")
    if score.never:
        return Cell("never")
    estimate = score.estimate
    text = ("≥ " if score.censored else "") + format_score(estimate.mean, info.kind)
    if math.isnan(estimate.low) or info.kind in ("tokens", "seconds"):
        return Cell(text)
    return Cell(text, f"{format_score(estimate.low, info.kind)}–{format_score(estimate.high, info.kind)}")


def _bars(results: Sequence[UnitResult], arms: Sequence[str]) -> dict[str, Any] | None:
    names = ("pass@1", "pass@1_after")
    values = [value for name in names for r in results if (value := r.scores.get(name)) is not None]
    if not values:
        return None
    axis = linear_axis(values, percent_label)

    def bar(arm: str, name: str) -> Bar | None:
        score = arm_score(results, arm, name)
        if score is None:
            return None
        estimate = score.estimate
        interval = not math.isnan(estimate.low)
        return Bar(
            width=axis.position(estimate.mean),
            low=axis.position(estimate.low) if interval else None,
            high=axis.position(estimate.high) if interval else None,
            dots=tuple(axis.position(v) for v in score_by_seed(results, arm, name).values() if v is not None),
            text=format_score(estimate.mean, "share"),
        )

    rows = [BarRow(arm_or_unknown(arm), bar(arm, "pass@1"), bar(arm, "pass@1_after")) for arm in arms]
    return {"axis": axis, "rows": rows, "after": any(row.after for row in rows)}


def _line_charts(results: Sequence[UnitResult], arms: Sequence[str], threshold: float | None) -> list[LineChart]:
    def of(name: str) -> dict[str, list[list[tuple[float, float]]]]:
        return {arm: [r.curves[name] for r in results if r.arm == arm and r.curves.get(name)] for arm in arms}

    infos = {arm: arm_or_unknown(arm) for arm in arms}
    charts = [
        line_chart(of("midtrain_pass@1"), infos, title="Mid-training: pass@1", x_title="tokens"),
        line_chart(of("rlvr_reward"), infos, title="RLVR: reward", x_title="RL steps", threshold=threshold),
    ]
    return [chart for chart in charts if chart is not None]


_COMPARED = {
    "pass@1": ("pass@1 after mid-training, points", "RA3 better →"),
    "pass@1_after": ("pass@1 after RLVR, points", "RA3 better →"),
    "steps_to_threshold": ("RLVR steps to the threshold, ratio", "← RA3 faster"),
}


def _forest(results: Sequence[UnitResult], name: str) -> Forest | None:
    found = comparisons(results, name)
    if not found:
        return None
    title, better = _COMPARED[name]
    scale = 100.0 if SCORES[name].kind == "share" else 1.0
    places = []
    for comparison in found:
        effect = comparison.effect
        middle = effect.ratio if isinstance(effect, PairedRatio) else effect.mean
        ends = None if math.isnan(effect.low) else (scale * effect.low, scale * effect.high)
        places.append((scale * middle, ends))
    numbers = [number for middle, ends in places for number in (middle, *(ends or ()))]
    ratio = SCORES[name].kind == "steps"
    axis = ratio_axis(numbers) if ratio else linear_axis(numbers, signed_label, most_ticks=5)
    rows = []
    for comparison, (middle, ends) in zip(found, places, strict=True):
        text, interval = format_effect(comparison)
        low, high = (axis.position(ends[0]), axis.position(ends[1])) if ends else (None, None)
        rows.append(ForestRow(comparison, axis.position(middle), low, high, text, interval))
    method = found[0].method.title
    return Forest(title, better.replace("RA3", method), axis, axis.position(1.0 if ratio else 0.0), tuple(rows))


def _tasks(results: Sequence[UnitResult]) -> list[TaskPrograms]:
    """Tasks of the first seed that the baseline, the strongest other arm and the method all sampled.

    Tasks come in the order of their ids, whatever happened on them, so that nobody picks the flattering ones.
    """
    rival = strongest_rival(results, "pass@1_after") or strongest_rival(results, "pass@1")
    shown = [arm for arm in dict.fromkeys(["ntp", rival, method_arm(results)]) if arm is not None]
    seed = min(result.seed for result in results)
    by_arm = {r.arm: {s.task_id: s for s in r.samples} for r in results if r.seed == seed and r.samples}
    columns = {arm: by_arm[arm] for arm in shown if arm in by_arm} or by_arm
    if not columns:
        return []
    common = set.intersection(*(set(samples) for samples in columns.values()))
    hues = _hues([sample for samples in columns.values() for sample in samples.values()])
    tasks = []
    for task_id in sorted(common)[:SHOWN_TASKS]:
        programs = tuple(_program(arm, samples[task_id], hues) for arm, samples in columns.items())
        prompt = next(iter(columns.values()))[task_id].prompt
        tasks.append(TaskPrograms(task_id, prompt.rstrip("\n"), programs))
    return tasks


def _program(arm: str, sample: ProgramSample, hues: Mapping[str, int]) -> Program:
    segments = tuple(
        (label, None if label is None else hues[label], text.strip("\n")) for label, text in sample.segments
    )
    return Program(arm_or_unknown(arm), sample.passed, segments)


def _hues(samples: Sequence[ProgramSample]) -> dict[str, int]:
    labels = sorted({label for sample in samples for label, _ in sample.segments if label is not None})
    return {label: _HUES[index % len(_HUES)] for index, label in enumerate(labels)}


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
