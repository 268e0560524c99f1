"""Reading programs from texts: cuts are checked with Python's own parser on random programs."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ra3gym.tasks import AssertTests, CodeTask, StdioTests, load_tasks
from ra3gym.tasks.answers import (
    answer_reader,
    cut_completion,
    latent_token,
    split_latents,
    strip_latents,
    top_level_statements,
    without_latents,
)
from ra3gym.verify import Judge, Limits

BESIDE = Path(__file__).parents[2].parent / "shared" / "data"
DATA = Path(os.environ.get("RA3GYM_DATA") or BESIDE)

PROMPT = '# doubled\ndef f(x):\n    """Double x.\n\ndef is a word here: f(1) is 2\n"""\n'

BODY_LINES = (
    "    y = x\n",
    "\n",
    "    # half way\n",
    "# at column 0, and yet within\n",
    "    y = [\n1,\n2,\n]\n",
    "    s = '''\ndef g():\n# no comment\n'''\n",
    '    s = """it\'s \\"""\nprint(1)\n"""\n',
    "    z = 1 + \\\n2\n",
    "    t = 'a # b ( [ \\' '\n",
    '    u = f"{y!r} {{"\n',
    "    w = r'\\d\\''\n",
    "    if x:\n        def inner():\n            return {\n'a': (1,\n2)}\n",
)
TOP_LINES = (
    "print(f(1))\n",
    "def test():\n    assert f(1)\n",
    "class Other:\n    y = 1\n",
    "@decorated\ndef g(): pass\n",
    "x = 'def f():'\n",
    "if True:\n    pass\nelse:\n    pass\n",
    "import os; import re\n",
    "def f(x):\n    return 1\n",
    "async def h(): pass\n",
)
HEADS = (
    "import math\n",
    "from a import (\nb,\nc,\n)\n",
    "# f\n",
    "\n",
    "K = {\n'f': 1}\n",
    "def k(): pass\n",
    "@k\n@k\n",
)

bodies = st.lists(st.sampled_from(BODY_LINES)).map(lambda lines: "".join(lines) + "    return 2 * x\n")
tops = st.lists(st.sampled_from(TOP_LINES), min_size=1).map("".join)
gaps = st.lists(st.sampled_from(["\n", "# Example:\n", "   \n"])).map("".join)


def task(prompt: str = PROMPT, entry_point: str = "f") -> CodeTask:
    return CodeTask("t/0", prompt, entry_point, AssertTests(("assert f(1) == 2",)))


names = st.integers(0, 40).map(lambda k: (f"z{k}", latent_token(k))) | st.just(("pause", "<|pause|>"))


@given(st.text("ab|<>\n"), st.lists(st.tuples(names, st.text("ab|\n"))))
def test_latents_split_a_text_and_leave_the_program(before: str, segments: list[tuple[tuple[str, str], str]]) -> None:
    text = before + "".join(token + code for (_, token), code in segments)
    expected = [(name, code) for (name, _), code in segments]
    assert split_latents(text) == ([(None, before)] if before else []) + expected
    assert strip_latents(text) == before + "".join(code for _, code in segments) == without_latents(task(), text)


class _Token(str):
    special = True


class _Tokenizer:
    """The two properties that `answer_reader` reads of a tokenizer."""

    added_tokens_decoder: ClassVar = {0: _Token("<|im_end|>"), 1: _Token("<|z0|>")}
    all_special_tokens = ("<|endoftext|>",)


def test_an_answer_ends_with_its_function_or_at_a_special_token() -> None:
    read = answer_reader(_Tokenizer())
    assert read(task(), "<|z0|>    return x\n\nprint(f(1))\n") == "    return x\n"
    assert read(task(), "    return x\n<|im_end|>    y = 1\n") == "    return x\n"
    assert read(task(), "    return x\n<|endoftext|>    y = 1\n") == "    return x\n"


@given(bodies)
def test_a_body_alone_stays_whole(body: str) -> None:
    assert cut_completion(task(), body) == body


@given(bodies, gaps, tops)
def test_a_body_ends_before_the_next_statement(body: str, gap: str, top: str) -> None:
    assert cut_completion(task(), body + gap + top) == body


@given(st.lists(st.sampled_from(HEADS[:-1])).map("".join), st.sampled_from(["", HEADS[-1]]), bodies, gaps, tops)
def test_a_whole_program_is_kept_up_to_the_end_of_its_function(
    head: str, decorators: str, body: str, gap: str, top: str
) -> None:
    program = f"{head}{decorators}def f(x):\n{body}"
    assert cut_completion(task('"""\nWrite f.\n"""\n'), program + gap + top) == program
    assert cut_completion(task(), program + gap + top) == program  # restated: the prompt's own has no body yet


@given(st.lists(st.sampled_from([*BODY_LINES, *TOP_LINES, *HEADS])).map("".join))
def test_statements_are_those_of_pythons_parser(middle: str) -> None:
    source = "def f():\n    pass\n" + middle
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    lines = [
        min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        for node in tree.body
    ]
    found = [source.count("\n", 0, start) + 1 for start in top_level_statements(source)]
    clauses = {
        number + 1
        for number, line in enumerate(source.split("\n"))
        if line.startswith(("else", "@", "def", "async", "class"))
    }
    assert set(lines) <= set(found)
    assert set(found) - set(lines) <= clauses  # `else:`, or what stands under a decorator


@given(st.text(alphabet="def f(x): \n#\\'\"[]{}@=1"), st.sampled_from([PROMPT, "", "def f(x):", "'''"]))
def test_any_text_gives_a_stable_prefix(text: str, prompt: str) -> None:
    cut = cut_completion(task(prompt), text)
    assert text.startswith(cut)
    assert cut_completion(task(prompt), cut) == cut


def test_helpers_after_the_function_stay_if_it_uses_them() -> None:
    body = "    return twice(x)\n\ndef twice(x):\n    return add(x, x)\n\ndef add(a, b):\n    return a + b\n"
    assert cut_completion(task(), body + "\ndef unused():\n    pass\n") == body
    assert cut_completion(task(), body + "\ndef f(x):\n    pass\n") == body
    assert cut_completion(task(), body + "\ndef twice(x):\n    pass\n") == body


@pytest.mark.parametrize(
    "rest",
    [
        "@lru_cache(None)\ndef ways(n):\n    return 1\n",
        "@lru_cache(\n    None\n)\n@other\ndef ways(n):\n    return 1\n",
        "ways = [1, 1, 2].__getitem__\n",
        "ways: list = [1, 1, 2].__getitem__\n",
        "a, (ways, b) = 1, (len, 3)\n",
        "from math import factorial as ways\n",
        "from ways_of_math import *\n",
        "class ways:\n    pass\n",
        "K = 2\n\ndef ways(n):\n    return K * n\n",  # K is used by what comes after it only
        "def ways(n):\n    return K * n\n\nK = 2\n",
        "def ways(n):\n    return again(n)\n\nimport math\n\ndef again(n):\n    return math.pi * n\n",
    ],
)
@pytest.mark.parametrize("end", ["", "\n\nprint(f(1))\n", "\nx = f(1)\n", "\n@cache\ndef unrelated():\n    pass\n"])
def test_whatever_the_function_needs_stays(rest: str, end: str) -> None:
    text = "    return ways(x)\n\n\n" + rest
    assert cut_completion(task(), text + end).rstrip() == text.rstrip()


@pytest.mark.parametrize(
    "rest",
    [
        "x = 3\n",  # the function's own x is its argument
        "y = 3\n",
        "import math\n",
        "from math import *\n",
        "K = 2\n\ndef other():\n    return K\n",
        "print(f(1))\n\ndef helper():\n    pass\n",
        "if __name__ == '__main__':\n    print(f(1))\n",
    ],
)
def test_what_the_function_does_not_need_is_cut(rest: str) -> None:
    body = "    y = x\n    return sorted(y)\n"
    assert cut_completion(task(), body + "\n" + rest) == body


def test_the_search_for_a_missing_name_ends_at_a_statement_that_defines_nothing() -> None:
    body = "    return ways(x)\n"
    assert cut_completion(task(), body + "\nprint(f(1))\n\ndef ways(n):\n    return n\n") == body


def test_a_statement_instead_of_the_body_leaves_nothing() -> None:
    assert cut_completion(task(), "print(1)\n") == ""


def test_without_the_function_everything_is_kept() -> None:
    text = "g = 1\nprint(g)\n"
    assert cut_completion(task('"""Write f."""\n'), text) == text


def test_a_method_ends_with_its_class() -> None:
    solution = task("class Solution:\n    def add(self, x):\n        ", "Solution.add")
    assert cut_completion(solution, "return x\n\nprint(Solution())\n") == "return x\n"


def test_a_program_that_reads_stdin_is_never_cut() -> None:
    text = "n = int(input())\nprint(n)\n\ndef f(): pass\nprint(2)\n"
    assert cut_completion(CodeTask("t/1", '"""Echo."""\n', "", StdioTests(("1",), ("1",))), text) == text


@pytest.mark.skipif(not DATA.is_dir(), reason="no folder of public benchmarks at hand")
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_solutions_of_benchmarks_stay_and_what_follows_is_cut(name: str) -> None:
    tasks = load_tasks(name, path=DATA)
    cut = [cut_completion(task, f"{task.canonical_solution}\n\nraise SystemExit\n") for task in tasks]
    assert not any("raise SystemExit" in text for text in cut)
    kept = [
        (task, text)
        for task, text in zip(tasks, cut, strict=True)
        if text.strip() != str(task.canonical_solution).strip()
    ]
    with Judge(workers=1, limits=Limits(seconds=30.0)) as judge:
        verdicts = judge.grade([(task, task.prompt + text) for task, text in kept])
    assert all(verdict.passed for verdict in verdicts)
