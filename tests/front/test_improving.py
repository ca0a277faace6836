"""Rounds of improvement: what a round leaves, when they stop, what is refused, and that a kill at any moment changes nothing."""

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from counterplay import Store, cli, loop
from counterplay.commands import improving
from counterplay.core.budget import Budget
from counterplay.core.errors import PolicyError, UserError
from counterplay.core.journal import ask
from counterplay.core.nouns import Message, Proposal, State, Step, SubTrajectory, ToolCall, Usage
from counterplay.examples.ledger import tasks
from counterplay.examples.ledger.tasks import make_task
from counterplay.improve import Improvement, improve, passes, report, rounds, working
from counterplay.improve import training as learning
from counterplay.improve.examining import gain, telling
from counterplay.improve.kept import Stages, settle
from counterplay.improve.settings import Guided, traces_of
from counterplay.improve.working import Metered, check_leak, left_of, used_by, used_in
from counterplay.parts import Asked
from counterplay.plan import Plan
from tests.front import moves

MODEL = Path(improving.__file__).parents[1] / "examples" / "ledger" / "model"
LEDGER = "counterplay.examples.ledger:Ledger"
CALLS = 150
START = [sys.executable, "-c", "from counterplay import cli\nfrom counterplay.commands import improving\ncli.app()"]


def given(**changes):
    asked = Asked(environment=LEDGER, verifiers=("outcome", "ledger"), max_tokens=64, max_steps=40)
    common = {
        "model": MODEL,
        "asked": asked,
        "held_out": tuple(tasks("heldout", 6)),
        "tasks": tuple(tasks("new", 8)),
        "tasks_per_round": 4,
        "plan": Plan.parse(None, [], split="even", budget=f"model_calls={CALLS}"),
        "temperature": 0.4,
        "prm": "prm",
        "dpo": True,
        "training": {"epochs": 1.0, "learning_rate": 5e-4},
        "prm_training": {"epochs": 1.0, "learning_rate": 1e-3},
    }
    return Improvement(**{**common, **changes})


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    """Two rounds with everything: a PRM from the second on, pairs, a budget."""
    out = tmp_path_factory.mktemp("improve") / "out"
    one = improve(given(), out, rounds=1, until_no_gain=False, quiet=True)
    two = improve(given(), out, rounds=2, until_no_gain=False, quiet=True)
    assert two.rounds[:2] == one.rounds
    return two


def kept(out):
    return {file: file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file() and "store.duckdb" not in file.name}


def test_a_round_leaves_its_model_data_prm_logs_and_examination(two_rounds):
    out = two_rounds.folder
    assert [one.number for one in two_rounds.rounds] == [0, 1, 2]
    for number in (1, 2):
        folder = out / "rounds" / f"{number:02d}"
        for name in ("model/config.json", "sft/counterplay.json", "logs.jsonl", "evaluation.json", "round.json"):
            assert (folder / name).is_file(), name
        assert len((folder / "logs.jsonl").read_text().splitlines()) == 4
        assert set(json.loads((folder / "evaluation.json").read_text())["outcomes"]) == set(tasks("heldout", 6))
    assert not (out / "rounds/01/prm").exists()
    assert (out / "rounds/02/prm/config.json").is_file()
    first, second = two_rounds.rounds[1:]
    assert second.lineage["agent"] == first.lineage["model"]
    assert second.lineage["trained_from"] == first.lineage["trained_from"] == first.lineage["agent"]
    assert second.lineage["prm"] == f"prm:{out / 'rounds/02/prm'}"
    assert second.rows >= first.rows
    with Store.open(out / "store.duckdb", read_only=True) as store:
        assert [trace.task for trace in traces_of(store, 2)] == given().tasks_of(2) == tasks("new", 8)[4:]
        assert all(row.config["verifier"].count("prm") for row in map(store.search, searches_of(store, 2)))
        assert not any("prm" in store.search(name).config["verifier"] for name in searches_of(store, 1))


def searches_of(store, number):
    ids = {trace.id for trace in traces_of(store, number)}
    return [row.id for row in store.searches() if row.trace in ids]


def test_work_and_search_stay_under_the_budget_of_the_round(two_rounds):
    with Store.open(two_rounds.folder / "store.duckdb", read_only=True) as store:
        for one in two_rounds.rounds[1:]:
            searched = sum(store.search(name).used.model_calls for name in searches_of(store, one.number))
            assert one.model_calls == used_by(traces_of(store, one.number))["model_calls"] + searched
            assert one.failed == 0 or searched > 0
            assert one.model_calls <= CALLS


def test_what_came_of_it_is_for_people_and_programs(two_rounds):
    told = json.loads((two_rounds.folder / "improve.json").read_text())
    assert [one["success"] for one in told["rounds"]] == [one.success for one in two_rounds.rounds]
    assert told["stopped"] == "2 rounds"
    page = (two_rounds.folder / "report.md").read_text()
    assert f"{100 * two_rounds.rounds[2].success:.1f} %" in page
    assert ET.parse(two_rounds.folder / "success.svg").getroot().tag.endswith("svg")


def test_run_again_nothing_is_done(two_rounds):
    before = kept(two_rounds.folder)
    again = improve(given(), two_rounds.folder, rounds=2, until_no_gain=False, quiet=True)
    assert again == two_rounds
    assert kept(two_rounds.folder) == before


def test_a_changed_option_is_refused_with_what_differs(two_rounds):
    with pytest.raises(UserError, match=r'prm "prm", now "none"'):
        improve(given(prm="none"), two_rounds.folder, rounds=2, quiet=True)
    with pytest.raises(UserError, match="held_out") as refused:
        improve(given(held_out=tuple(tasks("heldout", 5))), two_rounds.folder, rounds=2, quiet=True)
    assert "tasks_per_round" not in str(refused.value)


def test_the_command_gives_one_json_object(two_rounds):
    arguments = ["--model", MODEL, "--environment", LEDGER, "--held-out", "counterplay.examples.ledger:tasks:heldout:6"]
    arguments += ["--tasks", "counterplay.examples.ledger:tasks:new:8", "--tasks-per-round", 4, "--out", two_rounds.folder, "--rounds", 2]
    arguments += ["--verifier", "outcome", "--verifier", "ledger", "--budget", f"model_calls={CALLS}", "--prm", "prm", "--dpo"]
    arguments += ["--max-tokens", 64, "--max-steps", 40, "--work-temperature", 0.4, "--json"]
    refused = CliRunner().invoke(cli.app, ["improve", *map(str, arguments)])
    assert refused.exit_code == 2
    assert "other options: training" in json.loads(refused.stdout)["error"]["got"]


class KilledError(Exception):
    """What ends a process here and now."""


def test_a_stage_that_was_done_but_not_noted_is_begun_again_and_changes_nothing(tmp_path, monkeypatch):
    small = given(prm="none", dpo=False, tasks=("new-0001", several(2)), held_out=tuple(tasks("heldout", 2)))

    def run(out):
        return improve(small, tmp_path / out, rounds=1, until_no_gain=False, quiet=True)

    for stage in ("work", "search_failed", "export", "train", "examine"):
        real = getattr(rounds, stage)

        def killed(*args, real=real, **kwargs):
            real(*args, **kwargs)
            raise KilledError

        monkeypatch.setattr(rounds, stage, killed)
        with pytest.raises(KilledError):
            run("killed")
        monkeypatch.setattr(rounds, stage, real)
    again, once = run("killed"), run("once")
    assert [what_came_of(one) for one in again.rounds] == [what_came_of(one) for one in once.rounds]
    assert once.rounds[1].failed
    assert outcomes(again) == outcomes(once)


def several(pitfalls):
    """The first task with so many pitfalls, all of which the agent will hardly handle."""
    return next(task for task in tasks("new", 99) if len(make_task(task).pitfalls) == pitfalls)


def what_came_of(one):
    return replace(one, model="", seconds=0, cpu_seconds=0, lineage={})


def outcomes(done):
    return [json.loads((done.folder / f"rounds/{one.number:02d}/evaluation.json").read_text())["outcomes"] for one in done.rounds]


def test_where_nothing_went_well_the_model_stays_and_the_rounds_end(tmp_path):
    plan = Plan.parse(None, [], split="even", budget="model_calls=30")  # one line, and less than another
    small = given(prm="none", dpo=False, tasks=(several(3),), held_out=("heldout-0001",), temperature=0.0, plan=plan)
    done = improve(small, tmp_path / "out", quiet=True)
    assert (done.rounds[1].failed, done.rounds[1].solved, done.rounds[1].rows) == (1, 0, 0)
    assert (done.model, done.chosen, done.stopped) == (MODEL, 0, "no evidence of a gain in round 1")
    poor = replace(small, plan=Plan.parse(None, [], split="even", budget="model_calls=3"))
    spent = improve(poor, tmp_path / "poor", quiet=True).rounds[1]
    assert (spent.traces, spent.model_calls) == (0, 3)


def test_killed_it_goes_on(tmp_path):
    """A real kill, while runs are being recorded; the recording is gone on with, and no task is played twice."""
    out, logs = tmp_path / "out", tmp_path / "out" / "rounds" / "01" / "logs.jsonl"
    arguments = ["improve", "--model", MODEL, "--environment", LEDGER, "--held-out", "counterplay.examples.ledger:tasks:heldout:2"]
    arguments += ["--tasks", "counterplay.examples.ledger:tasks:new:5", "--out", out, "--rounds", 1, "--concurrency", 1, "--json"]
    arguments += ["--verifier", "outcome", "--verifier", "ledger", "--budget", "model_calls=120", "--max-tokens", 64, "--max-steps", 40]
    arguments += ["--epochs", 1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*START, *map(str, arguments)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    while not (logs.is_file() and logs.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = logs.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    done = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
    assert set(whole.splitlines()) <= set(logs.read_bytes().splitlines())
    assert [json.loads(line)["task"] for line in logs.read_text().splitlines()] == tasks("new", 5)
    told = json.loads(done.stdout)
    assert told["rounds"][1]["traces"] == 5
    assert told["rounds"][1]["model_calls"] <= 120


@pytest.fixture
def logs(tmp_path):
    """The first runs of the example agent's logs."""
    path = tmp_path / "logs.jsonl"
    with gzip.open(MODEL.parent / "logs.jsonl.gz") as lines:
        path.write_bytes(b"".join(islice(lines, 6)))
    return path


@pytest.fixture
def logged(logs):
    with Store.open(":memory:") as store:
        loop.ingest([logs], store, processes=0)
        return loop.select(store)


def test_a_leak_is_refused_before_anything_is_trained(logs, logged, tmp_path):
    with pytest.raises(UserError, match="1 tasks both to train on and held out: new-0003"):
        given(held_out=("new-0003", "heldout-0001"))
    check_leak(logged, ["heldout-0001"], {})
    with pytest.raises(UserError, match=f"1 held-out tasks: {logged[1].task}"):
        check_leak(logged, [logged[1].task], {})
    renamed = telling({"other": logged[2].trajectory.prefix(0).key, "another": "x"})
    with pytest.raises(UserError, match=rf"{logged[2].task} \(the prompt of other\)"):
        check_leak(logged, ["other", "another"], renamed)
    assert telling({"a": "same", "b": "same"}) == {}
    leaking = given(logs=(logs,), held_out=(logged[0].task, "heldout-0001"))
    with pytest.raises(UserError, match=f"held-out tasks: {logged[0].task}"):
        improve(leaking, tmp_path / "out", rounds=1, quiet=True)
    assert not (tmp_path / "out/rounds/01/sft").exists()


def test_what_cannot_be_improved_is_refused(tmp_path):
    with pytest.raises(UserError, match="a local model folder"):
        given(model=Path("openai:gpt-5"))
    with pytest.raises(UserError, match="neither tasks nor logs"):
        given(tasks=())
    with pytest.raises(UserError, match="no held-out tasks"):
        given(held_out=())
    with pytest.raises(UserError, match="recorded, or module:attr"):
        given(asked=Asked())
    with pytest.raises(UserError, match="start 'last'"):
        given(start="last")
    with pytest.raises(UserError, match="rule to stop by"):
        improve(given(), tmp_path / "out", until_no_gain=False)
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(UserError, match="something else"):
        settle(tmp_path, {})


def round_(number, verdict=""):
    return rounds.Round(number, "", 0.5, (0.4, 0.6), 10, verdict=verdict)


def test_it_stops_where_the_round_is_not_better_by_its_verdict():
    sure, unsure, worse = ("better", "no evidence of lift", "worse")
    assert rounds.why_stop([round_(0), round_(1, sure)], None, until_no_gain=True) == ""
    for verdict in (unsure, worse):
        assert rounds.why_stop([round_(0), round_(1, verdict)], None, until_no_gain=True) == "no evidence of a gain in round 1"
    assert rounds.why_stop([round_(0), round_(1, unsure)], 3, until_no_gain=False) == ""
    assert rounds.why_stop([round_(0), round_(1, sure)], 1, until_no_gain=True) == "1 rounds"


def test_the_chosen_round_is_surely_better_than_the_one_chosen_before():
    def examined(share):
        return {"outcomes": {f"t{i}": float(i < 100 * share) for i in range(100)}}

    assert rounds.best_of({0: examined(0.4), 1: examined(0.7), 2: examined(0.71), 3: examined(0.9)}) == 3
    assert rounds.best_of({0: examined(0.4), 1: examined(0.7), 2: examined(0.71), 3: examined(0.6)}) == 1
    assert rounds.best_of({0: examined(0.4), 1: examined(0.7), 2: examined(0.5), 3: examined(0.6)}) == 1
    assert rounds.best_of({0: examined(0.4), 1: examined(0.4)}) == 0


def test_a_round_is_better_only_where_a_comparison_says_so():
    """Five gains in 20 tasks: the interval lies above zero, the sign-flip test does not say so."""
    before, after = ({"outcomes": {f"t{i}": float(i < won) for i in range(20)}, "steps": {}} for won in (0, 5))
    found = gain(before, after)
    assert (found.interval[0] > 0, found.verdict) == (True, "no evidence of lift")
    assert rounds.best_of({0: before, 1: after}) == 0


def test_tasks_are_fresh_in_each_round_and_begin_again_at_their_end():
    three = given(tasks=("a", "b", "c", "d", "e"), tasks_per_round=2)
    assert [three.tasks_of(number) for number in (1, 2, 3, 4)] == [["a", "b"], ["c", "d"], ["e", "a"], ["b", "c"]]
    after_logs = replace(three, logs=(MODEL / "config.json",))
    assert (after_logs.plays(1), after_logs.plays(2), after_logs.tasks_of(2)) == (False, True, ["a", "b"])
    assert replace(three, tasks_per_round=None).tasks_of(7) == ["a", "b", "c", "d", "e"]


async def test_a_metered_policy_never_exceeds_its_ceiling(tmp_path):
    class Talker:
        calls = 0

        async def propose(self, state, n):
            self.calls += n
            return [Proposal(Message.assistant("yes"), usage=Usage(10, 5))] * n

    talker = Talker()
    metered = Metered(talker, Budget.of(model_calls=5, tokens=60), tmp_path / "calls.jsonl")
    for _ in range(2):
        await metered.propose(State(), 2)
    with pytest.raises(PolicyError, match="budget of the round"):
        await metered.propose(State(), 1)  # 60 tokens are used
    assert talker.calls == 4
    assert metered.budget.left("model_calls") == 1


def test_work_is_counted_however_a_kill_left_it(two_rounds, tmp_path):
    whole = (two_rounds.folder / "rounds" / "01" / working.CALLS).read_bytes()
    with Store.open(two_rounds.folder / "store.duckdb", read_only=True) as store:
        known = used_by(traces_of(store, 1))
    torn = tmp_path / working.CALLS
    assert used_in(torn) == {"model_calls": 0, "tokens": 0}
    for content, used in ((whole, known), (whole + whole[:5], known), (b"", {"model_calls": 0, "tokens": 0})):
        torn.write_bytes(content)
        assert used_in(torn) == used


class Thinking:
    """Asks for nothing but ends; a call takes 500 tokens and one turn of the loop."""

    def __init__(self):
        self.calls = 0

    async def propose(self, state, n):
        await asyncio.sleep(0)
        self.calls += n
        return [Proposal(Message.assistant("x"), usage=Usage(450, 50))] * n


async def test_calls_at_once_stay_under_a_limit_of_tokens(tmp_path):
    for limits, calls in (({"tokens": 1000}, 2), ({"tokens": 400}, 1), ({"model_calls": 3}, 3)):
        thinking, file = Thinking(), tmp_path / f"{calls}.jsonl"
        metered = Metered(thinking, Budget.of(**limits), file)
        answers = await asyncio.gather(*(metered.propose(State(), 1) for _ in range(128)), return_exceptions=True)
        assert thinking.calls == calls
        assert sum(isinstance(answer, PolicyError) for answer in answers) == 128 - calls
        assert used_in(file) == {"model_calls": calls, "tokens": 500 * calls}
    again = Metered(Thinking(), Budget.of(tokens=499), tmp_path / "2.jsonl")  # what was noted is known after a kill
    with pytest.raises(PolicyError, match="budget of the round"):
        await again.propose(State(), 1)


async def test_a_policy_that_can_tell_what_a_call_may_take_is_believed(tmp_path):
    thinking = Thinking()
    thinking.estimate = lambda state, n: Usage(600 * n, 0)
    metered = Metered(thinking, Budget.of(tokens=1100), tmp_path / working.CALLS)
    await asyncio.gather(*(metered.propose(State(), 1) for _ in range(4)), return_exceptions=True)
    assert thinking.calls == 1


def test_runs_that_the_budget_cuts_off_are_counted(tmp_path, monkeypatch):
    """Eight runs of 30 calls, with 100 between them: none ends, and nothing is left for a search."""

    class Endless:
        async def propose(self, state, n):
            await asyncio.sleep(0)
            return [Proposal(Message.assistant(None, [ToolCall(f"c{len(state)}", "nothing", "{}")]), usage=Usage(10, 5))] * n

    monkeypatch.setattr(Asked, "make_policy", lambda self, **_: Endless())
    poor = given(plan=Plan.parse(None, [], split="even", budget="model_calls=100"), tasks_per_round=8)
    done = working.work(poor, 1, MODEL, tmp_path / "logs.jsonl", lambda: None)
    assert len(done["unplayed"]) == 8
    assert used_in(tmp_path / working.CALLS) == {"model_calls": 100, "tokens": 1500}


def test_sub_agents_and_compacted_contexts_are_counted():
    trace = moves.logged("a")
    parts = tuple(SubTrajectory(moves.logged("a").trajectory, continues=continues) for continues in (0, None))
    assert used_by([replace(trace, sub_trajectories=parts)])["model_calls"] == 18


def test_a_budget_that_nothing_counts_is_refused():
    for kind in ("usd", "tool_calls", "simulations"):
        with pytest.raises(UserError, match=f"budget of {kind}, which work does not count"):
            given(plan=Plan.parse(None, [], budget=f"model_calls=100,{kind}=5"))


def test_logs_of_other_rounds_are_refused_and_every_trace_is_looked_at(tmp_path, logs, monkeypatch):
    """Runs named as those of round 2 are not of round 1, but would be exported with it."""
    text = "".join(json.dumps({**json.loads(line), "agent": "improve/round-02"}) + "\n" for line in logs.read_text().splitlines())
    logs.write_text(text)
    task = json.loads(text.splitlines()[0])["task"]
    leaking = given(logs=(logs,), held_out=("heldout-0001", task), prm="none", dpo=False, tasks=("new-0099",))
    with pytest.raises(UserError, match="logs of improve/round-02"):
        improve(leaking, tmp_path / "out", rounds=1, quiet=True)
    monkeypatch.setattr(rounds, "OURS", "-")
    with pytest.raises(UserError, match=f"held-out tasks: {task}"):
        improve(leaking, tmp_path / "out", rounds=1, quiet=True)


def trained(monkeypatch, options, folder=Path("round"), *, cut_off=False):
    """What each training of a round is told."""
    told = {}
    monkeypatch.setattr(learning, "tune", lambda kind, start, data, out, **settings: told.update({kind: settings}))
    learning.train(options, MODEL, folder, 3, lambda *_: None, cut_off=cut_off)
    return told


def test_a_training_that_was_cut_off_in_dpo_goes_on_there(monkeypatch, tmp_path):
    options = given(training={"checkpoint_steps": 5})
    for name in ("model-sft", "model"):
        (tmp_path / name).mkdir()
    state = tmp_path / "model-sft" / "training.json"
    state.write_text('{"report": null}')
    assert set(trained(monkeypatch, options, tmp_path, cut_off=True)) == {"sft", "dpo"}
    state.write_text('{"report": {"steps": 9}}')
    assert set(trained(monkeypatch, options, tmp_path, cut_off=True)) == {"dpo"}
    assert set(trained(monkeypatch, options, tmp_path)) == {"sft", "dpo"}
    assert not list(tmp_path.iterdir()), "what was trained on other data is not gone on with"


def test_preference_training_takes_no_learning_rate_from_sft(monkeypatch):
    sft = {"epochs": 2.0, "learning_rate": 5e-4, "batch_size": 4, "lora": True, "checkpoint_steps": 5}
    told = trained(monkeypatch, given(training=sft, dpo_training={}), cut_off=True)
    assert (told["sft"]["learning_rate"], told["sft"]["epochs"]) == (5e-4, 2.0)
    assert not {"learning_rate", "epochs"} & set(told["dpo"])
    assert [told["dpo"][name] for name in ("batch_size", "lora", "checkpoint_steps", "seed")] == [4, True, 5, 0]
    assert (told["sft"]["resume"], told["dpo"]["resume"]) == (True, True)
    own = trained(monkeypatch, given(training=sft, dpo_training={"learning_rate": 1e-5, "batch_size": 2}))
    assert (own["dpo"]["learning_rate"], own["dpo"]["batch_size"], own["dpo"]["resume"]) == (1e-5, 2, False)


def test_rows_too_long_to_train_on_are_not_exported(monkeypatch, tmp_path):
    for asked, length in (({}, 8192), ({"max_length": 100}, 100)):
        told, options = {}, given(training=asked)

        def export(store, out, told=told, **settings):
            told[out.name] = settings["max_length"]
            return SimpleNamespace(rows={"train": 1}, dropped={})

        monkeypatch.setattr(learning.exporting, "export_sft", export)
        monkeypatch.setattr(learning.exporting, "export_dpo", export)
        learning.export(None, options, 1, tmp_path, solved=1)
        settings = trained(monkeypatch, options)
        assert told == {name: settings[name]["max_length"] for name in ("sft", "dpo")} == {"sft": length, "dpo": length}
    assert given(training={}).identity() == given(training={"max_length": 8192}).identity()


def test_why_there_is_no_learned_verifier_is_in_the_report():
    two = replace(round_(2), unguided="nothing was searched")
    improved = rounds.Improved(Path("out"), (round_(0), round_(1, "better"), two), 1, MODEL, "2 rounds")
    assert "round 2 searched without a learned verifier: nothing was searched" in report.page(improved)
    assert "round 1 searched" not in report.page(improved)


def test_a_pass_gives_nobody_less_than_a_line():
    line = {"model_calls": 15.0, "tokens": 1000.0}
    assert passes.affordable(left_of("", {}), line, 7) == 7
    assert passes.affordable(left_of("model_calls=100", {"model_calls": 40}), line, 7) == 4
    assert passes.affordable(left_of("model_calls=100,tokens=2500", {}), line, 7) == 2
    assert passes.affordable(left_of("model_calls=100", {"model_calls": 120}), line, 7) == 0
    assert passes.affordable(left_of("seconds=0", {}), line, 7) == 0
    plan = passes.narrowed(Plan("best_of_n", {}, fork="start"), left_of("model_calls=240", {}), line, 4)
    assert (plan.options, plan.budget) == ({"n": 4}, "model_calls=240")
    asked_for = Plan("best_of_n", {"n": 1}, fork="start")
    assert passes.narrowed(asked_for, left_of("model_calls=240", {}), line, 4).options == {"n": 1}
    assert passes.narrowed(asked_for, left_of("", {}), line, 4).options == {"n": 1}
    assert passes.narrowed(Plan("beam"), left_of("model_calls=240", {}), line, 4).options == {}


def test_the_search_is_chosen_by_what_the_verifier_knows(logged):
    failed = [trace for trace in logged if not trace.outcome.succeeded]
    asked = given().asked_by(MODEL)
    free = Plan.parse(None, [], split="even")
    assert asyncio.run(passes.settled(free, asked, failed)).algorithm == "repair"
    chosen = asyncio.run(passes.settled(free, replace(asked, verifiers=("outcome",)), failed))
    assert (chosen.algorithm, chosen.fork) == ("mcts", "start")
    named = Plan.parse("best_of_n", ["n=1"], fork="start", split="even")
    assert asyncio.run(passes.settled(named, asked, failed)).algorithm == "best_of_n"


async def test_a_learned_verifier_is_heard_about_unfinished_runs_alone(monkeypatch):
    held = SimpleNamespace(own=lambda trajectory: 1.0 if trajectory.finished else 0.8, prm=lambda _: 0.3)
    monkeypatch.setitem(sys.modules, "heard", held)
    unfinished = State((), (Message.user("go"),), (Step(Message.assistant("one")),))
    ended = State((), (Message.user("go"),), (Step(Message.assistant("one"), terminated=True, reward=1.0),))
    guided = Guided(environment=LEDGER, verifiers=("heard:own",), prm="heard:prm").make_verifier()
    assert (await ask(guided, unfinished)).value == 0.3
    assert (await ask(guided, ended)).value == 1.0
    alone = Guided(environment=LEDGER, verifiers=("heard:own",)).make_verifier()
    assert (await ask(alone, unfinished)).value == 0.8


def test_a_stage_is_known_by_what_goes_in_and_what_it_left(tmp_path):
    seen = []

    def make(cut_off):
        seen.append(cut_off)
        (tmp_path / "model").write_text("weights")
        return {"made": len(seen)}

    def done(inputs):
        return Stages(tmp_path).done("train", inputs, make, left=["model"])["made"]

    assert [done({"data": 1}), done({"data": 1}), done({"data": 2})] == [1, 1, 2]
    (tmp_path / "model").unlink()
    assert done({"data": 2}) == 3
    with pytest.raises(ZeroDivisionError):
        Stages(tmp_path).done("train", {"data": 3}, lambda _: {"made": 1 / 0})
    assert done({"data": 3}) == 4
    assert seen == [False, False, False, True]


def test_a_plot_has_a_line_a_method_and_escapes_their_names():
    drawn = report.plot({"a < b": [(0.4, 0.3, 0.5), (0.6, 0.5, 0.7)], "c": [(0.4, 0.3, 0.5), (0.9, 0.8, 0.95)]})
    root = ET.fromstring(drawn)
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 2
    ends = [float(line.attrib["points"].split()[-1].split(",")[1]) for line in lines]
    assert ends[1] < ends[0]  # higher on the page
    assert "a < b" in "".join(root.itertext())
