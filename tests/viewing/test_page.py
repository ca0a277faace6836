"""The page in a real browser: on a store made from the example, and on logs that mean harm."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from counterplay.core.nouns import Message, Trajectory
from counterplay.core.store import Store
from counterplay.viewing import page as shipped
from counterplay.viewing.opening import answering, write_file
from tests.viewing.browsing import chromium, served, until, watching
from tests.viewing.example import make_example
from tests.viewing.made import HOSTILE, make_folders, make_store, trace

PAGES = ("traces", "searches", "failures", "datasets")
SIZES = ((1280, 860), (390, 844))


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def example(browser, tmp_path_factory):
    """The folder of an example store and its viewer's URL."""
    folder = tmp_path_factory.mktemp("example")
    make_example(folder)
    with served(folder / "s.duckdb") as url:
        yield folder, url


@pytest.fixture(scope="module")
def hostile(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    made = make_store(folder / "s.duckdb")
    make_folders(folder, made)
    with served(folder / "s.duckdb") as url:
        yield folder, url


def test_from_a_trace_to_its_tree_to_a_row_and_back(browser, example):
    """Trace, tree, side by side, dataset row, and the row's lineage back to the very node."""
    with watching(browser, example[1]) as seen:
        page = seen.open("#/traces?outcome=failed")
        page.locator(".list a.row", has_text="tree").first.click()
        page.get_by_role("link", name=re.compile("Tree by repair")).click()
        page.get_by_role("heading", name="Best branch", exact=True).wait_for()
        first = page.locator(".cell[data-first]")
        assert first.count() == 2
        assert first.nth(0).locator("mark.removed").count() > 0
        assert first.nth(1).locator("mark.added").count() > 0
        heads = page.locator(".verdict").all_inner_texts()
        assert float(heads[0]) < float(heads[1]) == 1.0
        task = page.locator("h1").inner_text()
        page.get_by_role("link", name="Datasets").click()
        page.get_by_role("link", name=re.compile("^dpo")).click()
        page.get_by_role("listitem").filter(has_text=task).first.locator("a").click()
        chosen = page.get_by_role("region", name="Chosen")
        chosen.locator(".trained").wait_for()
        taught = chosen.locator(".trained mark").all_inner_texts()
        page.get_by_role("link", name="Its place in the tree").click()
        page.wait_for_url(re.compile("node="))
        assert page.locator("h1").inner_text() == task
        page.locator(".cell.first.r").wait_for()
        assert taught
        assert page.locator(".cell.first.r mark").all_inner_texts()[: len(taught)] == taught
        page.get_by_role("link", name="The logged trace").click()
        page.locator(".step").first.wait_for()
        assert page.locator("h1").inner_text() == task


def test_the_tree_is_walked_by_keys(browser, example):
    with watching(browser, example[1]) as seen:
        page = seen.open("#/searches")
        page.locator(".list a.row").first.click()
        tree = page.get_by_role("application")
        tree.focus()
        said = page.locator("#tree-node")
        tree.press("Home")
        until(page, "document.querySelector('#tree-node').textContent.startsWith('Root')")
        tree.press("ArrowRight")
        until(page, "document.querySelector('#tree-node').textContent.startsWith('Depth 1: list_documents')")
        assert "logged" in said.inner_text()
        tree.press("b")
        until(page, "document.querySelector('#tree-node').textContent.includes('best branch')")
        deepest = said.inner_text()
        tree.press("ArrowDown")
        until(page, "!document.querySelector('#tree-node').textContent.includes('best branch')")
        assert said.inner_text().split(":")[0] == deepest.split(":")[0]
        for key in ("+", "-", "0", "Enter", "l", "End"):
            tree.press(key)


def test_filters_are_in_the_address_and_counted(browser, example):
    with watching(browser, example[1]) as seen:
        page = seen.open("#/traces")
        total = int(re.match(r"\d+", page.get_by_role("status").first.inner_text())[0])
        chip = page.get_by_role("button", name=re.compile(r"^failed \d+"))
        failed = int(re.search(r"\d+", chip.inner_text())[0])
        chip.click()
        page.wait_for_url(re.compile("outcome=failed"))
        until(page, f"document.querySelector('.head [role=status]').textContent.startsWith('{failed} trace')")
        until(page, f"document.querySelectorAll('.list a.row').length === {failed}")
        assert failed < total
        assert page.locator(".list .pill", has_text="success").count() == 0
        page.reload()
        until(page, f"document.querySelectorAll('.list a.row').length === {failed}")
        page.get_by_role("button", name="Clear filters").click()
        page.get_by_role("searchbox").fill("no message says this")
        page.get_by_text("No trace matches").wait_for()
        page.get_by_role("searchbox").fill("668348511")
        until(page, "document.querySelectorAll('.list a.row').length === 1")
        page.go_back()


def test_a_bar_of_failures_leads_to_a_trace_at_its_step(browser, example):
    with watching(browser, example[1]) as seen:
        page = seen.open("#/failures")
        page.get_by_role("group", name="Tool of the pivotal step").get_by_role("button").last.click()
        page.get_by_role("link", name=re.compile(r"at step \d+")).first.click()
        until(page, "document.activeElement.classList.contains('step')")
        step = re.search(r"step=(\d+)", page.url)[1]
        assert page.locator(".step:focus .n").inner_text() == f"Step {step}"


def test_the_theme_is_the_systems_until_somebody_chooses(browser, example):
    with watching(browser, example[1], color_scheme="dark") as seen:
        page = seen.open("#/traces")
        root = page.locator("html")
        assert root.get_attribute("data-theme") == "dark"
        page.get_by_role("button", name="Light theme").click()
        assert root.get_attribute("data-theme") == "light"
        page.reload()
        page.locator("main h1").wait_for()
        assert root.get_attribute("data-theme") == "light"
        page.get_by_role("button", name="Dark theme").click()
        assert root.get_attribute("data-theme") == "dark"


@pytest.mark.parametrize("size", SIZES)
def test_every_page_fits_and_names_what_can_be_used(browser, hostile, size):
    """No page is wider than its window, every control has a name, every page one heading and its landmarks."""
    places = [*PAGES, "verifiers", "training", "traces/trace-0", "searches/search-trace-0", "datasets/dpo", "datasets/sft"]
    with watching(browser, hostile[1], viewport={"width": size[0], "height": size[1]}) as seen:
        for place in places:
            page = seen.open(f"#/{place}")
            until(page, "!document.querySelector('.loading')")
            found = page.evaluate(
                """() => ({
                    over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
                    headings: document.querySelectorAll('h1').length,
                    landmarks: ['header', 'nav', 'main'].every((name) => document.querySelector(name)),
                    nameless: [...document.querySelectorAll('a, button, input, select, canvas, summary, [tabindex="0"]')]
                        .filter((e) => !(e.textContent.trim() || e.ariaLabel)).map((e) => e.outerHTML.slice(0, 120)),
                    twice: [...document.querySelectorAll('[id]')].map((e) => e.id).filter((id, i, all) => all.indexOf(id) !== i),
                })"""
            )
            assert found == {"over": 0, "headings": 1, "landmarks": True, "nameless": [], "twice": []}, place


def test_focus_is_seen_and_starts_with_a_way_to_the_content(browser, hostile):
    with watching(browser, hostile[1], reduced_motion="reduce") as seen:
        page = seen.open("#/traces")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent.trim()") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert page.evaluate("document.activeElement.closest('main') !== null")


def test_logs_that_mean_harm_are_shown_as_text(browser, hostile):
    """Nothing in a log runs, becomes an element or a link, on any page and with everything unfolded.

    The browser itself refuses whatever would turn text into HTML, so that this holds for texts nobody thought of.
    """
    places = ["traces", "traces/trace-0", "traces/trace-1", "traces/trace-3", "searches/search-trace-0", "searches/search-trace-1?node=3"]
    places += ["failures", "datasets/dpo", "datasets/sft", "verifiers", "training"]
    shown = ""
    with watching(browser, hostile[1], "require-trusted-types-for 'script'; trusted-types 'none'") as seen:
        refused = "() => { try { document.body.innerHTML = '' } catch (error) { return String(error) } }"
        assert "TrustedHTML" in seen.page.evaluate(refused)
        seen.errors.clear()
        for place in places:
            page = seen.open(f"#/{place}")
            until(page, "!document.querySelector('.loading')")
            for _ in range(3):
                page.evaluate("document.querySelectorAll('details:not([open]) > summary').forEach((e) => e.click())")
                page.evaluate("document.querySelectorAll('button.more[aria-expanded=false]').forEach((e) => e.click())")
                page.wait_for_timeout(60)
            shown += page.locator("main").inner_text()
            bad = page.evaluate(
                """() => [...document.querySelectorAll('main *, main *')].filter((e) =>
                    ['SCRIPT', 'IMG', 'IFRAME', 'OBJECT', 'STYLE', 'LINK', 'B'].includes(e.tagName)
                    || [...e.attributes].some((a) => a.name.startsWith('on'))
                    || (e.tagName === 'A' && !(e.getAttribute('href') || '').startsWith('#/'))).map((e) => e.outerHTML.slice(0, 200))"""
            )
            assert bad == [], place
            assert page.evaluate("window.hacked") is None, place
    for text in HOSTILE[:6]:
        assert text in shown, text


def test_what_can_not_be_seen_is_named(browser, tmp_path):
    """Direction overrides and zero-width characters stand as what they are, and turn nothing round outside their own text."""
    logged = trace(0, good=False)
    turned = Message.user("pay \u202e001$\u202c to \u200bBob\u2066\ufeff and שלום עולם")
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([replace(logged, trajectory=Trajectory((), (turned,), logged.trajectory.steps))])
    with served(tmp_path / "s.duckdb") as url, watching(browser, url) as seen:
        page = seen.open("#/traces/trace-0")
        text = page.locator(".message").first.inner_text()
        assert "pay U+202E001$U+202C to U+200BBobU+2066U+FEFF and שלום עולם" in text
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\ufeff]", page.locator("main").inner_text())
        assert page.locator(".message bdi").count() > 0


@pytest.mark.parametrize("kind", ["trace", "search"])
def test_a_file_shows_the_same_tree_without_a_server(browser, example, tmp_path, kind):
    """Opened from the file system: the same branches, the same words, and nothing asked of anybody."""
    folder, url = example
    with answering(folder / "s.duckdb") as answers:
        search = answers.store.searches()[0]
        write_file(answers, tmp_path / "one.html", **{kind: search.trace if kind == "trace" else search.id})
    with watching(browser, url) as seen:
        wanted = comparison(seen.open(f"#/searches/{search.id}"))
    with watching(browser, (tmp_path / "one.html").as_uri()) as seen:
        page = seen.page
        page.locator("h1").wait_for()
        if kind == "trace":
            page.get_by_role("link", name=re.compile("Tree by")).click()
        assert comparison(page) == wanted
        assert page.get_by_role("navigation", name="Pages").get_by_role("link").count() == 0
        assert seen.asked == [(tmp_path / "one.html").as_uri()]


def comparison(page):
    page.locator(".sides").wait_for()
    return page.locator(".sides").inner_text(), page.locator("#tree-node").inner_text(), page.locator(".legend").inner_text()


def test_a_missing_page_says_so(browser, hostile):
    with watching(browser, hostile[1]) as seen:
        page = seen.open("#/traces")
        page.goto(page.url.partition("#")[0] + "#/constructor/x")
        page.get_by_text("There is no such page").wait_for()


def test_the_shipped_page_is_one_small_file_that_asks_nobody():
    text = shipped.built()
    assert len(text.encode()) < 400_000
    assert text.count("</head>") == 1
    assert re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?!data:)", text) == []


def test_the_sources_write_no_html():
    sources = [path for path in (Path(__file__).parents[2] / "viewer" / "src").rglob("*.ts*") if ".test." not in path.name]
    assert sources, "the page's sources lie beside the tests"
    for path in sources:
        found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|dangerouslySet|document\.write|\beval\(|new Function", path.read_text())
        assert found == [], path


def test_a_search_of_text_fills_up_while_it_goes_on(browser, hostile):
    """Answers that grow are asked again until they are whole, and none of their rows stays empty."""
    total = {"n": 0}
    with watching(browser, hostile[1]) as seen:
        rows = seen.page.evaluate("async () => (await (await fetch('api/traces?offset=0&limit=9')).json()).rows")

        def answer(route):
            limit = int(re.search(r"limit=(\d+)", route.request.url)[1])
            held = {"done": total["n"] == 9, "searched": total["n"], "of": 9}
            body = {"total": total["n"], "offset": 0, "rows": rows[: min(limit, total["n"])], "text_search": held}
            route.fulfill(json=body)
            if limit == 1:
                total["n"] = min(9, total["n"] + 3)

        seen.page.route("**/api/traces?*text=booked*", answer)
        page = seen.open("#/traces?text=booked")
        until(page, "document.querySelectorAll('.list a.row').length === 9")
        assert page.get_by_role("status").first.inner_text() == "9 traces"


def test_whoever_comes_back_finds_the_list_as_it_was(browser, tmp_path):
    make_store(tmp_path / "s.duckdb", traces=60)
    with served(tmp_path / "s.duckdb") as url, watching(browser, url) as seen:
        page = seen.open("#/traces")
        page.locator(".list a.row").first.wait_for()
        page.evaluate("document.querySelector('.scroller').scrollTop = 1500")
        row = page.locator('.list a.row[href*="trace-40"]')
        row.click()
        page.locator(".step").first.wait_for()
        page.go_back()
        row.wait_for()
        assert page.evaluate("document.querySelector('.scroller').scrollTop") == 1500
