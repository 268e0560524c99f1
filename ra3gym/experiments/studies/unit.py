"""One unit of a study: one arm on one seed, from mid-training to RLVR; `run_unit` is the main job."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import entr

from ra3gym.abstractions.latents import Annotations, LatentPath
from ra3gym.abstractions.latents.dataset import AnnotatedTraces, save_annotated
from ra3gym.abstractions.latents.document import Document, DocumentWriter
from ra3gym.agents import mid_training, rlvr
from ra3gym.agents.mid_training import (
    NTP,
    RA3,
    EMConfig,
    EMResult,
    EStep,
    GivenAnnotations,
    MStepConfig,
    MStepProgress,
    NeedsModel,
    Recipe,
    make_e_step,
)
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.agents.mid_training.rationale import RationaleEStep, RationaleStep
from ra3gym.agents.rlvr import RLVRStep
from ra3gym.experiments.report.results import Curve, UnitResult, with_steps
from ra3gym.experiments.report.statistics import area_under_curve
from ra3gym.experiments.studies.arms import ARMS, Arm
from ra3gym.experiments.studies.config import StudyConfig, rlvr_stage
from ra3gym.experiments.studies.evaluation import Evaluation, evaluate, shown_programs
from ra3gym.experiments.studies.progress import ProgressReporter
from ra3gym.lm import LoadedModel, add_latents, load, save, tiny_llama, train_tokenizer
from ra3gym.runs.metrics import MetricsLogger
from ra3gym.tasks import CodeTask, ExpertTrace
from ra3gym.tasks.idioms import LABELS, Split
from ra3gym.verify import Judge, Limits

_LOG_EVERY_TOKENS = 20_000
_LOOKS = 20
_SHOWN_TRACES = 500
"""Number of annotated traces of each seed that are kept, for `ra3gym inspect traces`."""


@dataclass
class UnitReporter:
    """Sends a unit's numbers to the progress display and the metrics, under its seed and arm."""

    seed: int
    arm: str
    progress: ProgressReporter
    metrics: MetricsLogger

    def start(self, stage: str) -> None:
        """Remove what an earlier, unfinished attempt at this stage logged."""
        self.metrics.drop(self.seed, self.arm, stage)

    def report(self, stage: str, step: int, total: int, **values: float) -> None:
        """Report one point of a stage."""
        self.metrics.log(step, seed=self.seed, arm=self.arm, stage=stage, **values)
        self.progress.update(self.seed, self.arm, stage, step, total, **values)


@dataclass
class Seed:
    """What all arms of one seed share.

    Attributes:
        config: the study's.
        seed: its number.
        tokenizer: with latents and the pause token.
        base_model: what every arm starts from.
        traces: the expert traces, planted labels included.
        tasks: the problems of each split.
        inferred: the study's E-step, done once. `None` for an E-step that needs the model: each arm then does its own.
    """

    config: StudyConfig
    seed: int
    tokenizer: Any
    base_model: Any
    traces: list[ExpertTrace]
    tasks: dict[Split, list[CodeTask]]
    inferred: Annotations | None

    def e_step(self, arm: Arm) -> EStep:
        """The E-step of one arm: its own by name, or the study's."""
        if arm.e_step is None and self.inferred is not None:
            return GivenAnnotations(self.inferred)
        return self.config.make_e_step(arm.name)


def prepare_seed(config: StudyConfig, seed: int, folder: Path, reporter: UnitReporter) -> Seed:
    """Make what the arms of a seed share. The base model is kept in `folder` and read from there the next time."""
    domain = config.domain.for_seed(seed)
    traces = domain.traces(config.domain.num_traces)
    base_traces = domain.base_traces(config.domain.num_base_traces)
    tasks: dict[Split, list[CodeTask]] = {split: domain.tasks(split) for split in ("tune", "rl", "eval")}
    inferred = _infer_once(config, seed, traces, reporter)
    base_folder = folder / "base"
    if base_folder.is_dir():
        base = load(base_folder)
    else:
        num_latents = 0 if inferred is None else inferred.num_latents
        base = _new_base_model(config, seed, num_latents, base_traces, traces, reporter)
        save(base.model, base.tokenizer, base_folder)
    shared = Seed(config, seed, base.tokenizer, base.model, traces, tasks, inferred)
    if inferred is not None:
        writer = DocumentWriter(base.tokenizer)
        documents = RA3.documents(writer, traces, inferred, np.random.default_rng([seed, 2]))
        _export(documents, inferred, folder.parents[1] / "traces" / f"seed-{seed}.jsonl")
    return shared


def _infer_once(
    config: StudyConfig, seed: int, traces: Sequence[ExpertTrace], reporter: UnitReporter
) -> Annotations | None:
    """Do the study's E-step for all arms of the seed; `None` if it needs the model that an arm trains."""
    e_step = make_e_step(config.e_step, config.codebook, config.rationale)
    if isinstance(e_step, NeedsModel):
        return None
    reporter.start("e-step")
    reporter.report("e-step", 0, 1)
    visible = traces if isinstance(e_step, OracleEStep) else [trace.without_planted() for trace in traces]
    inferred = e_step.infer(visible, np.random.default_rng([seed, 1]))
    reporter.report("e-step", 1, 1, **inferred.metrics)
    return inferred


def _new_base_model(
    config: StudyConfig,
    seed: int,
    num_latents: int,
    base_traces: Sequence[ExpertTrace],
    traces: Sequence[ExpertTrace],
    reporter: UnitReporter,
) -> LoadedModel:
    """Train a tokenizer on all programs, and a model on the base traces by next-token prediction."""
    tokenizer = train_tokenizer(
        (trace.task.canonical_program for trace in [*base_traces, *traces]), config.model.vocab_size
    )
    # The oracle's planted labels are latents too.
    add_latents(None, tokenizer, max(num_latents, config.codebook.num_latents, len(LABELS)), pause=True)
    model = tiny_llama(
        tokenizer,
        hidden=config.model.hidden,
        layers=config.model.layers,
        heads=config.model.heads,
        max_length=config.model.max_length,
        seed=seed,
    )
    base = LoadedModel(model, tokenizer)
    course = _TrainingCourse(reporter, "pre-train", config.base.tokens)
    mid_training.run(
        base, base_traces, recipe=NTP, config=_unmeasured(config.base), seed=seed, on_progress=course.on_progress
    )
    return base


def _export(documents: Iterable[Document], latents: Annotations, file: Path) -> None:
    """Store the first documents for `ra3gym inspect traces` and other trainers."""
    shown = tuple(islice(documents, _SHOWN_TRACES))
    save_annotated(AnnotatedTraces(shown, latents.names, latents.comments), file)


def _unmeasured(m_step: MStepConfig) -> EMConfig:
    """Mid-training without the loop's own measurements: a study evaluates models on tasks."""
    return EMConfig(m_step, compare_ntp=False, measured_traces=0)


def run_unit(shared: Seed, arm_name: str, folder: Path, reporter: UnitReporter) -> UnitResult:
    """Mid-train, evaluate, post-train with RLVR, evaluate again; models are kept in `folder`."""
    config, arm = shared.config, ARMS[arm_name]
    started = time.perf_counter()
    tokens = 0.0
    scores: dict[str, float | None] = {}
    curves: dict[str, Curve] = {}
    model = copy.deepcopy(shared.base_model)
    with Judge(workers=1, limits=Limits(seconds=1.0, memory_mb=512)) as judge:
        if arm.recipe is not None:
            target = 0.0
            if arm.until is not None:
                goal = load(folder / f"{arm.until}-midtrained").model
                target = _evaluate(shared, goal, judge, split="tune").pass_at[1]
            result, midtrain_curves = _mid_train(shared, arm, arm.recipe, model, judge, reporter, target)
            curves |= midtrain_curves
            tokens = curves["midtrain_loss"][-1][0]
            save(model, shared.tokenizer, folder / f"{arm.name}-midtrained")
            if arm.recipe.shows_inferred and result.annotations is not None:
                scores["nmi"] = _agreement(shared, result.annotations)
                scores["e_step_seconds"] = result.annotations.metrics.get("seconds")
                if result.annotations is not shared.inferred:
                    file = folder.parents[1] / "traces" / f"seed-{shared.seed}-{arm.name}.jsonl"
                    _export(result.documents, result.annotations, file)
        before = _evaluate(shared, model, judge)
        if arm.recipe is not None:
            end = tokens if arm.until is not None else config.m_step.tokens * arm.recipe.budget
            curve = [point for point in curves["midtrain_pass@1"] if point[0] < end]
            curves["midtrain_pass@1"] = [*curve, (end, before.pass_at[1])]
        scores |= {"pass@1": before.pass_at[1], "decisions": before.decisions, "tokens": tokens}
        if 8 in before.pass_at:
            scores["pass@8"] = before.pass_at[8]
        shown = before
        if arm.name in config.rlvr_arms and config.rlvr.steps > 0:
            model, curves["rlvr_reward"], tuning = _post_train(shared, arm.name, model, judge, reporter)
            save(model, shared.tokenizer, folder / f"{arm.name}-rlvr")
            shown = _evaluate(shared, model, judge)
            scores |= tuning
            scores |= {"rlvr_area": area_under_curve(curves["rlvr_reward"]), "pass@1_after": shown.pass_at[1]}
    scores["seconds"] = time.perf_counter() - started
    samples = shown_programs(shown, shared.tasks["eval"], config.evaluation.shown_tasks)
    unit = UnitResult(shared.seed, arm.name, scores, curves, samples)
    return with_steps(unit, config.evaluation.threshold, config.evaluation.threshold_window)


def _mid_train(
    shared: Seed, arm: Arm, recipe: Recipe, model: Any, judge: Judge, reporter: UnitReporter, target: float
) -> tuple[EMResult, dict[str, Curve]]:
    """Run the loop on the arm's recipe, and measure pass@1 at `curve_points` equally spaced numbers of tokens.

    An arm that trains `until` it reaches another arm is evaluated on the tune split twenty times, and stops at
    `target`.
    """
    config = shared.config
    budget, points = round(config.m_step.tokens * recipe.budget), config.evaluation.curve_points
    curve: Curve = []
    looks = 0

    def measure(tokens: int) -> bool:
        nonlocal looks
        # A point's x is the nominal number of tokens, exceeded by less than one batch: all seeds have the same x.
        place = budget * (len(curve) + 1) / points
        if place <= tokens < budget:
            found = _evaluate(shared, model, judge, samples=config.evaluation.curve_samples)
            curve.append((place, found.pass_at[1]))
            model.train()
        if arm.until is None or tokens < budget * (looks + 1) / _LOOKS:
            return False
        looks += 1
        reached = _evaluate(shared, model, judge, split="tune", samples=config.evaluation.curve_samples).pass_at[1]
        model.train()
        return reached >= target

    e_step, updates = shared.e_step(arm), config.rationale.steps
    if isinstance(e_step, RationaleEStep):
        e_step = _reporting(e_step, updates, reporter)
    course = _TrainingCourse(reporter, "mid-train", budget, measure)
    result = mid_training.run(
        LoadedModel(model, shared.tokenizer),
        shared.traces,
        recipe=recipe,
        e_step=e_step,
        m_step=config.m_step_name,
        config=_unmeasured(config.m_step),
        seed=shared.seed,
        on_progress=course.on_progress,
    )
    if isinstance(e_step, RationaleEStep) and result.annotations is not None:
        reporter.report("e-step", updates + 1, updates + 1, **result.annotations.metrics)
    return result, {"midtrain_loss": course.losses, "midtrain_pass@1": curve}


def _reporting(e_step: RationaleEStep, updates: int, reporter: UnitReporter) -> RationaleEStep:
    """Return the E-step with its updates reported; the annotation of the traces counts as one more."""
    reporter.start("e-step")

    def on_step(step: RationaleStep) -> None:
        reporter.report("e-step", step.step, updates + 1, reward=step.reward, think_rate=step.think_rate)

    return replace(e_step, on_step=on_step)


@dataclass
class _TrainingCourse:
    """The loss of one training, reported now and then and kept as a curve over tokens.

    Attributes:
        reporter: where reports go.
        stage: the name they go under.
        budget: tokens of the whole training.
        on_batch: gets the tokens seen after each batch, and says whether to stop.
        losses: the curve.
    """

    reporter: UnitReporter
    stage: str
    budget: int
    on_batch: Callable[[int], bool] = lambda _: False
    losses: Curve = field(default_factory=list)
    _recent: list[float] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.reporter.start(self.stage)

    def on_progress(self, iteration: int, progress: MStepProgress) -> bool:
        """Take in one batch; true stops the training."""
        self._recent.append(progress.loss)
        last = self.losses[-1][0] if self.losses else 0.0
        paused = time.perf_counter()
        stop = self.on_batch(progress.tokens)
        self._since += time.perf_counter() - paused  # evaluations do not count towards the speed
        if stop or progress.tokens - last >= _LOG_EVERY_TOKENS or progress.tokens >= self.budget:
            loss, now = float(np.mean(self._recent)), time.perf_counter()
            self.losses.append((float(progress.tokens), loss))
            shown = self.budget if stop else min(progress.tokens, self.budget)
            speed = (progress.tokens - last) / (now - self._since)
            self.reporter.report(self.stage, shown, self.budget, loss=loss, tokens_per_second=speed)
            self._recent.clear()
            self._since = now
        return stop


def _post_train(
    shared: Seed, arm: str, model: Any, judge: Judge, reporter: UnitReporter
) -> tuple[Any, Curve, dict[str, float]]:
    """Do RLVR on the RL split; return the model, the mean reward of each step, and scores of the rates tried.

    Of several learning rates, the one with the highest pass@1 on the tune split after RLVR is kept.
    """
    rates = shared.config.learning_rates_for(arm)
    if len(rates) == 1:
        return model, _run_rlvr(shared, model, rates[0], judge, reporter, "rlvr"), {}
    runs = {}
    for rate in rates:
        candidate = copy.deepcopy(model)
        curve = _run_rlvr(shared, candidate, rate, judge, reporter, rlvr_stage(rate))
        runs[rate] = (_evaluate(shared, candidate, judge, split="tune").pass_at[1], candidate, curve)
    best = max(rates, key=lambda rate: runs[rate][0])
    scores = {f"tune pass@1, learning rate {rate:g}": passed for rate, (passed, _, _) in runs.items()}
    return runs[best][1], runs[best][2], scores | {"learning_rate": best}


def _run_rlvr(
    shared: Seed, model: Any, learning_rate: float, judge: Judge, reporter: UnitReporter, stage: str
) -> Curve:
    config = replace(shared.config.rlvr, learning_rate=learning_rate)
    reporter.start(stage)
    started = time.perf_counter()
    tokens = 0

    def on_step(step: RLVRStep) -> None:
        nonlocal tokens
        tokens += step.tokens
        speed = tokens / (time.perf_counter() - started)
        reporter.report(stage, step.step, config.steps, reward=step.reward, tokens_per_second=speed)

    result = rlvr.train(
        LoadedModel(model, shared.tokenizer),
        shared.tasks["rl"],
        algorithm=shared.config.rlvr_algorithm,
        config=config,
        reward=judge,
        seed=shared.seed,
        on_step=on_step,
    )
    return [(float(step.step), step.reward) for step in result.history]


def _evaluate(
    shared: Seed, model: Any, judge: Judge, *, samples: int | None = None, split: Split = "eval"
) -> Evaluation:
    """Measure pass@1, and pass@8 if there are enough samples."""
    samples = samples or shared.config.evaluation.samples
    return evaluate(
        model,
        shared.tokenizer,
        shared.tasks[split],
        judge,
        samples=samples,
        ks=[k for k in (1, 8) if k <= samples],
        max_new_tokens=shared.config.rlvr.max_new_tokens,
        seed=shared.seed,
    )


def _agreement(shared: Seed, inferred: Annotations) -> float:
    """Normalised mutual information of inferred latents with planted labels; a measurement only."""
    planted = OracleEStep().infer(shared.traces, np.random.default_rng(0))
    return normalised_mutual_information(inferred.paths, planted.paths)


def normalised_mutual_information(a: Sequence[LatentPath], b: Sequence[LatentPath]) -> float:
    """Return `I(a; b) / sqrt(H(a) H(b))` over all lines, in [0, 1]; 0 if one of the two has a single label."""
    x = np.concatenate([path.latents for path in a])
    y = np.concatenate([path.latents for path in b])
    joint = np.zeros((x.max() + 1, y.max() + 1))
    np.add.at(joint, (x, y), 1.0 / len(x))
    if len(np.unique(x)) == 1 or len(np.unique(y)) == 1:
        return 0.0
    entropy_x, entropy_y, entropy_xy = (float(entr(p).sum()) for p in (joint.sum(1), joint.sum(0), joint))
    return float((entropy_x + entropy_y - entropy_xy) / np.sqrt(entropy_x * entropy_y))
