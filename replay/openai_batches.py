"""Carrying a folder's questions to the OpenAI Batch API, and the answers back.

What was sent is kept in `batches.json`, written before and after each thing that costs money: a killed process sends nothing twice.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from counterplay.core.errors import PolicyError, UserError
from counterplay.replay.appending import exclusive
from counterplay.replay.batch_folder import ENDPOINT, is_questions, lines_of

if TYPE_CHECKING:
    from openai.types import Batch

_STATE = "batches.json"
_ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass(frozen=True, slots=True)
class Carried:
    """How far a folder is: files sent by this call, batches still running, batches that ended, and how many lines came back now."""

    sent: int
    running: int
    ended: int
    lines: int


class Batches:
    """The batches of `folder` at `base_url` (None: OPENAI_BASE_URL, else OpenAI's own), under `api_key` (None: OPENAI_API_KEY)."""

    def __init__(self, folder: str | os.PathLike[str], *, base_url: str | None = None, api_key: str | None = None) -> None:
        """Raises UserError where there is no such folder, or no key."""
        import openai

        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"got {folder}", "the folder of a --policy batch:FOLDER:MODEL")
        key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if base_url or os.environ.get("OPENAI_BASE_URL") else None)
        if key is None:
            raise UserError("got no key", "OPENAI_API_KEY or a base_url", "Set one of them.")
        self.client = openai.OpenAI(api_key=key, base_url=base_url, max_retries=8)

    def carry(self) -> Carried:
        """Send what was not sent, fetch what is ready.

        Raises PolicyError where the server can't be reached, and UserError, once everything was fetched, where it refused a batch.
        """
        with _explained(), (self.folder / f"{_STATE}.lock").open("ab") as lock, exclusive(lock):
            state = self._state()
            sent = self._send(state)
            lines, refused = 0, ""
            for name in [name for name, known in state.items() if known["status"] not in _ENDED]:
                batch = self.client.batches.retrieve(state[name]["batch"])
                if batch.status in _ENDED:
                    lines += self._fetch(name, batch)
                    refused = _complaint(batch) or refused
                state[name]["status"] = batch.status
                self._save(state)
        ended = sum(known["status"] in _ENDED for known in state.values())
        if refused:
            raise UserError(f"the server refused a batch: {refused}", "questions that it takes", "Run the search again to ask once more.")
        return Carried(sent, len(state) - ended, ended, lines)

    def wait(self, *, every_s: float = 60.0, on_look: Callable[[Carried], None] = lambda _: None) -> Carried:
        """`carry`, again and again until no batch is running; the sums over all of it. Each look is shown to `on_look`."""
        sent = lines = 0
        while True:
            looked = self.carry()
            on_look(looked)
            sent, lines = sent + looked.sent, lines + looked.lines
            if not looked.running:
                return Carried(sent, 0, looked.ended, lines)
            time.sleep(every_s)

    def close(self) -> None:
        self.client.close()

    def _send(self, state: dict[str, dict[str, str]]) -> int:
        """Upload every questions file that is not at the server, and make it a batch."""
        count = 0
        for path in sorted(path for path in self.folder.glob("*.jsonl") if is_questions(path)):
            known = state.setdefault(path.name, {"status": "unsent"})
            if "batch" in known:
                continue
            if "file" not in known:
                with path.open("rb") as file:
                    known["file"] = self.client.files.create(file=(path.name, file), purpose="batch").id
                self._save(state)
                found = None
            else:  # killed on the way: the batch may have been made
                found = next((batch for batch in self.client.batches.list(limit=100) if batch.input_file_id == known["file"]), None)
            batch = found or self.client.batches.create(
                input_file_id=known["file"],
                endpoint=ENDPOINT,
                completion_window="24h",
                metadata={"counterplay": path.name},
            )
            known |= {"batch": batch.id, "status": "sent"}
            self._save(state)
            count += 1
        return count

    def _fetch(self, name: str, batch: Batch) -> int:
        """Bring the verdicts of a batch that ended; a question without one gets the batch's own end."""
        stem, count, seen = name.removeprefix("questions-"), 0, set()
        found = {f"answers-{stem}": batch.output_file_id, f"errors-{stem}": batch.error_file_id}
        for target, file_id in found.items():
            if file_id is None:
                continue
            path = self.folder / f"{target}.part"
            with self.client.files.with_streaming_response.content(file_id) as response:
                response.stream_to_file(path)
            keys = [orjson.loads(line)["custom_id"] for _, line in lines_of(path)]
            seen.update(keys)
            count += len(keys)
            path.replace(self.folder / target)
        asked = [orjson.loads(line)["custom_id"] for _, line in lines_of(self.folder / name)]
        lost = [key for key in asked if key not in seen]
        if lost:
            error = {"code": f"batch_{batch.status}", "message": _complaint(batch) or "no line of its own"}
            lines = [orjson.dumps({"custom_id": key, "response": None, "error": error}) + b"\n" for key in lost]
            path = self.folder / f"lost-{stem}"
            path.with_suffix(".part").write_bytes(b"".join(lines))
            path.with_suffix(".part").replace(path)
        return count

    def _state(self) -> dict[str, dict[str, str]]:
        path = self.folder / _STATE
        read: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}
        return read

    def _save(self, state: dict[str, dict[str, str]]) -> None:
        path = self.folder / _STATE
        part = path.with_suffix(".part")
        part.write_text(json.dumps(state, indent=1))
        part.replace(path)


def _complaint(batch: Batch) -> str:
    """Why the server refused a batch as a whole; empty where it did not."""
    if batch.status != "failed":
        return ""
    data: list[Any] = list((batch.errors.data if batch.errors else None) or [])
    return "; ".join(str(error.message) for error in data[:3]) or "without a reason"


@contextmanager
def _explained() -> Iterator[None]:
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        kind = UserError if error.status_code in (400, 401, 403, 404) else PolicyError
        raise kind(f"the server answered {error.status_code}: {error.message}", "a server with the OpenAI Batch API") from error
    except openai.OpenAIError as error:
        raise PolicyError(f"the server can't be reached ({error})", "a server with the OpenAI Batch API") from error
