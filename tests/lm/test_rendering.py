"""Texts are encoded as a whole, and completions begin where the tokenizer itself would end a token."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from ra3gym.abstractions.latents import Annotations, LatentPath
from ra3gym.abstractions.latents.document import DocumentWriter
from ra3gym.errors import DataError
from ra3gym.lm import add_latents, encode_prompt
from ra3gym.lm.rendering import Prompt, completion_text, cut_prompt, ends_lines, render, token_texts
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests
from tests.lm.tokenizer_kinds import KINDS, NATURAL, PROMPTS, SOLUTIONS, make_tokenizer

PAIRS = tuple(zip(PROMPTS, SOLUTIONS, strict=True))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_first_token_is_that_of_the_whole_program(kind: str, pair: tuple[str, str]) -> None:
    tokenizer = make_tokenizer(kind)
    prompt = cut_prompt(tokenizer, pair[0])
    whole = encode_prompt(tokenizer, "".join(pair))
    count = len(prompt.ids)
    assert whole[:count] == prompt.ids
    if kind in NATURAL:
        assert prompt == Prompt(encode_prompt(tokenizer, pair[0]))
        return
    assert prompt.forced.strip() == ""
    assert prompt.forced != ""
    texts = token_texts(tokenizer)
    allowed_V = texts.compatible_V(prompt.forced, len(tokenizer))
    assert bool(allowed_V[whole[count]])
    assert not bool(allowed_V[tokenizer.eos_token_id])
    assert all(texts[token].startswith("\n") for token in allowed_V.nonzero()[:, 0].tolist())
    assert completion_text(tokenizer, prompt, whole[count:]) == pair[1]


@pytest.mark.parametrize(
    ("kind", "text", "forced"),
    [
        ("gpt2", "x = ", " "),  # the next word has the blank
        ("gpt2", "def f(x):\n    return", ""),
        ("gpt2", "if x:\n    ", " "),
        ("llama3", "def f(x):", ":"),  # the colon has the line break
        ("llama3", "    return", ""),
        ("embedded", "def f(x):", ""),
        ("embedded", "    return", ""),
        ("embedded", "", ""),
    ],
)
def test_prompts_without_a_line_break_at_their_end(kind: str, text: str, forced: str) -> None:
    tokenizer = make_tokenizer(kind)
    prompt = cut_prompt(tokenizer, text)
    assert forced in prompt.forced
    assert bool(prompt.forced) == bool(forced)
    assert prompt.ids[:1] == encode_prompt(tokenizer, text)[:1]
    assert completion_text(tokenizer, Prompt([]), prompt.ids) + prompt.forced == text or not text


def test_forced_text_may_take_several_tokens() -> None:
    tokenizer = make_tokenizer("gpt2")
    texts = token_texts(tokenizer)
    one = tokenizer.encode("\n", add_special_tokens=False)[0]
    assert bool(texts.compatible_V("\n\n", len(tokenizer))[one])
    assert texts.rest("\n\n", one) == "\n"
    assert texts.rest("\n", one) == ""
    assert texts.rest("\n", tokenizer.encode("\n   x", add_special_tokens=False)[0]) == ""


def test_documents_decode_to_their_text_and_spans_cover_them(kind: str) -> None:
    tokenizer: Any = make_tokenizer(kind)
    for prompt, solution in PAIRS:
        steps = tuple(solution.splitlines(keepends=True))
        trace = ExpertTrace(CodeTask("mine/0", prompt, "f", FunctionTests((), ())), steps)
        document = DocumentWriter(tokenizer).write(trace)
        assert list(document.ids[:-1]) == encode_prompt(tokenizer, prompt + solution)
        assert tokenizer.decode(document.ids[:-1]) == prompt + solution
        spans = [document.prompt_tokens, *document.line_tokens]
        assert all(one[1] == other[0] for one, other in pairwise(spans))
        assert spans[0][0] == 0
        assert spans[-1][1] == len(document.ids) - 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "embedded"])
def test_documents_with_latents(kind: str) -> None:
    tokenizer: Any = make_tokenizer(kind).__class__(tokenizer_object=make_tokenizer(kind).backend_tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    latents = add_latents(None, tokenizer, 2)
    prompt, solution = PAIRS[2]
    steps = tuple(solution.splitlines(keepends=True))
    annotations = Annotations((LatentPath((1, 1, 0), (True, False, True)),), ((), ()))
    trace = ExpertTrace(CodeTask("mine/0", prompt, "f", FunctionTests((), ())), steps)
    document = DocumentWriter(tokenizer).write(trace, annotations)
    assert tokenizer.decode(document.ids[:-1], skip_special_tokens=False) == document.text
    assert [document.ids[slice(*span)] for span in document.latent_tokens] == [(latents[1],), (latents[0],)]


def test_lines_are_encoded_one_by_one_only_where_that_is_the_same() -> None:
    assert {kind for kind in KINDS if ends_lines(make_tokenizer(kind))} == {"metaspace", "words", "trained", "embedded"}


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    tokenizer = make_tokenizer("words")
    with pytest.raises(DataError, match="does not give a text back: 'unheard of' is decoded to '<unk>"):
        render(tokenizer, ["x = unheard of"[:4], "unheard of"])
