"""The train commands: one for each kind, options that reach the recipe, results as JSON, errors in words."""

import json

import pytest
from typer.testing import CliRunner

from counterplay import training
from counterplay.cli import app
from counterplay.core.errors import UserError
from counterplay.finetune.grpo import logged_prompts
from counterplay.finetune.prm_rows import prm_rows
from counterplay.finetune.write import write_dataset
from tests.finetune.test_prm import SOURCES
from tests.finetune.test_train_kto import rows as kto_rows
from tests.finetune.test_train_pairs import rows as dpo_rows
from tests.finetune.test_train_reward import rows as reward_rows
from tests.finetune.trainings import ALL


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def data(kit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    made = {"kto": kto_rows(kit), "dpo": dpo_rows(kit), "reward": reward_rows(kit), "prm": prm_rows(SOURCES[:3])}
    made["grpo"] = logged_prompts([kit.trace("t1")])
    for kind, rows in made.items():
        write_dataset(rows, folder / kind, split=ALL)
    return folder


OPTIONS = pytest.mark.parametrize(
    "case",
    [
        ("dpo", ("--loss", "ipo", "--beta", 0.2), {"loss": "ipo", "beta": 0.2, "label_smoothing": 0.0, "learning_rate": 1e-6}),
        ("kto", ("--micro-batch", 2), {"micro_batch": 2, "desirable_weight": 1.0}),
        ("reward", ("--learning-rate", 1e-3), {"learning_rate": 1e-3, "beta": None}),
    ],
    ids=["dpo", "kto", "reward"],
)


@OPTIONS
def test_options_reach_the_recipe(model_dir, data, tmp_path, case):
    kind, options, recipe = case
    common = ("--model", model_dir, "--data", data / kind, "--out", tmp_path / "out", "--steps", 1, "--batch-size", 4, "--json")
    done = run(kind, *common, *options)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["recipe"] == report["recipe"] | recipe | {"kind": kind, "steps": 1, "batch_size": 4}
    assert (tmp_path / "out" / report["plot"]).is_file()


def test_a_prm_is_trained_on_a_dataset(model_dir, data, tmp_path):
    done = run("prm", "--model", model_dir, "--data", data / "prm", "--out", tmp_path / "prm", "--epochs", 1, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["spec"] == f"prm:{tmp_path / 'prm'}"
    refused = run("prm", "--model", model_dir, "--data", data / "prm", "--out", tmp_path / "x", "--kind", "orm")
    assert refused.exit_code == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--labels", "advantage", "--min-grade", "exact", "--agent", "nobody"), "--labels, --min-grade, --agent with --data"),
        (("--labels", "mc-soft"), "--labels with --data"),
        (("--store", "s.duckdb", "--algorithm", "mcts"), "--store, --algorithm with --data"),
    ],
)
def test_options_for_searches_say_nothing_of_a_dataset(model_dir, data, tmp_path, options, named):
    refused = run("prm", "--model", model_dir, "--data", data / "prm", "--out", tmp_path / "out", *options)
    assert refused.exit_code == 2
    assert f"got {named}" in " ".join(refused.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["ppm", "orm", "implicit"])
def test_labels_are_for_values_of_steps_alone(model_dir, tmp_path, kind):
    refused = run("prm", "--model", model_dir, "--out", tmp_path / "out", "--kind", kind, "--labels", "advantage")
    assert refused.exit_code == 2
    assert f"got --labels with --kind {kind}" in " ".join(refused.stderr.split())


def test_what_grpo_plays_in_is_named(model_dir, data, tmp_path):
    """A class of TRL's form is taken as it is; a factory of worlds becomes replay environments; verifiers become rewards."""
    from counterplay.grpo_environment import ReplayEnvironments
    from tests.finetune.test_train_grpo import Shop

    here = training.grpo_parts(model_dir, data / "grpo", "tests.finetune.test_train_grpo:Shop", ())
    assert (here["environment"], here["rewards"]) == (Shop, ())
    judged = training.grpo_parts(model_dir, data / "grpo", "counterplay.examples.ledger:Ledger", ("outcome",))
    assert isinstance(judged["environment"], ReplayEnvironments)
    assert judged["environment"]().get_reward.__self__._factory.verifier is not None
    assert [reward.__name__ for reward in judged["rewards"]] == ["outcome"]
    refused = run("grpo", "--model", model_dir, "--data", data / "grpo", "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "neither an environment nor rewards" in refused.stderr


def test_a_kind_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="one of sft, dpo, kto, reward, grpo"):
        training.train("ppo", tmp_path, tmp_path, tmp_path)
