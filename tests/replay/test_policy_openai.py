"""Any OpenAI-compatible server: what is sent, what is made of the answers, and what happens when they go wrong."""

import asyncio

import pytest

from counterplay.core.errors import PolicyError, UserError
from counterplay.core.journal import JournaledPolicy, MemoryJournal
from counterplay.core.nouns import Message, Step, ToolSpec, Trajectory, Usage
from counterplay.core.protocols import fingerprint_of, first_draw
from counterplay.core.turns import turns
from counterplay.replay.openai_answers import Price
from counterplay.replay.openai_policy import OpenAIPolicy
from tests.replay.loopback import Loopback, completion

TOOLS = (ToolSpec.function("look_up", "Looks an order up.", {"type": "object", "properties": {}}),)
ASSISTANT = Message(
    '{"content":null,"role":"assistant","vendor":{"b":1,"a":2},"tool_calls":[{"id":"k","function":{"arguments":"{}","name":"f"}}]}'
)
STATE = Trajectory(
    TOOLS, (Message.system("Kéep books."), Message.user("Where is order 7?")), (Step(ASSISTANT, (Message.tool("here", "k"),)),)
)
NOW = {"Retry-After-Ms": "1"}


OPENED = []


@pytest.fixture(autouse=True)
async def _closed():
    yield
    while OPENED:
        await OPENED.pop().aclose()


def policy_at(server, **options):
    OPENED.append(OpenAIPolicy("scripted", **{"base_url": server.base_url, **options}))
    return OPENED[-1]


async def test_a_request_is_made_of_the_stored_bytes():
    with Loopback() as server:
        policy = policy_at(server, temperature=0.5, max_tokens=99, extra_body={"top_k": 4})
        await policy.propose(STATE, 1)
        await policy.propose(STATE.extend(Step(Message.assistant("so"), (Message.user("ok"),))), 1)
    first, second = server.bodies
    stored = ",".join(message.wire for message in STATE.messages).encode()
    assert stored in first
    shared = first.index(stored) + len(stored)
    assert second[:shared] == first[:shared]
    assert server.requests[0] | {"seed": 0} == {
        "model": "scripted",
        "messages": [message.to_openai() for message in STATE.messages],
        "tools": [TOOLS[0].to_openai()],
        "temperature": 0.5,
        "max_tokens": 99,
        "top_k": 4,
        "seed": 0,
    }


async def test_unknown_fields_of_an_answer_are_kept_and_empty_ones_dropped():
    with Loopback(completion(None, calls=[("call_ABCDEFGHIJKL", "look_up", '{"order": 7}')], vendor_note={"x": 1})) as server:
        (proposal,) = await policy_at(server).propose(STATE, 1)
    fields = proposal.action.to_openai()
    assert fields["vendor_note"] == {"x": 1}
    assert "refusal" not in fields
    assert proposal.action.tool_calls[0].args == {"order": 7}
    assert (proposal.model, proposal.finish_reason) == ("scripted-1", "tool_calls")
    assert proposal.usage == Usage(10, 5, 3)


async def test_tool_call_ids_are_reproducible_and_keep_the_server_s_form():
    async def ids(given):
        with Loopback(completion(None, calls=[(given, "f", "{}")])) as server:
            return (await policy_at(server).propose(STATE, 1))[0].action.tool_calls[0].id

    assert await ids("call_ABCDEFGHIJKL") == await ids("call_MNOPQRSTUVWX")
    assert (await ids("call_ABCDEFGHIJKL")).startswith("call_")
    assert len(await ids("a1B2c3D4e")) == 9
    assert await ids("functions.f:0") == "functions.f:0"


async def test_n_is_one_request_where_the_server_honours_it():
    with Loopback() as server:
        policy = policy_at(server)
        proposals = await policy.propose(STATE, 4)
    assert [p.action.content for p in proposals] == [f"answer {at}" for at in range(4)]
    assert [request.get("n") for request in server.requests] == [4]
    assert sum(p.usage.output_tokens for p in proposals) == 20


async def test_n_is_made_up_for_where_the_server_ignores_it():
    with Loopback(default=lambda _: completion("one")) as server:
        policy = policy_at(server)
        assert len(await policy.propose(STATE, 4)) == 4
        assert [request.get("n") for request in server.requests] == [4, None, None, None]
        assert len({request["seed"] for request in server.requests}) == 4
        assert len(await policy.propose(STATE, 3)) == 3
        assert [request.get("n") for request in server.requests[4:]] == [None] * 3
        assert (policy.tally.calls, policy.tally.short, server.served["calls"]) == (7, 1, 7)


async def test_n_is_given_up_where_the_server_refuses_it():
    def answer(request):
        return (400, {"error": {"message": "n must be 1"}}) if request.get("n") else completion("one")

    with Loopback(default=answer) as server:
        policy = policy_at(server)
        assert len(await policy.propose(STATE, 3)) == 3
        assert len(await policy.propose(STATE, 3)) == 3
        assert [request.get("n") for request in server.requests] == [3] + [None] * 6


async def test_the_seed_sent_follows_state_and_draw():
    with Loopback() as server:
        policy = policy_at(server)
        await policy.propose(STATE, 1)
        token = first_draw.set(1)
        await policy.propose(STATE, 1)
        first_draw.reset(token)
        await policy_at(server).propose(STATE, 1)
        await policy_at(server, seed=None).propose(STATE, 1)
    seeds = [request.get("seed") for request in server.requests]
    assert seeds[0] == seeds[2] != seeds[1]
    assert seeds[3] is None


async def test_log_probabilities_become_priors_and_are_asked_for_only_where_given():
    with Loopback(completion("a", "b", "a", logprobs=[[-1.0, -1.0], [-2.0], [-1.0, -1.0]]), default=lambda _: completion("a")) as server:
        policy = policy_at(server, logprobs=True)
        proposals = await policy.propose(STATE, 3)
        assert [p.logprob for p in proposals] == [-2.0, -2.0, -2.0]
        assert proposals[0].prior == proposals[2].prior
        assert proposals[0].prior + proposals[1].prior == pytest.approx(1)
        assert proposals[0].prior == pytest.approx(1 / (1 + 2.718281828 ** (-1)))
        assert (await policy.propose(STATE, 1))[0].logprob is None
        await policy.propose(STATE, 1)
    assert [request.get("logprobs") for request in server.requests] == [True, True, None]


async def test_log_probabilities_are_given_up_where_the_server_refuses_them():
    def answer(request):
        return (400, {"error": {"message": "logprobs is not supported"}}) if request.get("logprobs") else completion("a")

    with Loopback(default=answer) as server:
        assert len(await policy_at(server, logprobs=True).propose(STATE, 1)) == 1


@pytest.mark.parametrize(
    ("content", "finish", "names"),
    [
        ('sure <tool_call>\n{"name": "look_up", "arguments": {"a": 1}}\n</tool_call>', "stop", ["look_up"]),
        ('<tool_call>{"name": "look_up", "arguments": {"a": </tool_call>', "malformed_tool_call", []),
        ("plain", "stop", []),
    ],
)
async def test_tool_calls_written_as_text_are_read(content, finish, names):
    with Loopback(completion(content), completion(content)) as server:
        (proposal,) = await policy_at(server).propose(STATE, 1)
        (raw,) = await policy_at(server, parse_text_calls=False).propose(STATE, 1)
    assert [call.name for call in proposal.action.tool_calls] == names
    assert proposal.finish_reason == finish
    assert raw.action.content == content


async def test_requests_in_flight_together_count_their_own_retries():
    with Loopback((500, b"", NOW), default=lambda _: completion("a")) as server:
        policy = policy_at(server)
        await asyncio.gather(*(policy.propose(STATE.extend(Step(Message.assistant(str(i)))), 1) for i in range(4)))
    assert policy.tally.retries == 1


async def test_a_turn_ends_with_the_tokens_really_used():
    ended = []

    class Noted:
        async def take(self, state, tokens=0):
            return self

        def end(self, tokens=None):
            ended.append(tokens)

        def pause(self, seconds):
            pass

    token = turns.set(Noted())
    with Loopback(completion("a"), (400, {"error": "no"})) as server:
        policy = policy_at(server, max_tokens=500)
        await policy.propose(STATE, 1)
        with pytest.raises(UserError):
            await policy.propose(STATE, 1)
    turns.reset(token)
    assert ended == [15, None]


async def test_the_tally_is_the_server_s_own():
    with Loopback((500, {"error": "x"}, NOW), completion("a", "b"), (429, {"error": "slow down"}, NOW), (503, b"", NOW)) as server:
        policy = policy_at(server, prices={"scripted": Price(2.0, 10.0, 0.5)})
        proposals = [p for _ in range(4) for p in await policy.propose(STATE, 2)]
    assert policy.tally.retries == 3
    assert policy.tally.calls == server.served["calls"] == 4
    assert policy.tally.input_tokens == server.served["prompt_tokens"] == sum(p.usage.input_tokens for p in proposals)
    assert policy.tally.output_tokens == server.served["completion_tokens"] == sum(p.usage.output_tokens for p in proposals)
    cost = (4 * (7 * 2.0 + 3 * 0.5) + policy.tally.output_tokens * 10.0) / 1e6
    assert policy.tally.cost_usd == pytest.approx(cost)
    assert sum(p.usage.cost_usd or 0 for p in proposals) == pytest.approx(cost)


async def test_without_a_price_there_is_no_cost_and_without_usage_a_note():
    with Loopback(completion("a", usage=False)) as server:
        policy = policy_at(server)
        assert (await policy.propose(STATE, 1))[0].usage == Usage(cost_usd=None)
    assert policy.tally.unmetered == 1


async def test_no_more_requests_than_allowed_are_in_flight():
    with Loopback(*[part for _ in range(12) for part in (0.03, completion("a"))]) as server:
        policy = policy_at(server, concurrency=3)
        await asyncio.gather(*(policy.propose(STATE, 1) for _ in range(12)))
    assert server.most_in_flight == 3


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ((500, b"boom", NOW), PolicyError, ["500", "boom", "after 1 retries"]),
        ((401, b'{"error": "bad key"}'), UserError, ["401", "bad key", "OPENAI_API_KEY"]),
        ((404, b"no such model"), UserError, ["404", "no such model", "/v1"]),
        ((400, b"context too long"), UserError, ["400", "context too long"]),
        (b"<html>Welcome to nginx</html>", PolicyError, ["200", "Welcome to nginx", "OpenAI-compatible"]),
        (b"", PolicyError, ["200", "OpenAI-compatible"]),
        ({"object": "list", "data": []}, PolicyError, ["200", "choices"]),
        ({"choices": []}, PolicyError, ["200", "no choices"]),
        ({"choices": [{"message": None}]}, PolicyError, ["200", "choices.0.message"]),
        (b'{"choices": [{"mess', PolicyError, ["200", "mess"]),
    ],
)
async def test_a_server_that_fails_or_talks_nonsense_is_named(answer, kind, words):
    with Loopback(default=lambda _: answer) as server:
        policy = policy_at(server, retries=1)
        with pytest.raises(kind) as caught:
            await policy.propose(STATE, 1)
        assert policy.tally.failures == 1
        for word in [server.base_url, *words]:
            assert word in str(caught.value)
        assert caught.value.wanted
        assert caught.value.do


async def test_a_server_that_is_slow_or_absent_is_named():
    with Loopback(0.5, completion("a")) as server:
        can_be_set = r"\[pace\] timeout_s in a job, --timeout-s, timeout_s in Python"
        with pytest.raises(PolicyError, match=rf"did not answer within 0\.1 s.*{can_be_set}"):
            await policy_at(server, timeout_s=0.1, retries=0).propose(STATE, 1)
        address = server.base_url
    with pytest.raises(PolicyError, match=f"{address} can't be reached"):
        await policy_at(server, base_url=address, retries=0).propose(STATE, 1)


@pytest.mark.parametrize("field", ["n", "messages", "model", "tools", "stream", "seed", "max_tokens", "temperature", "logprobs"])
def test_a_field_that_the_policy_sends_is_not_taken_from_elsewhere(field):
    with pytest.raises(UserError, match=f"got '{field}' in extra_body; wanted fields that the policy does not send itself"):
        OpenAIPolicy("m", base_url="http://a/v1", extra_body={"top_k": 1, field: 7})


async def test_the_estimate_is_the_same_whatever_the_server_has_shown():
    with Loopback() as server:
        policy = policy_at(server, max_tokens=50)
        before = policy.estimate(STATE, 3)
        await policy.propose(STATE, 3)
        assert policy.estimate(STATE, 3) == before


async def test_the_estimate_bounds_what_is_used():
    with Loopback(default=lambda request: completion("x" * request["max_tokens"])) as server:
        policy = policy_at(server, max_tokens=5, prices={"scripted": Price(1.0, 1.0)})
        estimate = policy.estimate(STATE, 3)
        used = sum((p.usage for p in await policy.propose(STATE, 3)), Usage())
    assert estimate.tokens >= used.tokens
    assert estimate.cost_usd >= used.cost_usd
    assert estimate.input_tokens >= 3 * sum(len(m.wire) for m in STATE.messages)
    assert policy_at(server, max_tokens=None).estimate(STATE, 1) is None


def test_one_policy_serves_several_event_loops():
    with Loopback() as server:
        policy = OpenAIPolicy("scripted", base_url=server.base_url)

        async def once():
            proposals = await policy.propose(STATE, 2)
            await policy.aclose()
            return proposals

        for _ in range(2):
            assert len(asyncio.run(once())) == 2


def test_a_missing_key_is_bad_usage(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="without a key"):
        OpenAIPolicy("m")


def test_the_fingerprint_covers_parameters_not_the_address():
    def of(**options):
        return fingerprint_of(OpenAIPolicy("m", **{"base_url": "http://a/v1", **options}))

    assert of() == of(base_url="http://b:1/v1")
    assert len({of(), of(temperature=0.1), of(max_tokens=1), of(seed=1), of(extra_body={"a": 1})}) == 5


async def test_the_requests_of_a_proposal_that_were_answered_before_a_kill_are_not_made_again():
    journal = MemoryJournal()
    whole = [completion(f"answer {at}") for at in range(4)]
    with Loopback(*whole[:3], 30.0, whole[3]) as server:
        asking = asyncio.ensure_future(JournaledPolicy(policy_at(server, n_support="never", concurrency=1), journal).propose(STATE, 4))
        async with asyncio.timeout(20):
            while len(server.requests) < 4:  # noqa: ASYNC110  the server counts in a thread
                await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    with Loopback(whole[3]) as server:
        policy = policy_at(server, n_support="never", concurrency=1)
        again = JournaledPolicy(policy, journal)
        proposals = await again.propose(STATE, 4)
        assert len(server.requests) == again.live_calls == policy.tally.calls == 1
    assert [proposal.action.content for proposal in proposals] == [f"answer {at}" for at in range(4)]
    assert [proposal.usage for proposal in proposals] == [Usage(10, 5, 3)] * 4


async def test_a_proposal_that_is_one_request_is_kept_once():
    journal = MemoryJournal()
    with Loopback() as server:
        policy = JournaledPolicy(policy_at(server), journal)
        await policy.propose(STATE, 1)
        await policy.propose(STATE, 3)
    assert len(journal.entries) == 2


async def test_the_draw_that_a_server_gave_in_place_of_several_is_not_asked_for_again_once_it_is_known_to_give_one():
    journal = MemoryJournal()
    with Loopback(completion("answer 0"), completion("answer 1"), 30.0, completion("late")) as server:
        asking = asyncio.ensure_future(JournaledPolicy(policy_at(server, concurrency=1), journal).propose(STATE, 3))
        async with asyncio.timeout(20):
            while len(server.requests) < 3:  # noqa: ASYNC110  the server counts in a thread
                await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    with Loopback(completion("answer 2")) as server:
        again = JournaledPolicy(policy_at(server, n_support="never"), journal)
        assert [proposal.action.content for proposal in await again.propose(STATE, 3)] == ["answer 0", "answer 1", "answer 2"]
        assert len(server.requests) == 1
