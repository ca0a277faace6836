"""Loading, combining and checking verifiers; the outcome and tool-call verifiers against hand-worked trajectories."""

import sys
from dataclasses import replace

import pytest

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import ask
from counterplay.core.nouns import Message, Score, Step, ToolCall, ToolSpec, Trajectory
from counterplay.verifiers import combine, registry
from counterplay.verifiers.check import check
from counterplay.verifiers.outcome import OutcomeReward, outcome
from counterplay.verifiers.packs.tool_calls import ToolCallRules

SCHEMA = {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"], "additionalProperties": False}
TOOL = ToolSpec.function("cancel", "Cancel an order", SCHEMA)


def called(arguments, answer="ok", name="cancel", **flags):
    return Step(Message.assistant(None, [ToolCall("1", name, arguments)]), (Message.tool(answer, "1"),), **flags)


def trajectory(*steps, tools=(TOOL,)):
    return Trajectory(tools, (Message.user("cancel my orders"),), steps)


def test_outcome_speaks_only_of_ends():
    done = trajectory(called('{"order":1}', terminated=True, reward=1.0))
    assert outcome(done).value == 1.0
    assert outcome(trajectory(called('{"order":1}'))) is None
    assert outcome(trajectory()) is None
    assert outcome(trajectory(called('{"order":1}', terminated=True))) is None, "an unknown outcome is not a failure"
    assert outcome(trajectory(called('{"order":1}', truncated=True))).value == 0.0
    assert OutcomeReward(unfinished_is_failure=False)(trajectory(called('{"order":1}', truncated=True))) is None


def test_outcome_reads_a_scale_and_names_clipping():
    scaled = OutcomeReward(low=-1, high=1)
    assert scaled(trajectory(called("{}", terminated=True, reward=0.0))).value == 0.5
    beyond = scaled(trajectory(called("{}", terminated=True, reward=7.0)))
    assert beyond.value == 1.0
    assert "clipped" in beyond.reason


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (called("not json"), "not a JSON object"),
        (called("{}"), "'order' is a required property"),
        (called('{"order":"x"}'), "order: 'x' is not of type 'integer'"),
        (called('{"order":1}', name="refund"), "unknown tool 'refund'"),
        (called('{"order":1}', answer="Error: no such order"), "answered with an error"),
        (called('{"order":1}', answer='{"error": "gone"}'), "answered with an error"),
    ],
)
async def test_tool_call_rules_name_the_violation(step, reason):
    score = await ask(ToolCallRules(), trajectory(called('{"order":9}'), step))
    assert score.value == 0.5
    assert score.reason.startswith("step 1: ")
    assert reason in score.reason


async def test_idle_repetition_is_a_violation_and_a_changed_answer_is_not():
    same = trajectory(called('{"order":1}'), called('{"order": 1}'))
    assert (await ask(ToolCallRules(), same)).value == 0.5
    changed = trajectory(called('{"order":1}'), called('{"order":1}', answer="already cancelled"))
    assert (await ask(ToolCallRules(), changed)).value == 1.0


async def test_without_schemas_only_what_can_be_known_is_checked():
    assert (await ask(ToolCallRules(), trajectory(called('{"anything":1}', name="any"), tools=()))).value == 1.0
    assert (await ask(ToolCallRules(), trajectory(called("{", name="any"), tools=()))).value == 0.0


async def test_combinators_ignore_missing_opinions():
    def half(_):
        return 0.5

    def silent(_):
        return None

    async def sure(_):
        return Score(1.0, "looks right")

    some = trajectory(called('{"order":1}'))
    assert (await combine.all_of(half, silent, sure)(some)).value == 0.5
    assert (await combine.any_of(half, silent, sure)(some)).value == 1.0
    assert (await combine.product(half, half, silent)(some)).value == 0.25
    assert (await combine.first_of(silent, sure, half)(some)).value == 1.0
    assert (await combine.weighted([(half, 1), (sure, 3), (silent, 96)])(some)).value == 0.875
    assert await combine.all_of(silent)(some) is None
    assert await combine.on_finished(half)(some) is None
    assert (await combine.on_prefix(half)(some)).value == 0.5
    named = combine.all_of(half, sure)
    assert named.name == "all_of(half, sure)"


async def test_a_raising_verifier_is_named_and_never_becomes_a_number():
    def broken(_):
        return 1 / 0

    with pytest.raises(VerifierError, match=r"verifier broken failed.*ZeroDivisionError"):
        await combine.all_of(broken)(trajectory())

    def loud(_):
        return 7

    with pytest.raises(VerifierError, match=r"wanted a number in \[0, 1\]"):
        await ask(loud, trajectory())


def test_loading_by_name_and_by_module(tmp_path, monkeypatch):
    assert registry.load("outcome") is outcome
    assert isinstance(registry.load("tool_calls"), ToolCallRules)
    (tmp_path / "house_rules.py").write_text("def polite(trajectory):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert registry.load("house_rules:polite")(trajectory()) == 1.0
    for spec, text in [
        ("outcom", "Did you mean outcome"),
        ("house_rules:polit", "Did you mean polite"),
        ("no_such_module:x", "can't be imported"),
        ("policy:", "wanted policy:FILE.toml"),
        ("judge:", "wanted judge:MODEL"),
        ("policy", "Did you mean policy:FILE.toml"),
        ("polcy", "Did you mean policy:FILE.toml"),
        ("nothing_like_it", "sql, .*policy:FILE.toml, double_entry:FILE.toml, judge:MODEL, prm:FOLDER, implicit-prm:POLICY,REFERENCE, or"),
        ("house_rules:__name__", "a callable"),
    ]:
        with pytest.raises(UserError, match=text):
            registry.load(spec)


async def test_check_finds_fickle_raising_and_upside_down_verifiers():
    good = trajectory(called('{"order":1}', terminated=True, reward=1.0))
    bad = trajectory(called("{}", terminated=True, reward=0.0))
    fine = await check(ToolCallRules(), [good, bad])
    assert fine.problems == ()
    assert fine.separation == 1.0

    answers = iter(range(1000))

    def fickle(_):
        return next(answers) % 2

    assert "must be deterministic" in (await check(fickle, [good])).problems[0]

    def upside_down(t):
        return 0.0 if t.steps and t.steps[-1].reward else 1.0

    report = await check(upside_down, [good, bad])
    assert any("no lower than successes" in warning for warning in report.warnings)

    def brittle(t):
        return t.steps[0].reward or 0.0

    assert "IndexError" in (await check(brittle, [good])).problems[0]


async def test_a_verifier_sees_prefixes_of_growing_length():
    lengths = []

    def spy(t):
        lengths.append(len(t))
        return 1.0

    long = trajectory(*(called(f'{{"order":{i}}}') for i in range(20)), replace(called('{"order":99}'), terminated=True))
    await check(spy, [long], prefixes=4)
    assert sorted(set(lengths)) == [0, 4, 8, 13, 17, 21]
