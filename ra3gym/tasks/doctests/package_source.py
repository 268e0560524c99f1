"""The source of an installed package, read without an import, and the definitions that a part of it needs."""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from ra3gym.errors import DataError


class NotSelfContained(Exception):
    """A name whose definition cannot be copied: third-party, conditional, or defined twice."""


@dataclass(frozen=True)
class Module:
    """One module of a package: its dotted name and its source text."""

    name: str
    text: str
    is_package: bool

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed source; `SyntaxError` for a file of another version of Python."""
        with warnings.catch_warnings():  # about the package's code, which the user cannot change
            warnings.simplefilter("ignore")
            return ast.parse(self.text)

    @cached_property
    def statements(self) -> dict[str, ast.stmt]:
        """The top-level statement that binds each name, without names that are bound more than once."""
        bound: dict[str, list[ast.stmt]] = {}
        for statement in self.tree.body:
            for name in _bound(statement):
                bound.setdefault(name, []).append(statement)
        return {name: statements[0] for name, statements in bound.items() if len(statements) == 1}

    def source(self, node: ast.stmt) -> str:
        """Return the text of a top-level statement, with its decorators."""
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        return "\n".join(self.text.splitlines()[first - 1 : node.end_lineno])


class Package:
    """The modules of an installed package or of a single-file module; `DataError` when there is no such source."""

    def __init__(self, name: str) -> None:
        spec = _spec(name)
        if spec is None or (spec.origin is None and not spec.submodule_search_locations):
            raise DataError(f"no installed package or module {name!r}; install it, or check its import name")
        self.name = name
        self.root = name.partition(".")[0]
        folders = spec.submodule_search_locations
        if folders:
            files = [file for folder in folders for file in sorted(Path(folder).rglob("*.py"))]
            self._files = {_dotted(name, Path(folder), file): file for folder in folders for file in files}
        elif spec.origin is not None and spec.origin.endswith(".py"):
            self._files = {name: Path(spec.origin)}
        else:
            raise DataError(f"module {name!r} has no Python source ({spec.origin})")
        self._modules: dict[str, Module | None] = {}

    def modules(self) -> Iterator[Module]:
        """Yield every module except the package's tests."""
        for name in self._files:
            if not any(part.startswith("test") for part in name.split(".")[1:]):
                module = self.module(name)
                if module is not None:
                    yield module

    def module(self, name: str) -> Module | None:
        """Return the module of a dotted name; `None` when the package has none, or it cannot be parsed."""
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def _read(self, name: str) -> Module | None:
        file = self._files.get(name)
        if file is None:
            return None
        try:
            with tokenize.open(file) as source:  # in the encoding that the file declares, without a byte order mark
                module = Module(name, source.read(), file.name == "__init__.py")
            _ = module.tree  # parses it
        except (SyntaxError, ValueError):  # a template, or a file for another version of Python
            return None
        return module

    def needed(self, module: Module, source: str, known: set[str]) -> dict[str, str]:
        """Return the definitions that `source`, a part of `module`, needs to run alone, by name, in order.

        Names in `known` count as defined. Raises `NotSelfContained`.
        """
        found: dict[str, str] = {}
        self._collect(module, source, known, found)
        return found

    def exported(self, name: str, known: set[str]) -> dict[str, str]:
        """Return the definitions of `name` as the package exports it; raises `NotSelfContained`."""
        found: dict[str, str] = {}
        self._define_from(self.name, name, known, found)
        return found

    def _collect(self, module: Module, source: str, known: set[str], found: dict[str, str]) -> None:
        for name in sorted(global_names(source)):
            if name in known:
                continue
            statement = module.statements.get(name)
            if statement is None:
                if name in module_bound(module):
                    raise NotSelfContained(name)
                continue  # a builtin, or a name that is undefined in the module too
            self._define(module, name, statement, known, found)

    def _define(self, module: Module, name: str, node: ast.stmt, known: set[str], found: dict[str, str]) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            (alias,) = [each for each in node.names if (each.asname or each.name.partition(".")[0]) == name]
            target = _imported_module(module, node, alias)
            if target.partition(".")[0] in sys.stdlib_module_names and target not in self._files:
                _record(found, name, ast.unparse(_one_import(node, alias)))
            elif isinstance(node, ast.Import) or alias.asname not in (None, alias.name):
                raise NotSelfContained(name)
            else:
                self._define_from(target, name, known, found)
            return
        text = module.source(node)
        if found.get(name) == text:
            return
        if name in found:
            raise NotSelfContained(name)
        defined = [each for each in _bound(node) if each not in known]
        self._collect(module, text, known | set(defined), found)
        for each in defined:
            _record(found, each, text)

    def _define_from(self, target: str, name: str, known: set[str], found: dict[str, str]) -> None:
        """Define `name` as `from target import name` would, for a module of this package."""
        origin = self.module(target)
        if origin is None or f"{target}.{name}" in self._files:  # of another package, or the name of a module
            raise NotSelfContained(name)
        statement = origin.statements.get(name)
        if statement is not None:
            self._define(origin, name, statement, known, found)
            return
        for node in origin.tree.body:
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                source = self.module(_imported_module(origin, node, node.names[0]))
                if source is not None and name in source.statements:
                    self._define(source, name, source.statements[name], known, found)
                    return
        raise NotSelfContained(name)


def global_names(source: str) -> set[str]:
    """Return the global names that a part of a module uses but does not define, without builtins."""
    top = symtable.symtable(source, "<source>", "exec")
    own = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    names: set[str] = set()
    tables = [top]
    while tables:
        table = tables.pop()
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and symbol.is_global()}
        tables += table.get_children()
    return names - own - set(dir(builtins))


def module_bound(module: Module) -> set[str]:
    """Return every name that a module binds at its top level, also under conditions."""
    table = symtable.symtable(module.text, module.name, "exec")
    return {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}


def _record(found: dict[str, str], name: str, text: str) -> None:
    if found.setdefault(name, text) != text:
        raise NotSelfContained(name)


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return [node.target.id]
    return []


def _imported_module(module: Module, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    """Return the dotted name of the module that an import reads."""
    if isinstance(node, ast.Import):
        return alias.name
    parts = module.name.split(".")
    if not node.level:
        return node.module or ""
    levels_up = node.level - 1 if module.is_package else node.level
    base = parts[: len(parts) - levels_up]
    return ".".join([*base, node.module] if node.module else base)


def _one_import(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> ast.stmt:
    if isinstance(node, ast.Import):
        return ast.Import([alias])
    return ast.ImportFrom(node.module, [alias], 0)


def _spec(name: str) -> ModuleSpec | None:
    """Return the spec of a module without importing its parents; `None` when there is no such module."""
    spec: ModuleSpec | None = None
    path = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec


def _dotted(package: str, folder: Path, file: Path) -> str:
    parts = file.relative_to(folder).with_suffix("").parts
    return ".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])
