"""A vLLM server as the generator of rollouts: `Sampler` over HTTP, weights pushed after every update.

After every push (`ra3gym.agents.rlvr.vllm.weights`) the server is put to the proof: the log-probabilities of a few
tokens that it samples must be the policy's own.

The server samples by other kernels, mostly in bfloat16, so its log-probabilities are near the trainer's and not equal
to them: `on_policy_logp` is false, and the trainer weighs the difference (truncated importance sampling).

Shape suffixes: P prompts, G samples of each (`group_size`), R = P * G rows, T new tokens, V vocabulary.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ra3gym.agents.rlvr.vllm.client import VLLMClient
from ra3gym.agents.rlvr.vllm.completions import CompletionRequest, Row
from ra3gym.agents.rlvr.vllm.weights import WeightPusher, gathered_weights, on_first_process
from ra3gym.errors import ConfigError, SamplerError
from ra3gym.lm import Samples, completion_logprobs

if TYPE_CHECKING:
    from ra3gym.lm.stopping import StopRule

_PROBES, _PROBE_LENGTH, _PROBE_SAMPLES = 4, 8, 8
"""A push is proved on so many prompts of so many tokens, with so many samples of one token each."""


class VLLMSampler:
    """`Sampler` over a vLLM server; `docs/vllm.md` says how to start one.

    In a run of several processes each has a sampler of its own for its own prompts; the first pushes the weights, and
    `update` is to be called by all.

    Args:
        url: the root of the server, such as "http://127.0.0.1:8000".
        weights_folder: a folder that both sides see, with room for two checkpoints; in memory (/dev/shm) is fastest.
            `None` is the folder for temporary files, which does for a server on the same machine.
        server_folder: where the server sees that folder, if elsewhere than the trainer.
        model_name: what the server serves the policy as; `None` for the only model there.
        api_key: what the server was given as `--api-key`.
        ready_timeout: seconds to wait for the server to be ready; a large model takes minutes to load.
        timeout: seconds to wait for one answer: a group of completions, or a push.
        retries: how often a request for completions whose connection broke is sent again, with the same seed.
        retry_wait: seconds ahead of the first repetition; doubled for each that follows.
        concurrency: most prompts under way at a time.
        max_logp_gap: most nats by which server and policy may differ on a token of the proof, on average; bfloat16
            alone makes a few hundredths. `None` goes without proof.

    Raises:
        ConfigError: a URL or a setting out of range.
        SamplerError: no server is ready there in time, or it does not serve that model.
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
        self._pusher = WeightPusher(self._client, weights_folder, server_folder)
        self._max_logp_gap = max_logp_gap
        self._logprobs_proved = False
        self._vocab_size = 0
        self._device = torch.device("cpu")
        self._holds_policy = False
        self.logp_gap = math.nan
        """Nats by which server and policy differed on a token at the last push, on average."""
        self._client.wait_until_ready(ready_timeout)
        self._model_name, self._max_length = _served(self._client, model_name)

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
                    f"max_logp_gap={self._max_logp_gap}. Serve the policy's own checkpoint, unquantised; if it is, its "
                    "precision may be too low"
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
    ) -> Samples:
        """See `Sampler.sample`; tensors come on the policy's device.

        Each prompt is one request, seeded by the generator (by its own where there is one for each). vLLM samples the
        same for the same seed as far as its kernels do not depend on what else is in the batch. `stop` is applied to
        what comes back: the server has sampled on in vain.

        Raises:
            ConfigError: a value out of range, or more tokens than the server has positions.
            SamplerError: the server failed, or holds no weights of this policy.
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
        rows = self._complete(requests)
        if stop is not None:
            rows = [row.ended_by(stop, index) for index, row in enumerate(rows)]
        return _samples(prompt_ids, rows, pad_id, self._device)

    def close(self) -> None:
        """Remove what was pushed from the folder; the server goes on with the weights it has in memory."""
        self._pusher.close()
        self._holds_policy = False

    def _complete(self, requests: Sequence[CompletionRequest]) -> list[Row]:
        """Their rows, one request after the other."""

        def read(index: int, answer: Any) -> list[Row]:
            try:
                return requests[index].rows(answer, self._vocab_size)
            except SamplerError as error:
                raise SamplerError(f"vLLM at {self._client.url}: {error}") from error

        groups = self._client.post_all("/v1/completions", [request.body() for request in requests], read)
        return [row for group in groups for row in group]

    def _push(self, model: Any, weights: dict[str, Tensor] | None) -> list[Row]:
        """Have the server load the weights; what it then samples for the probes."""
        self._pusher.push(model, weights)
        if not self._logprobs_proved:
            self._prove_logprobs()
            self._logprobs_proved = True
        return [] if self._max_logp_gap is None else self._complete(self._probes())

    def _probes(self) -> list[CompletionRequest]:
        """Prompts from all over the vocabulary, each followed by one token."""
        count = _PROBES * _PROBE_LENGTH
        ids = [index * (self._vocab_size - 1) // (count - 1) for index in range(count)]
        return [
            CompletionRequest(self._model_name, ids[start::_PROBES], _PROBE_SAMPLES, 1, 1.0, start, {0})
            for start in range(_PROBES)
        ]

    def _prove_logprobs(self) -> None:
        """With a single token allowed its log-probability is 0 under the distribution sampled from, and only there.

        Two tokens are tried: the unmasked distribution cannot be certain of both.
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
    """Name and longest sequence of the model asked for."""
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


def _vocab_size(model: Any) -> int:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"a vLLM server cannot load the weights of a {type(model).__name__}; give a model of transformers, with "
            "adapters merged into it"
        )
    return int(model.config.get_text_config().vocab_size)


def _logp_gap(model: Any, probes: Sequence[CompletionRequest], rows: Sequence[Row]) -> float:
    """Mean absolute difference between the log-probabilities of the rows and the model's own, in nats."""
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
    """One for each prompt, below 2**53: a whole number in every JSON reader, with room for `seed + g`."""
    if isinstance(generator, torch.Generator):
        return torch.randint(2**52, (count,), generator=generator, device=generator.device).tolist()
    if len(generator) != count:
        raise ConfigError(f"{len(generator)} generators for {count} prompts; give one, or one for each")
    return [seed for own in generator for seed in _seeds(own, 1)]


def _allowed_ids(allowed_mask_V: Tensor, vocab_size: int) -> list[int] | None:
    """The tokens allowed; `None` when all are."""
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
