"""Asking in batches: the same search, a wave a round; what comes back is used once, and what does not is asked again."""

import asyncio
import json
import sys
from types import SimpleNamespace

import pytest

from counterplay import Store
from counterplay.core.budget import Budget
from counterplay.core.errors import PolicyError, UserError
from counterplay.core.journal import JournaledPolicy, MemoryJournal
from counterplay.core.nouns import Message, Step, Trajectory
from counterplay.core.protocols import fingerprint_of
from counterplay.parts import Asked
from counterplay.plan import Plan
from counterplay.replay import batch_folder
from counterplay.replay.batch_folder import BatchFolder
from counterplay.replay.openai_answers import Price
from counterplay.replay.openai_batch import AnswersPendingError, OpenAIBatchPolicy
from counterplay.replay.openai_batches import Batches
from counterplay.replay.openai_policy import OpenAIPolicy
from counterplay.replay.openai_tally import Tally
from counterplay.replay.policies import policy_from_spec
from counterplay.search.beam import beam
from counterplay.search.best_of_n import best_of_n
from counterplay.search.mcts import mcts
from counterplay.search.render import to_dict
from counterplay.searching import search
from tests.front import moves
from tests.replay.batch_server import BatchServer
from tests.replay.loopback import completion
from tests.replay.model_servers import ModelServer

LENGTH = 4


class Walk:
    """Four words; the more of them are even numbers the better."""

    async def step(self, state, action):
        return Step(action, (Message.user("go on"),), terminated=len(state) + 1 == LENGTH)

    def __call__(self, trajectory):
        said = [int(step.action.content_text) for step in trajectory.steps]
        return sum(number % 2 == 0 for number in said) / LENGTH


def word(request):
    return completion(*[str(request["seed"] // 7 % 10 + at) for at in range(request.get("n", 1))])


SEARCHES = {
    "best_of_n": lambda *parts: best_of_n(*parts, n=3),
    "beam": lambda *parts: beam(*parts, width=2, num_actions=3),
    "mcts": lambda *parts: mcts(*parts, num_simulations=10, num_actions=2),
}


def start(number):
    return Trajectory((), (Message.user(f"task {number}"),))


async def searched(policy, name, journals):
    """The search from three states, each with its journal; None where one has open questions."""

    async def one(number):
        try:
            walk = Walk()
            return await SEARCHES[name](start(number), JournaledPolicy(policy, journals[number]), walk, walk, Budget())
        except AnswersPendingError:
            return None

    trees = await asyncio.gather(*(one(number) for number in range(3)))
    await policy.aclose()
    return trees


def carried(server, folder):
    batches = Batches(folder, base_url=server.base_url)
    try:
        return batches.wait(every_s=0)
    finally:
        batches.close()


@pytest.mark.parametrize("name", SEARCHES)
async def test_rounds_come_to_the_tree_that_a_server_at_hand_gives(tmp_path, name):
    with ModelServer(word) as live:
        policy = OpenAIPolicy("m", base_url=live.base_url)
        wanted = await searched(policy, name, [MemoryJournal() for _ in range(3)])
    journals, calls, tokens, rounds = [MemoryJournal() for _ in range(3)], 0, 0, 0
    with BatchServer(word) as server:
        while True:
            asking = OpenAIBatchPolicy(tmp_path, "m")
            assert fingerprint_of(asking) == fingerprint_of(policy)
            trees = await searched(asking, name, journals)
            calls, tokens = calls + asking.tally.calls, tokens + asking.tally.input_tokens + asking.tally.output_tokens
            if all(trees):
                break
            rounds += 1
            assert await asyncio.to_thread(carried, server, tmp_path)
        assert server.counts["POST batches"] == rounds
    assert [to_dict(tree) for tree in trees] == [to_dict(tree) for tree in wanted]
    assert rounds == LENGTH or name == "mcts"
    assert calls == server.counts["answered"] == policy.tally.calls
    assert tokens == server.counts["tokens"]


async def test_a_search_over_a_store_goes_on_round_by_round_to_what_a_server_at_hand_gives(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "batch_parts", SimpleNamespace(World=moves.World))
    logs = [moves.logged(f"train-{number}", "baaaaa") for number in range(3)]
    plan = Plan("beam", {"width": 2, "num_actions": 2}, fork="start")

    async def run(store, spec, url=None):
        return await search(store, logs, Asked(spec, "batch_parts:World", ("outcome",), url), plan)

    with ModelServer(moves.answer) as live, Store.open(":memory:") as store:
        store.ingest(logs)
        wanted = await run(store, "openai:m", live.base_url)
    with BatchServer(moves.answer) as server, Store.open(":memory:") as store:
        store.ingest(logs)
        rounds = 0
        while True:
            try:
                found = await run(store, f"batch:{tmp_path}:m")
            except AnswersPendingError:
                found = None
            if found and not found.skipped:
                break
            rounds += 1
            assert (await asyncio.to_thread(carried, server, tmp_path)).sent == 1, "the questions of all traces are in one file"
        assert server.counts["answered"] == wanted.tally["calls"]
    assert rounds >= moves.LENGTH
    assert (found.digest, found.searches, found.used) == (wanted.digest, wanted.searches, wanted.used)


async def test_with_a_server_it_sends_and_waits_itself(tmp_path):
    with ModelServer(word) as live:
        wanted = await searched(OpenAIPolicy("m", base_url=live.base_url), "beam", [MemoryJournal() for _ in range(3)])
    with BatchServer(word) as server:
        policy = OpenAIBatchPolicy(tmp_path, "m", base_url=server.base_url, every_s=0.05)
        trees = await searched(policy, "beam", [MemoryJournal() for _ in range(3)])
        assert LENGTH <= server.counts["POST batches"] <= 3 * LENGTH
        assert policy.tally.calls == server.counts["answered"]
        assert len(BatchFolder(tmp_path).waiting) == 0
    assert [to_dict(tree) for tree in trees] == [to_dict(tree) for tree in wanted]


async def test_a_wait_that_is_given_up_ends_and_can_be_taken_up_again(tmp_path):
    with BatchServer(word) as server:
        policy = OpenAIBatchPolicy(tmp_path, "m", base_url=server.base_url, every_s=100)
        asking = asyncio.ensure_future(policy.propose(start(0), 1))
        while not server.counts["POST batches"]:  # noqa: ASYNC110  another thread's count
            await asyncio.sleep(0.05)
        asking.cancel()
        await policy.aclose()
        again = OpenAIBatchPolicy(tmp_path, "m", base_url=server.base_url, every_s=0.05)
        assert await again.propose(start(0), 1)
        await again.aclose()
        assert server.counts["POST batches"] == 1


async def test_a_wave_is_written_down_whole_and_once(tmp_path):
    for _ in range(2):
        policy = OpenAIBatchPolicy(tmp_path, "m", n_support="never")
        with pytest.raises(AnswersPendingError, match="counterplay batch"):
            await policy.propose(start(0), 4)
        assert await searched(policy, "best_of_n", [MemoryJournal() for _ in range(3)]) == [None] * 3
    (path,) = tmp_path.glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 4 + 2 * 3
    assert {(line["method"], line["url"], line["body"]["model"]) for line in lines} == {("POST", "/v1/chat/completions", "m")}
    assert len({line["custom_id"] for line in lines}) == len(lines)
    assert all(len(line["custom_id"]) <= 64 for line in lines)


async def test_what_was_not_closed_is_asked_again(tmp_path):
    killed = OpenAIBatchPolicy(tmp_path, "m")
    with pytest.raises(AnswersPendingError):
        await killed.propose(start(0), 1)
    assert not list(tmp_path.glob("*.jsonl"))
    policy = OpenAIBatchPolicy(tmp_path, "m")
    with pytest.raises(AnswersPendingError):
        await policy.propose(start(0), 1)
    await policy.aclose()
    assert len(list(tmp_path.glob("questions-*.jsonl"))) == 1
    killed.batch._new.close()


async def one(folder, n=1, tally=None, **options):
    policy = OpenAIBatchPolicy(folder, "m", **options)
    policy.tally = tally or policy.tally
    try:
        return await policy.propose(start(0), n), policy.tally
    finally:
        await policy.aclose()


async def rounds_until(folder, server, n=1, **options):
    tally = Tally()
    for number in range(9):
        try:
            return (*(await one(folder, n, tally, **options)), number)
        except AnswersPendingError:
            await asyncio.to_thread(carried, server, folder)
    raise AssertionError


@pytest.mark.parametrize("verdict", ["batch_expired", (500, {"error": "x"}), (429, {"error": "slow"}), None])
async def test_what_came_back_without_an_answer_is_asked_again(tmp_path, verdict):
    with BatchServer(word, lambda _, number: "answer" if number == 3 else verdict) as server:
        (proposal,), tally, rounds = await rounds_until(tmp_path, server)
    assert proposal.action.content.isdecimal()
    assert (rounds, tally.calls, tally.failures) == (3, 1, 0)


async def test_what_never_comes_back_is_an_error_after_three_more(tmp_path):
    with BatchServer(word, lambda *_: "batch_expired") as server:
        with pytest.raises(PolicyError, match="batch_expired"):
            await rounds_until(tmp_path, server)
        assert set(server.asked.values()) == {4}


async def test_a_refused_question_is_an_error_at_once(tmp_path):
    with BatchServer(word, lambda *_: (400, {"error": {"message": "context too long"}})) as server:
        with pytest.raises(UserError, match="context too long"):
            await rounds_until(tmp_path, server)
        assert set(server.asked.values()) == {1}


async def test_an_answer_that_cannot_be_read_is_asked_for_again_and_counted(tmp_path):
    bad = iter([{**completion("x"), "choices": []}])
    with BatchServer(lambda request: next(bad, None) or word(request)) as server:
        _, tally, rounds = await rounds_until(tmp_path, server)
    assert (rounds, tally.calls, tally.unusable, tally.wasted_tokens) == (2, 1, 1, 15)
    assert server.counts["answered"] == tally.calls + tally.unusable


async def test_a_server_that_gives_one_of_n_is_asked_for_the_others_and_nothing_counts_twice(tmp_path):
    with BatchServer(lambda request: completion(str(request["seed"] % 10))) as server:
        proposals, tally, rounds = await rounds_until(tmp_path, server, 3)
        assert len(proposals) == 3
        assert rounds == 2
        assert tally.calls == server.counts["answered"] == 3


async def test_half_the_price_is_what_the_user_says(tmp_path):
    with BatchServer(word) as server:
        _, tally, _ = await rounds_until(tmp_path, server, prices={"m": Price(1.0, 2.0)})
    assert tally.cost_usd == pytest.approx((10 * 1.0 + 5 * 2.0) / 1e6)


async def test_a_refused_batch_is_told_and_can_be_asked_anew(tmp_path):
    with pytest.raises(AnswersPendingError):
        await one(tmp_path)
    with BatchServer(word, refuse="the model `m` does not exist") as server, pytest.raises(UserError, match="does not exist"):
        await asyncio.to_thread(carried, server, tmp_path)
    with BatchServer(word) as server:
        _, tally, rounds = await rounds_until(tmp_path, server)
    assert (tally.calls, rounds) == (1, 1)


async def test_a_batch_is_made_once_whenever_the_sender_is_killed(tmp_path):
    with pytest.raises(AnswersPendingError):
        await one(tmp_path)
    with BatchServer(word) as server:
        batches = Batches(tmp_path, base_url=server.base_url)
        batches.carry()
        state = json.loads((tmp_path / "batches.json").read_text())
        (known,) = state.values()
        del known["batch"]
        (tmp_path / "batches.json").write_text(json.dumps(state))  # killed after the batch was made and before that was written down
        batches.wait(every_s=0)
        batches.close()
        assert server.counts["POST batches"] == server.counts["POST files"] == 1
        assert (await one(tmp_path))[1].calls == 1
        again = await asyncio.to_thread(carried, server, tmp_path)
        assert (again.sent, again.lines) == (0, 0)


async def test_files_put_there_by_hand_will_do(tmp_path):
    with pytest.raises(AnswersPendingError):
        await one(tmp_path)
    (path,) = tmp_path.glob("questions-*.jsonl")
    asked = json.loads(path.read_text())
    row = {"custom_id": asked["custom_id"], "response": {"status_code": 200, "body": word(asked["body"])}, "error": None}
    (tmp_path / "downloaded.jsonl").write_text(json.dumps(row) + "\n\n")
    assert (await one(tmp_path))[1].calls == 1
    (tmp_path / "notes.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UserError, match=r"notes\.jsonl holds something else in line 1"):
        BatchFolder(tmp_path)


def test_a_full_file_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_folder, "_MOST_LINES", 2)
    one, other = BatchFolder(tmp_path), BatchFolder(tmp_path)
    for number in range(5):
        one.ask(f"a{number}", b"{}")
        other.ask(f"b{number}", b"{}")
    one.close()
    other.close()
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [f"questions-{number:04d}.jsonl" for number in range(1, 7)]
    assert len(BatchFolder(tmp_path).waiting) == 10


def test_the_policy_has_a_name(tmp_path):
    policy = policy_from_spec(f"batch:{tmp_path}/night:ft:gpt-5-mini:acme::7", temperature=0.5, price=Price(1, 2))
    assert isinstance(policy, OpenAIBatchPolicy)
    assert (policy.model, policy.price) == ("ft:gpt-5-mini:acme::7", Price(1, 2))
    with pytest.raises(UserError, match="batch:FOLDER:MODEL"):
        policy_from_spec("batch:night")
