"""A store and folders with something of everything the page shows, hostile texts among it."""

import json

from counterplay.core.nouns import (
    Call,
    LoggedScore,
    Message,
    Outcome,
    Score,
    Source,
    Step,
    SubTrajectory,
    ToolCall,
    ToolSpec,
    Trace,
    Trajectory,
    Usage,
)
from counterplay.core.store import ScoreRow, Store
from counterplay.finetune.rows import DPORow, Drop, Harvest, Lineage, SFTRow
from counterplay.finetune.write import write_dataset
from counterplay.search.tree import SearchTree

HOSTILE = [
    "<script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 1">',
    "<svg onload=window.hacked=1>",
    "[click](javascript:window.hacked=1)",
    "</script><script>window.hacked = 1</script>",
    "<!-- <script> -->",
    "line\u2028separator & <b>bold</b> \ud800 alone",
]
TOOLS = (
    ToolSpec.function("look_up", "Look an account up.", {"type": "object", "properties": {"account": {"type": "string"}}}),
    ToolSpec.function("post", "Post an entry.", {"type": "object", "properties": {"amount": {"type": "number"}}}),
)


def act(name, call_id, arguments, result, **rest):
    action = Message.assistant(rest.pop("text", None), [ToolCall(call_id, name, json.dumps(arguments))], rest.pop("reasoning", None))
    return Step(action, (Message.tool(result, call_id),), **rest)


def trajectory(number, *, good):
    hostile = HOSTILE[number % len(HOSTILE)]
    steps = (
        act("look_up", "a", {"account": "1200", "note": hostile}, '{"balance": 3}', reasoning=f"First look. {hostile}"),
        act("post", "b", {"amount": 3 if good else 4}, "done" if good else "Error: out of balance"),
        Step(Message.assistant(f"Booked as run {number}. {hostile}"), terminated=True, reward=float(good)),
    )
    return Trajectory(TOOLS, (Message.system("You keep books."), Message.user(f"Book document {number}. {hostile}")), steps)


def trace(number, *, good, agent="ledger"):
    main, helper = trajectory(number, good=good), trajectory(number, good=True)
    calls = [
        Call(
            i,
            0,
            "small",
            {"temperature": 0.4},
            Usage(100 + i, 10, 50, 2, 0.001 * (number + 1)),
            0.5,
            1_700_000_000_000_000 + number * 60_000_000 + i,
        )
        for i in range(3)
    ]
    return Trace(
        f"trace-{number}",
        main,
        Source("made", "made.jsonl", number + 1),
        (SubTrajectory(helper, "checker", 1),) if number % 3 == 0 else (),
        task=f"book-{number % 4}",
        session=f"s{number // 2}",
        agent=agent,
        outcome=Outcome(float(good), good, "harness", {"why": HOSTILE[0]}),
        calls=tuple(calls),
        scores=(
            LoggedScore.of("helpful", 1.0, source="human", comment=HOSTILE[1]),
            LoggedScore.of("sound", 0.9, step=0, source="judge"),
            *([LoggedScore.of("sound", 0.2, step=1, source="judge", comment="wrong amount")] if number % 2 and not good else []),
        ),
        tags=("night", HOSTILE[2]) if number % 2 else (),
        metadata={"release": number, "html": HOSTILE[3]},
        started_at_us=1_700_000_000_000_000 + number * 60_000_000,
        ended_at_us=1_700_000_002_000_000 + number * 60_000_000,
    )


def search(logged):
    """A tree over a trace from its second step: the log again, a better way, a worse one, and one that did not end."""
    root = logged.trajectory.prefix(1)
    tree = SearchTree.start(root, "mcts", {"num_simulations": 4, "c_puct": 1.5})
    node = tree.root
    for step in logged.trajectory.steps[1:]:
        node = tree.add(node, step, logged=True)
    node.score = Score(logged.outcome.reward, HOSTILE[0], "books", "2")
    node.backup(logged.outcome.reward)
    for amount, value in ((3, 1.0), (9, 0.0)):
        middle = tree.add(tree.root, act("post", f"c{amount}", {"amount": amount}, f"done {HOSTILE[4]}"))
        middle.prior = 0.3
        end = tree.add(middle, Step(Message.assistant(f"Posted {amount}."), terminated=True, reward=value))
        end.score = Score(value, f"balance {amount}", "books", "2")
        end.backup(value)
    tree.add(tree.root, act("look_up", "d", {"account": "9"}, "none", truncated=True)).visits = 1
    tree.stop("the budget is used")
    return tree.to_record(f"search-{logged.id}", trace=logged.id, task=logged.task, fork_step=1)


def make_store(path, traces=12):
    made = [trace(number, good=number % 3 == 2, agent="ledger" if number % 4 else "clerk") for number in range(traces)]
    with Store.open(path) as store:
        store.ingest(made)
        for logged in made[:2]:
            store.put_search(search(logged))
        store.put_scores([ScoreRow(made[0].trajectory.prefix_keys[2], "books", "2", 0.25, HOSTILE[5])])
    return made


def make_folders(root, made):
    """A dataset of each of two kinds, a training, rounds, an evaluation, a scaling and a verifier's report."""
    logged = made[0]
    messages = logged.trajectory.messages
    trained = tuple(message.role == "assistant" for message in messages)
    lineage = Lineage(logged.task, (logged.id, "elsewhere"), grade=logged.trajectory.grade, logged=True)
    rows = Harvest((SFTRow(messages, trained, TOOLS, 1.0, lineage),), (Drop("the logged run did not succeed", "trace-1", HOSTILE[1]),))
    write_dataset(rows, root / "sft", split={"train": 1.0})
    tree = SearchTree.from_record(search(logged))
    chosen, rejected = tree.nodes[3], tree.nodes[1]
    nodes = (tree.root.state.key, chosen.state.key, rejected.state.key)
    about = Lineage(logged.task, (logged.id,), (), f"search-{logged.id}", "mcts", 1, nodes, ("books@2",))
    pair = DPORow(tree.root.state.messages, (chosen.step.action,), (rejected.step.action,), TOOLS, 0.95, (4, 4), (3.5, 0.5), lineage=about)
    write_dataset([pair], root / "deeper" / "dpo", split={"train": 1.0})
    for name, content in _reports().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (root / "broken").mkdir()
    (root / "broken" / "report.json").write_text("{")


def _estimate(value):
    return {"value": value, "low": value - 0.1, "high": None, "n": 20, "groups": 5}


def _reports():
    curve = {
        "points": [{"n": n, "gold": 0.5, "low": None, "high": 0.6, "proxy": 0.7, "ceiling": 0.9} for n in (1, 2, 4)],
        "candidates": 40,
        "pools": 10,
        "pooled": False,
        "gain": [0.1, 0.05, 0.15],
        "fall": [0.0, None, None],
    }
    told = {
        "n": 40,
        "base": 0.5,
        "auroc": _estimate(0.8),
        "brier": _estimate(0.2),
        "ece": _estimate(0.1),
        "ece_width": _estimate(0.1),
        "ece_floor": 0.02,
        "reliability": [{"low": 0.0, "high": 0.5, "said": 0.2, "seen": _estimate(0.3)}],
    }
    evaluation = {
        "name": "books",
        "version": "2",
        "trajectories": 40,
        "tasks": 10,
        "labelled_steps": 0,
        "answers": {"questions": 40, "abstained": None, "failed": None, "errors": {}, "seconds": 0.1, "tokens": None, "cost_usd": None},
        **dict.fromkeys(
            ("steps", "first_errors", "ternary", "task_siblings", "step_siblings", "length_steps", "length_text", "consistency")
        ),
        "outcomes": told,
        "probes": [{"name": "padding", "n": 20, "rises": _estimate(0.2), "change": _estimate(0.1), "failed": False}],
        "natural": curve,
        "attacked": None,
        "notes": ["no step is labelled"],
    }
    rounds = [
        {
            "number": n,
            "model": "m",
            "success": 0.5 + n / 10,
            "interval": [0.4, 0.7],
            "tasks": 30,
            "gain": None,
            "over_base": None,
            "verdict": "",
            "search": "repair",
            "unguided": "",
            "traces": 9,
            "failed": 4,
            "solved": 2,
            "rows": 7,
            "pairs": 0,
            "model_calls": 12,
            "tokens": 99,
            "seconds": 3.5,
            "cpu_seconds": 3.0,
            "lineage": {},
        }
        for n in (0, 1)
    ]
    policy = {
        "name": "base",
        "tasks": 30,
        "rate": 0.5,
        "interval": [0.4, 0.6],
        "pass_at": {"1": 0.5},
        "mean_steps": 4.0,
        "cost_per_success_usd": None,
        "attempts": 30,
        "successes": 15,
        "pass_intervals": {},
        "steps_per_success": None,
        "failures": [{"failure": "no answer", "share": 0.1, "interval": [0.0, 0.2]}],
    }
    compared = {
        "a": "base",
        "b": "tuned",
        "tasks": 30,
        "difference": 0.1,
        "interval": [0.0, 0.2],
        "p_value": 0.03,
        "verdict": "better",
        "gains": ["t1"],
        "regressions": [],
        "ends": {},
        "failures": [],
    }
    point = {"budget": 8, "rate": 0.5, "interval": [0.4, 0.6], "spent": 7.5}
    gap = {"a": "base", "b": "tuned", "budget": 8, "difference": 0.1, "interval": [0.0, 0.2]}
    return {
        "model/training.json": {"format": 1, "recipe": {"kind": "sft"}, "report": None},
        "model/metrics.jsonl": "".join(json.dumps({"step": n, "total": 2500, "loss": 1 / n, "note": "x"}) + "\n" for n in range(1, 2501)),
        "rounds/improve.json": {
            "format": 1,
            "asked": {},
            "folder": "rounds",
            "rounds": rounds,
            "chosen": 1,
            "model": "m",
            "stopped": "2 rounds",
        },
        "evaluation/report.json": {
            "policies": [policy],
            "comparisons": [compared],
            "seed": 0,
            "resamples": 10,
            "unplayed": {},
            "settings": {},
        },
        "evaluation/scaling.json": {
            "tasks": 30,
            "method": "best_of_n",
            "verifier": "outcome",
            "curves": [{"name": "base", "points": [point]}],
            "gaps": [gap],
        },
        "books/report.json": {"evaluations": [evaluation]},
    }
