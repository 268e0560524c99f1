"""RA3's mid-training as expectation maximisation: infer latents over traces, train the model on them, and again.

The first iteration learns a codebook over lines of code (a model that has not seen latents cannot tell them apart).
Later ones read the emissions off the model itself, `log p(line | code before, latent)`, where the E-step is an
inference agent; an E-step that needs no likelihood infers anew from the traces alone.

folder/
    config.json
    traces/iteration-1.jsonl, ...        annotated traces: any trainer can read them (`datasets`, pandas)
    iteration-1/model, ntp, metrics.json what the iteration ended with; the last file marks it as finished
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.abstractions.latents.dataset import annotated_dataset, read_annotated, save_annotated
from ra3gym.abstractions.latents.diagnosis import LatentDiagnosis, diagnose
from ra3gym.agents.mid_training.documents import DocumentWriter, write_documents
from ra3gym.agents.mid_training.e_steps.model import ModelEStep
from ra3gym.agents.mid_training.e_steps.registry import EStep, NeedsModel, make_e_step, with_codebook
from ra3gym.agents.mid_training.inference.agents import inference_agent_names, make_inference_agent
from ra3gym.agents.mid_training.m_step import MStep, MStepConfig, MStepProgress, make_m_step
from ra3gym.errors import ConfigError, DataError, RunFolderError
from ra3gym.files import UNFINISHED, write_json
from ra3gym.lm import LoadedModel, latent_ids, load, save, token_logprobs
from ra3gym.tasks import ExpertTrace


@dataclass(frozen=True)
class EMConfig:
    """How EM runs.

    Attributes:
        m_step: budget and optimiser of each iteration's M-step, which goes on from the last one's model.
        prompts: write the prompts that traces lack from their latents, too.
        compare_ntp: train a second model by next-token prediction on the plain traces, for the same tokens.
        measured_traces: traces that cross-entropies are measured on, the first of the corpus.
        context_lines: code lines that emissions of later iterations see; all when `None`.
    """

    m_step: MStepConfig = field(default_factory=MStepConfig)
    prompts: bool = True
    compare_ntp: bool = True
    measured_traces: int = 200
    context_lines: int | None = None

    def __post_init__(self) -> None:
        if self.measured_traces < 1:
            raise ConfigError(f"measured_traces={self.measured_traces}: give at least 1")


@dataclass(frozen=True)
class EMIteration:
    """What an iteration measured. Rates are over all lines but first ones; durations in lines.

    evidence, elbo: nats per line; the ELBO is the evidence less the gap of the E-step's posterior; `None` where the
        E-step has no likelihood.
    switch_rate, mean_duration: of the annotated traces; no rate (`None`) where every trace is a single line.
    perplexity, information: latents in use, and `I(z; line)` in nats; diagnosis: what is wrong with them, or that
        nothing is (`ra3gym.abstractions.latents.diagnosis`).
    code_nats, ntp_code_nats: cross-entropy of code tokens, latents in the context but not counted, and that of the
        model trained by next-token prediction (`None` without one). The first knows the latents, which were inferred
        from the very lines: the difference is what they tell, not a better model of code.
    latent_nats: cross-entropy of the latent tokens, per code token: what the first leaves out.
    """

    iteration: int
    evidence: float | None
    elbo: float | None
    switch_rate: float | None
    mean_duration: float
    perplexity: float
    information: float
    diagnosis: str
    code_nats: float | None
    latent_nats: float | None
    ntp_code_nats: float | None
    tokens: int


@dataclass(frozen=True)
class EMResult:
    """The trained model, the last iteration's latents, and what every iteration measured."""

    loaded: LoadedModel
    annotations: Annotations
    history: tuple[EMIteration, ...]


def run(
    model: LoadedModel | str | os.PathLike[str],
    traces: Sequence[ExpertTrace],
    *,
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
        model: trained in place where it is loaded already; else a name for `ra3gym.lm.load`. Its tokenizer needs
            latents (`ra3gym.lm.add_latents`).
        traces: expert traces; planted labels are hidden from every E-step but "oracle".
        e_step: a name for `make_e_step` (its codebook is made no larger than the tokenizer's), or an E-step.
        m_step: a name for `make_m_step`, or an M-step.
        iterations: 1 is what studies do; more let the model's own likelihood refine the latents.
        config: `EMConfig()` when `None`.
        seed: of everything random; the same seed gives the same result, also over a resumption.
        folder: where iterations are kept; nothing is written when `None`.
        resume: go on after the last finished iteration in `folder`, which must be of the same configuration.
        on_iteration: called after each iteration.
        on_progress: called after each batch of an M-step with the iteration's number; true ends that M-step early.

    Raises:
        ConfigError: fewer than 1 iteration, or more latents than the tokenizer has tokens for.
        DataError: no traces.
        RunFolderError: `folder` holds another run, or (with `resume`) none.
        UnknownNameError: no such E-step or M-step.
    """
    config = config or EMConfig()
    if iterations < 1:
        raise ConfigError(f"iterations={iterations}: give at least 1")
    if not traces:
        raise DataError("there are no traces to learn from")
    named = e_step if isinstance(e_step, str) else None
    train = make_m_step(m_step) if isinstance(m_step, str) else m_step
    infer = make_e_step(e_step) if isinstance(e_step, str) else e_step
    loaded = model if isinstance(model, LoadedModel) else load(model)
    if named is not None:
        tokens = len(latent_ids(loaded.tokenizer))
        infer = with_codebook(infer, lambda codebook: replace(codebook, num_latents=min(codebook.num_latents, tokens)))
    if named != "oracle":
        traces = [trace.without_planted() for trace in traces]
    place = None if folder is None else _open(Path(folder), config, named, seed, len(traces), resume)
    history: list[EMIteration] = []
    annotations: Annotations | None = None
    ntp = copy.deepcopy(loaded.model) if config.compare_ntp else None
    if place is not None and resume:
        history = _finished(place)
        if history:
            last = place / f"iteration-{len(history)}"
            loaded.model.load_state_dict(load(last / "model").model.state_dict())
            if ntp is not None:
                ntp.load_state_dict(load(last / "ntp").model.state_dict())
            annotations = _read_annotations(_traces_file(place, len(history)))
    writer = DocumentWriter(loaded.tokenizer)
    for iteration in range(len(history) + 1, iterations + 1):
        rng = np.random.default_rng([seed, iteration])
        if iteration > 1 and named in inference_agent_names():
            infer = ModelEStep(
                loaded,
                make_inference_agent(named),
                num_latents=annotations.num_latents if annotations is not None else None,
                context_lines=config.context_lines,
            )
        bound = infer.for_model(loaded) if isinstance(infer, NeedsModel) else infer
        annotations = bound.infer(traces, rng)
        prompts = annotations if config.prompts else None
        documents = write_documents(writer, traces, latents=annotations, prompts=prompts, rng=rng)
        m_step_seed = seed * 1_000 + iteration

        report = partial(on_progress, iteration)
        tokens = train(loaded.model, documents, config.m_step, seed=m_step_seed, on_progress=report)
        if ntp is not None:
            plain = write_documents(writer, traces, rng=rng)
            train(ntp, plain, config.m_step, seed=m_step_seed, on_progress=lambda _: None)
        diagnosis = diagnose(encode_traces(traces), annotations.paths, annotations.num_latents, rng)
        measured = traces[: config.measured_traces]
        record = _measure(iteration, loaded, ntp, writer, measured, annotations, diagnosis, tokens)
        history.append(record)
        if place is not None:
            save_annotated(annotated_dataset(traces, annotations), annotations.names, _traces_file(place, iteration))
            save(loaded.model, loaded.tokenizer, place / f"iteration-{iteration}" / "model")
            if ntp is not None:
                save(ntp, loaded.tokenizer, place / f"iteration-{iteration}" / "ntp")
            write_json(place / f"iteration-{iteration}" / "metrics.json", dataclasses.asdict(record))
        on_iteration(record)
    assert annotations is not None
    return EMResult(loaded, annotations, tuple(history))


def _measure(
    iteration: int,
    loaded: LoadedModel,
    ntp: torch.nn.Module | None,
    writer: DocumentWriter,
    traces: Sequence[ExpertTrace],
    annotations: Annotations,
    diagnosis: LatentDiagnosis,
    tokens: int,
) -> EMIteration:
    paths = annotations.paths[: len(traces)]
    code: float | None = None
    latents: float | None = None
    if annotations.comments is None:
        code, latents = _code_nats(loaded.model, writer, traces, [writer.latent_marks(path) for path in paths])
    ntp_code = None
    if ntp is not None:
        ntp_code, _ = _code_nats(ntp, writer, traces, [[None] * len(trace.steps) for trace in traces])
    evidence = annotations.metrics.get("evidence")
    return EMIteration(
        iteration=iteration,
        evidence=evidence,
        elbo=None if evidence is None else evidence - annotations.metrics.get("elbo_gap", 0.0),
        switch_rate=None if math.isnan(diagnosis.switch_rate) else diagnosis.switch_rate,
        mean_duration=diagnosis.mean_duration,
        perplexity=diagnosis.perplexity,
        information=diagnosis.information,
        diagnosis=diagnosis.text,
        code_nats=code,
        latent_nats=latents,
        ntp_code_nats=ntp_code,
        tokens=tokens,
    )


@torch.inference_mode()
def _code_nats(
    model: torch.nn.Module,
    writer: DocumentWriter,
    traces: Sequence[ExpertTrace],
    marks: Sequence[Sequence[int | None]],
    rows: int = 32,
) -> tuple[float, float]:
    """Cross-entropy of code tokens and of latent tokens, both per code token, the traces' own prompts ahead of them."""
    latents = torch.tensor(writer.latent_ids)
    documents = [
        (len(writer.encode_prompt(trace.prompt)), writer.document(trace.prompt, trace.steps, mark))
        for trace, mark in zip(traces, marks, strict=True)
    ]
    sums = torch.zeros(2, dtype=torch.float64)
    count = 0
    for start in range(0, len(documents), rows):
        batch = documents[start : start + rows]
        longest = max(len(ids) for _, ids in batch)
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.int64)
        real_BT, prompt_BT = torch.zeros(2, len(batch), longest, dtype=torch.bool)
        for row, (prompt, ids) in enumerate(batch):
            ids_BT[row, : len(ids)] = torch.tensor(ids)
            real_BT[row, : len(ids)] = True
            prompt_BT[row, : max(prompt, 1)] = True  # nothing predicts a first token
        device = next(model.parameters()).device
        nats_BT = -token_logprobs(model, ids_BT.to(device), real_BT.to(device)).double().cpu()
        latent_BT = torch.isin(ids_BT, latents)
        code_BT = real_BT & ~prompt_BT & ~latent_BT
        sums += torch.stack([nats_BT[code_BT].sum(), nats_BT[real_BT & latent_BT].sum()])
        count += int(code_BT.sum())
    code, latent = (sums / count).tolist()
    return code, latent


def _open(folder: Path, config: EMConfig, e_step: str | None, seed: int, num_traces: int, resume: bool) -> Path:
    """The run's folder, made or checked."""
    described = {"e_step": e_step, "seed": seed, "traces": num_traces, "config": dataclasses.asdict(config)}
    file = folder / "config.json"
    if not resume:
        if folder.exists() and any(folder.iterdir()):
            raise RunFolderError(
                f"{folder} is not empty: give a new folder, or resume=True to go on with the run in it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, described)
        return folder
    if not file.is_file():
        raise RunFolderError(f"{folder} holds no run of EM to resume: it has no config.json")
    if json.loads(file.read_text()) != described:
        raise RunFolderError(
            f"{folder} was run with another configuration, E-step, seed or number of traces (see its config.json): "
            "resume with the same ones"
        )
    for unfinished in folder.rglob(UNFINISHED):
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _finished(folder: Path) -> list[EMIteration]:
    """The iterations that ended, in order."""
    history: list[EMIteration] = []
    while (file := folder / f"iteration-{len(history) + 1}" / "metrics.json").is_file():
        history.append(EMIteration(**json.loads(file.read_text())))
    return history


def _read_annotations(file: Path) -> Annotations:
    rows, names = read_annotated(file)
    gains = tuple(row.gains for row in rows if row.gains is not None)
    return Annotations(tuple(row.path for row in rows), names, gains=gains if len(gains) == len(rows) else None)


def _traces_file(folder: Path, iteration: int) -> Path:
    return folder / "traces" / f"iteration-{iteration}.jsonl"
