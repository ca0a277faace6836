"""A small job over the game of moves: its logs, its parts and its file in a folder of their own, and what its datasets hold."""

import hashlib
import json
import shutil
from pathlib import Path

from counterplay.jobs.spec import Job
from counterplay.replay.recorder import Recorder
from tests.front import moves
from tests.front.moves import logged

FILE = """
[job]
name = "moves"
store = "s.duckdb"

[[source]]
path = "logs.jsonl"

[policy]
spec = "{policy}"
{servers}
max_tokens = 40
price = [1.0, 2.0]

[environment]
spec = "moves:World"

[[verifier]]
spec = "outcome"

[[verifier]]
spec = "moves:sound"

[search]
algorithm = "repair"
options = {{ n = 3, rounds = 3 }}

[budget]
total = {{ model_calls = {calls} }}

[engine]
at_once = 4
backoff_s = 0.01

[[export]]
kind = "sft"
source = "searched"

[[export]]
kind = "dpo"
tau = 0.6

[output]
folder = "out"
"""
PLAYED = ("bbaaaa", "babbbb", "bbbbba", "bbbbbb", "abbbbb", "bbbabb")


def write_logs(folder, tasks=4, played=PLAYED, name="logs.jsonl"):
    with Recorder(folder / name, agent="mover") as recorder:
        for number in range(tasks):
            for moves_ in played:
                trace = logged(f"t{number}", moves_)
                recorder.write(trace.trajectory, task=trace.task)
    return folder / name


def make(folder, *, policy="moves:policy", servers="", calls=400, tasks=4, extra=""):
    """The folder of a job: `job.toml`, its logs and `moves.py` with a policy in it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(moves.__file__, folder / "moves.py")
    with (folder / "moves.py").open("a") as module:
        module.write("\n\npolicy = Mover()\n")
    write_logs(folder, tasks)
    (folder / "job.toml").write_text(FILE.format(policy=policy, servers=servers, calls=calls) + extra)
    return folder / "job.toml"


def loaded(file, **changes):
    """The job of a file, some of its sections changed."""
    job = Job.load(file)
    return job.model_copy(update={name: getattr(job, name).model_copy(update=fields) for name, fields in changes.items()})


def digests(out):
    """Every file of the datasets in a folder, by its bytes."""
    files = sorted(path for path in Path(out).rglob("*") if path.is_file() and not path.name.startswith("report."))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def answer(request):
    """What the model on the loopback server says: a move by the seed that was sent, and a note that names the draw."""
    from tests.replay.loopback import completion

    number = sum(message["role"] == "assistant" for message in request["messages"])
    to = "b" if request["seed"] % 3 else "a"
    return completion(note_of(request), calls=[(f"c{number}", "move", f'{{"to":"{to}"}}')])


def note_of(request):
    """The name of a draw: of its state and its seed, with however many others it is asked for."""
    return f"note-{hashlib.sha256(json.dumps([request['messages'], request['seed']]).encode()).hexdigest()[:16]}"


def report_of(folder):
    return json.loads((folder / "out" / "report.json").read_text())
