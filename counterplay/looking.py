"""Reading a store that another process is writing: a writer has the file alone, so what is read is a copy of it as it is now.

A DuckDB file changes only at checkpoints; what was committed since is in the log beside it, to which is only appended. So two copies belong
together where the file did not change while they were made.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from counterplay.core.errors import StoreError
from counterplay.loop import opened

if TYPE_CHECKING:
    from counterplay.core.store import Store

_TRIES, _TICK_S = 20, 0.05


@contextmanager
def looked_at(path: Path | str) -> Iterator[Store]:
    """The store at `path`, to be read; a copy of it where another process has it for writing. Raises StoreError where there is neither."""
    with ExitStack() as held:
        try:
            store = held.enter_context(opened(path, read_only=True))
        except StoreError as error:
            if "in use by process" not in error.got:
                raise
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="counterplay-")))
            store = held.enter_context(opened(copied(Path(path), folder), read_only=True))
        yield store


def copied(path: Path, folder: Path) -> Path:
    """A copy of the store at `path`, which another process may be writing, as of one moment. Raises StoreError where there is none."""
    copy = folder / path.name
    for _ in range(_TRIES):
        before = _changed_ns(path)
        if 0 <= time.time_ns() - before < _TICK_S * 1e9:  # a file system's clock is coarse: a change may share its time with the last
            time.sleep(_TICK_S)
            continue
        shutil.copyfile(path, copy)
        try:
            shutil.copyfile(f"{path}.wal", f"{copy}.wal")
        except FileNotFoundError:
            Path(f"{copy}.wal").unlink(missing_ok=True)
        if _changed_ns(path) == before:
            return copy
    raise StoreError(f"store {path} is being written without a pause", "a moment in which it can be copied", "Try again.")


def _changed_ns(path: Path) -> int:
    return path.stat().st_mtime_ns
