"""Ensembles, critics, criteria out of failures, judges with tools, and judges by name."""

import asyncio
import json
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import ask, ask_all
from counterplay.core.nouns import Source, ToolSpec, Trace
from counterplay.verifiers.check import check
from counterplay.verifiers.judges import ChatModel, Criteria, Criterion, Critic, Ensemble, Judge, Siblings, TypedJudge, derive_criteria
from counterplay.verifiers.judges.ensemble import aclose
from counterplay.verifiers.judges.spec import from_spec
from tests.replay.loopback import Loopback, completion
from tests.verifiers.judging import GOOD, answers, attempt, comparing, looked, question, said, verdict

ADD = ToolSpec.function("add", "Add numbers", {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}})


def constant(score, name):
    def model(messages, schema):
        return verdict(score, f"{name} says so")

    model.name = name
    return model


@pytest.mark.parametrize(("rule", "value"), [("mean", 0.5), ("min", 0.2)])
async def test_an_ensemble_combines_and_keeps_the_disagreement(rule, value):
    ensemble = Ensemble([Judge(constant(score, name)) for score, name in ((0.2, "a"), (0.8, "b"), (0.5, "c"))], rule=rule)
    score = await ask(ensemble, GOOD)
    assert score.value == pytest.approx(value)
    assert score.reason == "spread 0.60; judge(a) 0.20 a says so; judge(b) 0.80 b says so; judge(c) 0.50 c says so"
    assert score.verifier == f"{rule}(judge(a), judge(b), judge(c))"


async def test_an_ensemble_speaks_only_where_all_members_do():
    ensemble = Ensemble([Judge(constant(0.2, "a")), Judge(lambda messages, schema: "hm")])
    with pytest.raises(VerifierError, match="no judgement that can be read"):
        await ask(ensemble, GOOD)
    silent = Ensemble([Judge(constant(0.2, "a")), lambda trajectory: None])
    assert await ask(silent, GOOD) is None


async def test_an_ensemble_of_siblings_is_asked_in_batches():
    children = [attempt(looked("1", words)) for words in ("good", "poor")]
    with Loopback(default=comparing({"good": 0.9, "poor": 0.1})) as server:
        model = ChatModel("wise", base_url=server.base_url)
        members = [Siblings(model, seed=seed, orders=1) for seed in range(2)]
        scores = await ask_all(Ensemble(members), children)
        await model.aclose()
    assert [score.value for score in scores] == [0.9, 0.1]
    assert len(server.requests) == 2
    assert Ensemble(members).fingerprint != Ensemble(members[:1]).fingerprint


def critique(step, problem="wrong date", advice="look it up again"):
    return json.dumps({"problem": problem, "first_wrong_step": step, "advice": advice})


async def test_a_critic_names_the_first_wrong_step_and_teaches():
    with answers(critique(1), critique(-1, "", ""), critique(0)) as server:
        async with Critic(ChatModel("wise", base_url=server.base_url)) as critic:
            assert await critic(GOOD) == "Step 1 was wrong: wrong date Instead: look it up again"
            assert await critic(GOOD) == ""
            assert await critic.first_error(GOOD) == 0


@pytest.mark.parametrize("step", [2, -2, 1.0, "1", None, True])
async def test_a_critic_that_names_no_step_there_is_is_an_error(step):
    asked = []

    def model(messages, schema):
        asked.append(messages[-1]["content"])
        return critique(step)

    with pytest.raises(VerifierError):
        await Critic(model).find(GOOD)
    assert "from -1 to 1" in asked[1]


async def test_a_critic_can_t_blame_a_step_that_it_was_not_shown():
    long = attempt(*(looked(str(i), "x" * 400) for i in range(100)))
    with pytest.raises(VerifierError, match="step 50 was not shown whole"):
        await Critic(lambda messages, schema: critique(50), max_chars=8000).find(long)
    for named, first_wrong in ((99, 99), (-1, None)):
        critic = Critic(lambda messages, schema, named=named: critique(named), max_chars=8000)
        assert (await critic.find(long)).step == first_wrong
        with pytest.raises(VerifierError, match="were not shown whole"):
            await critic.first_error(long)
    assert await Critic(lambda messages, schema: critique(1), max_chars=8000).first_error(long) == 1


async def test_lessons_of_a_critic_reach_the_policy_in_a_search():
    from counterplay.core.budget import Budget
    from counterplay.core.nouns import Message, Proposal
    from counterplay.search.lats import lats

    prompts = []

    class Policy:
        async def propose(self, state, n):
            prompts.append(state.prompt[-1].content_text)
            return [Proposal(Message.assistant(f"{len(prompts)} {i}")) for i in range(n)]

    class World:
        async def step(self, state, action):
            return said(action.content_text, terminated=bool(state.steps))

    critic = Critic(lambda messages, schema: critique(0, "too hasty", "look first"))
    judge = Judge(lambda messages, schema: verdict(0.1))
    await lats(attempt(), Policy(), World(), judge, Budget(), num_iterations=2, num_actions=2, reflect=critic)
    assert [text for text in prompts[:2] if "hasty" in text] == [], "the first line knows of no lesson"
    assert "- Step 0 was wrong: too hasty Instead: look first" in prompts[2]


DERIVED = {"criteria": [{"name": "checks_dates", "text": "Dates are looked up."}, {"name": "answers", "text": "It answers."}]}


def racing(seen):
    def model(messages, schema):
        seen.append(messages[1]["content"])
        if "mistakes" in schema["properties"]:
            return json.dumps({"mistakes": ["It did not look up the date.", "It stopped\nearly."]})
        return json.dumps(DERIVED)

    model.name = "racer"
    return model


async def test_criteria_are_derived_from_failures_and_the_same_from_the_same():
    failed = [attempt(said(f"no idea {i}")) for i in range(5)]
    traces = [Trace(str(i), trajectory, Source("test")) for i, trajectory in enumerate(failed)]
    seen, again = [], []
    criteria = await derive_criteria(traces, racing(seen), limit=3)
    assert criteria == await derive_criteria(failed[::-1], racing(again), limit=3)
    assert sorted(seen) == sorted(again)
    assert len(seen) == 4
    assert seen[-1].count("- It did not look up the date.\n- It stopped early.") == 3
    assert [each.name for each in criteria] == ["checks_dates", "answers"]
    assert criteria.source.startswith("AutoRace by racer from 3 failed traces")
    assert Criteria.parse(criteria.to_toml()) == criteria
    judged = Judge(lambda messages, schema: json.dumps({"reason": "r", "scores": {"checks_dates": 1, "answers": 0}}), criteria=criteria)
    assert (await ask(judged, GOOD)).value == 0.5


@pytest.mark.parametrize("rows", [[], [{"name": "Not Allowed", "text": "x"}], [{"name": "a", "text": ""}], DERIVED["criteria"] * 2])
async def test_derived_criteria_that_are_none_are_an_error(rows):
    def model(messages, schema):
        return json.dumps({"mistakes": ["x"]} if "mistakes" in schema["properties"] else {"criteria": rows})

    with pytest.raises(VerifierError):
        await derive_criteria([GOOD], model)
    with pytest.raises(UserError):
        await derive_criteria([], model)


NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,9}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.dictionaries(NAMES, TEXTS, min_size=1, max_size=3), TEXTS)
@example({"a": 'delete \x7f, quote " and \\, line\n'}, "\x00")
def test_criteria_survive_toml(rows, source):
    criteria = Criteria(tuple(Criterion(name, text, len(name) / 2) for name, text in rows.items()), source)
    assert Criteria.parse(criteria.to_toml()) == criteria


@pytest.mark.parametrize(
    "text",
    [
        "",
        "criterion = 3",
        "[[criterion]]\nname = 'a'",
        "[[criterion]]\nname = 'a'\ntext = 'b'\nweigth = 2",
        "[[criterion]]\nname = 'a'\ntext = 'b'\nweight = 0",
        "[[criterion]]\nname = 'a'\ntext = 'b'\nweight = true",
        "[[criterion]]\nname = 'a b'\ntext = 'b'",
        "[[criterion]]\nname = 'a'\ntext = 'b'\n[[criterion]]\nname = 'a'\ntext = 'c'",
        "no toml",
    ],
)
def test_criteria_files_that_are_none_are_refused(text, tmp_path):
    (tmp_path / "criteria.toml").write_text(text)
    with pytest.raises(UserError):
        Criteria.from_toml(tmp_path / "criteria.toml")
    with pytest.raises(UserError, match=r"missing\.toml"):
        Criteria.from_toml(tmp_path / "missing.toml")


def calling(*calls):
    return completion(None, calls=[(f"call_{at}", name, arguments) for at, (name, arguments) in enumerate(calls)])


async def test_a_judge_calls_tools_before_it_judges():
    threads = []

    def add(a, b):
        threads.append(threading.current_thread())
        return {"sum": a + b}

    async def slow(a, b):
        await asyncio.sleep(0)
        return str(a - b)

    take = ToolSpec.function("take", "Subtract", {"type": "object"})
    first = calling(("add", '{"a": 2, "b": 3}'), ("take", '{"a": 2, "b": 3}'), ("add", "{}"), ("gone", "{}"), ("add", "[]"))
    with Loopback(first, completion("?"), completion(verdict(1))) as server:
        async with Judge(ChatModel("wise", base_url=server.base_url), tools=[(ADD, add), (take, slow)]) as judge:
            assert (await ask(judge, GOOD)).value == 1.0
            assert judge.tally.calls == 3
    results = [message["content"] for message in server.requests[1]["messages"] if message["role"] == "tool"]
    assert results[:2] == ['{"sum":5}', "-1"]
    assert "TypeError" in results[2]
    assert results[3:] == ["Error: there is no tool 'gone'", "Error: the arguments are not a JSON object"]
    assert [tool["function"]["name"] for tool in server.requests[0]["tools"]] == ["add", "take"]
    assert threads[0] is not threading.main_thread()
    repaired = server.requests[2]["messages"]
    assert repaired[:-2] == server.requests[1]["messages"], "the repair follows on what was said, results and all"
    assert repaired[-2]["content"] == "?"
    assert server.requests[2]["tool_choice"] == "none"


async def test_calls_of_tools_are_bounded():
    made = []
    with Loopback(default=lambda _: calling(("add", '{"a": 1, "b": 1}'), ("add", '{"a": 1, "b": 2}'))) as server:
        judge = Judge(ChatModel("wise", base_url=server.base_url), tools=[(ADD, lambda a, b: made.append((a, b)))], max_tool_calls=3)
        async with judge:
            with pytest.raises(VerifierError, match="no judgement that can be read"):
                await ask(judge, GOOD)
    assert len(made) == 3
    assert len(server.requests) == 4
    last = [message["content"] for message in server.requests[2]["messages"] if message["role"] == "tool"][-1]
    assert "no calls are left" in last
    assert [request.get("tool_choice") for request in server.requests] == [None, None, "none", "none"]


def test_a_function_can_t_be_given_tools():
    with pytest.raises(UserError, match="a ChatModel"):
        Judge(lambda messages, schema: "", tools=[(ADD, max)])


def test_specs_name_judges(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / "criteria.toml").write_text("[[criterion]]\nname = 'a'\ntext = 'b'\n")
    (tmp_path / "questions.txt").write_text("Is it right?\n\nIs it done?\n")
    (tmp_path / "answers.json").write_text('{"task": "answer"}')
    plain = from_spec("judge:org/model:free")
    assert (plain.mode, plain.model.model, plain.name) == ("outcome", "org/model:free", "judge(org/model:free)")
    full = from_spec(
        f"judge:m?mode=step&criteria={tmp_path}/criteria.toml&samples=3&temperature=0.5&formal=true&seed=7&max_chars=9000"
        f"&checklist=toulmin&reference={tmp_path}/answers.json&base_url=http://127.0.0.1:1/v1"
    )
    assert (full.mode, full.samples, full.seed, len(full.questions), full.reference) == ("step", 3, 7, 6, {"task": "answer"})
    assert (full.renderer.formal, full.renderer.max_chars, full.model.base_url) == (True, 9000, "http://127.0.0.1:1/v1")
    assert [each.name for each in full.criteria] == ["a"]
    assert isinstance(from_spec("judge:m?mode=siblings&by=task&orders=1"), Siblings)
    typed = from_spec(f"judge:m?typed=true&mode=progress&questions={tmp_path}/questions.txt", base_url="http://127.0.0.1:2/v1")
    assert isinstance(typed, TypedJudge)
    assert [each.text for each in typed.questions] == ["Is it right?", "Is it done?"]
    assert typed.decider.model.base_url == "http://127.0.0.1:2/v1"
    both = from_spec("judge:a,b?rule=min")
    assert (both.rule, [member.model.model for member in both.members]) == ("min", ["a", "b"])


async def test_judges_by_name_ask_count_and_are_closed():
    with Loopback(default=lambda request: completion(verdict(0.2 if request["model"] == "a" else 0.8))) as server:
        ensemble = from_spec(f"judge:a,b?base_url={server.base_url}", price=lambda usage: usage.tokens / 100)
        assert (await ask(ensemble, GOOD)).value == 0.5
        assert [member.tally.usage.cost_usd for member in ensemble.members] == [0.15, 0.15]
        clients = [member.model._client for member in ensemble.members]
        await aclose(ensemble)
        assert all(client.is_closed() for client in clients)


@pytest.mark.parametrize(
    "spec",
    [
        *(
            "judge:",
            "judge:?mode=step",
            "judge:a,",
            "openai:m",
            "judge:m?mode=whole",
            "judge:m?mood=step",
            "judge:m?rule=min",
            "judge:m?samples=x",
        ),
        *("judge:m?mode=siblings&typed=true", "judge:m?mode=siblings&samples=2", "judge:m?typed=maybe", "judge:m?formal=1"),
        *("judge:m?seed=1&seed=2", "judge:m?reference=/nowhere.json", "judge:m?checklist=/nowhere", "judge:a,b?rule=max"),
    ],
)
def test_specs_that_mean_nothing_are_refused(spec, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with pytest.raises(UserError):
        from_spec(spec)


def test_a_judge_without_a_key_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY or a base_url"):
        Judge("m")


async def test_the_question_is_the_last_thing_said():
    with answers(verdict(1)) as server:
        async with Judge(ChatModel("m", base_url=server.base_url)) as judge:
            await ask(judge, GOOD)
    assert question(server.requests[0]).rpartition("<</")[2].count("Judge the outcome") == 1


@pytest.mark.parametrize("mode", ["outcome", "step", "progress"])
async def test_a_judge_is_a_conforming_verifier(mode):
    def model(messages, schema):
        (name,) = schema["properties"]["scores"]["required"]
        return verdict(len(messages[1]["content"]) % 10 / 10, name=name)

    report = await check(Judge(model, mode=mode), [GOOD, attempt(said("no"))])
    assert report.problems == report.warnings == ()
    assert report.opinions > 0
