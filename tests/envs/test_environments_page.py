"""What docs/environments.md shows runs, from top to bottom, and prints what it says."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from ra3gym import testing as conformance
from ra3gym.cli import main
from ra3gym.experiments.commands.envs import environment_ids, find_environment, keywords_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "environments.md"
TEXT = PAGE.read_text()


def test_the_pages_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    blocks = list(re.finditer(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
    assert len(blocks) == 5
    for block in blocks:
        line = TEXT[: block.start(1)].count("\n")
        exec(compile("\n" * line + block.group(1), str(PAGE), "exec"), names)
        printed = [one for one in capsys.readouterr().out.splitlines() if not one.startswith(("Using", "Wrapping"))]
        assert printed == re.findall(r"^print\(.*\)  # (.*)", block.group(1), re.MULTILINE)
    suite = names["TestMine"]()
    for check in conformance.ENVIRONMENT_CHECKS:
        if (test := getattr(suite, f"test_{check.__name__}")) is not None:
            test()


def test_every_id_and_only_real_keywords_are_on_the_page() -> None:
    named = re.findall(r"ra3gym play (\S+) (.*)", TEXT)
    assert len(named) == 3
    for env_id, rest in named:
        known = {one.name for one in keywords_of(find_environment(env_id))}
        assert set(re.findall(r"(?<!option )\b(\w+)=", rest)) - {"trace_id"} <= known
    for env_id in environment_ids():
        assert f"`{env_id}`" in TEXT


def test_the_pages_commands_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that needs no typing runs to its end; the others quit at once."""
    for line in re.findall(r"^    ra3gym (play .*)", TEXT, re.MULTILINE):
        monkeypatch.setattr("sys.stdin", StringIO("q\n"))
        assert main(line.split()) == 0
        assert re.search(r"(terminated|truncated|stopped) after \d+ steps", capsys.readouterr().out)
