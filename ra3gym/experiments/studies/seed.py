"""What all arms of one seed of a study share: domain, tokenizer, base model and the study's E-step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ra3gym.abstractions.latents import Annotations
from ra3gym.abstractions.latents.dataset import AnnotatedTraces, save_annotated
from ra3gym.abstractions.latents.document import Document, DocumentWriter
from ra3gym.agents import mid_training
from ra3gym.agents.mid_training import (
    NTP,
    RA3,
    EMConfig,
    EStep,
    GivenAnnotations,
    MStepConfig,
    NeedsModel,
    make_e_step,
)
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.experiments.studies.arms import Arm
from ra3gym.experiments.studies.config import StudyConfig
from ra3gym.experiments.studies.reporter import TrainingCourse, UnitReporter
from ra3gym.lm import LoadedModel, add_latents, load, save, tiny_llama, train_tokenizer
from ra3gym.tasks import CodeTask, ExpertTrace
from ra3gym.tasks.idioms import LABELS, Split

_SHOWN_TRACES = 500
"""Number of annotated traces of each seed that are kept, for `ra3gym inspect traces`."""


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
        """Return the E-step of one arm: its own by name, or the study's."""
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
        export_traces(documents, inferred, folder.parents[1] / "traces" / f"seed-{seed}.jsonl")
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
    course = TrainingCourse(reporter, "pre-train", config.base.tokens)
    mid_training.run(
        base, base_traces, recipe=NTP, config=unmeasured(config.base), seed=seed, on_progress=course.on_progress
    )
    return base


def export_traces(documents: Iterable[Document], latents: Annotations, file: Path) -> None:
    """Store the first documents for `ra3gym inspect traces` and other trainers."""
    shown = tuple(islice(documents, _SHOWN_TRACES))
    save_annotated(AnnotatedTraces(shown, latents.names, latents.comments), file)


def unmeasured(m_step: MStepConfig) -> EMConfig:
    """Mid-training without the loop's own measurements: a study evaluates models on tasks."""
    return EMConfig(m_step, compare_ntp=False, measured_traces=0)
