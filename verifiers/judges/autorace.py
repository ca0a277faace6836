"""AutoRace: a model reads failed attempts and writes the criteria that later attempts are judged by.

Hao et al. 2024, "LLM Reasoners: New Evaluation, Library, and Analysis of Step-by-Step Reasoning with Large Language Models".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from counterplay.core.canonical import content_key
from counterplay.core.errors import UserError
from counterplay.core.nouns import Trace, Trajectory
from counterplay.verifiers.judges import prompts, reading
from counterplay.verifiers.judges.asking import ask_model, seed_of
from counterplay.verifiers.judges.criteria import Criteria, Criterion
from counterplay.verifiers.judges.judge import conversation, gathered
from counterplay.verifiers.judges.material import Renderer, quoted
from counterplay.verifiers.judges.model import Complete, Model, as_model
from counterplay.verifiers.judges.reading import Form, UnreadableError, schema_of

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


async def derive_criteria(
    traces: Iterable[Trace | Trajectory],
    model: str | Model | Complete,
    *,
    limit: int = 8,
    most: int = 6,
    max_chars: int = 60_000,
    seed: int = 0,
) -> Criteria:
    """Criteria, at most `most`, out of what went wrong in `limit` of the failed `traces`.

    Which are failures is the caller's to say; `limit` of them are drawn by seed and content, whatever their order. Each is asked about on
    its own, and the mistakes found are distilled by one more question. With a model that answers the same to the same, the result is the
    same; `to_toml` keeps it, with what it was derived from. Raises UserError without traces, VerifierError where an answer can't be read.
    """
    trajectories = {t.key: t for t in (each.trajectory if isinstance(each, Trace) else each for each in traces)}
    if not trajectories or limit < 1 or most < 1:
        raise UserError(f"got {len(trajectories)} failed traces, {limit=}, {most=}", "at least 1 of each")
    asked = as_model(model)
    chosen = sorted(trajectories, key=lambda key: content_key("autorace", str(seed), key))[:limit]
    renderer = Renderer(max_chars, seed=seed)
    found = await gathered([_mistakes(asked, trajectories[key], renderer, seed) for key in chosen])
    mistakes = [mistake for each in found for mistake in each]
    form = _criteria_form(most, f"AutoRace by {asked.name} from {len(chosen)} failed traces ({content_key(*chosen)[:12]}), seed {seed}")
    tag = content_key("autorace", str(seed), *chosen)[:12]
    summary = prompts.SUMMARY.format(mistakes=quoted(tag, "mistakes", "\n".join(f"- {mistake}" for mistake in mistakes)), most=most)
    return await ask_model(asked, conversation(tag, "", [summary, prompts.form(form.schema)]), form, seed=seed_of(seed, tag))


async def _mistakes(model: Model, trajectory: Trajectory, renderer: Renderer, seed: int) -> Sequence[str]:
    form = Form(schema_of({"mistakes": {"type": "array", "items": {"type": "string"}}}), _read_mistakes)
    asked = [prompts.MISTAKES, prompts.form(form.schema)]
    messages = conversation(renderer.tag(trajectory), renderer.whole(trajectory).text, asked)
    return await ask_model(model, messages, form, seed=seed_of(seed, trajectory.key))


def _read_mistakes(found: Mapping[str, Any]) -> Sequence[str]:
    mistakes = found.get("mistakes")
    if not isinstance(mistakes, list) or not mistakes or not all(isinstance(each, str) and each.strip() for each in mistakes):
        raise UnreadableError("'mistakes' is not a list of at least one sentence")
    return [" ".join(each.split()) for each in mistakes]


def _criteria_form(most: int, source: str) -> Form[Criteria]:
    row = schema_of({"name": {"type": "string"}, "text": {"type": "string"}})

    def read(found: Mapping[str, Any]) -> Criteria:
        rows = reading.items(found, "criteria")
        names = [reading.text(each, "name") for each in rows]
        if not 1 <= len(rows) <= most or len(set(names)) < len(names) or not all(_NAME.fullmatch(name) for name in names):
            raise UnreadableError(f"the criteria are {', '.join(names) or 'none'}, not 1 to {most} under different names of a-z, 0-9 and _")
        return Criteria(tuple(Criterion(name, reading.text(each, "text")) for name, each in zip(names, rows, strict=True)), source)

    return Form(schema_of({"criteria": {"type": "array", "items": row}}), read)
