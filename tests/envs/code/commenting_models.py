"""Tokenizers of every kind, and tiny models that were trained on a few programs with comments, so that lines end."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ra3gym import lm
from ra3gym.agents.mid_training import MStepConfig, distill
from ra3gym.tasks import CodeTask, FunctionTests

PROMPT = "def f(x):\n"
BODY = "    # add one\n    y = x + 1\n    # give it back\n    return y\n"
PLUS_ONE = CodeTask("plus one", PROMPT, "f", FunctionTests(((1,), (5,)), (2, 6)))

GPT2 = r"'s| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = [
    PROMPT + BODY,
    PROMPT + "    if x:\n        # 1\n\n        y()\n    # up (so)\n    return y",
    PROMPT + "#\n# x\n\n    #: z\n    y = x\n    y += 1\n    return y\n",
]


def bpe(pattern: str) -> Any:
    """Return a byte-level BPE that splits text by a pattern."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>")


def joining() -> Any:
    """Return a tokenizer with one token for a line break, an indent and the beginning of a comment."""
    tokenizer = lm.train_tokenizer(TEXTS, vocab_size=300)
    tokenizer.add_tokens(["\n    #"])
    return tokenizer


TOKENIZERS = {
    "gpt2": bpe(GPT2),
    "llama3": bpe(LLAMA3),
    "own": lm.train_tokenizer(TEXTS, vocab_size=300),
    "joining": joining(),
}


MODELS = ("llama", "gpt2", "qwen2")


@lru_cache
def commenting_model(kind: str, name: str) -> lm.LoadedModel:
    """Return a model trained on `TEXTS`; in float64, so that results do not depend on the size of the batch."""
    tokenizer = TOKENIZERS[name]
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    special: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    model: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "qwen2":
            options = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
            model = Qwen2ForCausalLM(Qwen2Config(**size, **options, **special))
        elif kind == "gpt2":
            options = {"n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 4}
            # Dropout would draw from the global generator, so that the model depended on the tests before.
            dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
            model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **options, **dropout, **special))
        else:
            model = lm.tiny_llama(tokenizer, hidden=32, kv_heads=2, max_length=512, seed=0)
    _teach(model, tokenizer, TEXTS, 8_000)
    return lm.LoadedModel(model.double().eval(), tokenizer)


@lru_cache
def model_of_one_program(name: str) -> lm.LoadedModel:
    """Return a model that writes `BODY` from memory."""
    tokenizer = TOKENIZERS[name]
    model = lm.tiny_llama(tokenizer, hidden=32, layers=2, heads=2, max_length=512, seed=0)
    _teach(model, tokenizer, [PROMPT + BODY], 12_000)
    return lm.LoadedModel(model, tokenizer)


def save_commenting_model(folder: Path) -> None:
    """Save the Llama of `commenting_model`, for environments that are made by name."""
    loaded = commenting_model("llama", "own")
    lm.save(loaded.model, loaded.tokenizer, folder)


def _teach(model: Any, tokenizer: Any, texts: list[str], tokens: int) -> None:
    # The prompt by itself, as the environments read it: some tokenizer would join its last line break to a comment.
    parts = [text.partition(PROMPT)[1:] for text in texts]
    documents = [[*tokenizer.encode(prompt), *tokenizer.encode(body), tokenizer.eos_token_id] for prompt, body in parts]
    distill(model, documents * 6, MStepConfig(tokens=tokens, learning_rate=1e-2, tokens_per_batch=256), seed=0)
