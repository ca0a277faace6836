"""A conformance check for connectors, for their authors' own tests: `await check_connector(my_connector, Path("sample.jsonl"))`."""

from __future__ import annotations

import inspect
from pathlib import Path
from tempfile import TemporaryDirectory

from counterplay.connectors.base import Connector, Item
from counterplay.connectors.lines import sample_of
from counterplay.core.canonical import loads
from counterplay.core.errors import SourceError
from counterplay.core.nouns import Message, Trace, Trajectory
from counterplay.core.records import Rejected

_HOSTILE = {
    "empty": b"",
    "binary": bytes(range(256)) * 8,
    "prose": b"once upon a time\n",
    "other": b'{"colour": "blue"}\n',
    "cut": b'{"a": [1, 2',
}


async def check_connector(connector: Connector, path: Path) -> list[Trace]:
    """Read `path` twice and again from elsewhere, feed the connector what is none of its business, and check what comes out.

    Returns the traces of `path`. Raises AssertionError that says what is wrong: with the protocol, with detection, with an id that
    is not stable or not unique, with a trace that does not hold together, or with a rejection that names no place or reason.
    """
    assert isinstance(connector, Connector), "a connector has name, detect and read"
    assert connector.name, "a connector has a name"
    assert inspect.isasyncgenfunction(connector.read), "read is an async generator"
    confidence = connector.detect(sample_of(path), path)
    assert 0 < confidence <= 1, f"detect says {confidence} about its own file, wanted a number in (0, 1]"
    items = await _read(connector, path)
    traces = [item for item in items if isinstance(item, Trace)]
    assert traces, f"no trace came out of {path}"
    for item in items:
        check_item(item)
    ids = [trace.id for trace in traces]
    assert len({*zip(ids, (trace.trajectory.key for trace in traces), strict=True)}) == len({*ids}), "different content under one id"
    assert await _read(connector, path) == items, "reading twice gives different items"
    await _check_elsewhere(connector, path, ids)
    return traces


def check_item(item: Item) -> None:
    """Raise AssertionError where a trace does not hold together or a rejection does not say where and why."""
    if isinstance(item, Rejected):
        assert item.uri, "a rejection names its file"
        assert item.reason, "a rejection gives a reason"
        assert item.line is None or item.line >= 1, "lines are counted from 1"
        return
    assert item.id, "a trace has an id"
    assert item.source.format, "a trace names its format"
    contexts = [item.trajectory, *(sub.trajectory for sub in item.sub_trajectories)]
    for trajectory in contexts:
        _check_trajectory(trajectory)
    for index, sub in enumerate(item.sub_trajectories, 1):
        assert sub.continues is None or 0 <= sub.continues < index, "continues names an earlier context"
        assert sub.parent_step is None or 0 <= sub.parent_step < len(item.trajectory), "parent_step is a step of the main trajectory"
    for call in item.calls:
        assert 0 <= call.trajectory < len(contexts), f"a call names trajectory {call.trajectory} of {len(contexts)}"
        assert 0 <= call.step < len(contexts[call.trajectory]), f"a call names step {call.step} of {len(contexts[call.trajectory])}"
    places = [(call.trajectory, call.step) for call in item.calls]
    assert len(set(places)) == len(places), "two calls for one step"


def _check_trajectory(trajectory: Trajectory) -> None:
    assert trajectory.key == Trajectory(trajectory.tools, trajectory.prompt, trajectory.steps).key
    for tool in trajectory.tools:
        assert isinstance(loads(tool.wire), dict), "a tool is a JSON object"
        assert tool.parameters is not None
    for message in trajectory.messages:
        _check_message(message)
    for index, step in enumerate(trajectory.steps):
        assert step.action.role == "assistant", f"the action of step {index} has the role {step.action.role}"
        assert all(message.role != "assistant" for message in step.observations), f"step {index} observes an assistant message"
        assert len(step.grades) == len(step.observations), (
            f"step {index} grades {len(step.grades)} of {len(step.observations)} observations"
        )
        assert index == len(trajectory) - 1 or not step.finished, f"step {index} ends the run, and others follow"


def _check_message(message: Message) -> None:
    message.wire.encode()
    assert isinstance(loads(message.wire), dict), "a message is a JSON object"
    assert message.role in ("system", "developer", "user", "assistant", "tool"), f"a message has the role {message.role}"
    assert isinstance(message.content_text, str)
    assert all(isinstance(call.name, str) for call in message.tool_calls)


async def _read(connector: Connector, path: Path) -> list[Item]:
    return [item async for item in connector.read(path)]


async def _check_elsewhere(connector: Connector, path: Path, ids: list[str]) -> None:
    with TemporaryDirectory() as folder:
        moved = _write(folder, "elsewhere", path)
        assert [item.id for item in await _read(connector, moved) if isinstance(item, Trace)] == ids, "ids depend on the file's place"
        for name, data in _HOSTILE.items():
            await _check_hostile(connector, _write(folder, name, data), data)


async def _check_hostile(connector: Connector, file: Path, data: bytes) -> None:
    assert connector.detect(data, file) == 0, f"detect takes {file.name} input for its own"
    try:
        items = await _read(connector, file)
    except SourceError:
        return
    assert all(isinstance(item, Rejected) for item in items), f"a trace came out of {file.name} input"
    assert items or not data.strip(), f"{file.name} input was lost in silence"


def _write(folder: str, name: str, content: bytes | Path) -> Path:
    file = Path(folder, name)
    file.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
    return file
