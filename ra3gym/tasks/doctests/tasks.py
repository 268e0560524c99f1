"""Tasks from doctests: the functions of any installed package whose own examples can tell right from wrong.

A function becomes a task when its examples pass with its body and fail with `return None`. Its program stands by
itself: ahead of the function come the imports of the standard library and the definitions of the package that it
needs, copied from the source, so that the judge needs no site-packages. The examples are the tests, so the prompt
shows them; the body is what is hidden.
"""

from __future__ import annotations

import ast
import doctest
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ra3gym.errors import DataError
from ra3gym.tasks.doctests.check import SECONDS
from ra3gym.tasks.doctests.package_source import Module, NotSelfContained, Package
from ra3gym.tasks.task import AssertTests, CodeTask

_CHECK = Path(__file__).with_name("check.py")
_MAX_PROMPT_CHARS = 12_000  # about 3,000 tokens; what is longer is mostly other functions

Case = tuple[str, str, tuple[str, ...]]
"""A program, the set-up of its tests, the tests."""

_SHOWN = '''\
def _shown(source, words=False):
    """What the interactive interpreter prints for `source`, or its words."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "<doctest>", "single"), globals())
    return printed.getvalue().split() if words else printed.getvalue()
'''


def doctest_tasks(name: str) -> Iterator[CodeTask]:
    """The tasks of an installed package or module, module by module; its code runs in fresh processes only.

    Raises `DataError` when there is no Python source of that name.
    """
    package = Package(name)
    source, licence = _origin(package.root)
    for module in package.modules():
        candidates = list(_candidates(package, module, source, licence))
        yield from _confirmed(candidates)


def _candidates(package: Package, module: Module, source: str, licence: str) -> Iterator[CodeTask]:
    for node in module.tree.body:
        if not isinstance(node, ast.FunctionDef) or module.statements.get(node.name) is not node:
            continue
        try:
            task = _task(package, module, node, source, licence)
        except (NotSelfContained, SyntaxError, ValueError, RecursionError):
            continue  # ValueError: examples that doctest cannot parse; RecursionError: modules that import in a circle
        if task is not None and len(task.prompt) <= _MAX_PROMPT_CHARS:
            yield task


def _task(package: Package, module: Module, node: ast.FunctionDef, source: str, licence: str) -> CodeTask | None:
    """The task of a function; `None` when it has no body beside its docstring, or no example to check."""
    documentation = ast.get_docstring(node, clean=False) or ""
    end_of_head = node.body[0].end_lineno or 0
    if len(node.body) < 2 or node.body[1].lineno == end_of_head:
        return None
    statements, imported = _tests(documentation, package.root)
    if not statements:
        return None
    function = module.source(node)
    context = package.needed(module, function, {node.name})
    known = {node.name, *context}
    examples: dict[str, str] = {}
    for name in imported - known:
        examples |= package.exported(name, known)
    examples |= package.needed(module, "\n".join(_sources(documentation)), known | imported)
    lines = module.text.splitlines()
    body = lines[end_of_head : node.end_lineno]
    head = function.splitlines()[: -len(body)]
    return CodeTask(
        task_id=f"doctest/{module.name}.{node.name}",
        prompt="\n\n".join([*_ordered(module, context), "\n".join(head)]) + "\n",
        entry_point=node.name,
        tests=AssertTests(tuple(statements), "\n\n".join([*_ordered(module, examples), _SHOWN])),
        canonical_solution="\n".join(body) + "\n",
        source=source,
        licence=licence,
    )


def _tests(documentation: str, root: str) -> tuple[list[str], set[str]]:
    """The examples as statements, one for each that shows a value, and the names that they import from `root`.

    Examples that raise, that are skipped or whose output is elided are left out.
    """
    tests: list[str] = []
    imported: set[str] = set()
    pending = ""
    for example in doctest.DocTestParser().get_examples(documentation):
        elided = example.options.get(doctest.ELLIPSIS) and "..." in example.want
        if example.exc_msg is not None or example.options.get(doctest.SKIP) or elided:
            continue
        source, names = _without_imports(example.source, root)
        imported |= names
        if not example.want:
            pending += source
            continue
        want = example.want.replace("<BLANKLINE>\n", "\n")
        if example.options.get(doctest.NORMALIZE_WHITESPACE):
            tests.append(f"{pending}assert _shown({source!r}, words=True) == {want.split()!r}")
        else:
            tests.append(f"{pending}assert _shown({source!r}) == {want!r}")
        pending = ""
    return tests, imported


def _without_imports(source: str, root: str) -> tuple[str, set[str]]:
    """An example without its imports from the package, and the names they would bind."""
    names: set[str] = set()
    kept = []
    for node in ast.parse(source).body:
        inside = isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == root
        if inside and isinstance(node, ast.ImportFrom) and not any(alias.asname for alias in node.names):
            names |= {alias.name for alias in node.names}
        else:
            kept.append(node)
    return (source, names) if not names else ("".join(ast.unparse(node) + "\n" for node in kept), names)


def _sources(documentation: str) -> list[str]:
    return [example.source for example in doctest.DocTestParser().get_examples(documentation)]


def _ordered(module: Module, definitions: dict[str, str]) -> list[str]:
    """Each text once: the module's `__future__` import, all other imports, definitions as they depend on each other."""
    texts = list(dict.fromkeys(definitions.values()))
    future = [module.source(node) for node in module.tree.body if _is_future(node)]
    imports = sorted(text for text in texts if text.startswith(("import ", "from ")))
    first = ["\n".join([*future, *imports])] if future or imports else []
    return first + [text for text in texts if text not in imports]


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _confirmed(tasks: list[CodeTask]) -> list[CodeTask]:
    """The tasks whose tests pass with the body and fail with `return None`, whatever the order of sets."""
    cases: list[Case] = []
    for task in tasks:
        if isinstance(task.tests, AssertTests):
            nothing = _indentation(task) + "return None\n"
            programs = (task.canonical_program, task.prompt + nothing)
            cases += [(program, task.tests.setup, task.tests.asserts) for program in programs]
    if not cases:
        return []
    first, second = _run(cases, hash_seed=0), _run(cases, hash_seed=1)
    held = [(a and b, a or b) for a, b in zip(first, second, strict=True)]
    return [
        task for task, (right, _), (_, wrong) in zip(tasks, held[::2], held[1::2], strict=True) if right and not wrong
    ]


def _indentation(task: CodeTask) -> str:
    body = task.canonical_solution or ""
    line = next(line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return line[: len(line) - len(line.lstrip())]


def _run(cases: list[Case], hash_seed: int) -> list[bool]:
    done = subprocess.run(
        [sys.executable, "-s", "-P", "-S", "-B", str(_CHECK)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": str(hash_seed), "PYTHONUTF8": "1"},
        cwd="/",
        timeout=60 + len(cases) * (SECONDS + 1),
        check=False,
    )
    if done.returncode != 0:
        raise DataError(f"checking doctests failed: {done.stderr.strip()[-300:]}")
    answers: list[bool] = json.loads(done.stdout)
    return answers


def _origin(root: str) -> tuple[str, str]:
    """Where a package comes from (`doctest:toolz 1.1.0`) and its licence, as its metadata say."""
    if root in sys.stdlib_module_names:
        return f"doctest:{root} (Python {sys.version_info.major}.{sys.version_info.minor})", "PSF-2.0"
    for distribution in metadata.packages_distributions().get(root, []):
        fields = metadata.metadata(distribution).json
        classifiers = [text for text in fields.get("classifier", []) if text.startswith("License ::")]
        licence = fields.get("license_expression") or "".join(classifiers[:1]) or fields.get("license") or ""
        return f"doctest:{distribution} {metadata.version(distribution)}", str(licence).rpartition(" :: ")[2][:80]
    return f"doctest:{root}", ""
