"""Files of the repository that pages link to (`../examples/...`) are copied into the site, so that it has no dead link."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(((?:\.\./)+)(examples/[^)#]+)\)")


def on_files(files: Files, *, config: Any) -> Files:
    pages = [file for file in files.documentation_pages() if file.abs_src_path]
    linked = {found for page in pages for _, found in LINK.findall(Path(str(page.abs_src_path)).read_text(encoding="utf-8"))}
    for name in sorted(linked):
        files.append(File.generated(config, f"files/{name}.txt", content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    up = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)
    return LINK.sub(lambda found: f"]({up}files/{found[2]}.txt)", markdown)
