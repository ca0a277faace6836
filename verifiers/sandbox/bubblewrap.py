"""The command line that puts a program into bubblewrap: every namespace new, an empty tree, and in it what may be seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shutil import which


def executable() -> str | None:
    """Where `bwrap` is installed; None where it is not."""
    return which("bwrap")


def command(bwrap: str, *, read: Sequence[Path], scratch: Path) -> list[str]:
    """What to put before the program's own command. `read` is seen read-only at its own place, `scratch` may be written."""
    words = [bwrap, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--die-with-parent", "--as-pid-1", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox"]
    for path in read:
        if _link_inside(path, read):
            words += ["--symlink", str(path.readlink()), str(path)]
        else:
            words += ["--ro-bind", str(path), str(path)]
    words += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    words += ["--bind", str(scratch), str(scratch), "--remount-ro", "/", "--chdir", str(scratch / "work"), "--"]
    return words


def _link_inside(path: Path, read: Sequence[Path]) -> bool:
    """Whether `path` is a link to a folder that is shown anyway, such as /bin to /usr/bin."""
    if not path.is_symlink() or not path.is_dir():
        return False
    target = path.resolve()
    return any(target.is_relative_to(other) for other in read if other != path and not other.is_symlink())
