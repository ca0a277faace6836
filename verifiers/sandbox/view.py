"""What a program in the sandbox may see, the folder it may write, and the user it is."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from counterplay.core.errors import UserError

_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/ld.so.conf",
    "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime",
)  # fmt: skip
_OWN_LIMITS = ("/proc/self/cgroup", "/sys/fs/cgroup")  # DuckDB looks for its memory limit there, and aborts where it may not look
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_LONGEST_PATH = 2000
_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAP_SETGID, _CAP_SETUID = 0, 1, 2, 6, 7
_NOBODY = 65534
_FIRST_FREE_UID, _FREE_UIDS = 1 << 30, 1 << 29

File = str | bytes | Path


def readable(extra: Sequence[Path] = ()) -> list[Path]:
    """The system's programs and libraries, this Python with its packages, and `extra`; what does not exist is left out.

    Raises UserError where a path of `extra` does not exist.
    """
    for path in extra:
        if not path.exists():
            raise UserError(f"got {str(path)!r} to be read in the sandbox, which does not exist", "a file or folder")
    python = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    packages = [entry for entry in sys.path if Path(entry).name in {"site-packages", "dist-packages"}]
    paths = [Path(text) for text in dict.fromkeys((*_SYSTEM, *python, *packages))]
    shown = [path for path in paths if path.exists()] + [path.absolute() for path in extra]
    return [path for path in shown if not any(path != other and path.is_relative_to(other) for other in shown)]


def devices() -> list[Path]:
    return [Path(name) for name in _DEVICES]


def own_limits() -> list[Path]:
    return [Path(name) for name in _OWN_LIMITS]


def environment(scratch: Path, own: Mapping[str, str]) -> dict[str, str]:
    """The program's whole environment: nothing of the caller's but where Python is, and `own`."""
    path = os.pathsep.join(dict.fromkeys([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]))
    home = str(scratch / "work")
    ours = {"PATH": path, "HOME": home, "TMPDIR": str(scratch / "tmp"), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**ours, **own}


def foreign_user() -> int | None:
    """A user id that owns nothing, for root to become; None where the caller is not root, or a root that can become nobody else."""
    needed = 1 << _CAP_CHOWN | 1 << _CAP_SETGID | 1 << _CAP_SETUID
    if os.geteuid() != 0 or _capabilities() & needed != needed:
        return None
    highest = _highest_uid()
    if highest >= _FIRST_FREE_UID + _FREE_UIDS:
        return _FIRST_FREE_UID + secrets.randbelow(_FREE_UIDS)
    return _NOBODY if highest >= _NOBODY else None


def reading_right(known: tuple[int, ...] = (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE)) -> int | None:
    """The number of the capability that lets another user read what only root may, the lesser first; None where root has neither."""
    held = _capabilities()
    return next((number for number in known if held >> number & 1), None)


def _capabilities() -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:")), 0)


def _highest_uid() -> int:
    """The last user id that exists in this user namespace."""
    try:
        ranges = [line.split() for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()]
    except OSError:
        return 0
    return max((int(first) + int(count) - 1 for first, _, count in ranges), default=0)


def open_to_all(path: Path) -> bool:
    """Whether any user may read `path`."""
    found = path.resolve()
    mode = found.stat().st_mode
    wanted = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return mode & wanted == wanted and all(parent.stat().st_mode & stat.S_IXOTH for parent in found.parents)


def make_scratch(files: Mapping[str, File], uid: int | None) -> Path:
    """A new folder with `work` (holding `files`) and `tmp`, all of it the property of `uid` where one is given.

    Raises UserError for a file name that is absolute or leads outside.
    """
    for name in files:
        pure = PurePosixPath(name)
        if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts or pure == PurePosixPath():
            raise UserError(f"got {name!r} as a file for the sandbox", "a relative name without '..'")
    scratch = Path(tempfile.mkdtemp(prefix="counterplay-"))
    try:
        work, temporary = scratch / "work", scratch / "tmp"
        work.mkdir()
        temporary.mkdir()
        for name, content in files.items():
            _write(work / name, content)
        if uid is not None:
            for path in (scratch, *scratch.rglob("*")):
                os.chown(path, uid, uid, follow_symlinks=False)
    except BaseException:
        remove(scratch)
        raise
    return scratch


def _write(path: Path, content: File) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copy(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def remove(folder: Path) -> None:
    """Remove `folder` whatever a program left there: however deep, whatever its modes; links are removed, never followed.

    To be called when nothing runs in it any more. What lies deeper than a path can name is lifted to the top first.
    """
    found, lifted = [str(folder)], 0
    for path in found:  # grows as folders are found
        os.chmod(path, 0o700)  # noqa: PTH101  the paths are many
        for entry in list(os.scandir(path)):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)  # noqa: PTH108
            elif len(entry.path) <= _LONGEST_PATH:
                found.append(entry.path)
            else:
                os.chmod(entry.path, 0o700)  # noqa: PTH101  a folder that can't be written can't be moved
                lifted += 1
                found.append(f"{folder}/.{lifted}-{secrets.token_hex(8)}")
                os.rename(entry.path, found[-1])  # noqa: PTH104
    for path in reversed(found):
        os.rmdir(path)  # noqa: PTH106
