"""One unit of a study: one arm on one seed, from mid-training to RLVR. Reads top to bottom as the main job."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import entr

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.dataset import annotated_dataset, save_annotated
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.agents import rlvr
from ra3gym.agents.mid_training.documents import DocumentWriter, write_documents
from ra3gym.agents.mid_training.e_steps.registry import OracleEStep, make_e_step
from ra3gym.agents.mid_training.m_step import MStepConfig, MStepProgress, distill
from ra3gym.agents.rlvr import RLVRStep
from ra3gym.experiments.report.results import Curve, UnitResult, with_steps
from ra3gym.experiments.report.statistics import area_under_curve
from ra3gym.experiments.studies.arms import ARM_RECIPES, Recipe, arm_documents
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
"""As many annotated traces of each seed are kept, for `ra3gym inspect traces`."""


@dataclass
class UnitReporter:
    """Where a unit's numbers go: the progress display and the metrics, under its seed and arm."""

    seed: int
    arm: str
    progress: ProgressReporter
    metrics: MetricsLogger

    def start(self, stage: str) -> None:
        """Forget what an earlier, unfinished attempt at this stage logged."""
        self.metrics.drop(self.seed, self.arm, stage)

    def report(self, stage: str, step: int, total: int, **values: float) -> None:
        """One point of a stage's course."""
        self.metrics.log(step, seed=self.seed, arm=self.arm, stage=stage, **values)
        self.progress.update(self.seed, self.arm, stage, step, total, **values)


@dataclass
class Seed:
    """What all arms of one seed share: tasks, traces, tokenizer, base model and the E-step's annotations."""

    config: StudyConfig
    seed: int
    tokenizer: Any
    base_model: Any
    traces: list[ExpertTrace]
    tasks: dict[Split, list[CodeTask]]
    inferred: Annotations
    planted: Annotations
    writer: DocumentWriter = field(init=False)

    def __post_init__(self) -> None:
        self.writer = DocumentWriter(self.tokenizer)

    @property
    def agreement(self) -> float:
        """Normalised mutual information of inferred latents with planted labels; a measurement only."""
        return normalised_mutual_information(self.inferred.paths, self.planted.paths)


def prepare_seed(config: StudyConfig, seed: int, folder: Path, reporter: UnitReporter) -> Seed:
    """Make what the arms of a seed share. The base model is kept in `folder` and read from there the next time."""
    domain = config.domain.for_seed(seed)
    traces = domain.traces(config.domain.num_traces)
    base_traces = domain.base_traces(config.domain.num_base_traces)
    tasks: dict[Split, list[CodeTask]] = {split: domain.tasks(split) for split in ("tune", "rl", "eval")}
    rng = np.random.default_rng([seed, 1])
    reporter.start("e-step")
    reporter.report("e-step", 0, 1)
    e_step = make_e_step(config.e_step, config.codebook)
    inferred = e_step.infer([trace.without_planted() for trace in traces], rng)
    reporter.report("e-step", 1, 1, **inferred.metrics)
    save_annotated(
        annotated_dataset(traces[:_SHOWN_TRACES], inferred.first(_SHOWN_TRACES)),
        inferred.names,
        folder.parents[1] / "traces" / f"seed-{seed}.jsonl",
    )
    base_folder = folder / "base"
    if base_folder.is_dir():
        base = load(base_folder)
        model, tokenizer = base.model, base.tokenizer
    else:
        tokenizer = train_tokenizer(
            (trace.task.canonical_program for trace in [*base_traces, *traces]), config.model.vocab_size
        )
        # The oracle's planted labels are latents too.
        add_latents(None, tokenizer, max(inferred.num_latents, config.codebook.num_latents, len(LABELS)), pause=True)
        model = tiny_llama(
            tokenizer,
            hidden=config.model.hidden,
            layers=config.model.layers,
            heads=config.model.heads,
            max_length=config.model.max_length,
            seed=seed,
        )
        documents = write_documents(DocumentWriter(tokenizer), base_traces, rng=np.random.default_rng(seed))
        _train(model, documents, config.base, seed, reporter, "pre-train")
        save(model, tokenizer, base_folder)
    return Seed(config, seed, tokenizer, model, traces, tasks, inferred, OracleEStep().infer(traces, rng))


def run_unit(shared: Seed, arm: str, folder: Path, reporter: UnitReporter) -> UnitResult:
    """Mid-train, evaluate, post-train with RLVR, evaluate again; models are kept in `folder`."""
    config, seed = shared.config, shared.seed
    started = time.perf_counter()
    tokens = 0.0
    scores: dict[str, float | None] = {}
    curves: dict[str, Curve] = {}
    model = copy.deepcopy(shared.base_model)
    recipe = ARM_RECIPES[arm]
    with Judge(workers=1, limits=Limits(seconds=1.0, memory_mb=512)) as judge:
        if recipe is not None:
            target = 0.0
            if recipe.until is not None:
                goal = load(folder / f"{recipe.until}-midtrained").model
                target = _evaluate(shared, goal, judge, split="tune").pass_at[1]
            curves |= _mid_train(shared, recipe, model, judge, reporter, target)
            tokens = curves["midtrain_loss"][-1][0]
            save(model, shared.tokenizer, folder / f"{arm}-midtrained")
            if recipe.latents == "inferred" or recipe.prompts == "inferred":
                scores["nmi"] = shared.agreement
                scores["e_step_seconds"] = shared.inferred.metrics.get("seconds")
        before = _evaluate(shared, model, judge)
        if recipe is not None:
            end = tokens if recipe.until is not None else config.m_step.tokens * recipe.budget
            curve = [point for point in curves["midtrain_pass@1"] if point[0] < end]
            curves["midtrain_pass@1"] = [*curve, (end, before.pass_at[1])]
        scores |= {"pass@1": before.pass_at[1], "decisions": before.decisions, "tokens": tokens}
        if 8 in before.pass_at:
            scores["pass@8"] = before.pass_at[8]
        shown = before
        if arm in config.rlvr_arms and config.rlvr.steps > 0:
            model, curves["rlvr_reward"], tuning = _post_train(shared, arm, model, judge, reporter)
            save(model, shared.tokenizer, folder / f"{arm}-rlvr")
            shown = _evaluate(shared, model, judge)
            scores |= tuning
            scores |= {"rlvr_area": area_under_curve(curves["rlvr_reward"]), "pass@1_after": shown.pass_at[1]}
    scores["seconds"] = time.perf_counter() - started
    samples = shown_programs(shown, shared.tasks["eval"], config.evaluation.shown_tasks)
    result = UnitResult(seed, arm, scores, curves, samples)
    return with_steps(result, config.evaluation.threshold, config.evaluation.threshold_window)


def _mid_train(
    shared: Seed, recipe: Recipe, model: Any, judge: Judge, reporter: UnitReporter, target: float
) -> dict[str, Curve]:
    """Train on the arm's documents; on the way, pass@1 is measured at `curve_points` equally spaced budgets.

    An arm that trains `until` it reaches another looks at the tune split twenty times, and stops at `target`.
    """
    config = shared.config
    rng = np.random.default_rng([shared.seed, 2])
    documents = arm_documents(recipe, shared.writer, shared.traces, shared.inferred, shared.planted, rng)
    budget, points = round(config.m_step.tokens * recipe.budget), config.evaluation.curve_points
    curve: Curve = []
    looks = 0

    def measure(tokens: int) -> bool:
        nonlocal looks
        # The point's place is its nominal budget, passed by less than one batch: so all seeds share their places.
        place = budget * (len(curve) + 1) / points
        if place <= tokens < budget:
            found = _evaluate(shared, model, judge, samples=config.evaluation.curve_samples)
            curve.append((place, found.pass_at[1]))
            model.train()
        if recipe.until is None or tokens < budget * (looks + 1) / _LOOKS:
            return False
        looks += 1
        reached = _evaluate(shared, model, judge, split="tune", samples=config.evaluation.curve_samples).pass_at[1]
        model.train()
        return reached >= target

    m_step = replace(config.m_step, tokens=budget)
    losses = _train(model, documents, m_step, shared.seed, reporter, "mid-train", measure)
    return {"midtrain_loss": losses, "midtrain_pass@1": curve}


def _train(
    model: Any,
    documents: list[list[int]],
    config: MStepConfig,
    seed: int,
    reporter: UnitReporter,
    stage: str,
    on_batch: Callable[[int], bool] = lambda _: False,
) -> Curve:
    """`distill` with its loss reported and returned as a curve over tokens.

    `on_batch` gets the tokens seen and says whether to stop.
    """
    reporter.start(stage)
    losses: Curve = []
    recent: list[float] = []
    since = time.perf_counter()

    def on_progress(progress: MStepProgress) -> bool:
        nonlocal since
        recent.append(progress.loss)
        last = losses[-1][0] if losses else 0.0
        paused = time.perf_counter()
        stop = on_batch(progress.tokens)
        since += time.perf_counter() - paused  # evaluations on the way do not count against the speed
        if stop or progress.tokens - last >= _LOG_EVERY_TOKENS or progress.tokens >= config.tokens:
            loss, now = float(np.mean(recent)), time.perf_counter()
            losses.append((float(progress.tokens), loss))
            shown = config.tokens if stop else min(progress.tokens, config.tokens)
            reporter.report(
                stage, shown, config.tokens, loss=loss, tokens_per_second=(progress.tokens - last) / (now - since)
            )
            recent.clear()
            since = now
        return stop

    distill(model, documents, config, seed=seed, on_progress=on_progress)
    return losses


def _post_train(
    shared: Seed, arm: str, model: Any, judge: Judge, reporter: UnitReporter
) -> tuple[Any, Curve, dict[str, float]]:
    """RLVR on the RL split: the model, the mean reward of each step, and scores of the learning rates tried.

    With several learning rates to try, the one with the highest pass@1 on the tune split afterwards is kept.
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
    """pass@1, and pass@8 where there are samples enough."""
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


def normalised_mutual_information(a: Sequence[LatentPath], b: Sequence[LatentPath]) -> float:
    """`I(a; b) / sqrt(H(a) H(b))` over all lines, in [0, 1]; 0 when either has a single label."""
    x = np.concatenate([path.latents for path in a])
    y = np.concatenate([path.latents for path in b])
    joint = np.zeros((x.max() + 1, y.max() + 1))
    np.add.at(joint, (x, y), 1.0 / len(x))
    entropy_x, entropy_y, entropy_xy = (float(entr(p).sum()) for p in (joint.sum(1), joint.sum(0), joint))
    scale = np.sqrt(entropy_x * entropy_y)
    return float((entropy_x + entropy_y - entropy_xy) / scale) if scale > 0 else 0.0
