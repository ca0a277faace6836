"""PRM training like any other: from a written dataset, killed and resumed, metrics and a plot, and steps that are the same in parts."""

import json

import pytest

from counterplay.core.errors import UserError
from counterplay.finetune.labels import monte_carlo, stepwise_rows
from counterplay.finetune.labels.rows import token_rows
from counterplay.finetune.prm import dataset_rows, train_ppm, train_prm
from counterplay.finetune.prm_rows import prm_rows
from counterplay.finetune.write import write_dataset
from counterplay.verifiers.learned.rendering import StepRenderer
from tests.finetune.test_prm import SOURCES
from tests.finetune.trainings import KilledError, killing_at, same_weights

QUICK = {"learning_rate": 5e-3, "seed": 1, "batch_size": 4}


def labelled(count=4):
    return [row for one in SOURCES[:count] for row in stepwise_rows(one, monte_carlo(one))[0]]


def test_a_written_dataset_trains_as_the_store_does(model_dir, tokenizer, tmp_path):
    """The rows of a dataset of kind prm become the very tokens and targets that the trees they came from become."""
    write_dataset(prm_rows(SOURCES[:4]), tmp_path / "data", split={"train": 1.0})
    renderer = StepRenderer(tokenizer)
    wanted = {(row.input_ids, row.targets) for row in token_rows(labelled(), renderer)}
    found = dataset_rows(tmp_path / "data")
    kept = {(row.input_ids, row.targets) for row in token_rows(found, renderer)}
    assert kept == wanted
    report = train_prm(model_dir, found, tmp_path / "out", epochs=1, **QUICK)
    assert report.labels == sum(len(targets) for _, targets in wanted)


def test_rows_that_say_nothing_are_refused(model_dir, kit, tmp_path):
    from counterplay.finetune.rows import SFTRow

    message = kit.say("ho")
    write_dataset([SFTRow((kit.state().prompt[0], message), (False, True))], tmp_path / "sft", split={"train": 1.0})
    with pytest.raises(UserError, match="holds sft rows"):
        dataset_rows(tmp_path / "sft")
    write_dataset(prm_rows(SOURCES[:1]), tmp_path / "prm", split={"train": 1.0}, formats=("jsonl",))
    file = tmp_path / "prm" / "jsonl" / "train.jsonl"
    row, *others = map(json.loads, file.read_text().splitlines())
    first, second, *rest = row["completions"]
    moved = [first[:1], [*first[1:], *second], *rest]  # what was observed after the first action lies in the second step
    for change, match in (({"labels": row["labels"][:-1]}, "labels for"), ({"completions": moved}, "ends within one")):
        file.write_text("".join(json.dumps(each) + "\n" for each in ({**row, **change}, *others)))
        with pytest.raises(UserError, match=match):
            dataset_rows(tmp_path / "prm")


def test_a_killed_training_resumes_to_the_same_weights(model_dir, tmp_path):
    options = {**QUICK, "epochs": 3, "checkpoint_steps": 2}
    rows = labelled()
    straight = train_prm(model_dir, rows, tmp_path / "straight", **options)
    with pytest.raises(KilledError):
        train_prm(model_dir, rows, tmp_path / "out", note=killing_at(5), **options)
    seen = []
    resumed = train_prm(model_dir, rows, tmp_path / "out", resume=True, note=lambda *one: seen.append(one[0]), **options)
    assert seen == [5, 6]
    assert resumed.steps == straight.steps == 6
    assert same_weights(straight.out_dir, resumed.out_dir)
    with pytest.raises(UserError, match="another recipe"):
        train_prm(model_dir, rows, tmp_path / "out", resume=True, **{**options, "epochs": 4})


def test_a_step_in_parts_is_the_step(model_dir, tmp_path):
    """Rows have different numbers of labels: the loss is a mean over the step, not a mean of means."""
    rows = labelled(6)
    reports = [train_prm(model_dir, rows, tmp_path / str(part), epochs=2, micro_batch=part, **QUICK) for part in (None, 1)]
    assert reports[0].loss == pytest.approx(reports[1].loss, rel=1e-4)
    assert same_weights(reports[0].out_dir, reports[1].out_dir, atol=1e-4)


def test_metrics_and_a_plot_lie_beside_the_model(model_dir, tmp_path):
    from counterplay.finetune.labels import pairwise

    nodes = [node for one in SOURCES[:4] for node in pairwise(one)]
    report = train_ppm(model_dir, nodes, tmp_path / "ppm", epochs=2, **QUICK)
    lines = [json.loads(line) for line in (report.out_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert report.plot == report.out_dir / "metrics.svg"
    assert report.plot.read_text().startswith("<?xml")
    assert json.loads((report.out_dir / "training.json").read_text())["report"]["plot"] == "metrics.svg"


def test_what_siblings_share_is_computed_once(model_dir, tmp_path):
    """A comparison of siblings as one row: the same loss and gradient at every step, from a fraction of the tokens."""
    from counterplay.finetune import prm_trainer
    from counterplay.finetune.labels import pairwise
    from counterplay.finetune.prm_trainer import collate
    from counterplay.finetune.training.siblings import merged

    nodes = [node for one in SOURCES[:4] for node in pairwise(one)]
    shared = train_ppm(model_dir, nodes, tmp_path / "shared", epochs=3, **QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prm_trainer, "collate_siblings", collate)
        plain = train_ppm(model_dir, nodes, tmp_path / "plain", epochs=3, **QUICK)
    one, other = ([json.loads(line) for line in (report.out_dir / "metrics.jsonl").read_text().splitlines()] for report in (shared, plain))
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in one] == pytest.approx([line[name] for line in other], rel=1e-3)
    ids, positions, places = merged([[1, 2, 3, 4], [1, 2, 5], [9], [1, 2, 3, 6, 7], [1, 2]])
    assert ids == [1, 2, 3, 4, 5, 9, 6, 7]
    assert positions == [0, 1, 2, 3, 2, 0, 3, 4]
    assert places == [[0, 1, 2, 3], [0, 1, 4], [5], [0, 1, 2, 6, 7], [0, 1]]
