"""What the Landlock half of the sandbox asks of the kernel: which paths may be read, which written, and what of the network is shut.

The numbers are those of `linux/landlock.h`; each version of the interface knows more rights than the one before it, and a right it
does not know can't be asked for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

_CREATE_RULESET = 444
_VERSION = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_RIGHTS_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # interface version -> how many rights on files it knows
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_TCP = 0b11  # bind and connect, from version 4 on
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2  # scopes, from version 6 on


@cache
def version() -> int:
    """The Landlock interface version of this kernel; 0 where there is none or it is switched off."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return max(0, int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))))
    except (OSError, AttributeError):
        return 0


def keeps_signals(abi: int) -> bool:
    """Whether a program can be kept from signalling processes outside."""
    return abi >= 6


def rules(abi: int, *, read: Iterable[Path], write: Iterable[Path], devices: Iterable[Path]) -> dict[str, Any]:
    """The ruleset as data: `read` may be read and executed, `write` also changed, `devices` used."""
    handled = (1 << _RIGHTS_KNOWN[min(abi, 5)]) - 1
    changing = handled & ~(_MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _IOCTL_DEV)
    reading = _EXECUTE | _READ_FILE | _READ_DIR
    allowed = [(path, reading) for path in read] + [(path, changing) for path in write]
    allowed += [(path, _READ_FILE | _WRITE_FILE | _IOCTL_DEV) for path in devices]
    return {
        "handled_fs": handled,
        "handled_net": _TCP if abi >= 4 else 0,
        "scoped": _ABSTRACT_SOCKETS | _SIGNALS if abi >= 6 else 0,
        "paths": [(str(path), rights & handled & (-1 if path.is_dir() else _ON_FILES)) for path, rights in allowed if path.exists()],
    }
