"""Other cuts of the same successes into SFT rows: one row a call, the shortest success of a task, the best of n."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from counterplay.core.nouns import Grade, Trace
from counterplay.finetune.rows import Drop, Harvest, SFTRow, SourcedTree
from counterplay.finetune.trajectories import UNSEEN, Success, attempts, leaf_row, logged_rows, passing, sft_rows, successes
from counterplay.search.tree import Node


def per_call_rows(
    trees: Iterable[SourcedTree] = (),
    traces: Iterable[Trace] = (),
    *,
    min_score: float = 1.0,
    min_grade: Grade = Grade.EXECUTED,
    per_tree: int = 1,
    train_prefix: bool = True,
) -> Harvest[SFTRow]:
    """One row for every sampled call of a success: what the model was sent, and the one action it answered.

    For trainers that know no masks, and for chat templates that rewrite earlier messages. The prefix is repeated in every row, so that
    n calls cost about n / 2 times the tokens of one whole row. The arguments are those of `sft_rows` and `logged_rows`.
    """
    whole = sft_rows(trees, min_score=min_score, min_grade=min_grade, per_tree=per_tree, train_prefix=train_prefix)
    return per_call(whole + logged_rows(traces, min_reward=min_score, min_grade=min_grade))


def per_call(harvest: Harvest[SFTRow]) -> Harvest[SFTRow]:
    """Every row cut into one a trained message, which is its last; of equal ones the first is kept. Weights go with their message."""
    rows: list[SFTRow] = []
    drops = list(harvest.drops)
    seen = set()
    for row in harvest.rows:
        for one in _calls(row):
            content = one.tools, one.messages
            if content in seen:
                drops.append(Drop("a duplicate", one.name))
            else:
                seen.add(content)
                rows.append(one)
    return Harvest(tuple(rows), tuple(drops))


def _calls(row: SFTRow) -> Iterator[SFTRow]:
    for at, flag in enumerate(row.trained):
        if flag:
            weight = row.weight * (row.step_weights[at] if row.step_weights else 1.0)
            yield SFTRow(row.messages[: at + 1], (*(False,) * at, True), row.tools, row.score, row.lineage, weight)


def prompt_completion(dataset: Any) -> Any:
    """A loaded `datasets.Dataset` of per-call rows with `prompt` and `completion` in place of `messages`.

    TRL's SFTTrainer then masks the prompt of its own accord, under any chat template. Raises ValueError where a row trains on another
    message than its last.
    """
    import datasets

    features = dict(dataset.features)
    sides = {"prompt": features["messages"], "completion": features["messages"]}
    gone = ["messages", "trained", "step_weights"]
    kept = {name: feature for name, feature in features.items() if name not in gone}
    return dataset.map(_cut, remove_columns=gone, features=datasets.Features({**kept, **sides}), load_from_cache_file=False)


def _cut(record: dict[str, Any]) -> dict[str, Any]:
    if any(record["trained"][:-1]) or not record["trained"][-1]:
        msg = f"got row {record['name']}, which trains on {sum(record['trained'])} messages, wanted a row that trains on its last alone"
        raise ValueError(msg)
    return {"prompt": record["messages"][:-1], "completion": record["messages"][-1:]}


def shortest_rows(
    trees: Iterable[SourcedTree] = (),
    traces: Iterable[Trace] = (),
    *,
    min_score: float = 1.0,
    min_grade: Grade = Grade.EXECUTED,
    per_task: int = 1,
) -> Harvest[SFTRow]:
    """Of each task's successes the one with the fewest model calls, found or logged: shortest rejection sampling.

    Kimi Team 2025, arXiv:2501.12599, section 2.4; there the length is in tokens. Of equally short ones those with the higher score come
    first, then those with the fewer characters. `per_task` of a task are taken.
    """

    def order(one: Success) -> tuple[float, ...]:
        return one.calls, -one.score, sum(len(message.wire) for row in one.rows for message in row.messages)

    found, drops = successes(trees, traces, min_score=min_score, min_grade=min_grade)
    rows: list[SFTRow] = []
    for ranked in (sorted(ones, key=order) for ones in found.values()):
        rows += [row for one in ranked[:per_task] for row in one.rows]
        drops += [Drop("a longer success of its task", one.name) for one in ranked[per_task:]]
    return Harvest(tuple(rows), tuple(drops))


def distill_rows(
    trees: Iterable[SourcedTree] = (),
    traces: Iterable[Trace] = (),
    *,
    per: Literal["task", "state"] = "task",
    min_score: float = 1.0,
    min_grade: Grade = Grade.EXECUTED,
    min_n: int = 2,
    cap: int = 1,
) -> Harvest[SFTRow]:
    """Best-of-n distillation: prompt -> the best of the n attempts there were, as if it were the first.

    Per task, attempts are the ends of all its trees and its logs together, and the best by score (then by fewer calls) is trained on
    from the bare prompt on. Per state, they are the lines below each state where a search branched, and the best is trained on from that
    state on; logs alone have no such states, and `traces` is not read. `cap` rows are taken of a task or a state; fewer than `min_n`
    attempts choose nothing.
    """
    if per == "state":
        return _per_state(trees, min_score, min_grade, min_n, cap)
    trees, traces = list(trees), list(traces)
    made = attempts(trees, traces)
    found, drops = successes(trees, traces, min_score=min_score, min_grade=min_grade)
    rows: list[SFTRow] = []
    for unit, ones in found.items():
        if len(made.get(unit, ())) < min_n:
            drops += [Drop(f"fewer than {min_n} attempts to choose from", one.name) for one in ones]
            continue
        ranked = sorted(ones, key=lambda one: (-one.score, one.calls))
        rows += [row for one in ranked[:cap] for row in one.rows]
        drops += [Drop("not the best attempt of its task", one.name) for one in ranked[cap:]]
    return Harvest(tuple(rows), tuple(drops))


def _per_state(trees: Iterable[SourcedTree], min_score: float, min_grade: Grade, min_n: int, cap: int) -> Harvest[SFTRow]:
    rows: list[SFTRow] = []
    drops: list[Drop] = []
    for source in trees:
        leaves, reason = passing(source.tree, min_score, min_grade)
        forks = [node for node in source.tree.nodes if len(node.children) > 1]
        if not leaves or not forks:
            drops.append(Drop(reason or "no state with alternatives", source.name))
            continue
        below = _below([node for node in source.tree.finished() if node.score is not None])
        good = _below(leaves)
        for fork in forks:
            best = [leaf_row(source, leaf, len(fork.state)) for leaf in good.get(fork.index, ())[:cap]]
            reason = (
                f"fewer than {min_n} attempts to choose from"
                if len(below.get(fork.index, ())) < min_n
                else "no attempt from this state was good"
                if not best
                else ""
            )
            if reason:
                drops.append(Drop(reason, f"{source.name}/step-{len(fork.state)}"))
                continue
            for row in best:
                one = replace(row, lineage=replace(row.lineage, fork_step=len(fork.state)))
                if any(one.trained):
                    rows.append(one)
                else:
                    drops.append(Drop(UNSEEN, one.name))
    return Harvest(tuple(rows), tuple(drops))


def _below(leaves: Sequence[Node]) -> dict[int, list[Node]]:
    """The leaves below each node, by its index, in the order given."""
    found: dict[int, list[Node]] = {}
    for leaf in leaves:
        for node in leaf.path():
            found.setdefault(node.index, []).append(leaf)
    return found
