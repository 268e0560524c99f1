"""RA3's mid-training as expectation maximisation: infer latents over traces, train the model on them, and again.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.dataset import AnnotatedTraces, save_annotated
from ra3gym.abstractions.latents.document import Document, DocumentWriter
from ra3gym.agents.mid_training.e_steps.model import ModelEStep
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.agents.mid_training.e_steps.protocol import EStep, NeedsModel, with_codebook
from ra3gym.agents.mid_training.e_steps.registry import make_e_step
from ra3gym.agents.mid_training.inference.agents import AGENTS, make_inference_agent
from ra3gym.agents.mid_training.m_step import MStep, MStepConfig, MStepProgress, make_m_step
from ra3gym.agents.mid_training.measurements import EMIteration, code_and_latent_nats, measure_latents
from ra3gym.agents.mid_training.recipe import RA3, Recipe, write_documents
from ra3gym.errors import ConfigError, DataError
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
        m_step: budget and optimiser of each iteration's M-step, which continues from the previous one's model.
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
        on_iteration: called after each iteration.
        on_progress: called after each batch of an M-step with the iteration's number; true ends that M-step early.

    Raises:
        ConfigError: fewer than 1 iteration, or more latents than the tokenizer has tokens for.
        DataError: no traces.
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
    if isinstance(e_step, str):
        infer = _within_tokenizer(infer, loaded)
    visible = list(traces) if isinstance(infer, OracleEStep) else [trace.without_planted() for trace in traces]
    ntp = copy.deepcopy(loaded.model) if config.compare_ntp else None
    described = {
        "recipe": dataclasses.asdict(recipe),
        "e_step": e_step if isinstance(e_step, str) else type(e_step).__name__,
        "m_step": m_step if isinstance(m_step, str) else getattr(m_step, "__name__", type(m_step).__name__),
        "seed": seed,
        "traces": len(traces),
        "config": dataclasses.asdict(config),
    }
    kept = None if folder is None else _Kept.at(Path(folder), described, resume)
    history: list[EMIteration] = [] if kept is None else kept.finished()
    annotations = None if kept is None or not history else kept.restore(len(history), loaded, ntp)
    budget = replace(config.m_step, tokens=round(config.m_step.tokens * recipe.budget))
    writer = DocumentWriter(loaded.tokenizer)
    documents: tuple[Document, ...] = ()
    for iteration in range(len(history) + 1, iterations + 1):
        if recipe.needs_e_step:
            if iteration > 1 and isinstance(e_step, str) and e_step in AGENTS:
                infer = _under_the_model(e_step, loaded, annotations, config.context_lines)
            bound = infer.for_model(loaded) if isinstance(infer, NeedsModel) else infer
            annotations = bound.infer(visible, _stream(seed, _E_STEP_STREAM, iteration))
        rng = _stream(seed, _DOCUMENT_STREAM, iteration)
        latents, prompts = recipe.sources(traces, annotations, rng)
        documents = tuple(write_documents(writer, traces, latents=latents, prompts=prompts, rng=rng))
        m_step_seed = seed + (iteration - 1) * _NEXT_M_STEP_SEED
        report = partial(on_progress, iteration)
        texts = [list(document.ids) for document in documents]
        tokens = train(loaded.model, texts, budget, seed=m_step_seed, on_progress=report)
        if ntp is not None:
            plain = [list(writer.write(trace).ids) for trace in traces]
            train(ntp, plain, budget, seed=m_step_seed, on_progress=lambda _: None)
        record = EMIteration(iteration, tokens)
        if config.measured_traces:
            measured = visible[: config.measured_traces]
            record = replace(record, **_cross_entropies(loaded.model, ntp, writer, measured, latents))
            if annotations is not None:
                diagnosis_rng = _stream(seed, _DIAGNOSIS_STREAM, iteration)
                record = replace(record, **measure_latents(visible, annotations, diagnosis_rng))
        history.append(record)
        if kept is not None:
            kept.keep(record, loaded, ntp, annotations, latents, documents)
        on_iteration(record)
    return EMResult(loaded, annotations, documents, tuple(history))


def _stream(seed: int, purpose: int, iteration: int) -> np.random.Generator:
    """Return the random numbers for one purpose in one iteration.

    numpy reads `[seed, purpose, 0]` as `[seed, purpose]`: the first iteration's stream does not depend on how many
    iterations follow.
    """
    return np.random.default_rng([seed, purpose, iteration - 1])


def _within_tokenizer(e_step: EStep, loaded: LoadedModel) -> EStep:
    """Return the E-step with a codebook that is no larger than the tokenizer's latents."""
    tokens = len(latent_ids(loaded.tokenizer))
    return with_codebook(e_step, lambda codebook: replace(codebook, num_latents=min(codebook.num_latents, tokens)))


def _under_the_model(
    agent: str, loaded: LoadedModel, previous: Annotations | None, context_lines: int | None
) -> ModelEStep:
    """Return the E-step of a later iteration, whose emissions are the model's likelihood of each line."""
    num_latents = None if previous is None else previous.num_latents
    return ModelEStep(loaded, make_inference_agent(agent), num_latents=num_latents, context_lines=context_lines)


def _cross_entropies(
    model: Any,
    ntp: Any,
    writer: DocumentWriter,
    traces: Sequence[ExpertTrace],
    latents: Annotations | None,
) -> dict[str, Any]:
    """Return what the model makes of traces with their latents and their own prompts, and the other of plain ones."""
    annotated = [writer.write(trace, latents, index) for index, trace in enumerate(traces)]
    code, latent = code_and_latent_nats(model, annotated)
    ntp_code = None
    if ntp is not None:
        ntp_code, _ = code_and_latent_nats(ntp, [writer.write(trace) for trace in traces])
    return {"code_nats": code, "latent_nats": latent, "ntp_code_nats": ntp_code}


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
            history.append(EMIteration(**json.loads(file.read_text())))
        return history

    def restore(self, iteration: int, loaded: LoadedModel, ntp: Any) -> Annotations | None:
        """Give the models the weights they had after this iteration; the iteration's annotations come back."""
        folder = self.checkpoint(iteration)
        loaded.model.load_state_dict(load(folder / "model").model.state_dict())
        if ntp is not None:
            ntp.load_state_dict(load(folder / "ntp").model.state_dict())
        stored = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
        return TypeAdapter(Annotations | None).validate_python(stored)

    def keep(
        self,
        record: EMIteration,
        loaded: LoadedModel,
        ntp: Any,
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
            save(loaded.model, loaded.tokenizer, folder / "model")
            if ntp is not None:
                save(ntp, loaded.tokenizer, folder / "ntp")
            write_json(folder / "annotations.json", None if annotations is None else dataclasses.asdict(annotations))
            write_json(folder / "metrics.json", dataclasses.asdict(record))
