"""The CPU's attention for bfloat16 is attention, is used where it gains, and leaves models as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ra3gym import lm
from ra3gym.errors import ConfigError
from ra3gym.lm.fast import cpu_attention
from ra3gym.lm.fast.cpu_attention import _Attention, plain_attention
from tests.lm.conftest import make_model

PROMPTS = [[5, 6, 7, 8, 9], [11], [3, 4, 30]]
COMPLETIONS = [[7, 8, 9], [10], [11, 12, 13, 14, 15, 16], [20, 21], [], [22, 23, 24]]
PROMPT_OF_ROW = [0, 0, 1, 1, 2, 2]


def inputs(kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(kv_heads)
    shapes = [(3, 4, 5, 8), (3, kv_heads, 9, 8), (3, kv_heads, 9, 8)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def bias() -> Tensor:
    """Causal, with padding at the left of the second row."""
    hidden = torch.ones(5, 9, dtype=torch.bool).triu(5).expand(3, 1, 5, 9).clone()
    hidden[1, ..., :2] = True
    return torch.zeros(3, 1, 5, 9).masked_fill(hidden, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_results_and_gradients_are_those_of_float32(kv_heads: int, dtype: torch.dtype, atol: float) -> None:
    ours = inputs(kv_heads, dtype)
    theirs = [x.detach().float().requires_grad_() for x in ours]
    mixed = _Attention.apply(*ours, bias(), 0.3)
    keys, values = (x.repeat_interleave(4 // kv_heads, 1) for x in theirs[1:])
    expected = F.scaled_dot_product_attention(theirs[0], keys, values, bias(), scale=0.3)
    torch.testing.assert_close(mixed.float(), expected, rtol=0, atol=atol)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (mixed.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.float(), its.grad, rtol=0, atol=2 * atol)


def scored(model: Any, *, in_bfloat16: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the gradient of their sum."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bfloat16):
        scores = lm.group_scores(model, PROMPTS, COMPLETIONS, PROMPT_OF_ROW)
    scores.logp_RT.sum().backward()
    return scores.logp_RT.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()])


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", ["llama", "llama_grouped", "qwen2", "mistral", "gpt2"])
@pytest.mark.parametrize("most_pairs", [2**25, 0])
def test_scores_are_as_near_to_float32_as_with_the_fused_kernel(
    kind: str, most_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(kind)
    exact = scored(model, in_bfloat16=False)
    calls = []
    plain = _Attention.apply
    monkeypatch.setattr(_Attention, "apply", lambda *given: calls.append(1) or plain(*given))
    monkeypatch.setattr(cpu_attention, "_MOST_PAIRS", most_pairs)
    ours = scored(model, in_bfloat16=True)
    assert bool(calls) == bool(most_pairs and kind != "gpt2")  # whose attention may be asked for more
    monkeypatch.setattr(cpu_attention, "_in_bfloat16_on_cpu", lambda model: False)
    fused = scored(model, in_bfloat16=True)
    for mine, its, wanted in zip(ours, fused, exact, strict=True):
        assert distance(mine, wanted) < 1.5 * distance(its, wanted)
        assert distance(mine, wanted) < 0.05


def test_the_models_own_attention_comes_back() -> None:
    model = make_model("llama")
    assert model.config._attn_implementation == "sdpa"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with plain_attention(model):
            assert model.config._attn_implementation == "ra3gym_cpu"
        with pytest.raises(ConfigError), plain_attention(model):
            raise ConfigError
    assert model.config._attn_implementation == "sdpa"
    with plain_attention(model):  # in float32
        assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with torch.autocast("cpu", dtype=torch.bfloat16), plain_attention(model):
        assert model.config._attn_implementation == "eager"
