"""Hypothesis strategies for the nouns: everything a log may hold, likely or not."""

from hypothesis import strategies as st

from counterplay.core.budget import Amounts
from counterplay.core.effects import Effect
from counterplay.core.nouns import (
    Call,
    Completeness,
    Grade,
    LoggedScore,
    Message,
    Outcome,
    Score,
    Source,
    Step,
    SubTrajectory,
    ToolSpec,
    Trace,
    Trajectory,
    Usage,
)
from counterplay.core.records import NodeRecord, SearchRecord

# High surrogates are left out: JSON can't tell a lone pair of them from the character that they encode.
characters = st.one_of(st.characters(codec="utf-8"), st.characters(min_codepoint=0xDC00, max_codepoint=0xDFFF))
texts = st.text(characters, max_size=12) | st.sampled_from(["", "json:", "a\0b", 'json:"x"', "\udc80", "é"])
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
numbers = st.integers(-(10**40), 10**40) | st.floats(allow_nan=False)
jsons = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, jsons, max_size=3)
rewards = st.none() | st.floats(allow_nan=False)
micros = st.none() | st.integers(0, 2**62)
units = st.floats(0, 1)

calls_in_message = st.lists(
    st.fixed_dictionaries({"id": texts, "function": st.fixed_dictionaries({"name": texts, "arguments": texts})}), max_size=2
)
messages = st.builds(
    lambda role, content, extra, calls: Message.from_openai(
        {**extra, "role": role, "content": content, **({"tool_calls": calls} if calls else {})}
    ),
    st.sampled_from(["system", "user", "assistant", "tool", "odd"]),
    st.none() | texts,
    objects,
    calls_in_message,
)
effects = st.builds(Effect, st.sampled_from(["pure", "read", "write", "external"]), texts)
tools = st.builds(ToolSpec, objects.map(lambda fields: Message.from_openai({**fields, "role": "x"}).wire), effects)
steps = st.builds(
    Step,
    action=messages,
    observations=st.lists(messages, max_size=2).map(tuple),
    sampled=st.booleans(),
    terminated=st.booleans(),
    truncated=st.booleans(),
    error=st.none() | texts,
    reward=rewards,
    grades=st.lists(st.sampled_from(Grade), max_size=2).map(tuple),
)
trajectories = st.builds(
    Trajectory,
    tools=st.lists(tools, max_size=2).map(tuple),
    prompt=st.lists(messages, max_size=2).map(tuple),
    steps=st.lists(steps, max_size=3).map(tuple),
)
usages = st.builds(Usage, *[st.integers(0, 10**9)] * 4, cost_usd=rewards)
coverage = st.sampled_from(["full", "stitched", "partial", "none"])
outcomes = st.builds(Outcome, rewards, st.none() | st.booleans(), st.sampled_from(["environment", "judge", "unknown"]), objects)
scores = st.builds(Score, units, texts, texts, texts)
completeness = st.builds(
    Completeness,
    inputs=coverage,
    tools=st.booleans(),
    system_prompt=st.booleans(),
    dropped_attributes=st.integers(0, 9),
    truncated=st.booleans(),
    redacted=st.booleans(),
    outputs=coverage,
    open_spans=st.integers(0, 9),
    notes=st.lists(texts, max_size=2).map(tuple),
)
logged_scores = st.builds(
    LoggedScore,
    name=texts,
    value=st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | texts,
    scaled=st.none() | units,
    source=st.sampled_from(["environment", "judge", "feedback", "unknown"]),
    trajectory=st.integers(0, 2),
    step=st.none() | st.integers(0, 9),
    comment=texts,
)
subs = st.builds(SubTrajectory, trajectories, texts, st.none() | st.integers(0, 9), st.none() | st.integers(0, 9))


@st.composite
def traces(draw, ids=names):
    main = draw(trajectories)
    spots = [(0, step) for step in range(len(main))]
    call = st.builds(
        lambda spot, **rest: Call(step=spot[1], trajectory=spot[0], **rest),
        st.sampled_from(spots or [(0, 0)]),
        model=st.none() | texts,
        params=objects,
        usage=usages,
        latency_s=rewards,
        started_at_us=micros,
        finish_reason=st.none() | texts,
        response_id=st.none() | texts,
        provider=st.none() | texts,
        streamed=st.none() | st.booleans(),
        first_token_s=rewards,
        completeness=completeness,
        token_ids=st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    )
    return Trace(
        id=draw(ids),
        trajectory=main,
        source=draw(st.builds(Source, texts, texts, st.none() | st.integers(1, 10**9), texts)),
        sub_trajectories=tuple(draw(st.lists(subs, max_size=2))),
        task=draw(st.none() | texts),
        session=draw(st.none() | texts),
        agent=draw(st.none() | texts),
        outcome=draw(outcomes),
        calls=tuple(draw(st.lists(call, max_size=3))) if spots else (),
        scores=tuple(draw(st.lists(logged_scores, max_size=3))),
        tags=tuple(draw(st.lists(texts, max_size=3))),
        metadata=draw(objects),
        completeness=draw(completeness),
        started_at_us=draw(micros),
        ended_at_us=draw(micros),
    )


@st.composite
def searches(draw, search_id="s"):
    root = draw(trajectories)
    nodes = [NodeRecord(0, None, None, visits=draw(st.integers(0, 9)))]
    nodes += [draw(node_records(index)) for index in range(1, draw(st.integers(1, 6)))]
    return SearchRecord(
        search_id,
        draw(texts),
        root,
        tuple(nodes),
        draw(st.none() | texts),
        draw(st.none() | texts),
        draw(st.integers(0, 9)),
        draw(objects),
        draw(texts),
        Amounts(draw(st.none() | st.integers(0, 9)), usd=draw(rewards)),
    )


def node_records(index):
    return st.builds(
        NodeRecord,
        st.just(index),
        st.integers(0, index - 1),
        steps,
        units,
        st.none() | st.floats(-50, 0),
        st.integers(0, 99),
        st.floats(0, 99),
        st.integers(1, 9),
        st.booleans(),
        st.none() | scores,
    )
