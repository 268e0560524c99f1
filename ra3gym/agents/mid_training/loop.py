"""RA3's mid-training as expectation maximization: infer latents over traces, train the model on them, and again.

This is the only mid-training loop. RA3, its controls and next-token prediction are recipes of it.

The first iteration learns a codebook over lines of code (a model that has not seen latents cannot tell them apart).
Later ones read the emissions off the model itself, `log p(line | code before, latent)`, where the E-step is an
inference agent. An E-step that needs no likelihood infers anew from the traces alone.

folder/                                a run folder (`ra3gym.runs.folder`)
    traces/iteration-1.jsonl, ...      what was trained on: any trainer can read it (`datasets`, pandas)
    checkpoints/iteration-1/           model, annotations and measurements of a finished iteration
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.codebook import CodebookConfig
from ra3gym.abstractions.latents.dataset import AnnotatedTraces, save_annotated
from ra3gym.abstractions.latents.document import Document, DocumentWriter
from ra3gym.agents.mid_training.e_steps.model import ModelEStep
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.agents.mid_training.e_steps.protocol import EStep, NeedsModel, with_codebook
from ra3gym.agents.mid_training.e_steps.registry import make_e_step
from ra3gym.agents.mid_training.inference.agents import AGENTS, make_inference_agent
from ra3gym.agents.mid_training.m_step import MStep, MStepConfig, MStepProgress, make_m_step
from ra3gym.agents.mid_training.measurements import (
    EMIteration,
    code_and_latent_nats,
    collapse,
    measure_latents,
)
from ra3gym.agents.mid_training.recipe import RA3, Recipe, write_documents
from ra3gym.errors import ConfigError, DataError, ModelError
from ra3gym.files import write_json
from ra3gym.lm import LoadedModel, latent_ids, load, save
from ra3gym.runs.folder import RunFolder
from ra3gym.tasks import ExpertTrace

MID_TRAINING = "mid-training"
"""The kind of its run folders."""

_E_STEP_STREAM, _DOCUMENT_STREAM, _DIAGNOSIS_STREAM = 1, 2, 3
_NEXT_M_STEP_SEED = 1_000_003  # far from the seeds that a user would name


@dataclass(frozen=True)
class EMConfig:
    """How mid-training runs.

    Attributes:
        m_step: budget and optimizer of each iteration's M-step, which continues from the previous one's model.
        compare_ntp: also train a second model by next-token prediction on the plain traces, for the same tokens.
        measured_traces: traces to measure cross-entropies on, the first of the corpus; 0 leaves all measurements out.
        context_lines: lines of code before a line that the emissions of later iterations see; all when `None`.
    """

    m_step: MStepConfig = field(default_factory=MStepConfig)
    compare_ntp: bool = True
    measured_traces: int = 200
    context_lines: int | None = None

    def __post_init__(self) -> None:
        if self.measured_traces < 0:
            raise ConfigError(f"measured_traces={self.measured_traces}: give 0 or more")


@dataclass(frozen=True)
class EMResult:
    """What mid-training ends with.

    Attributes:
        loaded: the trained model.
        annotations: the last iteration's; `None` for a recipe that needs none.
        documents: what the last iteration trained on; empty when every iteration had been finished before.
        history: what each iteration measured.
    """

    loaded: LoadedModel
    annotations: Annotations | None
    documents: tuple[Document, ...]
    history: tuple[EMIteration, ...]


def run(
    model: LoadedModel | str | os.PathLike[str],
    traces: Sequence[ExpertTrace],
    *,
    recipe: Recipe = RA3,
    e_step: str | EStep = "exact",
    m_step: str | MStep = "distill",
    iterations: int = 1,
    config: EMConfig | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_iteration: Callable[[EMIteration], None] = lambda _: None,
    on_progress: Callable[[int, MStepProgress], bool | None] = lambda _iteration, _progress: None,
) -> EMResult:
    """Alternate E-step and M-step `iterations` times.

    Latents that collapse after the first iteration are a warning, and `EMIteration.change` in the history says it too.

    Args:
        model: trained in place if it is a loaded one; else a name for `ra3gym.lm.load`. Its tokenizer needs the
            latents of the recipe (`ra3gym.lm.add_latents`).
        traces: expert traces. Planted labels are shown to the oracle alone.
        recipe: what the documents are made of.
        e_step: a name for `make_e_step` (its codebook is made no larger than the tokenizer's), or an E-step.
        m_step: a name for `make_m_step`, or an M-step.
        iterations: 1 is what studies do; more let the model's own likelihood refine the latents.
        config: `EMConfig()` when `None`.
        seed: the source of all randomness; the same seed gives the same result, with or without a resumption.
        folder: the run folder to keep iterations in; nothing is written when `None`.
        resume: continue after the last finished iteration in `folder`, which must have the same configuration.
        on_iteration: called after each iteration, for example to print its `line`.
        on_progress: called after each batch of an M-step with the iteration's number; true ends that M-step early.

    Raises:
        ConfigError: fewer than 1 iteration, or more latents than the tokenizer has tokens for.
        DataError: no traces.
        ModelError: a tokenizer with fewer than 2 latents, for an E-step by name.
        RunFolderError: `folder` holds a run already, or (with `resume`) none, or one of another configuration.
        UnknownNameError: no such E-step or M-step.
    """
    config = config or EMConfig()
    if iterations < 1:
        raise ConfigError(f"iterations={iterations}: give at least 1")
    if not traces:
        raise DataError("there are no traces to learn from")
    train = make_m_step(m_step) if isinstance(m_step, str) else m_step
    infer = make_e_step(e_step) if isinstance(e_step, str) else e_step
    loaded = model if isinstance(model, LoadedModel) else load(model)
    if isinstance(e_step, str) and recipe.needs_e_step:
        infer = _within_tokenizer(infer, loaded)
    stages = _Stages(
        loaded=loaded,
        ntp=copy.deepcopy(loaded.model) if config.compare_ntp else None,
        writer=DocumentWriter(loaded.tokenizer),
        traces=traces,
        visible=traces if isinstance(infer, OracleEStep) else [trace.without_planted() for trace in traces],
        recipe=recipe,
        e_step=infer,
        agent=e_step if isinstance(e_step, str) and e_step in AGENTS else None,
        m_step=train,
        config=config,
        seed=seed,
    )
    described = {
        "recipe": dataclasses.asdict(recipe),
        "e_step": e_step if isinstance(e_step, str) else type(e_step).__name__,
        "m_step": m_step if isinstance(m_step, str) else getattr(m_step, "__name__", type(m_step).__name__),
        "seed": seed,
        "traces": len(traces),
        "config": dataclasses.asdict(config),
    }
    kept = None if folder is None else _Kept.at(Path(folder), described, resume)
    with nullcontext() if kept is None else kept.run.exclusive():
        history = [] if kept is None else kept.finished()
        annotations = kept.restore(len(history), stages) if kept is not None and history else None
        documents: tuple[Document, ...] = ()
        for iteration in range(len(history) + 1, iterations + 1):
            annotations = stages.infer(iteration, annotations)
            latents, documents = stages.write(iteration, annotations)
            tokens = stages.train(iteration, documents, partial(on_progress, iteration))
            record = stages.measure(iteration, tokens, annotations, latents)
            if history and (change := collapse(history[-1], record)) is not None:
                record = replace(record, change=change)
                warnings.warn(change, stacklevel=2)
            history.append(record)
            if kept is not None:
                kept.keep(record, stages, annotations, latents, documents)
            on_iteration(record)
    return EMResult(loaded, annotations, documents, tuple(history))


@dataclass(frozen=True)
class _Stages:
    """The stages of an iteration, over the model, traces and settings that all iterations share."""

    loaded: LoadedModel
    ntp: Any
    writer: DocumentWriter
    traces: Sequence[ExpertTrace]
    visible: Sequence[ExpertTrace]
    recipe: Recipe
    e_step: EStep
    agent: str | None
    m_step: MStep
    config: EMConfig
    seed: int

    def infer(self, iteration: int, previous: Annotations | None) -> Annotations | None:
        """Do the E-step; `None` for a recipe that needs none."""
        if not self.recipe.needs_e_step:
            return None
        e_step = self.e_step
        if iteration > 1 and self.agent is not None:
            e_step = ModelEStep(
                self.loaded,
                make_inference_agent(self.agent),
                num_latents=None if previous is None else previous.num_latents,
                context_lines=self.config.context_lines,
                previous=previous,
            )
        if isinstance(e_step, NeedsModel):
            e_step = e_step.for_model(self.loaded)
        return e_step.infer(self.visible, self._stream(_E_STEP_STREAM, iteration))

    def write(self, iteration: int, annotations: Annotations | None) -> tuple[Annotations | None, tuple[Document, ...]]:
        """Return the latents that the recipe writes, and the documents with them."""
        rng = self._stream(_DOCUMENT_STREAM, iteration)
        latents, prompts = self.recipe.sources(self.traces, annotations, rng)
        return latents, tuple(write_documents(self.writer, self.traces, latents=latents, prompts=prompts, rng=rng))

    def train(
        self, iteration: int, documents: Sequence[Document], on_progress: Callable[[MStepProgress], bool | None]
    ) -> int:
        """Do the M-step, on plain traces for the other model too; return the tokens of the first."""
        config = replace(self.config.m_step, tokens=round(self.config.m_step.tokens * self.recipe.budget))
        seed = self.seed + (iteration - 1) * _NEXT_M_STEP_SEED
        texts = [list(document.ids) for document in documents]
        tokens = self.m_step(self.loaded.model, texts, config, seed=seed, on_progress=on_progress)
        if self.ntp is not None:
            plain = [list(self.writer.write(trace).ids) for trace in self.traces]
            self.m_step(self.ntp, plain, config, seed=seed, on_progress=lambda _: None)
        return tokens

    def measure(
        self, iteration: int, tokens: int, annotations: Annotations | None, latents: Annotations | None
    ) -> EMIteration:
        """Measure the models on the first traces, with their own prompts, and the annotations on all."""
        record = EMIteration(iteration, tokens)
        measured = self.visible[: self.config.measured_traces]
        if not measured:
            return record
        annotated = [self.writer.write(trace, latents, index) for index, trace in enumerate(measured)]
        code, latent = code_and_latent_nats(self.loaded.model, annotated)
        record = replace(record, code_nats=code, latent_nats=latent)
        if self.ntp is not None:
            ntp_code, _ = code_and_latent_nats(self.ntp, [self.writer.write(trace) for trace in measured])
            record = replace(record, ntp_code_nats=ntp_code)
        if annotations is not None:
            rng = self._stream(_DIAGNOSIS_STREAM, iteration)
            by_model = iteration > 1 and self.agent is not None
            record = replace(record, **measure_latents(self.visible, annotations, rng))
            if record.evidence is not None:
                record = replace(record, evidence_of="tokens" if by_model else "templates")
        return record

    def _stream(self, purpose: int, iteration: int) -> np.random.Generator:
        """Return the random numbers for one purpose in one iteration.

        numpy reads `[seed, purpose, 0]` as `[seed, purpose]`, which is what studies use for the same purposes.
        """
        return np.random.default_rng([self.seed, purpose, iteration - 1])


def _within_tokenizer(e_step: EStep, loaded: LoadedModel) -> EStep:
    """Return the E-step with a codebook, if it learns one, no larger than the tokenizer's latents.

    `ModelError` for a codebook under a tokenizer with fewer than two latents.
    """
    tokens = len(latent_ids(loaded.tokenizer))

    def limited(codebook: CodebookConfig) -> CodebookConfig:
        if tokens < 2:
            raise ModelError(
                f"the tokenizer has {tokens} latent tokens, and a codebook needs at least 2: add them first, as "
                "in ra3gym.lm.add_latents(model, tokenizer, 48)"
            )
        return replace(codebook, num_latents=min(codebook.num_latents, tokens))

    return with_codebook(e_step, limited)


@dataclass(frozen=True)
class _Kept:
    """The iterations in a run folder."""

    run: RunFolder

    @classmethod
    def at(cls, path: Path, described: dict[str, object], resume: bool) -> _Kept:
        """Make the run folder, or open the one to continue."""
        if resume:
            return cls(RunFolder.resume(path, MID_TRAINING, described))
        return cls(RunFolder.create_at(path, MID_TRAINING, described))

    def checkpoint(self, iteration: int) -> Path:
        return self.run.path / "checkpoints" / f"iteration-{iteration}"

    def finished(self) -> list[EMIteration]:
        """Return what the finished iterations measured, in order."""
        history: list[EMIteration] = []
        while (file := self.checkpoint(len(history) + 1) / "metrics.json").is_file():
            history.append(EMIteration(**json.loads(file.read_text(encoding="utf-8"))))
        return history

    def restore(self, iteration: int, stages: _Stages) -> Annotations | None:
        """Give the models the weights they had after this iteration; return its annotations."""
        folder = self.checkpoint(iteration)
        stages.loaded.model.load_state_dict(load(folder / "model").model.state_dict())
        if stages.ntp is not None:
            stages.ntp.load_state_dict(load(folder / "ntp").model.state_dict())
        stored = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
        return TypeAdapter(Annotations | None).validate_python(stored)

    def keep(
        self,
        record: EMIteration,
        stages: _Stages,
        annotations: Annotations | None,
        latents: Annotations | None,
        documents: tuple[Document, ...],
    ) -> None:
        """Store what an iteration trained on, and then the iteration as finished."""
        written = AnnotatedTraces(documents)
        if latents is not None:
            written = AnnotatedTraces(documents, latents.names, latents.comments)
        save_annotated(written, self.run.path / "traces" / f"iteration-{record.iteration}.jsonl")
        with self.run.checkpoint(f"iteration-{record.iteration}") as folder:
            save(stages.loaded.model, stages.loaded.tokenizer, folder / "model")
            if stages.ntp is not None:
                save(stages.ntp, stages.loaded.tokenizer, folder / "ntp")
            write_json(folder / "annotations.json", None if annotations is None else dataclasses.asdict(annotations))
            write_json(folder / "metrics.json", dataclasses.asdict(record))
