"""A vLLM server samples from the policy's weights, token for token, and whatever fails between the two is told."""

from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ra3gym import lm
from ra3gym.agents.rlvr.rollouts.sampler import Sampler
from ra3gym.agents.rlvr.vllm.client import VLLMClient
from ra3gym.agents.rlvr.vllm.sampler import VLLMSampler
from ra3gym.errors import ConfigError, SamplerError
from ra3gym.lm.rendering import ForcedText, cut_prompt
from tests.agents.rlvr.vllm.vllm_server import Answers, Drops, Fault, Hangs, Refuses, VLLMServer
from tests.lm.tokenizer_kinds import PROMPTS as PROMPT_TEXTS
from tests.lm.tokenizer_kinds import make_tokenizer

VOCAB = 48
PROMPTS = [[5, 6, 7, 8, 9], [11], [3, 4, 30], [11]]
END = [2, 13, 21, 34]
COMPLETIONS = "/v1/completions"


def make_policy(seed: int = 0, vocab_size: int = VOCAB) -> Any:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=9,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


@pytest.fixture
def policy() -> Any:
    return make_policy()


_PATIENCE = 600.0
"""Seconds to wait for what must happen, however busy the machine is."""


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What servers start from: weights that are not the policy's."""
    folder = tmp_path_factory.mktemp("served")
    make_policy(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def server(served_folder: Path) -> Iterator[VLLMServer]:
    with VLLMServer(served_folder) as server:
        yield server


def connect(server: VLLMServer, folder: Path, **options: Any) -> VLLMSampler:
    settings: dict[str, Any] = {"weights_folder": folder, "retry_wait": 0.0, "ready_timeout": _PATIENCE}
    return VLLMSampler(server.url, **settings | options)


@pytest.fixture
def sampler(server: VLLMServer, policy: Any, tmp_path: Path) -> Iterator[VLLMSampler]:
    """Holding the policy's weights."""
    sampler = connect(server, tmp_path / "weights")
    sampler.update(policy)
    server.bodies.clear()
    yield sampler
    sampler.close()


def sample(sampler: Sampler, prompts: list[list[int]] = PROMPTS, *, seed: int = 3, **options: Any) -> lm.Samples:
    settings: dict[str, Any] = {"group_size": 4, "max_new_tokens": 24, "temperature": 1.0, "eos_ids": END, "pad_id": 1}
    settings |= {"generator": torch.Generator().manual_seed(seed)} | options
    return sampler.sample(prompts, **settings)


def expected(model: Any, server: VLLMServer, prompts: list[list[int]], **options: Any) -> list[lm.Samples]:
    """What each row must be: sample g of a prompt, drawn alone with the seed of its request plus g."""
    settings: dict[str, Any] = {"max_new_tokens": 24, "eos_id": END, "pad_id": 1} | options
    seeds = {tuple(body["prompt"]): body["seed"] for body in server.bodies[COMPLETIONS]}
    return [
        lm.generate(model, [prompt], generator=torch.Generator().manual_seed(seeds[tuple(prompt)] + g), **settings)
        for prompt in prompts
        for g in range(4)
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_and_logprobs_arrive_as_they_were_sampled(
    sampler: VLLMSampler, server: VLLMServer, policy: Any, temperature: float
) -> None:
    prompts = PROMPTS[:3]
    samples = sample(sampler, prompts, temperature=temperature)
    rows = expected(policy, server, prompts, temperature=temperature)
    assert samples.prompt_ids == prompts
    assert samples.group_size == 4
    assert samples.completions() == [row.completions()[0] for row in rows]
    assert samples.finished_R.tolist() == [bool(row.finished_R[0]) for row in rows]
    for row, alone in enumerate(rows):
        length = alone.tokens_RT.shape[1]
        assert torch.equal(samples.logp_RT[row, :length], alone.logp_RT[0])
        assert not samples.logp_RT[row, length:].any()
        assert set(samples.tokens_RT[row, length:].tolist()) <= {1}
    logp_RT, mask_RT = lm.completion_logprobs(
        policy, [prompt for prompt in prompts for _ in range(4)], samples.completions(), temperature
    )
    assert torch.equal(mask_RT, samples.mask_RT)
    torch.testing.assert_close(logp_RT.detach(), samples.logp_RT, rtol=0, atol=1e-5)


def test_rows_end_where_the_built_in_sampler_ends_them(sampler: VLLMSampler) -> None:
    samples = sample(sampler)
    completions = samples.completions()
    assert any(9 in completion[:-1] for completion in completions), (
        "what ends the checkpoint's own texts ends none here"
    )
    assert samples.tokens_RT.shape == (16, max(map(len, completions)))
    assert 0 < int(samples.finished_R.sum()) < 16
    for completion, finished in zip(completions, samples.finished_R.tolist(), strict=True):
        assert (completion[-1] in END) == finished
        assert finished or len(completion) == 24
        assert not set(completion[:-1]) & set(END)


def test_the_generators_decide(sampler: VLLMSampler) -> None:
    first, again, other = sample(sampler), sample(sampler), sample(sampler, seed=4)
    assert torch.equal(first.tokens_RT, again.tokens_RT)
    assert torch.equal(first.logp_RT, again.logp_RT)
    assert first.completions() != other.completions()
    assert first.completions()[4:8] != first.completions()[12:], "equal prompts share a seed"

    def own(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = sample(sampler, generator=own(1, 2, 3, 4)).completions()
    alone = sample(sampler, PROMPTS[2:], generator=own(3, 4)).completions()
    assert together[8:] == alone, "a prompt's samples depend on its own generator only"
    with pytest.raises(ConfigError, match="3 generators for 4 prompts"):
        sample(sampler, generator=own(1, 2, 3))


class EndsAtASecondWatchedToken:
    """`StopRule`; notes what it was asked."""

    watched_ids = frozenset({9, 31, 40})

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int]]] = []

    def ends(self, row: int, completion: Sequence[int]) -> bool:
        self.asked.append((row, list(completion)))
        return sum(token in self.watched_ids for token in completion) == 2


def test_a_stop_rule_ends_rows_where_generate_ends_them(sampler: VLLMSampler, server: VLLMServer, policy: Any) -> None:
    prompts, ours = PROMPTS[:3], EndsAtASecondWatchedToken()
    samples = sample(sampler, prompts, stop=ours)
    theirs, alone = EndsAtASecondWatchedToken(), []
    seeds = {tuple(body["prompt"]): body["seed"] for body in server.bodies[COMPLETIONS]}
    for row, prompt in enumerate(prompt for prompt in prompts for _ in range(4)):
        generator = torch.Generator().manual_seed(seeds[tuple(prompt)] + row % 4)
        options: dict[str, Any] = {"generator": generator, "stop": Moved(theirs, row)}
        alone.append(lm.generate(policy, [prompt], max_new_tokens=24, eos_id=END, pad_id=1, **options))
    assert samples.completions() == [one.completions()[0] for one in alone]
    assert samples.finished_R.tolist() == [bool(one.finished_R[0]) for one in alone]
    for row, one in enumerate(alone):
        assert torch.equal(samples.logp_RT[row, : one.logp_RT.shape[1]], one.logp_RT[0])
    assert ours.asked == theirs.asked
    stopped = [ids[-1] in ours.watched_ids and ids[-1] not in END for ids in samples.completions()]
    assert any(stopped)
    assert all(finished for finished, by_rule in zip(samples.finished_R.tolist(), stopped, strict=True) if by_rule)


class Moved:
    """A stop rule that is asked for row 0 of a batch of its own and answers as for another row."""

    def __init__(self, rule: EndsAtASecondWatchedToken, row: int) -> None:
        self.watched_ids, self._rule, self._row = rule.watched_ids, rule, row

    def ends(self, row: int, completion: Sequence[int]) -> bool:
        return self._rule.ends(self._row + row, completion)


def test_only_allowed_tokens_and_their_own_distribution(sampler: VLLMSampler, policy: Any) -> None:
    allowed = torch.tensor([5, 13, 40])
    mask_V = torch.zeros(VOCAB, dtype=torch.bool)
    mask_V[allowed] = True
    samples = sample(sampler, [PROMPTS[0]], allowed_mask_V=mask_V, max_new_tokens=6)
    assert set(samples.tokens_RT[samples.mask_RT].tolist()) <= set(allowed.tolist())
    with torch.no_grad():
        logits_V = policy(torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected_R = logits_V[samples.tokens_RT[:, 0]] - logits_V[allowed].logsumexp(0)
    torch.testing.assert_close(samples.logp_RT[:, 0], expected_R, rtol=0, atol=1e-5)


def test_forced_text_begins_each_completion(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("gpt2")
    prompts = [cut_prompt(tokenizer, prompt) for prompt in PROMPT_TEXTS]
    forced = ForcedText.of(tokenizer, prompts)
    assert forced is not None
    ids = [prompt.ids for prompt in prompts]
    policy = make_policy(vocab_size=len(tokenizer))
    policy.save_pretrained(tmp_path / "served")
    (tmp_path / "weights").mkdir()
    with VLLMServer(tmp_path / "served") as server:
        sampler = connect(server, tmp_path / "weights")
        sampler.update(policy)
        samples, again = (sample(sampler, ids, forced=forced, max_new_tokens=6) for _ in range(2))
        sampler.close()
    completions = samples.completions()
    assert completions == again.completions()
    assert samples.prompt_ids == ids
    choices = [forced.first_choice(row // 4, row_ids, len(tokenizer)) for row, row_ids in enumerate(completions)]
    scores = lm.group_scores(policy, ids, completions, [row // 4 for row in range(16)], first_choices=choices)
    for row, row_ids in enumerate(completions):
        assert tokenizer.decode(row_ids).startswith(prompts[row // 4].forced)
        assert len(row_ids) == 6 or row_ids[-1] in END
        first = choices[row].column
        assert not samples.logp_RT[row, :first].any()
        torch.testing.assert_close(
            samples.logp_RT[row, first : len(row_ids)], scores.logp_RT[row, first : len(row_ids)], rtol=0, atol=1e-4
        )


def test_a_mask_that_allows_all_is_not_sent(sampler: VLLMSampler, server: VLLMServer) -> None:
    samples = sample(sampler, allowed_mask_V=torch.ones(VOCAB, dtype=torch.bool))
    assert all("allowed_token_ids" not in body for body in server.bodies[COMPLETIONS])
    assert samples.completions() == sample(sampler).completions()


def test_each_update_is_what_the_server_samples_from(
    sampler: VLLMSampler, server: VLLMServer, policy: Any, tmp_path: Path
) -> None:
    before = sample(sampler)
    assert sampler.logp_gap < 1e-5
    trained = make_policy(seed=2).train()
    sampler.update(trained)
    assert trained.training
    assert sampler.logp_gap < 1e-5
    for ours, theirs in zip(trained.parameters(), server.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    server.bodies.clear()
    after = sample(sampler, PROMPTS[:3])
    assert after.completions() == [row.completions()[0] for row in expected(trained.eval(), server, PROMPTS[:3])]
    assert after.completions() != before.completions()[:12]
    (run,) = (tmp_path / "weights").iterdir()
    assert [push.name for push in run.iterdir()] == ["000002"]
    sampler.update(policy)
    assert torch.equal(sample(sampler).tokens_RT, before.tokens_RT)
    sampler.close()
    sampler.close()
    assert not run.exists()
    with pytest.raises(SamplerError, match="does not hold the policy's weights; call update"):
        sample(sampler)


def test_a_server_that_mounts_the_folder_elsewhere(server: VLLMServer, policy: Any, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").symlink_to(tmp_path / "ours")
    sampler = connect(server, tmp_path / "ours", server_folder=tmp_path / "theirs")
    sampler.update(policy)
    assert server.bodies["/collective_rpc"][0]["kwargs"]["weights_path"].startswith(str(tmp_path / "theirs"))


def test_a_key_opens_a_server_that_asks_for_one(served_folder: Path, policy: Any, tmp_path: Path) -> None:
    with VLLMServer(served_folder, api_key="k") as server:
        with pytest.raises(SamplerError, match=r"HTTP 401: Unauthorized\. Give the server's --api-key"):
            connect(server, tmp_path)
        sampler = connect(server, tmp_path, api_key="k")
        sampler.update(policy)
        assert len(sample(sampler).completions()) == 16


def test_nobody_answers(policy: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SamplerError, match=f"no vLLM server was ready at {url} within 0 s: cannot reach .* refused"):
        VLLMSampler(url, ready_timeout=0)


def test_waits_until_the_server_is_ready(server: VLLMServer, tmp_path: Path) -> None:
    server.fail("/health", Refuses(503, ""))
    connect(server, tmp_path)
    assert len(server.bodies["/health"]) == 2
    server.fail("/health", Refuses(503, "loading"))
    with pytest.raises(SamplerError, match="within 0 s: /health answers 503 loading"):
        connect(server, tmp_path, ready_timeout=0)


def test_a_server_that_went_away_is_not_waited_for(sampler: VLLMSampler, server: VLLMServer) -> None:
    server.__exit__()
    with pytest.raises(
        SamplerError, match=r"cannot reach .*has lost the policy's weights: start it and resume the run"
    ):
        sample(sampler)


@pytest.mark.parametrize("fault", [Drops(), Refuses(503, "busy"), Refuses(429, "later")])
def test_what_passes_is_tried_again_with_the_same_seed(sampler: VLLMSampler, server: VLLMServer, fault: Fault) -> None:
    whole = sample(sampler)
    server.bodies.clear()
    server.fail(COMPLETIONS, fault, fault)
    assert torch.equal(sample(sampler).tokens_RT, whole.tokens_RT)
    bodies = [json.dumps(body) for body in server.bodies[COMPLETIONS]]
    assert (len(bodies), len(set(bodies))) == (6, 4)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Drops(), r"the connection broke: IncompleteRead.* \(tried 3 times\)"),
        (Refuses(503, '{"error": {"message": "overloaded"}}'), r"HTTP 503: overloaded \(tried 3 times\)"),
    ],
)
def test_what_does_not_pass_is_told(
    server: VLLMServer, policy: Any, tmp_path: Path, fault: Fault, message: str
) -> None:
    sampler = connect(server, tmp_path, retries=2)
    sampler.update(policy)
    server.bodies.clear()
    server.fail(COMPLETIONS, *[fault] * 3)
    with pytest.raises(SamplerError, match=f"{server.url}{COMPLETIONS}: {message}"):
        sample(sampler, [[5]])
    assert len(server.bodies[COMPLETIONS]) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Refuses(400, '{"error": {"message": "too\\n long", "code": 400}}'), "HTTP 400: too long$"),
        (Refuses(422, '{"detail": [{"loc": "n"}]}'), r"HTTP 422: \[\{'loc': 'n'\}\]$"),
        (Refuses(500, "Internal Server Error"), "HTTP 500: Internal Server Error. The server's log says more"),
    ],
)
def test_a_refusal_is_told_at_once_in_the_servers_words(
    sampler: VLLMSampler, server: VLLMServer, fault: Fault, message: str
) -> None:
    server.fail(COMPLETIONS, fault)
    with pytest.raises(SamplerError, match=message):
        sample(sampler, [[5]])
    assert len(server.bodies[COMPLETIONS]) == 1


def test_no_answer_in_time(server: VLLMServer) -> None:
    server.fail(COMPLETIONS, Hangs())
    with pytest.raises(SamplerError, match=r"gave no answer within 0\.2 s; raise the timeout"):
        VLLMClient(server.url, timeout=0.2).post(COMPLETIONS, {})
    assert server.gone.acquire(timeout=_PATIENCE)


def test_one_failure_cuts_the_others_off(sampler: VLLMSampler, server: VLLMServer) -> None:
    server.fail(COMPLETIONS, Hangs(), when=lambda body: body["prompt"] == [5])
    refuses = Refuses(400, "no", once_another_hangs=True)
    server.fail(COMPLETIONS, refuses, when=lambda body: body["prompt"] == [6])
    with pytest.raises(SamplerError, match="HTTP 400: no"):
        sample(sampler, [[5], [6]])
    assert server.gone.acquire(timeout=_PATIENCE)
    assert len([body for body in server.bodies[COMPLETIONS] if body["prompt"] == [5]]) == 1


def choice(**changes: Any) -> Answers:
    """The second completion, changed."""

    def change(answer: Any) -> Any:
        answer["choices"][1] |= changes
        return answer

    return Answers(change)


def logprobs(**changes: Any) -> Answers:
    def change(answer: Any) -> Any:
        answer["choices"][1]["logprobs"] |= changes
        return answer

    return Answers(change)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Refuses(200, "<html>"), r"is no vLLM server: expected JSON, got b'<html>'"),
        (Refuses(200, ""), "malformed at the top: Input should be a valid dictionary"),
        (Answers(lambda answer: {"choices": None}), r"malformed at choices: .* got None\. Token ids need a vLLM"),
        (choice(token_ids=None), r"malformed at choices\.1\.token_ids"),
        (choice(logprobs=None), r"malformed at choices\.1\.logprobs"),
        (Answers(lambda answer: {"choices": answer["choices"][:3]}), r"completions \[0, 1, 2\] where 4 were asked for"),
        (choice(index=3), r"completions \[0, 2, 3, 3\]"),
        (choice(prompt_token_ids=[0, 5]), r"read \[0, 5\] instead of the prompt \[5\]"),
        (logprobs(tokens=["token_id:1"]), r"log-probabilities are of \['token_id:1'\], its tokens"),
        (choice(token_ids=[99], logprobs={"tokens": ["token_id:99"], "token_logprobs": [-1.0]}), "sampled token 99"),
        (choice(token_ids=[7], logprobs={"tokens": ["token_id:7"], "token_logprobs": [float("nan")]}), "nan; start"),
        (choice(token_ids=[7], logprobs={"tokens": ["token_id:7"], "token_logprobs": [3.5]}), "3.5; start it with"),
        (choice(token_ids=[7], logprobs={"tokens": ["token_id:7"], "token_logprobs": []}), r"its tokens \[7\]"),
        (
            choice(token_ids=[7], finish_reason="stop", logprobs={"tokens": ["token_id:7"], "token_logprobs": [-1.0]}),
            r"after 1 of 24 tokens \(finish_reason 'stop'\) at none of the end tokens .*--generation-config vllm",
        ),
        (choice(token_ids=[], logprobs={"tokens": [], "token_logprobs": []}), "after 0 of 24 tokens"),
    ],
)
def test_an_answer_to_something_else_is_refused(
    sampler: VLLMSampler, server: VLLMServer, fault: Fault, message: str
) -> None:
    server.fail(COMPLETIONS, fault)
    with pytest.raises(SamplerError, match=message) as caught:
        sample(sampler, [[5]])
    assert server.url in str(caught.value)


def test_tokens_behind_the_end_are_dropped(sampler: VLLMSampler, server: VLLMServer) -> None:
    names = ["token_id:7", "token_id:13", "token_id:8"]
    scored = {"tokens": names, "token_logprobs": [-1.0, -2.0, -3.0]}
    server.fail(COMPLETIONS, choice(token_ids=[7, 13, 8], finish_reason="length", logprobs=scored))
    samples = sample(sampler, [[5]])
    assert samples.completions()[1] == [7, 13]
    assert samples.logp_RT[1, :2].tolist() == [-1.0, -2.0]
    assert bool(samples.finished_R[1])


def no_server(answer: Any) -> Callable[[VLLMServer], None]:
    return lambda server: server.fail("/v1/models", Answers(lambda _: answer))


@pytest.mark.parametrize(
    ("name", "prepare", "message"),
    [
        ("other", lambda server: None, "serves policy; model_name='other' is not among them"),
        (None, no_server({"data": [{"id": "a"}, {"id": "b"}]}), "serves a, b; name one as model_name"),
        (None, no_server({"data": []}), "serves no model"),
        (None, no_server({"models": []}), r"/v1/models is no vLLM server: \{'models': \[\]\}"),
        (None, no_server([]), "is no vLLM server"),
    ],
)
def test_the_model_asked_for_must_be_there(
    server: VLLMServer, tmp_path: Path, name: str | None, prepare: Callable[[VLLMServer], None], message: str
) -> None:
    prepare(server)
    with pytest.raises(SamplerError, match=message):
        connect(server, tmp_path, model_name=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logprobs_mode": "raw_logprobs"}, "start it with --logprobs-mode processed_logprobs"),
        ({"dev_mode": False}, "collective_rpc: HTTP 404: Not Found.*VLLM_SERVER_DEV_MODE=1"),
        ({"loads_weights": False}, "does not sample from the weights pushed to it: .* nats from the policy's"),
    ],
)
def test_a_server_started_otherwise_is_told_apart(
    served_folder: Path, policy: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with VLLMServer(served_folder, **options) as server:
        sampler = connect(server, tmp_path)
        for _ in range(2):
            with pytest.raises(SamplerError, match=message):
                sampler.update(policy)
        with pytest.raises(SamplerError, match="call update"):
            sample(sampler)


def test_another_vocabulary_is_told_apart(server: VLLMServer, tmp_path: Path) -> None:
    with pytest.raises(SamplerError, match=r"size mismatch for .*hold a model of the same shapes"):
        connect(server, tmp_path).update(make_policy(vocab_size=VOCAB + 4))


def test_weights_that_the_server_cannot_see(server: VLLMServer, policy: Any, tmp_path: Path) -> None:
    with pytest.raises(SamplerError, match=r"Cannot find any model weights .*it must see and read that folder"):
        connect(server, tmp_path / "ours", server_folder=tmp_path / "nowhere").update(policy)
    (run,) = (tmp_path / "ours").iterdir()
    assert not list(run.iterdir())


def test_weights_that_cannot_be_written(server: VLLMServer, policy: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SamplerError, match=f"cannot write the policy's weights to {tmp_path / 'file'}"):
        connect(server, tmp_path / "file").update(policy)


def test_a_prefix_cache_that_stays_is_told(server: VLLMServer, policy: Any, tmp_path: Path) -> None:
    server.fail("/reset_prefix_cache", Answers(lambda answer: {"success": False}))
    with pytest.raises(SamplerError, match="could not empty its prefix cache"):
        connect(server, tmp_path).update(policy)


def test_what_has_no_weights_for_a_server_is_refused(server: VLLMServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights of a Linear; .* adapters merged"):
        connect(server, tmp_path).update(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [[3], []]}, "at least one token"),
        ({"group_size": 0}, "group_size=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"max_new_tokens": 124}, "need 129 positions, but the server at .* has 128"),
        ({"eos_ids": [48]}, "eos_ids"),
        ({"eos_ids": []}, "eos_ids"),
        ({"allowed_mask_V": torch.zeros(48, dtype=torch.bool)}, "allows no token"),
        ({"allowed_mask_V": torch.ones(47, dtype=torch.bool)}, "47"),
    ],
)
def test_impossible_settings_are_refused(sampler: VLLMSampler, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample(sampler, **options)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("127.0.0.1:8000", {}, "give it with scheme and host"),
        ("ftp://host", {}, "give it with scheme and host"),
        ("http://host:port", {}, "give it with scheme and host"),
        ("http://host", {"timeout": 0.0}, r"timeout=0\.0"),
        ("http://host", {"retries": -1}, "retries=-1"),
        ("http://host", {"concurrency": 0}, "concurrency=0"),
    ],
)
def test_impossible_addresses_are_refused(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VLLMSampler(url, **options)


def test_the_openai_form_of_the_url_is_understood(server: VLLMServer, policy: Any, tmp_path: Path) -> None:
    sampler = VLLMSampler(f"{server.url}/v1/", weights_folder=tmp_path)
    sampler.update(copy.deepcopy(policy))
    assert len(sample(sampler, [[5]]).completions()) == 4


def test_processes_push_once_and_fail_together(server: VLLMServer, policy: Any, tmp_path: Path) -> None:
    """Two processes hold half of the policy each (FSDP2); the server refuses their second push."""
    policy.save_pretrained(tmp_path / "policy")
    server.fail("/collective_rpc", Refuses(500, "broken"), when=lambda body: len(server.bodies["/collective_rpc"]) == 2)
    places = [tmp_path / "store", server.url, tmp_path / "policy", tmp_path / "weights"]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("vllm_rank.py")), str(rank), *map(str, places), output],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, output in enumerate([str(tmp_path / "0.pt"), str(tmp_path / "1.pt")])
    ]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert len(server.bodies["/collective_rpc"]) == 2
    assert all("HTTP 500: broken" in one["failure"] for one in found)
    assert all(one["gap"] < 1e-5 for one in found)
    seeds = {tuple(body["prompt"]): body["seed"] for body in server.bodies[COMPLETIONS]}
    for rank, one in enumerate(found):
        alone = [
            lm.generate(
                policy,
                [[5 + rank]],
                max_new_tokens=8,
                eos_id=2,
                pad_id=1,
                generator=torch.Generator().manual_seed(seeds[(5 + rank,)] + g),
            ).completions()[0]
            for g in range(4)
        ]
        assert one["completions"] == alone
