"""Documents of a recipe, token by token; without their latents they are the programs they were made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.controls import paused
from ra3gym.abstractions.latents.document import DocumentWriter
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.agents.mid_training.recipe import LATENT_SOURCES, Recipe, pseudo_prompt, write_documents
from ra3gym.errors import ConfigError, Ra3GymError
from ra3gym.lm import latent_token, pause_id, strip_latents
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests


def make_trace(prompt: str, *steps: str) -> ExpertTrace:
    return ExpertTrace(CodeTask("mine/0", prompt, "f", FunctionTests(((1,),), (1,)), "".join(steps)), steps)


DOCUMENTED = make_trace("# evens\ndef f(xs):\n", "    xs = xs[1:]\n", "    xs.sort()\n", "    return xs\n")
BARE = make_trace("def f(xs):\n", "    xs = xs[::-1]\n", "    return xs\n")
ANNOTATIONS = Annotations(
    paths=(LatentPath((3, 3, 1), (True, False, True)), LatentPath((1, 2), (True, True))),
    names=((), ("reverse", "backward"), (), ("tail",)),
)
PAUSED = paused(ANNOTATIONS, np.random.default_rng(0))


@pytest.fixture(scope="module")
def writer(tokenizer: Any) -> DocumentWriter:
    return DocumentWriter(tokenizer)


def documents(writer: DocumentWriter, **options: Any) -> list[list[int]]:
    written = write_documents(writer, [DOCUMENTED, BARE], rng=np.random.default_rng(0), **options)
    return [list(document.ids) for document in written]


def text_of(writer: DocumentWriter, ids: list[int]) -> str:
    text = writer.tokenizer.decode(ids, skip_special_tokens=False)
    assert text.endswith("<|endoftext|>")
    return str(text.removesuffix("<|endoftext|>"))


def ids_of(writer: DocumentWriter, *parts: str) -> list[int]:
    """Each part encoded on its own, special tokens by name."""
    encoded = [writer.tokenizer.encode(part, add_special_tokens=False) for part in parts]
    return [token for ids in encoded for token in ids]


def test_plain_documents(writer: DocumentWriter) -> None:
    assert documents(writer) == [
        [*ids_of(writer, DOCUMENTED.task.canonical_program), writer.tokenizer.eos_token_id],
        [*ids_of(writer, BARE.task.canonical_program), writer.tokenizer.eos_token_id],
    ]


def test_latents_stand_at_switches_only(writer: DocumentWriter) -> None:
    first, second = documents(writer, latents=ANNOTATIONS)
    one, two, three = DOCUMENTED.steps
    assert first == ids_of(
        writer, DOCUMENTED.prompt, latent_token(3), one, two, latent_token(1), three, "<|endoftext|>"
    )
    assert second == ids_of(
        writer, BARE.prompt, latent_token(1), BARE.steps[0], latent_token(2), BARE.steps[1], "<|endoftext|>"
    )
    assert sum(token in writer.latent_ids for token in first) == 2


def test_pauses_stand_where_latents_would(writer: DocumentWriter) -> None:
    pause = pause_id(writer.tokenizer)
    marked, stopped = documents(writer, latents=ANNOTATIONS), documents(writer, latents=PAUSED)
    replaced = [[pause if token in writer.latent_ids else token for token in ids] for ids in marked]
    assert stopped == replaced
    assert sum(token == pause for ids in stopped for token in ids) == 4


def test_only_missing_prompts_are_written(writer: DocumentWriter) -> None:
    first, second = documents(writer, prompts=ANNOTATIONS)
    assert first == documents(writer)[0]
    assert text_of(writer, second) in {f"# {word}\n{BARE.task.canonical_program}" for word in ("reverse", "backward")}
    assert second == ids_of(writer, text_of(writer, second), "<|endoftext|>")


def test_without_latents_and_pauses_the_program_remains(writer: DocumentWriter) -> None:
    for latents in (ANNOTATIONS, PAUSED):
        for trace, ids in zip([DOCUMENTED, BARE], documents(writer, latents=latents), strict=True):
            assert strip_latents(text_of(writer, ids)) == trace.task.canonical_program
    both = documents(writer, latents=ANNOTATIONS, prompts=ANNOTATIONS)
    pseudo = documents(writer, prompts=ANNOTATIONS)
    assert [strip_latents(text_of(writer, ids)) for ids in both] == [text_of(writer, ids) for ids in pseudo]


def test_real_programs_survive(writer: DocumentWriter, traces: list[ExpertTrace]) -> None:
    paths = tuple(LatentPath((7,) * len(t.steps), (True,) + (False,) * (len(t.steps) - 1)) for t in traces)
    annotations = Annotations(paths, ((),) * 8)
    rng = np.random.default_rng(0)
    written = write_documents(writer, traces, latents=annotations, prompts=annotations, rng=rng)
    found = [document.ids for document in written]
    assert [strip_latents(text_of(writer, list(ids))) for ids in found] == [t.task.canonical_program for t in traces]
    assert all(ids.count(writer.latent_ids[7]) == 1 for ids in found)


def test_pseudo_prompt_draws_a_word_per_segment() -> None:
    path = LatentPath((1, 1, 0, 3, 1), (True, False, True, True, True))
    names = ANNOTATIONS.names
    rng = np.random.default_rng(0)
    found = {pseudo_prompt("def f(n):\n", path, names, rng) for _ in range(60)}
    words = ("reverse", "backward")
    assert found == {f"# {one} tail {other}\ndef f(n):\n" for one in words for other in words}
    assert pseudo_prompt("# mine\ndef f(n):\n", path, names, rng) == "# mine\ndef f(n):\n"
    assert pseudo_prompt("def f(n):\n", LatentPath((0, 2), (True, True)), names, rng) == "def f(n):\n"


def test_more_latents_than_the_tokenizer_knows(writer: DocumentWriter) -> None:
    annotations = Annotations(ANNOTATIONS.paths, ((),) * 33)
    with pytest.raises(ConfigError, match="33 latents, the tokenizer knows 32"):
        documents(writer, latents=annotations)
    assert documents(writer, prompts=annotations) == documents(writer)


def test_comments_stand_above_their_lines(writer: DocumentWriter) -> None:
    comments = ("", "# turn around", "# rest", "# drop the first")
    annotations = Annotations(ANNOTATIONS.paths, ANNOTATIONS.names, comments=comments)
    first, second = documents(writer, latents=annotations)
    one, two, three = DOCUMENTED.steps
    assert text_of(writer, first) == (f"{DOCUMENTED.prompt}    # drop the first\n{one}{two}    # turn around\n{three}")
    assert text_of(writer, second) == f"{BARE.prompt}    # turn around\n{BARE.steps[0]}    # rest\n{BARE.steps[1]}"
    program = text_of(writer, first).removeprefix(DOCUMENTED.prompt)
    assert first == ids_of(writer, DOCUMENTED.prompt, program, "<|endoftext|>")


def test_a_recipe_names_its_sources(writer: DocumentWriter) -> None:
    rng = np.random.default_rng(0)
    for source in LATENT_SOURCES:
        if source != "planted":
            latents, prompts = Recipe(latents=source).sources([DOCUMENTED, BARE], ANNOTATIONS, rng)
            assert latents is not None
            assert prompts is None
            assert [path.switches for path in latents.paths] == [path.switches for path in ANNOTATIONS.paths]
    assert Recipe().sources([DOCUMENTED, BARE], None, rng) == (None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": "infered"}, "unknown source of latents 'infered'; .*Did you mean 'inferred'"),
        ({"prompts": "shuffled"}, "unknown source of prompts 'shuffled'"),
        ({"budget": 0.0}, "budget=0.0"),
    ],
)
def test_recipes_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Ra3GymError, match=message):
        Recipe(**options)
