"""New processes, and other processes: none may be made, touched or even signalled."""

from __future__ import annotations

from tests.verify.attacks.attack import FAILED, NOT_PASSED, harm, only

_ONE = only("function")
_TWO = only("check", "stdio")

ATTACKS = [
    harm(
        "fork_bomb",
        "forks for as long as it is let",
        """
def harm():
    made = 0
    for _ in range(100):
        if os.fork() == 0:
            while True:
                pass
        made += 1
    return made
""",
        FAILED,
    ),
    harm(
        "multiprocessing",
        "a worker by the standard library",
        """
def harm():
    import multiprocessing
    for method in ("fork", "spawn", "forkserver"):
        try:
            multiprocessing.get_context(method).Process(target=print).start()
            return True
        except (OSError, ImportError, EOFError, ValueError):
            pass
""",
        NOT_PASSED,
    ),
    harm(
        "subprocess",
        "a shell, by every function there is for it",
        """
import subprocess
import sys


def harm():
    for command in (["/bin/sh", "-c", ":"], [sys.executable, "-c", ""], ["true"]):
        for attempt in (
            lambda: subprocess.run(command, check=True),
            lambda: os.posix_spawn(command[0], command, {}),
            lambda: os.system("exit 0") == 0 or 1 / 0,
            lambda: os.popen("echo yes").read()[0],
            lambda: os.spawnv(os.P_WAIT, command[0], command) == 0 or 1 / 0,
        ):
            try:
                attempt()
                return True
            except (OSError, subprocess.SubprocessError, ZeroDivisionError, IndexError):
                pass
""",
        FAILED,
    ),
    harm(
        "exec",
        "another program in the place of this one",
        "import sys\n\n\ndef harm():\n    os.execv(sys.executable, [sys.executable, '-c', ''])\n",
        FAILED,
    ),
    harm(
        "daemon",
        "a process that leaves its session and outlives its parent",
        """
def harm():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                pass
        os._exit(0)
    return True
""",
        FAILED,
        _TWO,
    ),
    harm("new_session", "a session of its own", "def harm():\n    os.setsid()\n    return True\n", FAILED, _ONE),
    harm(
        "terminal",
        "a process on a terminal of its own",
        "import pty\n\n\ndef harm():\n    pid, fd = pty.fork()\n    return pid >= 0\n",
        FAILED,
        _ONE,
    ),
    harm("raw_fork", "fork, past the C library", "def harm():\n    return syscall(57, None) >= 0\n", FAILED, _ONE),
    harm("raw_vfork", "vfork, past the C library", "def harm():\n    return syscall(58, None) >= 0\n", FAILED, _ONE),
    harm(
        "raw_clone",
        "clone without CLONE_THREAD",
        "def harm():\n    return syscall(56, 220, 17, 0, 0, 0, 0) >= 0\n",
        FAILED,
        _ONE,
    ),
    harm(
        "raw_clone_sharing_memory",
        "clone of a process that shares all but the thread group",
        "def harm():\n    return syscall(56, 220, 0x100 | 0x200 | 0x400 | 0x800 | 17, 0, 0, 0, 0) >= 0\n",
        NOT_PASSED,
        _ONE,
    ),
    harm(
        "raw_clone3",
        "clone3, whose flags no filter sees",
        "def harm():\n    return syscall(435, 435, (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17), 88) >= 0\n",
        FAILED,
        _ONE,
    ),
    harm(
        "thread_in_a_new_namespace",
        "a thread, which is allowed, with namespaces, which are not",
        """
def harm():
    thread = 0x100 | 0x800 | 0x10000
    stack = ctypes.create_string_buffer(1 << 16)
    for flags in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        if syscall(56, 220, thread | flags, ctypes.c_void_p(ctypes.addressof(stack) + 60000), 0, 0, 0) >= 0:
            return True
""",
        NOT_PASSED,
        _ONE,
    ),
    harm(
        "kill_all",
        "kills every process it can see, its parent first",
        """
import signal


def harm():
    done = 0
    for pid in (os.getppid(), 1, -1, 0, -os.getpgrp(), @CANARY_PID@):
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGINT):
            try:
                os.kill(pid, number)
                done += 1
            except OSError:
                pass
    return done
""",
        FAILED,
    ),
    harm(
        "kill_by_descriptor",
        "signals to pid 1 by pidfd, tkill, tgkill and rt_sigqueueinfo",
        """
def harm():
    pidfd = syscall(434, 434, 1, 0)
    info = (ctypes.c_int * 32)(9, 0, -1)
    return pidfd >= 0 or any(result >= 0 for result in (
        syscall(424, 424, 3, 9, 0, 0),
        syscall(200, 130, 1, 9),
        syscall(234, 131, 1, 1, 9),
        syscall(129, 138, 1, 9, info),
        syscall(297, 240, 1, 1, 9, info),
    ))
""",
        FAILED,
        _TWO,
    ),
    harm(
        "signal_by_pipe",
        "has the kernel signal pid 1, its zygote, when a pipe becomes readable (F_SETOWN, F_SETSIG)",
        """
import fcntl
import time


def harm():
    sent = 0
    for number in (2, 9, 15, 1, 3, 6, 10, 14, 24, 0):
        for owner in (1, -1, os.getppid()):
            read, write = os.pipe()
            try:
                fcntl.fcntl(read, 10, number)
                fcntl.fcntl(read, fcntl.F_SETOWN, owner)
                fcntl.fcntl(read, fcntl.F_SETFL, fcntl.fcntl(read, fcntl.F_GETFL) | os.O_ASYNC)
                sent += fcntl.fcntl(read, fcntl.F_GETOWN) == owner
            except OSError:
                pass
            os.write(write, b"x")
            os.close(read)
            os.close(write)
    return sent
""",
        FAILED,
    ),
    harm(
        "debugger",
        "traces pid 1, and reads and writes its memory",
        """
def harm():
    local = (ctypes.c_void_p * 2)(ctypes.addressof(_buffer), 8)
    remote = (ctypes.c_void_p * 2)(ctypes.addressof(_buffer), 8)
    return any(result >= 0 for result in (
        syscall(101, 117, 16, 1, 0, 0),
        syscall(101, 117, 0x4206, 1, 0, 0),
        syscall(101, 117, 0, 0, 0, 0),
        syscall(310, 270, 1, local, 1, remote, 1, 0),
        syscall(311, 271, 1, local, 1, remote, 1, 0),
        syscall(312, 272, 1, os.getpid(), 0, 0, 0),
        syscall(438, 438, 3, 0, 0),
    ))


_buffer = ctypes.create_string_buffer(8)
""",
        FAILED,
        _TWO,
    ),
    harm(
        "limits_of_others",
        "raises its own limits, and lowers those of pid 1 to nothing",
        """
import resource


def harm():
    done = 0
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE,
                 resource.RLIMIT_FSIZE):
        for attempt in (
            lambda: resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)),
            lambda: resource.prlimit(1, kind, (0, 0)),
            lambda: resource.prlimit(os.getppid(), kind),
        ):
            try:
                attempt()
                done += 1
            except (OSError, ValueError):
                pass
    return done
""",
        FAILED,
        _TWO,
    ),
    harm(
        "priority",
        "puts itself before all others",
        "def harm():\n    os.setpriority(os.PRIO_PROCESS, 0, -5)\n    return True\n",
        FAILED,
        _ONE,
    ),
]
