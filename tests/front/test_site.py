"""The manual builds as a site, strictly: no dead link, no page that nobody finds, nothing fetched from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_site_builds_strictly_and_asks_nobody_else(tmp_path):
    pytest.importorskip("material", reason="needs mkdocs-material, of the extra counterplay[dev]")
    pytest.importorskip("mkdocstrings", reason="needs mkdocstrings, of the extra counterplay[dev]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    fetched = re.compile(r"""<(?:script|img|iframe)[^>]+src=["']?https?://|<link[^>]+rel=["']?stylesheet[^>]+href=["']?https?://""")
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 50
    assert [page.name for page in pages if fetched.search(page.read_text(encoding="utf-8"))] == []
    reference = (tmp_path / "site" / "reference" / "search.html").read_text(encoding="utf-8")
    assert "num_simulations" in reference
