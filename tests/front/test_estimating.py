"""From recorded runs to what another policy would achieve: log-probabilities recorded or scored, and what is refused."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from counterplay import evaluation_kept, loop
from counterplay.core.errors import UserError
from counterplay.core.nouns import Call, Message, Outcome, Source, Step, SubTrajectory, Trace, Trajectory
from counterplay.estimating import _others, _usable, estimate, tables
from counterplay.evaluation import evaluate

MODEL = f"transformers:{Path(__file__).parents[2] / 'examples' / 'ledger' / 'model'}"
TASKS = [f"heldout-{i:04d}" for i in range(1, 33)]


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The first five steps of sampled runs of the example agent, recorded by an evaluation and read again; two thirds succeed."""
    folder, world = tmp_path_factory.mktemp("evaluated") / "out", "counterplay.examples.ledger:Ledger"
    done = asyncio.run(evaluate({"agent": MODEL}, world, TASKS, temperature=1.0, max_tokens=64, max_steps=5))
    evaluation_kept.prepare(folder)
    *_, recording = evaluation_kept.keep(done, folder)
    with loop.opened(folder / "s.duckdb") as store:
        loop.ingest([recording], store)
        traces = loop.select(store)
    return [replace(trace, outcome=Outcome(float(int(str(trace.task)[-4:]) % 3 > 0))) for trace in traces]


async def test_the_logging_policy_is_found_to_be_itself(logged):
    found = await estimate(logged, {"same": MODEL})
    one = found.policies["same"]
    assert found.behaviour == "recorded with the runs, sampled at temperature 1; the new policies at 1"
    assert (one.runs, one.tasks) == (32, 32)
    assert one.logged == pytest.approx(22 / 32)
    assert one.effective == pytest.approx(32, abs=1.1)  # a call that can't be rendered as it was written counts for nothing
    assert one["weighted"].lift == pytest.approx(0.0, abs=0.04)
    shown = [str(line) for line in tables(found)]
    assert any("no evidence of lift of same" in line for line in shown)


async def test_a_policy_that_made_the_logs_scores_them_where_nothing_was_recorded(logged):
    bare = [replace(trace, metadata={}) for trace in logged]
    with pytest.raises(UserError, match="32 of 32 runs without log-probabilities"):
        await estimate(bare, {"same": MODEL})
    found = await estimate(bare, {"before": MODEL, "after": MODEL})
    assert found.behaviour.startswith("scored by before, sampled at temperature 1")
    assert list(found.policies) == ["after"]
    assert found.policies["after"].effective == pytest.approx(32)
    assert found.policies["after"]["weighted"].lift == pytest.approx(0.0, abs=1e-9)
    cool = [replace(trace, metadata={"temperature": 0.4}) for trace in logged]
    same = await estimate(cool, {"before": MODEL, "after": MODEL})
    assert same.policies["after"]["weighted"].lift == pytest.approx(0.0, abs=1e-9), (
        "the same model at the temperature of the logs is no better"
    )


async def test_another_temperature_is_another_policy_and_a_verifier_is_the_model(logged):
    cooler = (await estimate(logged, {"cooler": MODEL}, temperature=0.8)).policies["cooler"]
    assert 30 <= cooler.effective < 31.99
    with_model = await estimate(logged, {"cooler": MODEL}, temperature=0.8, verifier=lambda t: 0.9 if len(t) % 2 else None)
    assert with_model.policies["cooler"]["weighted"] == cooler["weighted"]
    assert with_model.policies["cooler"]["doubly robust"] != cooler["doubly robust"]


def run(number=0, **fields):
    steps = (Step(Message.assistant("done"), terminated=True, reward=1.0),)
    made = Trace(
        f"t{number}", Trajectory((), (Message.user("go"),), steps), Source("test"), task=f"task {number}", outcome=Outcome(1.0, True)
    )
    return replace(made, **fields)


@pytest.mark.parametrize(
    ("traces", "policies", "words"),
    [
        ([], {"a": MODEL}, "no runs at all"),
        ([run(task=None), run(outcome=Outcome()), run(outcome=Outcome())], {"a": MODEL}, "1 without a task, 2 without an outcome"),
        ([run()], {"a": "openai:gpt"}, "can't say how likely"),
        ([run(metadata={"temperature": 0.0})], {"a": MODEL}, "greedy logs"),
        ([run(metadata={"temperature": 0.4}), run(1, calls=(Call(0, params={"temperature": 1}),))], {"a": MODEL}, "temperatures 0.4, 1"),
        ([run(metadata={"temperature": 0.4, "logprobs": [-1.0]})], {"a": MODEL}, "1 of 1 runs without"),
        ([run(metadata={"temperature": 1, "logprobs": [None]})], {"a": MODEL}, "1 of 1 runs without"),
        ([run(metadata={"temperature": 1, "logprobs": []})], {"a": MODEL}, "1 of 1 runs without"),
    ],
)
async def test_what_cannot_be_estimated_is_refused(traces, policies, words):
    with pytest.raises(UserError, match=words):
        await estimate(traces, policies)


async def test_what_is_left_out_is_counted(logged):
    steps = (Step(Message.assistant("put there"), sampled=False, terminated=True),)
    odd = run(outcome=Outcome(1.0), trajectory=Trajectory((), (Message.user("go"),), steps))
    found = await estimate([*logged, odd, run(task=None)], {"same": MODEL})
    assert found.left_out == {"without a sampled action": 1, "without a task": 1}
    assert found.policies["same"].runs == 32


SHORT = Trajectory((), (Message.user("go"),), (Step(Message.assistant("on")),))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"calls": (Call(0, params={"temperature": 1, "top_p": 0.5}),)}, "sampled with top_p"),
        ({"calls": (Call(0, params={"top_k": 40, "min_p": 0.1}),)}, "sampled with top_k and min_p"),
        ({"metadata": {"top_p": 0.9}}, "sampled with top_p"),
        ({"sub_trajectories": (SubTrajectory(SHORT, continues=0),)}, "with a compaction"),
        ({"sub_trajectories": (SubTrajectory(SHORT, agent="helper"),)}, "with sub-agents"),
    ],
)
def test_runs_whose_decisions_cannot_be_weighed_are_left_out_by_name(fields, words):
    whole = run(calls=(Call(0, params={"temperature": 1, "top_p": 1.0, "top_k": -1, "min_p": 0}),))
    assert _usable([whole, run(**fields)]) == ([whole], {words: 1})


def test_the_model_of_a_run_never_knows_its_own_outcome():
    def of(*outcomes):
        traces = [run(i, task=f"task {i // 2}", outcome=Outcome(outcome)) for i, outcome in enumerate(outcomes)]
        return _others(traces)

    first, second, *_ = of(1.0, 0.0, 1.0, 1.0)
    assert (first, second) == (pytest.approx((0 + 2 * 1.0) / 3), pytest.approx((1 + 2 * 1.0) / 3))
    assert of(0.0, 0.0, 1.0, 1.0)[0] == first
    assert _others([run(outcome=Outcome(1.0))]) == [0.5]
