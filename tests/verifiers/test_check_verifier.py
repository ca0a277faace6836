"""The conformance check finds each kind of defect, names it and where it was seen, and lets sound verifiers pass."""

import itertools
import json
import threading
import time
from dataclasses import dataclass

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Score
from counterplay.testing import check_verifier
from counterplay.verifiers.check import check
from counterplay.verifiers.combine import all_of, mean
from counterplay.verifiers.functions import batched, verifier
from counterplay.verifiers.hostile import hostile
from counterplay.verifiers.outcome import outcome
from counterplay.verifiers.packs.policy import PolicyRules, Rule
from counterplay.verifiers.packs.tool_calls import ToolCallRules
from counterplay.verifiers.registry import BUILT_IN, load
from counterplay.verifiers.stepwise import stepwise
from counterplay.verifiers.transforms import robust, summed, unpadded
from counterplay.verifiers.windowed import windowed
from tests.verifiers.asked import line

LINES = [line("read", "write"), line("mail", terminated=True, reward=1.0)]


@verifier(version="1")
def sound(trajectory):
    return Score(1.0 if len(trajectory) < 2 else 0.5, "sound")


@batched(version="1")
async def many(trajectories):
    return [sound(t) for t in trajectories]


@verifier(version="1")
@dataclass(frozen=True)
class Most:
    steps: int = 3
    share: float = 0.5
    strict: bool = True
    label: str = "x"

    def __call__(self, trajectory):
        return 1.0 if len(trajectory) <= self.steps else 0.0


@pytest.mark.parametrize(
    "made",
    [
        lambda: sound,
        lambda: many,
        Most,
        lambda: all_of(sound, many),
        lambda: mean(sound, Most(5)),
        lambda: robust(many, sound),
        lambda: unpadded(ToolCallRules()),
    ],
)
def test_sound_verifiers_pass(made):
    report = check_verifier(made(), LINES)
    assert report.problems == ()
    assert report.asked > 30


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_built_in_passes(name):
    assert check_verifier(load(name), LINES).version


@pytest.mark.parametrize("made", [stepwise, windowed, summed])
def test_sound_verifiers_of_every_step_pass(made):
    assert check_verifier(made(many), LINES, huge=made is not windowed).problems == ()


def broken(function, version="1"):
    function.version = version
    return function


def forgetful():
    answers = itertools.count()
    return lambda _: next(answers) % 2


def ordered():
    """Remembers what it was asked before."""
    before = [0]

    def remembers(trajectory):
        before[0], old = len(trajectory), before[0]
        return 1.0 if old <= len(trajectory) else 0.0

    return remembers


def crowded():
    """Keeps its question on itself while it waits for something."""
    import asyncio

    held = {}

    async def shared(trajectory):
        held["length"] = len(trajectory)
        await asyncio.sleep(0)
        return 1.0 / (1 + held["length"])

    return shared


def threaded():
    held = threading.local()
    shared = {}

    def racing(trajectory):
        shared["length"] = len(trajectory)
        time.sleep(0.001)
        assert held is not None
        return 1.0 / (1 + shared["length"])

    return racing


def editing(trajectory):
    for message in trajectory.messages:
        content = message.content
        if isinstance(content, list):
            content.append({"type": "text", "text": "seen"})
    return 1.0


def editing_steps(trajectory):
    if trajectory.steps:
        object.__setattr__(trajectory.steps[-1], "reward", 0.25)
    return 1.0


class Shifted:
    name, version = "shifted", "1"

    def __call__(self, trajectory):
        return 1.0 / (1 + len(trajectory))

    def batch(self, trajectories):
        return sorted((self(t) for t in trajectories), reverse=True)


class Short(Shifted):
    def batch(self, trajectories):
        return [self(t) for t in trajectories][:-1]


class Failing(Shifted):
    def batch(self, trajectories):
        return [1.0 / (1 + len(trajectories[-1].steps[0].action.wire)) for _ in trajectories]


@dataclass(frozen=True)
class Silent:
    most: int = 3
    version = "1"

    def __call__(self, trajectory):
        return 1.0 if len(trajectory) <= self.most else 0.0


@pytest.mark.parametrize(
    ("verifier", "named"),
    [
        (lambda t: t.steps[0].reward or 0.0, "on 'trajectory 0, first 0 steps': verifier .* IndexError"),
        (lambda t: len(t) / 10, r"on '2,000 steps': verifier .* got score 200.0"),
        (lambda t: float("nan") if t.finished else 1.0, r"wanted a number in \[0, 1\]"),
        (lambda t: "good" if len(t) == 1 else 1.0, "TypeError: got str 'good'"),
        (lambda t: float(all(m.content_text.encode() for m in t.messages)), "lone surrogates.*UnicodeEncodeError"),
        (
            lambda t: float("17" in {(c.args or {}).get("order_id") for m in t.messages for c in m.tool_calls}),
            "in place of a text.*unhash",
        ),
        (lambda t: float(all(json.loads(c.arguments) for s in t.steps for c in s.action.tool_calls)), "JSONDecodeError"),
        (
            lambda t: float(all(t.tool(c.name).wire for m in t.messages for c in m.tool_calls)),
            "'NoneType' object has no attribute 'wire'",
        ),
        (forgetful(), "two answers on one trajectory"),
        (ordered(), "two answers on one trajectory"),
        (crowded(), "another answer when asked about many at once"),
        (threaded(), "another answer when asked in several threads"),
        (editing, "it changes its input: 'content in parts'"),
        (editing_steps, "it changes its input: 'trajectory 0, first 1 steps'"),
        (Shifted(), "another answer in a batch"),
        (Short(), r"its batch gave \d+ opinions on"),
        (Failing(), "its batch of .* fails as a whole"),
        (Silent(), "its setting 'most' does not show in its fingerprint"),
    ],
)
def test_every_defect_is_found_and_named(verifier, named):
    if not hasattr(verifier, "version"):
        verifier.version = "1"
    with pytest.raises(UserError, match=f"(?s)is not fit for use:.*{named}"):
        check_verifier(verifier, [line("read", "write", "mail")])


def test_a_verifier_without_a_version_is_not_fit():
    with pytest.raises(UserError, match="it has no version"):
        check_verifier(lambda _: 1.0, huge=False)


def test_all_problems_are_named_at_once():
    def bad(trajectory):
        editing(trajectory)
        return 1.0 / len(trajectory.steps)

    with pytest.raises(UserError) as raised:
        check_verifier(broken(bad, ""), LINES, huge=False)
    assert all(text in str(raised.value) for text in ("ZeroDivisionError", "changes its input", "no version"))


def test_answers_that_change_under_one_version_are_found(tmp_path):
    file = tmp_path / "recorded.json"

    def made(most, version):
        return broken(lambda t: 1.0 if len(t) <= most else 0.0, version)

    check_verifier(made(1, "1"), LINES, recorded=file, huge=False)
    first = file.read_text()
    check_verifier(made(1, "1"), LINES, recorded=file, huge=False)
    assert file.read_text() == first
    with pytest.raises(
        UserError, match=r"(?s)answers have changed and its version has not .*0\.0 then, 1\.0 now, on 'trajectory 0, first 2 steps'"
    ):
        check_verifier(made(2, "1"), LINES, recorded=file, huge=False)
    assert file.read_text() == first
    check_verifier(made(2, "2"), LINES, recorded=file, huge=False)
    assert len(json.loads(file.read_text())) == 2
    check_verifier(made(1, "1"), LINES, recorded=file, huge=False)


async def test_it_can_be_run_inside_an_asynchronous_test():
    assert check_verifier(many, huge=False).name == "many"


async def test_the_same_check_without_hostile_ones_is_what_the_command_runs():
    report = await check(sound, LINES)
    assert report.asked == sum(len({0, *range(len(t) + 1)}) for t in LINES)
    assert report.problems == ()
    fickle = await check(forgetful(), LINES)
    assert "must be deterministic or cached" in fickle.problems[0]


async def test_questions_are_put_there_and_back_then_all_together():
    asked, batches = [], []

    @batched(version="1")
    def noting(trajectories):
        (asked if len(trajectories) == 1 else batches).append([t.key for t in trajectories])
        return [1.0 for _ in trajectories]

    await check(noting, LINES, together=3)
    keys = [key for (key,) in asked]
    count = sum(len(t) + 1 for t in LINES)
    assert keys[count : 2 * count] == keys[:count][::-1]
    assert {len(batch) for batch in batches} == {3}
    assert any(batch == keys[:3][::-1] for batch in batches)
    check_verifier(noting, LINES, huge=False)
    assert max(map(len, batches)) == count + len(hostile(huge=False))


async def test_only_logged_ends_say_whether_good_is_told_from_bad():
    report = await check(lambda t: float(len(t) > 1), [LINES[0]], probes=hostile(huge=False))
    assert report.separation is None
    upside_down = check_verifier(broken(lambda t: float(not t.finished)), [line("read", terminated=True, reward=r) for r in (0.0, 1.0)])
    assert upside_down.separation == 0.0
    assert any("no lower than successes" in warning for warning in upside_down.warnings), "worth a look, and no reason to refuse it"


def test_the_hostile_ones_are_what_they_say():
    found = hostile()
    assert set(found) - set(hostile(huge=False)) == {"2,000 steps", "messages of 1 MB"}
    assert len(found["2,000 steps"]) == 2000
    assert all(len(m.content_text) == 1 << 20 for m in found["messages of 1 MB"].messages if m.content_text)
    assert found["nothing at all"].messages == ()
    assert found["arguments: deeply nested"].steps[0].action.tool_calls[0].args is None
    with pytest.raises(UnicodeEncodeError):
        found["text: lone surrogates"].messages[-1].content_text.encode()


def ends_good(trajectory):
    return 0.9 if trajectory.steps and trajectory.steps[-1].action.tool_calls[0].name == "mail" else 0.1


ENDLESS = [line("read", "mail"), line("read", "write")]


async def test_the_outcome_that_is_known_is_the_truth_with_or_without_an_end():
    told = await check(ends_good, ENDLESS, successes=[True, False])
    assert told.separation == pytest.approx(0.8)
    turned = await check(ends_good, ENDLESS, successes=[False, True])
    assert turned.separation == pytest.approx(-0.8)
    assert (await check(ends_good, ENDLESS, successes=[True, None])).separation is None
    assert (await check(ends_good, ENDLESS)).separation is None


async def test_runs_without_an_end_are_named_where_a_verifier_waits_for_one():
    silent = await check(outcome, ENDLESS, successes=[True, False])
    assert any("2 of 2 runs have no end in the log: verifiers of finished runs have no opinion" in w for w in silent.warnings)
    some = await check(outcome, [*ENDLESS, *LINES[1:]], successes=[True, False, True])
    assert any("2 of 3 runs have no end" in warning for warning in some.warnings)
    assert not any("no end" in warning for warning in (await check(ends_good, ENDLESS)).warnings)
    assert not any("no end" in warning for warning in (await check(outcome, LINES[1:])).warnings)


async def test_one_score_for_everything_is_named():
    constant = await check(broken(lambda _: 0.5), LINES)
    assert any("its score never varies: all" in warning and "are 0.5" in warning for warning in constant.warnings)
    assert not any("never varies" in warning for warning in (await check(sound, LINES)).warnings)


async def test_a_separation_of_rounding_alone_is_none():
    def rounding(trajectory):
        return 0.3 + (1e-16 if ends_good(trajectory) > 0.5 else 0.0) + (0.2 if not trajectory.steps else 0.0)

    def adding(trajectory):
        return 0.1 + 0.2 if ends_good(trajectory) > 0.5 else 0.3

    for near in (rounding, adding):
        report = await check(near, ENDLESS, successes=[True, False])
        assert report.separation == 0.0
        assert any("no lower than successes (separation +0.00)" in warning for warning in report.warnings)


async def test_what_a_part_has_to_say_is_heard():
    policy = PolicyRules(rules=(Rule(on=("refnud",), never=True, name="confirm"),), title="shop")
    report = await check(all_of(sound, policy), LINES)
    assert any("these rules never applied" in w and "confirm (refnud)" in w for w in report.warnings)


async def test_a_verifier_whose_parts_are_no_list_is_asked_too():
    class Parts(Shifted):
        def parts(self):
            return ()

    assert (await check(Parts(), LINES)).warnings == ()
