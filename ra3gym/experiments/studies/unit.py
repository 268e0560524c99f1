"""One unit of a study: one arm on one seed, from mid-training to RLVR; `run_unit` is the main job."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import entr

from ra3gym.abstractions.latents import Annotations, LatentPath
from ra3gym.abstractions.latents.words import save_latent_words
from ra3gym.agents import mid_training, rlvr
from ra3gym.agents.mid_training import (
    EMResult,
    Recipe,
)
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.agents.mid_training.rationale import RationaleEStep, RationaleStep
from ra3gym.agents.rlvr import RLVRStep
from ra3gym.experiments.report.results import Curve, UnitResult, with_steps
from ra3gym.experiments.report.statistics import area_under_curve
from ra3gym.experiments.studies.arms import ARMS, Arm
from ra3gym.experiments.studies.config import rlvr_stage
from ra3gym.experiments.studies.evaluation import Evaluation, evaluate, shown_programs
from ra3gym.experiments.studies.reporter import TrainingCourse, UnitReporter
from ra3gym.experiments.studies.seed import Seed, export_traces, unmeasured
from ra3gym.lm import LoadedModel, load, save
from ra3gym.tasks.idioms import Split
from ra3gym.verify import Judge, Limits

_LOOKS = 20


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
                save_latent_words(folder / f"{arm.name}-midtrained", result.annotations.names)
                scores["nmi"] = _agreement(shared, result.annotations)
                scores["e_step_seconds"] = result.annotations.metrics.get("seconds")
                if result.annotations is not shared.inferred:
                    file = folder.parents[1] / "traces" / f"seed-{shared.seed}-{arm.name}.jsonl"
                    export_traces(result.documents, result.annotations, file)
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
    course = TrainingCourse(reporter, "mid-train", budget, measure)
    result = mid_training.run(
        LoadedModel(model, shared.tokenizer),
        shared.traces,
        recipe=recipe,
        e_step=e_step,
        m_step=config.m_step_name,
        config=unmeasured(config.m_step),
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
    """Normalized mutual information of inferred latents with planted labels; a measurement only."""
    planted = OracleEStep().infer(shared.traces, np.random.default_rng(0))
    return normalized_mutual_information(inferred.paths, planted.paths)


def normalized_mutual_information(a: Sequence[LatentPath], b: Sequence[LatentPath]) -> float:
    """Return `I(a; b) / sqrt(H(a) H(b))` over all lines, in [0, 1]; 0 if one of the two has a single label."""
    x = np.concatenate([path.latents for path in a])
    y = np.concatenate([path.latents for path in b])
    joint = np.zeros((x.max() + 1, y.max() + 1))
    np.add.at(joint, (x, y), 1.0 / len(x))
    if len(np.unique(x)) == 1 or len(np.unique(y)) == 1:
        return 0.0
    entropy_x, entropy_y, entropy_xy = (float(entr(p).sum()) for p in (joint.sum(1), joint.sum(0), joint))
    return float((entropy_x + entropy_y - entropy_xy) / np.sqrt(entropy_x * entropy_y))
