"""A batch stream is one token stream per row, whatever the order in which rows write, wait and begin anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from ra3gym import lm
from ra3gym.errors import ConfigError
from ra3gym.lm.fast.batch_stream import BatchStream, CacheRows, SeparateRows, draw
from ra3gym.lm.fast.llama_rows import LlamaRows
from ra3gym.lm.stream import TokenStream
from tests.lm.conftest import KINDS, VOCAB, make_model

TOKENIZER: Any = None  # a batch stream decodes nothing until it is asked for text


def sliding_model() -> Any:
    """A model whose cache keeps a window only."""
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MistralForCausalLM(
            MistralConfig(**size, vocab_size=VOCAB, num_key_value_heads=4, sliding_window=6)
        ).eval()


MODELS = {kind: make_model(kind).eval() for kind in KINDS} | {"sliding": sliding_model()}


def prompts_of(rng: np.random.Generator, number: int) -> list[list[int]]:
    return [rng.integers(2, VOCAB, size=rng.integers(1, 9)).tolist() for _ in range(number)]


def assert_rows_are_streams(stream: BatchStream, alone: list[TokenStream]) -> None:
    for row, single in enumerate(alone):
        assert stream.prompt_ids[row] == single.prompt_ids
        assert stream.written[row] == single.written
        logp_V = stream.logits_EV[row].float().log_softmax(-1)
        torch.testing.assert_close(logp_V, single.logp_V, rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(stream.hidden_ED[row].float(), single.hidden_D, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5))
def test_rows_write_wait_and_begin_anew_on_their_own(kind: str, seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    loaded = lm.LoadedModel(MODELS[kind], TOKENIZER)
    prompts = prompts_of(rng, rows)
    stream, alone = BatchStream(loaded, prompts), [TokenStream(loaded, prompt) for prompt in prompts]
    assert_rows_are_streams(stream, alone)
    for _ in range(20):
        chosen = rng.permutation(rows)[: rng.integers(1, rows + 1)].tolist()
        if rng.random() < 0.2:
            fresh = prompts_of(rng, len(chosen))
            stream.begin(chosen, fresh)
            for row, prompt in zip(chosen, fresh, strict=True):
                alone[row] = TokenStream(loaded, prompt)
        else:
            tokens = rng.integers(2, VOCAB, size=len(chosen)).tolist()
            stream.write(chosen, tokens)
            for row, token in zip(chosen, tokens, strict=True):
                alone[row].write(token)
        assert_rows_are_streams(stream, alone)


@pytest.mark.parametrize(
    ("kind", "rows"), [("llama", LlamaRows), ("qwen2", LlamaRows), ("gpt2", CacheRows), ("sliding", SeparateRows)]
)
def test_each_model_takes_the_fastest_way_that_fits_it(kind: str, rows: type) -> None:
    assert type(BatchStream(lm.LoadedModel(MODELS[kind], TOKENIZER), [[2]])._rows) is rows


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_long_rows_outgrow_what_was_set_aside(kind: str) -> None:
    loaded = lm.LoadedModel(MODELS[kind], TOKENIZER)
    stream, alone = BatchStream(loaded, [[2, 3], [4], [5]]), [TokenStream(loaded, ids) for ids in ([2, 3], [4], [5])]
    for t in range(100):  # the second row waits, nearly always
        for row in (0, 2) if t % 10 else (0, 1, 2):
            alone[row].write(2 + t % 40)
        stream.write((0, 2) if t % 10 else (0, 1, 2), [2 + t % 40] * (2 if t % 10 else 3))
    assert_rows_are_streams(stream, alone)


def test_text_is_what_a_row_has_written(tiny_model_folder: Path) -> None:
    loaded = lm.load(tiny_model_folder)
    stream = BatchStream(loaded, [loaded.tokenizer.encode("def f(x):"), [5]])
    for token in loaded.tokenizer.encode("\n    <|z1|>return 'é'\n"):
        stream.write([0], [token])
    assert (stream.text(0), stream.text(1)) == ("\n    <|z1|>return 'é'\n", "")


@pytest.mark.parametrize("prompts", [[], [[2], []]])
def test_empty_prompts_are_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        BatchStream(lm.LoadedModel(MODELS["llama"], TOKENIZER), prompts)


# Drawing


def test_a_draw_inverts_the_distribution_function() -> None:
    logits_BV = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(6, 4)
    assert draw(logits_BV, [0.0, 0.09, 0.11, 0.31, 0.61, 1 - 2**-53]) == [0, 0, 1, 2, 3, 3]
    allowed_V = torch.tensor([True, False, True, False])
    assert draw(logits_BV, [0.0, 0.2, 0.26, 0.5, 0.9, 1 - 2**-53], allowed_V=allowed_V) == [0, 0, 2, 2, 2, 2]


def test_a_draw_without_numbers_takes_the_likeliest_token() -> None:
    logits_BV = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert draw(logits_BV, None) == [1, 0]
    assert draw(logits_BV, None, allowed_V=torch.tensor([False, False, True])) == [2, 2]


def test_temperature_sharpens_and_flattens() -> None:
    logits_BV = torch.tensor([[0.0, 1.0]])
    uniform = np.linspace(0, 1, 2000, endpoint=False)
    for temperature in (0.5, 1.0, 3.0):
        share = np.mean(draw(logits_BV.expand(2000, 2), uniform.tolist(), temperature=temperature))
        assert share == pytest.approx(1 / (1 + np.exp(-1 / temperature)), abs=1e-3)
