"""No text is read or written in the encoding of the locale."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("ra3gym", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_calls_that_read_or_write_text_name_an_encoding(path: Path) -> None:
    """What ruff's PLW1514 does not see: methods of objects whose type it cannot infer, and processes' text."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert [f"line {call.lineno}" for call in calls if _takes_the_locale(call)] == []


def _takes_the_locale(call: ast.Call) -> bool:
    keywords = {keyword.arg for keyword in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    is_text = name in ("read_text", "write_text") or bool(keywords & {"text", "universal_newlines"} & _pipes(call))
    return is_text and "encoding" not in keywords


def _pipes(call: ast.Call) -> set[str]:
    """The keywords that ask a process for text; other functions may have one of that name."""
    module = call.func.value if isinstance(call.func, ast.Attribute) else None
    return {"text", "universal_newlines"} if isinstance(module, ast.Name) and module.id == "subprocess" else set()


def test_a_run_never_opens_a_text_file_in_the_encoding_of_the_locale(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(_lines(_tasks()), encoding="utf-8-sig")
    samples = [{"task_id": f"fü/{number}", "completion": "    return x + 1\n"} for number in range(2)]
    (tmp_path / "samples.jsonl").write_text(_lines(samples), encoding="utf-8-sig")
    run("-m", "ra3gym", "judge", "samples.jsonl", "--tasks", "tasks.jsonl", "--workers", "1", "--k", "1", cwd=tmp_path)
    results = (tmp_path / "samples_results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(line["task_id"], line["passed"]) for line in map(json.loads, results)] == [("fü/0", True), ("fü/1", True)]


RUN = """
from pathlib import Path
from ra3gym.runs.folder import RunFolder
run = RunFolder.create_at(Path("run"), "rlvr", {"tasks": ["fü"]})
run.pin(task_ids=["fü"])
run.metrics.append({"step": 1, "task": "fü"})
run.write_summary({"tasks": ["fü"]})
again = RunFolder.resume(Path("run"), "rlvr", {"tasks": ["fü"]})
again.pin(task_ids=["fü"])
assert (again.summary, again.metrics.records()) == ({"tasks": ["fü"]}, [{"step": 1, "task": "fü"}])
"""


def test_a_run_is_continued_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    run("run.py", cwd=tmp_path)


def run(*arguments: str, cwd: Path) -> None:
    """Run Python; fail when a module of the package opens text without an encoding."""
    command = [sys.executable, "-X", "warn_default_encoding", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert [
        line for line in done.stderr.splitlines() if "EncodingWarning" in line and str(ROOT / "ra3gym") in line
    ] == []


def _tasks() -> Iterator[dict[str, object]]:
    for number in range(2):
        yield {
            "task_id": f"fü/{number}",
            "prompt": "def f(x):\n",
            "entry_point": "f",
            "inputs": [[1], [2]],
            "outputs": [2, 3],
        }


def _lines(records: Iterable[dict[str, object]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
