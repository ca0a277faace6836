"""Requests as bytes: under the client's address, key and connections, repeated as the client would repeat them, in the search's turn."""

import email.utils
import time

import httpx2
import openai
import pytest

from counterplay.core.errors import UserError
from counterplay.core.turns import turns
from counterplay.replay.adaptive import Concurrency
from counterplay.replay.health import Health
from counterplay.replay.openai_policy import OpenAIPolicy
from counterplay.replay.openai_sending import Sender, repeatable, retry_after_s
from counterplay.replay.openai_tally import Tally
from counterplay.replay.routing import Router, Server
from tests.replay.loopback import Loopback, completion
from tests.replay.model_servers import ModelServer, Reply
from tests.replay.test_policy_openai import NOW, STATE


class Kept:
    """Turns that note what is asked of them."""

    def __init__(self):
        self.taken, self.ended, self.pauses = [], 0, []

    async def take(self, state, tokens=0):
        self.taken.append((state.key, tokens))
        return self

    def end(self, tokens=None):
        self.ended += 1

    def pause(self, seconds):
        self.pauses.append(seconds)


@pytest.fixture
def kept():
    kept = Kept()
    token = turns.set(kept)
    yield kept
    turns.reset(token)


async def test_a_request_carries_what_the_client_would_send():
    seen = {}

    async def note(request):
        seen.update(request.headers)

    with Loopback() as server:
        async with httpx2.AsyncClient(event_hooks={"request": [note]}) as http:
            client = openai.AsyncOpenAI(api_key="secret", organization="acme", base_url=server.base_url, http_client=http)
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
            theirs = dict(seen)
            seen.clear()
            sender = Sender(client, http, "chat/completions", timeout_s=5)
            assert (await sender.send(b'{"model":"m"}')).json()["choices"]
    own = {"content-length", "x-stainless-read-timeout", "x-stainless-retry-count", "x-stainless-timeout", "idempotency-key"}
    assert {name: value for name, value in seen.items() if name not in own} == {n: v for n, v in theirs.items() if n not in own}
    assert seen["authorization"] == "Bearer secret"
    assert seen["openai-organization"] == "acme"


async def test_a_repeated_request_says_so():
    counts, tally = [], Tally()

    async def note(request):
        counts.append((request.headers.get("x-stainless-retry-count"), tally.retries))

    with Loopback((500, b"", NOW), (429, b"", NOW)) as server:
        async with httpx2.AsyncClient(event_hooks={"request": [note]}) as http:
            client = openai.AsyncOpenAI(api_key="k", base_url=server.base_url, http_client=http)
            sender = Sender(client, http, "chat/completions", timeout_s=5)
            router = Router([Server(server.base_url, sender, Concurrency(most=4), Health())], most=4, retries=4, tally=tally)
            attempt = await router.post(b"{}", "key", lambda said, _: said)
    assert attempt.answered
    assert counts == [(None, 0), ("1", 1), ("2", 2)]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (status, headers)
        for status in (200, 400, 404, 408, 409, 422, 429, 500, 503)
        for headers in ({}, {"x-should-retry": "true"}, {"x-should-retry": "false"}, {"retry-after": "3"}, {"retry-after": "500"})
    ],
)
def test_what_is_repeated_is_what_the_client_repeats(status, headers):
    client = openai.AsyncOpenAI(api_key="k", base_url="http://127.0.0.1:1/v1")
    response = httpx2.Response(status, headers=headers)
    assert repeatable(response) == client._should_retry(response)


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
async def test_an_account_without_credit_is_not_asked_again(code):
    with Loopback((429, {"error": {"code": code, "message": "You exceeded your current quota"}})) as server:
        async with OpenAIPolicy("m", base_url=server.base_url) as policy:
            with pytest.raises(UserError, match="credit"):
                await policy.propose(STATE, 1)
    assert (len(server.bodies), policy.tally.retries) == (1, 0)


class Dripping(ModelServer):
    async def reply(self, body):
        return Reply(body=b" " * 1000, how="drip")


async def test_an_answer_that_drips_is_not_waited_for_for_ever():
    with Dripping() as server:
        async with httpx2.AsyncClient() as http:
            client = openai.AsyncOpenAI(api_key="k", base_url=server.base_url, http_client=http)
            with pytest.raises(TimeoutError):
                await Sender(client, http, "chat/completions", timeout_s=0.3).send(b"{}")
    assert server.counts["dripped"] > 2


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "121"}, None),
        ({}, None),
    ],
)
def test_what_the_server_asks_to_wait(headers, seconds):
    assert retry_after_s(httpx2.Headers(headers)) == seconds


def test_a_date_to_wait_for():
    at = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 55 < retry_after_s(httpx2.Headers({"retry-after": at})) <= 60


async def test_every_request_takes_a_turn_and_gives_it_back(kept):
    with Loopback((429, b"", NOW), completion("a"), (400, b"no")) as server:
        async with OpenAIPolicy("m", base_url=server.base_url, n_support="never", max_tokens=50, retries=2) as policy:
            await policy.propose(STATE, 1)
            with pytest.raises(Exception, match="400"):
                await policy.propose(STATE, 1)
            await policy.propose(STATE, 3)
    assert len(kept.taken) == kept.ended == 5
    assert {key for key, _ in kept.taken} == {STATE.key}
    assert all(50 < tokens < 50 + len(server.bodies[0]) for _, tokens in kept.taken)
    assert kept.pauses == [0.001]


async def test_without_turns_nothing_is_taken():
    with Loopback() as server:
        async with OpenAIPolicy("m", base_url=server.base_url) as policy:
            assert await policy.propose(STATE, 1)
