"""`counterplay evaluate`: its three ways, what each prints and keeps, and options that mean nothing to one of them."""

import json
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from counterplay.cli import app
from counterplay.core.nouns import Message, Outcome, Proposal, Source, Step, Trace, Trajectory, Usage
from counterplay.core.protocols import first_draw
from counterplay.core.store import Store
from tests.replay.loopback import Loopback, completion


class Guesser:
    """Says the number of its draw, plus `shift`."""

    def __init__(self, shift):
        self.shift = shift

    async def propose(self, state, n):
        return [Proposal(Message.assistant(str(first_draw.get() + self.shift + i)), usage=Usage(5, 1, cost_usd=0.5)) for i in range(n)]


class Lock:
    """One guess: pays where it is the last digit of the task."""

    tools = ()

    def __init__(self, task):
        self.prompt, self.task, self.done, self.reward = (Message.user(task),), task, False, 0.0

    def reply(self, action):
        self.done, self.reward = True, float(action.content_text == self.task[-1])
        return []

    def call(self, name, arguments):
        raise AssertionError(name)


@pytest.fixture(autouse=True)
def module(monkeypatch, tmp_path):
    held = SimpleNamespace(Lock=Lock, low=Guesser(0), high=Guesser(1), tasks=[f"lock {i}" for i in range(4)])
    held.shy = lambda trajectory: f"shy at {trajectory.prompt[0].content_text}" if trajectory.steps[0].action.content_text == "1" else None
    monkeypatch.setitem(sys.modules, "locks", held)
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


PLAYED = ("--policy", "low=locks:low", "--policy", "high=locks:high", "--environment", "locks:Lock", "--tasks", "locks:tasks")


def test_playing_with_attempts_classes_and_a_folder(tmp_path):
    done = run(*PLAYED, "--attempts", 2, "--failures", "locks:shy", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert [(policy["rate"], policy["pass_at"]) for policy in said["policies"]] == [(0.25, {"1": 0.25, "2": 0.5})] * 2
    assert said["policies"][0]["cost_per_success_usd"] == 2.0
    assert {share["failure"] for share in said["policies"][1]["failures"]} >= {"shy at lock 0", "wrong end state"}
    (comparison,) = said["comparisons"]
    assert (comparison["verdict"], comparison["gains"], comparison["regressions"]) == ("no evidence of lift", ["lock 2"], ["lock 0"])
    assert said["settings"]["attempts"] == 2
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == said
    assert sorted(path.name for path in (tmp_path / "out" / "trajectories").iterdir()) == ["high.jsonl", "low.jsonl"]
    shown = run(*PLAYED, "--attempts", 2)
    assert "pass@2" in shown.output
    assert "1 tasks gained, 1 regressed: lock 0" in " ".join(shown.output.split())


def test_what_a_served_model_s_success_costs(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with Loopback(default=lambda asked: completion(asked["messages"][0]["content"][-1])) as server:
        model = ("--policy", "served=openai:scripted-1", "--base-url", server.base_url)
        done = run(*model, *PLAYED[4:], "--price", "1000,2000", "--json")
        unpriced = run(*model, *PLAYED[4:], "--json")
    (policy,) = json.loads(done.output)["policies"]
    assert (policy["rate"], policy["cost_per_success_usd"]) == (1.0, pytest.approx((10 * 1000 + 5 * 2000) / 1e6))
    assert json.loads(unpriced.output)["policies"][0]["cost_per_success_usd"] is None


def test_scaling_with_a_plot(tmp_path):
    done = run(*PLAYED, "--scaling", "1,2,4", "--out", tmp_path / "curve", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert [[point["rate"] for point in curve["points"]] for curve in said["curves"]] == [[0.25, 0.5, 1.0], [0.25, 0.5, 0.75]]
    assert sorted(path.name for path in (tmp_path / "curve").iterdir()) == ["scaling.json", "scaling.md", "scaling.svg"]


def test_a_curve_without_matplotlib_is_kept_as_a_table(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run(*PLAYED, "--scaling", "1", "--out", tmp_path / "curve")
    assert done.exit_code == 0
    assert "no plot: matplotlib is not installed" in " ".join(done.output.split())
    assert sorted(path.name for path in (tmp_path / "curve").iterdir()) == ["scaling.json", "scaling.md"]


def test_an_estimate_from_logs_says_what_is_missing(tmp_path):
    steps = (Step(Message.assistant("3"), terminated=True, reward=1.0),)
    trace = Trace("t", Trajectory((), (Message.user("lock 3"),), steps), Source("test"), task="lock 3", outcome=Outcome(1.0, True))
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([trace])
    done = run("--policy", "new=locks:low", "--logged", tmp_path / "s.duckdb")
    assert done.exit_code == 2
    assert "can't say how likely" in done.stderr
    none = run("--policy", "new=locks:low", "--logged", tmp_path / "s.duckdb", "--agent", "nobody")
    assert (none.exit_code, "no run of that kind" in none.stderr) == (1, True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--policy", "locks:low"), "no --environment or no --tasks"),
        ((*PLAYED, "--verifier", "outcome"), "--verifier for a plain evaluation"),
        ((*PLAYED, "--search", "beam"), "--search for a plain evaluation"),
        ((*PLAYED, "--agent", "a"), "--agent for a plain evaluation"),
        ((*PLAYED, "--scaling", "4", "--attempts", "2"), "--attempts for --scaling"),
        ((*PLAYED, "--logged", "s.duckdb"), "--environment for --logged"),
        (("--policy", "locks:low", "--logged", "nowhere.duckdb"), "does not exist"),
        ((*PLAYED, "--attempts", "2", "--temperature", "0"), "all alike"),
    ],
)
def test_options_that_mean_nothing_are_refused(given, words):
    done = run(*given)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
