"""The example's world, under the conformance check, in a live environment and in a recorded one."""

from __future__ import annotations

import json

from counterplay.examples.ledger.world import Ledger
from counterplay.replay.fidelity import check
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.recorded import RecordedEnvironment
from counterplay.replay.testing import check_world
from tests.replay.shelf import act, results, walk

TASK = "train-0001"


def ledger() -> Ledger:
    return Ledger(TASK)


def calls() -> list[tuple[str, dict]]:
    documents = json.loads(ledger().call("list_documents", {}))
    looks = [("get_document", {"document_id": document}) for document in documents[:3]]
    return [
        ("list_documents", {}),
        *looks,
        ("trial_balance", {}),
        ("get_document", {"document_id": "none"}),
        ("close_period", {}),
        ("trial_balance", {}),
    ]


async def test_the_ledger_is_a_sound_world():
    assert check_world(ledger, calls()).checked == ("deterministic", "restore", "copy", "no leak")
    environment = LiveEnvironment(ledger, task=TASK)
    log = await walk(environment, await environment.initial(), *(act(call) for call in calls()[:-1]))
    assert log.steps[-1].terminated
    assert log.steps[-1].reward is not None
    fidelity = await check(log, ledger)
    assert (fidelity.share, fidelity.outcome_reproduced) == (1.0, True)
    fork = log.prefix(2)
    live = await walk(environment, fork, act("trial_balance"), act(calls()[2]))
    recorded = await walk(RecordedEnvironment([log]), fork, act("trial_balance"), act(calls()[2]))
    assert results(live) == results(recorded)
    assert [grade.name for step in recorded.steps[2:] for grade in step.grades] == ["REUSED", "REUSED"]
