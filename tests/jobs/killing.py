"""Jobs in processes of their own, killed at moments of our choosing, against a model on a loopback server that keeps account.

What the server says names the request, and so does the journal: a request that comes again after its answer was journalled is a defect.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from counterplay.core.store import Store
from counterplay.searching import scope_of
from tests.jobs import batch
from tests.replay.loopback import Loopback

_NOTE = re.compile(r"note-[0-9a-f]{16}")


class Server(Loopback):
    """Answers as `batch.answer` does, one after the other, each in `delay_s`. `asked` counts draws by their names.

    Traces of one task share states, each with a journal of its own: a draw may rightly be asked for once a trace. `whole` says how often a
    job asks for each that nobody disturbs; `again` counts what was asked for beyond that, less what was journalled when its process began.
    `lost` counts answers that had been sent when a process was killed and were not in its journal.
    """

    def __init__(self, delay_s=0.0, whole=None):
        super().__init__()
        self.default, self.delay_s, self.whole = self._answered, delay_s, whole
        self.asked, self.again = Counter(), Counter()
        self.lost = 0
        self._since, self._journalled, self._sent, self._sent_alive = Counter(), Counter(), Counter(), Counter()
        self._server.handle_error = lambda *_: None  # a client that was killed

    def begins(self, store):
        """Another process begins, with what is in the journal of this store; what the last one had on its way is let come in first."""
        seen = -1
        while seen != (seen := sum(self.asked.values())):
            time.sleep(0.1 + 4 * self.delay_s)
        held = journalled(store) if store.exists() else Counter()
        self.lost += (self._sent_alive - (held - self._journalled)).total()
        self._since, self._journalled, self._sent, self._sent_alive = Counter(), held, Counter(), Counter()

    def ends(self):
        """The process that asks is about to be killed."""
        self._sent_alive = self._sent.copy()

    def sent(self, request):
        self._sent[batch.note_of(request)] += 1

    def _answered(self, request):
        note = batch.note_of(request)
        self.asked[note] += 1
        self._since[note] += 1
        if self.whole is not None and self._since[note] > self.whole[note] - self._journalled[note]:
            self.again[note] += 1
        time.sleep(self.delay_s)
        return batch.answer(request)


def make(folder, server, **given):
    servers = f'base_urls = ["{server.base_url}"]\nextra_body = {{ seeded = true }}'
    return batch.make(folder, policy="openai:scripted", servers=servers, **given)


def command(folder, *options):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{root}", "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "none"}
    words = [sys.executable, "-m", "counterplay.cli", "run", "job.toml", *options]
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(folder, *options, timeout_s=120):
    """Exit code, what was printed, and what was said."""
    process = command(folder, *options)
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


def kill_after(folder, seconds, server, *, requests=None):
    """Start the job and kill it so many seconds later, or once the server was asked `requests` times more; whether it was still at work."""
    process, asked = command(folder), sum(server.asked.values())
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        if requests is not None and sum(server.asked.values()) - asked >= requests:
            break
        time.sleep(0.002)
    alive = process.poll() is None
    if alive:
        server.ends()
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for_children(process.pid)
    return alive


def wait_for_children(group):
    """Until every process of the group is gone."""
    for _ in range(500):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)


def journalled(file):
    """How many traces have each draw in their journal."""
    drawn = {}
    with Store.open(file) as store:
        for scope, _, kind, answer in store.journal_entries([scope_of(trace) for trace in store.load()]):
            if kind in ("propose", "request"):
                drawn.setdefault(scope, set()).update(_NOTE.findall(answer))
    return Counter(note for notes in drawn.values() for note in notes)


def used(file):
    """What all units were charged and what they might be, by kind; how many are in each state."""
    with Store.open(file, read_only=True) as store:
        (row,) = store.jobs()
        units = store.units(row.id)
        charged, shares = Counter(), Counter()
        for unit in units:
            charged.update(unit.result.get("used", {}))
            shares.update(unit.share)
        return dict(charged), dict(shares), Counter(unit.state for unit in units)


def total(folder):
    return json.loads((folder / "out" / "report.json").read_text())["budget"]
