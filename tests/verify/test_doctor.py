"""`ra3gym doctor`: on this machine, on one that forbids namespaces, and what each check reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ra3gym.errors import SandboxUnavailable
from ra3gym.verify import Judge, Limits
from ra3gym.verify.doctor import (
    Check,
    cgroup_limit,
    check_container,
    check_kernel,
    check_memory,
    check_processes,
    check_switch,
    diagnose,
)

PLAIN = "process-as-root" if os.geteuid() == 0 else "process"
DOCTOR = [sys.executable, "-m", "ra3gym", "doctor"]


def doctor(*before: str, isolation: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RA3GYM_ISOLATION"}
    if isolation is not None:
        environment["RA3GYM_ISOLATION"] = isolation
    return subprocess.run([*before, *DOCTOR], capture_output=True, text=True, check=False, env=environment)


def check_named(name: str, checks: Sequence[Check]) -> Check:
    (found,) = (check for check in checks if check.name == name)
    return found


def test_the_last_line_and_the_exit_status_say_what_the_judge_does_here() -> None:
    try:
        Judge(workers=1, isolation="namespaces").close()
    except SandboxUnavailable as error:
        refused = str(error).partition(". `ra3gym doctor`")[0]
        conclusion = f"Judge() cannot isolate programs by namespaces here ({refused}); use RA3GYM_ISOLATION={PLAIN}"
        status = 1
    else:
        conclusion, status = "Judge() isolates programs by namespaces and seccomp", 0
    done = doctor()
    *_, versions, last = done.stdout.splitlines()
    assert last.startswith(conclusion)
    assert (done.returncode, done.stderr) == (status, "")
    for part in ("ra3gym ", f"Python {sys.version.split()[0]}", "torch ", "CUDA"):
        assert part in versions
    for name in ("platform", "kernel", "namespaces", "seccomp", "Landlock", "memory limit", "grading"):
        assert f"\n  {name}" in done.stdout


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("unshare"), reason="needs unshare(1)")
def test_where_namespaces_are_forbidden_it_names_the_step_the_setting_and_the_way_out() -> None:
    forbid = ("unshare", "--user", "--map-root-user", "sh", "-c")
    setting = "echo 0 > /proc/sys/user/max_user_namespaces"
    if subprocess.run([*forbid, setting], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine gives no user namespace to try it in")
    done = doctor(*forbid, f'{setting} && exec "$@"', "sh")
    assert done.returncode == 1, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("Judge() cannot isolate programs by namespaces here (unshare: ")
    assert "; use RA3GYM_ISOLATION=process" in last
    words = " ".join(done.stdout.split())
    assert "user.max_user_namespaces no 0 way out: sudo sysctl user.max_user_namespaces=10000" in words


def test_the_conclusion_names_plain_processes_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RA3GYM_ISOLATION", PLAIN)
    found = diagnose()
    assert found.ok
    assert found.conclusion.startswith(f"Judge() runs programs in plain processes, because of RA3GYM_ISOLATION={PLAIN}")
    assert check_named(f"grading, {PLAIN}", found.checks).ok
    assert all(check.way_out for check in found.checks if check.ok is False)


def test_a_setting_that_the_judge_refuses_is_refused_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = doctor(isolation="chroot")
    assert unknown.returncode == 1
    assert "unknown RA3GYM_ISOLATION 'chroot'; known: namespaces, process, process-as-root" in unknown.stderr
    if os.geteuid() == 0:
        monkeypatch.setenv("RA3GYM_ISOLATION", "process")
        found = diagnose()
        assert not found.ok
        assert "refuses RA3GYM_ISOLATION=process for root" in found.conclusion


@pytest.mark.parametrize(
    ("value", "bad", "ok"), [("0", "0", False), ("96365", "0", True), ("1", "1", False), (None, "1", None)]
)
def test_a_setting_forbids_namespaces_by_one_value(
    tmp_path: Path, value: str | None, bad: str, ok: bool | None
) -> None:
    (tmp_path / "kernel").mkdir()
    if value is not None:
        (tmp_path / "kernel" / "a_setting").write_text(value + "\n")
    check = check_switch("kernel.a_setting", bad, "turn it", tmp_path)
    assert (check.ok, check.way_out) == (ok, "turn it" if ok is False else "")
    assert check.detail == (value or "this kernel has no such setting")


@pytest.mark.skipif(sys.platform != "linux", reason="kernels of Linux")
@pytest.mark.parametrize(
    ("release", "ok"), [("5.11.22-generic", False), ("5.12", True), ("6.8.0-45-generic", True), ("4.18.0", False)]
)
def test_kernels_from_5_12_on_will_do(release: str, ok: bool) -> None:
    assert check_kernel(release).ok is ok


def test_a_container_is_known_by_its_marks(tmp_path: Path) -> None:
    assert check_container(tmp_path).ok is None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".containerenv").touch()
    found = check_container(tmp_path)
    assert found.ok is False
    assert "Podman" in found.detail
    assert "seccomp=unconfined" in found.way_out


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_the_lowest_limit_of_the_control_groups_counts_in_version_2(tmp_path: Path) -> None:
    assert cgroup_limit("memory", ("memory.max",), tmp_path) is None
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", "max\n")
    write(tmp_path / "sys/fs/cgroup/a/memory.max", f"{512 << 20}\n")
    write(tmp_path / "sys/fs/cgroup/a/b/memory.max", f"{1 << 30}\n")
    write(tmp_path / "sys/fs/cgroup/a/c/memory.max", "1\n")
    check = check_memory(tmp_path)
    assert (check.ok, check.detail) == (False, "0.5 GiB for all processes together")
    assert f"{Limits().memory_mb} MB" in check.way_out
    assert check_processes(tmp_path).detail == "none"


def test_the_lowest_limit_of_the_control_groups_counts_in_version_1(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/a\n8:cpu,pids:/b\n0::/\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{(1 << 63) - 4096}\n")
    write(tmp_path / "sys/fs/cgroup/memory/a/memory.limit_in_bytes", f"{8 << 30}\n")
    write(tmp_path / "sys/fs/cgroup/pids/b/pids.max", "100\n")
    assert check_memory(tmp_path) == Check("memory limit", True, "8.0 GiB for all processes together")
    assert check_processes(tmp_path).ok is False


def test_hard_limits_below_a_programs_own_are_told() -> None:
    low = 800 << 20
    program = (
        f"import resource; from ra3gym.verify.doctor import check_limits; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({low}, {low})); print(check_limits())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "ok=False" in done.stdout
    assert f"address space {low:,}" in done.stdout
    assert "ulimit -v" in done.stdout
