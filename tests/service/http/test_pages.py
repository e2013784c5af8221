"""The pages as HTML: what they show, what they escape, who is let in, and what they load."""

import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from bitfront.spec import ErrorMeasure
from service.http.pages.study import MEASURES
from service.http.session import safe_path
from tests.support.served import served

TOKEN = "a-token-of-the-tests-0123456789"
PAGES = (
    "/",
    "/studies/digits",
    "/studies/digits/trials/1",
    "/studies/digits/trials/9",
    "/studies/digits/sensitivity",
    "/compare?a=digits&b=digits",
    "/submit",
    "/login",
)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with served(tmp_path) as client:
        yield client


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_nothing_from_elsewhere_and_runs_nothing_of_its_own_text(
    client: TestClient, path: str
) -> None:
    response = client.get(path)
    elements = Elements(response.text).found

    assert response.status_code == 200
    assert "'unsafe" not in response.headers["content-security-policy"]
    loaded = [
        value
        for tag, own in elements
        for name, value in own.items()
        if name in ("src", "href") and tag in ("script", "link", "img")
    ]
    assert loaded
    assert [place for place in loaded if not str(place).startswith("/static/")] == []
    assert [client.get(str(place)).status_code for place in loaded] == [200] * len(loaded)
    assert [tag for tag, own in elements if tag == "script" and not own.get("src")] == []
    assert [own for _, own in elements if any(name.startswith("on") for name in own)] == []
    assert [own for tag, own in elements if "style" in own or tag == "style"] == []


@pytest.mark.parametrize("path", PAGES)
def test_a_page_can_be_used_without_seeing_it(client: TestClient, path: str) -> None:
    elements = Elements(client.get(path).text).found
    tags = [tag for tag, _ in elements]

    assert (tags.count("main"), tags.count("h1")) == (1, 1)
    assert ("html", {"lang": "en"}) in elements
    assert [own for tag, own in elements if tag == "img" and "alt" not in own] == []
    named = {own.get("for") for tag, own in elements if tag == "label"}
    fields = [own for tag, own in elements if tag == "textarea" or own.get("type") == "password"]
    assert [own for own in fields if own.get("id") not in named] == []


def test_what_a_study_says_is_escaped(client: TestClient) -> None:
    for path in ("/studies/digits", "/studies/digits/trials/9"):
        text = client.get(path).text
        assert "<b>no</b>" not in text
        assert "<i>x</i>" not in text
        assert "&lt;b&gt;no&lt;/b&gt; memory" in text
        assert "Traceback: &lt;i&gt;x&lt;/i&gt;" in text


def test_a_choice_shows_values_bits_and_what_is_next(client: TestClient) -> None:
    text = re.sub(r"\s+", " ", client.get("/studies/digits/choice?max_nbytes=300").text)
    nothing = client.get("/studies/digits/choice?max_nbytes=7").text

    assert 'data-trial="1"' in text
    assert 'title="visual.one: w4a16"' in text
    assert "trial 2</a>: 180 B, 60 B less" in text
    assert "bitfront best digits --max-nbytes 300" in text
    assert "the nearest is trial 3" in nothing


def test_a_problem_is_a_page_for_a_person(client: TestClient) -> None:
    for path, status in (("/studies/none", 404), ("/nothing", 404), ("/studies/a%20b", 422)):
        response = client.get(path)
        assert response.status_code == status
        assert response.headers["content-type"].startswith("text/html")
        assert 'role="alert"' in response.text


def test_a_job_with_mistakes_is_shown_with_its_lines(client: TestClient) -> None:
    text = "study: first\nmodel: {source: reference}\nstop: 5\n<script>alert(1)</script>: 1\n"
    response = client.post("/submit", data={"job": text})

    assert response.status_code == 422
    assert "<script>alert" not in response.text
    assert re.findall(r'<li id="line-(\d+)" class="wrong">', response.text) == ["1", "3", "4"]


def test_a_button_of_another_site_does_nothing(client: TestClient) -> None:
    response = client.post("/studies/digits/delete", headers={"origin": "http://evil.example"})

    assert response.status_code == 403
    assert client.get("/studies/digits").status_code == 200
    assert client.post("/studies/digits/explode").status_code == 404
    assert client.post("/studies/digits/delete").headers["location"] == "/"
    assert client.get("/studies/digits").status_code == 404


def test_a_browser_shows_the_token_once(tmp_path: Path) -> None:
    with served(tmp_path, TOKEN) as client:
        asked = client.get("/studies/digits")
        assert asked.headers["location"] == "/login?next=/studies/digits"
        assert client.get("/login").status_code == 200
        wrong = client.post("/login", data={"token": "another", "next": "/"})
        assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)

        right = client.post("/login", data={"token": TOKEN, "next": "/studies/digits"})

        assert right.headers["location"] == "/studies/digits"
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert client.get("/studies/digits").status_code == 200
        assert client.get("/api/v1/studies").status_code == 200
        client.post("/logout")
        assert client.get("/studies/digits").status_code == 303


@pytest.mark.parametrize(
    "text", ["//evil.example", "http://evil.example", "/\\evil", "evil", "", "/a\nb"]
)
def test_a_login_leads_to_no_other_site(text: str) -> None:
    assert safe_path(text) == "/"


def test_static_files_are_kept_for_good_under_their_version(client: TestClient) -> None:
    text = client.get("/studies/digits").text
    (plotly,) = re.findall(r'src="(/static/[0-9a-f]+/plotly\.js)"', text)
    response = client.get(plotly)
    other = re.sub(r"/static/[0-9a-f]+/", "/static/000000000000/", plotly)

    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert response.headers["content-encoding"] == "gzip"
    assert response.content == files("plotly.package_data").joinpath("plotly.min.js").read_bytes()
    assert client.get(other).headers["cache-control"] == "no-cache"
    for name in ("..%2fapp.py", "app.py", "%2e%2e", "nothing.js"):
        assert client.get(f"/static/0/{name}").status_code == 404


def test_a_wheel_has_all_that_the_pages_are_made_of() -> None:
    root = Path(__file__).parents[3]
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["service.http"]
    folder = root / "service" / "http"
    shipped = {path for pattern in patterns for path in folder.glob(pattern)}
    parts = [folder / "templates", folder / "static"]

    assert {path for part in parts for path in part.iterdir()} == shipped
    assert len(shipped) > 20


def test_every_measure_of_cells_has_its_words() -> None:
    assert set(MEASURES) == set(ErrorMeasure)
