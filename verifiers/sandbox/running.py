"""`run`: one program in a sandbox of its own, and what became of it.

The caller's side: it makes the scratch folder, draws up the orders for `inside.py`, starts that, reads its output and report, and
removes the folder. Nothing of the program is left when `run` returns, daemons included.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from counterplay.core.errors import UserError, VerifierError
from counterplay.verifiers.sandbox import bubblewrap, landlock, seccomp, view

Level = Literal["bubblewrap", "landlock", "unisolated"]
Isolation = Literal["best", "bubblewrap", "landlock", "unisolated"]
Limit = Literal["wall", "cpu", "memory", "processes", "disk", "output"]

_INSIDE = Path(__file__).with_name("inside.py")
_LEVELS: tuple[Level, ...] = ("bubblewrap", "landlock")
_GRACE_S = 20.0
_CHUNK = 1 << 16
_FILE_TOO_LARGE = os.strerror(errno.EFBIG)
_OUT_OF_MEMORY = ("MemoryError", "std::bad_alloc", "Cannot allocate memory", "Out of Memory Error")


class NoIsolation(UserError):  # noqa: N818  named for what is missing
    """This machine can't isolate a program, and nobody said that it may run without."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. `processes` counts threads too; `output_bytes` is for each of stdout and stderr.

    `memory_bytes` and `processes` are of the whole process tree, looked at every 20 ms; `cpu_s` is of each process; a single process
    also can't reserve more than four times the memory. `disk_bytes` limits each file at once and all files within 0.1 s.
    """

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 20
    processes: int = 64
    disk_bytes: int = 256 << 20
    open_files: int = 256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise UserError(f"got {name}={value!r}", "a positive limit")


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a program.

    `exit` is its exit status, None where a signal or a limit ended it. `signal` names the signal that ended it, None where none did.
    `limit` is the limit that was hit, None where none was. `stdout` and `stderr` are cut at the limit, `truncated` says whether they
    were. `guards` lists what kept it in: `isolation` is the level, the others say more of it.
    """

    exit: int | None
    signal: str | None
    limit: Limit | None
    stdout: str
    stderr: str
    truncated: bool
    wall_s: float
    cpu_s: float
    isolation: Level
    guards: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.exit == 0 and self.limit is None

    @property
    def ending(self) -> str:
        """How it ended, for a reason."""
        if self.limit is not None:
            return f"stopped at its {self.limit} limit"
        return f"exit status {self.exit}" if self.signal is None else f"ended by {self.signal}"


@dataclass(frozen=True, slots=True)
class Program:
    """What is to be run, and on what."""

    argv: tuple[str, ...]
    files: Mapping[str, view.File]
    stdin: str | bytes
    read: tuple[Path, ...]
    env: Mapping[str, str]
    limits: Limits


class Lifeline:
    """The pipe whose end tells the supervisor to end everything. Cut once, from any thread; a caller that dies cuts it without a word."""

    def __init__(self) -> None:
        self._lock, self._write, self._cut = threading.Lock(), -1, False

    def open(self) -> int:
        """The end for the supervisor. One that was cut before is already at its end."""
        read, write = os.pipe()
        with self._lock:
            self._write = write
        if self._cut:
            self.cut()
        return read

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            if self._write >= 0:
                with contextlib.suppress(BrokenPipeError):
                    os.write(self._write, b".")
                os.close(self._write)
                self._write = -1


async def run(
    argv: Sequence[str],
    *,
    files: Mapping[str, view.File] | None = None,
    stdin: str | bytes = b"",
    read: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    isolation: Isolation = "best",
) -> Ran:
    """Run `argv` in a fresh folder that holds `files`, with no network, and end every process it started.

    `files` are put into its working folder by relative name (a Path is copied). `read` are further paths it may read; beside them
    it sees the system's programs and this Python with its packages, nothing else. `env` is added to a clean environment. Cancelling
    ends the program. Raises NoIsolation where the machine can't isolate it and `isolation` is not "unisolated", VerifierError where
    the program could not be started.
    """
    program = Program(tuple(argv), dict(files or {}), stdin, tuple(read), dict(env or {}), limits or Limits())
    line = Lifeline()
    try:
        return await asyncio.to_thread(_run, program, isolation, line)
    except asyncio.CancelledError:
        line.cut()
        raise


def run_sync(
    argv: Sequence[str],
    *,
    files: Mapping[str, view.File] | None = None,
    stdin: str | bytes = b"",
    read: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    isolation: Isolation = "best",
) -> Ran:
    """`run` for callers without an event loop."""
    program = Program(tuple(argv), dict(files or {}), stdin, tuple(read), dict(env or {}), limits or Limits())
    return _run(program, isolation, Lifeline())


def available() -> tuple[Level, ...]:
    """The levels of isolation that work on this machine, best first; found by trying. `unisolated` is not among them."""
    return tuple(level for level, trouble in _tried().items() if not trouble)


@cache
def _tried() -> dict[Level, str]:
    """Each level, best first, and what is in its way; empty where nothing is."""
    if sys.platform != "linux" or seccomp.machine() is None:
        return dict.fromkeys(_LEVELS, f"there is none for {sys.platform} on {platform.machine()}")
    found = {"bubblewrap": bubblewrap.executable() is not None, "landlock": landlock.version() > 0}
    missing = {"bubblewrap": "bwrap is not installed", "landlock": "the kernel has none, or it is switched off"}
    return {level: _trouble(level) if found[level] else missing[level] for level in _LEVELS}


def _trouble(level: Level) -> str:
    program = Program((sys.executable, "-I", "-S", "-c", ""), {}, b"", (), {}, Limits())
    try:
        ran = at_level(level, program, Lifeline())
    except (VerifierError, OSError) as error:
        return str(error)
    return "" if ran.ok else f"{ran.ending} {ran.stderr[-200:]}"


def _run(program: Program, isolation: Isolation, line: Lifeline) -> Ran:
    if not program.argv:
        raise UserError("got no program to run", "a command of at least one word")
    return at_level(_level(isolation), program, line)


def _level(isolation: Isolation) -> Level:
    if isolation == "unisolated":
        return "unisolated"
    levels = available()
    if isolation == "best" and levels:
        return levels[0]
    if isolation in levels:
        return "bubblewrap" if isolation == "bubblewrap" else "landlock"
    tried = "; ".join(f"{level}: {trouble}" for level, trouble in _tried().items() if trouble)
    raise NoIsolation(
        f"got a program to run, and no isolation for it ({isolation}) works on this machine ({tried})",
        "bubblewrap, or Linux 5.13 with Landlock, on x86_64 or aarch64",
        'Install bubblewrap, or say isolation="unisolated" for programs you trust.',
    )


def at_level(level: Level, program: Program, line: Lifeline, *, without: frozenset[str] = frozenset()) -> Ran:
    """Run at one level. `without` leaves guards out, as on machines that lack them: `namespaces`, `scopes`, `user`."""
    shown = view.readable(program.read)
    uid = None if level == "unisolated" or "user" in without else view.foreign_user()
    as_root = not all(map(view.open_to_all, [*shown, Path(sys.executable), _INSIDE, Path(tempfile.gettempdir())]))
    right = view.reading_right() if as_root and uid is not None else None
    if as_root and (level == "bubblewrap" or right is None):
        uid = None  # bubblewrap itself must read what it shows
    if level == "landlock" and uid is None and os.geteuid() == 0 and "user" not in without:
        raise VerifierError("root can't become another user here, and the kernel limits no processes of root's", "an ordinary user")
    scratch = view.make_scratch(program.files, uid)
    try:
        orders = {
            "argv": list(program.argv),
            "env": view.environment(scratch, program.env),
            "limits": asdict(program.limits),
            "scratch": str(scratch),
            "namespaces": level == "landlock" and "namespaces" not in without,
            "uid": uid if level == "landlock" else None,
            "reading_right": right,
            "guarded": level != "unisolated",
            "first": level == "bubblewrap",
            **(_doors(level, shown, scratch, uid, without) if level != "unisolated" else {"landlock": None, "seccomp": None}),
        }
        command = [sys.executable, "-I", "-S", str(_INSIDE)]
        as_user: dict[str, Any] = {}
        if level == "bubblewrap":
            command = [*bubblewrap.command(str(bubblewrap.executable()), read=[*shown, _INSIDE], scratch=scratch), *command]
            as_user = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
        outputs, over = _started(command, orders, as_user, program, line)
        return _judged(level, orders, outputs, over, program.limits)
    finally:
        view.remove(scratch)


def _doors(level: Level, shown: Sequence[Path], scratch: Path, uid: int | None, without: frozenset[str]) -> dict[str, Any]:
    """The orders that shut files, sockets and calls: Landlock's rules, and the filter for with and without a read-only tree."""
    abi = min(landlock.version(), 5 if "scopes" in without else 99)
    same_user = uid is None and level == "landlock"
    filters = {
        "in a read-only tree": {"signals": False, "owners": False, "writers": False},
        "alone": {"signals": same_user and not landlock.keeps_signals(abi), "owners": same_user, "writers": level == "landlock"},
    }
    return {
        "landlock": landlock.rules(abi, read=[*shown, *view.own_limits()], write=[scratch], devices=view.devices()) if abi else None,
        "seccomp": {name: seccomp.program(seccomp.machine() or "", **shut).hex() for name, shut in filters.items()},
    }


def _started(
    command: list[str], orders: dict[str, Any], as_user: dict[str, Any], program: Program, line: Lifeline
) -> tuple[list[bytes], bool]:
    """Start the supervisor with its orders and listen to the end: stdout, stderr, report, and whether there was too much of them."""
    lifeline = line.open()
    report_read, report_write = os.pipe()
    kept = [lifeline, report_write]
    with tempfile.TemporaryFile() as written, tempfile.TemporaryFile() as given:
        written.write(json.dumps({**orders, "lifeline": lifeline, "report": report_write, "kept": kept}).encode())
        given.write(program.stdin if isinstance(program.stdin, bytes) else program.stdin.encode("utf-8", "surrogatepass"))
        for file in (written, given):
            file.seek(0)
        try:
            process = subprocess.Popen(  # noqa: S603  the point of the sandbox
                [*command, str(written.fileno())],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=orders["env"],
                cwd=Path(orders["scratch"], "work"),
                pass_fds=[*kept, written.fileno()],
                start_new_session=True,
                **as_user,
            )
        except BaseException:
            os.close(report_read)
            line.cut()
            raise
        finally:
            for fd in kept:
                os.close(fd)
    with process, os.fdopen(report_read, "rb") as told:
        return _listen(process, told, program.limits, line)


def _listen(process: subprocess.Popen[bytes], told: Any, limits: Limits, line: Lifeline) -> tuple[list[bytes], bool]:
    """Read stdout, stderr and the report to their ends, cutting the lifeline at too much output; whether there was too much."""
    held: dict[Any, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray(), told: bytearray()}
    room = {process.stdout: limits.output_bytes, process.stderr: limits.output_bytes, told: _CHUNK}
    over = False
    deadline = time.monotonic() + limits.wall_s + _GRACE_S
    try:
        with selectors.DefaultSelector() as selector:
            for stream in held:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map() and time.monotonic() < deadline:
                for key, _ in selector.select(deadline - time.monotonic()):
                    data = os.read(key.fd, _CHUNK)
                    buffer = held[key.fileobj]
                    free = room[key.fileobj] - len(buffer)
                    buffer += data[:free]
                    if not data:
                        selector.unregister(key.fileobj)
                    elif len(data) > free:
                        over = True
                        line.cut()
    finally:
        line.cut()
        if process.poll() is None and time.monotonic() >= deadline:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return [bytes(buffer) for buffer in held.values()], over


def _judged(level: Level, orders: dict[str, Any], outputs: list[bytes], over: bool, limits: Limits) -> Ran:
    stdout, stderr = (data.decode("utf-8", "replace") for data in outputs[:2])
    try:
        report = json.loads(outputs[2])
    except ValueError:
        raise VerifierError(f"the sandbox ({level}) did not report; it said: {stderr[-500:].strip()!r}", "a program that starts") from None
    if report["trouble"]:
        raise VerifierError(f"the sandbox ({level}) could not start {orders['argv'][0]!r}: {report['trouble']}", "a program that starts")
    status = report["status"]
    number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None
    limit: Limit | None = "output" if over else None if report["limit"] == "caller" else report["limit"]
    if limit is None and (number == signal.SIGXCPU or (number == signal.SIGKILL and report["cpu_s"] >= limits.cpu_s)):
        limit = "cpu"
    said = stderr[-2000:]
    if limit is None and (number == signal.SIGXFSZ or (status and _FILE_TOO_LARGE in said)):
        limit = "disk"
    if limit is None and status and any(words in said for words in _OUT_OF_MEMORY):
        limit = "memory"
    return Ran(
        exit=os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
        signal=None if number is None else signal.Signals(number).name,
        limit=limit,
        stdout=stdout,
        stderr=stderr,
        truncated=over,
        wall_s=report["wall_s"],
        cpu_s=report["cpu_s"],
        isolation=level,
        guards=_guards(level, orders, report["entered"]),
    )


def _guards(level: Level, orders: dict[str, Any], entered: list[str]) -> tuple[str, ...]:
    if level == "unisolated":
        return ()
    guards: list[str] = [level] if level == "bubblewrap" else []
    guards += [f"landlock {landlock.version()}"] if orders["landlock"] else []
    guards += ["seccomp", "no capabilities" if orders["reading_right"] is None else "no capability but to read", *entered]
    return (*guards, "a user of its own") if orders["uid"] is not None else tuple(guards)
