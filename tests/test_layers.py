"""Imports run down the layers only, at module level and inside functions alike."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ra3gym"

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "atomic": set(),
    "tasks": {"errors"},
    "lm": {"errors"},
    "verify": {"tasks", "errors"},
    "abstractions": {"tasks", "lm", "errors"},
    "envs": {"verify", "abstractions", "tasks", "lm", "errors"},
    "agents": {"envs", "verify", "abstractions", "tasks", "lm", "atomic", "errors"},
    "experiments": {"agents", "envs", "verify", "abstractions", "tasks", "lm", "atomic", "errors"},
    "cli": {"experiments", "agents", "envs", "verify", "abstractions", "tasks", "lm", "errors"},
    "__init__": {"envs"},
    "__main__": {"cli"},
}
"""Unit (a sub-package or a module of the package) to the units below it. Every unit may import itself."""

WITHOUT_TORCH = {"errors", "atomic", "tasks", "verify", "__init__"}
CARRIES_TORCH = {"torch", "transformers", "accelerate", "stable_baselines3", "sb3_contrib", "tianshou", "peft", "trl"}


def imported_names(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Yield `(line number, absolute dotted name)` of everything the file imports, wherever in it."""
    inside = (package.name, *path.relative_to(package).with_suffix("").parts)[:-1]
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(inside[: len(inside) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"importlib.import_module", "import_module"}:
            yield from ((node.lineno, ast.literal_eval(arg)) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def violations(package: Path) -> list[str]:
    """One line for each import in `package` that runs up or across the layers, or brings torch where none may be."""
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        unit = relative.parts[0].removesuffix(".py")
        where = f"{package.name}/{relative.as_posix()}"
        if unit not in MAY_IMPORT:
            found.append(f"{where}: {unit!r} has no place in the layers")
            continue
        for line, name in imported_names(path, package):
            parts = name.split(".")
            if parts[0] in CARRIES_TORCH and unit in WITHOUT_TORCH:
                found.append(f"{where}:{line}: {unit!r} must not import {parts[0]!r}")
            # `from ra3gym import __version__` names the package itself, which every unit may do.
            target = parts[1] if parts[0] == package.name and len(parts) > 1 else unit
            if target in MAY_IMPORT and target != unit and target not in MAY_IMPORT[unit]:
                found.append(f"{where}:{line}: {unit!r} must not import {target!r}")
    return found


def test_imports_run_down_only() -> None:
    assert violations(PACKAGE) == []


def test_only_the_command_line_sees_the_experiments() -> None:
    assert {unit for unit, below in MAY_IMPORT.items() if "experiments" in below} == {"cli"}


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("tasks/a.py", "import ra3gym.verify.judge", "'tasks' must not import 'verify'"),
        ("lm/a.py", "from ra3gym.tasks import CodeTask", "'lm' must not import 'tasks'"),
        ("lm/a.py", "from ra3gym import agents", "'lm' must not import 'agents'"),
        ("verify/deep/a.py", "from ...abstractions import elbo", "'verify' must not import 'abstractions'"),
        ("abstractions/a.py", "from .. import verify", "'abstractions' must not import 'verify'"),
        ("envs/a.py", "def f():\n    from ra3gym.agents.rlvr import grpo", "'envs' must not import 'agents'"),
        ("agents/a.py", "if True:\n    import ra3gym.experiments", "'agents' must not import 'experiments'"),
        ("agents/a.py", "import importlib\nimportlib.import_module('ra3gym.cli')", "'agents' must not import 'cli'"),
        ("errors.py", "from ra3gym.tasks import CodeTask", "'errors' must not import 'tasks'"),
        ("verify/a.py", "def f():\n    import torch.nn", "'verify' must not import 'torch'"),
        ("tasks/a.py", "from transformers import AutoTokenizer", "'tasks' must not import 'transformers'"),
        ("utils.py", "", "'utils' has no place in the layers"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path: Path, file: str, source: str, message: str) -> None:
    path = tmp_path / "ra3gym" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    (found,) = violations(tmp_path / "ra3gym")
    assert message in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("envs/a.py", "from ra3gym.verify import Judge\nfrom . import b\nimport torch"),
        ("tasks/a.py", "from ra3gym import __version__\nfrom ..errors import DataError\nimport tokenize"),
        ("cli.py", "def main():\n    from ra3gym.experiments import run"),
        ("__init__.py", "from ra3gym.envs.registration import register_envs"),
    ],
)
def test_imports_downwards_pass(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / "ra3gym" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert violations(tmp_path / "ra3gym") == []
