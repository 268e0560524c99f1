"""System calls for which Python has no function."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)

MACHINE = os.uname().machine
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442  # the same everywhere, as all calls since Linux 5.0 are

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_CAPABILITY_VERSION_3 = 0x20080522


class StepFailed(OSError):
    """This machine refused a step of the sandbox's setup, named in `step`."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(number, os.strerror(number))
        self.step = step


class MountAttributes(ctypes.Structure):
    """`struct mount_attr`."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("fd", ctypes.c_uint64),
    )


class FilterProgram(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def system_call(number: int, *arguments: Any) -> int:
    """Make a system call by its number; arguments are ctypes values, `None` for a null pointer."""
    return int(_libc.syscall(ctypes.c_long(number), *arguments))


def checked(step: str, result: int) -> int:
    """Return the result of a system call; raises `StepFailed` if the call failed."""
    if result < 0:
        raise StepFailed(step, ctypes.get_errno())
    return result


def unshare(flags: int) -> None:
    """Move this process to new namespaces of the kinds in `flags`."""
    checked("unshare", _libc.unshare(flags))


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount a file system; see mount(2)."""
    arguments = [None if text is None else text.encode() for text in (source, target, kind)]
    checked(f"mount {target}", _libc.mount(*arguments, flags, None if data is None else data.encode()))


def set_mount_flags(target: str, flags: int) -> None:
    """Add flags (`MS_RDONLY`, `MS_NOSUID`, `MS_NODEV`, `MS_NOEXEC`) to the mount at `target` and all below it."""
    attributes = MountAttributes(flags, 0, 0, 0)  # MOUNT_ATTR_* have the values of these MS_*
    done = system_call(
        _MOUNT_SETATTR,
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(target.encode()),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    checked(f"mount_setattr {target} (Linux 5.12 or newer)", done)


def unmount(target: str) -> None:
    """Remove the mount at `target` from view now, and completely when nothing uses it any more."""
    checked(f"umount {target}", _libc.umount2(target.encode(), MNT_DETACH))


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root, and move the present root to `old`."""
    places = (ctypes.c_char_p(place.encode()) for place in (new, old))
    checked("pivot_root", system_call(_PIVOT_ROOT[MACHINE], *places))


def set_host_name(name: str) -> None:
    """The name that `uname` gives."""
    checked("sethostname", _libc.sethostname(name.encode(), ctypes.c_size_t(len(name))))


def prctl(step: str, option: int, argument: int = 0) -> None:
    """prctl(2) with one argument."""
    checked(step, _libc.prctl(option, argument, 0, 0, 0))


def drop_bounding_set() -> None:
    """Drop the capabilities that an exec could gain. This needs a capability, so it comes before the change of user."""
    number = 0
    while _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1


def drop_capabilities() -> None:
    """Give up every capability and, with `no_new_privs`, every way to regain one."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    checked("capset", _libc.capset(header, (ctypes.c_uint32 * 6)()))
    prctl("no_new_privs", PR_SET_NO_NEW_PRIVS, 1)


def install_filter(instructions: bytes) -> None:
    """Install a seccomp filter for this thread and its descendants; needs `no_new_privs`."""
    program = FilterProgram(len(instructions) // 8, instructions)
    checked("seccomp", _libc.prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0))
