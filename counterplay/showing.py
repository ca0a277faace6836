"""A trace as a conversation in the terminal: what was asked, what the agent did, what came back, and what was said of it.

Text of logs is shown, never obeyed: control characters, with which a terminal can be told things, stand as escapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from counterplay.core.canonical import canonical, loads
from counterplay.core.nouns import Trace

if TYPE_CHECKING:
    from counterplay.core.store import Store

CUT = 1200


def shown(store: Store, trace: Trace, *, step: int | None = None, full: bool = False) -> list[Text]:
    """The lines of a trace: all of it, or one step of its main trajectory. Texts are cut at 1,200 characters unless `full`."""
    from counterplay.core.store.viewing import opinions_of
    from counterplay.viewing.conversation import trajectory_view

    contexts = [trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories)]
    opinions = opinions_of(store, [key for context in contexts for key in context.prefix_keys])
    views = [
        trajectory_view(context, index=number, calls=trace.calls, scores=trace.scores, opinions=opinions)
        for number, context in enumerate(contexts)
    ]
    cut = None if full else CUT
    if step is not None:
        return list(_step(views[0]["steps"][step], cut))
    started: dict[int | None, list[int]] = {}
    for number, sub in enumerate(trace.sub_trajectories, 1):
        started.setdefault(sub.parent_step, []).append(number)
    lines = [*_head(trace), *_messages(views[0]["prompt"], cut)]
    for number, view in enumerate(views[0]["steps"]):
        lines += _step(view, cut)
        lines += [line for sub in started.pop(number, ()) for line in _nested(trace, views[sub], sub, cut)]
    return lines + [line for subs in started.values() for sub in subs for line in _nested(trace, views[sub], sub, cut)]


def _head(trace: Trace) -> Iterator[Text]:
    outcome = {True: "succeeded", False: "failed", None: "outcome not known"}[trace.outcome.succeeded]
    about = {
        "task": trace.task,
        "agent": trace.agent,
        "source": trace.source.format,
        "outcome": outcome if trace.outcome.reward is None else f"{outcome}, reward {trace.outcome.reward:g}",
        "tags": ", ".join(trace.tags),
    }
    yield Text.assemble(("trace ", "bold"), (safe(trace.id), "bold"))
    yield from (Text.assemble((f"  {name} ", "dim"), safe(str(value))) for name, value in about.items() if value)
    scores = [score for score in trace.scores if score.step is None]
    yield from (Text.assemble(("  score ", "dim"), safe(f"{score.name} {score.value}  {score.comment}".rstrip())) for score in scores)
    yield Text("")


def _nested(trace: Trace, view: Mapping[str, Any], number: int, cut: int | None) -> Iterator[Text]:
    agent = trace.sub_trajectories[number - 1].agent or f"sub-agent {number}"
    yield Text.assemble(("    ┌ ", "dim"), (safe(agent), "bold magenta"))
    inner = [*_messages(view["prompt"], cut), *(line for step in view["steps"] for line in _step(step, cut))]
    yield from (Text.assemble(("    │ ", "dim"), line) for line in inner)


def _messages(views: Iterable[Mapping[str, Any]], cut: int | None) -> Iterator[Text]:
    for view in views:
        yield Text.assemble((f"{view['role']}  ", "bold cyan"), clipped(view["text"], cut))


def _step(view: Mapping[str, Any], cut: int | None) -> Iterator[Text]:
    yield Text("")
    yield Text.assemble((f"── step {view['index']} ", "bold"), ("  ".join(_facts(view)), "dim"))
    if view["failing"]:
        yield Text(f"   {safe(view['failing'])}", style="bold red")
    if view["reasoning"]:
        yield Text(clipped(view["reasoning"], cut), style="italic dim")
    if view["text"]:
        yield Text(clipped(view["text"], cut))
    for call in view["calls"]:
        yield Text.assemble(("→ ", "bold green"), (safe(call["name"]), "bold"), clipped(_arguments(call["arguments"]), cut))
        result = call["result"]
        if result is None:
            yield Text("← no result was logged", style="dim")
        else:
            style = "red" if result["is_error"] else ""
            grade = "" if result["grade"] == "exact" else f" [{result['grade']}]"
            yield Text.assemble(("← ", "bold green"), (clipped(pretty(result["text"]), cut), style), (grade, "yellow"))
    yield from _messages(view["followed"], cut)
    for score in view["scores"]:
        value = score["value"] if score["scaled"] is None else f"{score['scaled']:.2f}"
        yield Text(clipped(f"   {score['name']}: {value}  {score['comment']}".rstrip(), cut), style="yellow")


def _facts(view: Mapping[str, Any]) -> Iterator[str]:
    if view["grade"] != "exact":
        yield str(view["grade"])
    call = view["call"] or {}
    if call.get("model"):
        yield safe(call["model"])
    if call.get("input_tokens") or call.get("output_tokens"):
        yield f"{call['input_tokens']:,} in, {call['output_tokens']:,} out"
    if call.get("cost_usd") is not None:
        yield f"${call['cost_usd']:.4g}"
    if call.get("latency_s") is not None:
        yield f"{call['latency_s']:.2f} s"
    yield from (name for name in ("terminated", "truncated") if view[name])
    if view["reward"] is not None:
        yield f"reward {view['reward']:g}"
    if not view["sampled"]:
        yield "not sampled"


def _arguments(text: str) -> str:
    """`(account=1200, note="paid")` where the arguments are an object, else the text."""
    try:
        value = loads(text) if text else {}
    except (ValueError, RecursionError):
        return f"({text})"
    if not isinstance(value, dict):
        return f"({text})"
    return f"({', '.join(f'{name}={canonical(item)}' for name, item in value.items())})"


def pretty(text: str) -> str:
    """JSON with line breaks where it is an object or a list that one line does not hold; any other text as it is."""
    if text.lstrip()[:1] not in ("{", "[") or len(text) <= 100:
        return text
    try:
        return json.dumps(loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def clipped(text: str, cut: int | None) -> str:
    """Safe text of at most `cut` characters, with what is left out counted."""
    more = 0 if cut is None else len(text) - cut
    return safe(text) if more <= 0 else f"{safe(text[:cut])} … {more:,} more characters (--full)"


def safe(text: str) -> str:
    """The text with everything a terminal would obey as escapes; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
