"""Emissions and features from a language model: how likely a line is under each latent, and what a policy sees of it.

The emission of line t under latent k is

    log p(line_t | z_k) = sum_i log p(token_i | begin tokens, code lines before, latent token of k, tokens before i),

in nats: the latent's token is where the M-step writes it, directly before the line. The emission depends on code and
latent but not on the prompt: a model that can infer the intent from the prompt ignores the latent, which then cannot be
inferred. Previous latents are not in the context either. So, given its latent, a line depends on code only, and the
posterior is that of a hidden Markov model.

Lines are encoded one by one, as in training.

Shape letters: see CONTRIBUTING.md (T lines of a trace, or tokens of a line).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ra3gym.abstractions.inference.posterior import FloatArray, LatentChain
from ra3gym.abstractions.inference.problem import Float32Array, InferenceProblem
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.errors import ConfigError, DataError, ModelError
from ra3gym.lm import LoadedModel, encode_prompt, latent_ids
from ra3gym.lm.caches import require_row_cache
from ra3gym.lm.rendering import encode_part
from ra3gym.tasks import ExpertTrace


def latent_tokens(model: Any, tokenizer: Any, num_latents: int | None = None) -> list[int]:
    """Return the token ids of the first `num_latents` latents, of all by default.

    Raises:
        ModelError: the tokenizer has fewer, or the model has no embeddings for them.
        ConfigError: `num_latents` below 2.
    """
    if num_latents is not None and num_latents < 2:
        raise ConfigError(f"num_latents={num_latents}: a codebook needs at least 2 latents, give 2 or more")
    ids, wanted = latent_ids(tokenizer), 2 if num_latents is None else num_latents
    if len(ids) < wanted:
        raise ModelError(
            f"the tokenizer has {len(ids)} latent tokens, {wanted} are needed: add them with ra3gym.lm.add_latents "
            "and train the model on annotated traces, or take the model 'embedded'"
        )
    ids = ids[:num_latents]
    embedded = model.get_input_embeddings().num_embeddings
    if max(ids) >= embedded:
        raise ModelError(
            f"the latent token {max(ids)} has no embedding, the model has {embedded}; resize the model with "
            "ra3gym.lm.add_latents and save it with its tokenizer"
        )
    return ids


@torch.inference_mode()
def model_emissions(
    model: Any,
    tokenizer: Any,
    traces: Sequence[ExpertTrace],
    *,
    num_latents: int | None = None,
    context_lines: int | None = None,
    rows_per_batch: int = 64,
) -> list[FloatArray]:
    """Compute `log p(line_t | previous code, latent k)` in nats: one float64 array `(T, K)` per trace.

    Args:
        model: any causal language model of transformers with a key-value cache; it is only read.
        tokenizer: its tokenizer, with latent tokens.
        traces: expert traces; their prompts are not read.
        num_latents: how many of the latents to score; all when `None`.
        context_lines: how many previous code lines the model reads; all when `None`, none when 0.
        rows_per_batch: latents scored at once. Each row has a copy of the context's cache: lower it to save memory.

    Raises:
        ConfigError: `num_latents` below 2, `context_lines` below 0 or `rows_per_batch` below 1.
        DataError: no traces, a trace without lines, or one longer than the model's context.
        ModelError: the model lacks the latents, or keeps a recurrent state.
    """
    require_row_cache(model, "scoring lines under latents")
    _check_context_lines(context_lines)
    if rows_per_batch < 1:
        raise ConfigError(f"rows_per_batch={rows_per_batch} must be at least 1")
    latents = torch.tensor(latent_tokens(model, tokenizer, num_latents), device=model.device)
    begin = _begin_ids(tokenizer)
    encoded = [_encode_lines(tokenizer, trace) for trace in _nonempty(traces)]
    for trace, lines in zip(traces, encoded, strict=True):
        _check_lengths(model, trace, begin, lines, context_lines, extra=1)
    with _evaluating(model):
        return [_emissions(model, begin, lines, latents, context_lines, rows_per_batch) for lines in encoded]


@torch.inference_mode()
def line_features(
    model: Any, tokenizer: Any, traces: Sequence[ExpertTrace], *, context_lines: int | None = None
) -> Float32Array:
    """Compute features of each line from the model's states: float32 `(N, 2 D)`.

    They are the last layer's state at the end of the prefix, prompt included, and its mean over the line's own tokens.
    The text has no latents. (A policy may see the prompt; only the emission must not.) With `context_lines`, a prefix
    is that many lines of prompt and code. An empty prefix is replaced by the begin token, if there is one.

    Raises:
        ConfigError: `context_lines` below 0.
        DataError: as `model_emissions`.
    """
    _check_context_lines(context_lines)
    begin, empty = _begin_ids(tokenizer), encode_prompt(tokenizer, "")
    rows: list[Float32Array] = []
    with _evaluating(model):
        for trace in _nonempty(traces):
            prompt = [encode_part(tokenizer, line) for line in trace.prompt.splitlines(keepends=True)]
            lines = prompt + _encode_lines(tokenizer, trace)
            bare = not begin and (not prompt or context_lines == 0)
            extra = len(empty) if bare else 0
            _check_lengths(model, trace, begin, lines, context_lines, extra=extra, prompt_lines=len(prompt))
            rows += _features(model, begin, empty, lines, len(prompt), context_lines)
    return np.stack(rows)


def model_problem(
    loaded: LoadedModel, traces: Sequence[ExpertTrace], prior: StickyPrior, *, context_lines: int | None = None
) -> InferenceProblem:
    """Make the E-step's decision problem from a model: its emissions under `prior`, its features, ids and lines.

    Raises:
        ConfigError, DataError, ModelError: as `model_emissions`; `DataError` also for two traces with the same id, and
            for a model that returns NaN.
    """
    emissions = model_emissions(
        loaded.model, loaded.tokenizer, traces, num_latents=prior.num_latents, context_lines=context_lines
    )
    return InferenceProblem(
        chain=LatentChain.under(prior, emissions),
        feature_NF=line_features(loaded.model, loaded.tokenizer, traces, context_lines=context_lines),
        trace_ids=tuple(trace.task.task_id for trace in traces),
        line_texts=tuple(line for trace in traces for line in trace.steps),
    )


def _emissions(
    model: Any,
    begin: list[int],
    lines: list[list[int]],
    latents: torch.Tensor,
    context_lines: int | None,
    rows_per_batch: int,
) -> FloatArray:
    log_emission_TK = np.empty((len(lines), len(latents)))
    cache: Any = None
    unread = begin
    for t, line in enumerate(lines):
        if context_lines is not None:
            cache, unread = None, begin + [i for before in lines[max(0, t - context_lines) : t] for i in before]
        if unread:
            output = model(
                input_ids=torch.tensor([unread], device=model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
        unread = line
        start = 0
        for ids_B in latents.split(rows_per_batch):
            scored_B = _score(model, cache, ids_B, line)
            log_emission_TK[t, start : start + len(ids_B)] = scored_B
            start += len(ids_B)
    return log_emission_TK


def _score(model: Any, cache: Any, latent_B: torch.Tensor, line: list[int]) -> npt.NDArray[np.float64]:
    """Return `log p(line | cache, latent)` for each latent; all rows have the same length and need no padding."""
    line_BT = torch.tensor(line, device=model.device).expand(len(latent_B), -1)
    if cache is not None:
        # A pass writes into its cache: leave that of the context as it is.
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(len(latent_B))
    # The last token of the line is not read: it predicts the token after the line.
    input_BT = torch.cat([latent_B[:, None], line_BT[:, :-1]], dim=1)
    logits_BTV = model(input_ids=input_BT, past_key_values=cache, use_cache=cache is not None).logits.float()
    loss_BT = F.cross_entropy(logits_BTV.flatten(0, 1), line_BT.flatten(), reduction="none").view(line_BT.shape)
    return np.asarray(-loss_BT.double().sum(dim=1).cpu().numpy())


def _features(
    model: Any,
    begin: list[int],
    empty: list[int],
    lines: list[list[int]],
    prompt_lines: int,
    context_lines: int | None,
) -> list[Float32Array]:
    """Return `(2 D,)` for each line after the first `prompt_lines`; `empty` replaces a prefix without tokens."""
    if context_lines is None:
        first = begin if begin or prompt_lines else empty
        states_TD = _states(model, first + [i for line in lines for i in line])
        ends = np.cumsum([len(first), *map(len, lines)]).tolist()
        return [_prefix_and_line(states_TD, ends[t], ends[t + 1]) for t in range(prompt_lines, len(lines))]
    features = []
    for t in range(prompt_lines, len(lines)):
        prefix = begin + [i for line in lines[max(0, t - context_lines) : t] for i in line] or empty
        states_TD = _states(model, prefix + lines[t])
        features.append(_prefix_and_line(states_TD, len(prefix), len(states_TD)))
    return features


def _states(model: Any, ids: list[int]) -> torch.Tensor:
    """Return the last layer's states, float32 `(T, D)`, as the output layer reads them."""
    output = model(
        input_ids=torch.tensor([ids], device=model.device),
        use_cache=False,
        output_hidden_states=True,
        logits_to_keep=1,
    )
    return torch.as_tensor(output.hidden_states[-1][0].float().cpu())


def _prefix_and_line(states_TD: torch.Tensor, start: int, stop: int) -> Float32Array:
    # Without a begin token, no state precedes the first line.
    prefix_D = states_TD[start - 1] if start else torch.zeros_like(states_TD[0])
    return np.asarray(torch.cat([prefix_D, states_TD[start:stop].mean(dim=0)]).numpy())


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _encode_lines(tokenizer: Any, trace: ExpertTrace) -> list[list[int]]:
    lines = [encode_part(tokenizer, line) for line in trace.steps]
    if not all(lines):
        raise DataError(f"trace {trace.task.task_id!r} has a line without tokens: drop empty steps")
    return lines


def _begin_ids(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer's own convention puts before every text; often none."""
    text = "x"
    ids = encode_prompt(tokenizer, text)
    return ids[: len(ids) - len(_encode(tokenizer, text))]


def _nonempty(traces: Sequence[ExpertTrace]) -> Sequence[ExpertTrace]:
    if not traces:
        raise DataError("there are no traces to score: give at least one expert trace")
    for trace in traces:
        if not trace.steps:
            raise DataError(f"trace {trace.task.task_id!r} has no lines; drop it")
    return traces


def _check_context_lines(context_lines: int | None) -> None:
    if context_lines is not None and context_lines < 0:
        raise ConfigError(f"context_lines={context_lines}: give 0 or more lines, or None for all of them")


def _check_lengths(
    model: Any,
    trace: ExpertTrace,
    begin: list[int],
    lines: list[list[int]],
    context_lines: int | None,
    *,
    extra: int,
    prompt_lines: int = 0,
) -> None:
    """Refuse a trace with a line that does not fit the model's positions together with its context."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return
    lengths = list(map(len, lines))
    for t in range(prompt_lines, len(lines)):
        first = 0 if context_lines is None else max(0, t - context_lines)
        needed = len(begin) + sum(lengths[first : t + 1]) + extra
        if needed > positions:
            alone = len(begin) + lengths[t] + extra
            way_out = (
                "drop the trace, or take a model with a longer context"
                if alone > positions
                else f"give context_lines below {t - first}, for a shorter context, or take another model"
            )
            raise DataError(
                f"line {t - prompt_lines} of trace {trace.task.task_id!r} ({lengths[t]} tokens) needs {needed} "
                f"positions with its context, but the model has {positions}: {way_out}"
            )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off in this context; restore the model's mode at its end."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
