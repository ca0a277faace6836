"""Training learned verifiers on a tiny model: what comes out is a verifier that has learnt what the labels say."""

import math

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Message, Score, Step, Trajectory
from counterplay.finetune.labels import monte_carlo, pairwise, stepwise_rows, token_rows
from counterplay.finetune.prm import train_implicit, train_orm, train_ppm, train_prm
from counterplay.finetune.prm_trainer import Example, collate, pairwise_loss, value_loss
from counterplay.finetune.rows import SourcedTree
from counterplay.search.tree import SearchTree
from counterplay.verifiers.learned import load

QUICK = {"learning_rate": 5e-3, "seed": 1}


def say(word, **flags):
    return Step(Message.assistant(word), (Message.user("go on"),), grades=(Grade.EXECUTED,), **flags)


def source(task):
    """Two lines that begin alike: `refund` succeeds each time, `amount` never does."""
    tree = SearchTree.start(Trajectory((), (Message.user(f"Task {task}."),)), "best_of_n")
    stem = tree.add(tree.root, say("find"))
    for word, won in (("refund", 4.0), ("amount", 0.0)):
        node = tree.add(stem, say(word))
        end = tree.add(node, say("done", terminated=True, reward=won / 4))
        end.score = Score(won / 4)
        for one in (node, end):
            one.visits, one.value_sum = 4, won
    for one in (tree.root, stem):
        one.visits, one.value_sum = 8, 4.0
    return SourcedTree(tree, f"s{task}", f"t{task}")


SOURCES = [source(task) for task in range(12)]
ENDS = [(leaf.state, leaf.score.value) for one in SOURCES for leaf in one.tree.finished()]
UNSEEN = source(99).tree


def lines():
    right, wrong = UNSEEN.finished()
    return right.state, wrong.state


def test_a_process_reward_model_learns_soft_values_at_every_step(model_dir, tmp_path):
    rows = [row for one in SOURCES for row in stepwise_rows(one, monte_carlo(one))[0]]
    losses = []
    report = train_prm(model_dir, rows, tmp_path / "prm", epochs=12, note=lambda *seen: losses.append(seen), **QUICK)
    assert (report.examples, report.labels) == (24, 60), "5 labels a tree, each once"
    assert [step for step, _, _ in losses] == list(range(1, report.steps + 1))
    assert losses[-1][2] < losses[0][2]
    prm = load(report.spec)
    right, wrong = prm.steps(lines())
    assert prm.name == "prm"
    assert right[0] == pytest.approx(0.5, abs=0.15)
    assert min(right[1:]) > 0.8
    assert max(wrong[1:]) < 0.2


def test_training_is_the_same_for_the_same_seed(model_dir, tmp_path):
    rows = [row for one in SOURCES[:2] for row in stepwise_rows(one, monte_carlo(one))[0]]
    versions = [load(train_prm(model_dir, rows, tmp_path / name, epochs=1, seed=3).spec).version for name in "ab"]
    assert versions[0] == versions[1]


def test_siblings_are_told_apart_by_a_pairwise_model(model_dir, tmp_path):
    nodes = [node for one in SOURCES for node in pairwise(one)]
    assert len(nodes) == 12
    report = train_ppm(model_dir, nodes, tmp_path / "ppm", epochs=6, **QUICK)
    ppm = load(report.spec)
    right, wrong = (state.prefix(2) for state in lines())
    assert ppm.name == "ppm"
    assert ppm(right).value > ppm(wrong).value + 0.3


def test_an_outcome_model_reads_the_end(model_dir, tmp_path):
    orm = load(train_orm(model_dir, ENDS, tmp_path / "orm", epochs=8, **QUICK).spec)
    right, wrong = orm.batch(lines())
    assert (right.value > 0.8, wrong.value < 0.2) == (True, True)
    assert orm(lines()[0].prefix(2)) is None


def test_an_implicit_model_learns_step_rewards_from_outcomes_alone(model_dir, tmp_path):
    report = train_implicit(model_dir, ENDS, tmp_path / "implicit", epochs=8, beta=0.5, **QUICK)
    from counterplay.verifiers.learned import ImplicitPRM

    prm = ImplicitPRM(tmp_path / "implicit", model_dir, beta=0.5)
    assert report.spec == f"implicit-prm:{tmp_path / 'implicit'},{model_dir}"
    right, wrong = prm.batch(lines())
    assert right.value > 0.6
    assert wrong.value < 0.4
    rewards = prm.rewards(lines())
    assert rewards[0][1] > 0.2, "the step that decides has the reward"
    assert rewards[1][1] < -0.2
    assert max(abs(row[0]) for row in rewards) < min(abs(row[1]) for row in rewards), "the step that both share has not"


def test_adapters_are_merged_into_an_ordinary_folder(model_dir, tmp_path):
    rows = [row for one in SOURCES for row in stepwise_rows(one, monte_carlo(one))[0]]
    report = train_prm(model_dir, rows, tmp_path / "lora", epochs=4, lora=True, **QUICK)
    assert not list((tmp_path / "lora").glob("adapter*"))
    right, wrong = load(report.spec).steps(lines())
    assert right[1] > wrong[1] + 0.2


def test_a_reward_model_can_be_trained_further(model_dir, tmp_path):
    rows = [row for one in SOURCES[:3] for row in stepwise_rows(one, monte_carlo(one))[0]]
    train_prm(model_dir, rows, tmp_path / "first", epochs=1, **QUICK)
    again = train_prm(tmp_path / "first", rows, tmp_path / "second", epochs=1, learning_rate=1e-6)
    first, second = (load(f"prm:{tmp_path / name}").steps(lines())[0] for name in ("first", "second"))
    assert first == pytest.approx(second, abs=1e-3), "the head is taken over"
    assert again.steps


@pytest.mark.parametrize(
    ("options", "match"),
    [({"max_length": 8}, "nothing is truncated"), ({"values": -0.5}, "values in \\[0, 1\\]"), ({"rows": []}, "at least one labelled step")],
)
def test_what_can_t_be_trained_on_is_refused(model_dir, tmp_path, options, match):
    labels = monte_carlo(SOURCES[0])
    if "values" in options:
        value = options.pop("values")
        labels = [label.revalued(value, "advantage") for label in labels]
    rows = options.pop("rows", stepwise_rows(SOURCES[0], labels)[0])
    with pytest.raises(UserError, match=match):
        train_prm(model_dir, rows, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_overwritten(model_dir, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        train_orm(model_dir, ENDS, tmp_path)


def test_losses_are_those_of_the_papers():
    import torch

    examples = [
        {"example": Example(((1, 2, 3), (1, 2, 4), (1, 5)), ((0, 2, 1.0), (1, 2, 0.0), (2, 1, 0.0)))},
        {"example": Example(((7,), (8,)), ((0, 0, 1.0), (1, 0, 0.0)))},
    ]
    batch = collate(examples, pad=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 2, 4], [1, 5, 0], [7, 0, 0], [8, 0, 0]]
    logits = torch.zeros(5, 3, 1)
    for row, at, value in ((0, 2, 2.0), (1, 2, 0.5), (2, 1, -1.0), (3, 0, 0.3), (4, 0, 0.1)):
        logits[row, at, 0] = value

    def log_sigmoid(x):
        return -math.log(1 + math.exp(-x))

    first = -(log_sigmoid(2.0 - 0.5) + log_sigmoid(2.0 + 1.0)) / (1 * 2)
    second = -log_sigmoid(0.3 - 0.1)
    assert pairwise_loss(logits, batch).item() == pytest.approx((first + second) / 2, abs=1e-6)
    soft = collate([{"example": Example(((1, 2),), ((0, 0, 0.25), (0, 1, 1.0)))}], pad=0)
    scores = torch.tensor([[[0.4], [-0.2]]])
    wanted = -(0.25 * log_sigmoid(0.4) + 0.75 * log_sigmoid(-0.4) + log_sigmoid(-0.2)) / 2
    assert value_loss(scores, soft).item() == pytest.approx(wanted, abs=1e-6)


def test_training_reads_where_the_verifier_reads(model_dir, tmp_path):
    """The positions of the training rows are those at which the loaded verifier scores."""
    from counterplay.verifiers.learned.rendering import StepRenderer

    rows, _ = stepwise_rows(SOURCES[0], monte_carlo(SOURCES[0]))
    prm = load(train_prm(model_dir, rows, tmp_path / "prm", epochs=1, **QUICK).spec)
    (row, *_) = rows
    (tokens, *_) = token_rows([row], StepRenderer(prm.renderer.tokenizer))
    ends, start = [], len(prm.renderer.prompt(row.trajectory))
    for step in row.trajectory.steps:
        part = prm.renderer.step(step)
        ends.append(start + part.end)
        start += len(part.ids)
    assert [at for at, _ in tokens.targets] == ends
