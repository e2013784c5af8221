"""Where a job's files may lie, on machines that run the jobs of several people."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bitfront.errors import SpecError
from bitfront.job.document import place_name
from bitfront.job.paths import named_paths
from bitfront.spec import LOCAL_FOLDER, JobSpec

VARIABLE: Final = "BITFRONT_ROOTS"


def check_allowed_roots(spec: JobSpec) -> None:
    """Refuses a job that names a file outside of the folders in BITFRONT_ROOTS.

    The variable holds folders, separated as in PATH; without it every file may be named.
    Links are followed before a path is judged.

    Raises:
        SpecError: A path of the job lies elsewhere.
    """
    for field, text in _local_paths(spec):
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


def _local_paths(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Every text of the job that is a path of this machine, with the field it is in."""
    for place, text in named_paths(spec):
        local = text.removeprefix(LOCAL_FOLDER)
        is_given = local != text or local.startswith((".", "~", "/"))
        if place[0] != "model" or is_given or Path(local).exists():
            yield place_name(place), local
