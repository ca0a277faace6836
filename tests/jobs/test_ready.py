"""What can be known before a job is paid for is told before: by a dry run and a run alike, in the words of its file."""

import sys

import pytest

from counterplay import exporting
from counterplay.core.errors import UserError
from counterplay.jobs import dry, running
from counterplay.jobs.ready import check_output, check_parts
from counterplay.jobs.spec import Job
from counterplay.jobs.wording import in_keys
from tests.jobs.batch import make

EXPORT, SOURCE, POLICY, ENGINE = "tau = 0.6", 'path = "logs.jsonl"', 'spec = "moves:policy"', "at_once = 4"
SERVED = 'spec = "openai:m"\nbase_urls = "http://127.0.0.1:9/v1"'
SLIPS = [
    (EXPORT, "tau = 2", r"\[export\] 2: got tau 2; wanted a probability"),
    (EXPORT, "held_out = 1.5", r"\[export\] 2: got held_out 1.5"),
    (EXPORT, 'rows = "stp"', r"\[export\] 2: got rows 'stp'; wanted one of step"),
    (EXPORT, 'source = "logs"', r"\[export\] 2: got source 'logs'"),
    (EXPORT, 'source = "logged"', r"\[export\] 2: got source logged for rows step; wanted searched or both"),
    (EXPORT, 'formats = ["csv"]', r"\[export\] 2: got formats csv; wanted at least one of parquet"),
    (EXPORT, 'split_by = "day"', r"\[export\] 2: got split_by 'day'"),
    (EXPORT, 'min_grade = "stale"', r"\[export\] 2: got min_grade stale"),
    (EXPORT, "max_length = 100", r"\[export\] 2: got max_length 100 without a tokenizer"),
    (EXPORT, 'tokenizer = "none"', r"\[export\] 2: no model in .*none"),
    (EXPORT, 'held_out_file = "none.txt"', r"\[export\] 2: got no held-out file .*none.txt"),
    (EXPORT, "near_duplicates = 2.0", r"\[export\] 2: got near_duplicates 2"),
    (EXPORT, "per_task = 0", r"\[export\] 2: got per_task=0; wanted at least 1"),
    (EXPORT, 'algorithms = "repiar"', r"\[export\] 2: got algorithms with 'repiar'; .* Did you mean repair\?"),
    (EXPORT, 'look_for = "pii"\nkeep_secrets = true', r"\[export\] 2: got keep_secrets and what to look for"),
    (EXPORT, 'look_for_rules = "none.toml"', r"\[export\] 2: got .*none.toml, which can't be read"),
    ('folder = "out"', 'folder = "logs.jsonl"', r"got \[output\] folder .*logs.jsonl is no folder"),
    ('folder = "out"', 'folder = "logs.jsonl/a/b"', r"got \[output\] folder .*logs.jsonl is no folder"),
    (SOURCE, SOURCE + '\neffects = "none.toml"', r"\[\[source\]\] .*none.toml can't be read"),
    (SOURCE, SOURCE + '\nredact_rules = "none.toml"', r"\[\[source\]\] .*none.toml, which can't be read"),
    (SOURCE, SOURCE + '\nredact = "pi"', r"\[\[source\]\] .*got the kind 'pi'"),
    (SOURCE, SOURCE + '\nformat = "chatlgo"', r"\[\[source\]\] .*got log format 'chatlgo'"),
    (SOURCE, 'path = "langfuse://h/p"\neffects = "none.toml"', r"\[\[source\]\] .*none.toml can't be read"),
    (POLICY, 'spec = "opnai:m"', r"\[policy\]: got policy 'opnai:m'"),
    (POLICY, 'spec = "openai:"', r"\[policy\]: got policy 'openai:'"),
    (POLICY, 'spec = "openai:m"', r"\[policy\]: got policy openai:m without a key"),
    (POLICY, 'spec = "openai:m"\nbase_urls = ["127.0.0.1:9/v1"]', r"\[policy\]: got the server .*Write http://127"),
    (POLICY, 'spec = "batch:night:m"\nbase_urls = ["127.0.0.1:9/v1"]', r"\[policy\]: got the server .*Write http://127"),
    (POLICY, SERVED + "\nextra_body = { n = 7 }", r"\[policy\]: got 'n' in extra_body"),
    (POLICY, SERVED + '\napi_key = "${NO_SUCH_KEY}"', r"got \[policy\] api_key = \$\{NO_SUCH_KEY\}, which is not set"),
    ('spec = "moves:World"', 'spec = "nowhere:World"', r"\[environment\]: got environment 'nowhere:World'"),
    ('spec = "moves:World"', 'spec = "moves:World"\nsimulate = "nearest"', r"\[environment\]: got \[environment\] simulate nearest beside"),
    ('spec = "moves:World"', 'spec = "recorded"\nsimulate = "neares"', r"\[environment\]: got simulation 'neares'"),
    ('spec = "moves:sound"', 'spec = "prm:nowhere"', r"\[\[verifier\]\]: got verifier 'prm:nowhere'"),
    (ENGINE, ENGINE + '\nmemory = "lots"', r"\[engine\] memory: got 'lots'"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "moves", raising=False)
    make(tmp_path, tasks=1)
    yield tmp_path
    sys.modules.pop("moves", None)


@pytest.mark.parametrize(("was", "slip", "told"), SLIPS, ids=[slip for _, slip, _ in SLIPS])
def test_a_slip_is_told_before_anything_is_asked(folder, was, slip, told):
    file = folder / "job.toml"
    text = file.read_text()
    assert was in text
    file.write_text(text.replace(was, slip))
    before = sorted(folder.rglob("*"))
    for attempt in (dry.estimated, running.run):
        with pytest.raises(UserError, match=told) as caught:
            attempt(Job.load(file))
        assert caught.value.exit_code == 2
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts and path not in before] == []


def test_a_folder_that_is_no_dataset_is_not_written_over(folder):
    (folder / "out" / "dpo").mkdir(parents=True)
    (folder / "out" / "dpo" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"\[export\] 2: .*dpo exists and is no dataset of counterplay"):
        check_parts(Job.load("job.toml"))


def test_a_folder_that_can_not_be_written_to_is_told(tmp_path, monkeypatch):
    check_output(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="nothing can be written in"):
        check_output(tmp_path / "a" / "b")


def test_looking_at_a_batch_policy_makes_no_folder(folder):
    file = folder / "job.toml"
    file.write_text(file.read_text().replace(POLICY, 'spec = "batch:night:m"\nbase_urls = "http://127.0.0.1:9/v1"'))
    check_parts(Job.load("job.toml"))
    assert not (folder / "night").exists()


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "kto", "grpo", "prm"])
def test_a_check_of_an_export_is_the_export_up_to_its_reading(tmp_path, kind):
    exporting.check(kind, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    with pytest.raises(UserError, match="got --held-out 3"):
        exporting.check(kind, tmp_path / "d", held_out=3.0)
    with pytest.raises(UserError, match="got --min-grade 'fine'"):
        exporting.check(kind, tmp_path / "d", min_grade="fine")


def test_rows_that_are_made_of_whole_branches_are_checked_too(tmp_path):
    for kind, rows in (("dpo", "trajectory"), ("kto", "trajectory"), ("reward", "nearest"), ("dpo", "ablation"), ("sft", "improved")):
        exporting.check(kind, tmp_path / "d", rows=rows)
        with pytest.raises(UserError, match="got --source 'logs'"):
            exporting.check(kind, tmp_path / "d", rows=rows, source="logs")
    with pytest.raises(UserError, match="got --labels 'mc'"):
        exporting.check("prm", tmp_path / "d", labels="mc")


def test_keys_take_the_place_of_options_but_not_in_commands():
    assert in_keys("Lower --tau, or --held-out") == "Lower tau, or held_out"
    assert in_keys("got --fork foo") == "got [search] fork foo"
    assert in_keys("Use counterplay search --search auto. Or --price.") == "Use counterplay search --search auto. Or [policy] price."


def test_a_dry_run_of_any_number_of_draws_ends(folder):
    file = folder / "job.toml"
    file.write_text(file.read_text().replace("n = 3", "n = 1000000"))
    assert dry.estimated(Job.load(file)).of("model_calls").amount <= 400
