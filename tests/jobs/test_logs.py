"""What a job logs: events as JSON lines, nothing of what was said, and nothing at all where nobody asks."""

import json
import logging
import sys

import pytest

from counterplay import Store
from counterplay.core.errors import UserError
from counterplay.core.store import NewUnit
from counterplay.jobs import running
from counterplay.jobs.driver import Driver
from counterplay.jobs.events import cleaned
from counterplay.jobs.logs import logged
from counterplay.jobs.progress import Progress
from counterplay.jobs.retries import Retries
from counterplay.jobs.work import Work, Worked, WorkerLostError
from counterplay.replay.adaptive import Concurrency
from counterplay.replay.health import Health
from counterplay.replay.openai_tally import Tally
from counterplay.replay.routing import Leave, Router, Server, Sign
from tests.jobs.batch import loaded, make


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "moves", raising=False)
    yield tmp_path
    sys.modules.pop("moves", None)
    sys.modules.pop("broken", None)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def named(found, name):
    return [line for line in found if line["event"] == name]


def test_a_job_from_its_beginning_to_its_end(folder):
    job = loaded(make(folder, tasks=1))
    with logged("log.jsonl"):
        report = running.run(job)
        running.run(job)
    found = lines(folder / "log.jsonl")
    assert {line["level"] for line in found} == {"info"}
    told = [line["event"].removeprefix("job.") for line in found if line["event"].startswith("job")]
    assert told == ["began", "planned", "ended", "began", "resumed", "ended"]
    assert [line["stage"] for line in named(found, "stage.began")] == ["ingest", "units", "exports"] * 2
    assert len(named(found, "stage.ended")) == 6
    done = named(found, "unit.done")
    assert len({line["unit"] for line in done}) == len(done) == 5
    assert sum(line["live_calls"] for line in done) == report.live_calls
    assert sum(line["used"]["model_calls"] for line in done) == report.used["model_calls"]
    assert sum(line["count"] for line in named(found, "units.claimed")) == 5
    assert [line["rows"]["train"] > 0 for line in named(found, "export.written")] == [True] * 4
    assert {line["job"] for line in found} == {"moves", report.job}
    assert min(line["time"] for line in found).endswith("Z")
    text = (folder / "log.jsonl").read_text()
    assert "note-" not in text, "what the model said"
    assert "Reach" not in text, "what it was asked"


def test_what_failed_says_why_without_content(folder):
    file = make(folder, tasks=1)
    (folder / "broken.py").write_text(
        'from moves import World as Whole\n\ndef World(task):\n    raise KeyError("the secret sk-abcdef, said by a user")\n'
    )
    with logged("log.jsonl"):
        running.run(loaded(file, environment={"spec": "broken:World"}))
    failed = named(lines(folder / "log.jsonl"), "unit.failed")
    assert len(failed) == 5
    assert {(line["level"], line["class"]) for line in failed} == {("warning", "user")}
    assert "made no world" in failed[0]["reason"]
    text = (folder / "log.jsonl").read_text()
    assert "secret" not in text
    assert "said by a user" not in text
    assert len(named(lines(folder / "log.jsonl"), "export.empty")) == 2


def test_a_command_that_fails_is_told(folder):
    with logged("log.jsonl"), pytest.raises(UserError):
        running.run(loaded(make(folder, tasks=1), select={"agents": ["nobody"]}))
    (failed,) = named(lines(folder / "log.jsonl"), "job.failed")
    assert (failed["level"], failed["error"]) == ("error", "UserError")


def test_a_user_s_own_handler_is_told_and_nobody_else(folder, caplog, capsys):
    job = loaded(make(folder, tasks=1))
    running.run(job)
    assert capsys.readouterr() == ("", "")
    with caplog.at_level(logging.INFO, "counterplay"):
        running.run(job)
    assert "job.ended" in [record.counterplay.name for record in caplog.records if record.name == "counterplay.jobs"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("KeyError: 'refund order 17'", "KeyError: …"),
        ('answered 400: {"error": {"message": "you said hello"}}', "answered 400: …"),
        ("Authorization: Bearer abc.def refused", "Authorization: … refused"),
        ("trace 21d02704fd1cb04fa2a2461fbe87629c has no steps", "trace 21d02704fd1cb04fa2a2461fbe87629c has no steps"),
        ("key=Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4MTIz, isn't it", "… isn't it"),
        ("got Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4MTIz there", "got … there"),
        ("x" * 20 + " y" * 300, ("x" * 20 + " y" * 300)[:200]),
    ],
)
def test_the_words_of_an_error(said, kept):
    assert cleaned(said) == kept


async def test_a_server_s_circuit(tmp_path):
    server = Server("http://user:secret@gpu1:8000/v1", None, Concurrency(most=64), Health())
    router = Router([server], most=64, retries=0, tally=Tally())
    with logged(tmp_path / "log.jsonl"):
        for well in (*[False] * 5, True):
            router.in_flight += 1
            router._give_back(Leave(server, server.limit.begin()), Sign.NONE if not well else Sign.ANSWERED, well=well)
    found = lines(tmp_path / "log.jsonl")
    assert [(line["event"], line["level"], line["server"]) for line in found] == [
        ("server.opened", "warning", "gpu1:8000"),
        ("server.closed", "info", "gpu1:8000"),
    ]


class Crew:
    """Its worker dies, its server fails, then it does the work; each try that comes back has paid for two calls."""

    size = 1

    def __init__(self):
        paid = {"live_calls": 2, "tally": {"calls": 2, "unusable": 1}}
        self.answers = [WorkerLostError("killed"), Worked("u", "failed", "answered 500", "server", **paid), Worked("u", "done", **paid)]

    async def submit(self, work):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self):
        pass


class Loader:
    at_once = 1

    def load(self, units):
        return [Work(unit.id, ()) for unit in units]


async def test_tries_and_what_all_of_them_paid(tmp_path):
    with Store.open(tmp_path / "s.duckdb") as store, logged(tmp_path / "log.jsonl"):
        store.put_job("j", "j", "{}")
        store.add_units("j", [NewUnit("u", ("t",))])
        await Driver(store, "j", Loader(), Crew(), Progress(store.path, "j", store.unit_counts("j")), retries=Retries(3, 0.001)).run()
        (unit,) = store.units("j")
        (costs,) = store.costs("job")
    found = [line for line in lines(tmp_path / "log.jsonl") if line["event"] != "units.claimed"]
    assert [line["event"] for line in found] == ["worker.lost", "unit.retried", "unit.retried", "unit.done"]
    assert [line.get("class") for line in found] == [None, "lost", "server", None]
    assert (unit.result["live_calls"], unit.result["tally"]) == (4, {"calls": 4, "unusable": 2})
    assert (costs.paid.calls, costs.wasted) == (4, {"unusable": 2})


def test_a_log_that_can_t_be_written(tmp_path):
    with pytest.raises(UserError, match="can't be written"), logged(tmp_path / "no" / "log.jsonl"):
        pass
