"""The problem that `ra3gym/TraceInference-v0` makes of names: a model scores the lines of expert traces."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from ra3gym.abstractions.inference.problem import InferenceProblem
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.abstractions.latents.emissions import latent_tokens, model_problem
from ra3gym.errors import ConfigError, DataError
from ra3gym.lm import LoadedModel, load
from ra3gym.tasks import ExpertTrace, load_tasks
from ra3gym.tasks.idioms import IdiomsDomain

_Prior: TypeAlias = tuple[float, float | None]
_Fingerprint: TypeAlias = tuple[tuple[str, int, int], ...]


def load_problem(
    *,
    model: str | os.PathLike[str] | LoadedModel = "embedded",
    traces: str | Sequence[ExpertTrace] = "idioms",
    num_traces: int | None = 32,
    alpha: float = 0.7,
    switch_penalty: float | None = None,
    context_lines: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> InferenceProblem:
    """The problem that the environment makes of a model and traces; see `TraceInferenceEnv` for the arguments.

    What names alone decide is kept for the next call, so that the environments of a `SyncVectorEnv` share one problem;
    a model folder that was written to since is read again.

    Raises:
        ConfigError, DataError, ModelError, UnknownNameError: as `TraceInferenceEnv`.
    """
    if num_traces is not None and num_traces < 1:
        raise ConfigError(f"num_traces={num_traces}: give at least 1, or None for all")
    prior = (alpha, switch_penalty)
    if isinstance(model, LoadedModel) or not isinstance(traces, str):
        loaded = model if isinstance(model, LoadedModel) else load(model, device=device, dtype=dtype)
        return _build(loaded, traces, num_traces, prior, context_lines)
    source = (os.fspath(model), device, dtype, _fingerprint(model))
    return _build_by_name(source, traces, num_traces, prior, context_lines, _fingerprint(traces.removeprefix("jsonl:")))


def _fingerprint(path: str | os.PathLike[str]) -> _Fingerprint:
    """Names, sizes and times of a folder's files or of a file; empty for what is no path, such as a hub id."""
    found = Path(path).expanduser()
    files = sorted(found.iterdir()) if found.is_dir() else [found] if found.is_file() else []
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
    """The first `count` expert traces of a task set by name."""
    if name == "idioms":
        if count is None:
            raise ConfigError("num_traces=None: the embedded domain has traces without end; say how many")
        return IdiomsDomain().traces(count)
    solved = [task for task in load_tasks(name) if task.canonical_solution][:count]
    if not solved:
        raise DataError(f"no task of {name!r} has a canonical solution, so there is no expert trace in it")
    return [ExpertTrace(task, tuple((task.canonical_solution or "").splitlines(keepends=True))) for task in solved]
