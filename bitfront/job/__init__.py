"""A job file becomes a `JobSpec`: every mistake is one sentence with its file, line and field."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bitfront.errors import SpecError
from bitfront.job.document import Document, Place, cut, place_name, read_document
from bitfront.job.error_messages import place_of, sentence
from bitfront.spec import CLASS_LISTS, DataSource, JobSpec, ModelSource

_LOCAL_FOLDER: Final = "local-dir:"  # how open_clip marks a folder

CHECKPOINT_SUFFIXES: Final = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

_LOCAL_KEYS: Final[Mapping[ModelSource, tuple[str, ...]]] = {
    ModelSource.REFERENCE: (),
    ModelSource.OPEN_CLIP: ("weights",),
    ModelSource.TRANSFORMERS: ("name", "weights"),
}


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
        SpecError: The file cannot be read, or it is not a valid job. If there are several
            mistakes, the first one is told with the number of further ones.
    """
    document = read_document(Path(path))
    given = {tuple(key.split(".")): value for key, value in (overrides or {}).items()}
    content = document.content
    for place, value in given.items():
        content = _replaced(content, place, value)
    try:
        spec = JobSpec.model_validate(content)
    except ValidationError as error:
        raise SpecError(_first_mistake(error, document, given)) from error
    if elsewhere:
        _refuse_relative_paths(spec, document)
        return spec
    return _with_found_paths(spec, document)


def job_mistakes(path: Path, overrides: Mapping[str, object] | None = None) -> list[str]:
    """Every mistake of a job file that shows in the file itself, in the order of its lines.

    Where the file's values are right, the first of its paths that is wrong.
    """
    try:
        document = read_document(Path(path))
        given = {tuple(key.split(".")): value for key, value in (overrides or {}).items()}
        content = document.content
        for place, value in given.items():
            content = _replaced(content, place, value)
        _with_found_paths(JobSpec.model_validate(content), document)
    except ValidationError as error:
        mistakes = sorted(
            error.errors(include_url=False),
            key=lambda mistake: document.line(place_of(mistake, JobSpec)),
        )
        return [f"{_where(one, document, given)}: {sentence(one, JobSpec)}" for one in mistakes]
    except SpecError as error:
        return [str(error)]
    return []


def place_text(path: Path, place: Place) -> str:
    """A place of a job file as messages name it: the file and the line."""
    return f"{path}, line {read_document(Path(path)).line(place)}"


def _refuse_relative_paths(spec: JobSpec, document: Document) -> None:
    path = None if spec.data.source is DataSource.REFERENCE else spec.data.path
    folder = spec.model.name.removeprefix(_LOCAL_FOLDER) if _is_open_clip_folder(spec) else None
    for section, key, text in (
        ("data", "path", path),
        ("data", "classes", spec.data.classes_file),
        ("model", "name", folder),
    ):
        if not text or Path(text).is_absolute():
            continue
        raise SpecError(
            f"{document.path}, line {document.line((section, key))}: {section}.{key}: "
            f"{cut(repr(text))} starts at this machine's folder: write the absolute path that the "
            "cluster's machines have"
        )


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


def _first_mistake(
    error: ValidationError, document: Document, given: Mapping[tuple[str, ...], object]
) -> str:
    mistakes = error.errors(include_url=False)
    first = min(mistakes, key=lambda mistake: document.line(place_of(mistake, JobSpec)))
    more = len(mistakes) - 1
    tail = f" (and {more} more mistake{'s' if more > 1 else ''})" if more else ""
    return f"{_where(first, document, given)}: {sentence(first, JobSpec)}{tail}"


def _where(
    mistake: ErrorDetails, document: Document, given: Mapping[tuple[str, ...], object]
) -> str:
    place = place_of(mistake, JobSpec)
    if place in given:
        return "on the command line"
    return f"{document.path}, line {document.line(place)}"


def _with_found_paths(spec: JobSpec, document: Document) -> JobSpec:
    """The job with its local paths made absolute; each of them exists."""
    data, model = spec.data, spec.model
    if data.path and data.source is not DataSource.REFERENCE:
        found = _found(document, ("data", "path"), data.path)
        is_file = data.source is DataSource.QUESTIONS
        if not (found.is_file() if is_file else found.is_dir()):
            wanted = "file" if is_file else "folder"
            kind = f"is not a {wanted}" if found.exists() else "does not exist"
            raise SpecError(
                f"{document.path}, line {document.line(('data', 'path'))}: "
                f"data.path: the {wanted} {found} {kind}"
            )
        data = data.model_copy(update={"path": str(found)})
    if data.classes_file is not None:
        found = _found(document, ("data", "classes"), data.classes_file)
        if not found.is_file():
            raise SpecError(
                f"{document.path}, line {document.line(('data', 'classes'))}: data.classes: "
                f"the file {found} does not exist: give one, a list, a mapping, or one of "
                f"{', '.join(CLASS_LISTS)}"
            )
        data = data.model_copy(update={"classes": str(found)})
    updates: dict[str, str] = {}
    if _is_open_clip_folder(spec):
        updates["name"] = _LOCAL_FOLDER + str(_open_clip_folder(spec, document))
    for key in _LOCAL_KEYS[model.source]:
        text = cast("str | None", getattr(model, key))
        found_model = _found(document, ("model", key), text) if text else None
        if found_model is not None and found_model.exists():
            updates[key] = str(found_model)
        elif text and _looks_local(text):
            raise SpecError(
                f"{document.path}, line {document.line(('model', key))}: "
                f"model.{key}: the file or folder {found_model} does not exist"
            )
    return spec.model_copy(update={"data": data, "model": model.model_copy(update=updates)})


def _found(document: Document, place: Place, text: str) -> Path:
    """The path as the person meant it: from the job file's folder, `~` being their home.

    Raises:
        SpecError: No path can be like that, or what is there cannot be looked at.
    """
    folder = document.path.absolute().parent
    try:
        found = (folder / Path(os.path.expandvars(text)).expanduser()).resolve()
        found.exists()  # says where a name is too long, or a folder is not ours to look into
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError(
            f"{document.path}, line {document.line(place)}: {place_name(place)}: "
            f"{cut(repr(text))} is not a path that can be read: {reason}"
        ) from error
    return found


def _is_open_clip_folder(spec: JobSpec) -> bool:
    model = spec.model
    return model.source is ModelSource.OPEN_CLIP and model.name.startswith(_LOCAL_FOLDER)


def _open_clip_folder(spec: JobSpec, document: Document) -> Path:
    """The folder that `local-dir:` names, from the job file's folder."""
    if spec.model.weights is not None:
        raise SpecError(
            f"{document.path}, line {document.line(('model', 'weights'))}: model.weights: the "
            f"folder of {spec.model.name} has its own weights: leave these out, or name the model "
            "that they are of in its place"
        )
    found = _found(document, ("model", "name"), spec.model.name.removeprefix(_LOCAL_FOLDER))
    if not found.is_dir():
        raise SpecError(
            f"{document.path}, line {document.line(('model', 'name'))}: "
            f"model.name: the folder {found} does not exist"
        )
    return found


def _looks_local(text: str) -> bool:
    """Whether a model's name or weights can only be a path, and no name on a hub."""
    return text.startswith(("/", ".", "~", "$")) or text.lower().endswith(CHECKPOINT_SUFFIXES)
