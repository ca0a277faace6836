"""Reading search trees."""

from __future__ import annotations

from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.options import DEFAULT_STORE, StoreFile, app, bounded

LISTED = 20


@app.command()
@bounded
def tree(
    search: Annotated[str, typer.Argument(help="The id of a search, or how it begins; without it the latest searches are listed.")] = "",
    store: StoreFile = DEFAULT_STORE,
    format: Annotated[str, typer.Option("--format", help="text, dot (Graphviz) or json.")] = "text",  # noqa: A002  the user's word
    max_depth: Annotated[int | None, typer.Option("--max-depth", min=0, help="Steps below the root.")] = None,
    max_children: Annotated[int | None, typer.Option("--max-children", min=1, help="Most visited children of a node.")] = None,
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help="Steps without alternatives on one line.")] = True,
    trace: Annotated[str, typer.Option("--trace", help="List the searches of this trace alone; its id, or how it begins.")] = "",
    every: Annotated[bool, typer.Option("--all", help=f"List all searches, not the latest {LISTED} alone.")] = False,
    width: Annotated[int, typer.Option("--width", min=0, help="Characters a line of text; 0 is that of the terminal.")] = 0,
) -> None:
    """Show a search tree: what was tried where, what came of it, the best path, and where the better action is not known.

    Searches that are under way are shown as far as they have been written, also while the job runs.
    """
    from counterplay import trees
    from counterplay.looking import looked_at

    with looked_at(store) as opened:
        if not search:
            limit = None if every else LISTED
            if format == "json":
                typer.echo(trees.as_json(opened, trace=trace, limit=limit))
            else:
                console.out.print(trees.listed(opened, trace=trace, limit=limit))
            return
        record = trees.find(opened, search)
    width = width or max(40, console.out.width if console.out.is_terminal else 120)
    typer.echo(trees.drawn(record, format=format, max_depth=max_depth, max_children=max_children, fold=fold, width=width))
