"""How the viewer feels in a browser: 100,000 traces, and a tree of 5,000 nodes with every branch unfolded.

    python bench/viewer_browser.py [--json] [--keep FOLDER]

A headless Chromium opens pages that `counterplay view` serves. Times to paint are the browser's own, from the start of the navigation; a
frame is what lies between two `requestAnimationFrame`s while the list scrolls or the tree is zoomed, and a browser that draws 60 of them a
second has 16.7 ms for each. An empty page says what the machine itself gives. `work` is processor time of the page's own thread a frame,
which does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.viewer import build
from counterplay import console

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
FRAMES = 150

PAINTED = "() => Math.round(performance.getEntriesByName('first-contentful-paint')[0].startTime)"
SHOWN = """(selector) => new Promise((done) => {
    const look = () => document.querySelector(selector) ? done(Math.round(performance.now())) : requestAnimationFrame(look);
    look();
})"""
GESTURES = """async ([gesture, frames]) => {
    const canvas = document.querySelector('canvas'), list = document.querySelector('.scroller');
    const box = canvas?.getBoundingClientRect();
    const at = (type, x, y, more) => canvas.dispatchEvent(new (type === 'wheel' ? WheelEvent : PointerEvent)(type, {
        clientX: box.left + x, clientY: box.top + y, bubbles: true, cancelable: true, pointerId: 1, ...more }));
    const act = {
        nothing: () => {},
        'scrolling on': () => list.scrollBy(0, 300),
        'jumping about': (i) => list.scrollTo(0, (i * 0.618 % 1) * list.scrollHeight),
        zooming: (i) => at('wheel', 500, 150, { deltaY: i % 60 < 30 ? 60 : -60 }),
        'moving over nodes': (i) => at('pointermove', 40 + i * 7 % 900, 40 + i * 3 % 300, {}),
    }[gesture];
    const took = [], long = [];
    const observer = new PerformanceObserver((seen) => long.push(...seen.getEntries().map((entry) => entry.duration)));
    observer.observe({ type: 'longtask' });
    let last = await new Promise(requestAnimationFrame);
    for (let i = 0; i < frames; i++) {
        act(i);
        const now = await new Promise(requestAnimationFrame);
        took.push(now - last);
        last = now;
    }
    observer.disconnect();
    return { took: took.slice(5), long };
}"""


@contextmanager
def viewed(store: Path) -> Iterator[str]:
    """The URL of `counterplay view` in a process of its own."""
    command = [sys.executable, "-m", "counterplay.cli", "view", "--store", str(store), "--no-browser", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            yield json.loads(serving.stdout.readline())["url"]
        finally:
            serving.terminate()


def frames(page: Any, gesture: str) -> dict[str, float]:
    """Frame times and work in ms while a gesture goes on; `long` counts tasks over 50 ms."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = _worked(session)
    found = page.evaluate(GESTURES, [gesture, FRAMES])
    took = sorted(found["took"])
    return {
        "work": round((_worked(session) - before) * 1000 / FRAMES, 1),
        "median": round(statistics.median(took), 1),
        "p95": round(took[int(len(took) * 0.95)], 1),
        "worst": round(took[-1], 1),
        "long": len(found["long"]),
    }


def _worked(session: Any) -> float:
    return float(next(each["value"] for each in session.send("Performance.getMetrics")["metrics"] if each["name"] == "TaskDuration"))


def painted(page: Any, url: str, selector: str) -> dict[str, int]:
    """ms to the first paint and until the contents stand there, of a page that the browser has not open yet."""
    page.goto("about:blank")
    page.goto(url)
    shown = page.evaluate(SHOWN, selector)
    return {"first paint": page.evaluate(PAINTED), "contents": shown}


def measure(url: str, search: str) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    home = url.partition("?")[0]
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto(url)
        paint = {"100,000 traces": painted(page, f"{home}#/traces", "a.row .title")}
        moved = {"an empty page": {}, "the list": {g: frames(page, g) for g in ("nothing", "scrolling on", "jumping about")}}
        paint["the tree"] = painted(page, f"{home}#/searches/{search}", ".sides")
        moved["the tree, folded"] = {g: frames(page, g) for g in ("zooming", "moving over nodes")}
        page.get_by_role("button", name="Unfold all").click()
        page.get_by_role("button", name="Fit").click()
        moved["the tree, unfolded"] = {g: frames(page, g) for g in ("zooming", "moving over nodes")}
        page.goto("about:blank")
        moved["an empty page"] = {"nothing": frames(page, "nothing")}
        browser.close()
    return {"paint_ms": paint, "frame_ms": moved}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--keep", type=Path, help="A folder that keeps the store, and has it already the second time.")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        store = folder / f"{chosen.traces}-{chosen.nodes}.duckdb"
        if not store.exists():
            build(store, chosen.traces, chosen.nodes)
        with viewed(store) as url:
            found = measure(url, "big")
    if chosen.json:
        print(json.dumps({"traces": chosen.traces, "nodes": chosen.nodes, **found}))
        return
    rows = [(name, took["first paint"], took["contents"]) for name, took in found["paint_ms"].items()]
    console.out.print(console.table("ms from the start of the navigation", ["page", "first paint", "contents"], rows))
    moves = [(name, gesture, *took.values()) for name, gestures in found["frame_ms"].items() for gesture, took in gestures.items()]
    console.out.print(
        console.table(f"ms a frame over {FRAMES} frames", ["page", "gesture", "work", "median", "p95", "worst", "tasks over 50 ms"], moves)
    )


if __name__ == "__main__":
    main()
