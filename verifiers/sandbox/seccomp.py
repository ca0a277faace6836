"""The seccomp filter of the sandbox, as classic BPF: what a program that was handed to a verifier may not ask of the kernel.

Denied calls fail with EPERM, so that a program sees an ordinary error; a foreign architecture (32-bit calls on a 64-bit kernel) kills.
Calls newer than this table fail with ENOSYS: a kernel's next feature is not a hole. No socket can be made but a connected stream pair.
"""

from __future__ import annotations

import errno
import platform
import struct

_LOAD, _EQUAL, _ABOVE, _MASK, _RETURN = 0x20, 0x15, 0x25, 0x54, 0x06
_NR, _ARCH, _ARGUMENTS = 0, 4, 16
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NEWEST = 462
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Every table: name -> number on x86_64, number on aarch64; -1 where there is no such call.
_ALWAYS = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "chroot": (161, 51), "clock_adjtime": (305, 266),
    "clock_settime": (227, 112), "delete_module": (176, 106), "fanotify_init": (300, 262), "finit_module": (313, 273),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430), "fspick": (433, 433), "init_module": (175, 105),
    "inotify_add_watch": (254, 27), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_uring_setup": (425, 425),
    "ioperm": (173, -1), "iopl": (172, -1), "ioprio_set": (251, 30), "kcmp": (312, 272), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "keyctl": (250, 219), "lookup_dcookie": (212, 18), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "migrate_pages": (256, 238), "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429), "move_pages": (279, 239),
    "mq_open": (240, 180), "msgget": (68, 186), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "open_tree": (428, 428), "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pivot_root": (155, 41),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "ptrace": (101, 117), "quotactl": (179, 60), "quotactl_fd": (443, 443), "reboot": (169, 142), "request_key": (249, 218),
    "sched_setattr": (314, 274), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "semget": (64, 190),
    "setdomainname": (171, 162), "sethostname": (170, 161), "setns": (308, 268), "setpriority": (141, 140), "settimeofday": (164, 170),
    "shmget": (29, 194), "swapoff": (168, 225), "swapon": (167, 224), "syslog": (103, 116), "truncate": (76, 45), "umount2": (166, 39),
    "unshare": (272, 97), "userfaultfd": (323, 282), "vhangup": (153, 58), "vmsplice": (278, 75), "listmount": (458, 458),
    "statmount": (457, 457), "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242),
}  # fmt: skip
_UNKNOWN = {
    "clone3": (435, 435),
    "openat2": (437, 437),
}  # their arguments lie in memory, where no filter sees them: libc then uses the older
_SIGNALS = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}  # fmt: skip
_OWNERS = {
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, -1), "fchown": (93, 55),
    "lchown": (94, -1), "fchownat": (260, 54),
}  # fmt: skip
_WRITERS = {
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "utime": (132, -1), "utimes": (235, -1), "utimensat": (280, 88), "futimesat": (261, -1),
}  # fmt: skip
_LOOKED_INTO = {
    "socketpair": (53, 199), "clone": (56, 220), "open": (2, -1), "openat": (257, 56), "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122), "fcntl": (72, 25), "ioctl": (16, 29),
}  # fmt: skip

_NEW_NAMESPACES = 0x7E020000
_ACCESS_AND_TRUNCATE, _TRUNCATE = 0o1003, 0o1000
_F_SETOWN, _F_SETOWN_EX = 8, 15
_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP = 0x5412, 0x541C, 0x8901, 0x8902


def machine() -> str | None:
    """This machine's architecture where a filter can be written for it, else None."""
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    return name if name in _AUDIT_ARCH else None


def program(arch: str, *, signals: bool, owners: bool, writers: bool) -> bytes:
    """The filter's instructions for `arch`, 8 bytes each.

    Each flag denies a family of calls that this machine can't keep inside the sandbox by other means: `signals` to any process,
    `owners` what a file's owner may do (mode, owner), `writers` what anybody may do who may write it (times, attributes).
    """
    column = list(_AUDIT_ARCH).index(arch)
    lines = [_op(_LOAD, _ARCH), _op(_EQUAL, _AUDIT_ARCH[arch], 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NR)]
    lines += [_op(_ABOVE, _NEWEST, 0, 1), _op(_RETURN, _ERRNO | errno.ENOSYS)]  # also the x32 calls, whose numbers have bit 30 set
    families = ((_SIGNALS, signals), (_OWNERS, owners), (_WRITERS, writers))
    denied = dict(_ALWAYS) | {name: numbers for family, shut in families if shut for name, numbers in family.items()}
    for names, code in ((denied, errno.EPERM), (_UNKNOWN, errno.ENOSYS)):
        for numbers in names.values():
            if numbers[column] >= 0:
                lines += [_op(_EQUAL, numbers[column], 0, 1), _op(_RETURN, _ERRNO | code)]
    for name, numbers in _LOOKED_INTO.items():
        if numbers[column] >= 0:
            body = _conditions(name)
            lines += [_op(_EQUAL, numbers[column], 0, len(body)), *body]
    return b"".join([*lines, _op(_RETURN, _ALLOW)])


def _conditions(name: str) -> list[bytes]:
    """What follows once the call is known to be `name`: always ends with an answer."""
    deny, allow = _op(_RETURN, _ERRNO | errno.EPERM), _op(_RETURN, _ALLOW)
    if name == "socketpair":  # connected streams alone: a datagram pair can send to any address
        return [_argument(0), _op(_EQUAL, 1, 0, 3), _argument(1), _op(_MASK, 0xF), _op(_EQUAL, 1, 1, 0), deny, allow]
    if name == "clone":
        return [_argument(0), _op(_MASK, _NEW_NAMESPACES), _op(_EQUAL, 0, 1, 0), deny, allow]
    if name in {"open", "openat"}:  # reading with O_TRUNC empties a file that may only be read
        return [_argument(1 + (name == "openat")), _op(_MASK, _ACCESS_AND_TRUNCATE), _op(_EQUAL, _TRUNCATE, 0, 1), deny, allow]
    if name in {"prlimit64", "sched_setaffinity"}:  # of other processes
        return [_argument(0), _op(_EQUAL, 0, 1, 0), deny, allow]
    forbidden = (_F_SETOWN, _F_SETOWN_EX) if name == "fcntl" else (_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP)
    tests = [_op(_EQUAL, value, len(forbidden) - index, 0) for index, value in enumerate(forbidden)]
    return [_argument(1), *tests, allow, deny]


def _argument(index: int) -> bytes:
    """Load the lower half of an argument: flags and small numbers, which is all that is looked at."""
    return _op(_LOAD, _ARGUMENTS + 8 * index)


def _op(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, true, false, value)
