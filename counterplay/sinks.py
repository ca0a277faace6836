"""Where results go: folders and object stores. Data first, the manifest last, so that what has a manifest is complete.

An object appears when its last byte is there; one that was sent already is not sent again, so that a publication that was killed goes on
with the file it was at. Names that begin with `_` are those of the publication itself; readers of datasets pass them over.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from counterplay.core.errors import SourceError, UserError
from counterplay.objects import Location, is_uri, location_of, tried

if TYPE_CHECKING:
    from counterplay.core.store import Store

MANIFEST = "_manifest.json"
_SENDING = "_sending.json"
_LAST = "counterplay.json"  # a dataset's own manifest
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class Published:
    """What was published: `sent` of the `files` were new or changed, and have so many `bytes`."""

    uri: str
    files: int
    sent: int
    bytes: int


@dataclass(frozen=True)
class Exported:
    """Partitions written and left as they were, of an export of the whole store; `rows` of what was written, by view."""

    uri: str
    written: tuple[str, ...]
    unchanged: int
    rows: Mapping[str, int] = field(default_factory=dict)


class Sink(Protocol):
    """A place with names in it. What is put under a name is there as a whole, or not at all. Every method raises SourceError by name."""

    uri: str

    def put(self, file: Path, name: str) -> None: ...
    def write(self, name: str, data: bytes) -> None: ...
    def read(self, name: str) -> bytes | None: ...
    def remove(self, name: str) -> None: ...


def sink_of(target: str | os.PathLike[str]) -> Sink:
    """A folder, or the prefix that a URI names. Raises UserError on a URI of no known object store."""
    name = os.fspath(target)
    if is_uri(name):
        return _Prefix(location_of(name))
    if "://" in name:
        raise UserError(f"got {name.partition('://')[0]}:// to write to", "a folder, or s3://, gs:// or az://")
    return _Folder(name)


def publish(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> Published:
    """Copy what is in a folder to a URI or another folder; what an earlier publication left there and is no more is removed.

    Killed and made again, it goes on. `target` has a manifest with the size and digest of each file once all are there, and none before.
    Raises SourceError by name: no such bucket, no access, no network.
    """
    root, sink = Path(folder), sink_of(target)
    found = {str(file.relative_to(root).as_posix()): _about(file) for file in sorted(root.rglob("*")) if file.is_file()}
    if not found:
        raise UserError(f"got {root} to publish, which holds no files", "a folder with a dataset")
    done, begun = _listed(sink.read(MANIFEST)), _listed(sink.read(_SENDING))
    there = {name: about for name, about in {**done, **begun}.items() if found.get(name) == about}
    if done == found:
        return Published(sink.uri, len(found), 0, 0)
    stale = {name: about for name, about in {**done, **begun}.items() if name not in found}
    sink.write(_SENDING, _told({**stale, **there}))
    sink.remove(MANIFEST)
    todo = sorted((name for name in found if name not in there), key=lambda name: (name == _LAST, name))
    for name in todo:
        sink.put(root / name, name)
        there[name] = found[name]
        sink.write(_SENDING, _told({**stale, **there}))
    for name in stale:
        sink.remove(name)
    sink.write(MANIFEST, _told(found))
    sink.remove(_SENDING)
    return Published(sink.uri, len(found), len(todo), sum(int(found[name]["bytes"]) for name in todo))


@contextmanager
def landing(target: str | os.PathLike[str], *, beside: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write to: `target` itself, or for a URI one that is published when the block has ended well, and then removed.

    The latter lies in the folder of the file `beside`, which is the store as a rule.
    """
    name = os.fspath(target)
    if not is_uri(name):
        yield Path(name)
        return
    sink_of(name)
    with TemporaryDirectory(prefix=".counterplay-", dir=Path(beside).absolute().parent) as folder:
        yield Path(folder)
        publish(folder, name)


def export_partitions(
    store: Store, target: str | os.PathLike[str], *, by: str = "date", only_new: bool = False, on_part: Callable[[], None] = lambda: None
) -> Exported:
    """The views of a store as Parquet at a URI or in a folder: VIEW/date=2026-01-31/data_0.parquet, and which partitions are whole.

    `by` is date or month (in which a trace ended, UTC) or bucket (sixteen, by task). `only_new` leaves partitions alone that have not
    changed since, and those that the store has no more (it may have forgotten them); else all is written, and what is no more is removed.
    Raises UserError where what is there is partitioned otherwise.
    """
    import pyarrow.parquet as pq

    sink = sink_of(target)
    held = _partitions(sink, by)
    rows: dict[str, int] = {}
    written: list[str] = []
    local = "" if is_uri(os.fspath(target)) else os.fspath(target)
    if local:
        Path(local).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".counterplay-", dir=Path(local or store.path).absolute().parent) as drafts:
        same = {name: str(about["digest"]) for name, about in held.items()} if only_new else {}
        kept = dict(held) if only_new else {}
        for parts in store.write_partitions(Path(drafts, "drafts"), by, held=same):
            names = {part.name for part in parts}
            sink.write(MANIFEST, _told_parts(by, {name: about for name, about in {**held, **kept}.items() if name not in names}))
            for part in parts:
                for name, file in part.files.items():
                    view = name.partition("/")[0]
                    rows[view] = rows.get(view, 0) + int(pq.read_metadata(file).num_rows)
                    sink.put(file, name)
                gone = set(held.get(part.name, {}).get("files", ())) - set(part.files)
                kept[part.name] = {"digest": part.digest, "files": sorted(part.files)}
                written.append(part.name)
                on_part()
                for name in sorted(gone):
                    sink.remove(name)
            sink.write(MANIFEST, _told_parts(by, {**held, **kept}))
        for name in sorted(set(held) - set(kept)):
            for file in held[name]["files"]:
                sink.remove(file)
        sink.write(MANIFEST, _told_parts(by, kept))
    return Exported(sink.uri, tuple(written), len(kept) - len(written), rows)


def _partitions(sink: Sink, by: str) -> dict[str, dict[str, Any]]:
    data = sink.read(MANIFEST)
    try:
        told = json.loads(data) if data else {}
        found = {
            str(name): {"digest": str(about["digest"]), "files": [file for file in about["files"] if _is_below(file)]}
            for name, about in told.get("partitions", {}).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}  # nobody knows what is there: it is written again
    if told.get("by", by) != by:
        raise UserError(f"got partitions by {by} for {sink.uri}, which has them by {told['by']}", "the same, or another place")
    return found


def _told_parts(by: str, parts: Mapping[str, Any]) -> bytes:
    return json.dumps({"by": by, "partitions": dict(sorted(parts.items()))}, indent=1).encode()


def _about(file: Path) -> dict[str, Any]:
    digest, size = blake2b(digest_size=32), 0
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return {"bytes": size, "blake2b": digest.hexdigest()}


def _listed(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data)["files"] if data else {}
    except (ValueError, TypeError, KeyError):
        return {}
    return {name: about for name, about in found.items() if _is_below(name)} if isinstance(found, dict) else {}


def _is_below(name: str) -> bool:
    """Whether a name that a manifest tells is one of a file in its folder: what it tells is removed, and anybody may have written it."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def _told(files: Mapping[str, Any]) -> bytes:
    return json.dumps({"files": dict(sorted(files.items()))}, indent=1).encode()


class _Folder:
    """A folder on this machine."""

    def __init__(self, path: str) -> None:
        self.uri, self._root = path, Path(path)

    def put(self, file: Path, name: str) -> None:
        with self._draft(name) as draft:
            shutil.copyfile(file, draft)

    def write(self, name: str, data: bytes) -> None:
        with self._draft(name) as draft:
            draft.write_bytes(data)

    def read(self, name: str) -> bytes | None:
        file = self._root / name
        return file.read_bytes() if file.is_file() else None

    def remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    @contextmanager
    def _draft(self, name: str) -> Iterator[Path]:
        target = self._root / name
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            draft.replace(target)
        except OSError as error:
            raise SourceError(f"got {target}, which can't be written ({error.strerror or error})", "a folder with room for it") from error
        finally:
            draft.unlink(missing_ok=True)


class _Prefix:
    """A prefix of an object store. A file is sent in pieces; the object is there when the last one is."""

    def __init__(self, location: Location) -> None:
        self.uri, self._location = location.uri, location

    def put(self, file: Path, name: str) -> None:
        def send() -> None:
            with file.open("rb") as stream:
                self._send(name, iter(lambda: stream.read(_PIECE_BYTES), b""))

        tried(send, self._location.inside(name))

    def write(self, name: str, data: bytes) -> None:
        tried(lambda: self._send(name, iter([data])), self._location.inside(name))

    def read(self, name: str) -> bytes | None:
        place = self._location.inside(name)

        def get() -> bytes | None:
            try:
                with place.filesystem().open_input_file(place.path) as opened:
                    return bytes(opened.read())
            except FileNotFoundError:
                return None

        return tried(get, place)

    def remove(self, name: str) -> None:
        place = self._location.inside(name)

        def delete() -> None:
            try:
                place.filesystem().delete_file(place.path)
            except FileNotFoundError:
                return

        tried(delete, place)

    def _send(self, name: str, pieces: Iterator[bytes]) -> None:
        place = self._location.inside(name)
        filesystem = place.filesystem(patient=True)
        out = filesystem.open_output_stream(place.path)
        whole = False
        try:
            for piece in pieces:
                out.write(piece)
            out.close()
            whole = True
        finally:
            if not whole:  # the stream completes the object when it goes, with what was sent of it
                with suppress(OSError):
                    out.close()
                with suppress(OSError):
                    filesystem.delete_file(place.path)
