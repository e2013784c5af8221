"""A job file that came over HTTP: everything that is wrong with it, before anything is started."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from bitfront.errors import SpecError
from bitfront.job import Examined, examine_job
from bitfront.job.allowed_roots import check_allowed_roots
from bitfront.job.document import Place, cut, one_line, place_name
from bitfront.job.paths import named_paths
from bitfront.spec import JobSpec
from service.http.problems import Mistake, Refused

JSON_TYPES: Final = frozenset({"application/json"})
YAML_TYPES: Final = frozenset(
    {"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"}
)

_LINE: Final = re.compile(r"(?:, line (\d+))?:? ?")
_WORDS_BEFORE: Final = "the job file"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found: mistakes by line, what may be a mistake, and what is worth knowing."""

    mistakes: tuple[Mistake, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def write_job(body: bytes, media_type: str, path: Path) -> None:
    """Writes the body of a request as a job file.

    Raises:
        Refused: The body is of another type, or is not JSON where it says so.
    """
    if media_type in YAML_TYPES:
        path.write_bytes(body)
        return
    if media_type not in JSON_TYPES:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "a job is sent with the content-type application/yaml or application/json, not "
            + (cut(repr(media_type)) if media_type else "without one"),
        )
    try:
        content = json.loads(body, object_pairs_hook=_without_doubles)
        text = json.dumps(content, indent=1, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise refused(
            [Mistake(message=f"this is not valid JSON: {one_line(reason)[:200]}")]
        ) from error


def refused(mistakes: Sequence[Mistake]) -> Refused:
    """The refusal of a job for all that is wrong with it."""
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    first = mistakes[0]
    place = "" if first.line is None else f"line {first.line}: "
    detail = f"{place}{first.message}{more}"
    return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, detail, mistakes)


def examine(path: Path, *, elsewhere: bool) -> Examined:
    """Everything that is wrong in the file itself.

    No variable of this process is put into a path, and what lies outside of the folders that are
    given to jobs is not looked for: an answer must not tell what is there.

    Args:
        path: The file.
        elsewhere: Whether the job runs on other machines, whose paths it names.

    Raises:
        Refused: It cannot be read as a job at all.
    """
    try:
        examined = examine_job(path, elsewhere=True)
        if examined.spec is None or elsewhere:
            return examined
        wrong = list(_strange_paths(examined.spec))
        if not wrong:
            wrong = list(_outside(examined.spec))
        if not wrong:
            return examine_job(path)
    except SpecError as error:
        raise refused([_as_mistake(str(error), path)]) from error
    places = {place for place, _ in wrong}
    others = [one for one in examined.mistakes if one[0] not in places]
    sections = {str(place[0]) for place in places}
    return Examined(
        examined.document,
        examined.spec,
        [*wrong, *others],
        examined.unsure | sections,
        examined.given,
    )


def mistakes_of(
    examined: Examined, further: Sequence[tuple[Place, str]] = (), *, has_lines: bool
) -> tuple[Mistake, ...]:
    """All mistakes and further ones, in the order of the file's lines."""
    document = examined.document
    found = dict.fromkeys((*examined.mistakes, *further))
    ranked = sorted(found, key=lambda one: document.line(one[0]))
    return tuple(
        Mistake(
            line=document.line(place) if has_lines else None,
            message=one_line(_without_path(text, document.path)),
        )
        for place, text in ranked
    )


def _strange_paths(spec: JobSpec) -> Iterator[tuple[Place, str]]:
    """What is wrong with paths for coming from elsewhere: they need what only a person has."""
    for place, text in named_paths(spec):
        name = place_name(place)
        if "$" in text:
            yield place, f"{name}: {cut(repr(text))} names a variable: write the path itself"
        elif place[0] in ("data", "tracking") and not text.startswith("/"):
            yield (
                place,
                f"{name}: {cut(repr(text))} starts at no folder: write the absolute path that the "
                "machine of the service has",
            )
        elif text.startswith(("~", ".")):
            yield place, f"{name}: {cut(repr(text))} starts at no folder: write an absolute path"


def _outside(spec: JobSpec) -> Iterator[tuple[Place, str]]:
    try:
        check_allowed_roots(spec)
    except SpecError as error:
        field, _, _ = str(error).partition(":")
        yield (*field.split("."),), str(error)


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {cut(repr(double))} is given a second time: keep one of them")
    return content


def _as_mistake(sentence: str, path: Path) -> Mistake:
    """A sentence that begins with the file and perhaps the line, as a mistake."""
    rest = sentence.removeprefix(str(path))
    found = _LINE.match(rest)
    if rest == sentence or found is None:
        return Mistake(message=_without_path(sentence, path))
    if found[1] is None:
        return Mistake(message=_without_path(sentence, path))
    return Mistake(line=int(found[1]), message=_without_path(rest[found.end() :], path))


def _without_path(text: str, path: Path) -> str:
    return text.replace(str(path), _WORDS_BEFORE)
