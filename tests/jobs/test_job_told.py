"""What a job tells of what it did not do: units that their budget stopped, logs that could not be read, selections that leave nothing."""

import json
import shutil
import sys

import pytest
from typer.testing import CliRunner

from counterplay import Store
from counterplay.cli import app
from counterplay.core.errors import UserError
from counterplay.jobs import dry, running
from counterplay.jobs.reserving import Reserves, bound_of
from counterplay.jobs.stops import Stopped
from counterplay.parts import Asked
from tests.front.moves import logged
from tests.jobs.batch import answer, loaded, make, report_of, write_logs
from tests.replay.loopback import Loopback


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "moves", raising=False)
    yield tmp_path
    sys.modules.pop("moves", None)


@pytest.fixture
def served(folder):
    """A job whose model is on a server, with a price and no `max_tokens`; it is given its budget."""
    with Loopback(default=answer) as server:
        file = make(folder, policy="openai:m", servers=f'base_urls = ["{server.base_url}"]', tasks=2)
        text = file.read_text().replace("max_tokens = 40\n", "")

        def job(budget):
            file.write_text(text.replace("total = { model_calls = 400 }", budget))
            return loaded(file)

        yield job


def run(job, **given):
    said = []
    return running.run(job, say=said.append, **given), said


def cli(*words):
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def flat(text):
    return " ".join(text.split())


def test_units_that_their_share_stops_are_foreseen_and_told(served, folder):
    job = served("total = { usd = 0.12 }")
    foreseen = dry.estimated(job)
    report, _ = run(job)
    assert report.used["model_calls"] == pytest.approx(foreseen.of("model_calls").amount, rel=0.2)
    assert report.used["usd"] < 0.12 / 20
    (said,), (told,) = foreseen.stopped, report.stopped
    assert (said["kind"], said["units"], said["of"]) == (told["kind"], told["units"], told["of"]) == ("usd", 10, 10)
    assert said["reserves"] == told["reserves"]
    assert told["share"] == pytest.approx(0.012)
    assert told["share"] / 3 < told["reserves"][0] < told["share"]
    assert "10 of 10 units would stop at their share of the budget (usd)" in said["said"]
    assert "set [policy] max_tokens (a proposal reserves for 2,048 tokens of output), raise [budget] total" in told["said"]
    assert told["said"] in (folder / "out" / "report.md").read_text()
    assert report_of(folder)["stopped"][0]["said"] == told["said"]
    shown = cli("jobs", "show", "moves", "--store", "s.duckdb").stdout
    assert told["said"] in flat(shown)
    assert "stopped at its share" in flat(cli("jobs", "units", "moves", "--store", "s.duckdb", "--limit", "1").stdout)
    assert "10 of 10 units would stop" not in flat(cli("run", "job.toml", "--dry-run").stdout), "they have had their budget"


def test_a_smaller_bound_lets_them_go_on_as_is_advised(served):
    job = served("total = { usd = 0.12 }")
    lower = job.model_copy(update={"policy": job.policy.model_copy(update={"max_tokens": 20})})
    assert dry.estimated(lower).of("model_calls").amount > 2 * dry.estimated(job).of("model_calls").amount


@pytest.mark.parametrize("budget", ["per_trace = { tokens = 50 }", "total = { usd = 0.0001 }"])
def test_a_budget_below_one_call_is_said_before_and_after(served, folder, budget):
    job = served(budget)
    foreseen = dry.estimated(job)
    assert list(foreseen.amounts) == []
    report, _ = run(job)
    assert (report.states, report.live_calls, report.used) == ({"done": 10}, 0, {})
    for (told,) in (foreseen.stopped, report.stopped):
        assert (told["units"], told["unasked"]) == (10, 10)
        assert told["reserves"][0] > told["share"]
        assert "before their first call" in told["said"]
    assert "before their first call" in (folder / "out" / "report.md").read_text()


def test_a_budget_of_nothing_is_told_as_what_it_is(folder):
    job = loaded(make(folder, tasks=1), budget={"total": "model_calls=0"})
    (skipped,) = dry.estimated(job).skipped
    report, _ = run(job)
    assert skipped == {"reason": "the budget has no model_calls: it is 0", "count": 5}
    assert [why["reason"] for why in report.reasons] == [skipped["reason"]]
    assert (report.states, report.live_calls) == ({"skipped": 5}, 0)


def test_units_without_a_share_of_a_budget_that_is_hardly_spent(folder):
    job = loaded(make(folder, tasks=2), budget={"total": "model_calls=4000", "per_trace": "model_calls=1000"})
    (skipped,) = dry.estimated(job).skipped
    assert skipped["count"] == 6
    assert "the budget of 4,000 model_calls lasts for 4 of 10 traces at 1,000 each, and brings more elsewhere" in skipped["reason"]
    report, _ = run(job)
    assert "6 units had no share of the budget" in report.unspent
    assert "of 4,000 model_calls were used" in report.unspent
    assert report.unspent in (folder / "out" / "report.md").read_text()
    spent, _ = run(loaded(folder / "job.toml", job={"name": "spent"}, budget={"total": "model_calls=40"}))
    assert (spent.unspent, spent.states["skipped"] > 0) == ("", True)


def test_units_that_used_up_their_calls_are_told_without_a_word_on_tokens(folder):
    report, _ = run(loaded(make(folder, tasks=1), budget={"total": "", "per_trace": "model_calls=4"}))
    (told,) = report.stopped
    assert (told["kind"], told["share"], told["reserves"]) == ("model_calls", 4, None)
    assert told["said"].endswith("To let them go on: raise [budget] per_trace.")


@pytest.mark.parametrize(("used", "lower"), [(0.011, False), (0.001, True)])
def test_a_lower_bound_is_advised_where_shares_are_left(served, used, lower):
    job = served("total = { usd = 0.12 }")
    stopped = Stopped()
    stopped.add("t", 0.012, used, asked=True)
    assert ("max_tokens" in stopped.told("usd", 1, job, [logged("t", "bab")]).said) == lower


def test_what_is_reserved_is_what_the_policy_says():
    asked, trace = Asked("openai:m", price=(1.0, 2.0), max_tokens=30), logged("t", "babbab")
    bound = bound_of(asked)
    policy = asked.__class__("openai:m", price=(1.0, 2.0), max_tokens=30, base_url="http://127.0.0.1").make_policy()
    reserves = Reserves(trace, bound)
    for step, n in ((0, 1), (3, 1), (3, 2), (5, 7)):
        wanted, got = policy.estimate(trace.trajectory.prefix(step), n), reserves.of(step, n)
        assert (got.input_tokens, got.output_tokens) == (wanted.input_tokens, wanted.output_tokens)
        assert got.cost_usd == pytest.approx(wanted.cost_usd)
    assert reserves.of(9, 1).input_tokens > reserves.of(5, 1).input_tokens > reserves.of(0, 1).input_tokens
    assert bound_of(Asked("logged")) is None


def broken(folder, count):
    """The logs of the job in a folder of their own, beside them files that were cut short."""
    logs = folder / "logs"
    logs.mkdir()
    shutil.move(folder / "logs.jsonl", logs / "good.jsonl")
    for number in range(count):
        (logs / f"cut{number}.json").write_text('[{"messages": [{"role": "user", "content": "go')
    return folder / "logs"


def named(rows):
    return [row["uri"].rpartition("/")[2] for row in rows]


def test_logs_that_could_not_be_read_are_named(folder):
    file = make(folder, tasks=1)
    broken(folder, 4)
    file.write_text(file.read_text().replace('"logs.jsonl"', '"logs"'))
    assert any("cut0.json" in note for note in dry.estimated(loaded(file)).notes)
    ran = cli("run", "job.toml", "--log", "log.jsonl")
    assert ran.exit_code == 0, "as `counterplay ingest`, where something could be read"
    found = report_of(folder)
    count = found["read"]["rejected_added"]
    assert f"5 files read, 6 traces added, {count} inputs unreadable" in flat(ran.stdout)
    said = flat(ran.stderr)
    assert f"{count} inputs could not be read: " in said
    assert all(word in said for word in ("cut0.json", "cut1.json", "cut2.json", "and 1 more file", "counterplay sql"))
    assert named(found["unreadable"]) == [f"cut{number}.json" for number in range(4)]
    page = (folder / "out" / "report.md").read_text()
    assert "cut3.json" in page
    assert found["unreadable_in"] in page
    listed = cli("sql", found["unreadable_in"].split('"')[1], "--store", "s.duckdb", "--format", "csv")
    assert all(f"cut{number}.json" in listed.stdout for number in range(4))
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    (rejected,) = [event for event in events if event["event"] == "inputs.rejected"]
    assert (rejected["level"], rejected["count"], rejected["files"], len(rejected["first"])) == ("warning", count, 4, 4)
    ingested = next(event for event in events if event["event"] == "stage.ended" and event["stage"] == "ingest")
    assert (ingested["files_read"], ingested["traces_added"], ingested["rejected_added"]) == (5, 6, count)


def test_a_later_run_names_the_new_ones_alone(folder):
    file = make(folder, tasks=1)
    logs = broken(folder, 1)
    file.write_text(file.read_text().replace('"logs.jsonl"', '"logs"'))
    job = loaded(file)
    run(job)
    (logs / "late.json").write_text('[{"messages": [')
    report, said = run(job)
    assert named(report.unreadable) == ["late.json"]
    (line,) = (line for line in said if "could not be read" in line)
    assert "late.json" in line
    assert "cut0.json" not in line
    assert any("nothing new" in line for line in said)


def test_where_nothing_could_be_read_that_is_why(folder):
    file = make(folder, tasks=1)
    (broken(folder, 2) / "good.jsonl").unlink()
    file.write_text(file.read_text().replace('"logs.jsonl"', '"logs"'))
    for attempt in (dry.estimated, running.run):
        with pytest.raises(UserError, match=r"no trace in the sources \(\d inputs could not be read: .*cut0\.json"):
            attempt(loaded(file))


@pytest.mark.parametrize(
    ("select", "said"),
    [
        ({"agents": ("movr",)}, r"agents = movr: no trace has this agent \(there is mover\)"),
        ({"tasks": ("t0", "t22"), "limit": 1, "which": "succeeded", "agents": ("mover",)}, None),
        ({"tasks": ("t22",)}, r"tasks = t22: no trace has this task \(nearest are t\d, t\d, t\d\)"),
        ({"tags": ("nightly",)}, r"tags = nightly: no trace has this tag \(none has any\)"),
        ({"formats": ("otel",), "agents": ("movr",)}, r"agents = movr: .*; formats = otel: no trace has this format \(there is"),
        ({"cost_above_usd": 1.0}, "cost_above_usd = 1: no trace has a cost"),
        ({"steps_above": 50}, "steps_above = 50: the longest trace has 6 steps"),
        ({"since": "2031-01-01", "until": "2030-01-01"}, "since 2031-01-01 is not before until 2030-01-01"),
        ({"which": "succeeded", "tasks": ("t0",), "steps_above": 5, "sample": 1e-9}, r"sample = 1e-09: too small a share of 18 traces"),
    ],
)
def test_a_selection_that_leaves_nothing_names_what_does(folder, select, said):
    job = loaded(make(folder, tasks=3), select=select)
    if said is None:
        assert dry.estimated(job).units == {"pending": 1}
        return
    for attempt in (dry.estimated, running.run):
        with pytest.raises(UserError, match=said) as raised:
            attempt(job)
        assert "which =" not in str(raised.value), "only what leaves nothing is named"


def test_filters_that_leave_nothing_together_are_counted_down(folder):
    file = make(folder, tasks=2)
    job = loaded(file)
    with Store.open(job.job.store) as store:
        running.take_in(store, job, lambda _: None)
        store.ingest([logged("other", "bb" * 4, agent="other")])
        assert [store.nearest("agent", word, 1) for word in ("movr", "OTHR")] == [["mover"], ["other"]]
    with pytest.raises(
        UserError, match=r"of 13 traces which = failed leaves 11, then agents = mover leaves 10, then steps_above = 6 leaves 0"
    ):
        running.run(loaded(file, select={"agents": ("mover",), "steps_above": 6}))
    ran = cli("run", "job.toml", "--dry-run")
    assert ran.exit_code == 0


def test_outcomes_are_counted_where_none_is_asked_for(folder):
    job = make(folder, tasks=1)
    (folder / "logs.jsonl").unlink()
    write_logs(folder, 1, played=("bbbbbb",))
    with pytest.raises(UserError, match="which = failed: by outcome there are 1 success"):
        dry.estimated(loaded(job))
