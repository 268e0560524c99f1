"""Which isolation works on this machine, and why: tries every step of the judge's setup and names what to change."""

from __future__ import annotations

import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from ra3gym.errors import JudgeError, Ra3GymError, SandboxUnavailable, UnknownNameError
from ra3gym.tasks.interpreter import ISOLATED, fresh_environment, why_not_started
from ra3gym.tasks.task import CodeTask, FunctionTests
from ra3gym.verify.judge import Judge
from ra3gym.verify.run import Limits
from ra3gym.verify.worker import Isolation, ServerDied, Worker

ISOLATION_VARIABLE = "RA3GYM_ISOLATION"

_OLDEST_KERNEL = (5, 12)  # mount_setattr
_MEMORY_MB = Limits().memory_mb
_HARD_LIMITS = (  # upper bounds of the limits that a program gets, and how a shell sets them
    ("address space", resource.RLIMIT_AS, _MEMORY_MB << 20, "ulimit -v"),
    ("processes and threads", resource.RLIMIT_NPROC, 64, "ulimit -u"),
    ("open files", resource.RLIMIT_NOFILE, 256, "ulimit -n"),
    ("CPU seconds", resource.RLIMIT_CPU, 61, "ulimit -t"),
)
_USER_NAMESPACE_SWITCHES = (
    ("user.max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=10000"),
    ("kernel.unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
    (
        "kernel.apparmor_restrict_unprivileged_userns",
        "1",
        "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with `userns,` for this "
        "Python",
    ),
)
_CONTAINER_WAY_OUT = (
    "it may forbid namespaces: start it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--cap-add SYS_ADMIN, or use plain processes in it"
)

_DOUBLE = CodeTask("doctor/double", "", "f", FunctionTests(((1,), ("a",)), (2, "aa")))
_RIGHT, _WRONG = "def f(x):\n    return x * 2\n", "def f(x):\n    return x\n"
_ATTEMPTS = CodeTask("doctor/attempts", "", "f", FunctionTests((("harm",), ("reading",)), ([], [])))
_ATTEMPT = """
import os, socket
def start_a_process():
    if os.fork() == 0:
        os._exit(0)
def write_a_file():
    os.open(os.__file__, os.O_WRONLY)
def signal_its_parent():
    os.kill(os.getppid(), 0)
def read_files_of_others():
    open("/etc/passwd").close()
def f(kind):
    done = []
    harm = [start_a_process, socket.socket, write_a_file, signal_its_parent]
    for attempt in harm if kind == "harm" else [read_files_of_others]:
        try:
            attempt()
        except OSError:
            continue
        done.append(attempt.__name__)
    return done
"""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        ok: whether it is as needed; `None` if it is not needed here.
        detail: what was found.
        way_out: what to change if it is not ok.
    """

    name: str
    ok: bool | None
    detail: str
    way_out: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All checks, whether `Judge()` works on this machine with its present settings, and a conclusion in one line."""

    checks: tuple[Check, ...]
    ok: bool
    conclusion: str


def diagnose() -> Diagnosis:
    """Check this machine and try the judge on it, which takes a second or two.

    Raises `UnknownNameError` when the environment variable RA3GYM_ISOLATION is not the name of an isolation.
    """
    chosen = os.environ.get(ISOLATION_VARIABLE) or "namespaces"
    if chosen not in get_args(Isolation):
        raise UnknownNameError(f"{ISOLATION_VARIABLE}", chosen, get_args(Isolation))
    interpreter = check_python()
    if not interpreter.ok:  # everything else would fail too, and blame the kernel
        return Diagnosis((interpreter,), False, f"Judge() cannot start Python: {interpreter.detail}")
    namespaces = check_namespaces()
    environment = [
        check_platform(),
        check_kernel(platform.release()),
        interpreter,
        check_user(),
        check_container(),
        *(check_switch(name, bad, way_out) for name, bad, way_out in _USER_NAMESPACE_SWITCHES),
    ]
    if namespaces.ok:
        environment = [_unneeded(check) for check in environment]
    plain: Isolation = "process-as-root" if os.geteuid() == 0 else "process"
    graded: dict[Isolation, Check] = {}
    if namespaces.ok:
        graded["namespaces"] = check_grading("namespaces")
    namespaces_work = "namespaces" in graded and graded["namespaces"].ok
    if chosen != "namespaces" or not namespaces_work:
        graded[plain] = check_grading(plain)
    checks = [
        *environment,
        namespaces,
        check_seccomp(),
        check_landlock(needed=plain in graded),
        check_memory(),
        check_processes(),
        check_limits(),
        *graded.values(),
    ]
    works: set[str] = {isolation for isolation, check in graded.items() if check.ok}
    return Diagnosis(tuple(checks), *_concluded(chosen, namespaces, works, plain))


def _concluded(chosen: str, namespaces: Check, works: set[str], plain: str) -> tuple[bool, str]:
    if chosen == "namespaces":
        if "namespaces" in works:
            return True, "Judge() isolates programs by namespaces and seccomp"
        why = "programs get wrong verdicts in them" if namespaces.ok else namespaces.detail
        cannot = f"Judge() cannot isolate programs by namespaces here ({why})"
        if plain not in works:
            return False, f"{cannot}, nor run them in plain processes: see the reasons above"
        instead = f"use {ISOLATION_VARIABLE}={plain} for programs you trust"
        return False, f"{cannot}; {instead}" + (", as another user than root if you can" if os.geteuid() == 0 else "")
    setting = f"{ISOLATION_VARIABLE}={chosen}"
    if chosen == "process" and os.geteuid() == 0:
        return False, f"Judge() refuses {setting} for root: run as another user, or set process-as-root"
    better = "; namespaces work here and protect more: unset it" if "namespaces" in works else ""
    if plain in works:
        return True, f"Judge() runs programs in plain processes, because of {setting}{better}"
    return False, f"Judge() cannot run programs in plain processes, as {setting} asks: see the reasons above{better}"


def _unneeded(check: Check) -> Check:
    """Return a failed check as one that is not needed."""
    return replace(check, ok=None, way_out="") if check.ok is False else check


def check_platform() -> Check:
    """Check that namespaces and the table of system calls exist for this kind of machine."""
    from ra3gym.verify.sandbox.isolation import seccomp

    name, machine = platform.system(), platform.machine()
    ok = name == "Linux" and seccomp.supported(machine)
    way_out = "namespaces and seccomp are for Linux on x86_64 and aarch64; plain processes run anywhere"
    return Check("platform", ok, f"{name} {machine}", "" if ok else way_out)


def check_kernel(release: str) -> Check:
    """Check that a Linux kernel is new enough for the read-only root."""
    version = re.match(r"(\d+)\.(\d+)", release)
    if platform.system() != "Linux" or version is None:
        return Check("kernel", None, release)
    ok = (int(version[1]), int(version[2])) >= _OLDEST_KERNEL
    return Check("kernel", ok, release, "" if ok else "namespaces need Linux 5.12 or newer")


def check_python() -> Check:
    """Check that the interpreter that programs run in, which is this one, starts with the judge's environment."""
    version = f"{platform.python_implementation()} {platform.python_version()}"
    why_not = why_not_started()
    if why_not is None:
        return Check("Python", True, version)
    way_out = (
        "the judge starts it without your environment but for LD_LIBRARY_PATH and PYTHONHOME: set them so that "
        f"`{shlex.join([sys.executable, *ISOLATED])}` starts"
    )
    return Check("Python", False, f"{version} does not start: {why_not}", way_out)


def check_user() -> Check:
    """Report which user starts the processes of programs."""
    if os.geteuid() == 0:
        return Check("user", True, "root; programs run under another user id")
    return Check("user", True, "not root: user namespaces are needed")


def check_container(root: Path = Path("/")) -> Check:
    """Check that this is not a container, which often forbids namespaces."""
    marks = {".dockerenv": "Docker", "run/.containerenv": "Podman", "run/systemd/container": "a systemd container"}
    kinds = [name for mark, name in marks.items() if (root / mark).exists()]
    if not kinds:
        return Check("container", None, "no sign of one")
    return Check("container", False, " and ".join(kinds), _CONTAINER_WAY_OUT)


def check_switch(name: str, bad: str, way_out: str, root: Path = Path("/proc/sys")) -> Check:
    """Check a kernel setting that forbids user namespaces to unprivileged users when its value is `bad`."""
    try:
        value = root.joinpath(*name.split(".")).read_text(encoding="utf-8").strip()
    except OSError:
        return Check(name, None, "this kernel has no such setting")
    return Check(name, value != bad, value, way_out if value == bad else "")


def check_namespaces() -> Check:
    """Check that a worker can isolate itself, and measure how long that takes."""
    if sys.platform != "linux":
        return Check("namespaces", False, "only Linux has them", "use Linux, or a virtual machine with Linux")
    started = time.perf_counter()
    worker = None
    try:
        worker = Worker("namespaces")
        worker.wait_until_ready()
    except SandboxUnavailable as error:
        step = str(error).partition(". `ra3gym doctor`")[0]
        return Check("namespaces", False, step, "the checks above say what forbids it")
    except (JudgeError, ServerDied) as error:
        return Check("namespaces", False, str(error), "a worker does not start at all: run that command by hand")
    finally:
        if worker is not None:
            worker.close()
    milliseconds = 1000 * (time.perf_counter() - started)
    return Check("namespaces", True, f"a worker is isolated and warmed up after {milliseconds:.0f} ms")


def check_seccomp() -> Check:
    """Check that a process can filter its own system calls."""
    if sys.platform != "linux":
        return Check("seccomp", None, "only Linux has it")
    program = (
        "from sandbox.isolation import linux, seccomp; linux.prctl('no_new_privs', linux.PR_SET_NO_NEW_PRIVS, 1); "
        "linux.install_filter(seccomp.filter_program(linux.MACHINE)); print('a filter can be installed')"
    )
    ok, printed = _with_sandbox(program)
    return Check("seccomp", ok, printed, "" if ok else "the kernel needs CONFIG_SECCOMP_FILTER, on x86_64 or aarch64")


def check_landlock(needed: bool) -> Check:
    """Check for Landlock, with which plain processes hide the file system."""
    if sys.platform != "linux":
        return Check("Landlock", None, "only Linux has it")
    ok, printed = _with_sandbox("from sandbox.isolation import landlock; print(landlock.version())")
    if ok and printed != "0":
        return Check("Landlock", True if needed else None, f"version {printed}; for plain processes only")
    way_out = "without it programs read all files of their user; use Linux 5.13 or newer, with landlock in lsm="
    return Check("Landlock", False if needed else None, "none" if ok else printed, way_out if needed else "")


def _with_sandbox(program: str) -> tuple[bool, str]:
    """Run a line of Python that imports from `sandbox`; returns whether it succeeded, and the last line it printed."""
    command = [sys.executable, *ISOLATED, "-c", f"import sys; sys.path.insert(0, sys.argv[1]); {program}"]
    try:
        done = subprocess.run(
            [*command, str(Path(__file__).parent)],
            env=fresh_environment(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=30.0,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    lines = (done.stdout or done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
    return done.returncode == 0, lines[-1]


def check_memory(root: Path = Path("/")) -> Check:
    """Check that the memory of one program fits into what this process and its children may use."""
    limit = cgroup_limit("memory", ("memory.max", "memory.limit_in_bytes"), root)
    if limit is None:
        return Check("memory limit", True, "none")
    ok = limit >= _MEMORY_MB << 20
    way_out = f"a program may use {_MEMORY_MB} MB: raise the container's memory, or lower Limits.memory_mb"
    return Check("memory limit", ok, f"{limit / 2**30:.1f} GiB for all processes together", "" if ok else way_out)


def check_processes(root: Path = Path("/")) -> Check:
    """Check that the control group allows a worker's processes and a program's threads."""
    limit = cgroup_limit("pids", ("pids.max",), root)
    if limit is None:
        return Check("process limit", True, "none")
    ok = limit >= 256
    way_out = "a worker takes up to 70 processes and threads: raise the container's --pids-limit"
    return Check("process limit", ok, f"{limit} processes and threads together", "" if ok else way_out)


def cgroup_limit(controller: str, files: Sequence[str], root: Path = Path("/")) -> int | None:
    """Return the lowest limit of this process's control group and its parents, version 1 or 2; `None` without one."""
    mounted = root / "sys/fs/cgroup"
    places = [mounted, mounted / controller]
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            group = (mounted if number == "0" else mounted / controller) / path.lstrip("/")
            places += [group, *(parent for parent in group.parents if parent.is_relative_to(mounted))]
    limits = []
    for file in {place / name for place in places for name in files}:
        try:
            text = file.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < 1 << 60:  # version 1 writes "no limit" as a huge number
            limits.append(int(text))
    return min(limits, default=None)


def check_limits() -> Check:
    """Check that the hard limits of this process are not below the limits that programs get."""
    low, ways_out = [], []
    for name, kind, needed, command in _HARD_LIMITS:
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY and hard < needed:
            low.append(f"{name} {hard:,}, needed {needed:,}")
            ways_out.append(command)
    if low:
        return Check("hard limits", False, "; ".join(low), f"raise {', '.join(ways_out)} where this shell is started")
    return Check("hard limits", True, "high enough for programs")


def check_grading(isolation: Isolation) -> Check:
    """Check that a judge tells right programs from wrong ones and refuses what programs must not do."""
    name = f"grading, {isolation}"
    try:
        with Judge(workers=1, isolation=isolation) as judge:
            right, wrong, attempts = judge.grade([(_DOUBLE, _RIGHT), (_DOUBLE, _WRONG), (_ATTEMPTS, _ATTEMPT)])
    except Ra3GymError as error:
        return Check(name, False, str(error).partition(". `ra3gym doctor`")[0], "see the checks above")
    if not right.passed:
        return Check(name, False, f"a right program counts as {right.status} ({right.message})", "see the checks above")
    if wrong.passed:
        return Check(name, False, "a wrong program passes", "please report this")
    refused, unread = attempts.tests
    if not refused:
        got = re.search(r"got (.*) for", attempts.message)
        allowed = got[1] if got else attempts.message
        return Check(name, False, f"a program was able to do this: {allowed}", "please report this")
    detail = "a right program passes, a wrong one fails; processes, sockets, signals and writing are refused"
    if unread:
        return Check(name, True, detail)
    if isolation == "namespaces":
        return Check(name, False, "a program reads files of the machine", "please report this")
    return Check(name, True, f"{detail}; without Landlock, reading other files is allowed")
