"""Where the spool of a study is, on the machine of its driver and on its workers."""

import os

from platformdirs import user_state_path

from bitfront.files import SharedPath, shared_path
from storage.records import StudyRecord
from workers.scheduling.spool import Spool


def study_spool(url: str, study: StudyRecord) -> Spool:
    """A study's own folder.

    Its name holds the moment of creation: a study that is deleted and made anew under the same
    name must not find results of the old one.
    """
    return Spool(spool_root(url) / f"{study.name}-{study.created_at:%Y%m%dT%H%M%S%f}")


def spool_root(url: str) -> SharedPath:
    """Where workers leave results: beside a SQLite file, else in the person's state folder.

    BITFRONT_SPOOL names another place, a folder or a URL that fsspec knows; on several machines
    it must be one that all share.

    Raises:
        SpecError: That URL's protocol is unknown, or its package is not installed.
    """
    folder = os.environ.get("BITFRONT_SPOOL")
    if folder is None:
        prefix = "sqlite:///"
        state = user_state_path("bitfront") / "spool"
        folder = f"{url.removeprefix(prefix)}.spool" if url.startswith(prefix) else str(state)
    return shared_path(folder)
