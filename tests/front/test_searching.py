"""What a review of the front door found once: budgets, identities, failures and missing opinions over many traces."""

import gc
import time
from types import SimpleNamespace

import pytest

from counterplay import Store
from counterplay.core.effects import Effect
from counterplay.core.errors import PolicyError, UserError
from counterplay.core.journal import ask
from counterplay.core.nouns import Completeness, Message, Outcome, Proposal, Source, Step, ToolCall, ToolSpec, Trace, Trajectory
from counterplay.exporting import export_dpo, export_sft
from counterplay.loop import localise
from counterplay.parts import Asked
from counterplay.plan import Plan
from counterplay.searching import search
from counterplay.verifiers import combine

TOOL = ToolSpec.function("move", "Move.", {"type": "object", "properties": {"to": {"type": "string"}}}, Effect.parse("write(place)"))


def action(to, number=0):
    return Message.assistant(None, [ToolCall(f"c{number}", "move", f'{{"to":"{to}"}}')])


class World:
    """Three moves; only `b`, `b`, `b` is right."""

    tools = (TOOL,)
    prompt = (Message.user("go"),)
    fingerprint = "world-1"

    def __init__(self, task):
        if task == "broken":
            raise KeyError("no such data")
        self.moves, self.length = [], 150 if task == "long" else 3

    done = property(lambda self: len(self.moves) == self.length)
    reward = property(lambda self: float(self.moves == ["b"] * self.length))

    def call(self, name, arguments):
        self.moves.append(arguments["to"])
        return f"at {arguments['to']}"

    def snapshot(self):
        return tuple(self.moves)

    def restore(self, snapshot):
        self.moves = list(snapshot)


PARTS = SimpleNamespace(policy=None, World=World)


class Mover:
    fingerprint = "mover-1"

    def __init__(self, delay_s=0.0, fails=lambda state: False):
        self.delay_s, self.fails, self.draws = delay_s, fails, 0

    async def propose(self, state, n):
        time.sleep(self.delay_s)  # noqa: ASYNC251  a policy that blocks
        if self.fails(state):
            raise PolicyError("the server answered 500")
        self.draws += n
        return [Proposal(action("ab"[i % 2], len(state))) for i in range(n)]


def logged(task, moves="aaa", prefix="", **fields):
    steps = [Step(action(to, i), (Message.tool(f"at {to}", f"c{i}"),), grades=()) for i, to in enumerate(moves)]
    reward = float(moves == "bbb")
    steps[-1] = Step(steps[-1].action, steps[-1].observations, terminated=True, reward=reward)
    trajectory = Trajectory((TOOL,), (Message.user("go"),), tuple(steps))
    return Trace(f"{prefix}{task}", trajectory, Source("test"), task=task, outcome=Outcome(reward, reward == 1.0, "environment"), **fields)


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "front_parts", PARTS)
    return Asked("front_parts:policy", "front_parts:World", ("outcome",))


@pytest.fixture
def store():
    with Store.open(":memory:") as opened:
        yield opened


async def run(store, asked, traces, plan, policy):
    PARTS.policy = policy
    store.ingest(traces)
    return await search(store, traces, asked, plan)


FORKED = {"n": 2, "pivots": [2], "rollouts_per_alternative": 1}


async def test_seconds_are_common_to_all_traces(store, asked):
    traces = [logged(f"t{i}") for i in range(8)]
    plan, policy = Plan("best_of_n", {"n": 2}, fork="start", budget="seconds=0.3", concurrency=1), Mover(0.05)
    report = await run(store, asked, traces, plan, policy)
    assert 0 < policy.draws < 8 * 2 * 3, "each alone would have had the time to play both of its lines"
    assert report.stopped["budget: seconds"] >= 1


async def test_a_share_is_a_whole_number_and_the_rest_is_said_to_be_skipped(store, asked):
    traces = [logged(f"t{i}") for i in range(10)]
    plan = Plan("best_of_n", {"n": 2}, fork="start", budget="model_calls=8", split="even")
    report = await run(store, asked, traces, plan, Mover())
    assert (len(report.searches), len(report.skipped)) == (8, 2)
    assert report.used["model_calls"] <= 8
    assert Plan(budget="usd=0.3", trace_budget="usd=0.1").affordable(10) == 3


async def test_a_larger_budget_pays_for_nothing_twice(store, asked):
    traces, policy = [logged("t")], Mover()
    await run(store, asked, traces, Plan("best_of_n", {"n": 2}, fork="start", budget="model_calls=3"), policy)
    assert policy.draws == 3
    whole = await run(store, asked, traces, Plan("best_of_n", {"n": 2}, fork="start", budget="model_calls=6"), policy)
    assert (policy.draws, whole.live_calls, whole.used["model_calls"]) == (6, 3, 6)


async def test_what_decides_a_tree_is_in_its_identity(store, asked):
    traces = [logged("t")]
    short = await run(store, Asked(asked.policy, "recorded", ("outcome",), max_steps=1), traces, Plan("best_of_n", fork="start"), Mover())
    long = await run(store, Asked(asked.policy, "recorded", ("outcome",), max_steps=50), traces, Plan("best_of_n", fork="start"), Mover())
    assert short.searches != long.searches
    assert long.resumed == 0


async def test_a_search_hurt_by_an_outage_is_tried_again(store, asked):
    traces, plan = [logged("t")], Plan("fork_best_of_n", {"n": 2, "pivots": [1, 2]})
    hurt = await run(store, asked, traces, plan, Mover(fails=lambda state: len(state) == 2))
    assert hurt.failures["policy"]["count"] >= 1
    healthy = await run(store, asked, traces, plan, Mover())
    assert (healthy.resumed, healthy.failures) == (0, {})
    assert (await run(store, asked, traces, plan, Mover())).resumed == 1


async def test_one_bad_trace_stops_no_other(store, asked):
    traces = [logged("good"), logged("broken"), logged("cut", completeness=Completeness(inputs="partial"))]
    report = await run(store, asked, traces, Plan("fork_best_of_n", FORKED), Mover())
    assert len(report.searches) == 1
    assert "no such data" in report.skipped["broken"]
    assert "partial" in report.skipped["cut"]

    def moody(trajectory):
        return 1 / (len(trajectory.steps) - 1) if trajectory.prompt else 1.0

    PARTS.moody = moody
    found = await localise(store, traces[:1], Asked(verifiers=("tool_calls",)))
    assert found.traces == 1


async def test_long_logs_are_not_cut_off_by_a_default(store, asked):
    report = await run(store, asked, [logged("long", "a" * 150)], Plan("fork_best_of_n", {"n": 2, "pivots": [140]}), Mover())
    record = store.search(report.searches[0])
    assert record.config["max_steps"] >= 300
    assert not any(node.step.truncated for node in record.nodes if node.step is not None)


async def test_a_branch_whose_verifier_failed_is_not_exported_for_its_reward(store, asked, tmp_path):
    def strict(trajectory):
        if trajectory.finished and trajectory.steps[-1].reward == 1.0:
            raise RuntimeError("the judge is out")
        return 0.0

    PARTS.strict = strict
    traces, strictly = [logged("t", "bba")], Asked(asked.policy, asked.environment, ("front_parts:strict",))
    report = await run(store, strictly, traces, Plan("fork_best_of_n", FORKED), Mover())
    assert report.failures["verifier"]["count"] >= 1
    with pytest.raises(UserError, match="no row is left"):
        export_sft(store, tmp_path / "sft", source="searched")


async def test_stitching_again_over_more_logs_replaces_what_was_stitched(store, asked, tmp_path):
    few = [logged("t", moves, prefix=f"{i}-") for i, moves in enumerate(["bba", "bbb"] * 4)]
    many = [logged("t", moves, prefix=f"m{i}-") for i, moves in enumerate(["bbb", "bba"] * 9)]
    await run(store, Asked(), few, Plan("stitch"), None)
    store.ingest(many)
    report = await search(store, few + many, Asked(), Plan("stitch"))
    assert len(store.searches()) == len(report.searches) == 26
    assert export_dpo(store, tmp_path / "dpo").rows["train"] >= 1


async def test_all_means_all_where_it_counts():
    def silent(_):
        return None

    def sure(_):
        return 1.0

    done = logged("t").trajectory
    assert await ask(combine.all_of(silent, sure), done) is None
    assert (await ask(combine.all_of(silent, sure), done.prefix(1))).value == 1.0
    assert await ask(combine.product(silent, sure), done) is None


async def test_branches_that_could_not_go_on_are_counted_with_their_reason(store, asked, monkeypatch):
    monkeypatch.setattr(World, "tools", (ToolSpec(TOOL.wire),))
    report = await run(store, asked, [logged("t", "bba")], Plan("fork_best_of_n", FORKED), Mover())
    ((reason, count),) = report.branch_errors.items()
    assert (count, "tool move is external" in reason) == (1, True)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match="concurrency 0"):
        Plan(concurrency=0)


async def test_what_stitch_would_not_heed_is_refused(store):
    store.ingest([logged("t", "bbb")])
    flags = {"fork": "entropy", "stop_when": "value=1", "trace_budget": "model_calls=3", "budget": "usd=1"}
    for name, value in flags.items():
        with pytest.raises(UserError, match=f"got --{name.replace('_', '-')} for stitch, which merges logged runs: .*Leave them out"):
            Plan.parse("stitch", [], **{name: value})
        with pytest.raises(UserError, match=f"got --{name.replace('_', '-')} for stitch"):
            await search(store, list(store.load()), Asked(), Plan("stitch", **{name: value}))
    with pytest.raises(UserError, match="got --option n, --fork for stitch"):
        Plan.parse("stitch", ["n=3"], fork="value_drop")
    for asked in (Asked(verifiers=("outcome",)), Asked("logged"), Asked(simulator="nearest"), Asked(environment="a:b"), Asked(max_steps=3)):
        with pytest.raises(UserError, match="for stitch"):
            await search(store, list(store.load()), asked, Plan("stitch"))
    assert len((await search(store, list(store.load()), Asked(), Plan.parse("stitch", []))).searches) == 1


def test_names_that_are_nearly_right_are_told():
    for fork, meant in (("tool_eror", "tool_error"), ("valuedrop", "value_drop"), ("Start", "start")):
        with pytest.raises(UserError, match=rf"Did you mean {meant}\?"):
            Plan("mcts", fork=fork)
    with pytest.raises(UserError, match=r"Did you mean value_drop\?"):
        Plan(fork="value-drop")
    with pytest.raises(UserError, match=r"Did you mean rebase\?"):
        Plan.parse("rebace", [])
    with pytest.raises(UserError, match=r"Did you mean num_pivots\?"):
        Plan.parse(None, ["num_pivot=2"])
    with pytest.raises(UserError) as nonsense:
        Plan("mcts", fork="xyzzy")
    assert "Did you mean" not in str(nonsense.value)


@pytest.mark.parametrize(
    ("verifiers", "options", "chosen"),
    [
        (("outcome",), [], "fork_best_of_n"),
        (("outcome", "front_parts:weighs"), [], "repair"),
        (("outcome", "front_parts:weighs"), ["n=3"], "repair"),
        (("outcome", "front_parts:weighs"), ["pivots=1"], "fork_best_of_n"),
        (("outcome", "front_parts:fails"), [], "fork_best_of_n"),
        (("outcome",), ["rounds=2"], "repair"),
    ],
)
async def test_the_search_that_nobody_named_follows_from_the_verifier(store, asked, verifiers, options, chosen):
    PARTS.weighs, PARTS.fails = lambda trajectory: 0.5, lambda trajectory: 1 / 0 if not trajectory.finished else 1.0
    asked = Asked(asked.policy, asked.environment, verifiers)
    report = await run(store, asked, [logged("t", "bba")], Plan.parse(None, options), Mover())
    record = store.search(report.searches[0])
    assert record.algorithm == chosen
    said = {"repair: the verifier has opinions on unfinished runs": 1}
    assert report.notes == (said if "front_parts:weighs" in verifiers and chosen == "repair" else {})


class Sick(World):
    """Fails in one place for the task of that name."""

    def __init__(self, task):
        super().__init__("")
        self.task = task
        if task == "made":
            raise ZeroDivisionError("no such luck")

    def __getattribute__(self, name):
        if name in ("tools", "prompt", "fingerprint", "snapshot", "restore", "done", "reward", "call") and self.task == name:
            raise ZeroDivisionError("no such luck")
        return object.__getattribute__(self, name)

    task = ""

    def close(self):
        if self.task == "close":
            raise ZeroDivisionError("no such luck")


@pytest.mark.parametrize("place", ["made", "tools", "prompt", "fingerprint", "snapshot", "restore", "done", "reward", "call", "close"])
async def test_a_world_that_raises_anywhere_costs_the_other_traces_nothing(store, asked, place):
    PARTS.World, PARTS.Sick = World, Sick
    sick = Asked(asked.policy, "front_parts:Sick", asked.verifiers)
    report = await run(store, sick, [logged(place), logged("good")], Plan("fork_best_of_n", FORKED), Mover())
    done = {store.search(search_id).trace: search_id for search_id in report.searches}
    told = f"{report.skipped} {report.failures} {report.branch_errors}"
    assert "good" in done
    assert store.search(done["good"]).stopped == "forked at 2"
    assert "no such luck" in told
    if place not in done:
        assert set(report.skipped) == {place}
        assert "ZeroDivisionError: no such luck" in report.skipped[place]


async def test_an_environment_of_ones_own_may_raise_too(store, asked):
    class Own:
        fingerprint = "own"

        def __init__(self, task):
            self.task = task

        async def open(self):
            if self.task == "open":
                raise OSError("the door is stuck")

        @property
        def capabilities(self):
            raise KeyError("able") if self.task == "able" else AttributeError

        async def step(self, state, action):
            return Step(action, terminated=True, reward=0.0)

        def close(self):
            if self.task == "close":
                raise OSError("the door does not close")

    PARTS.Own = Own
    own = Asked(asked.policy, "front_parts:Own", asked.verifiers)
    traces = [logged(task) for task in ("open", "able", "good")]
    report = await run(store, own, traces, Plan("best_of_n", {"n": 2}, fork="start"), Mover())
    assert set(report.skipped) == {"open", "able"}
    assert "the environment of trace open raised OSError: the door is stuck" in report.skipped["open"]
    alone = Plan("best_of_n", {"n": 3}, fork="start")
    open_still = await run(store, own, [logged("close")], alone, Mover())
    assert (len(open_still.searches), open_still.skipped) == (1, {})
    assert "the environment of trace close, while it was closed, raised OSError" in open_still.failures["closing"]["first"]
    assert (await run(store, own, [logged("close")], alone, Mover())).resumed == 1
    with pytest.raises(UserError, match="the environment of trace able raised KeyError"):
        await run(store, own, traces[1:2], alone, Mover())


async def test_a_defect_of_our_own_is_not_taken_for_a_bad_trace(store, asked, monkeypatch):
    monkeypatch.setattr("counterplay.searching.usage_config", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await run(store, asked, [logged("t"), logged("u")], Plan("fork_best_of_n", FORKED), Mover())


async def test_a_policy_whose_estimate_raises_is_named(store, asked):
    class Priced(Mover):
        def estimate(self, state, n):
            return 1 / 0

    with pytest.raises(PolicyError, match="the policy's estimate failed: ZeroDivisionError"):
        await run(store, asked, [logged("t")], Plan("fork_best_of_n", FORKED, budget="tokens=1000"), Priced())


async def test_garbage_is_looked_for_less_often_while_trees_grow_and_as_before_afterwards(store, asked):
    seen = []

    class Looking(Mover):
        async def propose(self, state, n):
            seen.append((gc.get_threshold()[0], gc.get_freeze_count() > 0))
            return await super().propose(state, n)

    before = gc.get_threshold()
    await run(store, asked, [logged("t")], Plan("fork_best_of_n", FORKED), Looking())
    assert set(seen) == {(max(before[0], 5000), True)}
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
