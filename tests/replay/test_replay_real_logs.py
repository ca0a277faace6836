"""Real logs: a hundred airline conversations, re-enacted from their messages and checked against each other."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from counterplay.core.effects import Effect
from counterplay.core.nouns import Grade, Message, Trajectory, steps_of
from counterplay.replay.fidelity import FidelityReport, check
from counterplay.replay.recorded import RecordedEnvironment

LOGS = Path(__file__).parents[2] / "../shared/data/tau-bench-airline-gpt4o/gpt-4o-airline.even_tasks.json"
pytestmark = pytest.mark.skipif(not LOGS.exists(), reason="the real logs are not beside this repository")

EFFECTS = {
    "get_user_details": "read(user:{user_id})",
    "get_reservation_details": "read(reservation:{reservation_id})",
    "search_direct_flight": "read(flights)",
    "search_onestop_flight": "read(flights)",
    "list_all_airports": "pure",
    "calculate": "pure",
    "think": "pure",
}


def attempts() -> dict[int, list[Trajectory]]:
    tasks = defaultdict(list)
    for attempt in json.loads(LOGS.read_text(encoding="utf-8")):
        prompt, steps = steps_of([Message.from_openai(message) for message in attempt["traj"]])
        last = replace(steps[-1], terminated=True, reward=attempt["reward"])
        tasks[attempt["task_id"]].append(Trajectory((), prompt, (*steps[:-1], last)))
    return tasks


def effects() -> dict[str, Effect]:
    changes = ["book_reservation", "cancel_reservation", "send_certificate"]
    changes += [f"update_reservation_{what}" for what in ("baggages", "flights", "passengers")]
    return {name: Effect.parse(text) for name, text in EFFECTS.items()} | {name: Effect("write") for name in changes}


async def test_every_log_is_its_own_recording_to_the_byte():
    for log in (log for logs in attempts().values() for log in logs):
        environment, state = RecordedEnvironment([log]), log.prefix(0)
        for step in log.steps:
            state = state.extend(await environment.step(state, step.action))
        assert state == log
        assert state.grade == Grade.EXACT


async def test_what_one_attempt_says_about_another_is_true():
    """Held out: each attempt is answered by the other attempts at its task, where they have an answer that should still hold.

    Users are left out of the count: another draw of a model that plays one says the same in other words.
    """
    checks = []
    for logs in attempts().values():
        for i, log in enumerate(logs):
            others = RecordedEnvironment([*logs[:i], *logs[i + 1 :]], effects=effects())
            checks.append(await check(log, others))
    report = FidelityReport(checks)
    asked = [o for c in checks for o in c.observations if o.tool]
    answered = [o for o in asked if o.executed]
    assert len(answered) > 0.6 * len(asked)
    assert all(o.reproduced for o in answered), report.per_tool
