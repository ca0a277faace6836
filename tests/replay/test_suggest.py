"""Effects proposed from logs: what evidence shows, never more, with the counts that show it."""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from counterplay import suggesting
from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Source, Step, SubTrajectory, ToolCall, ToolSpec, Trace, Trajectory
from counterplay.reading import Door, Reading
from counterplay.replay.effects import EffectTable
from counterplay.replay.evidence import Run, gather, id_like
from counterplay.replay.fidelity import FidelityReport, check
from counterplay.replay.recorded import RecordedEnvironment
from counterplay.replay.suggest import suggest

DATA = Path(__file__).parents[2] / "../shared/data"
CAUTION = ["pure", "read", "write", "external"]


def run(*calls: tuple[str, dict | None, str] | str, task: str | None = None, tools: tuple[ToolSpec, ...] = ()) -> Run:
    """run(("get", {"id": 1}, "answer"), "what a user says", ...) one step a call."""
    steps = []
    for i, call in enumerate(calls):
        if isinstance(call, str):
            steps.append(Step(Message.assistant("?"), (Message.user(call),)))
            continue
        name, arguments, answer = call
        action = Message.assistant(tool_calls=[ToolCall(f"c{i}", name, json.dumps(arguments or {}))])
        steps.append(Step(action, (Message.tool(answer, f"c{i}"),)))
    return Run(Trajectory(tools, (Message.user("go"),), tuple(steps)), task, "r")


def order(number: int, state: str) -> str:
    return json.dumps({"order_id": f"W{number}", "state": state, "items": 3})


def get(number: int, state: str) -> tuple[str, dict, str]:
    return ("get_order", {"order_id": f"W{number}"}, order(number, state))


def cancel(number: int, answer: str = "ok") -> tuple[str, dict, str]:
    return ("cancel_order", {"order_id": f"W{number}"}, answer)


SHOP = [run(get(1, "open"), get(2, "open"), cancel(1), get(2, "open"), get(1, "cancelled"), task=f"t{i}") for i in range(4)]


def effects(*runs: Run) -> dict[str, str]:
    return {row.tool: str(row.effect) for row in suggest(runs).rows}


def test_a_tool_after_whose_call_an_answer_on_the_same_id_changed_wrote_to_it_and_to_it_alone():
    found = suggest(SHOP)
    assert {row.tool: str(row.effect) for row in found.rows} == {
        "get_order": "read(order:{order_id})",
        "cancel_order": "write(order:{order_id})",
    }
    get_row, cancel_row = found.rows
    assert get_row.by_name
    assert not cancel_row.by_name
    assert "changed what get_order answers 4 times, e.g. r step 4" in cancel_row.evidence
    assert "get_order answered alike over it 4 times for other ids, and never otherwise" in cancel_row.evidence
    assert any("its name chose" in line for line in get_row.evidence)


def test_a_write_is_not_narrowed_to_its_id_where_another_id_changed_too_or_was_not_looked_at_often_enough():
    looks = [run(get(7, "open"), get(8, "open"), get(7, "open"), task=f"look {i}") for i in range(9)]
    strays = [run(get(1, "open"), cancel(2), get(1, "closed")), *SHOP, *looks]
    for logs, wanted in ((SHOP, "write(order:{order_id})"), (SHOP[:2], "write"), (strays, "write")):
        found = effects(*logs, *looks)
        assert found["get_order"] == "read(order:{order_id})"
        assert found["cancel_order"] == wanted


def test_a_record_that_comes_back_with_other_values_shows_the_change():
    """The agent never looks again: the write's own answer shows the record as it is now."""
    logs = [run(get(1, "open"), cancel(1, order(1, "cancelled"))) for _ in range(2)]
    assert effects(*logs)["cancel_order"] == "write"
    assert effects(*[run(get(1, "open"), cancel(1, order(1, "open")))])["cancel_order"] == "external"
    assert effects(run(get(1, "open"), cancel(2, order(2, "cancelled"))))["cancel_order"] == "external"


def test_without_evidence_everything_is_external_and_says_what_would_settle_it():
    found = suggest([run(get(1, "open"), ("frobnicate", {"x": 1}, "ok"), tools=(ToolSpec.function("never", "", {}),))])
    assert {str(row.effect) for row in found.rows} == {"external"}
    assert all(row.settle for row in found.rows)
    never = next(row for row in found.rows if row.tool == "never")
    assert (never.calls, never.settle, never.evidence) == (0, "Log a run that calls it.", ("defined, never called",))


def test_a_name_alone_makes_no_read_and_no_write():
    assert effects(*[run(("get_thing", {"x": i}, str(i))) for i in range(9)]) == {"get_thing": "external"}
    quiet = [run(get(1, "open"), ("update_order", {"order_id": "W1"}, "ok"), get(1, "open"), task=str(i)) for i in range(9)]
    assert effects(*quiet)["update_order"] == "external"


def test_a_look_that_takes_what_it_shows_is_no_read():
    """A queue: each look is followed by work, so that the work could be blamed, but the queue never once stood still."""
    work = [("do_task", {"task": name}, "done") for name in "abc"]
    queue = [("get_next_task", {}, name) for name in "abcd"]
    logs = [run(*[call for pair in zip(queue, work, strict=False) for call in pair], queue[3]) for _ in range(5)]
    assert effects(*logs)["get_next_task"] == "external"
    clock = [run(("get_time", {}, "1"), ("get_time", {}, "2"), ("get_zone", {}, "z"), ("get_zone", {}, "z"), ("get_time", {}, "3"))] * 4
    assert effects(*clock)["get_time"] == "external"


def test_names_that_say_more_than_looking_are_not_read():
    logs = [
        run(get(1, "open"), (name, {}, "x"), get(1, "open")) for name in ("get_or_create_cart", "read_and_clear_inbox", "check_payment")
    ]
    assert {e for name, e in effects(*logs * 4).items() if name != "get_order"} == {"external"}


def test_two_that_may_have_done_it_are_both_in_doubt():
    logs = [run(get(1, "open"), ("audit", {"x": 1}, "ok"), ("sweep", {"x": 1}, "ok"), get(1, "closed")) for _ in range(5)]
    found = {row.tool: row for row in suggest(logs).rows}
    assert str(found["audit"].effect) == str(found["sweep"].effect) == "external"
    assert "right before and right after it" in found["audit"].settle
    with_id = [run(get(1, "open"), ("audit", {"x": 1}, "ok"), cancel(1), get(1, "closed")) for _ in range(5)]
    assert effects(*with_id)["cancel_order"].startswith("write")
    assert effects(*with_id)["audit"] == "external"


def test_a_change_over_a_users_turn_is_nobodys_without_an_id():
    told = [run(get(1, "open"), "please wait", get(1, "paid"), ("get_order", {"order_id": "W9"}, "x"), get(1, "paid")) for _ in range(5)]
    found = suggest(told)
    assert found.users_act == 5
    assert "users of this world may act" in found.to_toml()
    swept = [run(get(1, "open"), ("sweep", {"x": 1}, "ok"), "wait", get(1, "paid")) for _ in range(5)]
    assert effects(*swept)["sweep"] == "external"


def test_what_reaches_out_stays_external_though_it_writes_as_well():
    found = suggest([run(get(1, "open"), ("send_invoice", {"order_id": "W1"}, "sent"), get(1, "invoiced")) for _ in range(4)])
    row = next(row for row in found.rows if row.tool == "send_invoice")
    assert str(row.effect) == "external"
    assert "reaches out as well" in row.settle


def test_runs_of_one_task_are_evidence_for_each_other():
    """Nothing is called twice in a run; the attempts began in the same world and differ by one call."""
    logs = [run(get(1, "open"), task="t"), run(cancel(1), get(1, "cancelled"), task="t"), *[run(get(1, "open"), task="t")] * 3]
    assert effects(*logs)["cancel_order"] == "write"
    assert effects(*[Run(log.trajectory, None, log.name) for log in logs])["cancel_order"] == "external"


def test_pure_is_for_names_that_think_and_answers_that_hold_in_several_tasks():
    logs = [
        run(get(1, "open"), ("calculate", {"e": "1+1"}, "2"), cancel(1), get(1, "x"), ("calculate", {"e": "1+1"}, "2"), task=t)
        for t in "ab"
    ]
    assert effects(*logs * 2)["calculate"] == "pure"
    rates = [run(("convert", {"eur": 1}, str(i // 4)), get(1, "open"), ("convert", {"eur": 1}, str(i // 4)), task="t") for i in range(8)]
    assert effects(*rates)["convert"] != "pure"


def test_ids_under_two_names_are_one_kind_of_thing():
    logs = []
    for i in range(4):
        look = ("get_line", {"id": f"L{i}"}, f"line {i}")
        other = ("get_line", {"id": "L9"}, "line 9")
        logs.append(run(look, other, ("resume_line", {"line_id": f"L{i}"}, "ok"), other, (*look[:2], "resumed")))
    assert effects(*logs) == {"get_line": "read(line:{id})", "resume_line": "write(line:{line_id})"}


def test_a_declaration_stands_unless_the_logs_contradict_it():
    tools = (ToolSpec.function("cancel_order", "", {}, Effect("read")), ToolSpec.function("get_order", "", {}, Effect("read", "orders")))
    found = {row.tool: row for row in suggest([Run(Trajectory(tools, log.trajectory.prompt, log.trajectory.steps)) for log in SHOP]).rows}
    assert str(found["get_order"].effect) == "read(orders)"
    assert found["cancel_order"].effect.kind == "write"
    assert found["cancel_order"].doubts == "it is declared read, but it changed what get_order answers ( step 4)"


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("order_id", "W1", True),
        ("user.id", 17, True),
        ("orderId", "x", True),
        ("origin", "JFK", False),
        ("date", "2024-05-20", False),
        ("amount", 12, False),
        ("amount", "12.50", False),
        ("note", "call 5 people", False),
        ("reservation", "JG7FMM", True),
        ("id", True, False),
        ("order_id", "", False),
    ],
)
def test_what_looks_like_an_id(path, value, wanted):
    assert id_like(path, value) is wanted


def test_the_table_reads_back_as_toml_with_names_of_any_letters():
    found = suggest([*SHOP, *[run(get(1, "open"), ('odd "name"\n[x]', {"order_id": "W1"}, "ok"), get(1, "open"))] * 2])
    assert EffectTable.from_toml(found.to_toml()) == found.table
    assert tomllib.loads(found.to_toml())["tools"]["get_order"]["resource"] == "order:{order_id}"
    assert "# 20 calls" in found.to_toml()


def test_calls_without_an_answer_are_no_evidence_of_anything_but_themselves():
    action = Message.assistant(tool_calls=[ToolCall("c", "cancel_order", '{"order_id": "W1"}')])
    silent = Run(Trajectory((), (Message.user("x"),), (Step(action), *run(get(1, "open")).trajectory.steps)))
    assert gather([silent]).answers["cancel_order"] == set()
    assert effects(silent, silent)["cancel_order"] == "external"


def traces() -> list[Trace]:
    return [Trace(f"{i}" * 20, log.trajectory, Source("test"), task=log.task) for i, log in enumerate(SHOP)]


def test_the_front_door_takes_traces_and_shows_and_writes_a_table(tmp_path):
    found = suggesting.suggest_effects(traces())
    rows = {row["tool"]: row for row in suggesting.as_json(found)["tools"]}
    assert (rows["get_order"]["effect"], rows["get_order"]["resource"], rows["get_order"]["calls"]) == ("read", "order:{order_id}", 16)
    assert json.dumps(suggesting.as_json(found))
    assert suggesting.shown(found)[0].row_count == 2
    path = suggesting.write_table(found, tmp_path / "effects.toml")
    assert EffectTable.from_toml(path) == found.table
    with pytest.raises(UserError, match="exists"):
        suggesting.write_table(found, path)
    with pytest.raises(UserError, match="without a tool"):
        suggesting.suggest_effects([])


def test_what_a_sub_agent_may_have_done_is_not_blamed_on_a_tool():
    log = run(get(1, "open"), ("sweep", {"x": 1}, "ok"), get(1, "closed"))
    sub = SubTrajectory(run(("tidy", {}, "ok")).trajectory, "helper", parent_step=1)
    alone = [Trace(f"{i}", log.trajectory, Source("test")) for i in range(4)]
    helped = [Trace(f"{i}", log.trajectory, Source("test"), (sub,)) for i in range(4)]
    kinds = [{row.tool: row.effect.kind for row in suggesting.suggest_effects(each).rows} for each in (alone, helped)]
    assert kinds[0]["sweep"] == "write"
    assert kinds[1]["sweep"] == "external"


AIRLINE = {
    **dict.fromkeys(
        ("get_user_details", "get_reservation_details", "search_direct_flight", "search_onestop_flight", "get_flight_status"), "read"
    ),
    **dict.fromkeys(("list_all_airports", "calculate", "think"), "pure"),
    **dict.fromkeys(("book_reservation", "cancel_reservation", "send_certificate"), "write"),
    **{f"update_reservation_{what}": "write" for what in ("baggages", "flights", "passengers")},
    "transfer_to_human_agents": "external",
}
PHONE_READS = (
    "get_details_by_id get_customer_by_phone get_bills_for_customer get_data_usage can_send_mms run_speed_test check_payment_request"
)
TELECOM = {
    **dict.fromkeys(PHONE_READS.split(), "read"),
    **dict.fromkeys(("send_payment_request", "make_payment"), "external"),
    **dict.fromkeys(("resume_line", "enable_roaming", "refuel_data", "done"), "write"),
}


def real(folder: Path) -> list[Trace]:
    return [item for item in Reading([folder], "auto", Door(), 0) if isinstance(item, Trace)]


def truth(tool: str) -> str:
    """By the policies of the two benchmarks: what a phone's tools are called says it."""
    if tool in AIRLINE or tool in TELECOM:
        return {**AIRLINE, **TELECOM}[tool]
    return "read" if tool.startswith("check_") else "write"


@pytest.mark.parametrize(
    ("folder", "right", "tools"), [("tau-bench-airline-gpt4o", 9, 13), ("tau2-gpt-4.1-base", 17, 48), ("bfcl-multi-turn-results", 0, 13)]
)
def test_on_real_logs_no_tool_is_taken_for_less_than_it_is(folder, right, tools):
    if not (DATA / folder).exists():
        pytest.skip("the real logs are not beside this repository")
    logs = real(DATA / folder)
    rows = [row for row in suggesting.suggest_effects(logs).rows if row.calls]
    if folder.startswith("bfcl"):
        looking = {"ls", "pwd", "grep", "tail", "sort", "diff", "cat", "find"}
        assert all(row.effect.kind == "external" or (row.effect.kind == "read") == (row.tool in looking) for row in rows)
        return
    unsafe = [row.tool for row in rows if CAUTION.index(row.effect.kind) < CAUTION.index(truth(row.tool))]
    assert unsafe == []
    assert len(rows) == tools
    assert sum(row.effect.kind == truth(row.tool) for row in rows) >= right
    assert all(row.settle or row.effect.kind != "external" for row in rows)


async def test_what_is_reused_under_a_table_proposed_from_real_logs_is_true():
    """Held out: each attempt at an airline task is answered by the others, under effects that were learnt and never declared."""
    folder = DATA / "tau-bench-airline-gpt4o"
    if not folder.exists():
        pytest.skip("the real logs are not beside this repository")
    logs = await asyncio.to_thread(real, folder)
    table = suggesting.suggest_effects(logs).table.effects()
    tasks = defaultdict(list)
    for trace in logs:
        tasks[trace.task].append(trace.trajectory)
    checks = []
    for attempts in tasks.values():
        for i, log in enumerate(attempts):
            checks.append(await check(log, RecordedEnvironment([*attempts[:i], *attempts[i + 1 :]], effects=table)))
    asked = [seen for each in checks for seen in each.observations if seen.tool]
    answered = [seen for seen in asked if seen.executed]
    assert len(answered) > 0.55 * len(asked)
    assert all(seen.reproduced for seen in answered), FidelityReport(checks).per_tool
