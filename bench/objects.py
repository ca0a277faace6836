"""What it costs that logs lie in an object store: ingest from an S3 API on loopback beside the same files in a local folder, in one run.

    python bench/objects.py [--mb 64,256] [--json]

Logs keep the whole prompt of every call (bench/ingest.py), in partition folders of some thirty megabytes. Every ingest is a process of
its own, whose memory is its own peak and that of its largest reader. `again` is an ingest right after, where nothing has changed.
The server (moto) answers from the memory of a process on the same machine, so that it takes a part of the same two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.ingest import write_chat

TRACES_A_PARTITION = 9
SERVER = """
import logging, sys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
INGEST = """
import json, resource, sys, time
from counterplay import incremental, loop
from counterplay.core.store import Store
incremental._OBJECT_TICK_US = incremental._LOCAL_TICK_NS = -(10**18)  # the logs were written a moment ago
with Store.open(sys.argv[2]) as store:
    started = time.perf_counter()
    report = loop.ingest([sys.argv[1]], store, together="partition")
    seconds = time.perf_counter() - started
peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
print(json.dumps({"seconds": seconds, "peak_mb": peak, "traces": report.traces_added, "unchanged": report.files_unchanged}))
"""
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1"}


def ingest(source: str, store: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", INGEST, source, str(store)], capture_output=True, text=True, check=True, env=os.environ)
    return json.loads(done.stdout)


def measured(folder: Path, endpoint: str, name: str, partitions: int) -> dict[str, Any]:
    from pyarrow import fs

    os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
    server = fs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True)
    server.create_dir("bench-logs")
    logs, size = folder / "logs", 0
    part = folder / "part.jsonl"
    write_chat(part, TRACES_A_PARTITION)
    text = part.read_bytes()
    for number in range(partitions):
        file = logs / f"part={number:03}" / "log.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.replace(b'"trace_id":"t', b'"trace_id":"p%03d' % number))
        size += file.stat().st_size
        fs.copy_files(str(file), f"bench-logs/{name}/part={number:03}/log.jsonl", destination_filesystem=server)
    found: dict[str, Any] = {"mb": round(size / 1e6)}
    for kind, source in (("local", str(logs)), ("s3", f"s3://bench-logs/{name}")):
        first = ingest(source, folder / f"{kind}.db")
        again = ingest(source, folder / f"{kind}.db")
        assert (first["traces"], again["unchanged"]) == (TRACES_A_PARTITION * partitions, partitions)
        found |= {f"{kind}_mb_s": size / 1e6 / first["seconds"], f"{kind}_peak_mb": first["peak_mb"]}
        found[f"{kind}_again"] = again["seconds"] / first["seconds"]
    return found | {"ratio": found["s3_mb_s"] / found["local_mb_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", default="64,256", help="sizes of the prefix, comma-separated")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        rows = []
        for size in map(int, asked.mb.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measured(Path(folder), endpoint, f"size-{size}", max(1, size // 30)))
    finally:
        server.kill()
        server.wait()
    memory = rows[-1]["s3_peak_mb"] / rows[0]["s3_peak_mb"]
    if asked.json:
        print(json.dumps({"rows": rows, "memory_growth": memory}))
        return
    print("  MB   local MB/s   S3 MB/s   S3/local   local peak MB   S3 peak MB   again, of the first: local     S3")
    for row in rows:
        print(
            f"{row['mb']:>4} {row['local_mb_s']:>12.1f} {row['s3_mb_s']:>9.1f} {row['ratio']:>10.2f} {row['local_peak_mb']:>15.0f} "
            f"{row['s3_peak_mb']:>12.0f} {row['local_again']:>29.3f} {row['s3_again']:>6.3f}"
        )
    print(f"memory from {rows[0]['mb']} to {rows[-1]['mb']} MB: x{memory:.2f}")


if __name__ == "__main__":
    main()
