"""A judge at a real server: what is sent, what is read, and that what can't be read is an error and never a number."""

import asyncio
import json

import pytest

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import JournaledVerifier, MemoryJournal, ask, ask_all
from counterplay.core.nouns import Usage
from counterplay.verifiers.judges import ChatModel, Criteria, Criterion, Judge
from counterplay.verifiers.judges.prompts import TOULMIN
from tests.replay.loopback import Loopback, completion
from tests.verifiers.judging import GOOD, answers, attempt, looked, question, said, verdict


def judge(server, *, retries=0, model=None, **options):
    return Judge(ChatModel("wise", base_url=server.base_url, retries=retries, **(model or {})), **options)


async def opinion(server, trajectory=GOOD, **options):
    async with judge(server, **options) as asked:
        return await ask(asked, trajectory)


async def test_a_good_answer_is_a_score_with_its_reason():
    with answers(verdict(0.75, "the date was looked up")) as server:
        score = await opinion(server)
    assert (score.value, score.reason, score.verifier) == (0.75, "the date was looked up", "judge(wise)")
    assert len(score.version) == 8
    sent = server.requests[0]
    assert (sent["model"], sent["temperature"]) == ("wise", 0.0)
    assert 0 <= sent["seed"] < 2**31
    assert sent["response_format"]["json_schema"]["schema"]["required"] == ["reason", "scores"]


async def test_reasons_are_asked_for_before_numbers():
    with answers(verdict(1)) as server:
        await opinion(server)
    assert list(server.requests[0]["response_format"]["json_schema"]["schema"]["properties"]) == ["reason", "scores"]


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{verdict(0.5)}\n```",
        f"Here is my judgement:\n{verdict(0.5)}\nThat is all.",
        f"<think>perhaps {verdict(0.9)}, no</think>{verdict(0.5)}",
        f"{verdict(0.5)}\n{verdict(0.5)}",
    ],
)
async def test_one_object_is_found_whatever_stands_around_it(text):
    asked = Judge(lambda messages, schema: text)
    assert (await ask(asked, GOOD)).value == 0.5
    assert asked.tally.repairs == 0


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ("The score is 0.8.", "no complete JSON object"),
        ('{"reason": "fine", "scores": {"success": 0.8}', "'scores' is missing"),
        ('{"reason": "fine"', "no complete JSON object"),
        ('{"reason": "fine", "scores": {"success": "0.8"}}', "not a number"),
        ('{"reason": "fine", "scores": {"success": true}}', "not a number"),
        ('{"reason": "fine", "scores": {"success": NaN}}', "NaN"),
        ('{"reason": "fine", "scores": {"success": 1e999}}', "outside 0 to 1"),
        ('{"reason": "fine", "scores": {"success": 8}}', "8, outside 0 to 1"),
        ('{"reason": "fine", "scores": {"success": -0.2}}', "outside 0 to 1"),
        ('{"reason": "fine", "scores": {"success": 0.1, "success": 1}}', "given twice"),
        ('{"reason": "fine", "scores": {"quality": 0.8}}', "'success' is missing"),
        ('{"reason": "", "scores": {"success": 0.8}}', "'reason' is ''"),
        ('{"reason": "fine", "scores": 0.8}', "not an object"),
        (f"{verdict(0.1)} or rather {verdict(1)}", "several different"),
        ("[" * 5000 + '{"a":' * 5000, "nested too deeply"),
    ],
)
async def test_a_broken_answer_is_asked_for_once_more_and_then_an_error(broken, complaint):
    asked, script = [], [broken, verdict(0.25), broken, broken]

    def model(messages, schema):
        asked.append(messages)
        return script.pop(0)

    assert (await ask(Judge(model), GOOD)).value == 0.25
    assert [message["role"] for message in asked[1]] == ["system", "user", "assistant", "user"]
    assert complaint in asked[1][-1]["content"]
    with pytest.raises(VerifierError, match="no judgement that can be read"):
        await ask(Judge(model), GOOD)
    assert len(asked) == 4


@pytest.mark.parametrize(("given", "value"), [(1.04, 1.0), (-0.03, 0.0), (1, 1.0), (0, 0.0)])
async def test_what_hardly_leaves_the_scale_is_clamped(given, value):
    assert (await ask(Judge(lambda messages, schema: verdict(given)), GOOD)).value == value


async def test_a_refusal_and_an_answer_cut_off_are_named_as_such():
    refused = completion(None, usage=True)
    refused["choices"][0]["message"]["refusal"] = "I can't help with that."
    with answers(refused, refused) as server, pytest.raises(VerifierError, match="refused: I can't help"):
        await opinion(server)
    assert server.requests[1]["messages"][2]["content"] == "I can't help with that."
    cut = completion('{"reason": "it')
    cut["choices"][0]["finish_reason"] = "length"
    with answers(cut, cut) as server, pytest.raises(VerifierError, match="limit of tokens"):
        await opinion(server)


async def test_criteria_are_weighted_and_told_apart():
    criteria = Criteria((Criterion("right", "It is right.", 3), Criterion("brief", "It is brief.")))
    with answers(json.dumps({"reason": "hm", "scores": {"brief": 0.0, "right": 1.0}})) as server:
        score = await opinion(server, criteria=criteria)
    assert score.value == 0.75
    assert score.reason == "hm; right 1.00, brief 0.00"
    assert "- right: It is right.\n- brief: It is brief." in question(server.requests[0])


async def test_samples_are_calls_of_their_own_with_seeds_of_their_own():
    with answers(verdict(0.0, "bad"), verdict(1.0, "good"), verdict(0.5, "so so")) as server:
        score = await opinion(server, samples=3, model={"temperature": 0.7, "concurrency": 1})
    assert score.value == 0.5
    assert score.reason == "3 samples, spread 1.00; so so"
    assert len({request["seed"] for request in server.requests}) == 3
    assert not any("n" in request for request in server.requests)


async def test_one_unreadable_sample_is_an_error_and_no_mean_of_the_rest():
    with answers(verdict(1), "?", "?", verdict(1)) as server, pytest.raises(VerifierError):
        await opinion(server, samples=2, model={"concurrency": 1})


async def test_critical_questions_must_be_answered_before_the_number():
    named = {f"q{at}": "yes" for at in range(1, 7)}
    with answers(verdict(0.5, answers={**named, "q6": " "}), verdict(0.5, answers=named)) as server:
        assert (await opinion(server, questions=TOULMIN)).value == 0.5
    assert "'q6'" in server.requests[1]["messages"][-1]["content"]
    assert list(server.requests[0]["response_format"]["json_schema"]["schema"]["properties"]) == ["answers", "reason", "scores"]
    assert f"q1: {TOULMIN[0]}" in question(server.requests[0])


async def test_a_reference_is_worked_back_from_and_without_one_there_is_no_opinion():
    with answers(verdict(1), verdict(1)) as server:
        assert (await opinion(server, reference={GOOD.prefix(0).key: "2 May"})).value == 1
        assert (await opinion(server, reference={"Where is order 17?": "2 May"})).value == 1
        assert await opinion(server, reference={"another task": "2 May"}) is None
    assert all("reference>>\n2 May\n<</" in question(request) for request in server.requests)


async def test_modes_say_what_they_have_an_opinion_on():
    half = attempt(looked("17", "sent"))
    asked = []

    def model(messages, schema):
        asked.append(messages[1]["content"].rpartition("<</")[2])
        return verdict(1, name=schema["properties"]["scores"]["required"][0])

    assert await ask(Judge(model), half) is None
    for mode in ("step", "progress"):
        assert await ask(Judge(model, mode=mode), half.prefix(0)) is None
        assert (await ask(Judge(model, mode=mode), half)).value == 1
    assert ["step 0" in text for text in asked] == [True, True]
    assert Judge(model, mode="step").name == "step_judge(model)"


async def test_what_a_server_refuses_is_found_out_once_and_remembered():
    def picky(request):
        for name in ("response_format", "seed", "temperature"):
            if name in request:
                return 400, {"error": {"message": f"Unsupported parameter: {name}"}}
        return completion(verdict(0.5))

    with Loopback(default=picky) as server:
        model = ChatModel("wise", base_url=server.base_url, retries=0)
        async with Judge(model) as asked:
            scores = await asyncio.gather(*(ask(asked, attempt(said(str(i)))) for i in range(6)))
    assert [score.value for score in scores] == [0.5] * 6
    assert len(server.requests) == 9
    assert model.unsupported == {"response_format", "seed", "temperature"}
    assert '"required":["reason","scores"]' in question(server.requests[-1]), "the schema is in the text as well"


async def test_a_refusal_for_length_is_not_taken_for_one_of_structured_output():
    full = (400, {"error": {"message": "This model's maximum context length is 8192 tokens"}})
    with Loopback(full, full, completion(verdict(1))) as server:
        model = ChatModel("wise", base_url=server.base_url, retries=0)
        async with Judge(model) as asked:
            with pytest.raises(VerifierError, match="maximum context length"):
                await ask(asked, GOOD)
            await ask(asked, GOOD)
    assert "response_format" in server.requests[2]
    assert model.unsupported == frozenset()


async def test_a_newer_name_for_the_limit_is_used_where_the_old_one_is_refused():
    refusal = (400, {"error": {"message": "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."}})
    with Loopback(refusal, completion(verdict(1))) as server:
        await opinion(server, model={"max_tokens": 99})
    assert (server.requests[1].get("max_completion_tokens"), server.requests[1].get("max_tokens")) == (99, None)


async def test_a_busy_server_is_asked_again_after_what_it_says():
    busy = (429, {"error": {"message": "slow down"}}, {"Retry-After-Ms": "10"})
    with Loopback(busy, busy, completion(verdict(0.5))) as server:
        assert (await opinion(server, retries=2)).value == 0.5
    assert len(server.requests) == 3
    with Loopback(busy, busy) as server, pytest.raises(VerifierError, match="slow down"):
        await opinion(server, retries=1)


async def test_a_slow_server_is_given_up_and_nothing_comes_of_it():
    with Loopback(5.0, completion(verdict(1))) as server, pytest.raises(VerifierError, match="did not answer"):
        await opinion(server, model={"timeout_s": 0.1})


@pytest.mark.parametrize("body", [b"<html>", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"[]", b"\xff"])
async def test_nonsense_with_status_200_is_an_error(body):
    with Loopback(body) as server, pytest.raises(VerifierError, match="an OpenAI chat completion"):
        await opinion(server)


async def test_a_wrong_key_is_the_caller_s_to_put_right():
    with Loopback((401, {"error": {"message": "no such key"}})) as server, pytest.raises(VerifierError) as caught:
        await opinion(server)
    assert isinstance(caught.value.__cause__, UserError)


async def test_no_more_requests_are_in_flight_than_allowed():
    with Loopback(*[0.2, completion(verdict(0.5))] * 8) as server:
        async with judge(server, model={"concurrency": 3}) as asked:
            scores = await ask_all(asked, [attempt(said(str(i))) for i in range(8)])
    assert [score.value for score in scores] == [0.5] * 8
    assert 1 < server.most_in_flight <= 3


async def test_no_seed_and_no_temperature_are_sent_where_they_are_not_wanted():
    with answers(verdict(1)) as server:
        await opinion(server, model={"send_seed": False, "temperature": None, "extra_body": {"top_k": 1}})
    assert not {"seed", "temperature"} & set(server.requests[0])
    assert server.requests[0]["top_k"] == 1


async def test_requests_about_prefixes_are_equal_to_the_byte_up_to_the_question():
    steps = [looked(str(at), "sent", say="hm") for at in range(3)]
    criteria = Criteria((Criterion("success", "It is right."),))
    with answers(verdict(1), verdict(1)) as server:
        async with judge(server, mode="progress", criteria=criteria) as asked:
            for length in (2, 3):
                await ask(asked, attempt(*steps[:length]))
    shorter, longer = server.bodies
    shared = shorter[: shorter.index(b"Judge the state")]
    assert b"step 1, result" in shared
    assert longer.startswith(shared.rstrip(b"\\n"))


async def test_usage_and_cost_are_tallied_repairs_too():
    with answers("?", verdict(1), completion(verdict(1), usage=False)) as server:
        model = ChatModel("wise", base_url=server.base_url, price=lambda usage: usage.input_tokens / 10)
        async with Judge(model) as asked:
            await ask(asked, GOOD)
            await ask(asked, attempt(said("else")))
            tally = asked.tally
    assert (tally.calls, tally.repairs, tally.unmetered, tally.failures) == (3, 1, 1, 0)
    assert tally.usage == Usage(20, 10, 6, 0, 2.0)


async def test_the_journal_answers_a_question_that_was_asked_before_and_only_that_one():
    journal = MemoryJournal()
    text = verdict(0.5, answers={"q1": "so"})
    with Loopback(default=lambda _: completion(text)) as server, Loopback(default=lambda _: completion(text)) as elsewhere:
        for each in (judge(server), judge(elsewhere)):  # an address is no part of what was asked
            async with each:
                await ask(JournaledVerifier(each, journal), GOOD)
        assert (len(server.requests), len(elsewhere.requests)) == (1, 0)
        others = ({"formal": True}, {"seed": 1}, {"samples": 2}, {"questions": ("Why?",)}, {"reference": "2 May"}, {"max_chars": 5000})
        for at, options in enumerate(({"model": {"temperature": 0.5}}, *others)):
            async with judge(server, **options) as each:
                await ask(JournaledVerifier(each, journal), GOOD)
            assert len(journal.entries) == at + 2, options


async def test_a_client_of_one_s_own_is_used_and_left_open():
    import openai

    with answers(verdict(0.5)) as server:
        client = openai.AsyncOpenAI(api_key="mine", base_url=server.base_url)
        async with Judge(ChatModel("wise", client=client)) as asked:
            assert (await ask(asked, GOOD)).value == 0.5
        assert not client.is_closed()
        await client.close()


def test_a_judge_serves_one_event_loop_after_another():
    with Loopback(default=lambda _: completion(verdict(0.5))) as server:
        asked, clients = judge(server), []

        async def once():
            score = await ask(asked, GOOD)
            clients.append(asked.model._client)
            await asked.model._client.close()
            return score.value

        assert [asyncio.run(once()) for _ in range(2)] == [0.5, 0.5]
        assert clients[0] is not clients[1]


@pytest.mark.parametrize("as_coroutine", [True, False])
async def test_a_function_serves_as_well(as_coroutine):
    seen = []

    def plain(messages, schema):
        seen.append((messages, schema))
        return verdict(0.5) if len(seen) > 1 else "?"

    async def coroutine(messages, schema):
        return plain(messages, schema)

    asked = Judge(coroutine if as_coroutine else plain)
    assert (await ask(asked, GOOD)).value == 0.5
    assert seen[0][1]["required"] == ["reason", "scores"]
    assert asked.tally.repairs == 1
    assert asked.name == f"judge({'coroutine' if as_coroutine else 'plain'})"


async def test_a_function_that_fails_or_gives_no_text_is_an_error():
    def failing(messages, schema):
        raise KeyError("weights")

    for function in (failing, lambda messages, schema: 0.9):
        with pytest.raises(VerifierError):
            await ask(Judge(function), GOOD)


@pytest.mark.parametrize("options", [{"mode": "whole"}, {"samples": 0}, {"max_chars": 10}, {"max_tool_calls": 0}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(UserError):
        Judge(lambda messages, schema: "", **options)
