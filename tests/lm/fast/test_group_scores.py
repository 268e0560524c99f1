"""Scores and gradients of grouped completions are those of whole sequences and full logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from ra3gym import lm
from ra3gym.errors import ConfigError
from ra3gym.lm.fast import group_scoring
from ra3gym.lm.fast import linear_scores as blocks
from tests.lm.conftest import KINDS, VOCAB, make_model

PROMPTS = [[5, 6, 7, 8, 9], [11], [3, 4, 30]]
COMPLETIONS = [[7, 8, 2], [9], [], [4, 4, 4, 4, 4, 4, 4, 2], [1, 2], [12, 40, 41, 13, 2], [20, 21]]
PROMPT_OF_ROW = [0, 0, 0, 2, 2, 1, 0]
ALLOWED = torch.arange(VOCAB) < 44


def neox() -> Any:
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = GPTNeoXConfig(**size, vocab_size=VOCAB, max_position_embeddings=64, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model.eval()


@pytest.fixture(params=[*KINDS, "neox"])
def scored(request: pytest.FixtureRequest) -> Any:
    """A model of its own for each test: gradients stay in it."""
    return neox() if request.param == "neox" else make_model(request.param)


def reference(
    model: Any, temperature: float, allowed: Tensor | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Log-probabilities, entropies and hidden states of each completion, one sequence at a time, in plain autograd."""
    found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for row, completion in enumerate(COMPLETIONS):
        prompt = PROMPTS[PROMPT_OF_ROW[row]]
        output = model(input_ids=torch.tensor([prompt + completion]), output_hidden_states=True, use_cache=False)
        span = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        logits_TV = output.logits[0, span] / temperature
        if allowed is not None:
            logits_TV = logits_TV[:, allowed]
        logp_TV = logits_TV.log_softmax(-1)
        ids = torch.tensor(completion, dtype=torch.int64)
        if allowed is not None:
            ids = allowed.cumsum(0)[ids] - 1
        found[0].append(logp_TV.gather(1, ids[:, None])[:, 0])
        found[1].append(-(logp_TV.exp() * logp_TV).sum(-1))
        found[2].append(output.hidden_states[-1][0, span])
    return found


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_scores_match(model: Any, *, temperature: float = 1.0, allowed: Tensor | None = None) -> None:
    """Values within 1e-5 and, for a loss of all three results with its own weight at each token, gradients in 1e-6."""
    size = (len(COMPLETIONS), max(map(len, COMPLETIONS)))
    a_RT, b_RT, c_RT = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) / (size[0] * size[1])
    options: dict[str, Any] = {"temperature": temperature, "allowed_mask_V": allowed, "entropy": True, "hidden": True}
    scores = lm.group_scores(model, PROMPTS, COMPLETIONS, PROMPT_OF_ROW, **options)
    assert scores.entropy_RT is not None
    assert scores.hidden_RTD is not None
    logps, entropies, hiddens = reference(model, temperature, allowed)
    for results, expected in ((scores.logp_RT, logps), (scores.entropy_RT, entropies), (scores.hidden_RTD, hiddens)):
        for row, completion in enumerate(COMPLETIONS):
            torch.testing.assert_close(results[row, : len(completion)], expected[row], rtol=0, atol=1e-5)
            assert not results[row, len(completion) :].any()
    assert scores.mask_RT.sum(1).tolist() == list(map(len, COMPLETIONS))
    ours = gradients(
        model, (a_RT * scores.logp_RT + b_RT * scores.entropy_RT + c_RT * scores.hidden_RTD.mean(-1)).sum()
    )
    terms = [
        (a_RT[row, : len(logp)] * logp + b_RT[row, : len(logp)] * entropy + c_RT[row, : len(logp)] * states.mean(-1))
        for row, (logp, entropy, states) in enumerate(zip(*reference(model, temperature, allowed), strict=True))
    ]
    theirs = gradients(model, torch.cat(terms).sum())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


class Scorer(nn.Module):
    """Calls `group_scores` inside a forward pass, as a trainer's policy does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        scores = lm.group_scores(self.model, PROMPTS, COMPLETIONS, PROMPT_OF_ROW, entropy=True)
        assert scores.entropy_RT is not None
        return scores.logp_RT.sum() + scores.entropy_RT.sum()


@pytest.fixture
def process_group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["DistributedDataParallel", "FSDP2"])
@pytest.mark.parametrize("kind", ["llama", "llama_grouped", "gpt2"])
def test_inside_a_wrapped_module(kind: str, wrapper: str, process_group: None) -> None:
    plain, wrapped = Scorer(make_model(kind)), Scorer(make_model(kind))
    expected = gradients(plain, plain())
    if wrapper == "FSDP2":
        for layer in wrapped.model.transformer.h if kind == "gpt2" else wrapped.model.model.layers:
            fully_shard(layer)
        fully_shard(wrapped)
        found = {name: p.full_tensor() for name, p in gradients(wrapped, wrapped()).items()}
    else:
        data_parallel = DistributedDataParallel(wrapped)
        found = gradients(wrapped, data_parallel())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("temperature", "allowed"), [(1.0, None), (0.7, ALLOWED)])
def test_values_and_gradients_of_full_logits(scored: Any, temperature: float, allowed: Tensor | None) -> None:
    assert_scores_match(scored, temperature=temperature, allowed=allowed)


def test_blocks_kept_or_computed_again_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama_grouped")
    monkeypatch.setattr(blocks, "_BLOCK_ELEMENTS", 1)  # the least size of a block: 16 of 21 tokens
    monkeypatch.setattr(blocks, "_KEEP_ELEMENTS", 16 * VOCAB)
    assert_scores_match(model, temperature=0.7)


def test_rows_read_together_or_apart_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama_grouped")
    monkeypatch.setattr(group_scoring, "_PASS_TOKENS", 0)
    assert_scores_match(model)


def test_checkpointed_activations() -> None:
    model = make_model("llama_grouped")
    model.activation_checkpointing_enable()
    model.train()
    assert_scores_match(model)


@pytest.mark.parametrize("kind", ["llama", "llama_grouped"])
def test_only_what_requires_a_gradient_gets_one(kind: str) -> None:
    model = make_model(kind)
    everything = gradients(model, lm.group_scores(model, PROMPTS, COMPLETIONS, PROMPT_OF_ROW).logp_RT.sum())
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    logp_RT = lm.group_scores(model, PROMPTS, COMPLETIONS, PROMPT_OF_ROW).logp_RT
    head = gradients(model, logp_RT.sum())
    assert len(head) == 1
    if kind == "llama":  # untied: the head's own gradient is all there is
        torch.testing.assert_close(head["lm_head.weight"], everything["lm_head.weight"])
    with torch.no_grad():
        assert not lm.group_scores(model, PROMPTS, COMPLETIONS, PROMPT_OF_ROW).logp_RT.requires_grad


def test_log_probabilities_are_those_of_the_sampler(llama: Any) -> None:
    options: dict[str, Any] = {"eos_id": 2, "pad_id": 1, "temperature": 0.8, "allowed_mask_V": ALLOWED}
    generator = torch.Generator().manual_seed(0)
    samples = lm.generate(llama, PROMPTS, group_size=4, max_new_tokens=12, generator=generator, **options)
    of_row = [n // 4 for n in range(12)]
    with torch.no_grad():
        scores = lm.group_scores(llama, PROMPTS, samples.completions(), of_row, temperature=0.8, allowed_mask_V=ALLOWED)
    torch.testing.assert_close(scores.logp_RT, samples.logp_RT, rtol=0, atol=1e-5)
    assert torch.equal(scores.mask_RT, samples.mask_RT)


def test_bfloat16_autocast_is_close_and_its_gradients_are_float32() -> None:
    model = make_model("llama_grouped")
    exact = lm.group_scores(model, PROMPTS, COMPLETIONS, PROMPT_OF_ROW, entropy=True)
    with torch.autocast("cpu", torch.bfloat16):
        scores = lm.group_scores(model, PROMPTS, COMPLETIONS, PROMPT_OF_ROW, entropy=True)
    assert scores.logp_RT.dtype == torch.float32
    assert 0 < (scores.logp_RT - exact.logp_RT).abs().max() < 0.5
    ours, theirs = gradients(model, scores.logp_RT.sum()), gradients(model, exact.logp_RT.sum())
    for name, gradient in theirs.items():
        assert ours[name].dtype == torch.float32
        assert torch.cosine_similarity(ours[name].flatten(), gradient.flatten(), dim=0) > 0.99


def brute_force_cost(lengths: list[int], most: int) -> float:
    """The least cost of cutting sorted lengths into at most so many passes, each a cost of 10."""
    if not lengths:
        return 0
    if most == 0:
        return float("inf")
    first = range(1, len(lengths) + 1)
    return min(n * lengths[n - 1] + 10 + brute_force_cost(lengths[n:], most - 1) for n in first)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_passes_cost_least(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_scoring, "_PASS_TOKENS", 10)
    for seed in range(20):
        length_R = torch.randint(0, 40, (9,), generator=torch.Generator().manual_seed(seed))
        passes = group_scoring._passes(length_R, most)
        assert sorted(torch.cat(passes).tolist()) == list(range(9))
        assert len(passes) <= most
        cost = sum(len(rows) * int(length_R[rows].max()) + 10 for rows in passes)
        assert cost == brute_force_cost(sorted(length_R.tolist()), most)


@pytest.mark.parametrize(
    ("prompts", "of_row", "allowed", "message"),
    [
        ([], [0], None, "at least one prompt"),
        ([[3], []], [0], None, "at least one token"),
        ([[3]], [0, 0], None, "2 entries of prompt_of_row"),
        ([[3]], [1], None, "from 0 to 0"),
        ([[3]], [0], torch.ones(47, dtype=torch.bool), "47"),
    ],
)
def test_impossible_requests_are_refused(
    llama: Any, prompts: list[list[int]], of_row: list[int], allowed: Tensor | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        lm.group_scores(llama, prompts, [[4, 5]], of_row, allowed_mask_V=allowed)


def test_logits_are_those_of_whole_sequences(scored: Any) -> None:
    found = lm.group_logits(scored, PROMPTS, COMPLETIONS, PROMPT_OF_ROW)
    logps, _, _ = reference(scored, 1.0, None)
    for logits_TV, completion, logp_T in zip(found, COMPLETIONS, logps, strict=True):
        assert logits_TV.shape == (len(completion), VOCAB)
        ids_T1 = torch.tensor(completion, dtype=torch.int64)[:, None]
        torch.testing.assert_close(logits_TV.log_softmax(-1).gather(1, ids_T1)[:, 0], logp_T, atol=1e-4, rtol=1e-4)


def test_completions_without_tokens(llama: Any) -> None:
    scores = lm.group_scores(llama, [[5], [6]], [[], []], [1, 0], entropy=True, hidden=True)
    assert scores.logp_RT.shape == scores.mask_RT.shape == (2, 0)
    assert scores.hidden_RTD is not None
    assert scores.hidden_RTD.shape == (2, 0, 32)
