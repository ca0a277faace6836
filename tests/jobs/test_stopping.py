"""Ctrl-C at any moment: raised, told to the loop, or found again in the error that a library made of it."""

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from counterplay.jobs import stopping
from counterplay.jobs.stopping import Interrupts


def interrupt(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def interrupted(number=signal.SIGINT):
    interrupt(number)
    time.sleep(5)


def queried():
    """A library that makes another error of it."""
    try:
        interrupted()
    except KeyboardInterrupt:
        raise RuntimeError("Query interrupted") from None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_interrupt_and_is_heard_no_longer_than_the_block(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), Interrupts().heard():
        interrupted(number)
    assert signal.getsignal(number) is before


def test_what_a_library_makes_of_an_interrupt_is_one():
    with pytest.raises(KeyboardInterrupt), Interrupts().heard():
        queried()


def test_an_interrupt_that_was_lost_is_found_at_the_next_stage():
    interrupts = Interrupts()
    with interrupts.heard():
        with suppress(KeyboardInterrupt):
            interrupted()
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.came = False


def test_errors_without_an_interrupt_are_what_they_are():
    with pytest.raises(RuntimeError, match="own"), Interrupts().heard():
        raise RuntimeError("its own")


def test_while_the_loop_works_it_is_told_and_the_second_time_it_is_raised():
    interrupts, said = Interrupts(), []

    async def work():
        with interrupts.told(lambda: said.append("stop")):
            interrupt()
            while not said:  # noqa: ASYNC110  it is told by a signal
                await asyncio.sleep(0.01)
            said.append("in good order")
            interrupt()
            await asyncio.sleep(5)

    with pytest.raises(KeyboardInterrupt), interrupts.heard():
        asyncio.run(work())
    assert said == ["stop", "in good order"]


def test_what_ended_in_good_order_raises_nothing():
    interrupts, heard = Interrupts(), asyncio.Event()

    async def work():
        with interrupts.told(heard.set):
            interrupt()
            await heard.wait()
        return "done"

    with interrupts.heard():
        assert asyncio.run(work()) == "done"


def test_a_loop_that_something_keeps_busy_is_interrupted_after_all(monkeypatch):
    monkeypatch.setattr(stopping, "_GRACE_S", 0.1)
    interrupts = Interrupts()

    async def work():
        with interrupts.told(lambda: pytest.fail("it was heard in time")):
            interrupt()
            time.sleep(5)  # noqa: ASYNC251  this is what is tested

    with pytest.raises(KeyboardInterrupt), interrupts.heard():
        asyncio.run(work())


def test_in_another_thread_nothing_is_heard():
    done = []

    def work():
        with Interrupts().heard():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
