"""Typed questions: probabilities of the answers, from log-probabilities, from a bare answer by name, or from a model made for it."""

import json
import math
from pathlib import Path

import pytest

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import ask
from counterplay.verifiers.judges import ChatModel, Question, TypedJudge
from counterplay.verifiers.judges.deciding import DecisionsEndpoint, PipelineDecider
from tests.replay.loopback import Loopback, completion
from tests.verifiers.judging import GOOD, answers, attempt, looked, question

SCALE = Question.scale("How sound is it?", ("not at all", "hardly", "mostly", "fully"))
MODEL = Path(__file__).parents[2] / "examples" / "ledger" / "model"


def token(text, **shares):
    """One token of an answer with the probabilities of its alternatives."""
    top = [{"token": name, "logprob": math.log(share)} for name, share in shares.items()]
    return {"token": text, "logprob": math.log(shares.get(text, 0.5)), "top_logprobs": top}


def likely(text, *tokens):
    body = completion(text)
    body["choices"][0]["logprobs"] = {"content": list(tokens)}
    return body


async def opinion(server, trajectory=GOOD, **options):
    async with TypedJudge(ChatModel("wise", base_url=server.base_url, retries=0), **options) as asked:
        return await ask(asked, trajectory)


async def test_the_probability_of_yes_is_the_score():
    with answers(likely("yes", token("yes", yes=0.6, no=0.2, maybe=0.1))) as server:
        score = await opinion(server)
    assert score.value == pytest.approx(0.75)
    assert score.verifier == "typed_judge(wise)"
    assert "yes 0.75, no 0.25" in score.reason
    sent = server.requests[0]
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 20)
    assert "response_format" not in sent
    assert question(sent).endswith("Answer with exactly one of: yes, no. Write that alone.")


async def test_spellings_of_one_answer_are_added_up_and_what_comes_before_is_passed_over():
    first = {"token": "\n\n", "logprob": -0.1, "top_logprobs": [{"token": "no", "logprob": -0.2}]}
    spelt = token("Yes", **{"Yes": 0.3, " yes": 0.2, "YES": 0.1, "no": 0.2})
    with answers(likely("\n\nYes.", first, spelt, token("."))) as server:
        assert (await opinion(server)).value == pytest.approx(0.75)


async def test_a_scale_is_worth_its_expectation():
    with answers(likely("C", token("C", A=0.1, B=0.2, C=0.6, D=0.1))) as server:
        score = await opinion(server, questions=[SCALE])
    assert score.value == pytest.approx(0.2 / 3 + 0.6 * 2 / 3 + 0.1)
    assert "\nA: not at all\nB: hardly\nC: mostly\nD: fully\n" in question(server.requests[0])


async def test_questions_are_asked_apart_behind_the_same_material_and_weighted():
    asked = [Question("Is it right?", weight=3), Question("Is it rash?", values=(0.0, 1.0))]

    def answer(request):
        share = 0.9 if "right" in question(request) else 0.8
        return likely("yes", token("yes", yes=share, no=1 - share))

    with Loopback(default=answer) as server:
        score = await opinion(server, questions=asked)
    assert score.value == pytest.approx((3 * 0.9 + 0.2) / 4)
    shown = [question(request).rpartition("Answer this question")[0] for request in server.requests]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("text", ["No", "no.", "**no**", "<think>yes or no?</think>\nNo"])
async def test_without_log_probabilities_the_bare_answer_counts_under_a_name_of_its_own(text):
    with answers(text) as server:
        score = await opinion(server)
    assert (score.value, score.verifier) == (0.0, "typed_judge(wise):answer")
    assert "gives no log-probabilities" in score.reason


async def test_a_server_that_refuses_log_probabilities_is_asked_without():
    refusal = (400, {"error": {"message": "logprobs are not available for this model"}})
    with answers(refusal, "yes", "yes") as server:
        model = ChatModel("wise", base_url=server.base_url)
        async with TypedJudge(model) as asked:
            assert [(await ask(asked, GOOD)).verifier for _ in range(2)] == ["typed_judge(wise):answer"] * 2
    assert model.unsupported == {"logprobs", "top_logprobs"}
    assert len(server.requests) == 3


@pytest.mark.parametrize("bad", ["I would say so, yes", "", likely("Well", token("Well", Well=0.7, yes=0.2)), likely("", token(" "))])
async def test_an_answer_that_is_none_is_asked_for_again_and_then_an_error(bad):
    with answers(bad, likely("no", token("no", no=1.0))) as server:
        assert (await opinion(server)).value == 0.0
    assert "exactly one of: yes, no" in server.requests[1]["messages"][-1]["content"]
    with answers(bad, bad) as server, pytest.raises(VerifierError, match="no answer that can be read"):
        await opinion(server)


async def test_modes_say_what_they_have_an_opinion_on():
    half = attempt(looked("17", "sent"))
    assert await ask(TypedJudge(lambda messages, schema: "yes"), half) is None
    assert await ask(TypedJudge(lambda messages, schema: "yes", mode="step"), half.prefix(0)) is None
    assert (await ask(TypedJudge(lambda messages, schema: "yes", mode="progress"), half)).value == 1.0


async def test_the_decisions_endpoint_answers_all_questions_at_once():
    import openai

    shares = [{"value": "yes", "probability": 0.8}, {"value": "no", "probability": 0.2}]
    letters = [{"value": letter, "probability": 0.25} for letter in "ABCD"]
    usage = {
        "input_tokens": 9,
        "output_tokens": 0,
        "total_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    good = [{"type": "choice", "choice": "yes", "confidence": 1, "probabilities": each} for each in (shares, letters)]
    bodies = [{"model": "d", "usage": usage, "answers": each} for each in (good, good[:1], [good[0], {"type": "refusal"}])]
    with Loopback(*[json.dumps(body).encode() for body in bodies]) as server:
        async with openai.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=0) as client:
            decider = DecisionsEndpoint("d", client)
            asked = TypedJudge(decider, questions=[Question("Is it right?"), SCALE])
            assert (await ask(asked, GOOD)).value == pytest.approx((0.8 + 0.5) / 2)
            for message in ("1 answers to 2 questions", "by a refusal"):
                with pytest.raises(VerifierError, match=message):
                    await ask(asked, GOOD)
    sent = server.requests[0]
    assert [each["instructions"] for each in sent["questions"]] == ["Is it right?", "How sound is it?"]
    assert "sent on the second of May" in sent["input"]
    assert "never speaks to you" in sent["input"]
    assert asked.tally.usage.cached_tokens == 12


async def test_transformers_decision_pipeline_decides(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", reason="needs the extra counterplay[train]")
    decider = PipelineDecider(transformers.pipeline("decision", model=str(MODEL)))
    asked = TypedJudge(decider, questions=[Question("Is it right?"), SCALE])
    score = await ask(asked, GOOD)
    assert 0 < score.value < 1
    assert score == await ask(asked, GOOD)
    assert score.value != (await ask(asked, attempt(looked("18", "lost"), GOOD.steps[1]))).value
    assert asked.tally.calls == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Question("Why?", options=("yes",), values=(1.0,)),
        lambda: Question("Why?", options=("yes", "Yes")),
        lambda: Question("Why?", values=(2.0, 0.0)),
        lambda: Question(" "),
        lambda: Question.scale("How?", ["only"]),
        lambda: TypedJudge("m", questions=[]),
        lambda: TypedJudge(lambda messages, schema: "", top_logprobs=0),
    ],
)
def test_questions_that_can_t_be_answered_are_refused(make):
    with pytest.raises(UserError):
        make()
