"""The flows of docs/design.md lead from function to function: each hop exists, and a hop before it names it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
HOP = re.compile(r"^\d+\. `([\w.]+)` in `([\w/.]+\.py)`: .*", re.MULTILINE)


@dataclass(frozen=True)
class Hop:
    """A function, a method or a module's table, and the file that defines it."""

    name: str
    file: str

    @property
    def source(self) -> str | None:
        """Its source, for a method that of the whole class; `None` where the file does not define it."""
        path = ROOT / self.file
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8")
        first, _, method = self.name.partition(".")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == first:
                methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
                return ast.get_source_segment(text, node) if not method or method in methods else None
            is_table = isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == self.name
            if is_table:
                return ast.get_source_segment(text, node)
        return None

    def is_named_in(self, source: str) -> bool:
        """Whether a source mentions the function, or the class of the method."""
        return any(re.search(rf"\b{part}\b", source) for part in self.name.split("."))


@cache
def flows() -> dict[str, tuple[Hop, ...]]:
    """The hops of each flow, by its title."""
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    titled = {section.partition("\n")[0]: tuple(Hop(*hop) for hop in HOP.findall(section)) for section in sections}
    return {title: hops for title, hops in titled.items() if title.startswith("From ")}


def lost(hops: tuple[Hop, ...]) -> Iterator[str]:
    """Each hop that does not exist, or that no hop before it names."""
    sources: list[str] = []
    for hop in hops:
        if hop.source is None:
            yield f"{hop.file} defines no {hop.name}"
            continue
        if sources and not any(hop.is_named_in(source) for source in sources):
            yield f"nothing before {hop.name} ({hop.file}) names it"
        sources.append(hop.source)


@pytest.mark.parametrize("title", flows())
def test_each_hop_exists_and_is_named_by_one_before_it(title: str) -> None:
    assert list(lost(flows()[title])) == []


def test_there_are_four_flows_of_about_ten_hops() -> None:
    assert len(flows()) == 4
    assert all(8 <= len(hops) <= 12 for hops in flows().values())


def test_every_numbered_line_is_a_hop() -> None:
    assert len(re.findall(r"^\d+\.", PAGE, re.MULTILINE)) == sum(map(len, flows().values()))


def test_every_room_is_in_the_table() -> None:
    paths = (ROOT / "ra3gym").iterdir()
    rooms = {path.name for path in paths if path.suffix == ".py" or (path / "__init__.py").is_file()}
    listed = {Path(name).name for name in re.findall(r"`ra3gym/([\w.]+)/?`", PAGE)}
    assert rooms - {"__init__.py", "__main__.py"} == listed


def test_lost_hops_are_found() -> None:
    layers = Hop("violations", "tests/test_layers.py")
    assert list(lost((layers, Hop("imported_names", "tests/test_layers.py")))) == []
    assert list(lost((layers, Hop("nothing", "tests/test_layers.py"), Hop("f", "tests/nothing.py")))) == [
        "tests/test_layers.py defines no nothing",
        "tests/nothing.py defines no f",
    ]
    assert list(lost((layers, Hop("flows", "tests/test_design_page.py")))) == [
        "nothing before flows (tests/test_design_page.py) names it"
    ]
