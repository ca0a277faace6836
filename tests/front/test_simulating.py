"""What a simulation is worth, as figures: shares with intervals by tool, a baseline beside them, and the gate that follows."""

import json

import pytest

from counterplay import simulating
from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Source, Step, ToolCall, Trace, Trajectory
from counterplay.replay.holdout import Agreement, Trial

EFFECTS = {"look": Effect("read", "item:{id}"), "mood": Effect("read"), "put": Effect("write")}


def run(number, *pairs):
    """A trace of single calls: (name, arguments, result)."""
    steps = [
        Step(Message.assistant(None, [ToolCall(f"c{i}", name, json.dumps(arguments))]), (Message.tool(result, f"c{i}"),))
        for i, (name, arguments, result) in enumerate(pairs)
    ]
    return Trace(f"t{number}", Trajectory((), (Message.user("go"),), tuple(steps)), Source("test"), task=str(number))


def shop(n=20):
    """Runs that all look at item 1, which is the same for all, and ask for the mood, of which there are two."""
    return [run(i, ("look", {"id": 1}, '{"name": "lamp", "price": 7}'), ("mood", {"day": i}, "bad" if i % 4 else "good")) for i in range(n)]


async def test_figures_by_tool_with_intervals_and_a_baseline():
    report = await simulating.check(shop(), effects=EFFECTS, min_likeness=0.0)
    look, mood = (next(tool for tool in report.tools if tool.tool == name) for name in ("look", "mood"))
    assert (look.asked, look.answered.value, look.exact.value, look.fields.value) == (20, 1.0, 1.0, 1.0)
    assert (look.same.n, look.similar.n) == (20, 0)
    assert look.exact.interval[0] == pytest.approx(0.839, abs=0.001)  # Wilson, 20 of 20
    assert mood.baseline.value == 0.75
    assert mood.exact.interval[0] < mood.exact.value < mood.exact.interval[1]
    assert report.total.asked == 40
    assert report.groups == 20


async def test_what_is_not_answered_is_counted_with_why():
    report = await simulating.check(shop(), effects=EFFECTS)
    mood = next(tool for tool in report.tools if tool.tool == "mood")
    assert 0 < mood.answered.value < 1
    assert report.unanswered == {"mood": 20 - mood.exact.n}


async def test_the_gate_is_the_lower_end():
    report = await simulating.check(shop(), effects=EFFECTS, min_likeness=0.0)
    assert report.fidelity["look"] == report.tools[0].exact.interval[0]
    assert all(value < 1.0 for value in report.fidelity.values())


async def test_it_comes_back_from_a_file(tmp_path):
    report = await simulating.check(shop(), effects=EFFECTS)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(simulating.plain(report)))
    assert simulating.fidelity_from(path) == report.fidelity


@pytest.mark.parametrize("text", [None, "no json", "{}", '{"fidelity": {"look": "high"}}'])
def test_a_file_that_holds_no_gate_is_refused(tmp_path, text):
    path = tmp_path / "truth.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="simulate check"):
        simulating.fidelity_from(path)


async def test_without_declared_effects_nothing_may_be_simulated():
    with pytest.raises(UserError, match="no tool may be simulated"):
        await simulating.check(shop())


def test_calls_of_one_group_do_not_narrow_the_interval():
    def trials(groups):
        return [Trial("t", i % groups, "look", i, Agreement(i % 2 == 0, float(i % 2 == 0), errors=True), None) for i in range(100)]

    many, few = (simulating.summary(trials(groups), "nearest", 100).total.fields for groups in (99, 7))
    assert few.interval[1] - few.interval[0] > 0
    assert many.value == few.value == 0.5
    one = simulating.summary([Trial("t", 0, "look", 0, Agreement(True, 1.0, errors=True), None)], "nearest", 1)
    assert one.total.fields.interval is None


async def test_a_person_reads_a_table(capsys):
    from counterplay import console

    report = await simulating.check(shop(), effects=EFFECTS)
    console.emit(simulating.plain(report), as_json=False, human=simulating.view(report))
    shown = capsys.readouterr().out
    assert "look" in shown
    assert "no answer" in shown


class TestCommand:
    def ask(self, *arguments):
        from typer.testing import CliRunner

        from counterplay.commands.options import app
        from counterplay.commands.simulating import simulate_app

        assert simulate_app in [group.typer_instance for group in app.registered_groups]
        return CliRunner().invoke(app, ["simulate", "check", *map(str, arguments)])

    def test_a_store_is_checked(self, store, folder, tmp_path):
        done = self.ask("--store", folder / store, "--json")
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert {"lookup_vendor", "tax_rate"} <= set(report["fidelity"])
        assert report["groups"] == 40
        path = tmp_path / "truth.json"
        path.write_text(done.stdout)
        assert simulating.fidelity_from(path) == report["fidelity"]

    def test_the_log_s_effects_give_way_to_a_table(self, store, folder, tmp_path):
        table = tmp_path / "effects.toml"
        table.write_text('[tools.tax_rate]\neffect = "external"\n')
        done = self.ask("--store", folder / store, "--effects", table, "--max-calls", 50, "--json")
        report = json.loads(done.stdout)
        assert "tax_rate" not in [tool["tool"] for tool in report["tools"]]
        assert report["total"]["asked"] == 50

    def test_bad_names_are_bad_usage(self, store, folder):
        assert self.ask("--store", folder / store, "--simulator", "dreams").exit_code == 2
