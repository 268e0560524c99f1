"""A document says which of its tokens are prompt, latents and lines; what cannot be written is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ra3gym.abstractions.latents import Annotations, LatentPath
from ra3gym.abstractions.latents.controls import paused
from ra3gym.abstractions.latents.document import Document, DocumentWriter
from ra3gym.errors import ConfigError, DataError, ModelError
from ra3gym.lm import add_latents, train_tokenizer
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests


def make_trace(prompt: str, *steps: str, name: str = "mine/0") -> ExpertTrace:
    return ExpertTrace(CodeTask(name, prompt, "f", FunctionTests((), ())), steps)


TRACES = [
    make_trace("# up twice\ndef f(n):\n", "    n += 1\n", "    n += 1\n", "    return n\n"),
    make_trace("def f(n):\n", "    return -n\n", name="mine/1"),
]
INFERRED = Annotations(
    paths=(LatentPath((2, 2, 0), (True, False, True)), LatentPath((0,), (True,))),
    names=((), ("never",), ("up", "twice")),
)
COMMENTED = Annotations(INFERRED.paths, INFERRED.names, comments=("", "# never", "# count up"))


@pytest.fixture(scope="module")
def joining() -> Any:
    """A tokenizer of GPT-2's kind: it joins a line break to the indent after it."""
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    programs = [trace.prompt + "".join(trace.steps) + "# count up\n" for trace in TRACES] * 20
    whole.train_from_iterator(programs, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    whole.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole)
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    return tokenizer


def pieces(tokenizer: Any, document: Document) -> tuple[str, list[str], list[str]]:
    """The texts of the prompt's, the latents' and the lines' tokens."""

    def text(span: tuple[int, int]) -> str:
        return str(tokenizer.decode(list(document.ids[slice(*span)]), skip_special_tokens=False))

    return text(document.prompt_tokens), [*map(text, document.latent_tokens)], [*map(text, document.line_tokens)]


def test_spans_say_what_tokens_are(tokenizer: Any) -> None:
    writer = DocumentWriter(tokenizer)
    document = writer.write(TRACES[0], INFERRED, 0)
    assert pieces(tokenizer, document) == (TRACES[0].prompt, ["<|z2|>", "<|z0|>"], list(TRACES[0].steps))
    commented = writer.write(TRACES[0], COMMENTED, 0, prompt="# mine\n")
    assert pieces(tokenizer, commented) == ("# mine\n", ["    # count up\n", ""], list(TRACES[0].steps))
    plain = writer.write(TRACES[0])
    assert pieces(tokenizer, plain) == (TRACES[0].prompt, [], list(TRACES[0].steps))
    assert plain.segments == plain.latents == ()
    assert plain.loss_mask == (False, *[True] * (len(plain.ids) - 1))


def test_a_token_that_is_joined_belongs_to_the_part_it_begins_in(joining: Any) -> None:
    """Such a program is encoded as a whole; the spans still follow one another."""
    for comments, latents in ((COMMENTED, [" # count up\n   ", ""]), (None, [])):
        document = DocumentWriter(joining).write(TRACES[0], comments, 0)
        assert list(document.ids[:-1]) == joining.encode(document.text, add_special_tokens=False)
        assert pieces(joining, document) == (
            "# up twice\ndef f(n):\n   ",
            latents,
            [" n += 1\n   ", " n += 1\n   ", " return n\n"],
        )


def test_spans_must_follow_one_another(tokenizer: Any) -> None:
    document = DocumentWriter(tokenizer).write(TRACES[0], INFERRED, 0)
    spans = [document.prompt_tokens, document.latent_tokens[0], *document.line_tokens[:2]]
    assert all(one[1] == other[0] for one, other in pairwise(spans))
    fields = vars(document) | {"ids": document.ids[:-1]}
    with pytest.raises(DataError, match="the spans end at token"):
        Document(**fields)
    with pytest.raises(DataError, match="0 spans of latents for 2 segments"):
        Document(**vars(document) | {"latent_tokens": ()})


def test_what_cannot_be_written() -> None:
    tokenizer: Any = train_tokenizer(["n += 1\n"], vocab_size=300)
    add_latents(None, tokenizer, 2)
    writer = DocumentWriter(tokenizer)
    with pytest.raises(ConfigError, match="use 3 latents, the tokenizer knows 2"):
        writer.check(TRACES, INFERRED)
    writer.check(TRACES, COMMENTED)
    with pytest.raises(ModelError, match=r"has no <\|pause\|>"):
        writer.check(TRACES, paused(INFERRED, np.random.default_rng(0)))
    add_latents(None, tokenizer, 3)
    writer = DocumentWriter(tokenizer)
    writer.check(TRACES, INFERRED)
    with pytest.raises(DataError, match="2 paths for 1 traces"):
        writer.check(TRACES[:1], INFERRED)
    with pytest.raises(DataError, match="trace 'mine/1' has 1 lines, its path 3"):
        writer.check(TRACES[::-1], INFERRED)
    with pytest.raises(DataError, match="trace 'mine/0' is under a latent outside 0 to 1"):
        writer.check(TRACES, Annotations(INFERRED.paths, ((), ())))
    gains = ((0.0,) * 3, (float("nan"),))
    with pytest.raises(DataError, match="trace 'mine/1' has a gain that is not finite"):
        writer.check(TRACES, Annotations(INFERRED.paths, INFERRED.names, gains=gains))
