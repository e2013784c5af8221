"""The one maker of captions: names of classes as words, and templates filled with them."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from bitfront.errors import SpecError
from bitfront.spec import CLASS_LISTS

if TYPE_CHECKING:
    import inflect

_WORDNET_ID = re.compile(r"n\d{8}")
_IDENTIFIER = re.compile(
    r"n\d{8}|[\d\s]+|(?=\w*\d)[0-9a-f]{8,}|(class|label|category|id)[\s_-]*\d+", re.IGNORECASE
)
_EIGHT = re.compile(r"8|1[18](?!\d)")  # eight, eleven and eighteen begin with a vowel
# A hyphen after a single letter belongs to the word: t-shirt, x-ray.
_JOINT = re.compile(r"_+|(?<![\W_]\w)(?<!^\w)-+|-+(?=-)")
_ARTICLE = re.compile(r"\b([Aa])n? (?=\{\})")


@cache
def _articles() -> "inflect.engine":
    """What knows which words take "an"; loaded where a template has an article before the name."""
    import inflect  # it checks its types at run time, and takes a second of every process

    return inflect.engine()


def clean_name(name: str) -> str:
    """A class's name as words: `wheaten-terrier` and `aquarium_fish` get their spaces.

    Underscores become spaces, and so do hyphens in a name without spaces, except after a
    single letter, as in `t-shirt`. A name with spaces is already words, and keeps its hyphens.
    """
    words = unicodedata.normalize("NFC", name).strip()
    if not re.search(r"\s", words):
        words = _JOINT.sub(" ", words)
    return " ".join(words.replace("_", " ").split())


def fill(template: str, name: str) -> str:
    """A template with the name in the place of `{}`; `a {}` becomes `an aquarium fish`."""

    def article(match: re.Match[str]) -> str:
        if _EIGHT.match(name):
            return f"{match[1]}n "
        needed = str(_articles().a(name)).partition(" ")[0]
        return f"{match[1]}{needed[1:]} "

    return _ARTICLE.sub(article, template).replace("{}", name)


def looks_like_identifier(name: str) -> bool:
    """Whether a class's name is a code, such as `n02123045` or `class_7`, and no word."""
    return _IDENTIFIER.fullmatch(name) is not None


def class_names(
    found: Sequence[str], given: Mapping[str, str] | Sequence[str] | str | None, title: str
) -> tuple[str, ...]:
    """What the classes are called in captions.

    Args:
        found: The classes as the data name them, in the order of the labels.
        given: `data.classes`: a mapping from those to names, a list in the order of the labels,
            the name of a well-known data set, or a JSON, YAML or text file with one of these.
            None cleans the names that were found; WordNet identifiers get ImageNet's names.
        title: What a message calls the data.

    Raises:
        SpecError: A class has no name, a name is empty, two are alike, or the file cannot be
            read.
    """
    names = _named(found, _read(given) if isinstance(given, str) else given, title)
    for place, name in enumerate(names):
        if not name:
            raise SpecError(
                f"the class {found[place]!r} of {title} has no words in its name: name "
                "it in data.classes"
            )
        if not name.isprintable() or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise SpecError(
                f"the class {found[place]!a} of {title} has a name that is not text: rename it, "
                "or name it in data.classes"
            )
    seen: dict[str, str] = {}
    for origin, name in zip(found, names, strict=True):
        twin = seen.setdefault(name, origin)
        if twin != origin:
            raise SpecError(
                f"the classes {twin!r} and {origin!r} of {title} are both called {name!r}, so no "
                "caption tells them apart: rename one, or name them in data.classes"
            )
    return names


def names_in(given: Mapping[str, str] | Sequence[str] | str) -> list[str]:
    """The names that `data.classes` gives: those of a list, or of a mapping's values each once.

    Raises:
        SpecError: The file cannot be read.
    """
    content = _read(given) if isinstance(given, str) else given
    return list(dict.fromkeys(content.values()) if isinstance(content, Mapping) else content)


def _named(
    found: Sequence[str], given: Mapping[str, str] | Sequence[str] | None, title: str
) -> tuple[str, ...]:
    if given is None:
        synsets = _imagenet() if all(map(_WORDNET_ID.fullmatch, found)) else {}
        if all(name in synsets for name in found):
            return tuple(synsets[name] for name in found)
        return tuple(map(clean_name, found))
    if isinstance(given, Mapping):
        missing = [name for name in found if name not in given]
        if missing:
            raise SpecError(
                f"data.classes has no name for {missing[0]!r}"
                f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, "
                f"a class of {title}: add it"
            )
        return tuple(str(given[name]).strip() for name in found)
    if len(given) != len(found):
        raise SpecError(
            f"data.classes has {len(given)} names, but {title} has {len(found)} classes: give one "
            "for each, in the order of the labels"
        )
    return tuple(str(name).strip() for name in given)


def _read(place: str) -> Mapping[str, str] | Sequence[str]:
    """A well-known data set's names, or those in a file."""
    if place == "imagenet":
        return _imagenet()
    if place in ("cifar10", "cifar100"):
        names = CIFAR10 if place == "cifar10" else _cifar100()
        return {**{name: clean_name(name) for name in names}, **_by_number(names)}
    path = Path(place)
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = (
            json.loads(text)
            if path.suffix.lower() == ".json"
            else yaml.safe_load(text)
            if path.suffix.lower() in (".yaml", ".yml")
            else [line.strip() for line in text.splitlines() if line.strip()]
        )
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise SpecError(
            f"data.classes: {place} cannot be read ({reason}): give a JSON, YAML or text file, or "
            f"one of {', '.join(CLASS_LISTS)}"
        ) from error
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    if isinstance(content, dict) and all(isinstance(n, str) for n in content.values()):
        return {str(key): name for key, name in content.items()}
    raise SpecError(f"data.classes: {place} must hold a list of names, or a mapping to names")


def _by_number(names: Sequence[str]) -> dict[str, str]:
    return {str(number): clean_name(name) for number, name in enumerate(names)}


@cache
def _imagenet() -> dict[str, str]:
    """The names of ImageNet's classes by WordNet identifier and by number.

    open_clip has the names as CLIP's authors revised them, timm the identifiers in their order.
    """
    from importlib.resources import files

    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    synsets = files("timm").joinpath("data/_info/imagenet_synsets.txt").read_text().split()
    by_synset = dict(zip(synsets, IMAGENET_CLASSNAMES, strict=True))
    return {**by_synset, **{str(n): name for n, name in enumerate(IMAGENET_CLASSNAMES)}}


def _cifar100() -> list[str]:
    from importlib.resources import files

    return files("objectives.data").joinpath("cifar100.txt").read_text().split()


CIFAR10: Final = (
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
