"""The viewer over HTTP: for whoever has the token, from this machine by its own name, under a policy that lets nothing in."""

import asyncio
import base64
import gzip
import hashlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from counterplay import cli
from counterplay.core.store import Store
from counterplay.serving import listening, server
from counterplay.viewing import page
from counterplay.viewing.opening import answering
from counterplay.viewing.server import HOST, Site
from tests.viewing.contract import complaint
from tests.viewing.made import HOSTILE, make_store

SCRIPT, STYLE = 'document.title = "drawn";', "body { color: teal }"
PAGE = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><style>{STYLE}</style>
<script type="module" crossorigin>{SCRIPT}</script></head><body><div id="app"></div></body></html>"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("viewed") / "s.duckdb"
    make_store(path)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(PAGE)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page, "FILE", file)
        yield file


@pytest.fixture(scope="module")
def site(store, built):
    with answering(store) as answers, listening(HOST, 0) as listener:
        made = Site(answers, listener.getsockname()[1])
        serving = server(made.app)
        thread = threading.Thread(target=lambda: asyncio.run(serving.serve(sockets=[listener])), daemon=True)
        thread.start()
        yield made
        serving.should_exit = True
        thread.join(10)


def get(site, path, method="GET", **headers):
    connection = http.client.HTTPConnection(HOST, site.port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, gzip.decompress(body) if answer.getheader("content-encoding") == "gzip" else body


def asked(site, path, **headers):
    answer, body = get(site, path, Authorization=f"Bearer {site.token}", **headers)
    return answer.status, json.loads(body)


def test_the_printed_url_gives_a_cookie_and_the_cookie_gives_page_and_answers(site):
    first, _ = get(site, site.url.partition(str(site.port))[2])
    assert (first.status, first.getheader("location")) == (303, "/")
    cookie = first.getheader("set-cookie")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    brought = cookie.partition(";")[0]
    shown, body = get(site, "/", Cookie=brought)
    assert (shown.status, body.decode()) == (200, PAGE)
    answer, body = get(site, "/api/traces?limit=2", Cookie=brought)
    assert answer.status == 200
    assert complaint(json.loads(body), "TraceList") is None


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Cookie": "counterplay=x"}, {"Authorization": "Basic dTpw"}])
def test_nobody_sees_anything_without_the_token(site, headers):
    for path in ("/api/meta", "/api/traces/trace-0", "/api/nothing"):
        answer, body = get(site, path, **headers)
        assert answer.status == 401
        assert complaint(json.loads(body), "Problem") is None
    answer, body = get(site, "/", **headers)
    assert answer.status == 401
    assert SCRIPT.encode() not in body
    assert get(site, "/?token=wrong")[0].status == 401
    assert get(site, "/?token=")[0].status == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}", ""])
def test_a_name_that_is_not_this_machine_s_is_refused_even_with_the_token(site, host):
    answer, body = get(site, "/api/meta", Host=host.format(port=site.port), Authorization=f"Bearer {site.token}")
    assert answer.status == 403
    assert b"trace" not in body


def test_another_site_s_page_gets_no_answer(site):
    assert asked(site, "/api/meta", Sec_Fetch_Site="cross-site", Origin="https://evil.example")[0] == 403
    answer, _ = get(site, "/api/meta", Authorization=f"Bearer {site.token}", Origin="https://evil.example")
    assert answer.getheader("access-control-allow-origin") is None


def test_localhost_is_this_machine(site):
    assert asked(site, "/api/meta", Host=f"localhost:{site.port}")[0] == 200


@pytest.mark.parametrize("path", ["/", "/api/meta", "/nothing", "/api/traces/none"])
def test_every_response_carries_the_policy(site, path):
    answer, _ = get(site, path, Authorization=f"Bearer {site.token}")
    rules = dict(rule.split(" ", 1) for rule in answer.getheader("content-security-policy").split("; "))
    digest = {text: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (SCRIPT, STYLE)}
    assert rules == {
        "default-src": "'none'",
        "script-src": digest[SCRIPT],
        "style-src": digest[STYLE],
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.getheader("x-content-type-options") == "nosniff"
    assert answer.getheader("cache-control") == "no-store"
    assert answer.getheader("referrer-policy") == "no-referrer"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(site, method):
    for path in ("/", "/api/traces"):
        assert get(site, path, method=method, Authorization=f"Bearer {site.token}")[0].status == 405


def test_what_is_missing_or_makes_no_sense_is_told(site):
    status, body = asked(site, "/api/traces/none")
    assert (status, complaint(body, "Problem"), body["error"]["got"]) == (404, None, "no trace 'none' in s.duckdb")
    assert asked(site, "/api/traces?limit=x")[0] == 400
    assert asked(site, "/api/traces/trace-0%2Fmore")[0] == 404
    assert asked(site, "/api/../api/meta")[0] == 404


def test_large_answers_are_packed(site):
    answer, body = get(site, "/api/traces/trace-0", Authorization=f"Bearer {site.token}", Accept_Encoding="gzip")
    assert answer.getheader("content-encoding") == "gzip"
    assert json.loads(body)["summary"]["id"] == "trace-0"


def test_many_ask_at_once(site):
    found = []

    def ask(number):
        found.append(asked(site, f"/api/traces?text=run%20{number % 3}&limit=1")[0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 16


def embedded_in(text):
    (held,) = re.findall(r'<script type="application/json" id="counterplay-data">(.*?)</script', text, re.DOTALL)
    return json.loads(held)


def test_a_file_holds_what_the_server_would_answer_and_nothing_breaks_out_of_it(site, store, built, tmp_path):
    out = tmp_path / "one.html"
    done = CliRunner().invoke(cli.app, ["view", "--store", str(store), "--html", str(out), "--search", "search-trace-0", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["bytes"]) == (0, len(out.read_text()))
    text = out.read_text(encoding="utf-8")
    held = embedded_in(text)
    assert complaint(held, "Embedded") is None
    assert set(held["answers"]) == {"api/meta", "api/traces/trace-0", "api/searches/search-trace-0", "api/searches/search-trace-0/nodes"}
    assert held["start"] == "/searches/search-trace-0"
    for path in ("traces/trace-0", "searches/search-trace-0"):
        assert held["answers"][f"api/{path}"] == asked(site, f"/api/{path}")[1]
    assert len(held["answers"]["api/searches/search-trace-0/nodes"]["nodes"]) == 8
    assert (held["answers"]["api/meta"]["embedded"], held["answers"]["api/meta"]["counts"]["traces"]) == (True, 1)
    assert json.dumps(HOSTILE[0])[1:-1] in json.dumps(held)
    rest = text.replace(PAGE.partition("</head>")[2], "")
    assert rest.count("<script") == 2  # the page's own and the data's
    assert rest.count("</script") == 2
    assert not any(hostile in text for hostile in HOSTILE if "<" in hostile)
    rules = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', text)[1]
    assert "connect-src 'none'" in rules
    assert text.index("Content-Security-Policy") < text.index("<style")


def test_a_file_about_a_trace_has_its_trees(store, built, tmp_path):
    out = tmp_path / "one.html"
    done = CliRunner().invoke(cli.app, ["view", "--store", str(store), "--html", str(out), "--trace", "trace-"])
    assert done.exit_code == 2  # many begin so
    done = CliRunner().invoke(cli.app, ["view", "--store", str(store), "--html", str(out), "--trace", "trace-0"])
    assert done.exit_code == 0
    assert "api/searches/search-trace-0" in embedded_in(out.read_text())["answers"]


@pytest.mark.parametrize("arguments", [["--html", "x.html"], ["--html", "x.html", "--trace", "a", "--search", "b"], ["--trace", "a"]])
def test_what_a_file_is_about_has_to_be_said(store, arguments):
    assert CliRunner().invoke(cli.app, ["view", "--store", str(store), *arguments]).exit_code == 2


def test_ids_stand_in_keys_as_browsers_write_them():
    assert page._url("traces", "a/b c'é!(1)") == "api/traces/a%2Fb%20c'%C3%A9!(1)"


def test_a_store_that_is_being_written_is_shown_as_it_was(store, tmp_path, built):
    path = tmp_path / "busy.duckdb"
    make_store(path, traces=2)
    writing = (
        "import sys, time\nfrom counterplay.core.store import Store\ns = Store.open(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", writing, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout.readline() == "open\n"
        with answering(path) as answers:
            assert answers.answer("meta")["copied"] is True
            assert answers.answer("traces")["total"] == 2
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


def test_a_store_that_is_not_there_is_said():
    done = CliRunner().invoke(cli.app, ["view", "--store", "nowhere.duckdb", "--no-browser"])
    assert done.exit_code == 2
    assert "does not exist" in done.stderr


def test_the_command_serves_until_it_is_told_to_stop(tmp_path):
    if not (Path(page.__file__).parent / "page" / "index.html").is_file():
        pytest.skip("the page is not built in this checkout")
    path = tmp_path / "s.duckdb"
    make_store(path, traces=1)
    command = [sys.executable, "-m", "counterplay", "view", "--store", str(path), "--no-browser", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = json.loads(process.stdout.readline())["url"]
        port, opening = re.match(r"http://127\.0\.0\.1:(\d+)(/\?token=.+)", url).groups()
        connection = http.client.HTTPConnection(HOST, int(port), timeout=10)
        connection.request("GET", opening)
        assert connection.getresponse().status == 303
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stdout.close()
    with Store.open(path) as opened:  # nothing holds it any more
        assert opened.stats().traces == 1
