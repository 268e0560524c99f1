"""The system calls that a program may make. All others fail with EPERM.

Threads, memory, reading files, time and the program's own signals are allowed. New processes, exec, sockets, signals to
other processes, ptrace, mount, bpf, io_uring, keys and namespaces are not. The only sockets are pairs of connected
stream sockets, which reach nobody else: the event loops of asyncio wake themselves by one. `clone3` fails with ENOSYS,
because its flags are in memory that a filter cannot read; the C library then uses `clone`.
"""

from __future__ import annotations

import errno
import os
import struct

# name: number on x86-64, on aarch64 (None where the call does not exist)
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "brk": (12, 214),
    "futex": (202, 98),
    "clock_gettime": (228, 113),
    "lseek": (8, 62),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "close_range": (436, 436),
    # reading files; nothing in the sandbox can be written
    "open": (2, None),
    "openat": (257, 56),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "fadvise64": (221, 223),
    # descriptors
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    # memory
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    # threads and exit
    "set_robust_list": (273, 99),
    "get_robust_list": (274, 100),
    "rseq": (334, 293),
    "set_tid_address": (218, 96),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "restart_syscall": (219, 128),
    # the process's own signals and timers
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "pause": (34, None),
    "alarm": (37, None),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    # time
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    # about the process and the machine
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getgroups": (115, 158),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrandom": (318, 278),
    "umask": (95, 166),
    # whether a descriptor is a socket
    "getsockname": (51, 204),
}
_STREAM_SOCKET, _CLOSE_ON_EXEC, _NOT_BLOCKING = 1, 0x80000, 0x800
_STREAM_SOCKETS = tuple(_STREAM_SOCKET | a | b for a in (0, _CLOSE_ON_EXEC) for b in (0, _NOT_BLOCKING))
_UNIX, _FIONBIO = 1, 0x5421
# name: numbers as above, and for some arguments by their position the only values that they may have
CHECKED: dict[str, tuple[tuple[int, int], dict[int, tuple[int, ...]]]] = {
    # Duplicating, flags, the size of a pipe; not the owner of a descriptor, to whom the kernel sends signals.
    "fcntl": ((72, 25), {1: (0, 1, 2, 3, 4, 1030, 1032)}),
    # Only the process's own limits: argument 0 is the process, and 0 means the calling one.
    "prlimit64": ((302, 261), {0: (0,)}),
    # Without flags: out-of-band data has a history of bugs.
    "socketpair": ((53, 199), {0: (_UNIX,), 1: _STREAM_SOCKETS}),
    "sendto": ((44, 206), {3: (0,)}),
    "recvfrom": ((45, 207), {3: (0,)}),
    "ioctl": ((16, 29), {1: (_FIONBIO,)}),
}
"""Calls whose arguments the filter checks."""
_CLONE, _CLONE3 = (56, 220), (435, 435)
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # linux/seccomp.h
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_FLAGS_ARGUMENT = {"open": 1, "openat": 2}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000


def supported(machine: str) -> bool:
    """Return whether `ALLOWED` has numbers for a kind of machine, as named by `platform.machine()`."""
    return machine in _ARCHITECTURES


def filter_program(machine: str, read_only: bool = False) -> bytes:
    """Return the filter for a kind of machine, in classic BPF with 8 bytes an instruction.

    With `read_only`, files cannot be opened for writing, for programs whose file system is not read-only. The two
    numbers of a jump count the instructions to skip if its condition is true, and if it is false.
    """
    column = list(_ARCHITECTURES).index(machine)
    denied = _ERROR | errno.EPERM
    code = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        code += [_instruction(_AT_LEAST, _X32_BIT, 0, 1), _instruction(_RETURN, denied)]
    numbers = {name: number for name, pair in ALLOWED.items() if (number := pair[column]) is not None}
    for name in _FLAGS_ARGUMENT.keys() & numbers.keys() if read_only else ():
        code += [
            _instruction(_EQUAL, numbers.pop(name), 0, 4),
            _instruction(_LOAD, _ARGUMENTS + 8 * _FLAGS_ARGUMENT[name]),
            _instruction(_ANY_BIT, _WRITING, 0, 1),
            _instruction(_RETURN, denied),
            _instruction(_RETURN, _ALLOW),
        ]
    code += [_instruction(_EQUAL, _CLONE3[column], 0, 1), _instruction(_RETURN, _ERROR | errno.ENOSYS)]
    # Threads only. The kernel refuses new namespaces together with this flag.
    code += [
        _instruction(_EQUAL, _CLONE[column], 0, 4),
        _instruction(_LOAD, _ARGUMENTS),
        _instruction(_ANY_BIT, _CLONE_THREAD, 0, 1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, denied),
    ]
    for both_numbers, checks in CHECKED.values():
        code += _checked(both_numbers[column], checks, denied)
    allowed = set(numbers.values())
    edges = {edge for number in allowed for edge in (number, number + 1)}
    bounds = sorted(edge for edge in edges if (edge in allowed) != (edge - 1 in allowed))
    return b"".join([*code, *_bisected(bounds, False, denied)])


def _checked(number: int, checks: dict[int, tuple[int, ...]], denied: int) -> list[bytes]:
    """Allow a call whose arguments, by their position, have one of the given values (32 bits of them)."""
    code = []
    for position, values in checks.items():
        code.append(_instruction(_LOAD, _ARGUMENTS + 8 * position))
        code += [_instruction(_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values)]
        code.append(_instruction(_RETURN, denied))
    code.append(_instruction(_RETURN, _ALLOW))
    return [_instruction(_EQUAL, number, 0, len(code)), *code]


def _bisected(bounds: list[int], allowed: bool, denied: int) -> list[bytes]:
    """Search for the range of a number by bisection. The ranges between the bounds are alternately allowed and denied.

    `allowed` is whether the numbers below the first bound are. Bisection makes the filter cheap to install, because the
    kernel then tries it on every number.
    """
    if not bounds:
        return [_instruction(_RETURN, _ALLOW if allowed else denied)]
    middle = len(bounds) // 2
    below = _bisected(bounds[:middle], allowed, denied)
    above = _bisected(bounds[middle + 1 :], allowed ^ (middle % 2 == 0), denied)
    return [_instruction(_AT_LEAST, bounds[middle], len(below), 0), *below, *above]


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
