"""Nothing live by accident: inside of a re-enacted run no connection is opened, no request sent and no process started.

What an interceptor let through (a model call, a tool) may reach out; so may what is named. Python's own audit events are
the net, with which sockets, subprocesses and the standard library's clients can't be missed. Not seen are connections that
C libraries open themselves: libpq, gRPC, libuv (uvloop), and requests of aiohttp over connections that are open already.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from counterplay.core.errors import UserError
from counterplay.replay.agents import calls
from counterplay.replay.agents.ambient import Interruption, current
from counterplay.replay.agents.patches import Patch, Patches


class LiveEffect(Interruption):
    """Code of a re-enacted run was about to act on the world. `kind` is `connection`, `lookup` or `process`; `what` names it."""

    def __init__(self, kind: str, what: str) -> None:
        self.kind, self.what = kind, what
        name = {"connection": "a connection to", "lookup": "a look-up of", "process": "the process"}[kind]
        super().__init__(f"{name} {what} was about to go live in a re-enacted run. Make it a tool, or name the host in allow_hosts.")


class _Guard:
    def __init__(self, allow_hosts: Iterable[str], on_effect: Callable[[LiveEffect], None] | None) -> None:
        self.allowed = {host.lower() for host in allow_hosts}
        self.on_effect = on_effect
        self.names: dict[str, str] = {}

    def allows(self, host: str, port: object) -> bool:
        names = {host.lower(), self.names.get(host, host).lower()}
        return any(name in self.allowed or f"{name}:{port}" in self.allowed for name in names)

    def stop(self, kind: str, what: str) -> None:
        effect = LiveEffect(kind, what)
        if self.on_effect is not None:
            self.on_effect(effect)
        raise effect

    def reach(self, kind: str, host: str, port: object) -> None:
        if not self.allows(host, port):
            name = self.names.get(host, host)
            self.stop(kind, f"{name}:{port}" if name == host else f"{name}:{port} ({host})")


# What `platform`, `distro` and `ctypes.util` start to find out where they are, as clients do for their first request.
_ASK_THE_MACHINE = ("uname", "lsb_release", "ldconfig")
_GUARDS: list[tuple[object, _Guard]] = []
_HOOKED: list[bool] = []


@contextmanager
def guarded(*, allow_hosts: Iterable[str] = (), on_effect: Callable[[LiveEffect], None] | None = None) -> Iterator[None]:
    """Keep the run this code belongs to from reaching out, in this block, in all its tasks and threads.

    `allow_hosts` names hosts, each with `:port` or without; loopback is allowed only where it is named. `on_effect` is
    called before LiveEffect is raised, so that it is known even where the agent's code catches everything.
    Raises UserError outside of a run.
    """
    run = current()
    if run is None:
        raise UserError("there is no run to guard", "a block inside of intercepting(...)")
    if not _HOOKED:
        _HOOKED.append(True)
        sys.addaudithook(_audit)  # for as long as the process lives: audit hooks can't be removed
    entry = (run, _Guard(allow_hosts, on_effect))
    _GUARDS.append(entry)
    _PATCHES.install()
    try:
        yield
    finally:
        _PATCHES.uninstall()
        _GUARDS.remove(entry)


def check_request(host: str, port: object) -> None:
    """Refuse a request that is about to be sent, over whatever connection. Does nothing where no guard is."""
    guard = _here() if _GUARDS else None
    if guard is not None:
        guard.reach("connection", host, port)


def _here() -> _Guard | None:
    """The guard of the run this code belongs to; None also for what was let through."""
    if calls.covered() & calls.LET_THROUGH:
        return None
    run = current()
    return next((guard for guarded_run, guard in reversed(_GUARDS) if guarded_run is run), None)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _GUARDS:
        return
    check = _CHECKS.get(event)
    if check is None:
        return
    guard = _here()
    if guard is not None:
        check(guard, args)


def _connect(guard: _Guard, args: tuple[Any, ...]) -> None:
    """A socket that will not be connected is closed: those who made it expect no error but OSError, and would leave it open."""
    try:
        _datagram(guard, args)
    except LiveEffect:
        args[0].close()
        raise


def _datagram(guard: _Guard, args: tuple[Any, ...]) -> None:
    """A socket and an address: (host, port, ...) or the path of a Unix socket. No address: the socket is connected already."""
    address = args[1]
    if isinstance(address, tuple) and len(address) >= 2:
        guard.reach("connection", _text(address[0]), address[1])
    elif isinstance(address, (str, bytes)):
        guard.reach("connection", "unix", _text(address))


def _look_up(guard: _Guard, args: tuple[Any, ...]) -> None:
    """Addresses and the machine's own names are looked up without asking anyone: what is done with them is seen when it is done."""
    host = _text(args[0]) if args[0] else ""
    if host and not _is_local(host):
        guard.reach("lookup", host, _text(args[1]) if args[1] is not None else "")


def _client(guard: _Guard, args: tuple[Any, ...]) -> None:
    """A client of the standard library about to connect: itself, host, port."""
    guard.reach("connection", _text(args[1]), args[2])


def _send(guard: _Guard, args: tuple[Any, ...]) -> None:
    """The same about to send, over a connection that may have been open before."""
    client = args[0]
    sock = getattr(client, "sock", None)
    host = getattr(client, "host", None) or getattr(client, "_host", None)
    port = getattr(client, "port", None)
    if host is None and sock is not None:
        host, port = sock.getpeername()[:2]
    guard.reach("connection", _text(host), port)


def _process(guard: _Guard, args: tuple[Any, ...]) -> None:
    parts = [part for part in args[:2] if part is not None]
    command = parts[-1] if parts else "a copy of this one"
    words = command if isinstance(command, (list, tuple)) else [command]
    if words and os.path.basename(_text(words[0])) in _ASK_THE_MACHINE:  # noqa: PTH119  of an argument that may be bytes
        return
    guard.stop("process", " ".join(_text(word) for word in words)[:300])


_CHECKS: dict[str, Callable[[_Guard, tuple[Any, ...]], None]] = {
    "socket.connect": _connect,
    **dict.fromkeys(("socket.sendto", "socket.sendmsg"), _datagram),
    "socket.getaddrinfo": _look_up,
    **dict.fromkeys(("http.client.connect", "smtplib.connect", "ftplib.connect", "imaplib.open", "poplib.connect"), _client),
    **dict.fromkeys(("http.client.send", "smtplib.send", "ftplib.sendcmd", "imaplib.send", "poplib.putline"), _send),
    **dict.fromkeys(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"), _process),
}


def _is_local(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower() == "localhost"
    return True


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _getaddrinfo(original: Callable[..., Any]) -> Callable[..., Any]:
    """Connections are opened to addresses: this remembers whose they are."""

    @wraps(original)
    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(host, *args, **kwargs)
        if host:
            for entry in found:
                for _, guard in tuple(_GUARDS):
                    guard.names[str(entry[4][0])] = _text(host)
        return found

    return getaddrinfo


def _spawned(original: Callable[..., Any]) -> Callable[..., Any]:
    """Processes of multiprocessing, which raise no audit event where they are not forked."""

    @wraps(original)
    def spawn(path: Any, args: Any, passfds: Any) -> Any:
        guard = _here()
        if guard is not None:
            _process(guard, (path, args))
        return original(path, args, passfds)

    return spawn


_PATCHES = Patches(
    [Patch("socket", "", "getaddrinfo", _getaddrinfo), Patch("multiprocessing.util", "", "spawnv_passfds", _spawned)]
)  # fmt: skip
