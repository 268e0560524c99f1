"""What a user gets from an installation: the version, the types, the ids, and an import that is light."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ra3gym

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "stable_baselines3", "sb3_contrib", "tianshou", "datasets", "accelerate", "numba"}

BLOCK = "import sys; sys.modules[{!r}] = None\n"
"""Makes the import of a package fail as if it were not installed."""


def modules_after(statement: str) -> set[str]:
    """Top-level names in `sys.modules` of a fresh interpreter that ran `statement`."""
    program = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_version_is_that_of_the_metadata() -> None:
    assert ra3gym.__version__ == importlib.metadata.version("ra3gym")


def test_changelog_and_citation_name_the_version() -> None:
    assert f"version: {ra3gym.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_types_are_shipped() -> None:
    assert importlib.resources.files("ra3gym").joinpath("py.typed").is_file()


def test_data_files_are_declared_for_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {
        file
        for package, globs in patterns.items()
        for glob in globs
        for file in ROOT.joinpath(*package.split(".")).glob(glob)
    }
    files = {file for file in (ROOT / "ra3gym").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert {file for file in files if file.suffix != ".py"} <= shipped


@pytest.mark.parametrize("statement", ["import ra3gym", "import ra3gym.envs", "import ra3gym.errors"])
def test_import_is_light(statement: str) -> None:
    assert modules_after(statement) & HEAVY == set()


@pytest.mark.parametrize("statement", ["import ra3gym.tasks", "import ra3gym.verify"])
def test_tasks_and_the_judge_import_no_torch(statement: str) -> None:
    assert modules_after(statement) & {"torch", "transformers", "stable_baselines3", "tianshou"} == set()


def test_every_dependency_has_a_tested_version_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    extras = project["optional-dependencies"]
    tested = [
        *project["dependencies"],
        *(text for name in ("dev", "gguf", "rl", "tensorboard") for text in extras[name]),
    ]
    for requirement in map(Requirement, tested):
        if requirement.name == project["name"]:
            assert requirement.extras <= extras.keys()
        else:
            assert requirement.specifier.contains(pinned[requirement.name.lower()]), str(requirement)


@pytest.mark.parametrize(
    ("missing", "extra", "statement"),
    [
        ("stable_baselines3", "rl", "import ra3gym.agents.sb3"),
        ("sb3_contrib", "rl", "import ra3gym.agents.sb3"),
        ("tianshou", "rl", "import ra3gym.agents.tianshou"),
        ("sb3_contrib", "rl", "from ra3gym.agents import mid_training; mid_training.make_inference_agent('sb3:PPO')"),
        ("tianshou", "rl", "from ra3gym.agents import mid_training; mid_training.make_e_step('tianshou:DQN')"),
    ],
)
def test_a_missing_extra_is_named(missing: str, extra: str, statement: str) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCK.format(missing) + statement], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"needs '{missing}'; install it with: pip install 'ra3gym[{extra}]'" in done.stderr.splitlines()[-1]
    assert "ra3gym.errors.MissingExtraError" in done.stderr.splitlines()[-1]


def test_all_else_works_without_the_extras() -> None:
    names = ["stable_baselines3", "sb3_contrib", "tianshou", "tensorboard"]
    program = "".join(map(BLOCK.format, names)) + (
        "import ra3gym.testing\n"
        "from ra3gym.agents import mid_training, rlvr\n"
        "import importlib, pkgutil\n"
        "from ra3gym.experiments import commands\n"
        "for module in pkgutil.iter_modules(commands.__path__):\n"
        "    importlib.import_module(f'ra3gym.experiments.commands.{module.name}')\n"
        "assert not {'stable_baselines3', 'sb3_contrib', 'tianshou'} & {n for n, m in sys.modules.items() if m}\n"
        "from ra3gym.agents.mid_training.inference.agents import AGENTS\n"
        "print(*AGENTS)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"exact", "sb3:PPO", "sb3contrib:MaskablePPO", "tianshou:DiscreteSAC"} <= set(done.stdout.split())
