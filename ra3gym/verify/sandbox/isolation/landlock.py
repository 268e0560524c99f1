"""Landlock (Linux 5.13): restrict a process to some folders, without any privilege.

This is for programs in plain processes. Programs in namespaces see no other folders anyway.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from . import linux

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_ACCESSES = {1: (1 << 13) - 1, 2: (1 << 14) - 1}
_ALL_ACCESSES = (1 << 15) - 1  # of the third version; later versions add ioctl, which seccomp refuses


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Return the kernel's version of Landlock, 0 if it has none."""
    version = linux.system_call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    return max(version, 0)


def restrict_to(readable: Iterable[str]) -> None:
    """Restrict this process permanently to reading `readable` (files, and folders with all that is in them).

    Needs `no_new_privs` and a `version` above 0. Raises `linux.StepFailed`.
    """
    handled = _Ruleset(_ACCESSES.get(version(), _ALL_ACCESSES))
    ruleset = linux.checked(
        "landlock_create_ruleset",
        linux.system_call(
            _CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(ctypes.sizeof(handled)), ctypes.c_uint32(0)
        ),
    )
    for path in readable:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _PathBeneath(_READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE, descriptor)
        linux.checked(
            f"landlock_add_rule {path}",
            linux.system_call(
                _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0)
            ),
        )
        os.close(descriptor)
    linux.checked(
        "landlock_restrict_self", linux.system_call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    )
    os.close(ruleset)
