"""What environments say they can do about the past."""

import pytest

from counterplay.core.errors import UserError
from counterplay.core.journal import JournaledEnvironment, MemoryJournal
from counterplay.core.nouns import Step, Trajectory
from counterplay.replay.capabilities import Capabilities, capabilities
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.recorded import RecordedEnvironment
from tests.replay.shelf import CopyShelf, Shelf, SnapshotShelf, act
from tests.replay.shelf_async import AsyncShelf, AsyncSnapshotShelf, OneWayShelf


class OneWaySnapshots(AsyncSnapshotShelf):
    replayable = False


@pytest.mark.parametrize(
    ("make", "restorable", "reenacts", "why"),
    [
        (Shelf, "re-execute", True, "Shelf has neither snapshot nor copy, and a prefix is executed again in a fresh instance"),
        (CopyShelf, "copy", True, "CopyShelf has copy"),
        (SnapshotShelf, "snapshot", True, "SnapshotShelf has snapshot and restore"),
        (AsyncShelf, "re-execute", True, "AsyncShelf has neither"),
        (OneWayShelf, "none", False, "OneWayShelf has neither snapshot nor copy, and says that it is not replayable"),
        (OneWaySnapshots, "snapshot", False, "has snapshot and restore, and says that it is not replayable"),
    ],
)
async def test_live_environments_by_what_their_worlds_have(make, restorable, reenacts, why):
    AsyncShelf.open_now = 0
    environment = LiveEnvironment(make)
    found = capabilities(environment)
    assert (found.restorable, found.reenacts, found.forks) == (restorable, reenacts, restorable != "none")
    assert why in found.why
    assert capabilities(JournaledEnvironment(environment, MemoryJournal())) == found
    assert Shelf.made["shelf"] == 1
    await environment.aclose()
    assert AsyncShelf.open_now == 0


async def test_the_instance_that_was_looked_at_is_the_first_that_is_used():
    environment = LiveEnvironment(OneWayShelf)
    assert not capabilities(environment).forks
    assert environment.fingerprint
    root = await environment.initial()
    await environment.step(root, act("total"))
    assert Shelf.made["shelf"] == 2  # the look, whose instance was played; `initial` made one more
    await environment.aclose()


def test_recordings_and_what_is_behind_them():
    log = [Trajectory()]
    assert capabilities(RecordedEnvironment(log)) == Capabilities("recorded", "the log answers, and a branch ends where it has no answer")
    behind = capabilities(RecordedEnvironment(log, fallback=LiveEnvironment(CopyShelf)))
    assert (behind.restorable, behind.forks) == ("recorded", True)
    assert "behind it CopyShelf has copy" in behind.why
    assert "a branch ends" in capabilities(RecordedEnvironment(log, fallback=LiveEnvironment(OneWayShelf))).why


def test_others_say_it_themselves_or_are_taken_at_the_word_of_the_protocol():
    class Own:
        capabilities = Capabilities("none", "it drives a lorry", reenacts=False)

        async def step(self, state, action):
            return Step(action)

    class Silent:
        async def step(self, state, action):
            return Step(action)

    assert capabilities(Own()).why == "it drives a lorry"
    assert capabilities(Silent()).restorable == "re-execute"


def test_what_has_to_be_waited_for_is_opened_first():
    async def slowly():
        return Shelf()

    with pytest.raises(UserError, match="open"):
        capabilities(LiveEnvironment(slowly))
