"""Gates: near-duplicates once, tasks alike in one split, nothing held out, no secrets, and a proof of it on what was written."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, ToolSpec
from counterplay.finetune.gates.account import REST, account, gate_of, told
from counterplay.finetune.gates.held_out import HeldOut, entry, read_held_out
from counterplay.finetune.gates.leaks import leaks
from counterplay.finetune.gates.minhash import Index, jaccard
from counterplay.finetune.gates.near import NearDuplicates, near_ties
from counterplay.finetune.gates.secrets import Secrets
from counterplay.finetune.gates.words import opening_of, plain, runs
from counterplay.finetune.grpo import GRPORow
from counterplay.finetune.kto import KTORow
from counterplay.finetune.rows import DPORow, Drop, Lineage, Row, SFTRow
from counterplay.finetune.splits import assign, distinct
from counterplay.finetune.write import read_dataset, write_dataset

SYSTEM = Message.system("You are the agent of a shop. " * 40)
LONG = [f"word{i}" for i in range(400)]


def said(*texts, task="t", system=SYSTEM, **fields):
    """An SFT row of user and assistant messages in turn."""
    messages = tuple(Message.user(text) if i % 2 == 0 else Message.assistant(text) for i, text in enumerate(texts))
    flags = (False, *(i % 2 == 1 for i in range(len(texts))))
    return SFTRow((system, *messages), flags, lineage=Lineage(task), **fields)


def pair(prompt, chosen, rejected, task="t", probability=0.9, **lineage):
    sides = ((Message.assistant(text),) for text in (chosen, rejected))
    return DPORow((SYSTEM, Message.user(prompt)), *sides, probability=probability, lineage=Lineage(task, **lineage))


def text(start, length=100, swapped=()):
    """A text of numbered words, some of them others."""
    return " ".join("other" if i - start in swapped else f"word{i}" for i in range(start, start + length))


# --- words -------------------------------------------------------------------------------------------------------------------------------


def test_runs_are_of_words_whatever_case_and_punctuation():
    assert (runs("Refund order 17, please!", 3) == runs("refund  ORDER 17 - please", 3)).all()
    assert len(runs("one two three four", 3)) == 2
    assert len(runs("one two", 3)) == 1, "a text with fewer words is one run"
    assert len(runs("!?", 3)) == 0
    assert len(runs("退款订单十七", 3)) == 4, "scripts without spaces count by character"
    assert not set(runs("a b c", 3)) & set(runs("c b a", 3)), "the order counts"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab cd", max_size=30), max_size=4), st.integers(1, 6))
def test_every_run_of_a_part_is_a_run_of_the_whole(texts, length):
    whole = " ".join(texts)
    for part in texts:
        if len(plain(part).split()) >= length and part.strip() == part and f" {part} " in f" {whole} ":
            assert set(runs(part, length)) <= set(runs(whole, length))


# --- MinHash -----------------------------------------------------------------------------------------------------------------------------


def test_what_is_alike_is_found_and_what_is_not_is_mostly_not_looked_at():
    rng = np.random.default_rng(0)
    threshold, missed, looked_at = 0.8, 0, 0
    index, sets = Index(threshold), []
    for number in range(300):
        base = rng.integers(0, 1 << 60, 200).astype(np.uint64)
        sets.append(np.unique(base))
        index.add(number, index.bands(sets[-1]))
    for number, each in enumerate(sets):
        twin = np.unique(np.concatenate([each[:180], rng.integers(0, 1 << 60, 15).astype(np.uint64)]))
        assert jaccard(each, twin) > threshold
        found = list(index.like(index.bands(twin)))
        missed += number not in found
        looked_at += len(set(found) - {number})
    assert missed <= 6
    assert looked_at <= 3, "unlike sets are not compared: the work grows with the rows, not with their square"
    assert list(index.like(index.bands(np.empty(0, np.uint64)))) == []


# --- near-duplicates ---------------------------------------------------------------------------------------------------------------------


def test_a_near_duplicate_is_dropped_and_named_with_what_it_repeats():
    first, other = said(text(0), text(200), task="a"), said(text(1000), text(1200), task="c")
    twin = said(text(0, swapped=[50]), text(200, swapped=[3]), task="b")
    kept, drops = NearDuplicates()([first, twin, other])
    assert kept == [first, other]
    assert drops == [Drop("a near-duplicate", twin.name, f"of {first.name}")]
    assert NearDuplicates()([first, twin, other]) == (kept, drops), "deterministic"
    assert NearDuplicates(0.99)([first, twin, other])[1] == []


def test_the_surest_is_kept_wherever_it_stands():
    rows = [
        pair(text(0), text(300), text(500), "a", 0.91),
        pair(text(0), text(300), text(500, swapped=[9]), "b", 0.99),
        pair(text(9000), text(300), text(500), "c", 0.8),
    ]
    kept, (drop,) = NearDuplicates()(rows)
    assert kept == rows[1:]
    assert (drop.name, drop.detail) == (rows[0].name, f"of {rows[1].name}")
    scored = [said(text(0), text(200), score=0.5), said(text(0), text(200, swapped=[0]), score=1.0)]
    assert NearDuplicates()(scored)[0] == scored[1:]


def test_rows_that_differ_in_what_they_teach_are_none():
    steps = [said(text(0), text(200)), said(text(0), text(2000))]
    assert NearDuplicates()(steps)[1] == [], "one prompt, two answers"
    successive = [pair(text(0), text(300), text(500)), pair(text(0, 104), text(600), text(700))]
    assert NearDuplicates()(successive)[1] == [], "prompts of successive steps share nearly everything"
    short = [said(text(0, 400), "yes, do it"), said(text(0, 400), "no, do not do it")]
    assert NearDuplicates()(short)[1] == [], "each group must be alike, however long the others are"
    turned = [pair(text(0), text(300), text(500)), pair(text(0), text(500), text(300))]
    assert NearDuplicates()(turned)[1] == []
    roles = replace(steps[0], trained=(False, False, False))
    assert NearDuplicates()([steps[0], roles])[1] == [], "what is read in one is learnt in the other"


class Labelled(Row):
    """A row with a label, as KTO's."""

    kind = "kto"
    conversations = (("prompt", "completion"),)
    tools = ()

    def __init__(self, completion, *, label):
        self.completion, self.label, self.lineage = completion, label, Lineage("t")

    @property
    def parts(self):
        return {"prompt": (Message.user(text(0)),), "completion": (Message.assistant(self.completion),)}

    @property
    def values(self):
        return {"label": self.label}


def test_a_good_and_a_bad_example_of_nearly_the_same_both_stay():
    good, bad = Labelled(text(100), label=True), Labelled(text(100, swapped=[70]), label=False)
    assert NearDuplicates()([good, bad])[1] == []
    assert len(NearDuplicates()([good, Labelled(text(100, swapped=[70]), label=True)])[1]) == 1


def test_the_system_prompt_that_all_rows_share_makes_none_alike():
    rows = [said(f"order {i}", f"done {i}", task=str(i)) for i in range(5)]
    assert NearDuplicates()(rows)[1] == []


def test_a_threshold_outside_of_its_range_is_refused():
    for threshold in (0, 1.5):
        with pytest.raises(ValueError, match="similarity"):
            NearDuplicates(threshold)


# --- splits ------------------------------------------------------------------------------------------------------------------------------


def test_tasks_that_ask_nearly_the_same_go_to_one_split():
    same = [said(text(100 * i, swapped=[j]), f"answer {i} {j}", task=f"{i}-{j}") for i in range(60) for j in (5, 90)]
    ties = near_ties(same)
    assert all(ties[i] == ties[i + 1] != () for i in range(0, 120, 2))
    assert len(set(ties)) == 60
    for seed in range(5):
        names = assign([row.lineage for row in same], {"train": 0.5, "test": 0.5}, seed, ties=ties)
        assert set(names) == {"train", "test"}
        assert names[::2] == names[1::2]
    apart = assign([row.lineage for row in same], {"train": 0.5, "test": 0.5}, 0)
    assert apart[::2] != apart[1::2], "without ties they are split"


def test_a_form_that_all_tasks_are_written_in_ties_none():
    form = text(0, 300)
    rows = [said(f"{form} {text(1000 + 50 * i, 30)}", "done", task=str(i)) for i in range(40)]
    assert len(set(near_ties(rows))) == 40
    assert len({tie for tie in near_ties(rows) if tie}) == 40
    assert near_ties([said("hello", "hi", task="a"), said("hello", "hi", task="b")]) == [(), ()], "a greeting is no task"


def test_users_share_no_split_where_asked():
    lineages = [Lineage(f"t{i}", (f"trace{i}",), users=(f"user-{i % 7}",)) for i in range(200)]
    shares = {"train": 0.5, "test": 0.5}
    by_user = assign(lineages, shares, 0, by=("user",))
    assert all(len({by_user[i] for i in range(u, 200, 7)}) == 1 for u in range(7))
    assert any(len({name for i, name in enumerate(assign(lineages, shares, 0)) if i % 7 == u}) == 2 for u in range(7))
    again = [*lineages, replace(lineages[0], traces=("other",), users=("user-9",))]
    assert assign(again, shares, 0, by=("user",))[-1] == assign(again, shares, 0, by=("user",))[0], "a task is never in two splits"


def test_traces_name_their_user_by_a_pseudonym(kit):
    from counterplay.finetune.trajectories import logged_rows

    traces = [
        kit.trace(f"t{i}", metadata=m) for i, m in enumerate([{"user_id": "ada@b.org"}, {"user": "ada@b.org"}, {"user": {"llm": "x"}}, {}])
    ]
    first, second, *others = [row.lineage.users for row in logged_rows(traces).rows]
    assert first == second
    assert first[0].startswith("user-")
    assert "ada" not in str(first)
    assert others == [(), ()]


def test_a_planted_leak_in_a_written_folder_is_named(tmp_path):
    rows = [said(text(300 * i), text(300 * i + 100), task=f"t{i}") for i in range(20)]
    write_dataset(rows, tmp_path / "d", split={"train": 0.5, "test": 0.5}, formats=("jsonl",), ties=near_ties)
    assert leaks(tmp_path / "d") == []
    train, test = (tmp_path / "d" / "jsonl" / f"{name}.jsonl" for name in ("train", "test"))
    (stolen, *_), rest = train.read_text().splitlines(), test.read_text()
    test.write_text(rest + stolen + "\n")
    found = leaks(tmp_path / "d")
    name = json.loads(stolen)["name"]
    assert {leak.kind for leak in found} == {"task", "text"}
    assert {leak.rows for leak in found} == {(name, name)}
    renamed = {**json.loads(stolen), "task": "another", "name": "renamed"}
    renamed["messages"][1]["content"] = text(300 * int(name[1 : name.index("/")]), swapped=[4])
    test.write_text(rest + json.dumps(renamed) + "\n")
    (leak,) = leaks(tmp_path / "d")
    assert (leak.kind, leak.splits, set(leak.rows)) == ("near-duplicate", ("test", "train"), {name, "renamed"})
    with pytest.raises(UserError, match="no dataset"):
        leaks(tmp_path)


def test_leaks_of_sessions_users_and_traces(tmp_path):
    lineages = [Lineage(f"t{i}", (f"trace{i}",), (f"s{i % 3}",), users=(f"user-{i % 2}",)) for i in range(30)]
    rows = [replace(said(f"order {i}", f"done {i}"), lineage=lineage) for i, lineage in enumerate(lineages)]
    write_dataset(rows, tmp_path / "d", split={"train": 0.5, "test": 0.5}, by=(), formats=("parquet",))
    found = leaks(tmp_path / "d")
    assert [(leak.kind, leak.splits) for leak in found] == [("session", ("test", "train"))] * 3, "each is told once"
    assert {leak.kind for leak in leaks(tmp_path / "d", by=("session", "user"))} == {"session", "user"}
    assert leaks(tmp_path / "d", by=()) == []


# --- held-out texts ----------------------------------------------------------------------------------------------------------------------


def test_rows_of_held_out_tasks_are_left_out_with_the_match():
    rows = [said(text(100 * i), text(100 * i + 50), task=f"t{i}") for i in range(6)]
    gate = HeldOut(
        [
            entry("f:1", {"task": "T1"}),
            entry("f:2", text(200)),
            entry("f:3", {"question": "unlike", "solution": f"so {text(330, 20)} it is"}),
            entry("f:4", text(470, 12)),
        ]
    )
    kept, drops = gate(rows)
    assert kept == [rows[0], rows[4], rows[5]]
    assert [(drop.reason, drop.name) for drop in drops] == [("held out", rows[i].name) for i in (1, 2, 3)]
    assert [drop.detail for drop in drops] == ["the task of f:1", "the task of f:2", "8 runs of 13 words with f:3"]


def test_thirteen_words_are_a_match_and_twelve_are_none():
    row = said("order", text(0))
    assert HeldOut([entry("f", f"x {text(10, 13)} y")])([row])[0] == []
    assert HeldOut([entry("f", f"x {text(10, 12)} y z z z z")])([row])[0] == [row]
    assert HeldOut([entry("f", {"answer": text(0, 12)})])([said("order", text(0, 12))])[1] == [], "a short answer is no match by itself"
    assert HeldOut([entry("f", text(0, 30).upper().replace(" ", ", "))])([row])[0] == []


def test_what_more_than_ten_tasks_say_is_a_form():
    policy = text(0, 40)
    many = [said(f"order {i}", f"{policy} {i}", task=f"t{i}") for i in range(11)]
    held = HeldOut([entry("f", policy)])
    assert held(many)[0] == many
    assert held(many[:10])[0] == []
    forms = [entry(f"f:{i}", {"task": f"e{i}", "prompt": f"{policy} item {i}"}) for i in range(11)]
    assert HeldOut(forms)(many[:3])[0] == many[:3]
    assert HeldOut([replace(each, asked=("one task",)) for each in forms])(many[:3])[0] == [], "rows of one task are one text"


def test_held_out_files_of_every_kind(tmp_path):
    row = said(text(0), text(500), task="t0")
    other = said(text(2000), text(2500), task="t1")

    def left(path):
        return HeldOut(read_held_out(path))([row, other])

    lines = tmp_path / "tasks.txt"
    lines.write_text("t7\n\nt0\n")
    kept, (drop,) = left(lines)
    assert (kept, drop.detail) == ([other], "the task of tasks.txt:3")
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps([{"role": "system", "content": SYSTEM.content}, {"role": "user", "content": text(0)}]) + "\n")
    assert left(chats)[0] == [other]
    chats.write_text(json.dumps({"messages": [{"role": "assistant", "content": text(510, 20)}]}) + '\n"t1"\n')
    assert [drop.detail for drop in left(chats)[1]] == ["8 runs of 13 words with chats.jsonl:1", "the task of chats.jsonl:2"]
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"instance_id": "t0"}, 5]))
    assert left(listed)[0] == [other]
    write_dataset([row], tmp_path / "d", split={"train": 1.0})
    kept, (drop,) = left(tmp_path / "d")
    assert kept == [other]
    assert drop.detail == f"the task of d/train/{row.name}"


def test_held_out_files_that_hold_nothing_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('"fine"\n{"task": \n')
    for path, words in (
        ("none", "no held-out file"),
        ("empty.txt", "nothing"),
        ("bad.jsonl", r"bad.jsonl:2, which is no JSON"),
        ("", "a file, or"),
    ):
        with pytest.raises(UserError, match=words):
            read_held_out(tmp_path / path)


def test_the_opening_is_what_the_user_said_before_the_first_answer():
    row = pair("refund me", "a", "b")
    assert opening_of(row) == "refund me"
    assert opening_of(said("one", "two", "three")) == "one"


# --- secrets -----------------------------------------------------------------------------------------------------------------------------


def scan(value):
    """Finds the word hunter2, wherever it stands."""
    whole = json.dumps(value)
    count = whole.count("hunter2")
    return json.loads(whole.replace("hunter2", "[password:redacted:abcdefghijklmnop]")), ({"password": count} if count else {})


def test_secrets_are_found_where_they_are_and_never_told():
    rows = [
        said("fine", "fine"),
        said("log in", "with hunter2"),
        replace(said("use it", "done"), tools=(ToolSpec.function("get", "with hunter2", {}),)),
        replace(said("it", "is"), lineage=Lineage("task hunter2", sessions=("s",))),
    ]
    kept, drops = Secrets(scan)(rows)
    assert kept == rows[:1]
    assert [drop.detail for drop in drops] == [
        "password in messages[2].content",
        "password in a tool definition.function.description",
        "password in task",
    ]
    assert drops[2].name.startswith("task [password]/")
    assert "hunter2" not in str(drops)


def test_secrets_in_arguments_keys_and_columns(kit):
    called = kit.call("find", order="hunter2")
    row = SFTRow((Message.user("x"), called), (False, True), lineage=Lineage("t"))
    (drop,) = Secrets(scan)([row])[1]
    assert drop.detail == "password in messages[1].tool_calls[0].function.arguments"
    keyed = SFTRow((Message.from_openai({"role": "user", "content": "x", "hunter2": 1}),), (False,), lineage=Lineage("t"))
    assert Secrets(scan)([keyed])[1][0].detail == "password in messages[0]"
    many = said(*["hunter2"] * 8)
    assert Secrets(scan)([many])[1][0].detail.endswith(" and 3 more")


def test_messages_that_rows_share_are_looked_at_once():
    looked = []

    def counting(value):
        looked.append(value)
        return value, {}

    rows = [said("one", "two", *["more"] * i) for i in range(5)]
    Secrets(counting)(rows)
    assert sum(isinstance(value, dict) and value.get("role") == "system" for value in looked) == 1


def test_names_of_what_was_left_out_before_are_cleaned(tmp_path):
    gates = [Secrets(scan)]
    drops = told([Drop("stale", "task hunter2/1", "of hunter2"), Drop("stale", "fine")], gates)
    assert drops == [Drop("stale", "task [password]/1", "of [password]"), Drop("stale", "fine")]
    twice = replace(said("a", "b"), lineage=Lineage("task hunter2"))
    report = write_dataset([said("c", "d"), twice, twice], tmp_path / "d", gates=gates)
    assert report.dropped == {"a duplicate": 1, "a secret": 1}
    for file in (tmp_path / "d").rglob("*"):
        assert not file.is_file() or b"hunter2" not in file.read_bytes(), file


# --- the account -------------------------------------------------------------------------------------------------------------------------


def test_every_gate_is_listed_whether_it_dropped_or_not():
    dropped = {"a near-duplicate": 2, "longer than 300 tokens": 1, "stale": 1, "graded below executed": 3, "an action was not sampled": 4}
    listed = {count.gate: count for count in account(dropped, [NearDuplicates(), HeldOut(())], max_length=300)}
    assert {name: count.dropped for name, count in listed.items() if count.dropped} == {
        "near-duplicates": 2,
        "length": 1,
        "grade": 4,
        REST: 4,
    }
    assert listed["contamination"].on
    assert not listed["secrets"].on
    assert sum(count.dropped for count in listed.values()) == sum(dropped.values())


@pytest.mark.parametrize(
    ("reason", "gate"),
    [
        ("the outcome is unknown", "outcome"),
        ("no branch scored 1 or more", "outcome"),
        ("every good branch is stale", "grade"),
        ("a duplicate", "duplicates"),
        ("text with a lone surrogate", "form"),
        ("the chat template refuses it: TypeError: x", "form"),
        ("over the cap of 2 pairs a state", "caps"),
        ("a sub-agent's context", REST),
    ],
)
def test_reasons_belong_to_gates(reason, gate):
    assert gate_of(reason) == gate


def test_the_card_and_the_manifest_list_the_gates(tmp_path):
    rows = [said(text(0), text(200), task="a"), said(text(0), text(200, swapped=[1]), task="b")]
    report = write_dataset(rows, tmp_path / "d", gates=[NearDuplicates()])
    assert {count.gate: count.dropped for count in report.gates}["near-duplicates"] == 1
    manifest = json.loads((tmp_path / "d" / "counterplay.json").read_text())
    assert {"reason": "a near-duplicate", "name": rows[1].name, "detail": f"of {rows[0].name}"} in manifest["drops"]
    assert "near-duplicates (no row in nearly the same words): 1 left out" in (tmp_path / "d" / "README.md").read_text()
    shutil.rmtree(tmp_path / "d" / "data")
    assert len(read_dataset(tmp_path / "d", "train")[1]) == 1


# --- what is alike and yet not the same --------------------------------------------------------------------------------------------------


def call(name, **arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return Message.from_openai(
        {"role": "assistant", "content": LONG_WINDED, "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    )


LONG_WINDED = "I will go on with the next of these in the order in which they were given to me, and say so beforehand every time."


def test_calls_that_differ_in_one_argument_are_both_to_be_learnt():
    rows = [
        SFTRow((Message.user("All pages, please."), call("get_page", page=page)), (False, True), lineage=Lineage("t")) for page in range(20)
    ]
    kept, _ = NearDuplicates()(rows)
    assert len(kept) == 20
    assert len(NearDuplicates()([*rows, replace(rows[0], score=0.0)])[0]) == 20, "the same call is there once"


def test_prompts_of_two_tasks_or_states_are_both_to_be_practised():
    def prompt(task, order):
        return GRPORow((SYSTEM, Message.user(f"{text(0, 60)} order {order}")), lineage=Lineage(task, nodes=(f"state-{order}",)))

    kept, _ = NearDuplicates()([prompt("a", 1), prompt("b", 2), prompt("b", 2)])
    assert [row.lineage.task for row in kept] == ["a", "b"]


@pytest.mark.parametrize("traces", [10, 11, 50])
def test_traces_without_a_task_are_no_tasks_of_their_own(traces):
    rows = [
        replace(said("Please solve this: " + text(0, 40), f"answer {i}"), lineage=Lineage(None, (f"trace-{i}",))) for i in range(traces)
    ]
    kept, drops = HeldOut([entry("eval", text(0, 40))])(rows)
    assert (len(kept), len(drops)) == (0, traces)


def test_short_requests_without_a_task_are_tied_by_their_words():
    rows = [replace(said("Fix the failing test in utils.py", f"done {i}"), lineage=Lineage(None, (f"trace-{i}",))) for i in range(2)]
    first, second = near_ties(rows)
    assert first == second
    assert first
    assert near_ties([replace(row, lineage=Lineage(f"t{i}")) for i, row in enumerate(rows)]) == [(), ()], (
        "named tasks are told apart by name"
    )


@pytest.mark.parametrize("field", ["agent", "algorithm"])
def test_secrets_in_where_a_row_comes_from(field):
    kept, drops = Secrets(scan)([replace(said("hi", "ho"), lineage=Lineage("t", **{field: "hunter2"}))])
    assert (kept, drops[0].detail) == ([], f"password in {field}")


def test_duplicates_are_rows_that_teach_the_same():
    one = said("hi  there", "Ho")
    thought = Message.from_openai({"role": "assistant", "content": "Ho", "reasoning_content": "hm"})
    others = [
        replace(one, messages=(*one.messages[:-1], thought)),
        replace(one, trained=(False, False, False)),
        replace(one, tools=(ToolSpec.function("look", "", {}),)),
    ]
    kept, drops = distinct([one, said("hi there", "ho"), *others])
    assert (kept, [drop.reason for drop in drops]) == ([one, *others], ["a duplicate"])


def test_what_is_labelled_both_ways_is_no_example():
    good = KTORow((Message.user("hi"),), (Message.assistant("ho"),), label=True, lineage=Lineage("t"))
    kept, drops = distinct([good, good, replace(good, label=False)])
    assert kept == []
    assert sorted(drop.reason for drop in drops) == ["a duplicate", *2 * ["the same is labelled the other way elsewhere"]]
