"""`transformers serve`, started on loopback for a test and stopped with it."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest


@contextmanager
def serving(log_file):
    """The base URL of a server that answers for any local model folder."""
    pytest.importorskip("uvicorn", reason="needs the extra counterplay[serve]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [str(Path(sys.executable).parent / "transformers"), "serve", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log_file.open("w+") as log:
        process = subprocess.Popen(program, stdout=log, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + 120
            while not _answers(port):
                log.seek(0)
                assert process.poll() is None, log.read()[-2000:]
                assert time.monotonic() < deadline, log.read()[-2000:]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()


def _answers(port):
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False
