"""Fresh interpreters start where this one does, and see nothing else of the user's environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ra3gym.tasks import CodeTask, FunctionTests, load_tasks
from ra3gym.tasks.interpreter import fresh_environment, why_not_started
from ra3gym.verify import Judge
from ra3gym.verify.doctor import diagnose

TASK = CodeTask("inc", "def inc(x):\n", "inc", FunctionTests(((1,),), (2,)))


@pytest.fixture
def needs_library_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that does not start without LD_LIBRARY_PATH: the loader does not find its library."""
    python = tmp_path / "python"
    complaint = "libpython: cannot open shared object file"
    python.write_text(
        f'#!/bin/sh\ncase ":$LD_LIBRARY_PATH:" in *:{tmp_path}:*) exec {sys.executable} "$@";; esac\n'
        f'echo "{complaint}" >&2\nexit 127\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.usefixtures("needs_library_path")
def test_a_python_that_needs_a_library_path_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with Judge(workers=1) as judge:
        right, wrong = judge.grade([(TASK, TASK.prompt + f"    return x + {n}\n") for n in (1, 2)])
    assert (right.status, wrong.status) == ("passed", "wrong_answer")
    assert load_tasks("doctest:statistics", limit=1)


@pytest.mark.usefixtures("needs_library_path")
def test_a_python_that_does_not_start_is_not_blamed_on_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    found = diagnose()
    assert not found.ok
    assert [check.name for check in found.checks] == ["Python"]
    assert "exit code 127: libpython: cannot open shared object file" in found.conclusion
    assert "LD_LIBRARY_PATH" in found.checks[0].way_out


def test_the_environment_holds_what_python_needs_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SECRET", "key")
    assert fresh_environment(3) == {"PYTHONHASHSEED": "3", "PYTHONUTF8": "1"}
    assert why_not_started() is None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", "lib:/opt/lib")  # the worker runs in another folder
    assert fresh_environment()["LD_LIBRARY_PATH"] == f"{tmp_path}/lib:/opt/lib"
