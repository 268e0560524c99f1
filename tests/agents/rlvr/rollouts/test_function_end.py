"""Stopping where the function ends changes nothing in what is graded."""

from __future__ import annotations

from itertools import count, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ra3gym import lm
from ra3gym.agents.rlvr.rollouts.function_end import FunctionEnd, function_ended
from ra3gym.lm.rendering import cut_prompt
from ra3gym.tasks import CodeTask
from ra3gym.tasks.answers import cut_completion
from ra3gym.tasks.task import AssertTests, StdioTests

TESTS = AssertTests(("assert f(1) == 1",))
INSIDE = CodeTask("inside", "import os\n\ndef f(x):\n    # the same\n", "f", TESTS)
WRITTEN = CodeTask("written", "Write a function f.\n\n", "f", TESTS)
MIDLINE = CodeTask("midline", "def f(x):", "f", TESTS)
STDIN = CodeTask("stdin", "def f(x):\n", "f", StdioTests(("1",), ("1",)))
TASKS = (INSIDE, WRITTEN, MIDLINE)

LINES = st.sampled_from(
    [
        "    return helper(x)\n",
        "    return x\n",
        "def f(x):\n",
        "def helper(y):\n",
        "def helper (y):\n",
        "def helper2(y):\n",
        "async def helper(y):\n",
        "class Other:\n",
        "@cache\n",
        "# a comment\n",
        "\n",
        "    # a comment inside\n",
        "import math\n",
        "print(f(1))\n",
        'x = """\n',
        '"""\n',
        "    y = '''a\n",
        "defer = 1\n",
        "x = (1,\n",
        "2)\n",
        "é = 'it''s'\n",
        "d",
        "<|z1|>",
        "assert f(2) == \\\n",
    ]
)
TEXTS = st.lists(LINES, max_size=12).map("".join)


@pytest.fixture(scope="module")
def loaded() -> lm.LoadedModel:
    loaded = lm.load("embedded")
    lm.add_latents(loaded.model, loaded.tokenizer, max(3, len(lm.latent_ids(loaded.tokenizer))))
    return loaded


@given(task=st.sampled_from(TASKS), text=TEXTS.map(lm.strip_latents), more=TEXTS.map(lm.strip_latents))
@settings(max_examples=1000, deadline=None)
def test_what_follows_the_end_changes_nothing(task: CodeTask, text: str, more: str) -> None:
    for length in range(len(text) + 1):
        if function_ended(task, text[:length]):
            assert cut_completion(task, text[:length]) == cut_completion(task, text + more)


@pytest.mark.parametrize(
    ("task", "text", "behind"),
    [
        (INSIDE, "    return x\n\nprint(f(1))\n", "p"),
        (INSIDE, "    return x\n# so\n\n@cache\n", "@"),
        (INSIDE, "    return g(x)\ndef g(x):\n    return x\ndef h(x):\n", "x\nd"),
        (INSIDE, "    return g(x)\ndef h(x):\n    return x\n@h\ndef g(x):\n    return x\nK = 1\n", "\nK"),
        (INSIDE, "    return g(x)\nK = 1\n", None),
        (INSIDE, "    return g(x)\nK = 1\nprint(1)\nj", "\nj"),
        (INSIDE, "    return '''\nx = 1\n'''\nx = 1\n", "'''\nx"),
        (INSIDE, "    return (\n1)\nx = 1\n", "1)\nx"),
        (MIDLINE, " return x\nx = 1\n", "\nx"),
        (WRITTEN, "import os\ndef f(x):\n    return x\nf(1)\n", "    return x\nf"),
        (INSIDE, "import os\ndef f(x):\n    return x\nf(1)\n", "    return x\nf"),
        (INSIDE, "import os\nx = 1\n", None),
        (WRITTEN, "import os\nx = 1\n", None),
        (INSIDE, "    return g(x)\ndef g(x):\n    return x\n# end\n", None),
        (STDIN, "    return x\nprint(f(1))\n", None),
    ],
)
def test_the_function_ends_behind(task: CodeTask, text: str, behind: str | None) -> None:
    ended = next((n for n in range(len(text) + 1) if function_ended(task, text[:n])), None)
    assert ended == (None if behind is None else text.rindex(behind) + len(behind))


@given(task=st.sampled_from(TASKS), text=TEXTS, data=st.data())
@settings(max_examples=300, deadline=None)
def test_the_rule_ends_a_row_as_soon_as_decoding_at_each_watched_token_would(
    loaded: lm.LoadedModel, task: CodeTask, text: str, data: st.DataObject
) -> None:
    tokenizer: Any = loaded.tokenizer
    # Not always the tokenizer's own way to cut the text into tokens: a model samples any.
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)) | {0, len(text)})
    parts = [text[a:b] for a, b in pairwise(cuts)]
    ids = [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False)]
    prompts = [cut_prompt(tokenizer, one.prompt) for one in (INSIDE, task)]
    rule = FunctionEnd(tokenizer, [INSIDE, task], prompts, 2)
    told = next(n for n in count(1) if n > len(ids) or (ids[n - 1] in rule.watched_ids and rule.ends(2, ids[:n])))

    def ended(n: int) -> bool:
        written = lm.strip_latents(tokenizer.decode(ids[:n])).rstrip("\ufffd")
        return ids[n - 1] in rule.watched_ids and function_ended(task, written)

    assert told == next(n for n in count(1) if n > len(ids) or ended(n))


def test_sampled_programs_end_there_and_are_graded_alike(loaded: lm.LoadedModel) -> None:
    tokenizer: Any = loaded.tokenizer
    tasks = [
        CodeTask(name, f'def {name}(xs):\n    """Return the {name} of xs."""\n', name, TESTS)
        for name in ("largest", "total")
    ]
    prompts = [cut_prompt(tokenizer, task.prompt) for task in tasks]
    ids = [prompt.ids for prompt in prompts]
    banned = {tokenizer.eos_token_id, tokenizer.pad_token_id}  # they go on and on
    allowed_V = torch.tensor([i not in banned for i in range(loaded.model.config.vocab_size)])
    options: dict[str, Any] = {"group_size": 8, "max_new_tokens": 120, "eos_id": tokenizer.eos_token_id, "pad_id": 1}
    options |= {"allowed_mask_V": allowed_V}
    whole, ended = (
        lm.generate(
            loaded.model,
            ids,
            generator=torch.Generator().manual_seed(0),
            stop=stop,
            **options,
        )
        for stop in (None, FunctionEnd(tokenizer, tasks, prompts, 8))
    )
    assert ended.finished_R.sum() > 4
    for row, (long, short) in enumerate(zip(whole.completions(), ended.completions(), strict=True)):
        task = tasks[row // 8]
        texts = [lm.strip_latents(tokenizer.decode(ids)) for ids in (long, short)]
        assert long[: len(short)] == short
        assert bool(ended.finished_R[row]) == (len(short) < len(long) or function_ended(task, texts[1]))
        assert cut_completion(task, texts[0]) == cut_completion(task, texts[1])


def test_ids_beyond_the_tokenizer_have_no_text(loaded: lm.LoadedModel) -> None:
    """Vocabularies are often padded to a round size, and a model samples padding now and then."""
    tokenizer: Any = loaded.tokenizer
    rule = FunctionEnd(tokenizer, [INSIDE], [cut_prompt(tokenizer, INSIDE.prompt)], 1)
    beyond = len(tokenizer) + 3
    for text, ends in (("    return x\n\np", True), ("    return x\n    y", False)):
        ids = tokenizer.encode(text, add_special_tokens=False)
        for at in range(len(ids)):
            assert rule.ends(0, [*ids[:at], beyond, *ids[at:]]) == rule.ends(0, ids) == ends
        assert not rule.ends(0, [beyond])
