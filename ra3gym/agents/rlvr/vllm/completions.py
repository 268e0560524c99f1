"""Requests to vLLM's `/v1/completions` and their answers: token ids in, token ids out.

A request sets everything that shapes the distribution, because a server takes missing settings from the checkpoint's
`generation_config.json`. Only the given tokens end a completion (`ignore_eos` with `stop_token_ids`). A request has one
prompt: vLLM samples all prompts of a request with one seed, so equal prompts would get equal completions. Sample g of a
prompt is drawn with seed + g.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ValidationError

from ra3gym.errors import SamplerError

if TYPE_CHECKING:
    from ra3gym.lm.stopping import StopRule


class Row(NamedTuple):
    """One completion: its tokens, the end token included; their log-probabilities in nats; whether it ended."""

    tokens: list[int]
    logp: list[float]
    finished: bool

    def ended_by(self, stop: StopRule, index: int) -> Row:
        """Return the row up to the token after which the rule ends it; `index` is its place in the batch."""
        watched = frozenset(stop.watched_ids)
        written: list[int] = []
        for token in self.tokens:
            written.append(token)
            if token in watched and stop.ends(index, written):
                return Row(written, self.logp[: len(written)], True)
        return self


@dataclass(frozen=True)
class CompletionRequest:
    """`group_size` completions of one prompt.

    Attributes:
        model: its name on the server.
        prompt: token ids.
        group_size: G.
        max_new_tokens: longest completion, end token included.
        temperature: of the sampling.
        seed: sample g uses seed + g.
        end_ids: the tokens that end a completion.
        allowed_ids: the only tokens that may be sampled; all when `None`.
    """

    model: str
    prompt: Sequence[int]
    group_size: int
    max_new_tokens: int
    temperature: float
    seed: int
    end_ids: Collection[int]
    allowed_ids: Sequence[int] | None = None

    def body(self) -> dict[str, Any]:
        """Return the JSON to post."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(self.prompt),
            "n": self.group_size,
            "max_tokens": self.max_new_tokens,
            "seed": self.seed,
            "temperature": self.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,
            "stop_token_ids": sorted(self.end_ids),
            "skip_special_tokens": False,
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stream": False,
        }
        if self.allowed_ids is not None:
            body["allowed_token_ids"] = list(self.allowed_ids)
        return body

    def rows(self, answer: Any, vocab_size: int) -> list[Row]:
        """Return the G completions of an answer, in order.

        Raises:
            SamplerError: the answer does not fit the request; the message says how.
        """
        try:
            choices = sorted(_Answer.model_validate(answer).choices, key=lambda choice: choice.index)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise SamplerError(
                f"the server's answer is malformed at {place or 'the top'}: {first['msg']}, "
                f"got {first['input']!r:.60}. "
                "Token ids need a vLLM that knows return_token_ids; see docs/vllm.md"
            ) from error
        if [choice.index for choice in choices] != list(range(self.group_size)):
            raise SamplerError(
                f"the server answered completions {[choice.index for choice in choices]} where "
                f"{self.group_size} were asked for"
            )
        return [self._row(choice, vocab_size) for choice in choices]

    def _row(self, choice: _Choice, vocab_size: int) -> Row:
        tokens, logp = choice.token_ids, choice.logprobs.token_logprobs
        if choice.prompt_token_ids != list(self.prompt):
            raise SamplerError(
                f"the server read {choice.prompt_token_ids!r:.80} instead of the prompt {list(self.prompt)!r:.80}; it "
                "must take token ids as they are"
            )
        if choice.logprobs.tokens != [f"token_id:{token}" for token in tokens] or len(logp) != len(tokens):
            raise SamplerError(
                f"the server's log-probabilities are of {choice.logprobs.tokens!r:.80}, its tokens {tokens!r:.80}"
            )
        if wrong := [token for token in tokens if not 0 <= token < vocab_size]:
            raise SamplerError(
                f"the server sampled token {wrong[0]}, and the policy's vocabulary has {vocab_size}; serve the "
                "policy's own checkpoint"
            )
        # A certain token may round to slightly above 0; larger values are no log-probabilities (logits, for example).
        if wrong_logp := [value for value in logp if not (math.isfinite(value) and value <= 1e-4)]:
            raise SamplerError(
                f"the server gives a sampled token the log-probability {wrong_logp[0]}; start it with --logprobs-mode "
                "processed_logprobs, and if it is, its weights are broken"
            )
        end = next((t for t, token in enumerate(tokens) if token in self.end_ids), None)
        if end is not None:
            return Row(tokens[: end + 1], logp[: end + 1], True)
        if choice.finish_reason != "length" or len(tokens) != self.max_new_tokens:
            raise SamplerError(
                f"the server ended a completion after {len(tokens)} of {self.max_new_tokens} tokens (finish_reason "
                f"{choice.finish_reason!r}) at none of the end tokens {sorted(self.end_ids)}; start it with "
                "--generation-config vllm, and with a --max-model-len that holds prompt and completion"
            )
        return Row(tokens, logp, False)


class _Logprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]


class _Choice(BaseModel):
    index: int
    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: _Logprobs
    finish_reason: str


class _Answer(BaseModel):
    choices: list[_Choice]
