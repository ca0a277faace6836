"""Hostile programs, at every level of isolation that this machine has and with guards taken away: contained, reported, 0 escapes."""

import contextlib
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from counterplay.verifiers.sandbox import Limits, available, bubblewrap, landlock
from counterplay.verifiers.sandbox import running as sandbox
from tests.verifiers import hostile

WAYS = {
    "bubblewrap": ("bubblewrap", frozenset()),
    "landlock": ("landlock", frozenset()),
    "landlock, no namespaces": ("landlock", frozenset({"namespaces"})),
    "landlock of linux 5.13, no namespaces": ("landlock", frozenset({"namespaces", "scopes"})),
    "the same where root may only override modes": ("landlock", frozenset({"namespaces", "scopes", "search"})),
    "the same as the caller's own user": ("landlock", frozenset({"namespaces", "scopes", "user"})),
}
SMALL = Limits(wall_s=10, cpu_s=4, memory_bytes=256 << 20, processes=40, disk_bytes=16 << 20, output_bytes=1 << 16)
ROOT = Path(__file__).parents[2]
MARK = f"# of the tests of process {os.getpid()}\n"


def lacking(level):
    if level in available():
        return None
    if level == "bubblewrap" and not bubblewrap.executable():
        return "bwrap is not installed"
    return f"{level} does not work on this machine (Landlock version {landlock.version()}, {platform.machine()})"


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where scratch folders of this test are made, and nothing else."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []
    assert left_over() == []


@pytest.fixture(params=WAYS)
def contain(request, monkeypatch):
    level, without = WAYS[request.param]
    if reason := lacking(level):
        pytest.skip(reason)
    if "search" in without:
        if os.geteuid() != 0:
            pytest.skip("only root becomes another user that keeps a right of root's")
        rights = sandbox.view.reading_right
        monkeypatch.setattr(sandbox.view, "reading_right", lambda: rights((1,)))

    def run(source, *, limits=SMALL, bomb=False, **names):
        if bomb and "user" in without and os.geteuid() == 0:
            pytest.skip("the kernel does not limit root's processes: root always becomes another user")
        text = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        argv = (sys.executable, "-c", MARK + text + hostile.OUTSIDE + source)
        ran = sandbox.at_level(level, sandbox.Program(argv, {}, b"", (), {}, limits), sandbox.Lifeline(), without=without)
        assert ran.isolation == level
        assert "ESCAPED" not in ran.stdout, ran.stdout
        return ran

    return run


@pytest.fixture
def target(tmp_path):
    """A file of ours, in a folder that everybody may write by its modes: nothing but the sandbox protects it."""
    folder = tmp_path / "ours"
    folder.mkdir()
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent, folder):
        path.chmod(0o777 if path is folder else 0o755)
    file = folder / "kept"
    file.write_text("kept")
    file.chmod(0o666)
    return file


def untouched(file):
    stat = file.stat()
    return (
        file.read_text() == "kept"
        and stat.st_mode & 0o777 == 0o666
        and stat.st_mtime > 1
        and [path.name for path in file.parent.iterdir()] == [file.name]
    )


def left_over():
    """Processes that still run one of these programs."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if MARK.strip().encode() in command:
                found.append(int(folder.name))
    return found


def test_reading_files_outside(contain, target):
    paths = ["/etc/passwd", "/etc/shadow", str(target), str(ROOT / "pyproject.toml"), str(Path.home() / ".bashrc"), "/proc/1/environ"]
    paths += [f"/proc/{os.getpid()}/environ", f"/proc/{os.getpid()}/mem", "/sys/kernel/notes"]
    ran = contain(hostile.READING.replace("os.listdir(os.path.dirname(path))", "os.listdir(FOLDER)"), PATHS=paths, FOLDER=str(ROOT))
    assert ran.exit == 0
    assert ran.stdout.count("refused") == 2 * len(paths)


def test_reading_other_processes(contain):
    ran = contain(hostile.PROCESSES, PARENT=os.getpid())
    assert ran.stdout.count("refused") == 18


def test_writing_files_outside(contain, target):
    ran = contain(hostile.WRITING, TARGET=str(target))
    assert ran.exit == 0, ran.stderr
    assert ran.stdout.count("refused") == 15
    assert untouched(target)
    assert not Path("/tmp/counterplay-owned").exists()
    assert not Path("/dev/shm/counterplay-owned").exists()


def test_links_that_lead_outside(contain, target):
    ran = contain(hostile.LINKS, TARGET=str(target))
    assert ran.exit == 0, ran.stderr
    assert ran.stdout.count("refused") == 9
    assert untouched(target)


def test_the_network_and_sockets_of_others(contain, tmp_path):
    unix, paths = socket.AF_UNIX, [str(tmp_path / "s"), str(tmp_path / "d")]
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(unix) as stream,
        socket.socket(unix) as abstract,
        socket.socket(unix, socket.SOCK_DGRAM) as log,
    ):
        port, name = server.getsockname()[1], f"\0counterplay-{os.getpid()}"
        for one, address in ((datagrams, ("127.0.0.1", port)), (stream, paths[0]), (abstract, name), (log, paths[1])):
            one.bind(address)
        stream.listen()
        abstract.listen()
        for path in (*map(Path, paths), tmp_path, tmp_path.parent, tmp_path.parent.parent):
            path.chmod(0o777)
        ran = contain(hostile.NETWORK, PORT=port, SOCKET=paths[0], DATAGRAM=paths[1], ABSTRACT=name)
        for heard in (server, datagrams, stream, abstract, log):
            heard.setblocking(False)
            with pytest.raises(BlockingIOError):
                heard.accept() if heard in (server, stream, abstract) else heard.recv(8)
    assert ran.exit == 0, ran.stderr
    assert ran.stdout.count("refused") == 10
    assert "pair: inside" in ran.stdout


def test_killing_and_slowing_the_caller(contain):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
    nice, limit = os.getpriority(os.PRIO_PROCESS, 0), resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        ran = contain(hostile.KILLING, PARENT=os.getpid())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == []
    assert ran.stdout.count("refused") >= 6
    assert (os.getpriority(os.PRIO_PROCESS, 0), resource.getrlimit(resource.RLIMIT_NOFILE)) == (nice, limit)


def test_tracing_and_calls_into_the_kernel(contain):
    x86 = platform.machine() == "x86_64"
    calls = [("unshare", 272 if x86 else 97, (0x10000000,)), ("io_uring_setup", 425, (8, 0)), ("bpf", 321 if x86 else 280, (0, 0, 0))]
    calls += [("memfd_create", 319 if x86 else 279, (0, 0)), ("keyctl", 250 if x86 else 219, (0, -3, 0)), ("a later one", 9000, ())]
    calls += [("clone", 56 if x86 else 220, (0x10000000 | 17, 0)), ("mount", 165 if x86 else 40, (0, 0, 0, 0, 0))]
    ptrace, readv = (101, 310) if x86 else (117, 270)
    ran = contain(hostile.TRACING, PARENT=os.getpid(), PTRACE=ptrace, READV=readv, CALLS=calls)
    assert ran.exit == 0, ran.stderr
    assert ran.stdout.count("refused") == 4 + len(calls)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="32-bit calls and the x32 numbers exist on x86_64 alone")
def test_calls_of_another_architecture(contain):
    ran = contain("import ctypes\nprint(ctypes.CDLL(None).syscall(0x40000000 | 39))")
    assert ran.stdout.strip() == "-1"
    code = "b8140000 00cd80c3".replace(" ", "")  # mov eax, 20 (getpid of 32-bit); int 0x80; ret
    source = f"import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('{code}'))\n"
    source += "print('ESCAPED', ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))())"
    assert contain(source).signal == "SIGSYS"


def test_secrets_of_the_environment_and_open_files(contain, monkeypatch, target):
    monkeypatch.setenv("COUNTERPLAY_TEST_SECRET", "hunter2")
    with target.open() as file:
        os.set_inheritable(file.fileno(), True)
        ran = contain(hostile.SECRETS)
    assert ran.exit == 0, ran.stderr
    assert "names: ['HOME', 'LANG', 'PATH', 'PYTHONDONTWRITEBYTECODE', 'TMPDIR']" in ran.stdout.replace("'LC_CTYPE', ", "").replace(
        "'PWD', ", ""
    )


def test_daemons_die_with_the_program(contain):
    ran = contain(hostile.DAEMON, MARK="mark")
    assert ran.exit == 0
    assert "daemon True" in ran.stdout


@pytest.mark.parametrize("bomb", ["FORK_BOMB", "FORK_AND_SETSID_BOMB", "THREADS"])
def test_fork_bombs(contain, bomb):
    ran = contain(getattr(hostile, bomb), limits=replace(SMALL, wall_s=1), bomb=True)
    assert ran.exit is None
    assert ran.limit in {"processes", "wall", "cpu"}


def children():
    """The processes that are children of this one, zombies included; other tests may have left some that live on."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # a process may end while it is looked at
            _, parent, *_ = stat.read_text().rpartition(")")[2].split()
            found |= {int(stat.parent.name)} if int(parent) == os.getpid() else set()
    return found


def test_zombies(contain):
    before = children()
    ran = contain(hostile.ZOMBIES, bomb=True)
    assert (ran.exit, ran.stdout.strip()) == (0, "left")
    assert children() <= before


@pytest.mark.parametrize(
    ("program", "limits"),
    [
        ("ENDLESS", {"cpu"}),
        ("SLEEPING", {"wall"}),
        ("TEN_GIGABYTES", {"memory"}),
        ("GROWING", {"memory"}),
        ("GROWING_FAMILY", {"memory"}),
        ("SHOUTING", {"output"}),
        ("COMPLAINING", {"output"}),
        ("HUGE_FILE", {"disk"}),
        ("SPARSE_FILE", {"disk"}),
        ("MANY_FILES", {"disk"}),
    ],
)
def test_every_limit_is_kept_and_named(contain, program, limits):
    wall_s = {"SLEEPING": 0.3, "ENDLESS": 60}.get(program, 10)
    ran = contain(getattr(hostile, program), limits=replace(SMALL, wall_s=wall_s, cpu_s=1), bomb="fork" in getattr(hostile, program))
    assert ran.limit in limits, ran
    assert not ran.ok
    assert len(ran.stdout) <= 1 << 16
    assert len(ran.stderr) <= 1 << 16
    assert ran.truncated == (ran.limit == "output")
    assert ran.signal is None or not ran.truncated  # ended at once, not by a later limit


@pytest.mark.parametrize("program", ["DEEP_FOLDERS", "SHUT_FOLDERS"])
def test_what_is_left_in_the_scratch_folder_is_removed(contain, program, target):
    ran = contain(getattr(hostile, program), TARGET=str(target))
    assert ran.exit == 0 or ran.limit == "disk", ran  # what is too deep to be counted is too much
    assert untouched(target)


@pytest.mark.parametrize("level", ["bubblewrap", "landlock"])
def test_the_program_ends_with_a_caller_that_is_killed(level, scratch):
    if reason := lacking(level):
        pytest.skip(reason)
    code = f"import sys, tempfile\nfrom counterplay.verifiers.sandbox import run_sync\ntempfile.tempdir = {str(scratch)!r}\n"
    code += f"run_sync([sys.executable, '-c', {MARK!r} + 'open(\"made\", \"w\")\\nimport time; time.sleep(600)'], isolation={level!r})"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_until(lambda: [*scratch.glob("*/work/made")])
    finally:
        caller.kill()
        caller.wait()
    wait_until(lambda: not left_over())
    if level == "bubblewrap":  # it ends with its caller at once: its folder stays
        for folder in scratch.iterdir():
            sandbox.view.remove(folder)
    wait_until(lambda: not [*scratch.glob("*/work")])
    for folder in scratch.iterdir():  # emptied; the mounted folder itself stays
        folder.rmdir()


def wait_until(holds):
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 20 s")
