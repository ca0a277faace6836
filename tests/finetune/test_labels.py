"""Labels from search trees, worked out by hand on one small tree."""

import asyncio
from random import Random

import pytest

from counterplay.core.beta import probability_better
from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Message, Score, Step, ToolCall, ToolSpec, Trajectory
from counterplay.finetune.labels import (
    advantages,
    candidates,
    compress,
    consensus,
    first_error,
    monte_carlo,
    mutated,
    mutation_labels,
    mutations,
    omega,
    pairwise,
    reflection,
    rest_values,
    sorm,
    stepwise_rows,
    td_targets,
    token_rows,
    trl_records,
    undecided,
)
from counterplay.finetune.labels.steps import beta_quantile, evidence
from counterplay.finetune.rows import SourcedTree
from counterplay.finetune.splits import assign
from counterplay.search.tree import SearchTree
from counterplay.verifiers.learned.rendering import StepRenderer

START = Trajectory((), (Message.user("Do it."),))


def move(name, *, terminated=False, grade=Grade.EXECUTED):
    call = ToolCall("c", name, "{}")
    return Step(Message.assistant(None, [call]), (Message.tool(f"did {name}", "c"),), terminated=terminated, grades=(grade,))


def grow(shape, algorithm="best_of_n", **source):
    """A tree from {path: (visits, value_sum)}, paths of letters; a path that ends in a digit is an end, with its score W / N."""
    tree = SearchTree.start(START, algorithm)
    nodes = {"": tree.root}
    for path in sorted(shape, key=len):
        visits, value_sum = shape[path]
        if path:
            nodes[path] = tree.add(nodes[path[:-1]], move(path[-1], terminated=path[-1].isdigit()))
        node = nodes[path]
        node.visits, node.value_sum = visits, value_sum
        if path and path[-1].isdigit():
            node.score = Score(value_sum / visits, "", "outcome", "1")
    return SourcedTree(tree, **{"search": "s", "task": "t", **source}), nodes


# a: 4 lines, 3 succeed (1), one fails (0); b: 4 lines, all fail, 2 of them through c.
SHAPE = {"": (8, 3.0), "a": (4, 3.0), "b": (4, 0.0), "a1": (3, 3.0), "a0": (1, 0.0), "bc": (2, 0.0), "b0": (2, 0.0), "bc0": (2, 0.0)}


def by_path(labels, nodes):
    paths = {node.state.key: path for path, node in nodes.items()}
    return {paths[label.key]: label for label in labels}


def values(labels, nodes):
    return {path: label.value for path, label in by_path(labels, nodes).items()}


def test_soft_values_are_shares_with_the_interval_of_their_posterior():
    source, nodes = grow(SHAPE)
    made = by_path(monte_carlo(source, mass=0.5), nodes)
    assert {path: label.value for path, label in made.items()} == {"a": 0.75, "b": 0, "a1": 1, "a0": 0, "bc": 0, "b0": 0, "bc0": 0}
    assert made["a"].n == 4
    assert made["a"].step == 0
    assert made["a1"].step == 1
    # Beta(1, 3) has the distribution 1 - (1 - x)^3
    assert made["b0"].low == pytest.approx(1 - 0.75 ** (1 / 3), abs=1e-8)
    assert made["b0"].high == pytest.approx(1 - 0.25 ** (1 / 3), abs=1e-8)
    assert made["a"].lineage.task == "t"
    assert made["a"].lineage.verifiers == ("outcome@1",)


def test_hard_values_ask_whether_any_line_succeeds():
    source, nodes = grow(SHAPE)
    assert values(monte_carlo(source, hard=True, min_lines=2), nodes) == {"a": 1, "b": 0, "a1": 1, "bc": 0, "b0": 0, "bc0": 0}


def test_a_quantile_is_the_inverse_of_the_distribution():
    assert beta_quantile(1, 1, 0.3) == pytest.approx(0.3, abs=1e-8)
    assert beta_quantile(2, 1, 0.49) == pytest.approx(0.7, abs=1e-8)


def test_opinions_are_no_evidence_and_no_line_counts_twice():
    """In a tree of opinions N and W are not lines: each scored end counts once, whatever its visits."""
    source, nodes = grow(SHAPE, "mcts")
    known = evidence(source.tree)
    assert [known[nodes[path].index].n for path in ("", "a", "a1", "b", "bc")] == [4, 2, 1, 2, 1]
    assert values(monte_carlo(source), nodes)["a"] == 0.5


def test_a_failed_machine_is_nobodys_fault():
    source, nodes = grow(SHAPE)
    broken = source.tree.add(nodes["a"], Step(Message.assistant("x"), error="timeout"))
    broken.visits = 5
    assert broken.state.key not in {label.key for label in monte_carlo(source)}


def test_sorm_waits_for_enough_failures_and_never_rises_along_a_line():
    source, nodes = grow(SHAPE)
    assert values(sorm(source, lines=4, balance=False), nodes) == {"a": 1, "a1": 1, "b": 0, "bc": 0, "b0": 0, "bc0": 0}
    # lines played from c alone, which succeed: then b could succeed too, though none of its own lines did
    again, later = grow({**SHAPE, "bc1": (1, 1.0)})
    assert values(sorm(again, lines=4, balance=False), later)["b"] == 1


def test_sorm_believes_failures_only_where_success_was_to_be_expected():
    source, nodes = grow(SHAPE)
    sure = probability_better(3, 8, 0, 4)  # 3 of 8 lines succeed before b, 0 of 4 after it
    assert values(sorm(source, lines=4, tau=sure, balance=False), nodes)["b"] == 0
    assert set(values(sorm(source, lines=4, tau=sure + 0.001, balance=False), nodes)) == {"a", "a1"}


def test_sorm_balances_with_the_steps_that_have_most_lines():
    source, nodes = grow(SHAPE)
    assert values(sorm(source, lines=4), nodes) == {"a": 1, "a1": 1, "b": 0, "bc": 0}


def test_further_lines_go_to_what_is_undecided():
    source, nodes = grow({"": (40, 20.0), "a": (20, 20.0), "b": (2, 1.0), "c": (6, 3.0)})
    probes = undecided(source.tree, width=0.3, budget=10)
    lines = {probe.node.index: probe.lines for probe in probes}
    assert nodes["a"].index not in lines, "20 of 20 leave no doubt"
    assert nodes[""].index not in lines, "20 of 40 are known to within .3"
    assert sum(lines.values()) == 10
    assert lines[nodes["b"].index] > lines[nodes["c"].index]
    assert undecided(source.tree, width=0.99) == []


def test_halving_asks_along_the_failed_line_until_neighbours_part():
    shape = {"": (8, 4.0), "a": (8, 4.0), "ab": (8, 4.0), "abc": (4, 0.0), "abcd": (4, 0.0), "abcd0": (4, 0.0), "ab1": (4, 4.0)}
    source, nodes = grow(shape)
    # the failed line has five states: middle of (-1, 4) is 1 (ab: good), of (1, 4) is 2 (abc: bad), then 1 and 2 are neighbours
    assert values(omega(source), nodes) == {"a": 0.5, "ab": 0.5, "ab1": 1, "abc": 0, "abcd0": 0}


def test_the_next_line_to_halve_was_likely_to_succeed_and_is_short():
    source, nodes = grow(SHAPE)
    made = candidates(source.tree)
    assert (made[0].node, made[0].leaf) == (nodes["a"], nodes["a0"])
    total = sum(visits for visits, _ in SHAPE.values())
    written = len("0({})")
    assert made[0].priority == pytest.approx(0.5**0.25 * 0.9 ** (written / 500) + 0.125 * total**0.5 / 5)
    assert all(one.node is not nodes["b"] for one in made), "from b no line succeeds"


def test_an_advantage_is_what_a_step_adds_for_the_prover():
    source, nodes = grow(SHAPE)
    best_of_2 = {"": 1 - (5 / 8) ** 2, "a": 1 - 0.25**2, "b": 0.0, "a1": 1.0}
    made = values(advantages(source, best_of=2), nodes)
    assert made["a"] == pytest.approx(best_of_2["a"] - best_of_2[""])
    assert made["b"] == pytest.approx(-best_of_2[""])
    assert made["a1"] == pytest.approx(1 - best_of_2["a"])
    prover, _ = grow({"": (4, 2.0), "a": (4, 1.0), "b": (4, 3.0)})
    assert values(advantages(source, prover=prover.tree), nodes) == {"a": -0.25, "b": 0.25}
    assert values(advantages(source, prover=prover.tree, alpha=0.5), nodes) == {
        "a": pytest.approx((0.75 + 0.5 * 0.75) / 2),
        "b": pytest.approx((0 + 0.5 * 1.25) / 2),
    }


def test_rest_values_grow_evenly_along_the_shortest_right_line():
    source, nodes = grow({"": (2, 1.0), "a": (1, 1.0), "ab": (1, 1.0), "ab1": (1, 1.0), "c": (1, 0.0), "c0": (1, 0.0), "ad": (1, 0.0)})
    made = values(rest_values(source), nodes)
    assert made["a"] == pytest.approx(1 / 3)
    assert made["ab"] == pytest.approx(2 / 3)
    assert made["ab1"] == pytest.approx(1)
    assert made["c"] == 0, "max(0, 0 - 1 / 3)"
    assert made["ad"] == pytest.approx(1 / 3 - 2 / 3 / 2), "two steps were left"
    assert rest_values(grow({"": (1, 0.0), "0": (1, 0.0)})[0]) == []


def test_td_targets_mix_opinions_with_what_came_of_it():
    source, nodes = grow({"": (2, 1.0), "a": (2, 1.0), "a1": (1, 1.0), "a0": (1, 0.0)})
    nodes["a1"].draws = 3
    made = values(td_targets(source, gamma=0.5), nodes)
    assert made == {"a": 0.5 * 0.75, "a1": 1, "a0": 0}
    opinions = {nodes["a1"].index: 0.6, nodes["a0"].index: 0.2}
    made = values(td_targets(source, lam=0.25, value=lambda node: opinions.get(node.index)), nodes)
    assert made["a"] == pytest.approx((3 * (0.75 * 0.6 + 0.25) + (0.75 * 0.2)) / 4)


def test_only_lines_whose_first_error_the_judge_finds_too_are_kept():
    source, nodes = grow(SHAPE)
    labels = monte_carlo(source)
    path = nodes["a0"].path()[1:]
    known = {label.key: label.value for label in labels}
    assert first_error(path, known) == 1
    judged = {nodes["a1"].state.key: -1, nodes["a0"].state.key: 0, nodes["bc0"].state.key: 0}
    found = consensus(source, labels, judged)
    assert (found.judged, found.agreed) == (3, 2)
    assert set(values(found.labels, nodes)) == {"a1", "b", "bc", "bc0"}, "a is on a line on which they differ"
    assert consensus(source, labels, {}).agreement is None


def test_an_error_that_is_made_good_ends_where_it_is_made_good():
    shape = {
        "": (20, 18.0),
        "a": (20, 18.0),
        "ab": (20, 1.0),
        "abc": (20, 1.0),
        "abcd": (20, 18.0),
        "abcde": (20, 18.0),
        "abcdef": (2, 0.0),
    }
    source, nodes = grow(shape)
    assert values(reflection(source), nodes) == {"a": 1, "ab": 0, "abc": 0, "abcd": 1, "abcde": 1}
    # half made good is not made good
    source, nodes = grow({**shape, "abcd": (20, 8.0), "abcde": (20, 8.0)})
    assert values(reflection(source), nodes)["abcde"] == 0


def test_merged_steps_have_the_value_of_the_later():
    source, nodes = grow({"": (2, 1.0), "a": (2, 1.0), "ab": (2, 2.0), "abc": (2, 0.0)})
    made = by_path(compress(source, monte_carlo(source), share=1.0), nodes)
    assert {path: (label.value, label.span) for path, label in made.items()} == {"ab": (1, 2), "abc": (0, 1)}
    assert compress(source, monte_carlo(source), share=0.0) == monte_carlo(source)
    (row,) = stepwise_rows(source, list(made.values()))[0]
    (record,) = trl_records([row])
    assert [len(messages) for messages in record["completions"]] == [4, 2]


def test_siblings_are_compared_where_one_surely_beats_the_other():
    shape = {"a": (10, 10.0), "b": (10, 9.0), "c": (10, 1.0), "d": (10, 0.0), "e": (10, 0.0), "f": (10, 5.0)}
    source, nodes = grow({"": (60, 25.0), **shape})
    (node,) = pairwise(source)
    assert [state.key for state in node.better] == [nodes[path].state.key for path in "ab"]
    assert {state.key for state in node.worse} == {nodes[path].state.key for path in "de"}
    assert pairwise(grow({"": (2, 1.0), "a": (1, 1.0), "b": (1, 0.0)})[0]) == [], "one line each is no proof"


def test_every_label_is_in_one_row_alone():
    source, nodes = grow(SHAPE)
    rows, drops = stepwise_rows(source, monte_carlo(source))
    assert drops == []
    keys = [label.key for row in rows for label in row.labels]
    assert len(keys) == len(set(keys)) == 7
    assert rows[0].trajectory.key == nodes["bc0"].state.key, "the deepest line first"
    records = trl_records(rows)
    assert all(len(record["completions"]) == len(record["labels"]) for record in records)
    second = next(record for record in records if record["nodes"] == [nodes["b0"].state.key])
    assert [message["role"] for message in second["prompt"]] == ["user", "assistant", "tool"], "b is part of the prompt here"
    assert trl_records(rows, hard=0.5)[0]["labels"] == [False, False, False]


def test_a_gap_makes_two_rows_of_a_line():
    source, nodes = grow({"": (1, 1.0), "a": (1, 1.0), "ab": (1, 1.0), "abc": (1, 1.0)})
    labels = [label for label in monte_carlo(source) if label.key != nodes["ab"].state.key]
    records = trl_records(stepwise_rows(source, labels)[0])
    assert [(record["steps"], len(record["prompt"])) for record in records] == [([0], 1), ([2], 5)]


def test_stale_steps_never_leave_and_are_named():
    source, _ = grow({"": (1, 1.0)})
    source.tree.add(source.tree.root, move("a", grade=Grade.STALE)).visits = 1
    rows, drops = stepwise_rows(source, monte_carlo(source), min_grade=Grade.SIMULATED)
    assert rows == []
    assert [drop.reason for drop in drops] == ["stale"]


def test_rows_of_one_task_stay_in_one_split():
    sources = [grow(SHAPE, task=task, search=task)[0] for task in "tuvw"]
    rows = [row for source in sources for row in stepwise_rows(source, monte_carlo(source))[0]]
    splits = assign([row.lineage for row in rows], {"train": 0.5, "test": 0.5}, seed=1)
    assert all(len({split for row, split in zip(rows, splits, strict=True) if row.lineage.task == task}) == 1 for task in "tuvw")


def test_text_rows_put_together_are_the_rendered_conversation(tokenizer):
    source, _ = grow(SHAPE)
    rows, _ = stepwise_rows(source, monte_carlo(source))
    renderer = StepRenderer(tokenizer)
    for row, record in zip(rows, trl_records(rows, tokenizer=tokenizer), strict=True):
        assert record["prompt"] + "".join(record["completions"]) == tokenizer.decode(renderer.whole(row.trajectory))


def test_token_rows_carry_each_value_at_the_end_of_its_step(tokenizer):
    source, _ = grow(SHAPE)
    rows, _ = stepwise_rows(source, monte_carlo(source))
    made = token_rows(rows, StepRenderer(tokenizer))
    assert [[value for _, value in row.targets] for row in made] == [[label.value for label in row.labels] for row in rows]
    for row, tokens in zip(rows, made, strict=True):
        assert {tokenizer.decode([tokens.input_ids[at]]) for at, _ in tokens.targets} == {"<|im_end|>"}
        assert tokens.targets[-1][0] == len(tokens.input_ids) - 1
        ends = [len(StepRenderer(tokenizer).whole(row.trajectory.prefix(label.step + 1))) for label in row.labels]
        assert [at for at, _ in tokens.targets] == [end - 2 for end in ends], "a new line follows the end token"


# --- mutations ----------------------------------------------------------------------------------------------------------------------------

PAY = ToolSpec.function("pay", "", {"type": "object", "properties": {"to": {"enum": ["ann", "bob"]}, "cents": {"type": "integer"}}})


def pay(number, to, cents, **flags):
    call = ToolCall(f"c{number}", "pay", f'{{"to":"{to}","cents":{cents}}}')
    return Step(Message.assistant(None, [call]), (Message.tool("ok", f"c{number}"),), grades=(Grade.EXECUTED,), **flags)


class Bank:
    """Pays 1.0 where ann got 5 in all; what bob gets does not matter. Ends after two payments."""

    async def step(self, state, action):
        call = action.tool_calls[0]
        paid = [step.action.tool_calls[0].args for step in state.steps] + [call.args]
        done = len(paid) == 2
        reward = float(sum(one["cents"] for one in paid if one["to"] == "ann") == 5) if done else None
        return Step(action, (Message.tool("ok", call.id),), terminated=done, reward=reward)


def outcome(trajectory):
    return trajectory.steps[-1].reward


RIGHT = Trajectory((PAY,), (Message.user("Pay ann 5."),), (pay(1, "ann", 5), pay(2, "bob", 7, terminated=True, reward=1.0)))


def test_an_argument_becomes_another_of_its_kind():
    made = {(one.name, one.after) for one in mutations(RIGHT, 0, Random(0))}
    assert made == {("to", "bob"), ("cents", 7)}
    changed = next(one for one in mutations(RIGHT, 0, Random(0)) if one.name == "cents").action
    assert changed.tool_calls[0].args == {"to": "ann", "cents": 7}
    assert changed.tool_calls[0].id == "c1"


def test_a_changed_call_is_labelled_by_what_the_rest_of_the_line_then_earns():
    tree = asyncio.run(mutated(RIGHT, Bank(), outcome, per_line=10))
    source = SourcedTree(tree, "s", "t")
    signature = {node.state.key: node.step.action.signature for node in tree.nodes[1:]}
    assert {(label.step, signature[label.key]): label.value for label in mutation_labels(source)} == {
        (0, 'pay({"cents":5,"to":"ann"})'): 1,
        (0, 'pay({"cents":5,"to":"bob"})'): 0,
        (0, 'pay({"cents":7,"to":"ann"})'): 0,
        (1, 'pay({"cents":7,"to":"bob"})'): 1,
        (1, 'pay({"cents":7,"to":"ann"})'): 0,
        (1, 'pay({"cents":5,"to":"bob"})'): 1,  # what bob gets does not matter
    }
    assert all(label.kind == "mutation" for label in mutation_labels(source))
    assert not any(node.step.sampled for node in tree.nodes[1:] if not node.logged and (node.parent.logged or node.parent is tree.root))


def test_a_line_that_failed_has_no_right_steps_to_change():
    with pytest.raises(UserError, match="did not succeed"):
        asyncio.run(mutated(RIGHT.prefix(1), Bank(), outcome))
