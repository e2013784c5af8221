"""The pages in a real browser: a study is submitted, watched, asked and taken away."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright

from service.cli import main
from service.database_url import file_url
from service.views.status import is_driven
from storage.store import open_store
from tests.support.browser import chromium, serving
from tests.support.studies import JOB

TRIALS = 6
BAD = """\
study: watched
model: {source: reference}
data: {source: reference}
stop: {trials: 0}
x: 1
"""
WAIT_MS = 150_000


@contextmanager
def browsing(address: str) -> Iterator[Page]:
    """A page on which nothing may go wrong unseen, and from which nothing leaves the machine."""
    wrong: list[str] = []

    def hear(request: Request) -> None:
        if not request.url.startswith((f"{address}/", "data:", "blob:")):
            wrong.append(request.url)

    def tell(message: ConsoleMessage) -> None:
        # That a job has mistakes is the page's status, which the console tells as an error.
        if message.type == "error" and "status of 422" not in message.text:
            wrong.append(message.text)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(base_url=address, viewport={"width": 1280, "height": 900})
        page.set_default_timeout(WAIT_MS)
        page.on("console", tell)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", hear)
        yield page
        browser.close()
    assert wrong == []


@pytest.fixture
def database(ray_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "studies.db"


def best(database: Path, nbytes: str) -> int:
    asked = ["best", "watched", "--max-nbytes", nbytes, "--format", "json", "--db", str(database)]
    result = CliRunner().invoke(main, asked)
    return int(json.loads(result.stdout)["trial"])


def drag(page: Page, value: int) -> tuple[int, str]:
    """Drags the slider; the trial that is chosen, and the limit that it was chosen within."""
    with page.expect_response(lambda response: "/choice?" in response.url):
        page.locator("#drag").fill(str(value))
    page.locator("#choice[aria-busy=false] [data-trial]").wait_for()
    chosen = page.locator("#choice [data-trial]").get_attribute("data-trial")
    limit = str(page.locator("#choice code").last.text_content()).rpartition(" ")[2]
    return int(str(chosen)), limit


def fits(page: Page, path: str) -> bool:
    """Whether nothing of a page has to be looked for at its side."""
    page.goto(path, wait_until="load")
    page.wait_for_timeout(300)
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def drawn(page: Page) -> int:
    """How many trials the picture of the front has."""
    return int(page.evaluate("Number(document.getElementById('study').dataset.points ?? 0)"))


def wait_for(is_so: Callable[[], bool], pause: Callable[[], None]) -> None:
    deadline = time.monotonic() + WAIT_MS / 1000
    while not is_so():
        assert time.monotonic() < deadline
        pause()


@pytest.mark.timeout(600)
def test_a_study_is_submitted_and_watched_and_outlives_the_server(database: Path) -> None:
    chromium()
    with serving(database) as address, browsing(address) as page:
        submit(page)
        wait_for(lambda: drawn(page) > 1, lambda: page.wait_for_timeout(200))
        page.locator("#front .points path").first.wait_for()
        first = page.locator("#front .points path").count()
    with open_store(file_url(database), create=False) as store:
        assert is_driven(store.study("watched"))
    with serving(database) as address, browsing(address) as page:
        page.goto("/studies/watched")
        page.locator("#live .state.complete").wait_for()
        wait_for(lambda: drawn(page) == TRIALS, lambda: page.wait_for_timeout(200))
        assert 0 < first < page.locator("#front .points path").count()
        assert page.locator("#hypervolume .js-line").count() == 1
        assert "starts, proposed by baseline" in page.locator(".log").inner_text()
        look_around(page, choose(page, database))


def submit(page: Page) -> None:
    page.goto("/")
    page.get_by_text("There are no studies yet").wait_for()

    page.goto("/submit")
    page.get_by_role("textbox", name="Job file").fill(BAD)
    page.get_by_role("button", name="Check and start").click()
    page.get_by_role("heading", name="2 mistakes").wait_for()
    told = page.locator(".mistakes ol").first.locator("li").all_inner_texts()
    assert told[0] == "line 4: stop.trials: 0 is not possible: it must be at least 1"
    assert told[1].startswith("line 5: x is not a known key: the keys at the top are study")
    assert page.locator(".code .wrong").count() == 2

    page.get_by_role("textbox", name="Job file").fill(
        f"study: watched\nstop: {{trials: {TRIALS}}}{JOB}"
    )
    page.get_by_role("button", name="Check and start").click()
    page.wait_for_url("/studies/watched")


def choose(page: Page, database: Path) -> int:
    """Drags the slider, saves the picture; the trial of the largest size."""
    chosen = [drag(page, value) for value in (1000, 400, 0)]
    assert [number for number, _ in chosen] == [best(database, limit) for _, limit in chosen]
    assert len({number for number, _ in chosen}) > 1
    for kind, begins in (("CSV", b"trial,origin,"), ("PNG", b"\x89PNG"), ("SVG", b"<svg")):
        assert save(page, "[data-picture=front]", kind).startswith(begins)
    return chosen[0][0]


def save(page: Page, place: str, kind: str) -> bytes:
    """The file that a button beside a picture gives."""
    with page.expect_download() as saved:
        page.locator(place).get_by_role("button", name=kind).click()
    return saved.value.path().read_bytes()


def look_around(page: Page, trial: int) -> None:
    """Every page on a phone: nothing lies beside it."""
    configuration = f"/studies/watched/trials/{trial}"
    paths = ["/", "/studies/watched", configuration, "/studies/watched/sensitivity", "/submit"]
    page.set_viewport_size({"width": 360, "height": 780})
    wide = [path for path in (*paths, "/compare?a=watched&b=watched") if not fits(page, path)]
    assert wide == []
    page.goto(configuration)
    for kind, begins in (("CSV", b"layer,precision"), ("PNG", b"\x89PNG"), ("SVG", b"<svg")):
        assert save(page, "#bits-title", kind).startswith(begins)
    page.goto("/studies/watched/sensitivity")
    page.locator("#layers .heatmaplayer image, #layers .hm").first.wait_for()
    assert page.locator("#proxy .points path").count() >= 2
