"""What a journal's entries are written as, and under which keys: neither changes with how fast it is done."""

import json
import math

import pytest

from counterplay.core.canonical import content_key, content_keys
from counterplay.core.journal import JournaledPolicy, JournaledVerifier, MemoryJournal
from counterplay.core.nouns import Message, Proposal, Score, State, Usage
from counterplay.core.turns import takes_turns


@pytest.mark.parametrize("parts", [(), ("a",), ("ab", "c"), ("", "é", "\ud800")])
def test_a_key_begun_is_the_key(parts):
    assert content_keys("x", "y")(*parts) == content_key("x", "y", *parts)
    assert content_keys("x")("y", *parts) == content_keys("x", "y")(*parts)


def test_content_keys_stay_what_they_were():
    assert content_key("propose", "sampler", "ü") == "3f8d1f60ee2194f096f9d74d84e2a923"
    assert content_key("ab", "c") != content_key("a", "bc")


class One:
    fingerprint = "one"

    def __init__(self, proposal):
        self.proposal = proposal

    async def propose(self, _state, _n):
        return [self.proposal]


@pytest.mark.parametrize(
    "proposal",
    [
        Proposal(Message.assistant("hé")),
        Proposal(Message.assistant("x"), 0.25, -math.inf, Usage(1, 2, 3, 4, 0.5), "m", "stop"),
        Proposal(Message.assistant("x"), 1e-12, -1e300, Usage(2**70), "m\ud800"),
    ],
)
async def test_a_proposal_comes_back_as_it_was(proposal):
    journal, state = MemoryJournal(), State((), (Message.user("go"),))
    assert await JournaledPolicy(One(proposal), journal).propose(state, 1) == [proposal]
    assert await JournaledPolicy(One(None), journal).propose(state, 1) == [proposal]
    (text,) = journal.entries.values()
    assert list(json.loads(text)[0]) == ["action", "prior", "logprob", "usage", "model", "finish_reason"]


async def test_a_score_comes_back_as_it_was():
    journal, state = MemoryJournal(), State((), (Message.user("go"),))
    score = Score(0.5, "half", "v", "1")
    for answer in (score, None):
        asked = JournaledVerifier(lambda _state, answer=answer: answer, MemoryJournal() if answer is None else journal)
        assert await asked(state) == await asked(state) == answer


def test_a_journal_takes_the_turns_of_what_it_wraps():
    assert takes_turns(JournaledPolicy(One(None), MemoryJournal()))
    assert not takes_turns(One(None))
