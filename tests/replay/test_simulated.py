"""Simulation: the nearest recorded call, a language model as the world, the rules that both keep to, and how true they are."""

import ast
import json
import operator
from dataclasses import replace

import pytest

from counterplay.core.effects import Effect
from counterplay.core.errors import PolicyError, UserError
from counterplay.core.journal import JournaledEnvironment, MemoryJournal
from counterplay.core.nouns import Grade, Message, Source, Step, ToolCall, ToolSpec, Trace, Trajectory
from counterplay.core.protocols import Environment, fingerprint_of
from counterplay.replay.capabilities import capabilities
from counterplay.replay.holdout import agreement, groups_of, holdout, is_error
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.nearest import Recollection, field_weights, recorded_calls, similarity
from counterplay.replay.recorded import RecordedEnvironment
from counterplay.replay.simulated import NearestRecorded, Simulation
from counterplay.replay.simulators import simulation_from_spec
from counterplay.replay.world_model import Form, WorldModel
from tests.replay.loopback import Loopback, completion
from tests.replay.shelf import Shelf, act, results, walk

EFFECTS = {
    name: Effect.parse(text)
    for name, text in {
        "look": "read(item:{id})",
        "search": "read(items)",
        "put": "write(item:{id})",
        "mail": "external",
        "calc": "pure",
        "note": "read(notes)",
    }.items()
}
START = Trajectory((), (Message.user("go"),))


def log(*pairs, prompt="go"):
    """A trajectory of single calls: (name, arguments, result)."""
    steps = [
        Step(act((name, arguments), ids=f"s{i}."), (Message.tool(result, f"s{i}.0"),), grades=(Grade.EXACT,))
        for i, (name, arguments, result) in enumerate(pairs)
    ]
    return Trajectory((), (Message.user(prompt),), tuple(steps))


def call(name, **arguments):
    return ToolCall("x", name, json.dumps(arguments))


async def answer(environment, state, *calls):
    step = await environment.step(state, act(*calls))
    return [message.content_text for message in step.observations] or step.error


class TestSimilarity:
    def test_equal_is_one_and_nothing_else_is(self):
        wholes = [{"a": 1}, {"a": "Hello World"}, {"a": [1, 2]}, {"a": {"b": True}}, {"a": 1.0}]
        assert [similarity(each, each, {}) for each in wholes] == [1.0] * 5
        others = [({"a": "hello world"}, {"a": "Hello World"}), ({"a": [1, 2]}, {"a": [2, 1]}), ({"a": True}, {"a": 1})]
        assert all(similarity(left, right, {}) < 1.0 for left, right in others)

    def test_numbers_by_their_distance(self):
        near, far = similarity({"n": 100}, {"n": 99}, {}), similarity({"n": 100}, {"n": 10}, {})
        assert near == pytest.approx(0.99)
        assert far == pytest.approx(0.1)
        assert similarity({"n": 5}, {"n": -5}, {}) == 0.0

    @pytest.mark.parametrize("name", ["id", "order_id", "orderId", "flight_number", "zip"])
    def test_numbers_that_identify_are_names(self, name):
        assert similarity({name: 1000}, {name: 1001}, {}) < 0.5
        assert similarity({name: 1000}, {name: 1000}, {}) == 1.0

    def test_texts_by_words_or_letters_and_ids_hardly(self):
        one = similarity({"q": "flights from Boston to Seattle"}, {"q": "flights from Seattle to Boston"}, {})
        assert one == pytest.approx(0.99)
        assert 0.2 < similarity({"q": "cheap flights to Boston"}, {"q": "hotels in Boston"}, {}) < 0.9
        assert similarity({"id": "mia_li_3668"}, {"id": "mia_li_3669"}, {}) < 0.5

    def test_a_missing_field_is_unlike(self):
        assert similarity({"a": 1, "b": 2}, {"a": 1}, {}) == 0.5
        assert similarity(None, {"a": 1}, {}) == 0.0
        assert similarity({}, {}, {}) == 1.0

    def test_a_field_that_tells_nothing_weighs_little(self):
        pairs = [("look", {"id": i % 5, "verbose": i % 2}, f"item {i % 5}") for i in range(20)]
        weights = field_weights(list(recorded_calls([log(*pairs)], EFFECTS)))
        assert weights["id"] == pytest.approx(1.0)
        assert weights["verbose"] < 0.1
        assert similarity({"id": 1, "verbose": 0}, {"id": 1, "verbose": 1}, weights) > 0.95
        assert similarity({"id": 1, "verbose": 0}, {"id": 2, "verbose": 0}, weights) < 0.6

    def test_of_what_the_log_says_nothing_fields_weigh_alike(self):
        assert field_weights(list(recorded_calls([log(("look", {"id": 1, "x": 2}, "a"))], EFFECTS))) == {"id": 1.0, "x": 1.0}


class TestNearest:
    def test_the_same_call_comes_first_then_the_more_alike(self):
        texts = [("search", {"q": q}, q.upper()) for q in ("red shoes for men", "blue shoes for men", "green tea")]
        found = Recollection([log(*texts)], EFFECTS).nearest(START, call("search", q="blue shoes for men"), k=3)
        assert [one.call.result.content_text for one in found] == ["BLUE SHOES FOR MEN", "RED SHOES FOR MEN", "GREEN TEA"]
        assert found[0].similarity == 1.0 > found[1].similarity > found[2].similarity

    def test_equal_writes_before_it_are_preferred(self):
        runs = [
            log(("look", {"id": 1}, "empty"), ("put", {"id": 1}, "ok"), ("look", {"id": 1}, "full")),
            log(("look", {"id": 1}, "empty"), prompt="other"),
        ]
        recollection = Recollection(runs, EFFECTS)
        after = log(("put", {"id": 1}, "ok"), prompt="mine")
        assert recollection.nearest(START, call("look", id=1))[0].call.result.content_text == "empty"
        found = recollection.nearest(after, call("look", id=1))[0]
        assert (found.call.result.content_text, found.same_past, found.score) == ("full", True, 1.0)
        elsewhere = log(("put", {"id": 2}, "ok"), ("put", {"id": 1}, "no room"), prompt="mine")
        found = recollection.nearest(elsewhere, call("look", id=1))[0]
        assert (found.call.result.content_text, found.same_past) == ("empty", False)  # the more frequent
        assert found.score == pytest.approx(0.9)

    def test_a_run_that_saw_the_same_is_believed(self):
        runs = [log(("note", {}, mood), ("look", {"id": 1}, f"{mood} item"), prompt=str(i)) for i, mood in enumerate(["a", "b", "b"])]
        seen = log(("note", {}, "a"), prompt="mine")
        assert Recollection(runs, EFFECTS).nearest(seen, call("look", id=1))[0].call.result.content_text == "a item"
        assert Recollection(runs, EFFECTS).nearest(START, call("look", id=1))[0].call.result.content_text == "b item"

    def test_a_tool_that_always_says_the_same_needs_no_arguments(self):
        runs = [log(*[("note", {"text": text}, "") for text in ("a b", "c d", "e f", "g h", "i j")])]
        assert Recollection(runs, EFFECTS).nearest(START, call("note", text="quite another"))[0].score > 0.8
        few = Recollection([log(("note", {"text": "a b"}, ""), ("note", {"text": "c d"}, ""))], EFFECTS)
        assert few.nearest(START, call("note", text="quite another"))[0].score < 0.5

    def test_tools_do_not_answer_for_each_other(self):
        assert Recollection([log(("look", {"id": 1}, "a"))], EFFECTS).nearest(START, call("search", id=1)) == []

    def test_many_calls_are_searched_by_what_they_share(self):
        pairs = [("look", {"id": i, "shop": i % 7}, f"item {i}") for i in range(2000)]
        found = Recollection([log(*pairs)], EFFECTS).nearest(START, call("look", id=1777, shop=6, more=1))
        assert found[0].call.result.content_text == "item 1777"


class TestRules:
    LOG = log(("look", {"id": 1}, "one"), ("put", {"id": 1}, "ok"), ("calc", {"x": 1}, "2"), ("mail", {"to": "a"}, "sent"))

    async def test_all_it_says_is_simulated(self):
        step = await NearestRecorded([self.LOG], effects=EFFECTS).step(START, act(("look", {"id": 1}), ("calc", {"x": 1})))
        assert results(START.extend(step)) == ["one", "2"]
        assert step.grades == (Grade.SIMULATED, Grade.SIMULATED)
        assert [message.tool_call_id for message in step.observations] == ["c0", "c1"]

    async def test_external_tools_are_never_simulated(self):
        simulation = NearestRecorded([self.LOG], effects=EFFECTS, simulate_writes=True)
        assert "mail is external" in await answer(simulation, START, ("mail", {"to": "a"}))
        undeclared = NearestRecorded([log(("secret", {}, "x"))], simulate_writes=True)
        assert "not declared" in await answer(undeclared, START, "secret")

    async def test_writes_only_where_asked(self):
        assert "put is a write" in await answer(NearestRecorded([self.LOG], effects=EFFECTS), START, ("put", {"id": 1}))
        assert await answer(NearestRecorded([self.LOG], effects=EFFECTS, simulate_writes=True), START, ("put", {"id": 1})) == ["ok"]

    async def test_one_call_that_has_no_answer_ends_the_branch_and_nothing_is_half_said(self):
        step = await NearestRecorded([self.LOG], effects=EFFECTS).step(START, act(("look", {"id": 1}), ("look", {"id": "unheard of"})))
        assert (step.observations, step.truncated) == ((), True)
        assert "likeness" in step.error

    async def test_users_are_not_simulated(self):
        step = await NearestRecorded([self.LOG], effects=EFFECTS).step(START, Message.assistant("hello"))
        assert step.truncated
        assert "user" in step.error

    async def test_a_gate_of_measured_fidelity(self):
        gated = NearestRecorded([self.LOG], effects=EFFECTS, fidelity={"look": 0.95, "calc": 0.2}, min_fidelity=0.9)
        assert await answer(gated, START, ("look", {"id": 1})) == ["one"]
        assert "calc is right 20% of the time, wanted 90%" in await answer(gated, START, ("calc", {"x": 1}))
        unmeasured = NearestRecorded([self.LOG], effects=EFFECTS, min_fidelity=0.9)
        assert "was not measured" in await answer(unmeasured, START, ("look", {"id": 1}))

    async def test_likeness_decides(self):
        runs = [log(("search", {"q": "red shoes for men"}, "12 found"))]
        asked = ("search", {"q": "red shoes for women"})
        assert "likeness" in await answer(NearestRecorded(runs, effects=EFFECTS), START, asked)
        assert await answer(NearestRecorded(runs, effects=EFFECTS, min_likeness=0.5), START, asked) == ["12 found"]

    async def test_behind_a_recording_it_only_gets_what_the_log_can_not_say(self):
        runs = [log(("look", {"id": 1}, "one"), ("put", {"id": 1}, "ok")), log(("look", {"id": 2}, "two"))]
        simulation = NearestRecorded(runs, effects=EFFECTS)
        environment = RecordedEnvironment(runs[:1], effects=EFFECTS, fallback=simulation)
        branch = await walk(environment, START, act(("look", {"id": 1})), act(("look", {"id": 2})))
        assert [step.grade for step in branch.steps] == [Grade.EXACT, Grade.SIMULATED]
        assert branch.grade == Grade.SIMULATED
        assert isinstance(simulation, Environment)
        assert capabilities(environment).forks

    async def test_what_follows_a_simulated_write_is_simulated(self):
        runs = [log(("put", {"id": 1}, "ok"), ("look", {"id": 1}, "full")), log(("put", {"id": 1, "n": 2}, "ok"))]
        environment = RecordedEnvironment(
            runs[:1], effects=EFFECTS, fallback=NearestRecorded(runs, effects=EFFECTS, simulate_writes=True, min_likeness=0.5)
        )
        branch = await walk(environment, START, act(("put", {"id": 1, "n": 2})), act(("look", {"id": 1})))
        assert [step.grade for step in branch.steps] == [Grade.SIMULATED, Grade.SIMULATED]

    async def test_the_fingerprint_covers_what_decides(self):
        made = [
            NearestRecorded([self.LOG], effects=EFFECTS),
            NearestRecorded([self.LOG], effects=EFFECTS, min_likeness=0.5),
            NearestRecorded([self.LOG], effects=EFFECTS, simulate_writes=True),
            NearestRecorded([self.LOG], effects={**EFFECTS, "put": Effect("read")}),
            NearestRecorded([log(("look", {"id": 1}, "uno"))], effects=EFFECTS),
            NearestRecorded([self.LOG], effects=EFFECTS, min_fidelity=0.5, fidelity={"look": 1.0}),
        ]
        assert len({fingerprint_of(one) for one in made}) == len(made)
        assert fingerprint_of(made[0]) == fingerprint_of(NearestRecorded([self.LOG], effects=EFFECTS))

    async def test_effects_come_from_the_logged_tools_too(self):
        spec = ToolSpec.function("look", "", {}, Effect("read"))
        run = replace(log(("look", {"id": 1}, "one")), tools=(spec,))
        assert await answer(NearestRecorded([run]), START, ("look", {"id": 1})) == ["one"]


OPERATORS = {ast.Add: operator.add, ast.Mult: operator.mul, ast.Sub: operator.sub}


def evaluate(node):
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](evaluate(node.left), evaluate(node.right))
    return node.value


def calculator(request):
    """A server that works out what it is asked: the expression in the last call of the question."""
    question = next(m["content"] for m in reversed(request["messages"]) if m["content"].startswith("# The tool"))
    asked = question.rpartition("# The call to answer\n")[2]
    arguments = json.loads(asked[asked.index("(") + 1 : -1])
    return completion(json.dumps({"value": evaluate(ast.parse(arguments["x"], mode="eval").body)}))


class TestWorldModel:
    LOG = log(*[("calc", {"x": f"{n}+1"}, json.dumps({"value": n + 1})) for n in range(6)], ("look", {"id": 1}, '{"error": "gone"}'))

    async def test_a_server_that_knows_the_rule_answers_what_was_never_recorded(self):
        with Loopback(default=calculator) as server:
            model = WorldModel([self.LOG], "world", base_url=server.base_url, effects=EFFECTS)
            step = await model.step(START, act(("calc", {"x": "20*2+2"})))
            await model.aclose()
        assert [message.content_text for message in step.observations] == ['{"value": 42}']
        assert step.grades == (Grade.SIMULATED,)
        assert model.used.input_tokens == 10
        assert server.requests[0]["temperature"] == 0.0

    async def test_the_question_holds_tool_examples_session_and_call(self):
        asked = []
        spec = ToolSpec.function("calc", "Works it out.", {"type": "object"}, Effect("pure"))

        def complete(messages):
            asked.append(messages)
            return '{"value": 3}'

        model = WorldModel([self.LOG], complete, effects=EFFECTS, tools=[spec], examples=2)
        state = log(("look", {"id": 7}, "seven"), prompt="mine")
        assert await answer(model, state, ("calc", {"x": "2+1"})) == ['{"value": 3}']
        system, question = (message["content"] for message in asked[0])
        assert "stand in for the tools" in system
        assert spec.wire in question
        assert question.count('calc({"x":') == 3  # two examples and the call itself
        assert question.index('calc({"x":"2+1"})') < question.index("# This session so far")
        assert "seven" in question
        assert question.endswith('# The call to answer\ncalc({"x":"2+1"})')

    async def test_calls_of_one_action_see_each_other(self):
        asked = []

        def complete(messages):
            asked.append(messages[-1]["content"])
            return '{"value": 1}'

        await answer(WorldModel([self.LOG], complete, effects=EFFECTS), START, ("calc", {"x": "1"}), ("calc", {"x": "2"}))
        assert "# This session so far" not in asked[0]
        assert '# This session so far\ncalc({"x":"1"})\n{"value": 1}' in asked[1]

    async def test_a_wrong_form_is_asked_for_again_and_said_why(self):
        answers = iter(["It is three.", '{"result": 3}', '```json\n{"value": 3}\n```'])
        asked = []

        async def complete(messages):
            asked.append(messages)
            return next(answers)

        assert await answer(WorldModel([self.LOG], complete, effects=EFFECTS), START, ("calc", {"x": "2+1"})) == ['{"value": 3}']
        assert "it is text, the recorded results are a JSON object" in asked[1][-1]["content"]
        assert "it lacks value; it has result in addition" in asked[2][-1]["content"]

    async def test_then_there_is_no_answer(self):
        model = WorldModel([self.LOG], lambda messages: "no idea", effects=EFFECTS, retries=1)
        assert "wrong form" in await answer(model, START, ("calc", {"x": "2+1"}))

    async def test_it_is_deterministic_and_its_seeds_differ_by_question(self):
        async def seeds():
            with Loopback(default=calculator) as server:
                model = WorldModel([self.LOG], "world", base_url=server.base_url, effects=EFFECTS, seed=3)
                await model.step(START, act(("calc", {"x": "1+1"})))
                await model.step(START, act(("calc", {"x": "2+2"})))
                await model.aclose()
            return [request["seed"] for request in server.requests], server.bodies

        assert await seeds() == await seeds()
        first, _ = await seeds()
        assert first[0] != first[1]

    async def test_a_journal_answers_the_second_time(self):
        asked = []

        def complete(messages):
            asked.append(messages)
            return '{"value": 1}'

        journal = MemoryJournal()
        for _ in range(2):
            environment = JournaledEnvironment(WorldModel([self.LOG], complete, effects=EFFECTS), journal)
            step = await environment.step(START, act(("calc", {"x": "1"})))
            assert step.grades == (Grade.SIMULATED,)
        assert len(asked) == 1

    async def test_a_server_that_fails_is_a_failure_and_no_answer(self):
        with Loopback(default=lambda request: (500, b"down")) as server:
            model = WorldModel([self.LOG], "world", base_url=server.base_url, effects=EFFECTS)
            model.asker.model.retries = 0
            with pytest.raises(PolicyError):
                await model.step(START, act(("calc", {"x": "1+1"})))
            await model.aclose()

    async def test_the_session_is_cut_from_the_front(self):
        asked = []

        def complete(messages):
            asked.append(messages[-1]["content"])
            return '{"value": 1}'

        state = log(*[("look", {"id": n}, f"result {n}") for n in range(100)], prompt="mine")
        await answer(WorldModel([self.LOG], complete, effects=EFFECTS, max_session_chars=300), state, ("calc", {"x": "1"}))
        session = asked[0].partition("# This session so far")[2]
        assert "result 99" in session
        assert "result 50" not in session

    def test_the_form_of_results(self):
        form = Form.of(['{"id": 1, "name": "a"}', '{"id": 2, "name": "b", "note": "x"}', '{"error": "none"}', "Error: no user"])
        assert [form.complaint(text) for text in ('{"id":3,"name":"c"}', '{"error":"gone"}', "Error: no item")] == ["", "", ""]
        assert "lacks name" in form.complaint('{"id": 3, "note": "x"}')
        assert "colour in addition" in form.complaint('{"id": 3, "name": "c", "colour": "red"}')
        assert "begin with one of: Error:" in form.complaint("Sorry, I can't")
        assert "a JSON array" in form.complaint("[1]")
        rows = Form.of(['[{"a": 1}]', "[]"])
        assert [rows.complaint(text) for text in ("[]", '[{"a": 2}, {"a": 3}]')] == ["", ""]
        assert "lacks a" in rows.complaint('[{"b": 1}]')
        assert Form.of([]).complaint("anything") == ""


def traced(number, trajectory, task=None, session=None):
    return Trace(f"t{number}", trajectory, Source("test"), task=task, session=session)


class TestHoldout:
    def make(self, shown):
        return NearestRecorded(shown, effects=EFFECTS)

    def test_runs_that_share_a_task_a_session_or_all_actions_stay_together(self):
        one, two, three = (log(("look", {"id": n}, str(n))) for n in (1, 2, 3))
        traces = [
            traced(0, one, task="a"), traced(1, two, task="a"), traced(2, three, session="s"), traced(3, two, task="b", session="s"),
            traced(4, log(("look", {"id": 9}, "9")), task="c"),
        ]  # fmt: skip
        groups = groups_of(traces)
        assert groups[0] == groups[1] == groups[2] == groups[3] != groups[4]  # 1 and 3 did the same, 2 and 3 share a session
        apart = groups_of(traces[:2], within_task=True)
        assert apart[0] != apart[1]

    async def test_a_twin_is_never_in_the_training_half(self):
        twins = [traced(n, log(("look", {"id": 1}, "one"), prompt=str(n)), task=f"t{n}") for n in range(4)]
        other = [traced(n, log(("look", {"id": n}, str(n))), task=f"t{n}") for n in range(10, 14)]
        trials = await holdout([*twins, *other], self.make)
        assert all(trial.got is None for trial in trials)
        with pytest.raises(UserError, match="Nothing could be held out"):
            await holdout(twins, self.make)

    async def test_what_is_held_out_is_compared_in_its_true_prefix(self):
        runs = [
            log(
                ("look", {"id": 1}, "empty"), ("put", {"id": 1, "n": n}, "ok"), ("look", {"id": 1}, "full"), ("look", {"id": n}, f"own {n}")
            )
            for n in range(2, 8)
        ]
        traces = [traced(n, run, task=f"task {n}") for n, run in enumerate(runs)]
        trials = await holdout(traces, lambda shown: NearestRecorded(shown, effects=EFFECTS, min_likeness=1.0))
        first, second, own = ([trial for trial in trials if trial.step == step] for step in (0, 2, 3))
        assert all(trial.got is not None and trial.got.exact for trial in first)
        assert all(trial.got is None for trial in [*second, *own])  # written with other amounts; never seen elsewhere
        assert {trial.tool for trial in trials} == {"look"}  # a write is not asked for
        usual = [trial.baseline.exact for trial in trials if trial.baseline]
        assert sum(usual) == 6  # the most frequent result is right once a run

    async def test_within_a_task_other_attempts_are_known(self):
        runs = [log(("look", {"id": 1}, "one"), ("look", {"id": n}, str(n))) for n in (5, 6)]
        traces = [traced(n, run, task="same") for n, run in enumerate(runs)]
        trials = await holdout(traces, self.make, within_task=True)
        assert [trial.got is not None and trial.got.exact for trial in trials] == [True, False, True, False]

    async def test_a_draw_is_repeatable(self):
        runs = [traced(n, log(*[("look", {"id": m}, str(m)) for m in range(n, n + 9)]), task=str(n)) for n in range(10)]
        some = await holdout(runs, self.make, max_calls=20)
        assert len(some) == 20
        assert some == await holdout(runs, self.make, max_calls=20)

    async def test_a_simulator_that_is_right_is_said_to_be(self):
        with Loopback(default=calculator) as server:
            runs = [traced(n, log(("calc", {"x": f"{n}*3"}, json.dumps({"value": n * 3}))), task=str(n)) for n in range(6)]
            trials = await holdout(runs, lambda shown: WorldModel(shown, "world", base_url=server.base_url, effects=EFFECTS), folds=2)
        assert all(trial.got.exact for trial in trials)
        assert not any(trial.baseline.exact for trial in trials)

    def test_agreement(self):
        def agree(wanted, got):
            return agreement(Message.tool(wanted, "a"), Message.tool(got, "b"))

        assert agree('{"a": 1, "b": 2}', '{"b":2,"a":1}').exact
        half = agree('{"a": 1, "b": 2}', '{"a": 1, "b": 3}')
        assert (half.exact, half.fields) == (False, 0.5)
        assert agree('[{"a": 1}, {"a": 2}]', '[{"a": 2}]').fields == pytest.approx(2 / 3)
        assert agree("[]", "[1]").fields == 0.0
        assert agree("red blue", "red green").fields == 0.5
        assert not agree("Error: no", '{"a": 1}').errors
        assert is_error(Message.from_openai({"role": "tool", "content": "no", "error": True}))
        assert is_error(Message.tool('{"error": "x"}', "a"))
        assert not is_error(Message.tool('{"error": null}', "a"))


class TestNames:
    def test_simulations_by_name(self):
        run = [log(("look", {"id": 1}, "one"))]
        assert isinstance(simulation_from_spec("nearest", run, effects=EFFECTS, min_likeness=0.7), NearestRecorded)
        assert isinstance(simulation_from_spec("openai:m", run, base_url="http://127.0.0.1:9/v1"), WorldModel)
        assert isinstance(simulation_from_spec("tests.replay.test_simulated:made", run), Simulation)

    @pytest.mark.parametrize("spec", ["", "closest", "openai:", "tests.replay.test_simulated:nothing", "tests.replay.test_simulated:wrong"])
    def test_names_that_mean_nothing(self, spec):
        with pytest.raises(UserError, match="simulation"):
            simulation_from_spec(spec, [])


def made(trajectories, **rules):
    return NearestRecorded(trajectories, **rules)


def wrong(trajectories, **rules):
    return "no simulation"


async def test_in_a_true_world_reads_that_are_simulated_can_be_told_from_executed_ones():
    """The same branch in the world and in a simulation of it: what the simulation says is right here, and still no more than simulated."""
    live = LiveEnvironment(Shelf)
    true = await walk(live, await live.initial(), act(("get", {"name": "a"})), act("total"))
    simulated = await walk(NearestRecorded([true]), await live.initial(), act(("get", {"name": "a"})), act("total"))
    assert results(true) == results(simulated)
    assert (true.grade, simulated.grade) == (Grade.EXECUTED, Grade.SIMULATED)
