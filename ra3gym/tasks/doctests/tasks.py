"""Tasks from doctests: functions of an installed package whose examples distinguish right from wrong programs.

A function becomes a task when its examples pass with its body and fail with `return None`. Its program needs no
installed packages: before the function come the imports of the standard library and copies of the package's
definitions that it needs. The examples are the tests, so the prompt shows them; the body is hidden.
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
from ra3gym.tasks.interpreter import ISOLATED, fresh_environment
from ra3gym.tasks.task import AssertTests, CodeTask

_CHECK = Path(__file__).with_name("check.py")
_MAX_PROMPT_CHARS = 12_000  # about 3,000 tokens; longer prompts consist mostly of other functions

Case = tuple[str, str, tuple[str, ...]]
"""A program, the setup of its tests, the tests."""

_SHOWN = '''\
def _shown(source, words=False):
    """Return what the interactive interpreter prints for `source`, as text or as a list of words."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "<doctest>", "single"), globals())
    return printed.getvalue().split() if words else printed.getvalue()
'''


def doctest_tasks(name: str) -> Iterator[CodeTask]:
    """Yield the tasks of an installed package or module. Its code runs in other processes only.

    Raises `DataError` when there is no Python source of that name.
    """
    package = Package(name)
    source, terms = _origin(package.root)
    for module in package.modules():
        candidates = list(_candidates(package, module, source, terms))
        yield from _confirmed(candidates)


def _candidates(package: Package, module: Module, source: str, terms: str) -> Iterator[CodeTask]:
    for node in module.tree.body:
        if not isinstance(node, ast.FunctionDef) or module.statements.get(node.name) is not node:
            continue
        try:
            task = _task(package, module, node, source, terms)
        except (NotSelfContained, SyntaxError, ValueError, RecursionError):
            continue  # ValueError: doctest cannot parse the examples; RecursionError: modules import each other
        if task is not None and len(task.prompt) <= _MAX_PROMPT_CHARS:
            yield task


def _task(package: Package, module: Module, node: ast.FunctionDef, source: str, terms: str) -> CodeTask | None:
    """Return the task of a function; `None` when it has no body after its docstring, or no example to check."""
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
        license=terms,
    )


def _tests(documentation: str, root: str) -> tuple[list[str], set[str]]:
    """Return one assert for each example with output, and the names that the examples import from `root`.

    Leaves out examples that raise, that are skipped, or whose output is elided.
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
    """Return an example without its imports from the package, and the names that those bind."""
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
    """Return each text once: the module's `__future__` import, other imports, definitions in order of dependence."""
    texts = list(dict.fromkeys(definitions.values()))
    future = [module.source(node) for node in module.tree.body if _is_future(node)]
    imports = sorted(text for text in texts if text.startswith(("import ", "from ")))
    first = ["\n".join([*future, *imports])] if future or imports else []
    return first + [text for text in texts if text not in imports]


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _confirmed(tasks: list[CodeTask]) -> list[CodeTask]:
    """Return the tasks whose tests pass with the body and fail with `return None`, for two orders of sets."""
    if not tasks:
        return []
    solved = [_case(task, task.canonical_program) for task in tasks]
    empty = [_case(task, f"{task.prompt}{_indentation(task)}return None\n") for task in tasks]
    passed = [_run(solved + empty, hash_seed) for hash_seed in (0, 1)]
    body_passes = [all(runs) for runs in zip(*(results[: len(tasks)] for results in passed), strict=True)]
    none_passes = [any(runs) for runs in zip(*(results[len(tasks) :] for results in passed), strict=True)]
    return [task for task, right, wrong in zip(tasks, body_passes, none_passes, strict=True) if right and not wrong]


def _case(task: CodeTask, program: str) -> Case:
    assert isinstance(task.tests, AssertTests)
    return program, task.tests.setup, task.tests.asserts


def _indentation(task: CodeTask) -> str:
    body = task.canonical_solution or ""
    line = next(line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return line[: len(line) - len(line.lstrip())]


def _run(cases: list[Case], hash_seed: int) -> list[bool]:
    done = subprocess.run(
        [sys.executable, *ISOLATED, str(_CHECK)],
        input=json.dumps(cases),
        capture_output=True,
        encoding="utf-8",
        env=fresh_environment(hash_seed),
        cwd="/",
        timeout=60 + len(cases) * (SECONDS + 1),
        check=False,
    )
    if done.returncode != 0:
        raise DataError(f"checking doctests failed: {done.stderr.strip()[-300:]}")
    answers: list[bool] = json.loads(done.stdout)
    return answers


def _origin(root: str) -> tuple[str, str]:
    """Return the source of a package's tasks ("doctest:toolz 1.1.0") and its license, from its metadata."""
    if root in sys.stdlib_module_names:
        return f"doctest:{root} (Python {sys.version_info.major}.{sys.version_info.minor})", "PSF-2.0"
    for distribution in metadata.packages_distributions().get(root, []):
        fields = metadata.metadata(distribution).json
        classifiers = [text for text in fields.get("classifier", []) if text.startswith("License ::")]
        terms = fields.get("license_expression") or "".join(classifiers[:1]) or fields.get("license") or ""
        return f"doctest:{distribution} {metadata.version(distribution)}", str(terms).rpartition(" :: ")[2][:80]
    return f"doctest:{root}", ""
