"""What the docs, docstrings and messages name exists: modules, functions, files; and their Python code compiles."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [path for folder in ("ra3gym", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]

DOTTED = re.compile(r"(?<![\w./-])ra3gym(?:\.[A-Za-z_]\w*)+")
REPOSITORY_PATH = re.compile(r"(?<![\w./-])(?:ra3gym|docs|tests|benchmarks|examples|tools)/[\w/.-]*\w")
ENVIRONMENT_ID = re.compile(r"ra3gym/\w+-v\d+")
PYTHON_FILE = re.compile(r"`((?:\w+/)+\w+\.py)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def texts_of(path: Path) -> Iterator[str]:
    """The text of a page; the strings of a Python file, docstrings and messages among them."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield source
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@cache
def resolves(name: str) -> bool:
    """Whether a dotted name leads to a module or to an attribute of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not module.startswith(error.name or "?"):
                raise
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return part in getattr(found, "__dataclass_fields__", {})
            found = getattr(found, part)
        return True
    return False


def exists(path: str) -> bool:
    """Whether a path written in a page or a docstring is a file or folder, from the root or inside the package."""
    return (ROOT / path).exists() or (ROOT / "ra3gym" / path).exists()


def missing(path: Path) -> list[str]:
    """The names and paths in a file that lead nowhere."""
    wrong: list[str] = []
    for text in texts_of(path):
        wrong += [name for name in DOTTED.findall(text) if not resolves(name)]
        paths = [*REPOSITORY_PATH.findall(text), *PYTHON_FILE.findall(text)]
        wrong += [one for one in paths if not exists(one) and not ENVIRONMENT_ID.fullmatch(one)]
        if path.suffix == ".md":
            wrong += [link for link in LINK.findall(text) if not (path.parent / link).exists()]
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_exists(path: Path) -> None:
    assert missing(path) == []


def test_what_docstrings_and_messages_name_exists() -> None:
    found = {str(path.relative_to(ROOT)): missing(path) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_blocks_of_a_page_compile(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        compile("\n" * text[: block.start(1)].count("\n") + block.group(1), str(path), "exec")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_imports_exists(path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    imports = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}" for node in imports for alias in node.names]
    assert [name for name in names if name.startswith("ra3gym.") and not resolves(name)] == []


def test_the_changelog_sends_moved_imports_to_where_they_are() -> None:
    rows = re.findall(r"^ *\| `.*?\| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 10
    assert [name for row in rows for name in DOTTED.findall(row) if not resolves(name)] == []


def test_stale_names_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`ra3gym.lm.nothing`, ra3gym.errors.ConfigError, `abstractions/nothing.py`, [a](nothing.md), "
        "`ra3gym/lm`, ra3gym/TokenCode-v0, docs/nothing.md.\n"
    )
    assert sorted(missing(page)) == ["abstractions/nothing.py", "docs/nothing.md", "nothing.md", "ra3gym.lm.nothing"]
