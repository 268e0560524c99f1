"""Tiny models of the kinds the code tells apart; randomly initialized, with weights large enough to have opinions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB = 48
KINDS = ("llama", "llama_grouped", "llama_bias_scaled", "qwen2", "mistral", "gpt2")


def make_model(kind: str) -> Any:
    """A model over `VOCAB` tokens. GPT-2 takes the general decoder, the others the fast one."""
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    size |= {"vocab_size": VOCAB, "max_position_embeddings": 128}
    special: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any
        if kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**size, **special))
        elif kind == "llama_grouped":
            model = LlamaForCausalLM(LlamaConfig(**size, **special, num_key_value_heads=2, tie_word_embeddings=True))
        elif kind == "llama_bias_scaled":
            rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
            options: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "rope_parameters": rope}
            model = LlamaForCausalLM(LlamaConfig(**size, **special, **options, num_key_value_heads=1, head_dim=16))
        elif kind == "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**size, **special, num_key_value_heads=2))
        elif kind == "mistral":
            model = MistralForCausalLM(MistralConfig(**size, **special, num_key_value_heads=2, sliding_window=None))
        else:
            config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, vocab_size=VOCAB, **special)
            model = GPT2LMHeadModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.25)
                elif not bool((parameter == 1).all()):
                    parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="session", params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return make_model(request.param)


@pytest.fixture(scope="session")
def llama() -> Any:
    return make_model("llama")
