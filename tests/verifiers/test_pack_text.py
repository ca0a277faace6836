"""The text pack: what is said and was never shown, wrong citations, likeness; and the 100 real airline runs."""

import pytest

from counterplay.core.nouns import Message, Trajectory
from counterplay.verifiers.packs.base import ByPrefix
from counterplay.verifiers.packs.text import Citations, Grounded, Similarity, similarity
from counterplay.verifiers.packs.text_claims import plain_number
from tests.verifiers.pack_shapes import airline_runs, auroc, call, ended, say, trajectory, values

SHOWN = call("look", {}, {"order": "HAT-136", "price": 1234.5, "day": "2024-05-24", "who": {"first": "Anya", "last": "Brown"}, "bags": 50})


def unfounded(text, *before, **options):
    return [finding.reason for finding in Grounded(**options).findings(trajectory(*before, say(text)))]


@pytest.mark.parametrize(
    "text",
    [
        "Order HAT-136 costs $1,234.50 on May 24, 2024.",
        "hat-136 at 1234.5, for Anya Brown",
        "It is 1,234.50 EUR and 50 more: 1,284.5 in all.",
        "3 bags at 50 each make 150.",
        "1. First this\n2. then that\n17. and so on",
        "Within 24-hour notice, by 5pm, the 23rd or a 14kg bag",
        "You told me of Order 66 and Jane Doe.",
        "Thank you. Please wait.",
        "",
    ],
)
def test_what_was_shown_may_be_said_in_any_writing(text):
    assert unfounded(text, SHOWN, say("Who is it?", "Jane Doe, about order 66.")) == []


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("It costs $1,235.", "number '1,235'"),
        ("It costs 12345.", "number '12345'"),
        ("Your flight is HAT137.", "identifier 'HAT137'"),
        ("Your order is #W17.", "identifier 'W17'"),
        ("Write to help@example.com, please.", "identifier 'help@example.com'"),
        ("See https://example.com/a?b=1.", "identifier 'https://example.com/a?b=1'"),
        ("It is booked for Anya Smith.", "name 'Anya Smith'"),
        ('The rules say "no refund is ever given".', "quote 'no refund is ever given'"),
        ("It leaves on June 25, 2024.", "number '25'"),
    ],
)
def test_what_was_shown_nowhere_is_named(text, claim):
    assert unfounded(text, SHOWN) == [f"{claim} was shown nowhere before"]


def test_a_sum_needs_its_parts_to_be_shown():
    assert unfounded("100 and 107 make 207.", call("look", {}, "100 107")) == []
    assert len(unfounded("100 and 107 make 207.", call("look", {}, "100"))) == 2, "107 is not shown, so 207 does not follow"
    assert len(unfounded("100 and 107 make 207.")) == 3, "numbers do not vouch for one another"


def test_what_comes_later_or_from_the_agent_itself_shows_nothing():
    late = trajectory(say("It costs 77."), say("Yes, 77."), call("look", {}, "77"), say("It costs 77."))
    assert [finding.step for finding in Grounded().findings(late)] == [0], "and it counts once"
    assert values(Grounded(), late) == [0.8, 0.8, 0.8, 0.8]
    said = Trajectory((), (Message.user("hi"), Message.assistant("77")), late.steps[:1])
    assert len(Grounded().findings(said)) == 1


def test_kinds_can_be_left_out_and_arguments_looked_at():
    text = 'HAT137 for Anya Smith at 99: "no refund is ever given"'
    assert len(unfounded(text, SHOWN)) == 4
    assert unfounded(text, SHOWN, numbers=False, identifiers=False, names=False, quotes=False) == []
    made_up = trajectory(SHOWN, call("pay", {"card": "card_99", "amount": 1234.5}))
    assert Grounded()(made_up).value == 1.0
    assert Grounded(arguments=True)(made_up).reason == "step 1: identifier 'card_99' was shown nowhere before"


@pytest.mark.parametrize(
    ("written", "plain"), [("1,234.50", "1234.5"), ("007", "7"), ("-3.0", "3"), ("\u22125", "5"), ("100", "100"), ("0.0", "0")]
)
def test_numbers_in_one_form(written, plain):
    assert plain_number(written) == plain


SOURCES = call(
    "search", {}, [{"id": "s1", "text": "Returns are free for 30 days."}, {"id": 2, "text": "Shipping takes five days to Spain."}]
)


def test_citations_must_be_of_what_was_shown_and_say_so():
    def wrong(text, *before, **options):
        return [finding.kind for finding in Citations(**options).findings(ended(trajectory(*before, say(text))))]

    assert wrong("Returns are free for 30 days [s1]. Shipping to Spain takes five days [2].", SOURCES) == []
    assert wrong("Returns are free for 30 days. [s1]", SOURCES) == []
    assert wrong("Returns are free [s3].", SOURCES) == ["unknown"]
    assert wrong("Returns are free for 30 days [s1].") == ["unknown"], "not shown yet"
    assert wrong("Refunds cost ten dollars in Portugal [s1].", SOURCES) == ["unsupported"]
    assert wrong("Free returns, five days of shipping to Spain [s1] [2].", SOURCES) == [], "together they say it"
    assert wrong("Returns are free for 30 days.", SOURCES) == ["missing"]
    assert wrong("Returns are free for 30 days.", SOURCES, required=False) == []
    assert wrong("Returns are free for 30 days (s1).", SOURCES, pattern=r"\((s\d)\)") == []
    failed = call("search", {}, '{"error": "down", "id": "s1", "text": "free"}')
    assert wrong("It is free [s1].", failed) == ["unknown"], "an error is no source"


def test_on_a_prefix_a_citation_may_still_come():
    assert values(Citations(), trajectory(SOURCES, say("Let me see."))) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("reference", "text", "measure", "value"),
    [
        ("the cat sat", "The cat, sat!", "exact", 1.0),
        ("the cat sat", "sat the cat", "f1", 1.0),
        ("the cat sat", "sat the cat", "rouge_l", 2 / 3),
        ("a b c d", "a c", "rouge_l", 2 / 3),
        ("a b c d", "a c x x", "f1", 0.5),
        ("a a a", "a", "f1", 0.5),
        ("a", "", "f1", 0.0),
        ("", "", "f1", 1.0),
    ],
)
def test_likeness_by_hand(reference, text, measure, value):
    assert similarity(reference, text, measure) == pytest.approx(value)


def test_similarity_is_asked_of_ends_with_a_reference():
    state = ended(trajectory(say("thinking"), say("it is Paris"), call("bye")))
    assert Similarity("it is paris")(state).value == 1.0
    assert Similarity("it is paris")(state.prefix(2)) is None
    by_task = Similarity(ByPrefix.of([(trajectory(prompt="else"), "x")]))
    assert by_task(state) is None
    assert Similarity("x")(ended(trajectory(call("bye")))).value == 0.0


@pytest.mark.parametrize("text", ["a-" * 40_000, '"a' * 40_000, "Aa " * 40_000, "x@a-" * 40_000, "1" * 80_000 + "a", "1.[" * 40_000])
def test_odd_text_is_read_in_one_go(text):
    """Patterns that try every start of a long word would take minutes here."""
    state = trajectory(say(text))
    assert 0 <= Grounded()(state).value <= 1
    assert 0 <= Citations()(state).value <= 1


def test_on_real_runs_failures_say_more_that_was_shown_nowhere():
    """Measured: AUROC 0.61; 36 such claims in 51 failures, 8 in 49 successes."""
    pack = Grounded()
    scored = [(pack(state), len(pack.findings(state)), success) for state, success in airline_runs()]
    assert 0.58 < auroc([(score.value, success) for score, _, success in scored]) < 0.65
    assert sum(n for _, n, success in scored if not success) > 2 * sum(n for _, n, success in scored if success)
