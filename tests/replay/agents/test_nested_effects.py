"""What is let through brings nothing external along, and a thread of nobody's sends no mail while a run is re-enacted."""

import _thread
import threading

import pytest

from counterplay.replay.agents.ambient import Interruption, intercepting
from counterplay.replay.effects import tool
from tests.replay.agents.seen import Seen

MAILS = []


@tool(effect="external")
def send_mail(text: str) -> str:
    MAILS.append(text)
    return "sent"


@tool(effect="write(order)")
def refund(order: str) -> str:
    return send_mail(f"refunded {order}")


class Strict(Seen):
    def nested(self, name):
        msg = f"{name} is not named"
        raise Interruption(msg)


@pytest.fixture(autouse=True)
def _no_mail():
    MAILS.clear()
    yield
    assert MAILS == []


def test_a_tool_that_is_let_through_brings_no_mail_along():
    with intercepting(Strict()), pytest.raises(Interruption, match="send_mail"):
        refund("17")


def test_a_recorder_has_no_say_in_it():
    with intercepting(Seen()):
        assert refund("17") == "sent"
    assert MAILS.pop() == "refunded 17"


def test_a_thread_of_nobodys_sends_no_mail_while_runs_are_re_enacted():
    said, done = [], threading.Event()

    def work():
        try:
            send_mail("hello")
        except Interruption as stopped:
            said.append(str(stopped))
        finally:
            done.set()

    with intercepting(Strict()), intercepting(Strict()):
        _thread.start_new_thread(work, ())  # as extension modules start them: nobody sees whose it is
        assert done.wait(10)
    assert "may belong to any" in said[0]
