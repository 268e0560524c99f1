"""The configuration of `ra3gym/TraceInference-v0`, and the problem that it makes: a model scores expert traces."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from ra3gym.abstractions.inference.problem import InferenceProblem
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.abstractions.latents.emissions import latent_tokens, model_problem
from ra3gym.envs.keywords import check_choice, check_render_mode
from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.lm import LoadedModel, load
from ra3gym.tasks import ExpertTrace, load_tasks
from ra3gym.tasks.idioms import IdiomsDomain

ObservationKind = Literal["features", "dict"]

_Prior: TypeAlias = tuple[float, float | None]
_Fingerprint: TypeAlias = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class TraceInferenceConfig:
    """The keywords of `TraceInference-v0`.

    Attributes:
        problem: your own problem (`ra3gym.abstractions.inference.problem`). Without one, a model scores expert traces,
            as the fields from `model` to `context_lines`, `device` and `dtype` say.
        model: "embedded" (the checkpoint in the package), a Hugging Face folder or hub id, or a `LoadedModel`; its
            latent tokens are the actions.
        traces: "idioms", the embedded domain's training traces; another task set for `ra3gym.tasks.load_tasks`, whose
            canonical solutions are the traces; or a sequence of `ExpertTrace`.
        num_traces: how many traces at most, from the first; 32 take a few seconds with the embedded model. `None` for
            all of a sequence or task set.
        alpha: stickiness of the prior, in (0, 1).
        switch_penalty: nats per switch; if given, it replaces `alpha` (`StickyPrior.from_switch_penalty`).
        context_lines: how many previous lines the emission of a line sees; `None` for all of them.
        floor: the least reward of a step in nats; finite. -100 is below the log-likelihood of a line under any latent.
        observation: "features" gives a vector, "dict" the vector as "obs" beside the action mask as "mask".
        device: where a model given by name is loaded.
        dtype: the precision of a model given by name, as `ra3gym.lm.load` names it.
        render_mode: `None`, "ansi" or "rgb_array".

    Raises:
        ConfigError: a value outside its choices or range.
    """

    problem: InferenceProblem | None = None
    _: KW_ONLY
    model: str | os.PathLike[str] | LoadedModel = "embedded"
    traces: str | Sequence[ExpertTrace] = "idioms"
    num_traces: int | None = 32
    alpha: float = 0.7
    switch_penalty: float | None = None
    context_lines: int | None = None
    floor: float = -100.0
    observation: ObservationKind = "features"
    device: str = "cpu"
    dtype: str = "float32"
    render_mode: str | None = None

    def __post_init__(self) -> None:
        check_choice("observation", self.observation, ObservationKind)
        check_render_mode(self.render_mode)
        if not math.isfinite(self.floor):
            raise ConfigError(f"floor={self.floor}: the least reward must be finite, in nats; -100 is below most lines")
        if self.num_traces is not None and self.num_traces < 1:
            raise ConfigError(f"num_traces={self.num_traces}: give at least 1, or None for all")


def load_problem(config: TraceInferenceConfig) -> InferenceProblem:
    """Return the given problem, or the one that a model and traces make.

    What is determined by names alone is cached, so that the environments of a `SyncVectorEnv` share one problem. A
    model folder or file of tasks that has been written since is read again.

    Raises:
        ConfigError: a set of traces without end, or a prior out of its range.
        DataError: traces that cannot be used, or a trace that is impossible under every path.
        ModelError: the model cannot be loaded, or knows no latents.
        UnknownNameError: no such set of tasks.
    """
    problem = config.problem or _scored_by_model(config)
    (impossible,) = np.nonzero(np.isneginf(problem.log_evidence_M))
    if len(impossible):
        # It has no posterior, so there is no gap to the posterior either.
        raise DataError(
            f"trace {problem.trace_ids[impossible[0]]!r} has probability 0 under every path of latents: raise its "
            "emissions above -inf, or drop it"
        )
    return problem


def trace_index(index: Mapping[str, int], trace_id: object) -> int:
    """Return the index of a trace; `UnknownNameError` with close matches if there is none of that name."""
    name = str(trace_id)  # so that 3 finds trace "3"
    if name not in index:
        shown = get_close_matches(name, index, n=5) or list(index)[:5]
        hint = f"The problem holds {len(index)} traces; env.unwrapped.trace_ids lists them all."
        raise UnknownNameError("trace", name, shown, hint)
    return index[name]


def _scored_by_model(config: TraceInferenceConfig) -> InferenceProblem:
    model, traces, prior = config.model, config.traces, (config.alpha, config.switch_penalty)
    if isinstance(model, LoadedModel) or not isinstance(traces, str):
        loaded = model if isinstance(model, LoadedModel) else load(model, device=config.device, dtype=config.dtype)
        return _build(loaded, traces, config.num_traces, prior, config.context_lines)
    source = (os.fspath(model), config.device, config.dtype, _fingerprint(model))
    file = _fingerprint(traces.removeprefix("jsonl:"))
    return _build_by_name(source, traces, config.num_traces, prior, config.context_lines, file)


def _fingerprint(path: str | os.PathLike[str]) -> _Fingerprint:
    """Return names, sizes and times of a folder's files or of a file; empty for other names, such as a hub id."""
    source = Path(path).expanduser()
    files = sorted(source.iterdir()) if source.is_dir() else [source] if source.is_file() else []
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=4)
def _build_by_name(
    source: tuple[str, str, str, _Fingerprint],
    traces: str,
    num_traces: int | None,
    prior: _Prior,
    context_lines: int | None,
    _files: _Fingerprint,
) -> InferenceProblem:
    model, device, dtype, _ = source
    return _build(load(model, device=device, dtype=dtype), traces, num_traces, prior, context_lines)


def _build(
    loaded: LoadedModel,
    traces: str | Sequence[ExpertTrace],
    num_traces: int | None,
    prior: _Prior,
    context_lines: int | None,
) -> InferenceProblem:
    alpha, penalty = prior
    K = len(latent_tokens(loaded.model, loaded.tokenizer))
    sticky = StickyPrior(alpha, K) if penalty is None else StickyPrior.from_switch_penalty(penalty, K)
    chosen = _named_traces(traces, num_traces) if isinstance(traces, str) else list(traces)[:num_traces]
    return model_problem(loaded, chosen, sticky, context_lines=context_lines)


def _named_traces(name: str, count: int | None) -> list[ExpertTrace]:
    """Return the first `count` expert traces of a task set by name."""
    if name == "idioms":
        if count is None:
            raise ConfigError("num_traces=None: the embedded domain has traces without end; say how many")
        return IdiomsDomain().traces(count)
    solved = [task for task in load_tasks(name) if task.canonical_solution][:count]
    if not solved:
        raise DataError(f"no task of {name!r} has a canonical solution, so there is no expert trace in it")
    return [ExpertTrace(task, tuple((task.canonical_solution or "").splitlines(keepends=True))) for task in solved]
