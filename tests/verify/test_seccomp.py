"""The filter allows what `ALLOWED` lists: checked with the kernel's headers, and by running it on every system call."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from ra3gym.verify.sandbox.isolation import seccomp

MACHINES = ("x86_64", "aarch64")
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
SPECIAL = {name: numbers for name, (numbers, _) in seccomp.CHECKED.items()} | {"clone": (56, 220), "clone3": (435, 435)}
"""Calls whose arguments the filter checks."""
FORBIDDEN = (
    "fork vfork execve execveat kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal "
    "ptrace process_vm_readv process_vm_writev kcmp socket connect bind listen accept sendmsg "
    "recvmsg mount umount2 pivot_root chroot move_mount fsopen unshare setns bpf seccomp prctl arch_prctl "
    "personality io_uring_setup perf_event_open userfaultfd keyctl add_key request_key init_module finit_module "
    "delete_module kexec_load reboot setuid setgid setresuid setresgid setgroups capset setrlimit "
    "memfd_create memfd_secret shmget msgget semget mq_open inotify_init1 fanotify_init truncate ftruncate unlink "
    "unlinkat rename renameat2 mkdir mkdirat mknodat symlinkat linkat fchmod fchown setsid setpgid setpriority "
    "sched_setaffinity sched_setscheduler mlockall"
)

ALLOW, KILL = 0x7FFF0000, 0x80000000
DENIED, NOT_THERE = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
CLONE_THREAD = 0x00010000
THREAD_FLAGS = 0x003D0F00  # what the C library starts a thread with
ARGUMENTS = (0, 1, 17, 0xFFFFFFFF, CLONE_THREAD, THREAD_FLAGS, 1 << 32, (1 << 32) | 1, (1 << 32) | CLONE_THREAD)


def verdict_on(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Run `program` (classic BPF over `struct seccomp_data`) on a call, and return the kernel's action."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    code = list(struct.iter_unpack("=HBBI", program))
    at, register = 0, 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        match operation:
            case 0x20:  # load a word at an absolute offset
                (register,) = struct.unpack_from("=I", data, operand)
            case 0x15:
                at += if_true if register == operand else if_false
            case 0x25:
                at += if_true if register > operand else if_false
            case 0x35:
                at += if_true if register >= operand else if_false
            case 0x45:
                at += if_true if register & operand else if_false
            case 0x54:
                register &= operand
            case 0x05:
                at += operand
            case 0x06:
                return operand
            case _:
                raise AssertionError(f"the kernel refuses a filter with operation {operation:#x}")


def numbers_in_header(machine: str) -> dict[str, int]:
    """Return the kernel's table; skips the test if its headers are not installed."""
    if not HEADERS[machine].exists():
        pytest.skip(f"no kernel headers for {machine} here")
    lines = HEADERS[machine].read_text()
    pattern = re.compile(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", re.MULTILINE)
    return {name: int(number) for name, number in pattern.findall(lines)}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    column, header = MACHINES.index(machine), numbers_in_header(machine)
    ours = {name: numbers[column] for name, numbers in (seccomp.ALLOWED | SPECIAL).items()}
    if "newfstatat" not in header:
        header["newfstatat"] = header["fstatat"]  # as the generic table calls it
    for name, number in ours.items():
        assert number == header.get(name), name


@pytest.mark.parametrize("machine", MACHINES)
def test_nothing_forbidden_is_on_the_list(machine: str) -> None:
    header, program = numbers_in_header(machine), seccomp.filter_program(machine)
    assert not set(FORBIDDEN.split()) & set(seccomp.ALLOWED)
    for name in FORBIDDEN.split():
        if name in header:
            for argument in ARGUMENTS:
                assert verdict_on(program, AUDIT_ARCH[machine], header[name], argument, argument) == DENIED, name


@pytest.mark.parametrize("machine", MACHINES)
def test_exactly_what_is_listed_is_allowed(machine: str) -> None:
    column, program = MACHINES.index(machine), seccomp.filter_program(machine)
    allowed = {numbers[column] for numbers in seccomp.ALLOWED.values()}
    special = {numbers[column] for numbers in SPECIAL.values()}
    assert not allowed & special
    for number in [*range(501), 0x7FFFFFFF, -1]:
        for argument in ARGUMENTS:
            if number not in special:
                verdict = verdict_on(program, AUDIT_ARCH[machine], number, argument, argument)
                assert verdict == (ALLOW if number in allowed else DENIED), (number, argument)


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_may_be_made_and_processes_not(machine: str) -> None:
    program, column = seccomp.filter_program(machine), MACHINES.index(machine)
    for flags in [*ARGUMENTS, *(1 << bit for bit in range(64))]:
        allowed = verdict_on(program, AUDIT_ARCH[machine], SPECIAL["clone"][column], flags) == ALLOW
        assert allowed == bool(flags & CLONE_THREAD)
        # Its flags lie in memory: the C library then tries clone.
        assert verdict_on(program, AUDIT_ARCH[machine], SPECIAL["clone3"][column], flags) == NOT_THERE


@pytest.mark.parametrize("machine", MACHINES)
def test_limits_are_ones_own_affair(machine: str) -> None:
    """A process id is an int: the kernel and the filter use the lower half of the argument."""
    program, column = seccomp.filter_program(machine), MACHINES.index(machine)
    for pid in ARGUMENTS:
        allowed = verdict_on(program, AUDIT_ARCH[machine], SPECIAL["prlimit64"][column], pid) == ALLOW
        assert allowed == (pid & 0xFFFFFFFF == 0)


@pytest.mark.parametrize("machine", MACHINES)
def test_descriptors_send_no_signals(machine: str) -> None:
    """By F_SETOWN and F_SETSIG the kernel would send signals to pid 1, the zygote, when a pipe becomes readable."""
    program, column = seccomp.filter_program(machine), MACHINES.index(machine)
    fcntl = SPECIAL["fcntl"][column]
    duplicate, get_flags, set_flags, duplicate_and_close = 0, 3, 4, 1030
    for command in (duplicate, 1, 2, get_flags, set_flags, duplicate_and_close):
        assert verdict_on(program, AUDIT_ARCH[machine], fcntl, 5, command) == ALLOW
    set_owner, set_signal, set_owner_ex, lease, notify, pipe_size = 8, 10, 15, 1024, 1026, 1031
    for command in (set_owner, set_signal, set_owner_ex, lease, notify, pipe_size):
        for high in (0, 1 << 32):  # the kernel takes an unsigned int
            assert verdict_on(program, AUDIT_ARCH[machine], fcntl, 5, high | command) == DENIED, command


@pytest.mark.parametrize("machine", MACHINES)
def test_sockets_are_pairs_of_streams_without_flags(machine: str) -> None:
    program, column = seccomp.filter_program(machine), MACHINES.index(machine)
    unix, stream, close_on_exec, not_blocking = 1, 1, 0x80000, 0x800
    for family in range(50):
        for kind in range(12):
            for flags in (0, close_on_exec, not_blocking, close_on_exec | not_blocking, 0x1000):
                verdict = verdict_on(program, AUDIT_ARCH[machine], SPECIAL["socketpair"][column], family, kind | flags)
                assert (verdict == ALLOW) == (family == unix and kind == stream and flags != 0x1000)
    for call in ("sendto", "recvfrom"):
        for flags in (0, *(1 << bit for bit in range(32))):
            verdict = verdict_on(program, AUDIT_ARCH[machine], SPECIAL[call][column], 5, 0, 1, flags)
            assert verdict == (ALLOW if flags == 0 else DENIED)
    no_waiting, terminal_input = 0x5421, 0x5412
    for request in (no_waiting, terminal_input, 0, 0x5411, 0x541B):
        verdict = verdict_on(program, AUDIT_ARCH[machine], SPECIAL["ioctl"][column], 5, request)
        assert verdict == (ALLOW if request == no_waiting else DENIED)


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_architecture_kill(machine: str) -> None:
    program = seccomp.filter_program(machine)
    for architecture in {*AUDIT_ARCH.values(), 0} - {AUDIT_ARCH[machine]}:
        for number in (0, 1, 60, 93, 220, 435):
            assert verdict_on(program, architecture, number) == KILL


def test_the_third_table_of_x86_is_closed() -> None:
    """x32 calls say that they are of x86-64, with a bit in the number that a list of numbers alone would miss."""
    program = seccomp.filter_program("x86_64")
    for number in range(601):
        assert verdict_on(program, AUDIT_ARCH["x86_64"], 0x40000000 | number, CLONE_THREAD) == DENIED


@pytest.mark.parametrize("machine", MACHINES)
def test_the_kernel_would_take_it(machine: str) -> None:
    """Every jump stays in the program, every path ends in a return, and the program is not too long."""
    code = list(struct.iter_unpack("=HBBI", seccomp.filter_program(machine)))
    assert len(code) <= 4096
    for at, (operation, if_true, if_false, _) in enumerate(code):
        if operation & 0x07 == 0x05:
            assert at + 1 + max(if_true, if_false) < len(code)
    assert code[-1][0] == 0x06


def test_machines_without_a_table_are_known() -> None:
    assert all(map(seccomp.supported, MACHINES))
    assert not seccomp.supported("riscv64")
