"""A server that fails a quarter of the time changes nothing in the result, and the tally knows what was paid."""

import contextlib
import dataclasses
import json
import socket

import pytest

from bench import flaky
from counterplay.core.errors import PolicyError, UserError
from counterplay.core.nouns import Message, Trajectory
from counterplay.replay import openai_sending
from counterplay.replay.openai_policy import OpenAIPolicy
from counterplay.replay.openai_tally import MEANINGS, Tally
from tests.front import moves
from tests.replay.loopback import Loopback, completion
from tests.replay.model_servers import Flaky, ModelServer, Reply

STATE = Trajectory((), (Message.user("go"),))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(openai_sending, "_FIRST_DELAY_S", 0.02)


@pytest.mark.parametrize("name", ["fork_best_of_n", "beam"])
def test_the_result_is_that_of_a_calm_server_and_the_tally_is_right(monkeypatch, name):
    monkeypatch.setattr(flaky, "TIMEOUT_S", 0.7)
    calm = flaky.compare(lambda: ModelServer(moves.answer), name, 2)
    hurt = flaky.compare(lambda: Flaky(7, burst=40, burst_length=5, answer=moves.answer), name, 2)
    assert hurt.same == calm.same
    assert hurt.failures == hurt.tally.failures == 0
    counts, tally = hurt.counts, hurt.tally
    for kind in ("500", "reset", "stall", "torn", "cut", "429"):
        assert counts[kind], kind
    overtaken = (
        tally.lost - counts["reset"] - counts["stall"] - counts["cut"]
    )  # answered after all, on a machine that was too busy to see it
    assert overtaken >= 0
    assert tally.calls == counts["answered"] - overtaken == calm.tally.calls
    assert tally.input_tokens + tally.output_tokens == counts["tokens"] - 15 * overtaken
    assert tally.unusable == counts["torn"] - counts["cut"]
    assert tally.retries == counts["requests"] - tally.calls


async def asked(*script, retries=8, default=lambda _: completion("a"), **options):
    """What a policy says to a scripted server, or its error; its tally; how often the server was asked."""
    with Loopback(*script, default=default) as server:
        async with OpenAIPolicy("m", base_url=server.base_url, retries=retries, **options) as policy:
            try:
                (said,) = await policy.propose(STATE, 1)
            except (PolicyError, UserError) as error:
                said = error
        return said, policy.tally, len(server.bodies)


TORN = json.dumps(completion("a")).encode()[:-9]
NOTHING = json.dumps({**completion("a"), "choices": []}).encode()


@pytest.mark.parametrize(
    ("answer", "wasted"),
    [(TORN, 0), (b"", 0), (b"<html>bad gateway</html>", 0), (NOTHING, 15), (b'{"choices": null, "usage": {"prompt_tokens": 7}}', 7)],
)
async def test_an_answer_that_cannot_be_read_is_asked_for_again_and_counted_apart(answer, wasted):
    said, tally, times = await asked(answer)
    assert said.action.content == "a"
    assert (tally.calls, tally.unusable, tally.wasted_tokens, tally.retries, tally.failures, times) == (1, 1, wasted, 1, 0, 2)
    assert tally.input_tokens + tally.output_tokens == 15


async def test_a_server_that_always_talks_nonsense_is_paid_four_times_at_most():
    said, tally, times = await asked(default=lambda _: b"<html>Welcome</html>")
    assert "Welcome" in str(said)
    assert (times, tally.unusable, tally.failures, tally.calls) == (4, 4, 1, 0)


@pytest.mark.parametrize("code", [None, 429, 500, 502, "server_error"])
async def test_an_error_with_status_200_is_an_error_and_costs_nothing(code):
    said, tally, times = await asked({"error": {"message": "upstream failed", "code": code}})
    assert said.action.content == "a"
    assert (times, tally.unusable, tally.calls, tally.retries) == (2, 0, 1, 1)


async def test_a_refusal_with_status_200_is_a_refusal():
    said, tally, times = await asked({"error": {"message": "context too long", "code": 400}})
    assert isinstance(said, UserError)
    assert "context too long" in str(said)
    assert (times, tally.failures) == (1, 1)


async def test_a_busy_server_is_asked_more_often_than_one_that_fails(monkeypatch):
    monkeypatch.setattr(openai_sending, "_LONGEST_DELAY_S", 0.02)
    said, _, times = await asked(default=lambda _: (429, b"slow down"), retries=2)
    assert isinstance(said, PolicyError)
    assert times == 4 * 2 + 1
    said, _, times = await asked(default=lambda _: (500, b"oops"), retries=2)
    assert times == 2 + 1
    said, _, times = await asked(default=lambda _: (429, b"slow down"), retries=0)
    assert times == 1


class Breaking(ModelServer):
    """The first answers break off as told."""

    def __init__(self, *hows):
        super().__init__()
        self.hows = list(hows)

    async def reply(self, body):
        reply = self.answered(body)
        return Reply(body=reply.body, how=self.hows.pop(0)) if self.hows else reply


async def test_a_connection_that_breaks_in_the_middle_is_lost_and_not_counted_as_an_answer():
    with Breaking("cut", "reset") as server:
        async with OpenAIPolicy("m", base_url=server.base_url) as policy:
            assert await policy.propose(STATE, 1)
    assert (policy.tally.calls, policy.tally.lost, policy.tally.retries, server.counts["answered"]) == (1, 2, 2, 3)


def test_every_figure_of_the_tally_has_its_meaning():
    assert set(MEANINGS) == {field.name for field in dataclasses.fields(Tally)}


async def failed(base_url, **options):
    """The error of a policy at an address, and its tally."""
    async with OpenAIPolicy("m", base_url=base_url, **options) as policy:
        with pytest.raises((PolicyError, UserError)) as told:
            await policy.propose(STATE, 1)
    return told.value, policy.tally


async def test_what_found_no_connection_was_not_sent_and_is_not_lost():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error, tally = await failed(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", retries=1)
    assert "can't be reached" in str(error)
    assert (tally.lost, tally.retries, tally.failures) == (0, 1, 1)


async def test_a_server_that_takes_no_connection_was_not_sent_anything():
    with socket.socket() as full, contextlib.ExitStack() as callers:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        error, tally = await failed(f"http://127.0.0.1:{full.getsockname()[1]}/v1", retries=0, timeout_s=0.6)
    assert isinstance(error, PolicyError)
    assert (tally.lost, tally.failures) == (0, 1)


async def test_a_server_that_takes_a_request_and_says_nothing_may_have_computed():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        error, tally = await failed(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", retries=0, timeout_s=0.6)
    assert "did not answer" in str(error)
    assert (tally.lost, tally.failures) == (1, 1)


async def test_a_request_that_can_be_none_is_made_once_and_its_key_is_not_told():
    with Loopback() as server:
        error, tally = await failed(server.base_url, api_key="sekrit\nkey")
    assert isinstance(error, UserError)
    assert "sekrit" not in str(error)
    assert (tally.lost, tally.retries, tally.failures, server.bodies) == (0, 0, 1, [])


async def test_a_body_that_cannot_be_unpacked_is_asked_for_again():
    said, tally, _ = await asked((200, b"not gzip", {"Content-Encoding": "gzip"}))
    assert said.action.content == "a"
    assert (tally.calls, tally.lost) == (1, 1)
