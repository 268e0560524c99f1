"""Kernels compile where numba finds no place for its cache, and cache where somebody else cannot write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest

from ra3gym.kernels import njit

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def no_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No home and no folder beside the source that could be written; the temporary folder is returned."""
    from numba.core import caching

    for locator in (caching.InTreeCacheLocator, caching.UserWideCacheLocator):
        monkeypatch.setattr(locator, "from_function", lambda *_: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    return tmp_path


def add_one(x: float) -> float:
    return x + 1


def test_the_cache_lies_in_the_temporary_folder(no_place: Path) -> None:
    with pytest.raises(RuntimeError, match="no locator available"):  # what numba does by itself
        numba.njit(cache=True)(add_one)
    assert njit()(add_one)(1.0) == 2.0
    folder = no_place / f"ra3gym-numba-{os.getuid()}"
    assert list(folder.rglob("*.nbi"))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert numba.config.CACHE_DIR == ""


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_code_is_never_loaded_from_where_others_may_write(no_place: Path, kind: str) -> None:
    folder = no_place / f"ra3gym-numba-{os.getuid()}"
    if kind == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "a link":
        (no_place / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(no_place / "elsewhere")
    else:
        folder.touch()
    assert njit()(add_one)(1.0) == 2.0
    assert not list(no_place.rglob("*.nbi"))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a read-only folder")
def test_the_command_line_works_from_a_read_only_package_without_a_home(tmp_path: Path) -> None:
    package = tmp_path / "site"
    shutil.copytree(ROOT / "ra3gym", package / "ra3gym", ignore=shutil.ignore_patterns("__pycache__"))
    script = f'mount --bind "{package}" "{package}" && mount -o remount,ro,bind "{package}" && exec "$@"'
    code = "from ra3gym.cli import main; raise SystemExit(main(['envs']))"
    environment = {"HOME": "/proc/none", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(package)}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-P", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
        cwd="/",
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this machine mounts nothing: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "ra3gym/TokenCode-v0" in done.stdout
