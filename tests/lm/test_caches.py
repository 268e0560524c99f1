"""State-space and hybrid models: what has no cache of keys and values is read as a whole, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from ra3gym import lm
from ra3gym.abstractions.latents.emissions import model_emissions
from ra3gym.agents.rlvr import train
from ra3gym.errors import ModelError
from ra3gym.lm.caches import _warn_slow_path, has_row_cache
from ra3gym.lm.fast.batch_stream import BatchStream
from ra3gym.lm.sampling import CacheDecoder
from ra3gym.lm.stream import TokenStream
from tests.agents.rlvr.bandits import QUICK, TASKS, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*keeps a recurrent state")

SMALL: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
ATTENTION: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
LINEAR = dict.fromkeys(
    ("linear_num_value_heads", "linear_num_key_heads", "linear_key_head_dim", "linear_value_head_dim", "head_dim"), 8
) | {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "num_experts": 2, "num_experts_per_tok": 1}
FAMILIES: dict[str, Callable[[], Any]] = {
    "mamba": lambda: transformers.MambaConfig(**SMALL, num_hidden_layers=2, state_size=8),
    "recurrent_gemma": lambda: transformers.RecurrentGemmaConfig(
        **SMALL, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, lru_width=32
    ),
    "lfm2": lambda: transformers.Lfm2Config(
        **SMALL, **ATTENTION, num_hidden_layers=2, layer_types=["conv", "full_attention"]
    ),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **SMALL,
        **ATTENTION,
        **LINEAR,
        num_hidden_layers=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
}
PROMPTS = [[5, 6], [7, 8, 9]]


@pytest.fixture(params=FAMILIES, scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(FAMILIES[request.param]()).eval()


@torch.no_grad()
def logp_after(model: Any, ids: list[int]) -> torch.Tensor:
    whole: torch.Tensor = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return whole


def test_such_models_are_known(model: Any) -> None:
    assert not has_row_cache(model)
    assert has_row_cache(tiny().model)


def test_samples_have_the_log_probabilities_of_a_whole_pass(model: Any) -> None:
    samples = lm.generate(
        model, PROMPTS, group_size=3, max_new_tokens=6, eos_id=0, pad_id=1, generator=torch.Generator().manual_seed(0)
    )
    for row, ids in enumerate(samples.completions()):
        prompt = PROMPTS[row // 3]
        whole = logp_after(model, [*prompt, *ids])[len(prompt) - 1 :]
        torch.testing.assert_close(samples.logp_RT[row, : len(ids)], whole[range(len(ids)), ids], rtol=0, atol=1e-4)


def test_scores_and_gradients_are_those_of_whole_passes(model: Any) -> None:
    completions, prompt_of_row = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]], [0, 0, 1, 1]
    scores = lm.group_scores(model, PROMPTS, completions, prompt_of_row)
    for row, ids in enumerate(completions):
        prompt = PROMPTS[prompt_of_row[row]]
        whole = logp_after(model, [*prompt, *ids])[len(prompt) - 1 :]
        ours = scores.logp_RT[row, : len(ids)].detach()
        torch.testing.assert_close(ours, whole[range(len(ids)), ids], rtol=0, atol=1e-4)
    assert scores.logp_RT.requires_grad


def test_streams_of_environments_read_them(model: Any) -> None:
    loaded = lm.LoadedModel(model, tiny().tokenizer)
    stream = TokenStream(loaded, [5, 6])
    for token in (7, 9):
        stream.write(token)
    torch.testing.assert_close(stream.logp_V, logp_after(model, [5, 6, 7, 9])[-1], rtol=0, atol=1e-4)
    batch = BatchStream(loaded, PROMPTS)
    batch.write([0, 1], [7, 9])
    batch.begin([0], [[4, 4, 4]])
    batch.write([0, 1], [8, 2])
    for row, ids in enumerate([[4, 4, 4, 8], [7, 8, 9, 9, 2]]):
        ours = batch.logits_EV[row].float().log_softmax(-1)
        torch.testing.assert_close(ours, logp_after(model, ids)[-1], rtol=0, atol=1e-4)


def test_they_can_be_post_trained(model: Any) -> None:
    loaded = lm.LoadedModel(model, tiny().tokenizer)
    config = replace(QUICK, steps=1, group_size=8)
    (step,) = train(loaded, TASKS, config=config, reward=lambda task, text: float(len(text) % 2)).history
    assert step.grad_norm > 0


def test_what_needs_a_cache_of_keys_and_values_names_the_family(model: Any) -> None:
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ModelError, match=f"{type(model).__name__} keeps a recurrent state: take a transformer"):
        CacheDecoder(model, ids, torch.ones_like(ids), 2, 4)
    with pytest.raises(ModelError, match="scoring lines under latents needs a model that keeps keys and values"):
        model_emissions(model, tiny().tokenizer, [])


def test_the_slow_path_is_named_once(model: Any) -> None:
    _warn_slow_path.cache_clear()
    options: dict[str, Any] = {"max_new_tokens": 1, "eos_id": 0, "pad_id": 1, "generator": torch.Generator()}
    with pytest.warns(UserWarning, match=f"{type(model).__name__} keeps a recurrent state.*slow"):
        lm.generate(model, PROMPTS, **options)
