"""The embedded domain: programs compute their references, splits are disjoint, the seed determines everything."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any, get_args

import pytest

from ra3gym.errors import ConfigError, UnknownNameError
from ra3gym.tasks import FunctionTests, load_tasks
from ra3gym.tasks.idioms import LABELS, Difficulty, IdiomsDomain, Split
from ra3gym.tasks.idioms.catalogue import IDIOMS, LOCAL_NAMES, MODIFIERS, PARAMETER_NAMES, Idiom, Kind, Modifier
from ra3gym.tasks.idioms.domain import Composition, run
from ra3gym.verify import Judge, Limits

DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)
SPLITS: tuple[Split, ...] = get_args(Split)
SMALL: dict[str, Any] = {"length": 3, "num_compositions": 20, "num_held_out": 8}
NO_INPUTS: dict[Kind, list[Any]] = {"list": [[], [0], [-1]], "str": ["", "a", "Az"], "int": [0, -1, 7]}


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=2, limits=Limits(seconds=2.0, memory_mb=256)) as judge:
        yield judge


def random_inputs(kind: Kind, rng: Random, count: int = 30) -> list[Any]:
    def one() -> Any:
        if kind == "int":
            return rng.randint(-2000, 2000)
        length = rng.randint(0, 10)
        if kind == "str":
            return "".join(rng.choice("abeiouxyzAEZ") for _ in range(length))
        return [rng.randint(-12, 12) for _ in range(length)]

    return NO_INPUTS[kind] + [one() for _ in range(count)]


def call(program: str, value: Any) -> Any:
    """Return `f(value)` of a program that this package wrote."""
    space: dict[str, Any] = {}
    exec(program, space)
    return space["f"](value)


def with_names(idiom: Idiom, variant: str, pick: int) -> tuple[str, str, str]:
    """Return a variant with one choice of names: its lines, the variable that it reads and the one that it writes."""
    variable = PARAMETER_NAMES[idiom.takes][pick]
    result = variable if idiom.gives == idiom.takes else PARAMETER_NAMES[idiom.gives][pick]
    local = {role: choices[pick] for role, choices in LOCAL_NAMES.items()}
    return variant.format(x=variable, y=result, **local), variable, result


@pytest.mark.parametrize("pick", range(3))
@pytest.mark.parametrize("idiom", IDIOMS.values(), ids=lambda idiom: idiom.name)
def test_every_variant_means_its_reference(idiom: Idiom, pick: int) -> None:
    assert len(idiom.variants) >= 3
    for variant in idiom.variants:
        block, variable, result = with_names(idiom, variant, pick)
        body = "".join(f"    {line}\n" for line in block.split("\n"))
        for value in random_inputs(idiom.takes, Random(pick)):
            given = value.copy() if isinstance(value, list) else value
            got, wanted = call(f"def f({variable}):\n{body}    return {result}\n", given), idiom.reference(value)
            assert got == wanted, block
            assert type(got) is type(wanted), block
            assert given == value, f"changes its argument: {block}"


def modified(modifier: str, step: Any, value: Any) -> Any:
    """Compute a modifier in another way."""
    if modifier == "twice":
        return step(step(value))
    return step(value) if len(value) > 3 else value


MODIFIED = [(i, m) for i in IDIOMS.values() for m in MODIFIERS.values() if i.takes == i.gives and i.takes in m.kinds]


@pytest.mark.parametrize(("idiom", "modifier"), MODIFIED, ids=[f"{m.name}-{i.name}" for i, m in MODIFIED])
def test_every_variant_under_every_modifier(idiom: Idiom, modifier: Modifier) -> None:
    for variant in idiom.variants:
        block, variable, result = with_names(idiom, variant, 0)
        body = "".join(f"        {line}\n" for line in block.split("\n"))
        program = f"def f({variable}):\n    {modifier.head.format(x=variable)}\n{body}    return {result}\n"
        for value in random_inputs(idiom.takes, Random(0), 15):
            wanted = modified(modifier.name, idiom.reference, value)
            assert modifier.reference(idiom.reference, value) == wanted
            assert call(program, value) == wanted, program


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_whole_programs_mean_their_composition(difficulty: Difficulty) -> None:
    domain = IdiomsDomain(seed=3, difficulty=difficulty, num_compositions=40, num_held_out=8)
    rng = Random(3)
    for composition in domain.compositions["train"]:
        task = domain.trace(composition, rng, documented=True, task_id="t").task
        assert isinstance(task.tests, FunctionTests)
        for (value,), output in zip(task.tests.inputs, task.tests.outputs, strict=True):
            assert call(task.canonical_program, value) == output == run(composition, value)


def kinds_of(composition: Composition) -> set[str]:
    idioms = [IDIOMS[step.split(":")[-1]] for step in composition]
    assert all(before.gives == after.takes for before, after in pairwise(idioms))
    assert len({idiom.name for idiom in idioms}) == len(idioms)
    return {idiom.takes for idiom in idioms} | {"modified" for step in composition if ":" in step}


def test_each_difficulty_adds_something() -> None:
    found = {
        difficulty: set.union(*map(kinds_of, IdiomsDomain(difficulty=difficulty, **SMALL).compositions["train"]))
        for difficulty in DIFFICULTIES
    }
    assert found == {
        "easy": {"list"},
        "medium": {"list", "str", "int"},
        "hard": {"list", "str", "int", "modified"},
    }
    names = {trace.prompt for trace in IdiomsDomain(difficulty="easy", documented=0, **SMALL).traces(30)}
    assert names == {"def f(xs):\n"}
    assert len({trace.prompt for trace in IdiomsDomain(documented=0, **SMALL).traces(60)}) == 9


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_judge_passes_canonical_programs_and_fails_mutants(judge: Judge, difficulty: Difficulty) -> None:
    tasks = [t for split in SPLITS for t in IdiomsDomain(seed=1, difficulty=difficulty, **SMALL).tasks(split)]
    assert [v.message for v in judge.grade((task, task.canonical_program) for task in tasks)] == [""] * len(tasks)

    def off_by_one(program: str) -> str:
        head, _, result = program.rstrip("\n").rpartition("return ")
        return f"{head}return {result} + 1 if isinstance({result}, int) else {result} * 2 or {result}[:1] or None\n"

    verdicts = judge.grade((task, off_by_one(task.canonical_program)) for task in tasks)
    assert not any(verdict.passed for verdict in verdicts)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_tests_notice_a_missing_idiom(judge: Judge, difficulty: Difficulty) -> None:
    """Some idioms change nothing in some chains (sorting a sorted list), so the test is about a share of them."""
    domain = IdiomsDomain(seed=2, difficulty=difficulty, num_compositions=60, num_held_out=8)
    pairs = []
    for composition, task in zip(domain.compositions["train"], domain.tasks("train"), strict=True):
        for left_out in range(1, len(composition)):
            kept = composition[:left_out] + composition[left_out + 1 :]
            steps = [IDIOMS[step.split(":")[-1]] for step in kept]
            if all(before.gives == after.takes for before, after in pairwise(steps)):
                pairs.append((task, domain.trace(kept, Random(0), documented=False, task_id="t").task))
    verdicts = judge.grade((task, shorter.canonical_program) for task, shorter in pairs)
    assert len(pairs) > 100
    assert sum(verdict.passed for verdict in verdicts) / len(pairs) < 0.15


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_splits_are_disjoint(difficulty: Difficulty) -> None:
    domain = IdiomsDomain(difficulty=difficulty, **SMALL)
    parts = [domain.compositions[split] for split in SPLITS]
    assert [len(part) for part in parts] == [20, 8, 8, 8]
    assert len({composition for part in parts for composition in part}) == 44
    assert all(len(composition) == 3 for part in parts for composition in part)
    assert [len(domain.tasks(split)) for split in SPLITS] == [20, 8, 8, 8]


def test_training_traces_have_no_held_out_composition() -> None:
    """The planted labels of a trace, in order, are its composition."""
    domain = IdiomsDomain(seed=4, difficulty="easy", short_share=0.5, **SMALL)
    name_of = {label: name for name, label in LABELS.items()}
    found: list[Composition] = []
    for trace in domain.traces(400):
        assert trace.planted is not None
        switches = [trace.planted[0], *(b for a, b in pairwise(trace.planted) if a != b)]
        assert switches[-1] == LABELS["return"]
        found.append(tuple(name_of[label] for label in switches[:-1]))
    assert set(found) & set(domain.compositions["train"]) == {c for c in found if len(c) == 3}
    assert 140 < sum(len(composition) == 2 for composition in found) < 260  # 200 +- 6 standard deviations


def test_everything_follows_the_seed() -> None:
    def everything(seed: int) -> list[Any]:
        domain = IdiomsDomain(seed=seed, difficulty="hard", **SMALL)
        return [domain.compositions, domain.traces(20), domain.base_traces(20), *map(domain.tasks, SPLITS)]

    first, again, other = everything(0), everything(0), everything(1)
    assert first == again
    assert all(ours != theirs for ours, theirs in zip(first, other, strict=True))


def test_one_part_does_not_depend_on_what_was_asked_before() -> None:
    fresh, used = IdiomsDomain(**SMALL), IdiomsDomain(**SMALL)
    used.tasks("eval")
    used.base_traces(5)
    assert used.traces(30)[:10] == fresh.traces(10)
    assert used.tasks("rl") == fresh.tasks("rl")


@pytest.mark.parametrize("documented", [0.0, 0.3, 1.0])
def test_the_documented_share(documented: float) -> None:
    traces = IdiomsDomain(documented=documented, **SMALL).traces(500)
    found = sum(trace.prompt.startswith("# ") for trace in traces)
    assert abs(found - 500 * documented) <= 5 * (500 * documented * (1 - documented)) ** 0.5
    assert all(trace.prompt.count("\n") == 1 + trace.prompt.startswith("# ") for trace in traces)


def test_base_traces_are_short_and_undocumented() -> None:
    for trace in IdiomsDomain(documented=1.0, **SMALL).base_traces(50):
        assert trace.prompt.startswith("def f(")
        assert trace.planted is not None
        assert len(set(trace.planted) - {LABELS["return"]}) in (1, 2)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_label_per_step_and_a_word_per_part(difficulty: Difficulty) -> None:
    domain = IdiomsDomain(difficulty=difficulty, **SMALL)
    parts = {word: name for name, part in [*IDIOMS.items(), *MODIFIERS.items()] for word in part.words}
    assert len(parts) == 2 * (len(IDIOMS) + len(MODIFIERS)), "no word names two things"
    for composition in domain.compositions["train"]:
        trace = domain.trace(composition, Random(0), documented=True, task_id="t")
        named = [name for step in composition for name in step.split(":")]
        comment, signature = trace.prompt.splitlines()
        assert [parts[word] for word in comment.removeprefix("# ").split()] == named
        assert signature.startswith("def f(")
        assert trace.planted is not None
        assert len(trace.planted) == len(trace.steps)
        assert all(step.endswith("\n") and step.count("\n") == 1 for step in trace.steps)
        labels = [trace.planted[0], *(b for a, b in pairwise(trace.planted) if a != b)]
        assert labels == [LABELS[name] for name in [*named, "return"]]
        assert trace.prompt + "".join(trace.steps) == trace.task.canonical_program
        hidden = trace.without_planted()
        assert hidden.planted is None
        assert (hidden.task, hidden.steps) == (trace.task, trace.steps)


@pytest.mark.parametrize(("num_tests", "kind"), [(4, "list"), (10, "str"), (5, "int")])
def test_hidden_tests_begin_with_edge_cases(num_tests: int, kind: Kind) -> None:
    domain = IdiomsDomain(num_tests=num_tests, **SMALL)
    composition = next(c for c in domain.compositions["train"] if IDIOMS[c[0]].takes == kind)
    tests = domain.trace(composition, Random(0), documented=True, task_id="t").task.tests
    assert isinstance(tests, FunctionTests)
    assert len(tests) == num_tests
    assert tests.inputs[0] == {"list": ([],), "str": ("",), "int": (0,)}[kind]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"documented": -0.1}, "documented=-0.1 is a share of traces"),
        ({"documented": 1.5}, "documented=1.5 is a share of traces"),
        ({"length": 0}, "length=0: a program of difficulty 'medium' composes 1 to 18"),
        ({"length": 13, "difficulty": "easy"}, "length=13: a program of difficulty 'easy' composes 1 to 12"),
        ({"length": 19}, "composes 1 to 18 different idioms"),
        ({"num_compositions": 0}, "num_compositions=0"),
        ({"num_held_out": 0}, "num_held_out=0"),
        ({"num_tests": 3}, "num_tests=3: give at least 1, 1 and 4"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IdiomsDomain(**options)


def test_the_longest_chains_exist() -> None:
    assert len(IdiomsDomain(length=12, difficulty="easy", num_compositions=2, num_held_out=1).tasks("eval")) == 1
    assert len(IdiomsDomain(length=18, num_compositions=2, num_held_out=1).tasks("eval")) == 1


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown difficulty 'hrad'; known: easy, hard, medium"):
        IdiomsDomain(difficulty="hrad")
    with pytest.raises(UnknownNameError, match="unknown split of idioms 'test'"):
        load_tasks("idioms", split="test", **SMALL)
    with pytest.raises(ConfigError, match="task set 'idioms' takes no 'sede'; its options are seed, length"):
        load_tasks("idioms", sede=1)


def test_more_compositions_than_there_are() -> None:
    with pytest.raises(ConfigError, match="only 12 different compositions of length 1 were found, 44 are needed"):
        load_tasks("idioms", difficulty="easy", **(SMALL | {"length": 1}))


def test_load_tasks_by_name() -> None:
    options = {"seed": 5, "difficulty": "hard", "documented": 0.0, **SMALL}
    domain = IdiomsDomain(**options)
    for split in SPLITS:
        tasks = load_tasks("idioms", split=split, **options)
        assert tasks == tuple(domain.tasks(split))
        assert all(task.prompt.startswith("# ") and task.source == "idioms" for task in tasks)
        assert [task.task_id for task in tasks] == [f"idioms/5/{split}/{index}" for index in range(len(tasks))]
