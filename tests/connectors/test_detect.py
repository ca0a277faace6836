"""Formats are told apart by content: every real log finds its connector, whatever it is called, and nothing else finds one."""

import gzip
import shutil
from pathlib import Path

import pytest

from counterplay.connectors.base import CONNECTORS, detect
from counterplay.connectors.lines import SAMPLE_BYTES, sample_of
from counterplay.core.errors import SourceError

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared real logs are not here")

OURS = {
    "multiformat/chatlog/*": "chatlog",
    "multiformat/litellm/*": "chatlog",
    "multiformat/TRUTH.json": "chatlog",
    "tau-bench-airline-gpt4o/*.json": "tau-bench",
    "tau-bench-fewshot/*.jsonl": "tau-bench",
    "multiformat/openinference/*.json": "otlp",
    "multiformat/openllmetry/*.json*": "otlp",
    "multiformat/openllmetry_legacy/*.json*": "otlp",
    "multiformat/otelv2/*.json*": "otlp",
}
THEIRS = (
    "multiformat/langsmith/*.runs.jsonl",
    "multiformat/mlflow/*",
    "multiformat/agents_sdk/*",
    "multiformat/langgraph/*",
    "multiformat/responses/*",
    "tau2-gpt-4.1-base/*.json",
    "atif-dev/*.json",
    "claude-code-sessions/*.jsonl",
    "inspect-logs/**/*.json",
    "openhands-trajectories/*.jsonl",
    "toolbench-dfsdt/**/*.json",
    "openr-math-aps/*.jsonl",
    "swe-agent-traj/**/*.traj",
    "bfcl-multi-turn-results/**/*.json",
)


@pytest.mark.parametrize("pattern", OURS)
def test_real_logs_find_their_connector_under_any_name(tmp_path, pattern):
    files = sorted(DATA.glob(pattern))
    assert files
    for file in files:
        assert detect(file).name == OURS[pattern], file
        copy = tmp_path / "data.bin"
        shutil.copyfile(file, copy)
        assert detect(copy).name == OURS[pattern]
        copy.write_bytes(gzip.compress(file.read_bytes(), 1))
        assert detect(copy).name == OURS[pattern]


@pytest.mark.parametrize("pattern", THEIRS)
def test_other_tools_files_are_not_taken_for_ours(pattern):
    for file in sorted(DATA.glob(pattern))[:5]:
        with pytest.raises(SourceError):
            detect(file)


@pytest.mark.parametrize("size", [20_000, SAMPLE_BYTES])
def test_a_short_sample_is_enough(size):
    for pattern, wanted in OURS.items():
        for file in sorted(DATA.glob(pattern))[:1]:
            if wanted == "otlp":
                continue
            confident = {name for name in ("chatlog", "tau-bench") if CONNECTORS[name].detect(sample_of(file, size), file) > 0}
            assert confident == {wanted}, file
