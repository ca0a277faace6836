"""The adapters for public benchmarks: with stand-ins of the same interface always, with the real code where a variable names it.

COUNTERPLAY_TAU_BENCH and COUNTERPLAY_TAU_BENCH_NEWEST name checkouts of tau-bench at the commit that made the logs and at its
newest; COUNTERPLAY_TAU2_BENCH the `src` of one of tau2-bench and COUNTERPLAY_BFCL `berkeley-function-call-leaderboard` of one of gorilla.
"""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module, invalidate_caches
from pathlib import Path

import pytest

from counterplay.connectors.tau_bench import CONNECTOR as TAU_BENCH
from counterplay.core.nouns import Grade, Message, Source, Step, ToolCall, Trace, Trajectory, steps_of
from counterplay.replay.environment_fingerprint import drift
from counterplay.replay.fidelity import FidelityReport, check
from counterplay.replay.live import LiveEnvironment, initial
from counterplay.replay.logged_world import ScriptedUser
from counterplay.replay.testing import check_world
from tests.examples import standins

ROOT = Path(__file__).parents[2]
DATA = ROOT / "../shared/data"
PACKAGES = ("tau_bench", "tau2", "bfcl_eval", "litellm")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a stand-in, in place of one that was installed before."""

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        invalidate_caches()

    def install(make, folder="packages", **options):
        forget()
        monkeypatch.syspath_prepend(str(make(tmp_path / folder, **options)))

    yield install
    forget()


def say(text):
    return {"role": "assistant", "content": text}


def use(name, number, /, **arguments):
    call = {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def tau_bench_run(task, actions, answers, trial=0):
    """A run as tau-bench's own loop writes it, played in the installed environment by that environment's own interface."""
    sys.modules.setdefault("litellm", type(sys)("litellm")).completion = None
    env = import_module("tau_bench.envs.airline").MockAirlineDomainEnv(user_strategy="human", task_index=task)
    act, replies = import_module("tau_bench.types").Action, iter(answers)
    env.user = type("User", (), {"step": staticmethod(lambda text: next(replies))})
    traj = [{"role": "system", "content": "# Airline Agent Policy"}, {"role": "user", "content": next(replies)}]
    for action in actions:
        made = action.get("tool_calls")
        kwargs = json.loads(made[0]["function"]["arguments"]) if made else {"content": action["content"]}
        answer = env.step(act(name=made[0]["function"]["name"] if made else "respond", kwargs=kwargs))
        told = {"role": "user", "content": answer.observation}
        if made:
            told = {"role": "tool", "tool_call_id": made[0]["id"], "name": made[0]["function"]["name"], "content": answer.observation}
        traj += [action, told]
    info = {"task": {"actions": []}, "reward_info": {"reward": answer.reward}}
    return {"task_id": task, "trial": trial, "reward": answer.reward, "info": info, "traj": traj}


def tau_bench_runs():
    look, give = use("get_user_details", 1, user_id="ann_1"), use("send_certificate", 2, user_id="ann_1", amount="3")
    thanks = "Thanks ###STOP###"
    return [
        tau_bench_run(0, [say("Who?"), look, give, say("Given.")], ["Hi", "Ann", thanks]),
        tau_bench_run(0, [say("Who?"), look, say("No.")], ["Hello", "Ann, ann_1", thanks], trial=1),
        tau_bench_run(1, [use("get_user_details", 1, user_id="nobody"), use("transfer_to_human_agents", 2, summary="lost")], ["Hi"]),
    ]


async def read(tmp_path, rows):
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(rows))
    return [item async for item in TAU_BENCH.read(path)]


async def against(world, traces):
    return FidelityReport([await check(trace.trajectory, lambda trace=trace: world(trace)) for trace in traces])


class TestTauBench:
    async def test_runs_come_back_to_the_byte_with_their_outcomes(self, installed, tmp_path):
        installed(standins.tau_bench)
        traces = await read(tmp_path, tau_bench_runs())
        from counterplay.examples.tau_bench_world import TauBench

        report = await against(TauBench, traces)
        assert (report.share, report.outcomes, report.first_divergences) == (1.0, 1.0, {})
        assert {trace.outcome.reward for trace in traces} == {0.0, 1.0}
        assert set(report.per_tool) == {"", "get_user_details", "send_certificate", "transfer_to_human_agents"}

    async def test_of_a_newer_version_the_one_tool_that_drifted_is_named(self, installed, tmp_path):
        installed(standins.tau_bench)
        traces = await read(tmp_path, tau_bench_runs())
        from counterplay.examples.tau_bench_world import TauBench

        before = TauBench(traces[0]).environment
        installed(standins.tau_bench, "newer", region="state")
        report = await against(TauBench, traces)
        assert [tool for tool, share in report.per_tool.items() if share != 1.0] == ["get_user_details"]
        assert report.per_tool["get_user_details"] == pytest.approx(1 / 3)  # the error text has no address
        assert [str(difference) for difference in drift(before, TauBench(traces[0]).environment)] == [
            "the code of tau_bench.envs.airline changed",
            "data airline changed",
        ]

    async def test_a_tampered_observation_is_the_one_that_is_named(self, installed, tmp_path):
        installed(standins.tau_bench)
        trace, *_ = await read(tmp_path, tau_bench_runs())
        from counterplay.examples.tau_bench_world import TauBench

        steps = list(trace.trajectory.steps)
        steps[1] = replace(steps[1], observations=(replace_text(steps[1].observations[0], "TX", "CA"),))
        tampered = replace(trace, trajectory=replace(trace.trajectory, steps=tuple(steps)))
        found = await check(tampered.trajectory, lambda: TauBench(tampered))
        assert [(step, d.kind, d.tool) for step, d in found.divergences] == [(1, "result_drift", "get_user_details")]

    async def test_a_fork_goes_on_in_the_real_data_and_the_user_hears_texts_alone(self, installed, tmp_path):
        installed(standins.tau_bench)
        trace, *_ = await read(tmp_path, tau_bench_runs())
        from counterplay.examples.tau_bench_world import TauBench

        environment = LiveEnvironment(lambda: TauBench(trace), task=trace.task)
        fork = trace.trajectory.prefix(1)
        other = Message.from_openai(use("get_user_details", 9, user_id="bob_2"))
        branch = fork.extend(await environment.step(fork, other))
        assert '"Bob"' in branch.steps[-1].observations[0].content_text
        assert branch.steps[-1].grades == (Grade.EXECUTED,)
        ended = await environment.step(branch, Message.assistant("Given."))
        assert ended.terminated
        assert ended.reward == 0.0  # the user was told the same, the certificate was never sent
        lost = await environment.step(branch, Message.assistant("Something that was never said."))
        assert "the logged user was never told this" in lost.error

    async def test_effects_are_declared_by_resource(self, installed, tmp_path):
        installed(standins.tau_bench)
        trace, *_ = await read(tmp_path, tau_bench_runs())
        from counterplay.examples.tau_bench_world import EFFECTS, TauBench

        effects = {tool.name: tool.effect for tool in TauBench(trace).tools}
        assert effects["get_user_details"].touches({"user_id": "ann_1"}) == ("user:ann_1",)
        assert effects["send_certificate"].kind == "write"
        assert EFFECTS["book_reservation"].touches({"user_id": "ann_1"}) == ("user:ann_1", "reservation")
        assert all(effect.checked().kind != "external" for effect in EFFECTS.values())


class TestTau2:
    def trace(self, steps, agent="llm_agent", user="Hi", **criteria):
        task = {"id": "t1", "initial_state": {"initialization_data": {"gb": 1}}, "evaluation_criteria": criteria}
        trajectory = Trajectory((), (Message.user(user),), tuple(steps))
        return Trace("t", trajectory, Source("tau2"), task="tau2/telecom/t1", agent=agent, metadata={"task": task})

    def step(self, fields, *answers, reward=None, last=False):
        action = Message.from_openai(fields)
        roles = [Message.tool(text, action.tool_calls[0].id) if action.tool_calls else Message.user(text) for text in answers]
        return Step(action, tuple(roles), terminated=last, reward=reward)

    async def test_a_conversation_is_paid_by_its_parts(self, installed):
        installed(standins.tau2)
        from counterplay.examples.tau2_bench_world import Tau2Bench

        told, paid = [self.step(say("You have 3 GB."), "Bye ###STOP###", reward=1.0, last=True)], ["DB", "COMMUNICATE"]
        steps = [self.step(use("refuel", 1, gb=2), "done"), self.step(use("get_line", 2), '{"gb": 3}'), *told]
        trace = self.trace(steps, db={"gb": 3}, communicate_info=["3 GB"], reward_basis=paid)
        report = await against(Tau2Bench, [trace])
        assert (report.share, report.outcomes, report.first_divergences) == (1.0, 1.0, {})
        silent = self.trace(steps, db={"gb": 3}, communicate_info=["4 GB"], reward_basis=paid)
        assert (await check(silent.trajectory, lambda: Tau2Bench(silent))).reward == 0.0
        judged = self.trace(steps, db={"gb": 3}, reward_basis=["DB", "NL_ASSERTION"])
        assert (await check(judged.trajectory, lambda: Tau2Bench(judged))).reward is None

    async def test_a_solo_run_has_the_users_tools_and_ends_by_a_call_that_nothing_answers(self, installed):
        installed(standins.tau2)
        from counterplay.examples.tau2_bench_world import Tau2Bench

        steps = [self.step(use("check_status_bar", 1), "data on"), self.step(use("done", 2), reward=1.0, last=True)]
        trace = self.trace(steps, agent="llm_agent_solo", db={"gb": 1}, reward_basis=["DB"])
        report = await against(Tau2Bench, [trace])
        assert (report.share, report.outcomes, report.first_divergences) == (1.0, 1.0, {})
        assert "check_status_bar" not in {tool.name for tool in Tau2Bench(replace(trace, agent="llm_agent")).tools}

    def test_copies_are_independent(self, installed):
        installed(standins.tau2)
        from counterplay.examples.tau2_bench_world import Tau2Bench

        trace = self.trace([], db={"gb": 1}, reward_basis=["DB"])
        found = check_world(lambda: Tau2Bench(trace), [("refuel", {"gb": 2}), ("get_line", {}), ("refuel", {"gb": 1}), ("get_line", {})])
        assert found.checked == ("deterministic", "copy", "no leak")
        assert {tool.name: tool.effect.kind for tool in Tau2Bench(trace).tools} == {"get_line": "read", "refuel": "write"}


class TestBfcl:
    def trace(self):
        messages = [
            {"role": "user", "content": "Make b.txt"},
            use("touch", 1, name="b.txt"),
            {"role": "tool", "tool_call_id": "call_1", "content": "None"},
            use("touch", 2, name="b.txt"),
            {"role": "tool", "tool_call_id": "call_2", "content": "Error during execution: b.txt exists"},
            use("ls", 3),
            {"role": "tool", "tool_call_id": "call_3", "content": '{"names": ["a.txt", "b.txt"]}'},
            say("Made."),
            {"role": "user", "content": "1 + 2?"},
            use("add", 4, x=1, y=2),
            {"role": "tool", "tool_call_id": "call_4", "content": "3"},
            say("3"),
        ]
        prompt, steps = steps_of([Message.from_openai(message) for message in messages])
        steps = (*steps[:-1], replace(steps[-1], terminated=True, reward=1.0))
        return Trace("b", Trajectory((), prompt, steps), Source("bfcl"), task="multi_turn_base_0")

    async def test_an_entry_comes_back_with_its_verdict(self, installed):
        installed(standins.bfcl)
        from counterplay.examples.bfcl_world import Bfcl

        report = await against(Bfcl, [self.trace()])
        assert (report.share, report.outcomes, report.first_divergences) == (1.0, 1.0, {})

    async def test_turns_follow_whatever_is_said_and_the_checker_sees_who_did_nothing(self, installed):
        installed(standins.bfcl)
        from counterplay.examples.bfcl_world import Bfcl

        environment = LiveEnvironment(lambda: Bfcl(self.trace()))
        state = await environment.initial()
        state = state.extend(await environment.step(state, Message.assistant("I would rather not.")))
        assert state.steps[-1].observations[0].content_text == "1 + 2?"
        end = await environment.step(state, Message.assistant("Nor this."))
        assert (end.terminated, end.reward) == (True, 0.0)

    def test_copies_are_independent_and_classes_are_resources(self, installed):
        installed(standins.bfcl)
        from counterplay.examples.bfcl_world import Bfcl

        found = check_world(lambda: Bfcl(self.trace()), [("touch", {"name": "c"}), ("ls", {}), ("touch", {"name": "c"}), ("ls", {})])
        assert found.checked == ("deterministic", "copy", "no leak")
        assert {tool.name: str(tool.effect) for tool in Bfcl(self.trace()).tools} == {
            "ls": "read(Files)",
            "touch": "write(Files)",
            "add": "write(Sums)",
        }


class TestScriptedUser:
    def trajectory(self):
        prompt, steps = steps_of([
            Message.user("hi"), Message.assistant("a"), Message.user("1"),
            Message.assistant(None, [ToolCall("c", "look", "{}")]), Message.tool("seen", "c"),
            Message.assistant("b"), Message.user("2"), Message.assistant("end"),
        ])  # fmt: skip
        return Trajectory((), prompt, steps)

    def test_she_answers_what_she_was_told(self):
        user = ScriptedUser(self.trajectory())
        assert [user.hear("a"), user.hear("b")] == ["1", "2"]
        with pytest.raises(LookupError, match="never told this: 'end'"):
            user.hear("end")

    def test_order_counts_and_somebody_else_can_go_on(self):
        user = ScriptedUser(self.trajectory(), otherwise=" then ".join)
        assert [user.hear("b"), user.hear("a")] == ["b", "b then a"]


def test_every_adapter_is_short():
    for name in ("tau_bench_world", "tau2_bench_world", "bfcl_world"):
        assert len((ROOT / f"examples/{name}.py").read_text().splitlines()) < 60


def replace_text(message, old, new):
    return Message.from_openai({**message.fields, "content": message.content_text.replace(old, new)})


REAL = """
import asyncio, importlib, json, sys
from pathlib import Path
from counterplay.replay.fidelity import check

async def main(connector, world, *files):
    connector = importlib.import_module(f"counterplay.connectors.{connector}").CONNECTOR
    module, _, name = world.partition(":")
    world = getattr(importlib.import_module(f"counterplay.examples.{module}"), name)
    traces = [item for file in files for item in [each async for each in connector.read(Path(file))]]
    for trace in traces:
        found = await check(trace.trajectory, lambda: world(trace))
        tools = [[seen.tool, seen.reproduced] for seen in found.observations if seen.executed]
        print(json.dumps([trace.task, tools, found.outcome_reproduced, found.reward]))

asyncio.run(main(*sys.argv[1:]))
"""


def real(variable, connector, world, *files):
    """What re-enacting real files in the checkout that a variable names gives: (task, observations, outcome) a trace."""
    checkout = os.environ.get(variable)
    if not checkout:
        pytest.skip(f"{variable} names no checkout")
    if not all(Path(file).exists() for file in files):
        pytest.skip("the real logs are not beside this repository")
    path = os.pathsep.join([checkout, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", REAL, connector, world, *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def drifted(rows):
    return {tool for _, tools, *_ in rows for tool, same in tools if not same}


AIRLINE = DATA / "tau-bench-airline-gpt4o/gpt-4o-airline.even_tasks.json"


def test_the_hundred_real_airline_runs_come_back_with_the_code_that_made_them():
    rows = real("COUNTERPLAY_TAU_BENCH", "tau_bench", "tau_bench_world:TauBench", AIRLINE)
    assert len(rows) == 100
    assert sum(bool(tool) for _, tools, *_ in rows for tool, _ in tools) == 577
    assert drifted(rows) == set()
    assert all(outcome for _, _, outcome, _ in rows)


def test_with_its_newest_code_the_one_tool_that_drifted_is_named():
    rows = real("COUNTERPLAY_TAU_BENCH_NEWEST", "tau_bench", "tau_bench_world:TauBench", AIRLINE)
    assert drifted(rows) == {"get_user_details"}
    assert all(outcome for _, _, outcome, _ in rows)


def test_the_real_telecom_runs_come_back():
    logs = DATA / "tau2-gpt-4.1-base/gpt-4.1_telecom_no-user_gpt-4.1_1trials.json"
    rows = real("COUNTERPLAY_TAU2_BENCH", "tau2", "tau2_bench_world:Tau2Bench", logs)
    assert (len(rows), sum(len(tools) for _, tools, *_ in rows)) == (40, 626)
    assert drifted(rows) == set()
    assert all(outcome for _, _, outcome, _ in rows)


def test_the_real_function_calls_come_back():
    files = sorted((DATA / "bfcl-multi-turn-results").rglob("*_result.json")) or [DATA / "bfcl-multi-turn-results"]
    rows = real("COUNTERPLAY_BFCL", "bfcl", "bfcl_world:Bfcl", *files)
    assert len(rows) == 8
    assert drifted(rows) == set()


def test_the_first_state_of_a_world_is_that_of_the_log(installed, tmp_path):
    installed(standins.tau_bench)
    traces = asyncio.run(read(tmp_path, tau_bench_runs()))
    from counterplay.examples.tau_bench_world import TauBench

    assert initial(lambda: TauBench(traces[0])).prompt == traces[0].trajectory.prompt
