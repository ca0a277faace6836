"""The first program in the sandbox: it supervises the one it was given, and closes every door before it starts that one.

Started as `python -I -S inside.py FD` with its orders as JSON behind FD. It stands alone: the standard library, no import of the package,
for it runs where the package can't be seen. It answers with one JSON object on the report's descriptor. When its lifeline closes,
because the caller has finished or has died, it ends every process it started; one that died leaves its folder to be removed as well.
"""
# Importing pathlib and contextlib would cost more than starting does:
# ruff: noqa: PTH116, PTH123, PTH208, SIM105

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 22, 24
_PR_SET_KEEPCAPS, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 36, 38, 47, 2
_SECCOMP_MODE_FILTER = 2
_NEW_USER, _NEW_PID, _NEW_NET, _NEW_IPC, _NEW_UTS, _NEW_MOUNT = 0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x00020000
_MS_RDONLY, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 442, 0x8000, 1, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_POLL_MS = 20
_MAX_FILES = 20_000
_SETUP_FAILED = 99  # what the process that would have become the program exits with; the reason is in the report

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: Any) -> int:
    return _checked(int(_libc.syscall(number, *arguments)), f"system call {number}")


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, value: Any = 0, pointer: Any = 0) -> None:
    _checked(int(_libc.prctl(option, ctypes.c_ulong(value), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0))), f"prctl {option}")


# --- namespaces ---------------------------------------------------------------------------------------------------------------


def enter_namespaces(scratch: str, *, own_user: bool) -> list[str]:
    """New process, network, IPC and mount namespaces where this machine allows them; what was entered.

    A program that gets a user of its own needs no user namespace, in which there would be no such user.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS | _NEW_MOUNT
    for more in (0,) if own_user or uid == 0 else (0, _NEW_USER):
        if _libc.unshare(flags | more) == 0:
            break
    else:
        return []
    if more:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    user = ["user namespace"] if more else []
    return ["process namespace", "network namespace", *user, *_read_only_tree(scratch)]


def _read_only_tree(scratch: str) -> list[str]:
    path = os.fsencode(scratch)
    if _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) != 0:
        return []
    if _libc.mount(path, path, None, ctypes.c_ulong(_MS_BIND), None) != 0:
        return []
    read_only = struct.pack("=4Q", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    writable = struct.pack("=4Q", 0, _MOUNT_ATTR_RDONLY, 0, 0)
    try:
        _call(_MOUNT_SETATTR, -1, b"/", _AT_RECURSIVE, read_only, ctypes.c_size_t(32))
        _call(_MOUNT_SETATTR, -1, path, 0, writable, ctypes.c_size_t(32))
    except OSError:
        return []
    os.chdir(f"{scratch}/work")  # the same folder through the writable mount
    return ["read-only tree"]


def hide_kernel_files() -> None:
    """Empty folders over /proc and /sys, in a mount namespace of the program's own; the supervisor still needs the true ones."""
    if _libc.unshare(_NEW_MOUNT) == 0:
        for path in (b"/proc", b"/sys"):
            _libc.mount(
                b"none", path, b"tmpfs", ctypes.c_ulong(_MS_RDONLY), b"size=0,mode=555"
            )  # where refused, Landlock still keeps it shut


# --- the doors, closed in the process that becomes the program ------------------------------------------------------------------


def close_doors(orders: dict[str, Any]) -> None:
    os.setsid()
    for fd in range(3):
        os.set_inheritable(fd, True)
    dropping = orders["uid"] is not None
    _limit(orders["limits"], 0 if dropping else tasks_of_user())
    if dropping:
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(orders["uid"], orders["uid"], orders["uid"])
        os.setresuid(orders["uid"], orders["uid"], orders["uid"])
    if not orders["guarded"]:
        return
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _drop_capabilities(but=orders["reading_right"] if dropping else None)
    if orders["landlock"]:
        _landlock(orders["landlock"])
    _seccomp(bytes.fromhex(orders["seccomp"]["in a read-only tree" if "read-only tree" in orders["entered"] else "alone"]))


def _limit(limits: dict[str, Any], tasks: int) -> None:
    """Set the kernel's own limits. `tasks` that the user already has count against the number of processes, so they are added to it."""
    cpu_s = max(1, math.ceil(limits["cpu_s"]))
    pairs = [
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, 4 * limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["disk_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
    ]
    if sys.platform == "linux":
        pairs += [(resource.RLIMIT_MSGQUEUE, 0), (resource.RLIMIT_MEMLOCK, 0), (resource.RLIMIT_NPROC, tasks + limits["processes"] + 2)]
    for kind, value in pairs:
        most = resource.getrlimit(kind)[1]
        hard = value + 1 if kind == resource.RLIMIT_CPU else value  # a second between SIGXCPU and SIGKILL
        values = (value, hard) if most == resource.RLIM_INFINITY else (min(value, most), min(hard, most))
        resource.setrlimit(kind, values)


def tasks_of_user() -> int:
    """How many threads this user has on the machine, as the kernel counts them against RLIMIT_NPROC."""
    uid, count = os.getuid(), 0
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count


def _drop_capabilities(but: int | None) -> None:
    for capability in range(64):
        if capability != but:
            _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)  # refused where never held: capset takes them all
    held = 0 if but is None else 1 << but
    header, sets = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", held, held, held, 0, 0, 0)
    _checked(int(_libc.capset(header, sets)), "capset")
    if but is not None:
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, ctypes.c_ulong(but))


def _landlock(rules: dict[str, Any]) -> None:
    attributes = struct.pack("=QQQ", rules["handled_fs"], rules["handled_net"], rules["scoped"])
    size = 24 if rules["scoped"] else 16 if rules["handled_net"] else 8
    ruleset = _call(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    for path, rights in rules["paths"]:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:  # hidden meanwhile
            continue
        _call(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, fd), ctypes.c_uint32(0))
        os.close(fd)
    _call(_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0))
    os.close(ruleset)


def _seccomp(program: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(Program(len(program) // 8, program)))


# --- the process tree -----------------------------------------------------------------------------------------------------------


def descendants(root: int, most: int = 1 << 22) -> list[int]:
    """The processes below `root` as the kernel lists them, whatever session or group they moved themselves into; at most about `most`."""
    found: list[int] = []
    open_ = [root]
    while open_ and len(found) <= most:
        pid = open_.pop()
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                    children = [int(word) for word in file.read().split()]
                found += children
                open_ += children
        except OSError:  # it has ended meanwhile
            continue
    return found


def kill_tree(root: int) -> None:
    """End every process below `root`, which reaps them all: as a child subreaper it inherits the orphans."""
    while True:
        alive = descendants(root)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in alive:
                _signal(pid, number)
        try:
            while os.waitpid(-1, os.WNOHANG if descendants(root) else 0)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def usage(pids: list[int]) -> tuple[int, int]:
    """Threads and resident bytes of these processes."""
    tasks = memory = 0
    page = resource.getpagesize()
    for pid in pids:
        try:
            tasks += len(os.listdir(f"/proc/{pid}/task"))
            with open(f"/proc/{pid}/statm", "rb") as file:
                words = file.read().split()
            memory += (int(words[1]) - int(words[2])) * page if len(pids) > 1 else int(words[1]) * page  # shared pages of forks once
        except OSError:
            continue
    return tasks, memory


def disk_used(scratch: str, most: int) -> int:
    """Bytes on disk below `scratch`, counted until `most` is passed; too many files count as too many bytes."""
    total, files, folders = 0, 0, [scratch]
    while folders and total <= most:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    files += 1
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    if files > _MAX_FILES or total > most:
                        return most + 1
        except OSError as error:  # removed meanwhile, or shut by its owner
            if error.errno == errno.ENAMETOOLONG:
                return most + 1  # what can't be counted is too much
    return total


# --- supervising ------------------------------------------------------------------------------------------------------------------


def _become_program(orders: dict[str, Any], trouble: int) -> NoReturn:
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) if sys.platform == "linux" else None
        close_doors(orders)
        for name in ("SIGPIPE", "SIGXFSZ"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        os.execvpe(orders["argv"][0], orders["argv"], orders["env"])  # noqa: S606  the point of it all
    except BaseException as error:  # noqa: BLE001  nothing may come back from here
        os.write(trouble, f"{type(error).__name__}: {error}"[:500].encode(errors="replace"))
        os._exit(_SETUP_FAILED)


def _init(orders: dict[str, Any], trouble: int, ended: int) -> NoReturn:
    """The first process of a process namespace: when it ends, the kernel ends all others. It says how the program ended."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    program = os.fork()
    if not program:
        if "read-only tree" in orders["entered"]:
            hide_kernel_files()
        _become_program(orders, trouble)
    while True:
        pid, status = os.wait()
        if pid == program:
            os.write(ended, struct.pack("=i", status))
            os._exit(0)


def start(orders: dict[str, Any], trouble: int) -> tuple[int, int, list[str]]:
    """Start the program; the process to wait for, where its exit status will be read (-1: from that process), and what was entered."""
    entered = enter_namespaces(orders["scratch"], own_user=orders["uid"] is not None) if orders["namespaces"] else []
    orders["entered"] = entered
    status_read, status_write = os.pipe()
    pid = os.fork()
    if not pid:
        if entered:
            _init(orders, trouble, status_write)
        _become_program(orders, trouble)
    os.close(status_write)
    return pid, status_read if entered else -1, entered


def watch(pid: int, orders: dict[str, Any], started: float) -> str | None:
    """Wait for `pid` or the first limit that is passed; that limit's name, else None."""
    limits = orders["limits"]
    poll = select.poll()
    poll.register(orders["lifeline"], select.POLLHUP | select.POLLIN)
    handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
    if handle >= 0:
        poll.register(handle, select.POLLIN)
    looked = 0
    while True:
        ready = [fd for fd, _ in poll.poll(_POLL_MS)]
        if orders["lifeline"] in ready:
            return "caller"
        if handle in ready or (handle < 0 and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            return None
        if time.monotonic() - started > limits["wall_s"]:
            return "wall"
        tasks, memory = usage(descendants(os.getpid(), limits["processes"]))
        if tasks > limits["processes"]:
            return "processes"
        if memory > limits["memory_bytes"]:
            return "memory"
        looked += 1
        if looked % 5 == 0 and disk_used(orders["scratch"], limits["disk_bytes"]) > limits["disk_bytes"]:
            return "disk"


def supervise(orders: dict[str, Any]) -> dict[str, Any]:
    """Run the program to its end or its limit and end everything it started; the report."""
    linux = sys.platform == "linux"
    if linux:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    trouble_read, trouble_write = os.pipe()
    started = time.monotonic()
    pid, status_from, entered = start(orders, trouble_write)
    os.close(trouble_write)
    limit = watch(pid, orders, started)
    status: int | None = None
    if limit is None:
        status = os.waitpid(pid, 0)[1]
        if status_from >= 0:
            told = os.read(status_from, 4)
            status = struct.unpack("=i", told)[0] if len(told) == 4 else status
    wall_s = time.monotonic() - started
    if entered and limit is not None:
        _signal(pid, signal.SIGKILL)  # the first process of its namespace: the kernel ends the others with it, however many
    if linux and not orders["first"]:
        kill_tree(os.getpid())
    elif not linux:
        _kill_group(pid)
    if limit == "caller" and not os.read(orders["lifeline"], 1):
        _remove(orders["scratch"])  # nobody is left who would
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "limit": limit,
        "status": status,
        "wall_s": wall_s,
        "cpu_s": cpu.ru_utime + cpu.ru_stime,
        "entered": entered,
        "trouble": os.read(trouble_read, 500).decode(errors="replace") if limit is None else "",
    }


def _remove(scratch: str) -> None:
    import shutil

    shutil.rmtree(scratch, ignore_errors=True)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass


def main() -> None:
    with os.fdopen(int(sys.argv[1]), encoding="utf-8") as file:
        orders = json.load(file)
    for fd in orders["kept"]:
        os.set_inheritable(fd, False)
    try:
        report = supervise(orders)
    except Exception as error:  # noqa: BLE001  whatever it is, the caller is told
        report = {"limit": None, "status": None, "wall_s": 0.0, "cpu_s": 0.0, "entered": [], "trouble": f"{type(error).__name__}: {error}"}
    os.write(orders["report"], json.dumps(report).encode())
    os._exit(0)  # as the first process of a namespace it takes all others with it


if __name__ == "__main__":
    main()
