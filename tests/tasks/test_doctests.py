"""`doctest:PACKAGE`: which functions become tasks, and that the judge grades them without the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ra3gym.errors import DataError
from ra3gym.tasks import AssertTests, load_tasks
from ra3gym.verify import Judge

INIT = "from . import more\nfrom .core import *\nfrom .core import triple\n"
CORE = '''\
"""A package."""
import math
import numpy
from . import more
from collections import deque as queue
from .more import SCALE, scaled
try:
    from fast import quick
except ImportError:
    quick = None

RATE = 2 * SCALE


def triple(x):
    """Three times x.

    >>> triple(2)
    6
    >>> from samplepkg import halves
    >>> [triple(h) for h in halves(4)]
    [6, 6]
    """
    # by hand
    return x * 3


def halves(x):
    """Two halves.

    >>> halves(4)
    [2, 2]
    >>> print("a\\\\n\\\\nb")
    a
    <BLANKLINE>
    b
    """
    return list(queue([scaled(x) * RATE // 4] * 2))


def spread(x):
    """Shows words, skips what cannot be told, keeps state.

    >>> y = 3
    >>> spread(y)  # doctest: +NORMALIZE_WHITESPACE
    [3,
       math.nan]
    """
    return [x, math]


def untold(x):
    """
    >>> untold(1)  # doctest: +ELLIPSIS
    <object ...>
    >>> untold(0)
    Traceback (most recent call last):
    ZeroDivisionError
    """
    return 1 / x


def nothing(x):
    """
    >>> nothing(1)
    """
    x += 1


def wrong(x):
    """
    >>> wrong(1)
    2
    """
    return 1


def needs_third_party(x):
    """
    >>> needs_third_party(1)
    1
    """
    return int(numpy.int64(x))


def needs_conditional(x):
    """
    >>> needs_conditional(1)
    1
    """
    return quick(x) if quick else x


def needs_module(x):
    """
    >>> needs_module(1)
    1
    """
    return more.scaled(x)


def order_of_sets():
    """
    >>> order_of_sets()
    'abcdefgh'
    """
    return "".join(set("abcdefgh"))


@property
def documented_only():
    """
    >>> 1
    1
    """
'''
MORE = '''\
SCALE: int = 1

def scaled(x):
    """
    >>> scaled(3)
    3
    """
    y = x * SCALE
    return y
'''


@pytest.fixture
def sample_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "samplepkg"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text(INIT)
    (folder / "core.py").write_text(CORE)
    (folder / "more.py").write_text(MORE)
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "tests" / "test_it.py").write_text(MORE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("sample_package")
def test_functions_whose_examples_tell_right_from_wrong() -> None:
    tasks = {task.task_id: task for task in load_tasks("doctest:samplepkg")}
    assert set(tasks) == {
        "doctest/samplepkg.core.triple",
        "doctest/samplepkg.core.halves",
        "doctest/samplepkg.more.scaled",
    }
    assert "samplepkg" not in sys.modules
    halves = tasks["doctest/samplepkg.core.halves"]
    assert halves.prompt.startswith("from collections import deque as queue\n")
    assert (
        halves.prompt.index("SCALE: int = 1") < halves.prompt.index("def scaled(x)") < halves.prompt.index("def halves")
    )
    assert halves.canonical_solution == "    return list(queue([scaled(x) * RATE // 4] * 2))\n"
    triple = tasks["doctest/samplepkg.core.triple"]
    assert triple.canonical_solution == "    # by hand\n    return x * 3\n"
    assert isinstance(triple.tests, AssertTests)
    assert len(triple.tests) == 2
    assert "def halves" in triple.tests.setup
    with Judge(workers=1) as judge:
        right = judge.grade([(task, task.canonical_program) for task in tasks.values()])
        wrong = judge.grade([(task, task.prompt + "    return None\n") for task in tasks.values()])
    assert all(verdict.passed for verdict in right)
    assert not any(verdict.passed for verdict in wrong)


@pytest.mark.usefixtures("sample_package")
def test_one_module_of_a_package() -> None:
    (task,) = load_tasks("doctest:samplepkg.more")
    assert (task.entry_point, task.source) == ("scaled", "doctest:samplepkg")


@pytest.mark.usefixtures("sample_package")
@pytest.mark.parametrize(
    "source", [MORE.encode("utf-8-sig"), f"# -*- coding: latin-1 -*-\n# é\n{MORE}".encode("latin-1")]
)
def test_a_module_in_the_encoding_that_it_declares(tmp_path: Path, source: bytes) -> None:
    (tmp_path / "samplepkg" / "more.py").write_bytes(source)
    (task,) = load_tasks("doctest:samplepkg.more")
    assert task.entry_point == "scaled"


def test_the_standard_library() -> None:
    tasks = load_tasks("doctest:statistics")
    assert {task.license for task in tasks} == {"PSF-2.0"}
    assert {"variance", "median"} <= {task.entry_point for task in tasks}
    with Judge(workers=1) as judge:
        assert all(verdict.passed for verdict in judge.grade([(task, task.canonical_program) for task in tasks]))


def test_what_has_no_source_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no installed package or module 'no_such_package'"):
        load_tasks("doctest:no_such_package")
    with pytest.raises(DataError, match=r"no installed package or module 'json\.nope'"):
        load_tasks("doctest:json.nope")
    with pytest.raises(DataError, match=r"has no Python source|no installed package"):
        load_tasks("doctest:math")
    with pytest.raises(DataError, match="'doctest:bisect' holds no tasks"):
        load_tasks("doctest:bisect")
