"""Rounds of search, labels and training, each examined on held-out tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.options import (
    AllowExternal,
    AsJson,
    MaxLength,
    MaxSteps,
    MaxTokens,
    Seed,
    Temperature,
    VerifierSpecs,
    app,
    bounded,
)


@app.command()
@bounded
def improve(
    model: Annotated[Path, typer.Option("--model", help="The agent: a local model folder.")],
    environment: Annotated[str, typer.Option("--environment", help="module:attr, a factory of worlds by task.")],
    held_out: Annotated[str, typer.Option("--held-out", help="Tasks to examine on, never trained on; as --tasks.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the rounds. One that was begun is gone on with.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Tasks to train on: a file with one a line, or module:attr[:SPLIT:N].")] = "",
    tasks_per_round: Annotated[
        int | None, typer.Option("--tasks-per-round", min=1, help="So many of them in each round, in order; all, where not given.")
    ] = None,
    logs: Annotated[list[Path] | None, typer.Option("--logs", help="Logs that round 1 searches, in place of playing; repeatable.")] = None,
    verifier: VerifierSpecs = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="So many rounds; without it, until one brings no gain.")] = None,
    until_no_gain: Annotated[
        bool | None,
        typer.Option(
            "--until-no-gain/--no-until-no-gain",
            help="Stop after a round that is not better by its verdict; the default without --rounds, and with it an earlier end.",
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option("--search", help="How failed runs are searched; without it repair, or mcts where the verifier knows ends alone."),
    ] = None,
    option: Annotated[list[str] | None, typer.Option("--option", help="An option of the search, key=value.")] = None,
    fork: Annotated[str | None, typer.Option("--fork", help="Where to search from: start, a step number or a strategy.")] = None,
    budget: Annotated[
        str, typer.Option("--budget", help="What a round's work and search may use, e.g. model_calls=3000,tokens=2e6,seconds=600.")
    ] = "",
    prm: Annotated[
        str, typer.Option("--prm", help="none, prm or implicit: a learned verifier for searches, trained anew before each further round.")
    ] = "none",
    start: Annotated[
        str, typer.Option("--from", help="base: each round trains --model on all data so far; previous: the last model on the round's own.")
    ] = "base",
    dpo: Annotated[bool, typer.Option("--dpo", help="Preference pairs too, after SFT.")] = False,
    temperature: Temperature = 1.0,
    work_temperature: Annotated[
        float | None, typer.Option("--work-temperature", help="The agent's at work on training tasks; --temperature, where not given.")
    ] = None,
    max_tokens: MaxTokens = None,
    max_steps: MaxSteps = None,
    allow_external: AllowExternal = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the data in each training.")] = 2.0,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Of SFT; without it, the recipe's own.")] = None,
    dpo_learning_rate: Annotated[float | None, typer.Option("--dpo-learning-rate", help="Without it, the recipe's own.")] = None,
    prm_epochs: Annotated[float, typer.Option("--prm-epochs", help="Passes over the labels for --prm.")] = 2.0,
    prm_learning_rate: Annotated[float | None, typer.Option("--prm-learning-rate", help="Without it, the recipe's own.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows a step.")] = 8,
    max_length: MaxLength = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train low-rank adapters and merge them, in place of all weights.")] = False,
    checkpoint_steps: Annotated[int | None, typer.Option("--checkpoint-steps", help="Keep a checkpoint every so many steps.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Tasks played and runs searched at once.")] = 128,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Make the agent better in rounds: it works, its failed runs are searched, the next model is trained and examined. Resumable."""
    from counterplay.evaluation import tasks_from_spec
    from counterplay.improve import Improvement, report
    from counterplay.improve import improve as improve_in_rounds
    from counterplay.loop import check_paths
    from counterplay.parts import Asked
    from counterplay.plan import Plan

    common = {"batch_size": batch_size, "lora": lora}
    given = Improvement(
        model=model,
        asked=Asked(
            environment=environment,
            verifiers=tuple(verifier or ()),
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            max_steps=max_steps,
            allow_external=frozenset(allow_external or ()),
        ),
        held_out=tuple(tasks_from_spec(held_out)),
        tasks=tuple(tasks_from_spec(tasks)) if tasks else (),
        tasks_per_round=tasks_per_round,
        logs=tuple(check_paths(logs or ())),
        plan=Plan.parse(search, option or [], fork=fork, budget=budget, split="even", concurrency=concurrency),
        temperature=work_temperature,
        start=start,
        prm=prm,
        dpo=dpo,
        training=_named(**common, epochs=epochs, learning_rate=learning_rate, max_length=max_length, checkpoint_steps=checkpoint_steps),
        dpo_training=_named(learning_rate=dpo_learning_rate, epochs=1.0),
        prm_training=_named(**common, epochs=prm_epochs, learning_rate=prm_learning_rate, max_length=max_length),
    )
    stops = rounds is None if until_no_gain is None else until_no_gain
    improved = improve_in_rounds(given, out, rounds=rounds, until_no_gain=stops, quiet=as_json)
    console.emit(improved, as_json=as_json, human=report.table(improved))


def _named(**settings: object) -> dict[str, object]:
    """The settings that were given; the others are left to the recipe."""
    return {name: value for name, value in settings.items() if value is not None}
