"""The pictures of the viewer in docs/images, taken from a store: python bench/viewer_pictures.py STORE [TASK].

The tree shown is that of TASK, or the smallest that found a better branch. Pictures are at most 1280 pixels wide and have 256 colours.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.viewer_browser import FLAGS, viewed

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDE = (1280, 800)
SHOTS = [
    ("traces", "#/traces", WIDE, "light"),
    ("trace", "#/traces/{trace}?step=4", (1280, 620), "light"),
    ("tree", "#/searches/{search}", (1280, 1010), "light"),
    ("tree-dark", "#/searches/{search}", (1280, 1010), "dark"),
    ("tree-narrow", "#/searches/{search}", (390, 1180), "light"),
    ("failures", "#/failures", (1280, 620), "light"),
    ("dataset", "#/datasets/dpo", (1280, 960), "light"),
    ("verifiers", "#/verifiers", (1280, 1080), "light"),
    ("training", "#/training", (1280, 760), "light"),
]


def main(store: Path, task: str = "") -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with viewed(store) as url, sync_playwright() as driver:
        executable = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=executable, args=FLAGS.split())
        home, known = url.partition("?")[0], {}
        for name, address, (width, height), theme in SHOTS:
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
            page = context.new_page()
            page.goto(url)
            known = known or page.evaluate(
                """async (task) => {
                    const { rows } = await (await fetch('api/searches?limit=500')).json();
                    const found = rows.filter((row) => task ? row.task === task : row.best === 1).sort((a, b) => a.nodes - b.nodes);
                    const best = found[0] ?? rows[0];
                    return { search: best.id, trace: best.trace };
                }""",
                task,
            )
            page.goto(home + address.format(**known))
            page.wait_for_timeout(1200)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            picture.quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"viewer-{name}.png", optimize=True)
            context.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
