"""Jobs on the command line: what is printed, and with which exit code it ends."""

import json
import sys
import threading
import time

import pytest
from typer.testing import CliRunner

from counterplay.cli import app
from counterplay.jobs import starter
from counterplay.jobs.progress import Progress, read_status, shown, span
from counterplay.jobs.spec import Job
from tests.jobs.batch import make, write_logs


@pytest.fixture
def cli(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "moves", raising=False)
    make(tmp_path, tasks=1)

    def run(*words):
        return CliRunner().invoke(app, list(words), catch_exceptions=False)

    yield run
    for name in ("moves", "broken"):
        sys.modules.pop(name, None)


def test_from_the_plan_to_the_report(cli, tmp_path):
    plan = cli("run", "job.toml", "--dry-run", "--json")
    assert (plan.exit_code, json.loads(plan.stdout)["units"]) == (0, {"pending": 5})
    assert not (tmp_path / "s.duckdb").exists()
    probe = cli("run", "job.toml", "--probe", "3", "--json")
    assert json.loads(probe.stdout)["units"] == {"done": 3, "pending": 2}
    assert not (tmp_path / "out").exists()
    done = cli("run", "job.toml", "--watch", "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["states"], report["settled_before"]) == (0, {"done": 5}, 3)
    listed = json.loads(cli("jobs", "--store", "s.duckdb", "--json").stdout)["jobs"]
    assert [(row["id"], row["state"]) for row in listed] == [(report["job"], "done")]
    told = json.loads(cli("jobs", "show", "moves", "--store", "s.duckdb", "--json").stdout)
    assert told["used"] == report["used"]
    units = json.loads(cli("jobs", "units", "moves", "--state", "done", "--limit", "2", "--store", "s.duckdb", "--json").stdout)["units"]
    assert [unit["state"] for unit in units] == ["done", "done"]
    after = json.loads(cli("jobs", "units", "moves", "--after", str(units[-1]["number"]), "--store", "s.duckdb", "--json").stdout)["units"]
    assert len(after) == 3
    assert "2 of 5 units" in cli("jobs", "units", "moves", "--limit", "2", "--store", "s.duckdb").stdout
    assert "5 of 5 units" in cli("jobs", "units", "moves", "--state", "done", "--store", "s.duckdb").stdout


def test_what_failed_is_seen_and_retried(cli, tmp_path):
    job = tmp_path / "job.toml"
    job.write_text(job.read_text().replace("moves:World", "broken:World"))
    (tmp_path / "broken.py").write_text("def World(task):\n    raise KeyError(task)\n")
    ran = cli("run", "job.toml")
    assert ran.exit_code == 3
    assert "made no world" in ran.stdout
    page, told = (tmp_path / "out" / "report.md").read_text(), json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["again"] == f"counterplay jobs retry {told['job']} --store s.duckdb"
    assert told["again"] in page
    assert "parked" not in cli("jobs", "units", "moves", "--state", "failed", "--store", "s.duckdb").stdout
    wrong = cli("jobs", "units", "moves", "--state", "faild", "--store", "s.duckdb")
    assert (wrong.exit_code, "Did you mean failed?" in wrong.stderr) == (2, True)
    again = json.loads(cli("jobs", "retry", "moves", "--state", "failed", "--store", "s.duckdb", "--json").stdout)
    assert again["reopened"] == 5
    unknown = cli("jobs", "show", "nothing", "--store", "s.duckdb")
    assert (unknown.exit_code, "no job 'nothing'" in unknown.stderr) == (2, True)


def test_a_file_to_begin_with_and_its_schema(cli):
    assert cli("run", "--init").stdout == starter.STARTER
    assert json.loads(cli("run", "--schema").stdout)["title"] == "Job"
    nothing = cli("run")
    assert (nothing.exit_code, "counterplay run --init" in nothing.stderr.replace("\n", " ")) == (2, True)


def test_a_mistake_in_the_file_is_told_without_a_traceback(cli, tmp_path):
    (tmp_path / "job.toml").write_text('[job]\nname = "x"\nstor = "y"\n')
    ran = cli("run", "job.toml")
    assert ran.exit_code == 2
    assert "Did you mean store?" in ran.stderr.replace("\n", " ")


def test_who_works_on_a_store_is_shown_in_its_place(cli, tmp_path):
    progress = Progress("s.duckdb", "moves-1", {"pending": 3, "done": 1})
    progress.show("working hard")
    assert "working hard" in cli("jobs", "--store", "s.duckdb").stdout
    assert json.loads(cli("jobs", "show", "x", "--store", "s.duckdb", "--json").stdout)["job"] == "moves-1"
    progress.gone()
    assert read_status("s.duckdb") is None


def test_a_job_that_runs_elsewhere_is_only_watched(cli, tmp_path):
    progress = Progress("s.duckdb", Job.load("job.toml").family, {"pending": 3, "done": 1})
    progress.show("working hard")
    ending = threading.Timer(0.8, progress.gone)
    ending.start()
    ran = cli("run", "job.toml", "--watch")
    ending.join()
    assert ran.exit_code == 0
    assert "1 of 4 units had settled" in ran.stderr
    assert not (tmp_path / "s.duckdb").exists()


def test_a_status_is_of_those_who_live_and_tells_the_time_left(tmp_path, capsys):
    progress = Progress(tmp_path / "s", "j", {"pending": 90})
    time.sleep(0.05)
    for _ in range(30):
        progress.moved("pending", "running")
        progress.moved("running", "done")
    progress.charged({"model_calls": 60.0}, 40)
    progress.errors.append("u7: the server answered 500")
    progress.show("working on")
    status = read_status(tmp_path / "s")
    assert (status.settled, status.units, status.live_calls) == (30, 90, 40)
    assert status.left_s == pytest.approx(60 / status.per_s)
    from counterplay import console

    with console.out.capture() as told:
        console.out.print(shown(status, {"model_calls": 100.0}))
    assert "60 model_calls of 100" in told.get()
    assert "500" in told.get()
    gone = (tmp_path / "s.status.json").read_text().replace(f'"pid": {status.pid}', '"pid": 999999999')
    (tmp_path / "s.status.json").write_text(gone)
    assert read_status(tmp_path / "s") is None
    assert [span(seconds) for seconds in (5, 600, 36000)] == ["5 s", "10 min", "10.0 h"]


def test_what_takes_its_time_is_shown_meanwhile(tmp_path):
    progress = Progress(tmp_path / "s", "j", {"done": 1})
    with progress.meanwhile("making datasets"):
        first = read_status(tmp_path / "s").at_s
        time.sleep(2.3)
        status = read_status(tmp_path / "s")
    assert status.doing == "making datasets"
    assert status.at_s > first


def test_new_logs_show_in_the_plan(cli, tmp_path):
    cli("run", "job.toml", "--json")
    write_logs(tmp_path, 2)
    assert json.loads(cli("run", "job.toml", "--dry-run", "--json").stdout)["units"] == {"pending": 5}
