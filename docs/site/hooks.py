"""The hooks of mkdocs: generated pages join the site, and links that leave `docs/` stay in it.

A page links to files of the repository by relative paths, as a code host follows them. In the site
each such file is a page of its own.
"""

import sys
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

# mkdocs runs this file by its path, from wherever it was started.
sys.path.insert(0, str(Path(__file__).parents[2]))

from docs.site import commands, database, http, job, links, python

_GENERATED: Final = {
    "reference/job.md": job.page,
    "reference/commands.md": commands.page,
    "reference/python.md": python.page,
    "reference/http.md": http.page,
}
_DECISIONS: Final = "decisions"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The decisions join the navigation in their order."""
    pages = sorted(Path(config.docs_dir, _DECISIONS).glob("*.md"))
    listed = [f"{_DECISIONS}/index.md", *(f"{_DECISIONS}/{page.name}" for page in pages)]
    parts = config.nav or []
    config.nav = [{"Decisions": listed} if "Decisions" in part else part for part in parts]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Generated pages, and the files of the repository that a page links to."""
    for uri, page in _GENERATED.items():
        files.append(File.generated(config, uri, content=page()))
    decisions = Path(config.docs_dir, _DECISIONS)
    files.append(File.generated(config, f"{_DECISIONS}/index.md", content=_list(decisions)))
    pages = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for uri, text in links.repository_pages(pages).items():
        files.append(File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """The page with its links as the site has them; the home page and the tables with more."""
    uri = page.file.src_uri
    if uri == "index.md":
        page.meta["hide"] = ["navigation", "toc"]
        markdown = markdown.replace("\n", f"\n\n{links.lead()}\n", 1)
    if uri == "schema.md":
        markdown = database.page(markdown)
    return links.rewritten(markdown, uri)


def _list(folder: Path) -> str:
    titles = (
        (page.name, page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "))
        for page in sorted(folder.glob("*.md"))
    )
    lines = [f"- [{title}]({name})" for name, title in titles]
    return "\n".join(["# Decisions", "", "Why things are as they are.", "", *lines, ""])
