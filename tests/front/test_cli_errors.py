"""What a person sees when something is wrong: one message that says what was got, wanted and to be done; no traceback; nothing lost."""

import gzip
import http.server
import shutil
import subprocess
import sys
import threading

import pytest

SEARCH = ("search", "--environment", "parts:world", "--limit", 2)


def says(ran, code, *texts):
    assert ran.code == code, ran.err + ran.out
    message = " ".join(ran.err.split())
    assert message.startswith("error: ") or "error:" in message, ran.err
    for text in texts:
        assert text in message, message


def kept(cli, store, traces=40):
    stats = cli("stats", "--verify", "--store", store, "--json").json
    assert (stats["traces"], stats["verified"]) == (traces, True)


def test_a_truncated_file_gives_its_good_lines(cli, logs, folder):
    whole = logs.read_bytes()
    (folder / "cut.jsonl").write_bytes(whole[: len(whole) // 2])
    report = cli("ingest", "cut.jsonl", "--store", "s.duckdb", "--json").json
    assert report["traces_added"] > 10
    assert report["rejected_added"] == 1
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(whole)[:-2000])
    cut = cli("ingest", "cut.jsonl.gz", "--store", "g.duckdb", "--json").json
    assert cut["traces_added"] > 5
    assert cut["rejected_added"] >= 1
    kept(cli, "g.duckdb", cut["traces_added"])


def test_a_bad_line_among_good_ones_is_quarantined_by_name(cli, logs):
    lines = logs.read_text().splitlines()
    lines.insert(7, '{"messages": [')
    logs.write_text("\n".join(lines))
    ran = cli("ingest", logs, "--store", "s.duckdb", "--json")
    assert (ran.json["traces_added"], ran.json["rejected_added"]) == (40, 1)
    stats = cli("stats", "--store", "s.duckdb", "--json").json
    assert sum(stats["quarantine"].values()) == 1


def test_binary_and_unknown_files(cli, store, folder):
    (folder / "model.bin").write_bytes(bytes(range(256)) * 64)
    says(cli("ingest", "model.bin", "--store", store), 2, "model.bin", "wanted")
    (folder / "notes.json").write_text('{"shopping": ["milk"]}')
    says(cli("ingest", "notes.json", "--store", store), 2, "notes.json", "chatlog")
    says(cli("ingest", "nowhere.jsonl", "--store", store), 2, "nowhere.jsonl", "does not exist")
    says(cli("ingest", "logs.jsonl", "--format", "chatlgo", "--store", store), 2, "chatlgo", "one of")
    says(cli("ingest", ".", "--effects", "none.toml", "--store", store), 2, "none.toml", "can't be read", "TOML")
    kept(cli, store)


def test_a_locked_store_names_who_holds_it(cli, store, folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", f"from counterplay import Store; s = Store.open({str(store)!r}); print('held', flush=True); input()"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline().strip() == "held"
        says(cli("ingest", "logs.jsonl", "--store", store), 1, str(holder.pid))
        says(cli("stats", "--store", store), 1, str(holder.pid))
    finally:
        holder.communicate("\n")
    kept(cli, store)


def test_not_a_store_and_no_store(cli, folder):
    (folder / "s.duckdb").write_text("this is not a database at all, and it must stay as it is")
    says(cli("ingest", "parts.py", "--store", "s.duckdb"), 1, "s.duckdb")
    assert (folder / "s.duckdb").read_text().startswith("this is not")
    says(cli("stats", "--store", "none.duckdb"), 2, "none.duckdb", "counterplay ingest")


def test_a_missing_model_folder(cli, store):
    says(cli(*SEARCH, "--policy", "transformers:no/such/model", "--store", store), 2, "no/such/model")
    says(cli("export", "sft", "--out", "d", "--source", "logged", "--tokenizer", "no/such", "--store", store), 2, "no/such")
    says(cli("train", "sft", "--model", "no/such", "--data", "nothing", "--out", "m"), 2, "nothing")
    kept(cli, store)


def test_a_verifier_that_raises(cli, store):
    ran = cli(*SEARCH, "--policy", "parts:policy", "--verifier", "parts:raising", "--store", store)
    says(ran, 1, "raising", "KeyError", "no such account")
    ran = cli("verifiers", "check", "parts:raising", "--store", store, "--json")
    assert ran.code == 1
    assert "KeyError" in ran.json["problems"][0]
    kept(cli, store)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--policy", "parts:policy", "--verifier", "outcom"], ["outcom", "outcome"]),
        (["--policy", "parts:polic"], ["polic"]),
        (["--policy", "gpt-4"], ["gpt-4", "openai:MODEL"]),
        ([], ["got no policy"]),
        (["--policy", "parts:policy", "--search", "mtcs"], ["mtcs", "mcts"]),
        (["--policy", "parts:policy", "--option", "k=3"], ["'k'", "one of"]),
        (["--policy", "parts:policy", "--option", "n=many"], ["many", "int"]),
        (["--policy", "parts:policy", "--option", "n=0"], ["n=0", "at least 1"]),
        (["--policy", "openai:m", "--base-url", "http://127.0.0.1:9/v1", "--extra-body", '{"n": 7}'], ["extra_body", "option"]),
        (["--policy", "parts:policy", "--budget", "euros=5"], ["euros", "usd"]),
        (["--policy", "parts:policy", "--budget", "usd=lots"], ["usd=lots"]),
        (["--policy", "parts:policy", "--search", "best_of_n", "--fork", "early"], ["early"]),
        (["--policy", "parts:policy", "--trace", "nonesuch"], ["nonesuch"]),
        (["--policy", "parts:policy", "--environment", "parts:nowhere"], ["nowhere"]),
    ],
)
def test_bad_usage_names_what_is_wanted(cli, store, options, texts):
    says(cli(*SEARCH, *options, "--store", store), 2, *texts)


class Sick(http.server.BaseHTTPRequestHandler):
    """Answers every request with what it was told to."""

    status, body = 500, b"the model fell over"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [(500, b"the model fell over", "500"), (200, b"<html>hello</html>", "hello"), (401, b'{"error": {"message": "bad key"}}', "401")],
)
def test_a_server_that_answers_500_or_nonsense(cli, store, status, body, text):
    handler = type("Handler", (Sick,), {"status": status, "body": body})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        ran = cli(*SEARCH, "--policy", "openai:tiny", "--base-url", url, "--store", store, env={"OPENAI_API_KEY": "none"})
    finally:
        server.shutdown()
        server.server_close()
    assert ran.code in (1, 2)
    says(ran, ran.code, text)
    kept(cli, store)


def test_nobody_answers_at_the_url(cli, store):
    ran = cli(*SEARCH, "--policy", "openai:tiny", "--base-url", "http://127.0.0.1:9/v1", "--store", store, env={"OPENAI_API_KEY": "none"})
    assert ran.code in (1, 2)
    says(ran, ran.code, "127.0.0.1:9")
    kept(cli, store)


def test_a_dataset_never_overwrites_a_foreign_folder(cli, store, folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("three years of work")
    says(cli("export", "sft", "--source", "logged", "--out", "mine", "--store", store), 2, "mine")
    assert (folder / "mine" / "thesis.txt").read_text() == "three years of work"
    says(cli("export", "dpo", "--out", "pairs", "--store", store), 2, "search")
    says(cli("export", "sft", "--min-grade", "stale", "--out", "d", "--store", store), 2, "stale")


def test_a_damaged_store_is_said_to_be_damaged(cli, store, folder):
    path = folder / store
    shutil.copy(path, folder / "damaged.duckdb")
    data = bytearray((folder / "damaged.duckdb").read_bytes())
    data[4096 * 3 : 4096 * 60] = b"\xff" * (4096 * 57)
    (folder / "damaged.duckdb").write_bytes(data)
    ran = cli("stats", "--verify", "--store", "damaged.duckdb")
    assert ran.code == 1
    kept(cli, store)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from counterplay.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert CliRunner().invoke(app, ["ingest", __file__, "--store", "s.duckdb"]).exit_code == 2
    from counterplay import Store

    Store.open(tmp_path / "s.duckdb").close()
    ran = CliRunner().invoke(app, ["export", "sft", "--source", "logged", "--out", "d", "--tokenizer", "model", "--store", "s.duckdb"])
    assert ran.exit_code == 2
    assert "counterplay[train]" in ran.output


@pytest.mark.parametrize("command", ["search", "localise"])
def test_a_mistyped_store_is_not_made(cli, tmp_path, command):
    missing = tmp_path / "mistyped.duckdb"
    done = cli(command, "--store", missing)
    assert done.code == 2
    assert "which does not exist" in done.err
    assert not missing.exists()


def test_texts_for_a_person_are_printed_as_they_are(capsys):
    from counterplay import console

    line = "note: [policy] price says what tokens cost, " + "--option value " * 20
    console.emit({}, as_json=False, human=[line])
    assert capsys.readouterr().out == f"{line}\n"


def test_an_error_that_ends_with_a_question_has_no_full_stop_behind_it():
    from counterplay.core.errors import UserError

    assert str(UserError("got x. Did you mean y?", do="See z.")) == "got x. Did you mean y? See z."
    assert str(UserError("got x", "y", "See z.")) == "got x; wanted y. See z."


INTERRUPTED = """
import sys

class Interrupted:
    def find_spec(self, name, *_):
        if name == "counterplay.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
import runpy
runpy.run_module("counterplay", run_name="__main__")
"""


def test_an_interrupt_while_it_is_still_being_imported_ends_it_in_a_word():
    ran = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr, ran.stdout) == (130, "stopped\n", "")


@pytest.mark.parametrize(
    "command",
    [
        ("search",),
        ("localise", "--method", "bisect"),
        ("evaluate", "--environment", "parts:world", "--tasks", "t.txt"),
        ("evaluate", "--environment", "parts:world", "--tasks", "t.txt", "--scaling", "4"),
    ],
    ids=["search", "localise", "evaluate", "scaling"],
)
def test_how_long_a_server_may_take_is_said_to_the_policy(store, folder, monkeypatch, command):
    from typer.testing import CliRunner

    from counterplay.cli import app
    from counterplay.core.errors import UserError
    from counterplay.replay import policies

    told = []

    def made(*_, timeout_s=None, **__):
        told.append(timeout_s)
        raise UserError("seen")

    monkeypatch.setattr(policies, "policy_from_spec", made)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (folder / "t.txt").write_text("train-0001\n")
    where = () if command[0] == "evaluate" else ("--store", str(store), "--limit", "1")
    ran = CliRunner().invoke(app, [*command, "--policy", "openai:m", "--timeout-s", "7.5", *where])
    assert (told, ran.exit_code) == ([7.5], 2), ran.output
