"""How a live action is matched with a recorded one: as JSON, and through the redaction that the log went through."""

from __future__ import annotations

import json

import pytest

from counterplay.connectors.redaction import Redactor, rules_of
from counterplay.core.nouns import Message, Source, ToolCall, Trace, Trajectory
from counterplay.replay.live import LiveEnvironment, initial
from counterplay.replay.recorded import RecordedEnvironment
from tests.replay.shelf import act, results, spec, walk
from tests.replay.shelf_logs import TOTAL, grades, logged


@pytest.mark.parametrize("arguments", ['{"y":2,\n "x":1}', '{"x": 1.0, "y": 2}', '{"x": 1e0, "y": 2.00}', '{"\\u0078": 1, "y": 20e-1}'])
async def test_papers_5_11_arguments_are_compared_as_json(arguments):
    log = await logged(act(("add", {"x": 1, "y": 2})), TOTAL)
    call = Message.assistant(tool_calls=[ToolCall("q", "add", arguments)])
    for before, grade in ((TOTAL, "reused"), (act(("add", {"y": 2, "x": 1})), "exact")):
        start = log.prefix(0) if grade == "exact" else await walk(RecordedEnvironment([log]), log.prefix(0), before)
        state = await walk(RecordedEnvironment([log]), start, call)
        assert results(state)[-1] == "3"
        assert grades(state)[-1] == grade
        assert state.steps[-1].action == call, "what the agent wrote is kept to the byte"
        assert state.steps[-1].observations[0].tool_call_id == "q"


@pytest.mark.parametrize(
    "arguments", ['{"x": true, "y": 2}', '{"x": "1", "y": 2}', '{"x": 1.5, "y": 2}', '{"x": [1], "y": 2}', '{"x": 1}', "{"]
)
async def test_papers_5_11_what_differs_as_json_is_another_call(arguments):
    log = await logged(act(("add", {"x": 1, "y": 2})), TOTAL)
    step = await RecordedEnvironment([log]).step(log.prefix(0), Message.assistant(tool_calls=[ToolCall("q", "add", arguments)]))
    assert "never called" in step.error


class Vault:
    """A world whose tool arguments and answers hold what a store redacts."""

    tools = (spec("find", "read(user:{email})"), spec("rename", "write(user:{email})"), spec("all", "read(user)"))
    prompt = (Message.user("Help ann@example.org and bob@example.org."),)

    def __init__(self) -> None:
        self.names = {"ann@example.org": "Ann", "bob@example.org": "Bob"}

    def call(self, name, arguments) -> str:
        if name == "rename":
            self.names[arguments["email"]] = arguments["name"]
        return json.dumps(self.names if name == "all" else {arguments["email"]: self.names[arguments["email"]]})


def on(name: str, user: str, /, **more: str) -> Message:
    return act((name, {"email": f"{user}@example.org", **more}))


REDACT = Redactor(b"salt", rules_of(("email",)))


async def redacted_log() -> tuple[Trajectory, Trajectory]:
    """A run as it was, and as a store that redacts at the door keeps it."""
    actions = (on("find", "ann"), on("rename", "ann", name="Anna"), on("find", "ann"), on("find", "bob"), act("all"))
    log = await walk(LiveEnvironment(Vault), initial(Vault), *actions)
    kept = REDACT(Trace("t", log, Source("test")))
    return log, kept.trajectory


async def test_papers_5_14_a_redacted_log_is_matched_with_what_was_not_redacted():
    log, kept = await redacted_log()
    assert "example.org" not in str([m.wire for m in kept.messages])
    environment = RecordedEnvironment([kept], comparable=REDACT.text)
    state = await walk(environment, log.prefix(0), *(step.action for step in log.steps))
    assert grades(state) == ["exact"] * 5
    assert [step.action for step in state.steps] == [step.action for step in log.steps], "live actions go on as they are"
    assert results(state) == results(kept), "what is answered is what the log holds"
    assert [m.tool_call_id for step in state.steps for m in step.observations] == ["c0"] * 5
    bare = await RecordedEnvironment([kept]).step(log.prefix(0), log.steps[0].action)
    assert "never called" in bare.error


async def test_papers_5_14_redacted_values_still_tell_resources_apart_and_stale_ones_from_true():
    log, kept = await redacted_log()
    environment = RecordedEnvironment([kept], comparable=REDACT.text)
    early = await walk(environment, log.prefix(0), on("find", "bob"))
    assert grades(early) == ["reused"]
    assert "bob" not in results(early)[0]
    assert "differs" in (await environment.step(log.prefix(0), act("all"))).error
    other = await walk(environment, log.prefix(1), on("rename", "ann", name="Anna"), on("find", "ann"))
    assert grades(other)[1:] == ["exact", "exact"]
    assert (await environment.step(early, on("find", "cem"))).error


async def test_papers_5_14_one_redacted_state_continues_the_log_too():
    """A fork of the redacted log itself, whose agent writes in the clear from there on."""
    log, kept = await redacted_log()
    state = await walk(RecordedEnvironment([kept], comparable=REDACT.text), kept.prefix(2), *(step.action for step in log.steps[2:]))
    assert grades(state)[2:] == ["exact"] * 3


async def test_papers_5_14_what_a_redacted_prefix_wrote_is_what_a_live_call_reads():
    """The write stands in the log by its token, the read names the value: they touch one thing."""
    _, kept = await redacted_log()
    state = await walk(RecordedEnvironment([kept], comparable=REDACT.text), kept.prefix(2), on("find", "bob"), on("find", "ann"))
    assert grades(state)[2:] == ["reused", "reused"]
    assert "Anna" in results(state)[-1]


async def test_an_unknown_redaction_matches_nothing_rather_than_something_else():
    log, kept = await redacted_log()
    other = Redactor(b"another salt", rules_of(("email",)))
    assert (await RecordedEnvironment([kept], comparable=other.text).step(log.prefix(0), on("find", "ann"))).error
