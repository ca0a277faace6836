"""A job file says what is wrong with it in words and in place; what it says of exports is what the exports take."""

import inspect
import json
import tomllib

import jsonschema
import pytest
from pydantic import BaseModel

from counterplay import exporting
from counterplay.core.errors import UserError
from counterplay.jobs import checking, sections, starter
from counterplay.jobs.spec import Job, schema
from tests.jobs.batch import FILE

KINDS = ("sft", "dpo", "kto", "reward", "prm", "grpo")
BASE = {"job": {"name": "overnight"}, "policy": {"spec": "openai:m"}}
WRONG = {
    "[job]: the key 'name' is missing": {"job": {}},
    "got the key 'polcy', wanted one of .*Did you mean policy?": {"polcy": {}},
    r"\[search\]: got the key 'algoritm', wanted one of .*Did you mean algorithm\?": {"search": {"algoritm": "x"}},
    r"got search 'rebace'; .*Did you mean rebase\?": {"search": {"algorithm": "rebace"}},
    r"got option 'rond'; .*Did you mean rounds\?": {"search": {"algorithm": "repair", "options": {"rond": 1}}},
    "got option n='x'; wanted int": {"search": {"algorithm": "repair", "options": {"n": "x"}}},
    r"\[export\] 1: got the key 'tua', wanted one of .*Did you mean tau\?": {"export": [{"kind": "sft", "tua": 1}]},
    r"\[export\] 2 kind: got 'sftt', wanted 'sft', 'dpo'": {"export": [{"kind": "sft"}, {"kind": "sftt"}]},
    r"\[export\] 1: tau: got 'x', wanted a valid number": {"export": [{"kind": "sft", "tau": "x"}]},
    r"got two exports into the folder 'sft'": {"export": [{"kind": "sft"}, {"kind": "sft"}]},
    r"\[select\] since: got yesterday; wanted an ISO date .*, or an age such as 7d": {"select": {"since": "yesterday"}},
    r"\[select\] agents: got 3, wanted a list, in brackets": {"select": {"agents": 3}},
    r"\[source\]: got one table, wanted tables in double brackets: \[\[source\]\]": {"source": {"path": "logs"}},
    r"got one table, or a value, for verifier; wanted tables in double brackets": {"verifier": {"spec": "outcome"}},
    r"\[policy\] price: got 1.0, wanted a list, in brackets": {"policy": {"spec": "openai:m", "price": 1.0}},
    r"\[output\] folder: got 3, wanted a path, as text": {"output": {"folder": 3}},
    r"\[output\] folder: got s3://x/y, wanted a path on this machine.* --out s3://x/y": {"output": {"folder": "s3://x/y"}},
    r"\[job\] store: got gs://x/y, wanted a path on this machine": {"job": {"name": "x", "store": "gs://x/y"}},
    r"got \[search\] fork foo for repair": {"search": {"algorithm": "repair", "fork": "foo"}},
    r"policy whose price is not known; wanted a price. Give \[policy\] price": {"budget": {"total": {"usd": 2}}},
    r"got option n=0; wanted at least 1": {"search": {"algorithm": "repair", "options": {"n": 0}}},
    r"got option pivots=-1; wanted at least 0": {"search": {"algorithm": "fork_best_of_n", "options": {"pivots": [-1]}}},
    r"got option temperature=-1; wanted a finite number of at least 0": {
        "search": {"algorithm": "rebase", "options": {"temperature": -1.0}}
    },
    r'got \[search\] options.n = "4", a text; wanted a number: n = 4': {"search": {"algorithm": "best_of_n", "options": {"n": "4"}}},
    r'options.num_pivots = "2", a text; wanted a number': {"search": {"options": {"num_pivots": "2"}}},
    r"\[pace\] timeout_s: got 0, wanted greater than 0": {"pace": {"timeout_s": 0}},
    r"\[select\] sample: got 2, wanted less than or equal to 1": {"select": {"sample": 2}},
    r"got a limit in usd for a policy whose price is not known": {"budget": {"total": {"usd": 3}}},
    r"\[budget\] total: got 'euro', wanted amounts of": {"budget": {"total": {"euro": 3}}},
    r"\[budget\] per_trace: got budget part 'model_calls=x'": {"budget": {"per_trace": "model_calls=x"}},
    r"\[job\] name: got 'a b', wanted the letters": {"job": {"name": "a b"}},
    r"api_key: got a key that is written out; wanted \$\{NAME\}": {"policy": {"spec": "openai:m", "api_key": "sk-secret"}},
    r"got \$\{X\} outside of \[policy\] api_key": {"verifiers": ["${X}"]},
    r"got no \[policy\] spec": {"policy": {}},
    r"\[engine\]: got address or actors for kind = 'local'": {"engine": {"address": "auto"}},
    r"got \[search\] algorithm 'auto'": {"search": {"algorithm": "auto"}},
    r"got a \[\[verifier\]\] with other keys; wanted spec alone": {"verifier": [{"name": "x"}]},
}


@pytest.mark.parametrize(("told", "tables"), WRONG.items(), ids=list(map(str, range(len(WRONG)))))
def test_what_is_wrong_is_told_with_its_place(told, tables):
    with pytest.raises(UserError, match=told.replace("[job]:", r"\[job\]:")) as caught:
        Job.read({**BASE, **tables}, name="job.toml")
    said = str(caught.value)
    assert said.startswith("job.toml: ")
    assert "pydantic" not in said
    assert "sk-secret" not in said
    assert "validation error" not in said


def test_a_file_that_is_none_or_no_toml_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.toml, which can't be read"):
        Job.load(tmp_path / "nothing.toml")
    (tmp_path / "job.toml").write_text("[job\n")
    with pytest.raises(UserError, match=r"job\.toml is no TOML: .*line 1"):
        Job.load(tmp_path / "job.toml")


def test_the_starter_is_a_valid_job_and_the_schema_agrees():
    tables = tomllib.loads(starter.STARTER)
    job = Job.read(tables)
    assert job.verifiers == ("outcome",)
    described = schema()
    jsonschema.validate(json.loads(json.dumps(tables)), described)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**tables, "export": [{"kind": "sft", "tua": 1}]}, described)


def test_every_key_is_described():
    parts = [value for value in vars(sections).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    missing = [f"{part.__name__}.{name}" for part in [*parts, Job] for name, field in part.model_fields.items() if not field.description]
    assert not missing
    for kind in KINDS:
        assert not [name for name, field in checking.export_options(kind).model_fields.items() if not field.description], kind


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_takes_what_its_function_takes(kind):
    taken = set(inspect.signature(getattr(exporting, f"export_{kind}")).parameters) - {"store", "out", "shared"}
    assert set(checking.export_options(kind).model_fields) == taken | set(exporting.Shared.__annotations__)


def test_paths_are_seen_from_the_folder_of_the_file(tmp_path):
    extra = '[[export]]\nkind = "prm"\ntokenizer = "model"\n'
    (tmp_path / "job.toml").write_text(FILE.format(policy="transformers:../model", servers="", calls=9) + extra)
    job = Job.load(tmp_path / "job.toml")
    assert job.job.store == tmp_path / "s.duckdb"
    assert job.source[0].path == str(tmp_path / "logs.jsonl")
    assert job.policy.spec == f"transformers:{tmp_path / '../model'}"
    assert job.export[-1].options["tokenizer"] == str(tmp_path / "model")
    served = Job.read({**BASE, "source": [{"path": "s3://bucket/logs"}]}, folder=tmp_path)
    assert served.source[0].path == "s3://bucket/logs"


def test_a_job_is_what_decides_its_results():
    job = Job.read(BASE)
    same = [
        {"engine": {"at_once": 3, "processes": 2, "attempts": 9}},
        {"pace": {"in_flight": 3, "timeout_s": 9}},
        {"output": {"folder": "elsewhere"}},
        {"export": [{"kind": "sft"}]},
        {"policy": {"spec": "openai:m", "base_urls": ["http://a/v1"], "api_key": "${KEY}"}},
        {"job": {"name": "overnight", "store": "b.duckdb"}},
    ]
    other = [
        {"job": {"name": "overnight", "seed": 1}},
        {"policy": {"spec": "openai:m", "temperature": 0.5}},
        {"select": {"limit": 3}},
        {"verifiers": ["outcome"]},
        {"budget": {"total": "model_calls=3"}},
        {"search": {"stop_when": "value=1", "algorithm": "mcts"}},
    ]
    for tables in same:
        assert Job.read({**BASE, **tables}).identity == job.identity, tables
    identities = [Job.read({**BASE, **tables}).identity for tables in other]
    assert len({*identities, job.identity}) == len(other) + 1


def test_a_key_is_read_from_the_environment_and_kept_out_of_the_store(monkeypatch):
    import os

    monkeypatch.setenv("OPENAI_API_KEY", "old")
    job = Job.read({**BASE, "policy": {"spec": "openai:m", "api_key": "${SERVER_KEY}"}})
    with pytest.raises(UserError, match=r"\$\{SERVER_KEY\}, which is not set"):
        job.hand_over_key()
    monkeypatch.setenv("SERVER_KEY", "sk-secret")
    job.hand_over_key()
    assert os.environ["OPENAI_API_KEY"] == "sk-secret"
    assert "sk-secret" not in job.to_json()
    assert Job.model_validate_json(job.to_json()) == job


def test_options_of_a_search_may_be_of_any_plain_type():
    options = {"n": 2, "pivots": [1, 3], "localisation": "tool_error"}
    plan = Job.read({**BASE, "search": {"algorithm": "fork_best_of_n", "options": options}}).plan()
    assert plan.options == {"n": 2, "pivots": [1, 3], "localisation": "tool_error"}
    with pytest.raises(UserError, match="wanted a number, a text, true or false"):
        Job.read({**BASE, "search": {"algorithm": "repair", "options": {"n": {"a": 1}}}})


def test_one_text_needs_no_brackets():
    tables = {
        "select": {"agents": "support", "tags": "night"},
        "source": [{"path": "logs", "redact": "pii"}],
        "policy": {"spec": "openai:m", "base_urls": "http://a/v1"},
        "verifiers": "outcome",
        "export": [{"kind": "sft", "formats": "jsonl", "split_by": "task", "look_for": "pii", "algorithms": "repair"}],
    }
    job = Job.read({**BASE, **tables})
    assert (job.select.agents, job.select.tags, job.source[0].redact) == (("support",), ("night",), ("pii",))
    assert (job.asked().base_url, job.verifiers) == ("http://a/v1", ("outcome",))
    export = checking.typed("sft", job.export[0].options)
    assert export == {"formats": ["jsonl"], "split_by": ["task"], "look_for": ["pii"], "algorithms": ["repair"]}


def test_dates_and_times_of_toml_are_those_of_iso():
    given = tomllib.loads("since = 2026-01-01\nuntil = 2026-02-01T08:00:00Z")
    job = Job.read({**BASE, "select": given})
    assert (job.select.since, job.select.until) == ("2026-01-01", "2026-02-01T08:00:00+00:00")
    assert job.identity == Job.read({**BASE, "select": {"since": "2026-01-01", "until": "2026-02-01T08:00:00+00:00"}}).identity
    assert Job.model_validate_json(job.to_json()) == job


def test_how_long_a_server_may_take_is_said_to_the_policy():
    job = Job.read({**BASE, "policy": {"spec": "openai:m", "base_urls": "http://a/v1"}, "pace": {"timeout_s": 7.5}})
    assert job.asked().make_policy().timeout_s == 7.5
    assert Job.read({**BASE, "policy": {"spec": "openai:m", "base_urls": "http://a/v1"}}).asked().make_policy().timeout_s == 120


@pytest.mark.parametrize(
    "odd",
    [
        "[policy]\nspec = 'openai:m'\nprice = [nan, 1.0]",
        "[policy]\nspec = 'openai:m'\nprice = [-1.0, 2.0]",
        "[budget]\ntotal = { model_calls = 1e400 }",
        "[engine]\nlease_s = inf",
        "[engine]\nlease_s = 1e300",
        "[engine]\nat_once = 99999999999999999999",
        "[engine]\nattempts = 99999999999999999999",
        "[engine]\nbackoff_s = inf",
        "[select]\ncost_above_usd = inf",
        "[[export]]\nkind = 'dpo'\ntau = nan",
        "[[export]]\nkind = 'sft'\nname = 'report.json'",
    ],
)
def test_figures_that_would_bind_nothing_or_end_in_a_crash_are_refused(odd):
    with pytest.raises(UserError, match="got"):
        Job.read({**BASE, **tomllib.loads(odd)})


def test_a_job_is_the_same_from_wherever_it_is_started(tmp_path, monkeypatch):
    folder = tmp_path / "jobs"
    (folder / "prm").mkdir(parents=True)
    file = folder / "job.toml"
    text = FILE.replace('spec = "moves:sound"', 'spec = "prm:prm"')
    file.write_text(text.format(policy="transformers:model", servers="", calls=9))
    identities, verifiers = set(), set()
    for cwd, given in ((tmp_path, "jobs/job.toml"), (folder, "job.toml"), (folder / "prm", "../job.toml"), (tmp_path, str(file))):
        monkeypatch.chdir(cwd)
        job = Job.load(given)
        identities.add(job.identity)
        verifiers.add((cwd / job.verifiers[1].removeprefix("prm:")).resolve())
    assert (len(identities), verifiers) == (1, {folder / "prm"})


def test_passwords_in_addresses_are_kept_out_of_the_store():
    servers = ["http://user:pass-word@gpu1:8000/v1", "http://gpu2:8000/v1"]
    job = Job.read({**BASE, "policy": {"spec": "openai:m", "base_urls": servers}, "source": [{"path": "postgresql://me:pass-word@h/db"}]})
    assert "pass-word" not in job.to_json()
    assert "pass-word" in job.asked().base_url
    kept = Job.model_validate_json(job.to_json())
    assert kept.policy.base_urls == ("http://user:…@gpu1:8000/v1", "http://gpu2:8000/v1")
