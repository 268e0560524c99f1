"""The provenance of a run: versions, source revision, machine. Nothing in it identifies a user or a host."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "ra3gym",
    "torch",
    "transformers",
    "gymnasium",
    "stable-baselines3",
    "tianshou",
    "numpy",
    "datasets",
)


def utc_now() -> str:
    """Return the time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """Return the command that started this process, quoted for a shell, without the interpreter's folder."""
    program = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("python")
    head = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*head, *sys.argv[1:]])


def package_versions() -> dict[str, str | None]:
    """Return the versions of Python and of each of `PACKAGES`; `None` for a package that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def git_revision(package_folder: Path | None = None) -> dict[str, str | bool] | None:
    """Return `{"revision": SHA, "dirty": bool}` of the package's checkout, or `None` when it is installed.

    A site-packages folder that happens to lie inside somebody's repository does not count as a checkout: the
    repository's root must hold the package directly. Untracked files do not make a checkout dirty.
    """
    folder = package_folder or Path(__file__).resolve().parents[1]
    root = _git(folder, "rev-parse", "--show-toplevel")
    if root is None or Path(root).resolve() != folder.parent:
        return None
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    return {"revision": revision, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def describe_machine() -> dict[str, Any]:
    """Return platform, CPU model, usable cores, memory (GiB), GPUs and torch's thread count."""
    import torch

    cuda = torch.cuda
    gpus = [cuda.get_device_name(index) for index in range(cuda.device_count())] if cuda.is_available() else []
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": gpus,
        "torch_threads": torch.get_num_threads(),
    }


def describe_start() -> dict[str, Any]:
    """Return the provenance of one start (or resumption) of a run."""
    return {
        "started": utc_now(),
        "command": command_line(),
        "versions": package_versions(),
        "git": git_revision(),
        "machine": describe_machine(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, encoding="utf-8", errors="replace", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
