"""The sandbox's own promises: files in, output out, cancelling, refusing, and what it says of itself."""

import asyncio
import os
import struct
import sys
import tempfile
from pathlib import Path

import pytest

from counterplay.core.errors import UserError, VerifierError
from counterplay.verifiers.sandbox import Limits, NoIsolation, available, landlock, run, run_sync, seccomp, view
from counterplay.verifiers.sandbox import running as sandbox

isolated = pytest.mark.skipif(not available(), reason="neither bubblewrap nor Landlock works on this machine")


@isolated
def test_files_input_environment_and_output(tmp_path):
    (tmp_path / "given").write_text("from a path")
    tmp_path.chmod(0o755)
    source = (
        "import os, sys\nprint(open('a/b.txt').read(), open('c').read(), sys.stdin.read(), os.environ['OWN'], os.listdir('.'))\nsys.exit(3)"
    )
    files = {"a/b.txt": "text", "c": tmp_path / "given"}
    ran = run_sync([sys.executable, "-c", source], files=files, stdin="input é\n", env={"OWN": "mine"})
    assert (
        ran.stdout.split() == ["text", "from", "a", "path", "input", "é", "mine", *str(sorted(["a", "c"])).split()] or "text" in ran.stdout
    )
    assert "text from a path input é\n mine" in ran.stdout
    assert (ran.exit, ran.limit, ran.signal, ran.ok, ran.truncated) == (3, None, None, False, False)
    assert ran.ending == "exit status 3"
    assert ran.isolation == available()[0]
    assert "seccomp" in ran.guards
    assert ran.wall_s > 0


@isolated
def test_a_file_outside_is_read_where_it_is_shown(tmp_path):
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    for file in (shown, hidden):
        file.write_text("data")
    source = f"print(open({str(shown)!r}).read())\ntry: open({str(hidden)!r})\nexcept OSError: print('hidden')\n"
    source += f"try: open({str(shown)!r}, 'a')\nexcept OSError: print('kept')"
    assert run_sync([sys.executable, "-c", source], read=[shown]).stdout.split() == ["data", "hidden", "kept"]
    with pytest.raises(UserError, match="does not exist"):
        run_sync([sys.executable, "-c", ""], read=[tmp_path / "none"])


@isolated
async def test_many_at_once_and_one_that_is_cancelled(tmp_path, monkeypatch):
    async def one(number):
        return (await run([sys.executable, "-I", "-S", "-c", f"print({number})"])).stdout

    assert await asyncio.gather(*map(one, range(6))) == [f"{number}\n" for number in range(6)]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    task = asyncio.create_task(run([sys.executable, "-c", "import time; time.sleep(100)"], limits=Limits(wall_s=100)))
    await until(lambda: any(tmp_path.iterdir()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not any(tmp_path.iterdir()))


async def until(holds):
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within 10 s")


@isolated
def test_a_program_that_is_not_there_is_an_error_and_a_signal_is_named():
    with pytest.raises(VerifierError, match="could not start 'no-such-program'"):
        run_sync(["no-such-program"])
    ran = run_sync([sys.executable, "-c", "import os; os.abort()"])
    assert (ran.exit, ran.signal, ran.ending) == (None, "SIGABRT", "ended by SIGABRT")


def test_without_isolation_it_refuses_unless_told(monkeypatch):
    monkeypatch.setattr(sandbox, "_tried", lambda: {"bubblewrap": "bwrap is not installed", "landlock": "the kernel has none"})
    with pytest.raises(NoIsolation, match=r"landlock: the kernel has none.*unisolated"):
        run_sync([sys.executable, "-c", ""])
    with pytest.raises(NoIsolation, match="bubblewrap"):
        run_sync([sys.executable, "-c", ""], isolation="bubblewrap")
    ran = run_sync([sys.executable, "-c", "import os; print('ran', sorted(os.environ))"], isolation="unisolated")
    assert ran.stdout.startswith("ran ['HOME', 'LANG'")
    assert (ran.isolation, ran.guards) == ("unisolated", ())


@pytest.mark.parametrize("source", ["import time; time.sleep(60)", "import os\nwhile True: print('x' * 1000)"])
def test_limits_hold_without_isolation_too(source):
    ran = run_sync([sys.executable, "-c", source], isolation="unisolated", limits=Limits(wall_s=1, output_bytes=5000))
    assert ran.limit in {"wall", "output"}


@pytest.mark.parametrize("name", ["/etc/owned", "../owned", "a/../../owned", "", ".", "a\0b"])
def test_files_stay_inside(name):
    with pytest.raises(UserError, match="relative name"):
        view.make_scratch({name: ""}, None)


@pytest.mark.parametrize("limits", [{"wall_s": 0}, {"processes": -1}, {"memory_bytes": float("nan")}])
def test_limits_are_positive(limits):
    with pytest.raises(UserError, match="positive"):
        Limits(**limits)


def test_an_empty_command_is_refused():
    with pytest.raises(UserError, match="no program"):
        run_sync([])


def interpreted(program, arch, number, arguments=()):
    """What a classic BPF program answers about one system call."""
    data = {0: number, 4: seccomp._AUDIT_ARCH[arch], **{16 + 8 * index: value for index, value in enumerate(arguments)}}
    lines = [struct.unpack("=HBBI", program[at : at + 8]) for at in range(0, len(program), 8)]
    at = held = 0
    while True:
        code, true, false, value = lines[at]
        at += 1
        if code == seccomp._LOAD:
            held = data.get(value, 0)
        elif code == seccomp._MASK:
            held &= value
        elif code == seccomp._RETURN:
            return value
        else:
            at += true if (held == value if code == seccomp._EQUAL else held > value) else false


def test_what_the_filter_must_deny():
    calls = {
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "pidfd_getfd",
        "socket",
        "connect",
        "bind",
        "bpf",
        "io_uring_setup",
        "mount",
    }
    calls |= {"unshare", "setns", "memfd_create", "shmget", "keyctl", "userfaultfd", "open_by_handle_at", "perf_event_open", "truncate"}
    assert calls <= seccomp._ALWAYS.keys()
    assert {"clone3", "openat2"} <= seccomp._UNKNOWN.keys()


ALLOW, DENY, ABSENT = 0x7FFF0000, 0x00050001, 0x00050026


@pytest.mark.parametrize(("arch", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_says_what_its_table_says(arch, column):
    """Every line of the filter, on both architectures, by an interpreter of its own."""
    open_ = seccomp.program(arch, signals=False, owners=False, writers=False)
    shut = seccomp.program(arch, signals=True, owners=True, writers=True)
    for table, answers in ((seccomp._ALWAYS, (DENY, DENY)), (seccomp._UNKNOWN, (ABSENT, ABSENT)), (seccomp._SIGNALS, (ALLOW, DENY)),
                           (seccomp._OWNERS, (ALLOW, DENY)), (seccomp._WRITERS, (ALLOW, DENY))):  # fmt: skip
        for numbers in table.values():
            if numbers[column] >= 0:
                assert (interpreted(open_, arch, numbers[column]), interpreted(shut, arch, numbers[column])) == answers
    number = {name: numbers[column] for name, numbers in seccomp._LOOKED_INTO.items()}
    cases = [
        ("socketpair", (1, 1), ALLOW), ("socketpair", (1, 0o2000001), ALLOW), ("socketpair", (1, 2), DENY), ("socketpair", (1, 5), DENY),
        ("socketpair", (2, 1), DENY), ("clone", (17,), ALLOW), ("clone", (0x003D0F00,), ALLOW), ("clone", (0x10000011,), DENY),
        ("clone", (0x40000000,), DENY), ("openat", (0, 0, 0o1000), DENY), ("openat", (0, 0, 0o1001), ALLOW), ("openat", (0, 0, 0), ALLOW),
        ("prlimit64", (0,), ALLOW), ("prlimit64", (7,), DENY), ("sched_setaffinity", (7,), DENY), ("fcntl", (3, 8), DENY),
        ("fcntl", (3, 15), DENY), ("fcntl", (3, 1), ALLOW), ("ioctl", (0, 0x5412), DENY), ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x8902), DENY),
    ]  # fmt: skip
    for name, arguments, answer in cases:
        assert interpreted(open_, arch, number[name], arguments) == answer, (name, arguments)
    assert interpreted(open_, arch, 463) == ABSENT
    assert interpreted(open_, arch, 0x40000000 | 39) == ABSENT
    other = "aarch64" if arch == "x86_64" else "x86_64"
    assert interpreted(open_, other, 0) == 0x80000000
    assert len(open_) // 8 <= 4096


@pytest.mark.parametrize("abi", range(1, 9))
def test_landlock_asks_for_what_its_version_knows(abi, tmp_path):
    (tmp_path / "file").touch()
    rules = landlock.rules(abi, read=[tmp_path, tmp_path / "file", tmp_path / "none"], write=[tmp_path], devices=[Path("/dev/null")])
    assert rules["handled_fs"].bit_length() == {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)
    assert bool(rules["handled_net"]) == (abi >= 4)
    assert bool(rules["scoped"]) == (abi >= 6) == landlock.keeps_signals(abi)
    assert [rights for _, rights in rules["paths"][:2]] == [0b1101, 0b101]
    assert len(rules["paths"]) == 4
    making = rules["paths"][2][1]
    assert not making & (1 << 6 | 1 << 9 | 1 << 11)
    assert all(rights & ~rules["handled_fs"] == 0 for _, rights in rules["paths"])


def test_links_to_shown_folders_are_links_in_bubblewrap(tmp_path):
    (tmp_path / "usr" / "bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    words = sandbox.bubblewrap.command("bwrap", read=[tmp_path / "usr", tmp_path / "bin"], scratch=tmp_path / "scratch")
    assert f"--ro-bind {tmp_path}/usr {tmp_path}/usr --symlink usr/bin {tmp_path}/bin" in " ".join(words)
    assert "--unshare-net" in words
    assert words[-1] == "--"


def test_removing_takes_links_and_shut_folders_but_nothing_they_lead_to(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    folder = tmp_path / "scratch"
    deep = folder / "d"
    deep.mkdir(parents=True)
    (folder / "link").symlink_to(kept)
    (deep / "link").symlink_to(kept / "file")
    at = os.open(deep, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("n" * 200, dir_fd=at)
        below = os.open("n" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    deep.chmod(0)
    view.remove(folder)
    assert not folder.exists()
    assert (kept / "file").exists()


@isolated
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root becomes another user")
def test_root_becomes_a_user_that_owns_nothing(tmp_path):
    if available()[0] != "landlock":
        pytest.skip("bubblewrap keeps the caller's user in a user namespace of its own")
    ran = run_sync([sys.executable, "-c", "import os; print(os.getuid(), os.getgid(), os.getgroups())"])
    uid, gid, groups = ran.stdout.split()
    assert int(uid) == int(gid) > 1000
    assert groups == "[]"
    assert "a user of its own" in ran.guards
