"""Where a relative link of a page leads, in the repository and in the site."""

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]
_REPOSITORY: Final = "repository/"
_LINK: Final = re.compile(r"(?<=\]\()(?![a-z]+:)([^)\s#]+)(?=(?:#[^)\s]*)?\))")
_FENCE: Final = re.compile(r"^(```+|~~~+).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_LANGUAGES: Final = {".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".py": "python"}


def repository_pages(pages: Mapping[str, str]) -> dict[str, str]:
    """The files outside of `docs/` that pages lead to, each as a page: its place and its text.

    Args:
        pages: The pages of `docs/`: place in the site and text.
    """
    found = dict[str, str]()
    waiting = [path for uri, text in pages.items() for path in _targets(text, uri)]
    while waiting:
        path = waiting.pop()
        uri = _uri(path)
        if uri.startswith(_REPOSITORY) and uri not in found and (_ROOT / path).exists():
            found[uri] = _as_page(path)
            waiting += _targets(found[uri], uri)
    return found


def rewritten(text: str, uri: str) -> str:
    """The text of the page at `uri` with each relative link as the site has it."""

    def replaced(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(_folder(uri), link[1]))
        return posixpath.relpath(_uri(path), posixpath.dirname(uri) or ".")

    pieces, start = list[str](), 0
    for fence in _FENCE.finditer(text):
        pieces += [_LINK.sub(replaced, text[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*pieces, _LINK.sub(replaced, text[start:])])


def lead() -> str:
    """What bitfront is and for whom, as the README begins."""
    text = (_ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition("\n\n")[2].partition("\n## ")[0].replace("](docs/", "](").strip()


def _targets(text: str, uri: str) -> Iterator[str]:
    """The paths in the repository that the page at `uri` leads to."""
    for link in _LINK.finditer(_FENCE.sub("", text)):
        yield posixpath.normpath(posixpath.join(_folder(uri), link[1]))


def _folder(uri: str) -> str:
    """The folder of the repository that the links of a page start from."""
    if uri.startswith(_REPOSITORY):
        return posixpath.dirname(uri.removeprefix(_REPOSITORY))
    return posixpath.dirname(f"docs/{uri}")


def _uri(path: str) -> str:
    """The place in the site of a file or folder of the repository."""
    if path.startswith("docs/"):
        uri = path.removeprefix("docs/")
        return f"{uri}/index.md" if (_ROOT / path).is_dir() else uri
    return f"{_REPOSITORY}{path}" if path.endswith(".md") else f"{_REPOSITORY}{path}.md"


def _as_page(path: str) -> str:
    place = _ROOT / path
    if place.is_dir():
        names = sorted(
            f"{path}/{file.name}"
            for file in place.iterdir()
            if not file.name.startswith((".", "_"))
        )
        return "\n".join([f"# {path}", "", *(f"- `{name}`" for name in names), ""])
    text = place.read_text(encoding="utf-8")
    if place.suffix == ".md":
        return text
    return f"# {path}\n\n````{_LANGUAGES.get(place.suffix, 'text')}\n{text.rstrip()}\n````\n"
