"""Pictures of the pages of `bitfront serve`, for docs/images: light, dark, and on a phone.

The database has two studies of the same model, such as that of `bitfront demo` and one beside it.

    python -m benchmarks.screenshots --db demo-output/bitfront.db --study demo --other narrow
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import click
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.browser import chromium, serving

BAD_JOB: Final = """\
study: pets
model: {source: open_clip, name: ViT-B-32}
data: {source: image_folder, path: pets}
space: {weight_bits: [2, 3, 4, 9]}
search: {budget: 5}
stop: {trials: 0}
"""
PHONE: Final = 360
DESK: Final = 1280


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of one page.

    Attributes:
        name: Its file, without the suffix.
        path: The page, with `{study}`, `{other}` and `{trial}`.
        width: Of the browser's window, in pixels.
        height: As much of the page as is shown.
        scheme: Light or dark.
    """

    name: str
    path: str
    width: int
    height: int
    scheme: Literal["light", "dark"] = "light"


PICTURES: Final = (
    Picture("serve-studies", "/", DESK, 460),
    Picture("serve-study", "/studies/{study}", DESK, 1800),
    Picture("serve-study-dark", "/studies/{study}", DESK, 1800, "dark"),
    Picture("serve-study-phone", "/studies/{study}", PHONE, 1500),
    Picture("serve-sensitivity", "/studies/{study}/sensitivity", DESK, 1640),
    Picture("serve-compare", "/compare?a={study}&b={other}", DESK, 1600),
    Picture("serve-trial", "/studies/{study}/trials/{trial}", DESK, 1100),
    Picture("serve-trial-dark", "/studies/{study}/trials/{trial}", DESK, 1100, "dark"),
    Picture("serve-trial-phone", "/studies/{study}/trials/{trial}", PHONE, 1300),
    Picture("serve-submit", "/submit", DESK, 1060),
)


@click.command()
@click.option("--db", required=True, help="The database.")
@click.option("--study", required=True, help="The study that is shown.")
@click.option("--other", required=True, help="The one beside it.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/images"))
def main(db: str, study: str, other: str, out: Path) -> None:
    """Draws every picture."""
    with serving(db) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for picture in PICTURES:
            _draw(browser, address, picture, {"study": study, "other": other}, out)
        browser.close()


def _draw(
    browser: Browser, address: str, picture: Picture, names: Mapping[str, str], out: Path
) -> None:
    page = browser.new_page(
        base_url=address,
        viewport={"width": picture.width, "height": picture.height},
        color_scheme=picture.scheme,
        device_scale_factor=1,
    )
    page.goto(picture.path.format(**names, trial=_chosen(page, names["study"], picture)))
    if picture.path == "/submit":
        page.get_by_role("textbox", name="Job file").fill(BAD_JOB)
        page.get_by_role("button", name="Check and start").click()
        page.locator(".mistakes").wait_for()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(800)
    page.screenshot(path=out / f"{picture.name}.png")
    page.close()


def _chosen(page: Page, study: str, picture: Picture) -> str:
    """The trial that the slider of the study's page marks first."""
    if "{trial}" not in picture.path:
        return ""
    page.goto(f"/studies/{study}")
    chosen = page.locator("#choice [data-trial]")
    chosen.wait_for()
    return str(chosen.get_attribute("data-trial"))


if __name__ == "__main__":
    main()
