"""Where a job's files may lie, on machines that run the jobs of several people."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bitfront.errors import SpecError
from bitfront.spec import LOCAL_FOLDER, DataSource, JobSpec, ModelSource

VARIABLE: Final = "BITFRONT_ROOTS"


def check_allowed_roots(spec: JobSpec) -> None:
    """Refuses a job that names a file outside of the folders in BITFRONT_ROOTS.

    The variable holds folders, separated as in PATH; without it every file may be named.
    Links are followed before a path is judged.

    Raises:
        SpecError: A path of the job lies elsewhere.
    """
    for field, text in _paths(spec):
        is_outside = bool(_roots()) and "://" in text  # an address lies in no folder
        if is_outside or not is_allowed(Path(text).expanduser()):
            raise SpecError(
                f"{field}: {text} lies outside of the folders that this machine gives to jobs "
                f"({VARIABLE}): move it into one of them"
            )


def is_allowed(path: Path) -> bool:
    """Whether a path, its links followed, lies in one of the folders in BITFRONT_ROOTS.

    Without the variable every path does.
    """
    named = _roots()
    place = path.resolve()
    return not named or any(place.is_relative_to(Path(root).resolve()) for root in named)


def _roots() -> list[str]:
    return [root for root in os.environ.get(VARIABLE, "").split(os.pathsep) if root]


def _paths(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Every text of the job that is a path of this machine, with the field it is in."""
    if spec.data.path and spec.data.source is not DataSource.REFERENCE:
        yield "data.path", spec.data.path
    for name, path in spec.data.splits.given.items():
        yield f"data.splits.{name}", path
    if spec.data.images is not None:
        yield "data.images", spec.data.images
    if spec.data.classes_file is not None:
        yield "data.classes", spec.data.classes_file
    if spec.tracking.mlflow_file is not None:
        yield "tracking.mlflow", spec.tracking.mlflow_file
    if spec.model.source is ModelSource.REFERENCE:
        return
    for field, text in (("model.name", spec.model.name), ("model.weights", spec.model.weights)):
        local = (text or "").removeprefix(LOCAL_FOLDER)
        # Other names are those of a hub, or of a library's own weights.
        if text and (local != text or local.startswith((".", "~", "/")) or Path(local).exists()):
            yield field, local
