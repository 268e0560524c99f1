"""Imports run down the layers only, at module level and inside functions alike."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ra3gym"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("files", "kernels", "plugins"),
    ("tasks", "runs"),
    ("lm", "verify"),
    ("abstractions",),
    ("envs",),
    ("agents",),
    ("bridges", "testing"),
    ("experiments",),
    ("cli",),
    ("__main__",),
)
"""The rooms of the package, sub-packages and modules, from the ground up. A room imports from lower floors only."""

MAY_IMPORT: dict[str, set[str]] = {
    room: {below for lower in FLOORS[:floor] for below in lower} for floor, rooms in enumerate(FLOORS) for room in rooms
}
MAY_IMPORT["verify"] = {"tasks", "errors"}  # the judge is a library in its own right: problems and errors suffice
MAY_IMPORT["abstractions"] -= {"verify"}  # what actions are says nothing of how programs are graded
MAY_IMPORT["__init__"] = {"envs", "tasks", "verify"}  # registers the environments; the rest is imported on first use
"""Room to the rooms it may import from. Every room may import from itself."""

WITHOUT_TORCH = {"errors", "files", "kernels", "plugins", "tasks", "verify", "__init__"}
CARRIES_TORCH = {"torch", "transformers", "accelerate", "stable_baselines3", "sb3_contrib", "tianshou", "peft", "trl"}


def imported_names(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Yield `(line number, absolute dotted name)` of everything the file imports, wherever in it."""
    inside = (package.name, *path.relative_to(package).with_suffix("").parts)[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
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
    assert {room for room, below in MAY_IMPORT.items() if "experiments" in below} == {"cli", "__main__"}


def import_circles(package: Path) -> list[list[str]]:
    """Groups of modules that import each other while they are being imported, as sorted dotted names."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    imports: dict[str, set[str]] = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports[name] = {target for node in _run_at_import(tree.body) for target in _targets(node, modules)} - {name}
    return sorted(sorted(group) for group in _strongly_connected(imports) if len(group) > 1)


def _run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported: not those in functions or under TYPE_CHECKING."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _run_at_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _run_at_import(getattr(node, field, []))


def _targets(node: ast.stmt, modules: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that an absolute import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            if submodule in modules:
                yield submodule
            elif node.module in modules:
                yield node.module


def _strongly_connected(graph: dict[str, set[str]]) -> Iterator[set[str]]:
    """Strongly connected components (Tarjan 1972); the graph is small, so recursion will do."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for neighbor in sorted(graph[node]):
            if neighbor not in index:
                visit(neighbor)
                low[node] = min(low[node], low[neighbor])
            elif neighbor in stack:
                low[node] = min(low[node], index[neighbor])
        if low[node] == index[node]:
            start = stack.index(node)
            found.append(set(stack[start:]))
            del stack[start:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    yield from found


def test_there_is_no_import_circle() -> None:
    assert import_circles(PACKAGE) == []


def test_a_planted_circle_is_caught(tmp_path: Path) -> None:
    package = tmp_path / "ra3gym"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from ra3gym import b")
    (package / "b.py").write_text("import ra3gym.c")
    (package / "c.py").write_text("from ra3gym.a import name")
    (package / "d.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ra3gym.e import f")
    (package / "e.py").write_text("def f():\n    from ra3gym import d\nfrom ra3gym.d import g")
    assert import_circles(package) == [["ra3gym.a", "ra3gym.b", "ra3gym.c"]]


MOST_LINES = 400


def test_no_module_is_longer_than_a_reader_holds_in_mind() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {str(path.relative_to(PACKAGE)): count for path, count in lines.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("tasks/a.py", "import ra3gym.verify.judge", "'tasks' must not import 'verify'"),
        ("lm/a.py", "from ra3gym.verify import Judge", "'lm' must not import 'verify'"),
        ("verify/b.py", "from ra3gym.files import write_atomic", "'verify' must not import 'files'"),
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
