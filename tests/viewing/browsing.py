"""A headless Chromium that notes everything it should not have met, and the viewer served to it."""

import asyncio
import re
import shutil
import threading
import time
from contextlib import contextmanager

import pytest

from counterplay.serving import listening, server
from counterplay.viewing import page
from counterplay.viewing.opening import answering
from counterplay.viewing.server import HOST, Site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium():
    """One browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def served(store):
    """The viewer's URL, with its token."""
    if not page.FILE.exists():
        pytest.skip("the page is not built: cd viewer && npm ci && npm run build")
    with answering(store) as answers, listening(HOST, 0) as listener:
        site = Site(answers, listener.getsockname()[1])
        serving = server(site.app)
        thread = threading.Thread(target=lambda: asyncio.run(serving.serve(sockets=[listener])), daemon=True)
        thread.start()
        yield site.url
        serving.should_exit = True
        thread.join(10)


class Watched:
    """A page of its own. What it printed as error, and every address it asked for, is in `errors` and `asked`."""

    def __init__(self, browser, url, policy="", **context):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, "color_scheme": "light", **context})
        self.page, self.errors, self.asked = self.context.new_page(), [], []
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.set_default_timeout(8000)
        if policy:
            self.page.route(re.compile(f"^{re.escape(url.partition('?')[0])}([?]|$)"), lambda route: stricter(route, policy))
        self.url = url
        self.page.goto(url)

    def open(self, address):
        """Go to a place inside the page and wait for its heading."""
        self.page.goto(f"{self.url.partition('?')[0]}{address}")
        self.page.locator("main h1").first.wait_for()
        return self.page

    def close(self):
        """Close, and see that nothing was wrong and nothing but the page's own server was asked."""
        self.context.close()
        home = self.url.partition("?")[0]
        foreign = [url for url in self.asked if not url.startswith((home, "data:"))]
        assert (self.errors, foreign) == ([], [])


def until(page, script, seconds=8):
    """Wait until an expression holds. (Playwright's own waiting evaluates text inside the page, which its policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(script):
        assert time.monotonic() < end, f"never: {script}"
        page.wait_for_timeout(25)


def stricter(route, more):
    """Answer with the page under a policy that says `more`."""
    answer = route.fetch()
    rules = answer.headers["content-security-policy"]
    route.fulfill(response=answer, headers={**answer.headers, "content-security-policy": f"{rules}; {more}"})


@contextmanager
def watching(browser, url, policy="", **context):
    watched = Watched(browser, url, policy, **context)
    try:
        yield watched
    except BaseException:
        watched.context.close()
        raise
    watched.close()
