"""Looking: a page in the browser, one file to send to a colleague, and a trace in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.options import DEFAULT_STORE, AsJson, StoreFile, app, bounded
from counterplay.core.errors import UserError


@app.command()
@bounded
def view(
    store: StoreFile = DEFAULT_STORE,
    datasets: Annotated[
        list[Path] | None,
        typer.Option("--datasets", help="A folder with datasets, trainings or reports; repeatable (default: where the store lies)."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="A model folder: rows are shown as its chat template renders them for training.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the URL and open nothing.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write one file that needs no server, in place of serving.")] = None,
    trace: Annotated[str, typer.Option("--trace", help="With --html: this trace and its trees; its id, or how it begins.")] = "",
    search: Annotated[str, typer.Option("--search", help="With --html: this search and its trace; its id, or how it begins.")] = "",
    as_json: AsJson = False,
) -> None:
    """Look at traces, trees, failures, datasets and reports in the browser. Nothing is written, and nobody else sees it."""
    from counterplay.viewing import opening

    if html is None and (trace or search):
        raise UserError("got --trace or --search without --html", "--html FILE", "Without it, everything in the store is shown.")
    with opening.answering(store, datasets or (), tokenizer=tokenizer) as answers:
        if html is not None:
            size = opening.write_file(answers, html, trace=trace, search=search)
            console.emit({"file": html, "bytes": size}, as_json=as_json)
            return
        if answers.copied:
            console.err.print("another process writes this store: what is shown is a copy of it as it is now", highlight=False)
        say = _say_json if as_json else _say
        opening.run(answers, port=port, browser=not no_browser, say=say)


def _say(url: str) -> None:
    console.err.print(f"{url}\nCtrl-C ends it; the store is held for reading until then", highlight=False, markup=False, soft_wrap=True)


def _say_json(url: str) -> None:
    console.emit({"url": url}, as_json=True)


@app.command()
@bounded
def show(
    trace: Annotated[str, typer.Argument(help="A trace id, or how it begins.")],
    store: StoreFile = DEFAULT_STORE,
    step: Annotated[int | None, typer.Option("--step", min=0, help="This step alone.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Long texts whole.")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="The trees of its searches, in place of the conversation.")] = False,
    width: Annotated[int, typer.Option("--width", min=0, help="With --tree: characters a line; 0 is that of the terminal.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show a trace as a conversation: steps, tool calls with their results, grades, scores, tokens and cost."""
    from counterplay.looking import looked_at
    from counterplay.naming import whole_trace_ids

    with looked_at(store) as opened:
        (whole,) = whole_trace_ids(opened, [trace])
        if tree:
            from counterplay import trees

            found = trees.of_trace(opened, opened.searches(), whole)
            wide = width or max(40, console.out.width if console.out.is_terminal else 120)
            drawn = [trees.drawn(opened.search(row.id), format="json" if as_json else "text", width=wide) for row in found]
            typer.echo(f"[{', '.join(drawn)}]" if as_json else "\n\n".join(drawn))
            return
        held = opened.trace(whole)
        if step is not None and step >= len(held.trajectory):
            raise UserError(f"got --step {step} of a trace of {len(held.trajectory)} steps", "one that there is, from 0")
        if as_json:
            from counterplay.viewing.answers import Answers

            answers = Answers(opened, name=store.name)
            detail = answers.trace(whole)
            answers.close()
            console.emit(detail if step is None else detail["trajectories"][0]["steps"][step], as_json=True)
            return
        from counterplay.showing import shown

        for line in shown(opened, held, step=step, full=full):
            console.out.print(line, soft_wrap=False)
