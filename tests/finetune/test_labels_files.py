"""Labels from a store in files, read back as the shape they are written in, and the commands that write and train."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from counterplay import cli
from counterplay.commands import learning as _command  # noqa: F401  registers the commands
from counterplay.connectors.prm_data import PrmData
from counterplay.core.errors import UserError
from counterplay.core.nouns import Score, Step
from counterplay.core.store import Store
from counterplay.finetune.labels.write import LABELS, label_rows, outcomes, write_labels
from counterplay.verifiers.learned import load


@pytest.fixture
def sources(kit):
    made = []
    for task in "abcdef":
        source = kit.tree(task=task, good=(8, 8.0), bad=(8, 0.0))
        wrong = source.tree.nodes[2]
        end = source.tree.add(wrong, Step(kit.say("Refunded."), terminated=True))
        end.score, end.visits = Score(0.0, "", "ledger", "2"), 8
        made.append(source)
    return made


@pytest.fixture
def store(kit, tmp_path, sources):
    path = tmp_path / "s.duckdb"
    with Store.open(path) as opened:
        traces = [kit.trace(task) for task in "abcdef"]
        opened.ingest(traces)
        for trace, source in zip(traces, sources, strict=True):
            source.tree.stop("lines ended")
            opened.put_search(source.tree.to_record(f"s-{trace.task}", trace=trace.id, task=trace.task, fork_step=1))
    return path


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


@pytest.mark.parametrize("kind", LABELS)
def test_every_kind_of_label_lies_between_0_and_1_and_says_what_it_is(sources, kind):
    if kind == "rest":
        sources = [source for source in sources if source.tree.finished()]
    rows, _ = label_rows(kind, sources)
    labels = [label for row in rows for label in row.labels]
    assert all(0 <= label.value <= 1 for label in labels)
    assert len({label.kind for label in labels}) == 1
    assert len({label.key for label in labels}) == len(labels)


def test_splits_share_no_task_and_all_rows_are_there(sources, tmp_path):
    rows, drops = label_rows("mc-soft", sources)
    report = write_labels(rows, tmp_path / "out", drops=drops, held_out=0.5, seed=2)
    texts = {split: (tmp_path / "out" / f"{split}.jsonl").read_text() for split in ("train", "test")}
    written = {split: [json.loads(line) for line in text.splitlines()] for split, text in texts.items()}
    assert {split: len(records) for split, records in written.items()} == dict(report.splits)
    tasks = [{record["task"] for record in records} for records in written.values()]
    assert tasks[0] | tasks[1] == set("abcdef")
    assert not tasks[0] & tasks[1]
    assert report.labels == 24
    assert json.loads((tmp_path / "out" / "report.json").read_text())["labels"] == 24
    with pytest.raises(UserError, match="exists"):
        write_labels(rows, tmp_path / "out")


def test_the_files_are_read_as_trl_rows_with_their_labels(sources, tmp_path, tokenizer):
    rows, _ = label_rows("mc-hard", sources[:1])
    write_labels(rows, tmp_path / "out", hard=0.5, tokenizer=tokenizer)

    async def read():
        return [item async for item in PrmData().read(tmp_path / "out" / "train.jsonl")]

    traces = asyncio.run(read())
    assert [trace.source.dialect for trace in traces] == ["trl", "trl"]
    wanted = [[label.value >= 0.5 for label in row.labels] for row in rows]
    assert [[score.value for score in trace.scores] for trace in traces] == wanted


def test_ends_are_counted_once_and_failed_machines_left_out(sources):
    assert len(outcomes([*sources, *sources])) == 12
    assert sorted(value for _, value in outcomes(sources[:1])) == [0.0, 1.0]


def test_the_labels_command(store, tmp_path):
    done = run("labels", "--store", store, "--out", tmp_path / "labels", "--labels", "mc-hard", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["labels"] == 24
    assert report["kind"] == "mc_hard"
    wrong = run("labels", "--store", store, "--out", tmp_path / "more", "--labels", "guess")
    assert wrong.exit_code == 2
    assert not (tmp_path / "more").exists()


def test_the_train_prm_command_makes_a_verifier(store, tmp_path, model_dir):
    out = tmp_path / "prm"
    done = run("train-prm", "--store", store, "--model", model_dir, "--out", out, "--epochs", 1, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["spec"] == f"prm:{out}"
    assert load(report["spec"]).kind == "prm"
    assert run("train-prm", "--store", store, "--model", model_dir, "--out", tmp_path / "x", "--kind", "guess").exit_code == 2
