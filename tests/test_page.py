"""The page, in a real browser: it loads, filters, sorts, opens a run, and escapes names."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest

from warmstart import ArgumentError, Store, cli, optimize, using
from warmstart.backends import Batch
from warmstart.page import page_data, render, serve
from warmstart.rows import RunInfo, info_row, small
from warmstart.session import new_run_id

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>{{ 7*7 }}"


def fill(store):
    """Fits, hits, near fits, a failed run, and names that would like to be markup."""

    def bowl(x, a):
        for _ in range(2000):
            x.sum()
        return float(np.sum((x - a) ** 2) + 0.1 * np.sum((x - a) ** 4)), 2.0 * (x - a) + 0.4 * (
            x - a
        ) ** 3

    with using(store=store, near=True), store.run("path", name="path", params={"rate": 0.5}):
        for a in (1.0, 1.1, 1.2, 1.0):
            optimize.minimize(bowl, np.zeros(30), args=(a,), jac=True, method="BFGS")
    with store.run(HOSTILE, name=HOSTILE, params={HOSTILE: HOSTILE}, tags={"t": HOSTILE}) as run:
        run.log_metric(HOSTILE, float("nan"))
        run.log_metric(HOSTILE, 2.0)
    with pytest.raises(OverflowError), store.run(name="broken"):
        raise OverflowError(HOSTILE)
    store.flush()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("page") / "store") as store:
        fill(store)
        yield store


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "no Chromium to test the page in"
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page of which every error and every request to the network is kept."""
    context = browser.new_context()
    page = context.new_page()
    page.errors, page.requests, page.alerts = [], [], []
    page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("dialog", lambda dialog: (page.alerts.append(dialog.message), dialog.dismiss()))
    yield page
    context.close()


def rows(page):
    return page.locator("#table tbody tr")


class TestReport:
    @pytest.fixture
    def file(self, store, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("WARMSTART_STORE", store.address)
        assert cli.main(["report", "-o", str(tmp_path / "report.html"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["runs"] == 6
        return tmp_path / "report.html"

    def test_all_of_it(self, file, page):
        """Loads, filters, sorts, opens a run with its chart and lineage; by keyboard, too."""
        page.goto(file.as_uri())
        assert rows(page).count() == 6
        assert page.locator("#savings .main-svg").count() > 0
        page.fill("#search", "bowl")
        assert rows(page).count() == 3
        assert page.inner_text("#count") == "3 of 6 runs"
        page.fill("#search", "")
        page.select_option("#status", "failed")
        assert rows(page).count() == 1
        page.select_option("#status", "")
        page.select_option("#source", "near")
        assert rows(page).count() == 2
        page.select_option("#source", "")
        header = page.locator("#table thead button", has_text="evaluations")
        header.click()
        assert page.locator("th[aria-sort=descending]").inner_text().startswith("evaluations")
        numbers = [
            int(text) for text in page.locator("#table tbody td:nth-child(6)").all_inner_texts()
        ]
        assert numbers == sorted(numbers, reverse=True)
        page.keyboard.press("Enter")  # the heading still has the focus
        assert page.locator("th[aria-sort=ascending]").count() == 1
        page.fill("#search", "bowl")
        rows(page).first.locator("button").focus()
        page.keyboard.press("Enter")
        assert page.locator("#run").is_visible()
        assert page.evaluate("document.activeElement.id") == "run"
        assert "path" in page.inner_text("#lineage")
        page.locator("#lineage button", has_text="").first.click()
        page.click("#close")
        assert not page.locator("#run").is_visible()
        assert "sibling-hyper" in page.inner_text("#families")
        assert page.errors == []
        assert [
            url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))
        ] == []

    def test_hostile_names_are_text(self, file, page):
        page.goto(file.as_uri())
        page.fill("#search", "onerror")
        assert rows(page).count() == 2
        page.locator("#table tbody button").last.click()
        assert HOSTILE in page.inner_text("#facts")
        assert page.locator("#facts img").count() == 0
        assert page.locator("#curve .main-svg").count() > 0
        assert "49" not in page.title()
        assert page.alerts == []
        assert page.errors == []

    def test_light_and_dark(self, file, page):
        found = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(file.as_uri())
            found.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert found == ["rgb(255, 255, 255)", "rgb(18, 22, 28)"]

    def test_for_screen_readers(self, file, page):
        """Every control has a name, every section a heading, every chart a text."""
        page.goto(file.as_uri())
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select")]
            .filter(node => !node.closest(".modebar-container") && !(node.textContent.trim()
              || node.labels?.length || node.ariaLabel)).map(node => node.outerHTML)"""
        )
        assert unnamed == []
        assert page.locator("section:not([aria-labelledby])").count() == 0
        assert (
            page.locator("[role=img]:not([aria-label])").evaluate_all(
                "nodes => nodes.filter(node => node.offsetParent !== null).length"
            )
            == 0
        )
        assert page.get_attribute("html", "lang") == "en"

    def test_ten_thousand_runs(self, tmp_path, page):
        """Filtering and sorting stay quick; older runs are cut, with their count."""
        store = Store(tmp_path / "many")
        infos = [
            RunInfo(
                run=new_run_id(), key="0" * 64, status="completed", started=1.79e9 + i,
                what=f"minimize f{i % 7}", evaluations=i,
            )
            for i in range(10_050)
        ]  # fmt: skip
        for start in range(0, len(infos), 1000):
            part = infos[start : start + 1000]
            store.backend.apply(Batch({info_row(info.run): small(info) for info in part}))
        data = page_data(store)
        assert (len(data["runs"]), data["more"]) == (10_000, 50)
        (tmp_path / "report.html").write_text(render(data))
        page.goto((tmp_path / "report.html").as_uri())
        assert rows(page).count() == 50
        assert page.inner_text("#where") == "1 of 200"
        page.click("#after")
        page.click("#after")
        assert page.inner_text("#where") == "3 of 200"
        took = page.evaluate(
            """() => { const before = performance.now(); const box = document.getElementById("search");
            box.value = "f3"; box.dispatchEvent(new Event("input")); return performance.now() - before; }"""
        )
        assert "50 older ones are not on this page" in page.inner_text("#count")
        assert took < 5000  # 0.1 s on a quiet machine
        assert page.errors == []


class TestServer:
    def test_live(self, tmp_path, page):
        """What happens while the page is open appears on it."""
        store = Store(tmp_path / "store")
        with store.run(name="first"):
            pass
        served = serve(store)
        try:
            page.goto(served.url)
            assert rows(page).count() == 1
            with store.run(name="second"):
                pass
            from playwright.sync_api import expect

            expect(rows(page)).to_have_count(2, timeout=30_000)
            assert page.errors == []
        finally:
            served.stop()

    def test_only_with_the_token(self, store):
        served = serve(store)
        base, token = served.url.split("/?token=")
        try:
            for address, host in (
                (f"{base}/", None),
                (f"{base}/?token=x", None),
                (f"{base}/data.json", None),
                (served.url, "evil.example:80"),
            ):
                request = urllib.request.Request(address, headers={"Host": host} if host else {})
                with pytest.raises(urllib.error.HTTPError, match="403"):
                    urllib.request.urlopen(request)
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{base}/etc/passwd?token={token}")
            with urllib.request.urlopen(f"{base}/data.json?token={token}") as answer:
                assert len(json.load(answer)["runs"]) == 6
        finally:
            served.stop()

    def test_a_browser_that_leaves(self, store, capsys):
        """A connection that is reset at any moment is no news."""
        served = serve(store)
        port = urllib.parse.urlsplit(served.url).port
        reset = struct.pack("ii", 1, 0)  # closing sends a reset
        for said in (b"", b"GET /?tok", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as browser:
                browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                browser.sendall(said)
        with urllib.request.urlopen(served.url) as answer:  # by now the others are done with
            answer.read()
        served.stop()
        assert capsys.readouterr().err == ""

    def test_a_port_that_is_taken(self, store):
        served = serve(store)
        port = urllib.parse.urlsplit(served.url).port
        with pytest.raises(ArgumentError, match=rf"port {port} .*give another one, or 0"):
            serve(store, port)
        served.stop()

    def test_what_is_missing_is_named(self, store, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
        with pytest.raises(ArgumentError, match="pip install jinja2 plotly"):
            render(page_data(store))
