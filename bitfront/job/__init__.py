"""A job file becomes a `JobSpec`: every mistake is one sentence with its file, line and field."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from bitfront.errors import SpecError
from bitfront.job.consistency import inconsistencies
from bitfront.job.document import (
    Document,
    Place,
    cut,
    one_line,
    place_name,
    plain_document,
    read_document,
)
from bitfront.job.error_messages import place_of, sentence
from bitfront.job.paths import named_paths
from bitfront.spec import (
    CLASS_LISTS,
    LOCAL_FOLDER,
    SQLITE,
    DataSource,
    JobSpec,
    ModelSource,
    Section,
    SplitPaths,
)

CHECKPOINT_SUFFIXES: Final = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

_MOST_TOLD: Final = 50
_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_VARIABLE: Final = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)")
_UNNAMED: Final = "unnamed"


@dataclass(frozen=True)
class Examined:
    """A job file and what is wrong in it.

    Attributes:
        document: The file.
        spec: The job without what is wrong, which is left out; None where nothing remains.
        mistakes: Each mistake with its place, in the order of the file's lines.
        unsure: The sections of which something was left out.
        given: What the command line set.
    """

    document: Document
    spec: JobSpec | None
    mistakes: list[tuple[Place, str]]
    unsure: frozenset[str]
    given: frozenset[Place]

    def sound(self) -> JobSpec:
        """The job, which has no mistakes.

        Raises:
            SpecError: It has some; all are told.
        """
        if self.mistakes or self.spec is None:
            raise SpecError(self.told())
        return self.spec

    def told(self, further: Sequence[tuple[Place, str]] = ()) -> str:
        """All mistakes and further ones, a line each, in the order of the file's lines.

        A job that is in no file has no lines to name: each mistake begins with its field.
        """
        every = dict.fromkeys((*self.mistakes, *further))
        found = sorted(every, key=lambda one: self.document.line(one[0]))
        lines = [f"{self._where(place)}{one_line(text)}" for place, text in found[:_MOST_TOLD]]
        if len(found) > _MOST_TOLD:
            lines.append(f"and {len(found) - _MOST_TOLD} more mistakes")
        return "\n".join(lines)

    def _where(self, place: Place) -> str:
        if place in self.given:
            return "on the command line: " if self.document.is_file else ""
        if not self.document.is_file:
            return ""
        return f"{self.document.path}, line {self.document.line(place)}: "


def load_job(
    path: Path, overrides: Mapping[str, object] | None = None, *, elsewhere: bool = False
) -> JobSpec:
    """The specification that a YAML file holds.

    Args:
        path: The file. Relative paths inside of it start at its folder.
        overrides: Dotted keys to values that replace the file's, such as
            `{"stop.trials": 20}`.
        elsewhere: The job runs on other machines: its paths are theirs, absolute, and are
            looked at there.

    Raises:
        SpecError: The file cannot be read, or it is not a valid job: all mistakes that show in
            the file are told, a line each.
    """
    return examine_job(path, overrides, elsewhere=elsewhere).sound()


def examine_job(
    path: Path, overrides: Mapping[str, object] | None = None, *, elsewhere: bool = False
) -> Examined:
    """Every mistake of a job file that shows in the file itself; see `load_job`.

    Raises:
        SpecError: The file cannot be read, or is no mapping in YAML.
    """
    return _examined(read_document(Path(path)), overrides, elsewhere=elsewhere)


def examine_content(
    content: Mapping[str, object],
    folder: Path,
    overrides: Mapping[str, object] | None = None,
    *,
    elsewhere: bool = False,
) -> Examined:
    """Every mistake of a job that a program holds as a mapping.

    Args:
        content: What the job's file would hold.
        folder: Where relative paths in it start.
        overrides: As for `load_job`.
        elsewhere: As for `load_job`.
    """
    return _examined(plain_document(content, folder), overrides, elsewhere=elsewhere)


def _examined(
    document: Document, overrides: Mapping[str, object] | None, *, elsewhere: bool
) -> Examined:
    given = {tuple(key.split(".")): value for key, value in (overrides or {}).items()}
    content = document.content
    for place, value in given.items():
        content = _replaced(content, place, value)
    spec, mistakes = _validated(content)
    idle: list[tuple[Place, str]] = []
    if spec is not None:
        mistaken = {place for place, _ in mistakes}
        idle = [one for one in inconsistencies(spec) if one[0] not in mistaken]
        if elsewhere:
            mistakes += _relative_paths(spec)
        else:
            spec, lost = _with_found_paths(spec, document)
            mistakes += lost
    unsure = frozenset(str(place[0]) for place, _ in mistakes if place)
    known = {place for place, _ in mistakes}
    mistakes += [one for one in idle if one[0] not in known]
    mistakes.sort(key=lambda one: document.line(one[0]))
    return Examined(document, spec, mistakes, unsure, frozenset(given))


def _validated(content: Mapping[str, object]) -> tuple[JobSpec | None, list[tuple[Place, str]]]:
    """The job without what is wrong in it, and each mistake with its place."""
    found: dict[Place, str] = {}
    while True:
        try:
            return JobSpec.model_validate(content), list(found.items())
        except ValidationError as error:
            mistakes = {place_of(one, JobSpec): one for one in error.errors(include_url=False)}
        remaining = content
        for place, mistake in mistakes.items():
            # What was wrong is left out, and then it, or the section it was in, is missing.
            if not any(known[: len(place)] == place for known in found):
                found[place] = sentence(mistake, JobSpec)
                remaining = _without(remaining, place)
        if ("study",) in mistakes:  # its name matters to nothing else
            remaining = {**remaining, "study": _UNNAMED}
        if remaining == content:
            return None, list(found.items())
        content = remaining


def _without(content: Mapping[str, object], place: Place) -> Mapping[str, object]:
    """The content without a place, or without the whole of a list that it is in."""
    if not place or place[0] not in content:
        return content
    key = str(place[0])
    inner = content[key]
    if len(place) > 1 and isinstance(inner, dict) and place[1] in inner:
        return {**content, key: _without(inner, place[1:])}
    return {name: value for name, value in content.items() if name != key}


def _relative_paths(spec: JobSpec) -> list[tuple[Place, str]]:
    found: list[tuple[Place, str]] = []
    for place, text in named_paths(spec):
        path = text.removeprefix(LOCAL_FOLDER)
        may_be_no_path = place[0] == "model" and path == text
        if (
            path
            and not may_be_no_path
            and not Path(path).is_absolute()
            and not _ADDRESS.match(path)
        ):
            mistake = (
                f"{place_name(place)}: {cut(repr(path))} starts at this machine's folder: write "
                "the absolute path that the cluster's machines have"
            )
            found.append((place, mistake))
    return found


def _replaced(content: Mapping[str, object], place: Place, value: object) -> dict[str, object]:
    key = str(place[0])
    if len(place) == 1:
        return {**content, key: value}
    section = content.get(key)
    if section is None:
        section = {}
    if not isinstance(section, dict):  # a mistake of the file, which is told in its own words
        return dict(content)
    return {**content, key: _replaced(section, place[1:], value)}


def _with_found_paths(spec: JobSpec, document: Document) -> tuple[JobSpec, list[tuple[Place, str]]]:
    """The job with its local paths made absolute, and what is wrong with those."""
    mistakes: list[tuple[Place, str]] = []
    sections: dict[str, Section] = {
        "data": spec.data,
        "model": spec.model,
        "tracking": spec.tracking,
    }
    for place, find in _LOCAL_PATHS.items():
        section, key = place
        try:
            found = find(spec, document)
        except SpecError as error:
            mistakes.append((place, f"{place_name(place)}: {error}"))
        else:
            if found is not None:
                sections[section] = sections[section].model_copy(update={key: found})
    return spec.model_copy(update=sections), mistakes


def _data_path(spec: JobSpec, document: Document) -> str | None:
    data = spec.data
    if not data.path or data.source is DataSource.REFERENCE:
        return None
    return _sample_path(spec, document, data.path)


def _sample_path(spec: JobSpec, document: Document, path: str) -> str:
    if spec.data.source is DataSource.WEBDATASET:
        return _shards_path(document, path)
    found = _found(document, path)
    if spec.data.source is DataSource.PACKAGE:  # whose task knows what it needs
        if not found.exists():
            raise SpecError(f"there is nothing at {found}")
        return str(found)
    is_file = spec.data.source.is_file
    if not (found.is_file() if is_file else found.is_dir()):
        wanted = "file" if is_file else "folder"
        kind = f"is not a {wanted}" if found.exists() else "does not exist"
        raise SpecError(f"the {wanted} {found} {kind}")
    return str(found)


def _shards_path(document: Document, path: str) -> str:
    """A folder, a shard, the pattern of several, or an address of one of these."""
    if _ADDRESS.match(path):
        return path
    whole, brace, rest = path.partition("{")
    folder, _, name = whole.rpartition("/") if brace else (path, "", "")
    found = _found(document, folder or ".")
    if not found.exists():
        raise SpecError(f"there is no shard or folder at {found}")
    return str(found / f"{name}{{{rest}") if brace else str(found)


def _split_paths(spec: JobSpec, document: Document) -> SplitPaths | None:
    if spec.data.source is DataSource.REFERENCE:
        return None
    given = spec.data.splits.given
    found = {name: _sample_path(spec, document, path) for name, path in given.items()}
    return spec.data.splits.model_copy(update=found)


def _images_path(spec: JobSpec, document: Document) -> str | None:
    if spec.data.images is None or not spec.data.source.is_file:
        return None
    found = _found(document, spec.data.images)
    if not found.is_dir():
        raise SpecError(f"the folder {found} does not exist")
    return str(found)


def _classes_path(spec: JobSpec, document: Document) -> str | None:
    if spec.data.classes_file is None:
        return None
    found = _found(document, spec.data.classes_file)
    if not found.is_file():
        raise SpecError(
            f"the file {found} does not exist: give one, a list, a mapping, or one of "
            f"{', '.join(CLASS_LISTS)}"
        )
    return str(found)


def _model_name(spec: JobSpec, document: Document) -> str | None:
    if _is_open_clip_folder(spec):
        found = _found(document, spec.model.name.removeprefix(LOCAL_FOLDER))
        if not found.is_dir():
            raise SpecError(f"the folder {found} does not exist")
        return LOCAL_FOLDER + str(found)
    if spec.model.source is not ModelSource.TRANSFORMERS:
        return None
    return _local(document, spec.model.name)


def _model_weights(spec: JobSpec, document: Document) -> str | None:
    text = spec.model.weights
    if text is None or spec.model.source is not ModelSource.OPEN_CLIP:
        return None
    if _is_open_clip_folder(spec):
        raise SpecError(
            f"the folder of {spec.model.name} has its own weights: leave these out, or name the "
            "model that they are of in its place"
        )
    return _local(document, text)


def _tracking_file(spec: JobSpec, document: Document) -> str | None:
    if spec.tracking.mlflow_file is None:
        return None
    found = _found(document, spec.tracking.mlflow_file)
    if not found.parent.is_dir():
        raise SpecError(f"the folder {found.parent} does not exist")
    return f"{SQLITE}{found}"


def _local(document: Document, text: str) -> str | None:
    """The path of what is there, or None where it may be a name on a hub."""
    found = _found(document, text)
    if found.exists():
        return str(found)
    if _looks_local(text):
        raise SpecError(f"the file or folder {found} does not exist")
    return None


_LOCAL_PATHS: Final = {
    ("data", "path"): _data_path,
    ("data", "images"): _images_path,
    ("data", "splits"): _split_paths,
    ("data", "classes"): _classes_path,
    ("model", "name"): _model_name,
    ("model", "weights"): _model_weights,
    ("tracking", "mlflow"): _tracking_file,
}


def _found(document: Document, text: str) -> Path:
    """The path as the person meant it: from the job file's folder, `~` being their home.

    Raises:
        SpecError: No path can be like that, it names a variable that is not set, or what is there
            cannot be looked at.
    """
    if _ADDRESS.match(text):
        raise SpecError(
            f"{cut(repr(text))} is an address, and what a job reads lies on a disk: download it "
            "and give its path, or for a model its name on the hub"
        )
    folder = document.path.absolute().parent
    expanded = os.path.expandvars(text)
    unset = _VARIABLE.search(expanded)
    try:
        found = (folder / Path(expanded).expanduser()).resolve()
        # It says where a name is too long, or a folder is not ours to look into.
        if not found.exists() and unset is not None:
            raise SpecError(f"{cut(repr(text))}: the variable {unset[1]} is not set")
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError(f"{cut(repr(text))} is not a path that can be read: {reason}") from error
    return found


def _is_open_clip_folder(spec: JobSpec) -> bool:
    model = spec.model
    return model.source is ModelSource.OPEN_CLIP and model.name.startswith(LOCAL_FOLDER)


def _looks_local(text: str) -> bool:
    """Whether a model's name or weights can only be a path, and no name on a hub."""
    return text.startswith(("/", ".", "~", "$")) or text.lower().endswith(CHECKPOINT_SUFFIXES)
