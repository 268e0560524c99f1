"""A vLLM server as the sampler of rollouts: `Sampler` over HTTP, with weights pushed after every update.

Every push (`ra3gym.agents.rlvr.vllm.weights`) is checked: the log-probabilities of a few tokens that the server samples
must be the policy's.

The server uses other kernels, mostly in bfloat16, so its log-probabilities are close to the trainer's, but not equal:
`on_policy_logp` is false, and the trainer corrects the difference (truncated importance sampling).

Shape letters: see CONTRIBUTING.md (P prompts, G members of a group, R = P x G rows, T time, V vocabulary).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ra3gym.agents.rlvr.vllm.client import VLLMClient
from ra3gym.agents.rlvr.vllm.completions import CompletionRequest, Row
from ra3gym.agents.rlvr.vllm.weights import WeightPusher, gathered_weights, on_first_process
from ra3gym.errors import ConfigError, SamplerError
from ra3gym.lm import Samples, completion_logprobs

if TYPE_CHECKING:
    from ra3gym.lm.rendering import ForcedText
    from ra3gym.lm.stopping import StopRule

_PROBES, _PROBE_LENGTH, _PROBE_SAMPLES = 4, 8, 8
"""A push is checked with so many prompts of so many tokens, and so many samples of one token for each."""


class VLLMSampler:
    """`Sampler` over a vLLM server; `docs/vllm.md` says how to start one.

    In a run of several processes each has a sampler of its own for its own prompts. The first process pushes the
    weights, and all of them call `update`.

    Args:
        url: the root of the server, such as "http://127.0.0.1:8000".
        weights_folder: a folder that both sides can read, with room for two checkpoints; /dev/shm is fastest. `None` is
            the folder for temporary files, which suits a server on the same machine.
        server_folder: the path of that folder for the server, if it differs.
        model_name: the policy's name on the server; `None` for the only model there.
        api_key: the server's `--api-key`.
        ready_timeout: seconds to wait for the server to be ready; a large model takes minutes to load.
        timeout: seconds to wait for one answer: a group of completions, or a push.
        retries: how often a request is sent again after a broken connection, with the same seed.
        retry_wait: seconds before the first repetition; doubled for each next one.
        concurrency: largest number of requests at a time.
        max_logp_gap: largest mean difference between server and policy in the check of a push, in nats per token;
            bfloat16 alone makes a few hundredths. `None` switches the check off.

    Raises:
        ConfigError: a URL or a setting out of range.
        SamplerError: no server is ready in time, or it does not serve that model.
    """

    on_policy_logp = False

    def __init__(
        self,
        url: str,
        *,
        weights_folder: str | os.PathLike[str] | None = None,
        server_folder: str | os.PathLike[str] | None = None,
        model_name: str | None = None,
        api_key: str | None = None,
        ready_timeout: float = 120.0,
        timeout: float = 600.0,
        retries: int = 3,
        retry_wait: float = 1.0,
        concurrency: int = 64,
        max_logp_gap: float | None = 0.2,
    ) -> None:
        self._client = VLLMClient(
            url, api_key=api_key, timeout=timeout, retries=retries, retry_wait=retry_wait, concurrency=concurrency
        )
        self._max_logp_gap = max_logp_gap
        self._logprobs_checked = False
        self._vocab_size = 0
        self._device = torch.device("cpu")
        self._holds_policy = False
        self.logp_gap = math.nan
        """Mean difference between server and policy after the last push, in nats per token."""
        self._client.wait_until_ready(ready_timeout)
        self._model_name, self._max_length = _served(self._client, model_name)
        self._pusher = WeightPusher(self._client, weights_folder, server_folder, _served_dtype(self._client))

    def update(self, model: Any) -> None:
        """Push these weights; `SamplerError` if the server does not sample from them afterwards.

        `model` may be wrapped for data-parallel training, or sharded (FSDP2).
        """
        from accelerate.utils import extract_model_from_parallel

        model = extract_model_from_parallel(model, keep_torch_compile=False)
        self._vocab_size = _vocab_size(model)
        self._device = next(model.parameters()).device
        self._holds_policy = False
        weights = gathered_weights(model)
        answers = on_first_process(lambda: self._push(model, weights))
        if answers:
            self.logp_gap = _logp_gap(model, self._probes(), answers)
            if self._max_logp_gap is not None and not self.logp_gap <= self._max_logp_gap:
                raise SamplerError(
                    f"the server at {self._client.url} does not sample from the weights pushed to it: its "
                    f"log-probabilities are {self.logp_gap:.3g} nats from the policy's on average, over "
                    f"max_logp_gap={self._max_logp_gap}. Serve the policy's own checkpoint, without "
                    "quantization; if the server does, its precision may be too low"
                )
        self._holds_policy = True

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        max_new_tokens: int,
        temperature: float,
        generator: torch.Generator | Sequence[torch.Generator],
        eos_ids: Collection[int],
        pad_id: int,
        allowed_mask_V: Tensor | None = None,
        stop: StopRule | None = None,
        forced: ForcedText | None = None,
    ) -> Samples:
        """See `Sampler.sample`; tensors are on the policy's device.

        Each prompt is one request, with a seed from the generator, or from its own generator. vLLM samples the same
        tokens for the same seed if its kernels do not depend on the rest of the batch. `stop` is applied to the
        returned completions; the server samples their discarded ends, too. Forced text takes a request of one token for
        each row, mostly one, and then a request for the rest of the row.

        Raises:
            ConfigError: a value out of range, or more tokens than the server has positions.
            SamplerError: the server failed, or does not hold the weights of this policy.
        """
        if not self._holds_policy:
            raise SamplerError(f"the server at {self._client.url} does not hold the policy's weights; call update")
        prompt_ids = [list(prompt) for prompt in prompts]
        self._check(prompt_ids, group_size, max_new_tokens, temperature, eos_ids)
        seeds = _seeds(generator, len(prompt_ids))
        allowed_ids = None if allowed_mask_V is None else _allowed_ids(allowed_mask_V, self._vocab_size)
        requests = [
            CompletionRequest(
                self._model_name, prompt, group_size, max_new_tokens, temperature, seed, set(eos_ids), allowed_ids
            )
            for prompt, seed in zip(prompt_ids, seeds, strict=True)
        ]
        if forced is None:
            rows = self._complete(requests)
        else:
            rows = self._complete_forced(requests, forced, allowed_mask_V)
        if stop is not None:
            rows = [row.ended_by(stop, index) for index, row in enumerate(rows)]
        return _samples(prompt_ids, rows, pad_id, self._device)

    def close(self) -> None:
        """Remove the pushed checkpoints; the server keeps the weights in its memory."""
        self._pusher.close()
        self._holds_policy = False

    def _complete(self, requests: Sequence[CompletionRequest]) -> list[Row]:
        """Return the rows of all requests, in order."""

        def read(index: int, answer: Any) -> list[Row]:
            try:
                return requests[index].rows(answer, self._vocab_size)
            except SamplerError as error:
                raise SamplerError(f"vLLM at {self._client.url}: {error}") from error

        groups = self._client.post_all("/v1/completions", [request.body() for request in requests], read)
        return [row for group in groups for row in group]

    def _complete_forced(
        self, requests: Sequence[CompletionRequest], forced: ForcedText, allowed_mask_V: Tensor | None
    ) -> list[Row]:
        """Return the rows of all requests, whose first tokens must agree with the forced text of their prompts."""
        group_size, longest = requests[0].group_size, requests[0].max_new_tokens
        singles = [
            replace(request, group_size=1, seed=request.seed + g) for request in requests for g in range(group_size)
        ]
        forcing = forced.rows(group_size)
        everything_V = torch.ones(self._vocab_size, dtype=torch.bool)
        allowed_V = everything_V if allowed_mask_V is None else allowed_mask_V.cpu()
        rows = [Row([], [], False) for _ in singles]

        def continued(index: int, **options: Any) -> CompletionRequest:
            written = rows[index].tokens
            # Each token takes a seed that no other sample of the prompt has.
            seed = singles[index].seed + group_size * len(written)
            return replace(singles[index], prompt=[*singles[index].prompt, *written], seed=seed, **options)

        for _ in range(longest):
            waiting = [index for index, rest in enumerate(forcing.rests) if rest]
            if not waiting:
                break
            allowed_BV = forcing.allowed_BV(waiting, allowed_V)
            asked = [
                continued(index, max_new_tokens=1, allowed_ids=mask_V.nonzero()[:, 0].tolist())
                for index, mask_V in zip(waiting, allowed_BV, strict=True)
            ]
            for index, answer in zip(waiting, self._complete(asked), strict=True):
                leaves = forcing.write(index, answer.tokens[0])
                rows[index].tokens.append(answer.tokens[0])
                rows[index].logp.append(0.0 if leaves else answer.logp[0])
        unfinished = [index for index, row in enumerate(rows) if len(row.tokens) < longest]
        asked = [continued(index, max_new_tokens=longest - len(rows[index].tokens)) for index in unfinished]
        for index, answer in zip(unfinished, self._complete(asked) if asked else [], strict=True):
            tokens, logp, _ = rows[index]
            rows[index] = Row(tokens + answer.tokens, logp + answer.logp, answer.finished)
        return rows

    def _push(self, model: Any, weights: dict[str, Tensor] | None) -> list[Row]:
        """Have the server load the weights; return what it then samples for the probes."""
        self._pusher.push(model, weights)
        if not self._logprobs_checked:
            self._check_logprobs()
            self._logprobs_checked = True
        return [] if self._max_logp_gap is None else self._complete(self._probes())

    def _probes(self) -> list[CompletionRequest]:
        """Return requests for one token after prompts that cover the whole vocabulary."""
        count = _PROBES * _PROBE_LENGTH
        ids = [index * (self._vocab_size - 1) // (count - 1) for index in range(count)]
        return [
            CompletionRequest(self._model_name, ids[start::_PROBES], _PROBE_SAMPLES, 1, 1.0, start, {0})
            for start in range(_PROBES)
        ]

    def _check_logprobs(self) -> None:
        """Check that the log-probabilities are those of the distribution that the server samples from.

        With a single allowed token, its log-probability is 0 under that distribution. Two tokens are tried, because the
        distribution without the mask cannot have probability 1 for both.
        """
        requests = [
            CompletionRequest(self._model_name, [0, 1], 1, 1, 1.0, 0, {0}, allowed_ids=[token]) for token in (0, 1)
        ]
        rows = self._complete(requests)
        if any(row.tokens != request.allowed_ids for row, request in zip(rows, requests, strict=True)):
            raise SamplerError(f"vLLM at {self._client.url} samples tokens other than those allowed; it is too old")
        if any(abs(row.logp[0]) > 1e-4 for row in rows):
            raise SamplerError(
                f"vLLM at {self._client.url} returns log-probabilities of another distribution than it samples from; "
                "start it with --logprobs-mode processed_logprobs"
            )

    def _check(
        self,
        prompts: list[list[int]],
        group_size: int,
        max_new_tokens: int,
        temperature: float,
        eos_ids: Collection[int],
    ) -> None:
        if not prompts or not all(prompts):
            raise ConfigError("sample needs at least one prompt, and at least one token in each; see encode_prompt")
        if group_size < 1 or max_new_tokens < 1 or not temperature > 0:
            raise ConfigError(
                f"group_size={group_size}, max_new_tokens={max_new_tokens}, temperature={temperature}: give at least "
                "1, at least 1, and a positive number"
            )
        if not eos_ids or not all(0 <= token < self._vocab_size for token in eos_ids):
            raise ConfigError(f"eos_ids={eos_ids} must name tokens of the model, 0 to {self._vocab_size - 1}")
        needed = max(map(len, prompts)) + max_new_tokens
        if self._max_length is not None and needed > self._max_length:
            raise ConfigError(
                f"the longest prompt and max_new_tokens={max_new_tokens} need {needed} positions, but the server at "
                f"{self._client.url} has {self._max_length}; shorten one of them, or raise its --max-model-len"
            )


def _served(client: VLLMClient, name: str | None) -> tuple[str, int | None]:
    """Return name and longest sequence of the model on the server."""
    answer = client.get("/v1/models")
    try:
        cards = {str(card["id"]): card.get("max_model_len") for card in answer["data"]}
    except (AttributeError, KeyError, TypeError) as error:
        raise SamplerError(f"what answers at {client.url}/v1/models is no vLLM server: {answer!r:.80}") from error
    if name is None and len(cards) == 1:
        name = next(iter(cards))
    if name not in cards:
        raise SamplerError(
            f"the server at {client.url} serves {', '.join(cards) or 'no model'}; "
            + ("name one as model_name" if name is None else f"model_name={name!r} is not among them")
        )
    return name, cards[name]


def _served_dtype(client: VLLMClient) -> torch.dtype | None:
    """Return the precision of the server's weights; `None` where it does not say."""
    try:
        described = str(client.get("/server_info"))
    except SamplerError:
        return None
    match = re.search(r"\bdtype=torch\.(bfloat16|float16)\b", described)
    return None if match is None else {"bfloat16": torch.bfloat16, "float16": torch.float16}[match[1]]


def _vocab_size(model: Any) -> int:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"a vLLM server cannot load the weights of a {type(model).__name__}; give a model of transformers, with "
            "adapters merged into it"
        )
    return int(model.config.get_text_config().vocab_size)


def _logp_gap(model: Any, probes: Sequence[CompletionRequest], rows: Sequence[Row]) -> float:
    """Return the mean absolute difference between the rows' log-probabilities and the model's, in nats."""
    prompts = [probe.prompt for probe in probes for _ in range(probe.group_size)]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            ours_R1, _ = completion_logprobs(model, prompts, [row.tokens for row in rows])
    finally:
        model.train(was_training)
    theirs_R1 = torch.tensor([row.logp for row in rows], device=ours_R1.device)
    return float((ours_R1 - theirs_R1).abs().mean())


def _seeds(generator: torch.Generator | Sequence[torch.Generator], count: int) -> list[int]:
    """Return a seed for each prompt, below 2**53: exact in every JSON reader, with room for `seed + g`."""
    if isinstance(generator, torch.Generator):
        return torch.randint(2**52, (count,), generator=generator, device=generator.device).tolist()
    if len(generator) != count:
        raise ConfigError(f"{len(generator)} generators for {count} prompts; give one, or one for each")
    return [seed for own in generator for seed in _seeds(own, 1)]


def _allowed_ids(allowed_mask_V: Tensor, vocab_size: int) -> list[int] | None:
    """Return the allowed tokens; `None` when all are allowed."""
    if allowed_mask_V.dtype != torch.bool or allowed_mask_V.shape != (vocab_size,):
        raise ConfigError(
            f"allowed_mask_V is {allowed_mask_V.dtype} of shape {tuple(allowed_mask_V.shape)}; "
            f"expected bool of shape ({vocab_size},)"
        )
    ids = allowed_mask_V.nonzero()[:, 0].tolist()
    if not ids:
        raise ConfigError("allowed_mask_V allows no token")
    return None if len(ids) == vocab_size else ids


def _samples(prompts: list[list[int]], rows: Sequence[Row], pad_id: int, device: torch.device) -> Samples:
    lengths_R1 = torch.tensor([[len(row.tokens)] for row in rows])
    longest = int(lengths_R1.max())
    tokens_RT = torch.tensor([row.tokens + [pad_id] * (longest - len(row.tokens)) for row in rows])
    logp_RT = torch.tensor([row.logp + [0.0] * (longest - len(row.logp)) for row in rows])
    mask_RT = torch.arange(longest) < lengths_R1
    finished_R = torch.tensor([row.finished for row in rows])
    return Samples(prompts, tokens_RT.to(device), logp_RT.to(device), mask_RT.to(device), finished_R.to(device))
