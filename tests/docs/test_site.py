"""The documentation as a site: no warning, nothing from the network, links that lead on."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from playwright.sync_api import sync_playwright

import bitfront as bf
from bitfront.job.json_schema import job_schema
from service.cli import main
from tests.support.browser import chromium

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
FENCE = re.compile(r"^(```+).*?^\1", re.MULTILINE | re.DOTALL)
BASE = "http://site/"
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


class Elements(HTMLParser):
    """What a page leads to, what a browser loads for it, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links = list[str]()
        self.loaded = list[str]()
        self.anchors = set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(found["href"])
        elif "src" in found:
            self.loaded.append(found["src"])


def elements(site: Path) -> dict[str, Elements]:
    return {
        str(page.relative_to(site)): Elements(page.read_text()) for page in site.rglob("*.html")
    }


def test_a_page_loads_nothing_from_the_network(site: Path) -> None:
    found = elements(site)
    styles = "".join(style.read_text() for style in site.rglob("*.css"))

    loaded = {place for page in found.values() for place in page.loaded}
    assert len(loaded) > 10
    assert [place for place in loaded if re.match(r"\w+:|//", place)] == []
    assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:|//)[^)]*", styles) == []


def test_every_link_within_the_site_has_its_page_and_its_anchor(site: Path) -> None:
    found = elements(site)
    broken, followed = [], 0
    for name, page in found.items():
        for link in page.links + page.loaded:
            place, anchor = urldefrag(urljoin(f"{BASE}{name}", link))
            if not place.startswith(BASE) or name == "404.html":  # which has absolute links
                continue
            followed += 1
            target = unquote(place.removeprefix(BASE))
            is_there = (site / target).is_file()
            if not is_there or (anchor and unquote(anchor) not in found[target].anchors):
                broken.append((name, link))

    assert followed > 1000
    assert broken == []


def slug(heading: str) -> str:
    """The anchor of a heading on a code host."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_on_where_the_code_is_read(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        place, anchor = urldefrag(link)
        if re.match(r"\w+:", link):
            continue
        target = page.parent / place if place else page
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        if not target.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(link)

    assert broken == []


def test_every_key_command_and_name_is_in_the_reference(site: Path) -> None:
    reference = {page.stem: page.read_text() for page in (site / "reference").glob("*.html")}
    definitions = job_schema()["$defs"]
    assert isinstance(definitions, dict)
    keys = {key for section in definitions.values() for key in section.get("properties", ())}

    assert {key for key in keys if f"<code>{key}</code>" not in reference["job"]} == set()
    assert {name for name in main.commands if f'id="{name}"' not in reference["commands"]} == set()
    assert {name for name in bf.__all__ if f"bf.{name}" not in reference["python"]} == set()
    assert "/studies/{study}/best" in reference["http"]
    assert 'id="trial_samples"' in (site / "schema.html").read_text()


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Requests are not logged."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_asks_nobody_else_and_pages_fit_its_width(address: str, width: int) -> None:
    asked, errors, wide = set[str](), list[str](), list[str]()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("request", lambda request: asked.add(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in ("index", "reference/job", "schema", "results"):
            page.goto(f"{address}{name}.html", wait_until="networkidle")
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.append(name)
        browser.close()

    assert f"{address}index.html" in asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert (errors, wide) == ([], [])
