"""Whether all is well: a look at the machine, the installation, the store and the model servers."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.options import DEFAULT_STORE, AsJson, StoreFile, app, bounded

_MARKS = {"well": "ok", "absent": "-", "odd": "look", "broken": "BROKEN"}


@app.command("doctor")
@bounded
def examine(
    store: StoreFile = DEFAULT_STORE,
    base_url: Annotated[
        list[str] | None, typer.Option("--base-url", help="A model server that is asked for one token, a few times; repeatable.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="The model that servers are asked for; the first that they list.")] = "",
    full: Annotated[bool, typer.Option("--full", help="Verify the whole store, and import torch to see what it can use.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.1, help="How long to wait for a server.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Look at installation, machine, store, plugins and servers; say what is well, what is not and what to do. Exit code 1: broken."""
    from counterplay.doctor import examined

    findings = list(examined(store, base_urls=base_url or (), model=model, full=full, timeout_s=timeout_s))
    counts = Counter(finding.state for finding in findings)
    rows = [(_MARKS[one.state], one.area, one.name, f"{one.said}\n{one.do}" if one.do else one.said) for one in findings]
    human = [console.table("doctor", ["", "area", "what", "found"], rows), ", ".join(f"{count} {state}" for state, count in counts.items())]
    console.emit({"findings": findings, "counts": dict(counts)}, as_json=as_json, human=human)
    if counts["broken"]:
        raise typer.Exit(1)
