"""What is trained on is what was sampled: from a local model's tokens over the recording and the export to the labels."""

import copy
import json
from dataclasses import replace

import pytest

from counterplay import exporting
from counterplay.cleaning import Cleaner
from counterplay.connectors.base import ingest_items
from counterplay.connectors.redaction import Redactor
from counterplay.core.budget import Amounts, Budget
from counterplay.core.canonical import chain_key
from counterplay.core.errors import UserError
from counterplay.core.journal import JournaledPolicy, MemoryJournal
from counterplay.core.nouns import Call, Message, Proposal, Source, Step, Trace, Trajectory, Usage
from counterplay.core.store import Store
from counterplay.core.token_ids import choice_token_ids
from counterplay.finetune.exactness import RecordedRow, exactness, recorded_ids, recorded_in, with_token_ids
from counterplay.finetune.masks import IGNORED, segments, tokenised
from counterplay.finetune.rows import SFTRow, SourcedTree
from counterplay.finetune.train import train_sft
from counterplay.finetune.trajectories import logged_rows, sft_rows
from counterplay.finetune.write import read_dataset, write_dataset
from counterplay.replay.recorder import Recorder, play
from counterplay.replay.token_log import TokenLog, read_token_log
from counterplay.search.best_of_n import best_of_n
from tests.finetune.chat_templates import spoken, tokenizer_for, trl_templates
from tests.replay.tiny_model import make_folder

MESSAGES = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "done"}, {"role": "user", "content": "on"}]


def record(answer, ids):
    """A row whose first answer was recorded as `ids`, and another one after it that was not."""
    messages = [MESSAGES[0], {"role": "assistant", "content": answer}, MESSAGES[2], {"role": "assistant", "content": "order"}]
    trained = [False, True, False, True]
    return {"name": "r", "messages": messages, "tools": None, "trained": trained, "token_ids": json.dumps([None, ids, None, None])}


def ids_of(tokenizer, *pieces):
    return [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]


def test_ids_that_are_the_text_s_own_are_equal_and_stay_one_sequence(tokenizer):
    row = record("done", ids_of(tokenizer, "done<|im_end|>"))
    found = exactness(tokenizer, [row], as_recorded=False)
    assert (found.equal, found.unrecorded, found.differences, found.exact) == (1, 1, (), False)
    (sequence,) = tokenised(tokenizer, row["messages"], None, row["trained"], recorded_in(row))
    assert sequence == tokenised(tokenizer, row["messages"], None, row["trained"])[0]


def test_the_same_text_in_other_tokens_is_caught_and_trained_on_as_sampled(tokenizer):
    sampled = ids_of(tokenizer, "d", "one", "<|im_end|>")
    assert sampled != ids_of(tokenizer, "done<|im_end|>"), "else this shows nothing"
    row = record("done", sampled)
    found = exactness(tokenizer, [row], as_recorded=False)
    assert (found.retokenised, found.rewritten, found.equal) == (1, 0, 0)
    (difference,) = found.differences
    assert (difference.row, difference.message, difference.kind, difference.at) == ("r", 1, "tokens", 0)
    assert (difference.sampled[0], difference.trained[:4]) == ("d", "done")
    assert "1 cut into other tokens" in str(found)
    assert exactness(tokenizer, [row]).equal == 1
    (sequence,) = tokenised(tokenizer, row["messages"], None, row["trained"], recorded_in(row))
    assert [label for label in sequence["labels"] if label != IGNORED] == [*sampled, *ids_of(tokenizer, "order<|im_end|>")]
    plain = tokenised(tokenizer, row["messages"], None, row["trained"])[0]
    assert tokenizer.decode(sequence["input_ids"]) == tokenizer.decode(plain["input_ids"])


def test_a_token_over_the_edge_of_the_prompt_is_not_made(tokenizer):
    """The prompt ends in a space that the answer would be merged with: sent and sampled apart, they are trained on apart."""
    plain = copy.copy(tokenizer)
    plain.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    sent, sampled, merged = (ids_of(plain, text) for text in ("user: go\nassistant: ", "done\n", "user: go\nassistant: done\n"))
    assert merged != [*sent, *sampled], "else this shows nothing"
    row = {"name": "r", "messages": [*MESSAGES[:1], {"role": "assistant", "content": "done"}], "tools": None, "trained": [False, True]}
    for taken in (False, True):
        found = exactness(plain, [{**row, "token_ids": json.dumps([None, sampled])}], as_recorded=taken)
        assert (found.equal, found.exact) == (1, True)
    over = merged[next(at for at, (one, other) in enumerate(zip(sent, merged, strict=False)) if one != other) :]
    found = exactness(plain, [{**row, "token_ids": json.dumps([None, over])}], as_recorded=False)
    assert (found.rewritten, found.differences[0].at) == (1, 0)


def test_another_wording_ends_its_sequence_and_later_calls_see_what_they_were_sent(tokenizer):
    """The model wrote its arguments without spaces; the template, and so every later prompt, has them with spaces."""
    call = {"id": "a", "type": "function", "function": {"name": "find", "arguments": {"order": 7}}}
    messages = [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "5"}]
    messages.append({"role": "assistant", "content": "done"})
    wrote = '<tool_call>{"name":"find","arguments":{"order":7}}</tool_call><|im_end|>'
    trained, recorded = [False, True, False, True], [None, ids_of(tokenizer, wrote), None, None]
    made = tokenised(tokenizer, messages, None, trained, recorded)
    assert spoken(tokenizer, made) == [[wrote], ["done<|im_end|>"]]
    assert '{"name": "find", "arguments": {"order": 7}}' in tokenizer.decode(made[1]["input_ids"])
    row = {"messages": messages, "tools": None, "trained": trained, "token_ids": json.dumps(recorded)}
    assert exactness(tokenizer, [row], as_recorded=False).rewritten == 1
    assert exactness(tokenizer, [row]).rewritten == 0


def test_an_answer_that_was_cut_off_is_not_taught_an_end(tokenizer):
    row = record("done", ids_of(tokenizer, "done"))
    (sequence,) = tokenised(tokenizer, row["messages"], None, row["trained"], recorded_in(row))
    assert spoken(tokenizer, [sequence]) == [["done", "order<|im_end|>"]]
    assert exactness(tokenizer, [row], as_recorded=False).differences[0].sampled == ""


@pytest.mark.parametrize("foreign", [[5, 17, 33, 60, 61], [100_000, 5]], ids=["other words", "no words"])
def test_ids_of_another_tokenizer_give_way_to_the_text_s_own(tokenizer, foreign):
    row = record("done", foreign)
    made = tokenised(tokenizer, row["messages"], None, row["trained"], recorded_in(row))
    assert made == tokenised(tokenizer, row["messages"], None, row["trained"])
    found = exactness(tokenizer, [row])
    assert (found.rewritten, found.equal, found.unrecorded) == (1, 0, 1)
    assert found.differences[0].trained.startswith("done")


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_dataset_of_another_tokenizer_is_trained_on_as_text_and_said_to_be(tokenizer, kit, model_dir, tmp_path, weight):
    rows = [replace(row, weight=weight) for row in logged_rows([kit.trace("t1"), kit.trace("t22")]).rows]
    strange = [RecordedRow(**vars(row), token_ids=tuple((5, 17, 33) if trained else None for trained in row.trained)) for row in rows]
    write_dataset(rows, tmp_path / "plain", split={"train": 1.0})
    write_dataset(strange, tmp_path / "strange", split={"train": 1.0})
    plain, other = (train_sft(model_dir, tmp_path / name, tmp_path / f"{name}-out", steps=1) for name in ("plain", "strange"))
    assert (plain.foreign, other.foreign) == (0, sum(sum(row.trained) for row in rows))
    assert (plain.trained_tokens, plain.loss) == (other.trained_tokens, other.loss)


def test_bytes_that_are_no_text_are_trained_on_as_sampled(tokenizer):
    broken = ids_of(tokenizer, "é")[:1]
    assert tokenizer.decode(broken) == "\ufffd"
    row = record("\ufffd", [*broken, tokenizer.eos_token_id])
    found = exactness(tokenizer, [row], as_recorded=False)
    assert (found.retokenised, found.differences[0].kind) == (1, "tokens")
    assert exactness(tokenizer, [row]).equal == 1


def test_a_prompt_that_the_template_opens_otherwise_is_counted_and_recorded_ids_mend_it():
    template = trl_templates()["deepseek_r1_distill"]
    tokenizer = tokenizer_for(template)
    row = {"messages": MESSAGES[:2], "tools": None, "trained": [False, True]}
    assert exactness(tokenizer, [row]).reopened == 1
    end = segments(tokenizer, MESSAGES[:2], None, [False, True])[0].text.partition("done")[2]
    wrote = ids_of(tokenizer, f"so\n</think>\n\ndone{end}")
    (sequence,) = tokenised(tokenizer, MESSAGES[:2], None, [False, True], [None, wrote])
    assert "<think>\nso\n</think>\n\ndone" in tokenizer.decode(sequence["input_ids"])
    assert exactness(tokenizer, [{**row, "token_ids": json.dumps([None, wrote])}]).exact


class Answering:
    """Answers every action with a number, three times."""

    async def step(self, state, action):
        last = len(state) == 2
        observations = () if last else tuple(Message.tool("7", call.id) for call in action.tool_calls) or (Message.user("go on"),)
        return Step(action, observations, terminated=last, reward=1.0 if last else None)


@pytest.fixture(scope="module")
def sampled_log(tmp_path_factory):
    """A recording by a local model whose answers are nearly random bytes, and the traces read out of it."""
    from counterplay.replay.transformers_policy import TransformersPolicy

    folder = tmp_path_factory.mktemp("sampled")
    policy = TransformersPolicy(make_folder(folder / "model"), max_new_tokens=24, seed=3)
    return folder, policy


async def test_from_sampling_to_labels(sampled_log):
    folder, policy = sampled_log
    with Recorder(folder / "log.jsonl", agent="tiny") as recorder:
        for attempt in range(4):
            begun = Trajectory((), (Message.user(f"Where is order A{attempt}?"),))
            played = await play(begun, policy, Answering())
            assert all(call.token_ids and len(call.token_ids) == call.usage.output_tokens for call in played.calls)
            recorder.write(played.trajectory, played.calls, task=str(attempt))
    traces = [item async for item in ingest_items(folder / "log.jsonl")]
    assert [call.token_ids is None for trace in traces for call in trace.calls] == [False] * 12
    rows = with_token_ids(logged_rows(traces).rows, recorded_ids(traces))
    write_dataset(rows, folder / "rows", tokenizer=policy.tokenizer, split={"train": 1.0})
    _, records = read_dataset(folder / "rows")
    assert len(records) == 4
    without, exact = (exactness(policy.tokenizer, records, as_recorded=flag) for flag in (False, True))
    assert without.retokenised + without.rewritten >= 6, "random bytes are seldom what their text is cut into"
    assert (exact.equal, exact.exact) == (12, True)
    for record in records:
        taught = tokenised(policy.tokenizer, record["messages"], record["tools"], record["trained"], recorded_in(record))
        labels = [[label for label in sequence["labels"] if label != IGNORED] for sequence in taught]
        trace = next(trace for trace in traces if trace.id in record["traces"])
        assert [label for taken in labels for label in taken] == [token for call in trace.calls for token in call.token_ids]


async def test_the_product_trains_on_what_was_sampled(sampled_log, tmp_path, monkeypatch):
    """From a recording through store and export into the trainer, row by row and call by call."""
    folder, policy = sampled_log
    with Recorder(folder / "whole.jsonl", agent="tiny") as recorder:
        played = await play(Trajectory((), (Message.user("Where is order B1?"),)), policy, Answering())
        recorder.write(played.trajectory, played.calls, task="b1")
    sampled = [token for call in played.calls for token in call.token_ids]
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([item async for item in ingest_items(folder / "whole.jsonl")])
        for rows in ("whole", "per-call"):
            exporting.export_sft(store, tmp_path / rows, rows=rows, source="logged", tokenizer=str(folder / "model"))
    given = []
    monkeypatch.setattr("counterplay.finetune.training.sft.train", lambda _recipe, _run, rows, **_: given.append(rows))
    for rows in ("whole", "per-call"):
        train_sft(folder / "model", tmp_path / rows, tmp_path / "out", steps=1)
    for rows in given:
        assert sorted(label for row in rows for label in row["labels"] if label != IGNORED) == sorted(sampled)


async def test_what_is_trained_on_begins_where_the_policy_was_asked(sampled_log):
    """The prompt ids before each label are those that the model was sent, to the token."""
    import numpy as np

    _, policy = sampled_log
    played = await play(Trajectory((), (Message.user("Where is order B2?"),)), policy, Answering())
    messages = [message.to_openai() for message in played.trajectory.messages]
    recorded = [None] * len(messages)
    for call in played.calls:
        recorded[len(played.trajectory.prefix(call.step).messages)] = call.token_ids
    trained = [ids is not None for ids in recorded]
    made = tokenised(policy.tokenizer, messages, None, trained, recorded)
    asked = [policy.renderer.prompt(played.trajectory.prefix(step)) for step in range(len(played.trajectory))]
    prompts = [np.frombuffer(prompt, np.int32).tolist() for prompt in asked]
    for prompt, call in zip(prompts, played.calls, strict=True):
        whole = [*prompt, *call.token_ids]
        assert any(_begins(sequence, whole, len(prompt), policy.tokenizer) for sequence in made)


def _begins(sequence, whole, prompt, tokenizer):
    """Whether the sequence holds the call: the prompt's text, then exactly the sampled ids under labels."""
    text = tokenizer.decode(whole[:prompt])
    for end in range(len(sequence["input_ids"])):
        if sequence["labels"][end : end + len(whole) - prompt] == whole[prompt:] and tokenizer.decode(sequence["input_ids"][:end]) == text:
            return True
    return False


class Once:
    """A policy that can be asked once."""

    asked = 0

    async def propose(self, state, n):
        self.asked += 1
        assert self.asked == 1
        again = Proposal(Message.assistant("a"), token_ids=(6, 5))
        return [Proposal(Message.assistant("a"), token_ids=(5, 6)), Proposal(Message.assistant("b")), again]


async def test_a_resumed_search_finds_the_sampled_ids_in_its_journal(tmp_path):
    policy, journal, state = Once(), MemoryJournal(), Trajectory((), (Message.user("go"),))
    first = await JournaledPolicy(policy, journal).propose(state, 3)
    with TokenLog(JournaledPolicy(policy, journal), tmp_path / "ids.jsonl") as log:
        assert log.fingerprint == JournaledPolicy(policy, journal).fingerprint
        again = await log.propose(state, 3)
    assert [proposal.token_ids for proposal in again] == [(5, 6), None, (6, 5)]
    assert list(first) == list(again)
    assert read_token_log(tmp_path / "ids.jsonl") == log.ids == {chain_key(state.key, Message.assistant("a").wire): (5, 6)}


async def test_a_token_log_goes_on_after_a_kill_and_refuses_other_files(tmp_path):
    path, state = tmp_path / "ids.jsonl", Trajectory((), (Message.user("go"),))
    path.write_text('{"key":"k","token_ids":[1]}\n{"key":"torn","tok')
    assert read_token_log(path) == {"k": (1,)}
    with TokenLog(Once(), path) as log:
        assert log.ids == {"k": (1,)}
        await log.propose(state, 3)
    assert [json.loads(line)["token_ids"] for line in path.read_text().splitlines()] == [[1], [5, 6]]
    path.write_text('{"key": 1}\n')
    with pytest.raises(UserError, match="not a token log"):
        TokenLog(Once(), path)


async def test_branches_of_a_search_are_trained_on_as_they_were_sampled(sampled_log, tmp_path):
    """A search over the local model: what its best branch sampled stands in the row, also for actions that no trace holds."""
    _, policy = sampled_log
    state = Trajectory((), (Message.user("Where is order C3?"),))
    with TokenLog(policy, tmp_path / "ids.jsonl") as log:
        tree = await best_of_n(state, log, Answering(), lambda trajectory: 1.0, Budget(Amounts(simulations=2)), n=2)
    rows = sft_rows([SourcedTree(tree, search="s", task="c3")], per_tree=2)
    assert len(rows.rows) == 2
    write_dataset(with_token_ids(rows.rows, read_token_log(tmp_path / "ids.jsonl")), tmp_path / "rows", split={"train": 1.0})
    _, records = read_dataset(tmp_path / "rows")
    found = exactness(policy.tokenizer, records)
    assert (found.equal, found.exact) == (6, True)


async def test_token_ids_survive_the_store_and_come_from_logs_of_servers(tmp_path):
    request = {"model": "m", "messages": [{"role": "user", "content": "go"}]}
    choice = {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop", "token_ids": [7, 8, 9]}
    answer = {"id": "c1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": {"completion_tokens": 3}}
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps({"request": request, "response": answer}) + "\n")
    traces = [item async for item in ingest_items(path)]
    assert [call.token_ids for trace in traces for call in trace.calls] == [(7, 8, 9)]
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest(traces)
        assert list(store.load()) == traces


def test_ids_belong_to_a_message_in_its_place(kit):
    trace = kit.trace()
    calls = tuple(replace(call, token_ids=(call.step, 9)) for call in trace.calls)
    found = recorded_ids([replace(trace, calls=(*calls, Call(99, token_ids=(1,)), Call(0, trajectory=7, token_ids=(1,))))])
    trajectory = trace.trajectory
    assert found == {chain_key(trajectory.prefix(i).key, step.action.wire): (i, 9) for i, step in enumerate(trajectory.steps)}
    (row,) = with_token_ids(logged_rows([trace]).rows, found)
    assert row.token_ids == (None, None, (0, 9), None, (1, 9), None, (2, 9))
    untrained = replace(logged_rows([trace]).rows[0], trained=(False,) * 7)
    assert with_token_ids([untrained], found) == [untrained], "nothing to train on: given back as it came"
    assert type(with_token_ids(logged_rows([trace]).rows, {})[0]) is SFTRow


def test_ids_do_not_tell_what_was_redacted():
    """Of an answer in which a secret was replaced, the ids would still spell it."""
    secret = "sk-proj-" + "a1B2c3D4" * 5
    steps = (Step(Message.assistant(f"use {secret}"), (Message.user("no"),)), Step(Message.assistant("fine"), terminated=True))
    calls = (Call(0, token_ids=(1,)), Call(1, token_ids=(2,)))
    trace = Trace("t", Trajectory((), (Message.user(secret),), steps), Source("test"), calls=calls)
    found = Redactor(b"s" * 32)(trace)
    assert secret not in repr(found)
    assert [call.token_ids for call in found.calls] == [None, (2,)]
    answer = {
        "choices": [{"message": {"content": f"use {secret}"}, "token_ids": [1], "logprobs": {"content": []}}],
        "prompt_token_ids": [3],
    }
    clean = Cleaner(("secrets",))
    assert clean._value(answer)["choices"][0].keys() == {"message"}
    assert clean._value(json.dumps(answer).encode()).count(b"token_ids") == 0
    harmless = {"choices": [{"message": {"content": "fine"}, "token_ids": [1]}]}
    assert clean._value(harmless) == harmless


@pytest.mark.parametrize(
    ("choice", "ids"),
    [
        ({"token_ids": [1, 2]}, (1, 2)),
        ({"meta_info": {"output_token_logprobs": [[-0.1, 7, "a"], [-0.2, 8, None]]}}, (7, 8)),
        ({"token_ids": None, "meta_info": {}}, None),
        ({"token_ids": []}, None),
        ({"token_ids": [1, True]}, None),
        ({"token_ids": [-1]}, None),
        ({"token_ids": "12"}, None),
        ({"meta_info": {"output_token_logprobs": [[-0.1], 3]}}, None),
        ({}, None),
    ],
)
def test_ids_in_the_answers_of_servers(choice, ids):
    assert choice_token_ids(choice) == ids


def test_a_server_s_ids_reach_the_proposal():
    from counterplay.replay.openai_answers import proposals_of, read_answer

    body = {"choices": [{"message": {"role": "assistant", "content": "a"}, "token_ids": [4, 5], "finish_reason": "stop"}], "model": "m"}
    answer = read_answer(json.dumps(body).encode(), "here", ["s"])
    (proposal,) = proposals_of(answer, [None], Usage())
    assert proposal.token_ids == (4, 5)
    assert "token_ids" not in proposal.action.fields
