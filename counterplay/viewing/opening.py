"""From a command to a page: the store opened to be read, what lies beside it, and a server or a file."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from counterplay.core.errors import UserError
from counterplay.looking import looked_at
from counterplay.naming import whole_id, whole_trace_ids
from counterplay.viewing.answers import Answers


@contextmanager
def answering(store: Path, places: Sequence[Path] = (), *, tokenizer: Path | None = None) -> Iterator[Answers]:
    """Answers about a store, or a copy of it as it is now where another process writes it, and about the folders `places`.

    Without places it is the folder of the store. Raises UserError where one of them is no folder.
    """
    missing = next((place for place in places if not place.is_dir()), None)
    if missing is not None:
        raise UserError(f"got {missing}, which is no folder", "folders that hold datasets, trainings or reports")
    with looked_at(store) as opened:
        around = list(places) or [store.resolve().parent]
        answers = Answers(opened, around, name=store.name, tokenizer=tokenizer, copied=opened.path != str(store))
        try:
            yield answers
        finally:
            answers.close()


def write_file(answers: Answers, out: Path, *, trace: str = "", search: str = "") -> int:
    """Write one trace, or one search, as a page that needs no server; its size in bytes. Ids may be as short as tells them apart.

    Raises UserError where none is named, or both, or there is none of that name.
    """
    from counterplay.viewing import page

    if bool(trace) == bool(search):
        raise UserError("got --html with both --trace and --search" if trace else "got --html alone", "--trace ID or --search ID")
    if trace:
        (whole,) = whole_trace_ids(answers.store, [trace])
        held = page.of_trace(answers, whole)
    else:
        held = page.of_search(answers, whole_id(search, [row.id for row in answers.store.searches()], "search"))
    text = page.self_contained(page.built(), held)
    try:
        return out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} can't be written: {error.strerror or error}", "a file in an existing folder") from error


def run(answers: Answers, *, port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM. `say` is given the URL; `browser` opens it."""
    from counterplay.serving import listening
    from counterplay.viewing.server import HOST, Site, serve

    def ready(url: str) -> None:
        say(url)
        if browser:
            webbrowser.open(url)

    with listening(HOST, port) as listener:
        serve(Site(answers, listener.getsockname()[1]), listener, ready=ready)
