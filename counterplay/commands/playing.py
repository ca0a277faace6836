"""Replay, localisation, search and evaluation."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from counterplay import console
from counterplay.commands.options import (
    DEFAULT_STORE,
    Agent,
    AllowExternal,
    AsJson,
    BaseUrl,
    EnvironmentSpec,
    ExtraBody,
    InFlight,
    Limit,
    MaxSteps,
    MaxTokens,
    PolicySpec,
    Price,
    RequestsPerMinute,
    Seed,
    StoreFile,
    Temperature,
    TimeoutS,
    TokensPerMinute,
    TraceIds,
    VerifierSpecs,
    app,
    bounded,
    some,
)


@app.command()
@bounded
def replay(
    environment: EnvironmentSpec = "recorded",
    store: StoreFile = DEFAULT_STORE,
    trace: TraceIds = None,
    agent: Agent = None,
    limit: Limit = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 where an observation or an outcome differs.")] = False,
    allow_external: AllowExternal = None,
    agent_code: Annotated[str, typer.Option("--agent-code", help="module:attr: run the agent's own code again instead.")] = "",
    arguments: Annotated[str | None, typer.Option("--arguments", help="What --agent-code is called with, a JSON object.")] = None,
    at: Annotated[int | None, typer.Option("--at", help="With --agent-code: go on live from this step.")] = None,
    execute: Annotated[list[str] | None, typer.Option("--execute", help="With --agent-code: a tool that may be executed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Re-enact logged traces in an environment, or the agent's own code on them, and compare everything with the log."""
    from counterplay import loop, parts, views

    if agent_code:
        given = parts.json_object(arguments, "--arguments")
        with loop.opened(store, read_only=True) as opened:
            chosen = loop.select(opened, trace_ids=trace, which="all", agent=agent, limit=limit)
            some(chosen, store)
            _replay_code(agent_code, chosen, opened, arguments=given, at=at, execute_tools=execute or (), as_json=as_json)
        return
    asked = parts.Asked(environment=environment, allow_external=frozenset(allow_external or ()))
    with loop.opened(store, read_only=True) as opened:
        chosen = loop.select(opened, trace_ids=trace, which="all", agent=agent, limit=limit)
        some(chosen, store)
        with console.ticking("re-enacting", len(chosen), quiet=as_json) as tick:
            report = asyncio.run(loop.replay(chosen, asked, on_trace=tick.advance))
    console.emit({**console.plain(report), "faithful": report.faithful}, as_json=as_json, human=views.replayed(report))
    if check and not report.faithful:
        raise typer.Exit(1)


def _replay_code(agent_code: str, chosen: list[Any], opened: Any, *, as_json: bool, **options: Any) -> None:
    """Run the agent's own code on each trace. Exits with 1 where it does something else than the log says."""
    from counterplay import reenact

    with console.ticking("re-enacting", len(chosen), quiet=as_json) as tick:
        reports = reenact.reenact_all(agent_code, chosen, opened, on_trace=tick.advance, **options)
    faithful = all(report.faithful for report in reports)
    shown = [part for report in reports for part in reenact.shown(report)]
    console.emit({"faithful": faithful, "traces": console.plain(reports)}, as_json=as_json, human=shown)
    if not faithful:
        raise typer.Exit(1)


@app.command()
@bounded
def localise(
    policy: PolicySpec = "",
    environment: EnvironmentSpec = "recorded",
    verifier: VerifierSpecs = None,
    store: StoreFile = DEFAULT_STORE,
    method: Annotated[
        str, typer.Option("--method", help="drop: where a process verifier's value falls; bisect: Bayesian, by rollouts.")
    ] = "drop",
    trace: TraceIds = None,
    which: Annotated[str, typer.Option("--select", help="failed, succeeded or all.")] = "failed",
    agent: Agent = None,
    limit: Limit = None,
    budget: Annotated[str, typer.Option("--budget", help="e.g. model_calls=400,usd=5,seconds=600; for all traces together.")] = "",
    base_url: BaseUrl = None,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    max_steps: MaxSteps = None,
    in_flight: InFlight = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    timeout_s: TimeoutS = None,
    as_json: AsJson = False,
) -> None:
    """Find the step at which each failed trace went wrong."""
    from counterplay import loop, parts, views
    from counterplay.plan import Pace

    pace = Pace(in_flight, requests_per_minute, tokens_per_minute)
    asked = parts.Asked(policy, environment, tuple(verifier or ()), base_url, temperature, max_tokens, seed, max_steps, timeout_s=timeout_s)
    with loop.opened(store, existing=True) as opened:
        chosen = loop.select(opened, trace_ids=trace, which=which, agent=agent, limit=limit)
        some(chosen, store)
        with console.ticking("localising", len(chosen), quiet=as_json) as tick:
            report = asyncio.run(loop.localise(opened, chosen, asked, method=method, budget=budget, pace=pace, on_trace=tick.advance))
    console.emit(report, as_json=as_json, human=views.localised(report))


@app.command()
@bounded
def search(
    name: Annotated[
        str | None,
        typer.Option(
            "--search",
            help="best_of_n, beam, mcts, fork_best_of_n, repair, greedy, rollout ...; auto: learned for each class of traces; "
            "stitch: log-only, no model. Without it repair, or fork_best_of_n where the verifier has no opinion on unfinished runs.",
        ),
    ] = None,
    policy: PolicySpec = "",
    environment: EnvironmentSpec = "recorded",
    verifier: VerifierSpecs = None,
    store: StoreFile = DEFAULT_STORE,
    option: Annotated[list[str] | None, typer.Option("--option", help="An option of the algorithm, key=value; see docs/papers.md.")] = None,
    fork: Annotated[
        str | None,
        typer.Option(
            "--fork",
            help="Where to fork: value_drop (a verifier's value falls, the default), pivot (by rollouts), tool_error, entropy, "
            "rare_state, every; and for searches that go on from one state also start or a step number.",
        ),
    ] = None,
    trace: TraceIds = None,
    which: Annotated[str, typer.Option("--select", help="failed, succeeded or all; failed, and for stitch all, where not given.")] = "",
    agent: Agent = None,
    limit: Limit = None,
    budget: Annotated[
        str, typer.Option("--budget", help="e.g. model_calls=400,usd=5,seconds=600; for all traces together, divided once a job.")
    ] = "",
    trace_budget: Annotated[str, typer.Option("--trace-budget", help="The same for each trace; without it, a share of --budget.")] = "",
    split: Annotated[
        str, typer.Option("--split", help="How --budget is divided: gain, by what it is expected to bring on each trace; or even.")
    ] = "gain",
    stop_when: Annotated[
        str, typer.Option("--stop-when", help="Stop a search where one holds, e.g. value=1,finished=8,decided=0.95; see docs/searching.md.")
    ] = "",
    in_flight: InFlight = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    timeout_s: TimeoutS = None,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Traces searched at once.")] = 64,
    base_url: BaseUrl = None,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    max_steps: MaxSteps = None,
    allow_external: Annotated[
        list[str] | None,
        typer.Option("--allow-external", help="A tool with external effect that may really be called, and called again in prefixes."),
    ] = None,
    price: Price = None,
    extra_body: ExtraBody = None,
    simulate: Annotated[
        str,
        typer.Option("--simulate", help="Answer what the recordings do not hold: nearest, openai:MODEL or module:attr; graded simulated."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Search what else the agent could have done. Killed and run again, it goes on where it stopped."""
    from counterplay import loop, parts, searching
    from counterplay.plan import Pace, Plan

    asked = parts.Asked(
        policy,
        environment,
        tuple(verifier or ()),
        base_url,
        temperature,
        max_tokens,
        seed,
        max_steps,
        frozenset(allow_external or ()),
        parts.price_from(price),
        parts.json_object(extra_body, "--extra-body"),
        simulate,
        timeout_s=timeout_s,
    )
    how = Plan.parse(
        name,
        option or [],
        fork=fork,
        budget=budget,
        trace_budget=trace_budget,
        concurrency=concurrency,
        split=split,
        stop_when=stop_when,
        pace=Pace(in_flight, requests_per_minute, tokens_per_minute),
    )
    with loop.opened(store, existing=True) as opened:
        asked = replace(asked, comparable=loop.comparable_of(opened))
        chosen = loop.select(
            opened,
            trace_ids=trace,
            which=which or ("all" if name == "stitch" else "failed"),
            agent=agent,
            limit=limit,
        )
        some(chosen, store)
        with console.ticking("searching", len(chosen), quiet=as_json) as tick:
            report = asyncio.run(searching.search(opened, chosen, asked, how, on_trace=tick.advance))
    console.emit(report, as_json=as_json)
    if not report.searches or not (report.used or report.resumed or name == "stitch"):
        raise typer.Exit(1)


@app.command()
@bounded
def evaluate(
    policy: Annotated[list[str], typer.Option("--policy", help="Policies to compare; the first is the baseline. NAME=SPEC names one.")],
    environment: Annotated[str, typer.Option("--environment", help="module:attr, a factory of worlds by task.")] = "",
    tasks: Annotated[
        str,
        typer.Option("--tasks", help="A file with one task a line, or module:attr[:SPLIT:N], a list or a function of split and number."),
    ] = "",
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="How often each task is played; more than once gives pass@k.")] = 1,
    failures: Annotated[
        str, typer.Option("--failures", help="What names classes of failure: a verifier (by its reason), or module:attr of a failed run.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder for report.json, report.md and every played run, which ingest reads.")
    ] = None,
    scaling: Annotated[
        str, typer.Option("--scaling", help="Instead: success at these budgets of model calls a task, e.g. 16,32,64; --verifier chooses.")
    ] = "",
    search: Annotated[
        str | None, typer.Option("--search", help="With --scaling: how to spend a budget; best_of_n (whole lines) where not given.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="With --scaling: key=value of the search; B or B/15 is the budget or its part.")
    ] = None,
    verifier: VerifierSpecs = None,
    logged: Annotated[
        Path | None, typer.Option("--logged", help="Instead: estimate from the runs of this store alone how the policies would do.")
    ] = None,
    agent: Agent = None,
    base_url: BaseUrl = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0 is greedy; where not given, 0 for one attempt and else 1.")
    ] = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    max_steps: Annotated[int, typer.Option("--max-steps", help="Model calls a task may take.")] = 100,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Tasks played at once.")] = 512,
    in_flight: InFlight = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    timeout_s: TimeoutS = None,
    price: Price = None,
    as_json: AsJson = False,
) -> None:
    """Play the same held-out tasks with several policies and compare them, task by task, with 95 % intervals."""
    from counterplay import evaluating, evaluation, parts
    from counterplay.plan import Pace

    asked = evaluating.Question(
        evaluation.named_policies(policy),
        environment,
        tasks,
        out=out,
        verifiers=tuple(verifier or ()),
        base_url=base_url,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        max_steps=max_steps,
        concurrency=concurrency,
        pace=Pace(in_flight, requests_per_minute, tokens_per_minute),
        timeout_s=timeout_s,
        quiet=as_json,
    )
    played_alone = {"--attempts": attempts > 1, "--failures": failures, "--price": price}
    if logged is not None:
        world = {"--scaling": scaling, "--environment": environment, "--tasks": tasks, "--out": out, "--base-url": base_url}
        evaluating.refuse("--logged", {**world, **played_alone}, "playing")
        shown = evaluating.estimated(asked, logged, agent)
    elif scaling:
        evaluating.refuse("--scaling", {"--agent": agent, **played_alone}, "other ways to evaluate")
        shown = evaluating.scaled(asked, scaling, search, option or [])
    else:
        evaluating.refuse("a plain evaluation", {"--search": search, "--option": option}, "--scaling")
        evaluating.refuse("a plain evaluation", {"--agent": agent}, "--logged")
        shown = evaluating.played(asked, attempts=attempts, failures=failures, price=parts.price_from(price))
    console.emit(shown.result, as_json=as_json, human=shown.human)
