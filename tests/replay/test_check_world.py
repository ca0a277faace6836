"""The conformance check passes good worlds and names what is wrong with bad ones."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import pytest

from counterplay.core.errors import UserError
from counterplay.replay.testing import check_world
from tests.replay.shelf import CopyShelf, Shelf, SnapshotShelf

CALLS = [("put", {"name": "a", "n": 3}), ("total", {}), ("double", {}), ("get", {"name": "zz"}), ("total", {})]


@pytest.mark.parametrize(
    ("make", "properties"),
    [
        (Shelf, ("deterministic", "no leak")),
        (CopyShelf, ("deterministic", "copy", "no leak")),
        (SnapshotShelf, ("deterministic", "restore", "no leak")),
    ],
)
def test_good_worlds_pass(make, properties):
    found = check_world(make, CALLS)
    assert found.checked == properties
    assert found.calls == sum(Shelf.executed.values())


class Random(Shelf):
    def call(self, name, arguments):
        return super().call(name, arguments) + str(random.random())


class Forgetful(SnapshotShelf):
    def restore(self, snapshot: Any) -> None:
        self.done = snapshot[1]


class LiveSnapshot(SnapshotShelf):
    def snapshot(self):
        return (self.items, self.done)

    def restore(self, snapshot):
        self.items = snapshot[0]

    def call(self, name, arguments):
        if name == "double":
            for key in self.items:
                self.items[key] *= 2
            return "doubled"
        return super().call(name, arguments)


class Shallow(CopyShelf):
    def copy(self):
        twin = type(self)()
        twin.items = self.items
        return twin


class Shared(Shelf):
    everywhere: ClassVar[dict[str, int]] = {}
    alive = 0

    def __init__(self) -> None:
        super().__init__()
        Shared.everywhere.clear()
        Shared.everywhere.update(self.items)
        self.items = Shared.everywhere


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (Random, "deterministic"),
        (Forgetful, "restore: an instance that had gone on"),
        (LiveSnapshot, "restore"),
        (Shallow, "copy: the original"),
        (Shared, "no leak"),
    ],
)
def test_bad_worlds_are_named(make, complaint):
    calls = [("put", {"name": "a", "n": 3}), ("put", {"name": "a", "n": 1}), ("total", {})] if make is Shared else CALLS
    with pytest.raises(UserError, match=complaint):
        check_world(make, calls)
