"""Records that hold whole runs: what counterplay's own recorder writes, and the data sets that models are fine-tuned on.

`messages` (with `tools`), `prompt` and `completion`, preference rows (`chosen` is the main trajectory, `rejected` another that begins
alike), and `conversations` in ShareGPT form. Where a data set says which answers are not to be learnt, those are not sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.base import trace_id
from counterplay.connectors.chat.halves import is_conversation
from counterplay.connectors.chat.opinions import opinion, scores_of
from counterplay.connectors.lines import Entry
from counterplay.connectors.messages import sharegpt
from counterplay.connectors.normalise import has_system, messages_of, tools_of
from counterplay.connectors.steps import StepList, prompt_length, tools_known
from counterplay.core.canonical import canonical
from counterplay.core.effects import Effect
from counterplay.core.nouns import Call, Completeness, LoggedScore, Message, Outcome, Source, SubTrajectory, Trace, Trajectory
from counterplay.core.token_ids import as_token_ids

_PAIRS = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
_NO = (False, 0, "false", "False")
_LISTS = ("messages", "conversations", "conversation")


def kind_of(row: Mapping[str, Any]) -> str:
    """`messages`, `completion`, `preference` or `sharegpt`; empty where a record holds no run."""
    if _pair(row) is not None:
        return "preference"
    found = next((facts.parsed_or(row[key]) for key in _LISTS if isinstance(row.get(key), list | str)), None)
    if is_conversation(found):
        return "messages"
    if sharegpt.is_sharegpt(found):
        return "sharegpt"
    return "completion" if is_conversation(row.get("prompt")) and isinstance(row.get("completion"), list) else ""


def trace_of(format: str, entry: Entry) -> Trace:  # noqa: A002
    """The run that a record is. Raises ValueError where it can't be read or holds no answer."""
    kind = kind_of(entry.value)
    row = {**facts.record(entry.value.get("input")), **entry.value} if kind == "preference" else entry.value
    raw, trained = _raw(row, kind)
    metadata = facts.record(row.get("metadata"))
    effects, notes = _effects(metadata)
    tools = tools_of(row.get("tools") or row.get("functions"), effects)
    messages = messages_of(raw)
    start = _start(row, kind, messages)
    unsampled = metadata.get("unsampled_steps")
    steps = StepList(messages[:start])
    for message, said in zip(messages[start:], trained[start:], strict=True):
        put_in = isinstance(unsampled, list) and len(steps) in unsampled
        steps.extend([message], sampled=said and not put_in)
    outcome = _outcome(row, metadata)
    cut = row.get("truncated") is True
    error = facts.word(metadata.get("error"))
    trajectory = steps.trajectory(tools, outcome, terminated=_ended(row, messages), truncated=cut, error=error)
    if not trajectory.steps:
        msg = "a run without an assistant message after its prompt"
        raise ValueError(msg)
    own_id = facts.first_word(("id", "item_id", "conversation_id"), (row,))
    task = facts.first_word(("task", "task_id"), (row, metadata))
    calls = _calls(row.get("calls"), trajectory)
    others = _rejected(row, trajectory) if kind == "preference" else ()
    return Trace(
        id=trace_id(
            format,
            trajectory,
            own_id,
            task,
            canonical([outcome.reward, outcome.success]) if outcome else None,
            *(other.trajectory.key for other in others),
        ),
        trajectory=trajectory,
        source=Source(format, str(entry.path), entry.line, "messages" if kind == "completion" else kind),
        sub_trajectories=others,
        task=task,
        session=facts.first_word(("session", "session_id", "conversation_id", "thread_id"), (row, metadata)),
        agent=facts.first_word(("agent", "agent_name"), (row, metadata)),
        outcome=outcome or Outcome(),
        calls=calls,
        scores=(*scores_of(row), *_opinions(row, kind)),
        tags=tuple(filter(None, map(facts.word, row["tags"]))) if isinstance(row.get("tags"), list) else (),
        metadata={**metadata, **({"id": own_id} if own_id else {})},
        completeness=Completeness(tools=tools_known(trajectory), system_prompt=has_system(trajectory.prompt), notes=notes),
        started_at_us=min((call.started_at_us for call in calls if call.started_at_us is not None), default=None),
    )


def _raw(row: Mapping[str, Any], kind: str) -> tuple[list[Any], list[bool]]:
    """The messages as dicts, and for each whether it is meant to be learnt where it is an answer."""
    if kind == "preference":
        chosen, _ = _pair(row) or ([], [])
        raw = _behind(row, chosen)
    elif kind == "completion":
        raw = [*row["prompt"], *row["completion"]]
    else:
        raw = next(facts.parsed_or(row[key]) for key in _LISTS if isinstance(row.get(key), list | str))
    if kind != "sharegpt":
        return raw, [_is_trained(facts.record(said)) for said in raw]
    messages = sharegpt.messages_of(raw, row.get("system"))
    return messages, [True] * (len(messages) - len(raw)) + [_is_trained(said) for said in raw]


def _is_trained(said: Mapping[str, Any]) -> bool:
    """Whether a data set means an answer to be learnt: `loss`, `weight` or `train` may say no."""
    return not any(said.get(key) in _NO and said.get(key) is not None for key in ("loss", "weight", "train"))


def _pair(row: Mapping[str, Any]) -> tuple[list[Any], list[Any]] | None:
    """The better and the worse continuation of a preference row; None where it is none."""
    for better, worse in _PAIRS:
        pair = tuple(_continuation(row.get(key)) for key in (better, worse))
        if pair[0] is not None and pair[1] is not None and (_prompt(row) or len(pair[0]) > 1):
            return pair[0], pair[1]
    return None


def _continuation(value: Any) -> list[Any] | None:
    value = [value] if isinstance(value, dict) else value
    return value if is_conversation(value) else None


def _prompt(row: Mapping[str, Any]) -> list[Any]:
    """The messages before both continuations; a text is what the user said."""
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt:
        return [{"role": "user", "content": prompt}]
    held = prompt or facts.record(row.get("input")).get("messages", row.get("messages"))
    return [*held] if isinstance(held, list) and is_conversation(held) else []


def _behind(row: Mapping[str, Any], said: Sequence[Any]) -> list[Any]:
    """A continuation behind its prompt, unless it repeats that itself."""
    prompt = _prompt(row)
    asked = prompt[-1].get("content") if prompt else None
    repeats = said[0].get("role") != "assistant" and any(one.get("content") == asked for one in said[:-1])
    return list(said) if repeats else [*prompt, *said]


def _rejected(row: Mapping[str, Any], chosen: Trajectory) -> tuple[SubTrajectory, ...]:
    _, worse = _pair(row) or ([], [])
    messages = messages_of(_behind(row, worse))
    start = min(_shared(messages, chosen.messages), prompt_length(messages)) if len(chosen) else 0
    steps = StepList(messages[:start])
    steps.extend(messages[start:], sampled=True)
    return (SubTrajectory(steps.trajectory(chosen.tools, terminated=_ended({}, messages)), "rejected"),)


def _shared(one: Sequence[Message], other: Sequence[Message]) -> int:
    """How many messages two lists begin with in common."""
    return next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other)))


def _opinions(row: Mapping[str, Any], kind: str) -> Iterator[LoggedScore]:
    """What a data set says about its rows. `preferred` is the choice itself, `desirable` the label of an unpaired one."""
    if isinstance(row.get("label"), bool) and kind == "completion":
        yield LoggedScore.of("desirable", row["label"])
    if kind != "preference":
        found = opinion("score", row.get("score"), "unknown")
        yield from [found] if found else []
        return
    for index, side in enumerate(("chosen", "rejected")):
        yield LoggedScore.of("preferred", index == 0, trajectory=index)
        said = next((row[key] for key in (f"score_{side}", f"{side}_score", f"{side}_rating") if row.get(key) is not None), None)
        found = opinion("score", said, "unknown")
        yield from [replace(found, trajectory=index)] if found else []


def _outcome(row: Mapping[str, Any], metadata: Mapping[str, Any]) -> Outcome | None:
    """What the record says of its outcome; a bare `reward` or `success` beside a conversation is the environment's."""
    said = facts.outcome_of(facts.record(row.get("outcome"))) or facts.outcome_of({**metadata, "source": "unknown"})
    beside = {"reward": row.get("reward"), "success": row.get("success"), "source": "environment"}
    return said or facts.outcome_of(beside)


def _start(row: Mapping[str, Any], kind: str, messages: Sequence[Message]) -> int:
    """How many messages are the prompt: what the record says, else all before the first action."""
    said = row.get("prompt_messages")
    if isinstance(said, int) and not isinstance(said, bool) and 0 <= said <= len(messages):
        return said
    return len(row["prompt"]) if kind == "completion" else prompt_length(messages)


def _ended(row: Mapping[str, Any], messages: Sequence[Message]) -> bool:
    """What the record says; a run that says nothing has ended where its last message is an answer that calls no tool."""
    if isinstance(row.get("terminated"), bool):
        return bool(row["terminated"])
    return row.get("truncated") is not True and bool(messages) and messages[-1].role == "assistant" and not messages[-1].tool_calls


def _effects(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Declared effects by tool, and a note for each that can't be read: such a tool stays external, the safe reading."""
    effects, notes = {}, []
    for tool, text in facts.record(metadata.get("effects")).items():
        try:
            Effect.parse(str(text))
            effects[tool] = text
        except ValueError as error:
            notes.append(f"tool {tool}: {error}")
    return effects, tuple(notes)


def _calls(values: Any, trajectory: Trajectory) -> tuple[Call, ...]:
    """What the record says about its calls: one a step, or one for each step that a model wrote. Calls beyond them are not kept."""
    rows = [facts.record(value) for value in values] if isinstance(values, list) else []
    sampled = [index for index, step in enumerate(trajectory.steps) if step.sampled]
    steps: Sequence[int] = range(len(trajectory)) if len(rows) == len(trajectory) else sampled
    return tuple(
        Call(
            step=step,
            model=facts.word(row.get("model")),
            params=facts.record(row.get("params")),
            usage=facts.usage_of(row.get("usage"), facts.record(row.get("usage")).get("cost_usd", row.get("cost_usd"))),
            latency_s=facts.number(row.get("latency_s")),
            started_at_us=facts.count(row.get("started_at_us")) or None,
            finish_reason=facts.word(row.get("finish_reason")),
            response_id=facts.word(row.get("response_id")),
            token_ids=as_token_ids(row.get("token_ids")),
        )
        for step, row in zip(steps, rows, strict=False)
        if trajectory.steps[step].sampled
    )
