"""Whether what bitfront needs works on this machine, and what to do where it does not."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from platformdirs import user_cache_path, user_state_path

from bitfront.errors import BitfrontError, DatabaseError
from bitfront.passwords import masked
from bitfront.targets import TARGETS
from bitfront.units import size_text
from service.database_url import file_folder
from service.study.spools import spool_root
from service.study.submission import is_cluster
from service.views.targets import installed_text, installed_version

_LEAST_DISK: Final = 2_000_000_000
_LEAST_MEMORY: Final = 4_000_000_000


class Health(StrEnum):
    """Whether something works: only what fails keeps bitfront from working."""

    OK = "ok"
    ABSENT = "absent"
    WARNING = "warning"
    FAILS = "fails"


@dataclass(frozen=True, slots=True)
class Check:
    """What was found of one thing.

    Attributes:
        name: The thing.
        health: Whether it works.
        detail: What was found.
        advice: What to do; empty where nothing is to be done.
    """

    name: str
    health: Health
    detail: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain JSON content."""
        return {key: str(value) for key, value in asdict(self).items()}


def checks(url: str, address: str | None) -> Iterator[Check]:
    """Looks at one thing after the other; loading torch takes some seconds.

    Args:
        url: The database.
        address: A Ray cluster; None runs on this machine.
    """
    yield from _packages()
    yield from _devices()
    yield from _runtimes()
    yield _database(url)
    yield _folder("spool", lambda: str(spool_root(url)))
    yield _folder("cache", _cache)
    yield _folder("temporary files", tempfile.gettempdir)
    yield from _machine(url)
    yield _cluster(address)


def _packages() -> Iterator[Check]:
    found = f"bitfront {version('bitfront')}, Python {sys.version.split()[0]}"
    yield Check("bitfront", Health.OK, found)
    wanted = [Requirement(text) for text in requires("bitfront") or ()]
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = []
    for one in needed:
        try:
            has = version(one.name)
        except PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(has, prereleases=True):
            wrong.append(f"{one.name} {has} is not {one.specifier}")
    if wrong:
        yield Check("packages", Health.FAILS, "; ".join(wrong), "pip install --upgrade bitfront")
    else:
        yield Check("packages", Health.OK, f"all {len(needed)} are there")


def _devices() -> Iterator[Check]:
    try:
        from workers.process.devices import devices
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
        yield Check("torch", Health.FAILS, reason, "install torch anew, for this machine")
        return
    for device in devices():
        if device.fault is None:
            yield Check(device.name, Health.OK, device.detail)
        else:
            advice = "leave it out with device: cpu, or install a torch that is built for it"
            yield Check(device.name, Health.FAILS, f"{device.detail}: {device.fault}", advice)


def _runtimes() -> Iterator[Check]:
    for target in TARGETS:
        texts = [installed_text(name, target.extra) for name in target.packages]
        missing = [name for name in target.packages if installed_version(name) is None]
        if not missing:
            yield Check(f"runtime {target.name}", Health.OK, ", ".join(texts))
            continue
        install = f"pip install 'bitfront[{target.extra}]'" if target.extra else ""
        detail = f"{', '.join(missing)} not installed: nothing can be built for it"
        yield Check(f"runtime {target.name}", Health.ABSENT, detail, install)


def _database(url: str) -> Check:
    from storage.store import open_store

    shown, folder = masked(url), file_folder(url)
    if folder is not None and not Path(url.removeprefix("sqlite:///")).exists():
        detail = f"{shown} is not there yet: the first study makes it"
        found = _folder("database", lambda: str(folder))
        return found if found.health is Health.FAILS else Check("database", Health.OK, detail)
    try:
        with open_store(url, create=False) as store:
            studies = len(store.studies())
    except DatabaseError as error:
        sentence, _, advice = str(error).partition(": ")
        is_older = "older bitfront" in sentence or "is empty" in sentence
        health = Health.WARNING if is_older else Health.FAILS
        return Check("database", health, sentence, advice or "name another with --db")
    return Check("database", Health.OK, f"{shown}, schema {_schema()}; studies: {studies}")


def _schema() -> str:
    from storage.schema import REVISIONS

    return REVISIONS[-1]


def _folder(name: str, place: Callable[[], str]) -> Check:
    """Whether a file can be written to a folder, or to the nearest one above that is there."""
    variables = {"spool": "BITFRONT_SPOOL", "cache": "BITFRONT_CACHE", "temporary files": "TMPDIR"}
    variable = variables.get(name)
    advice = "name another with --db" if variable is None else f"set {variable} to another one"
    try:
        text = place()
    except BitfrontError as error:
        return Check(name, Health.FAILS, str(error), advice)
    if "://" in text:
        return Check(name, Health.OK, f"{masked(text)}, not looked at")
    folder = Path(text)
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Check(name, Health.FAILS, f"{folder} cannot be written: {error.strerror}", advice)
    return Check(name, Health.OK, str(folder))


def _cache() -> str:
    return os.environ.get("BITFRONT_CACHE") or str(user_cache_path("bitfront"))


def _machine(url: str) -> Iterator[Check]:
    folder = file_folder(url) or user_state_path("bitfront")
    while not folder.exists():
        folder = folder.parent
    total, _, free = shutil.disk_usage(folder)
    low = total > 0 and free < _LEAST_DISK  # a file system without a size holds no files
    advice = "free some, or name a database elsewhere with --db" if low else ""
    health = Health.WARNING if low else Health.OK
    yield Check("disk", health, f"{size_text(free)} free at {folder}", advice)
    page = os.sysconf("SC_PAGE_SIZE")
    memory, left = (page * os.sysconf(f"SC_{name}PHYS_PAGES") for name in ("", "AV"))
    low = memory < _LEAST_MEMORY
    advice = "use a machine with more: a worker takes some 1.5 GB beside its model" if low else ""
    health = Health.WARNING if low else Health.OK
    detail = f"{size_text(memory)}, {size_text(left)} unused, {os.cpu_count()} cores"
    yield Check("memory", health, detail, advice)


def _cluster(address: str | None) -> Check:
    if address is None:
        has = installed_version("ray")
        return Check("cluster", Health.OK, f"this machine, ray {has}")
    from workers.cluster.jobs import ray_version

    if not is_cluster(address):
        return Check("cluster", Health.OK, f"{address}, which is tried when a study starts")
    try:
        found = ray_version(address)
    except BitfrontError as error:
        sentence, _, advice = str(error).partition(": ")
        return Check("cluster", Health.FAILS, sentence, advice)
    mine = installed_version("ray")
    if found != mine:
        detail = f"{address} runs ray {found}, and here is ray {mine}"
        advice = f"pip install ray=={found}, or upgrade the cluster"
        return Check("cluster", Health.FAILS, detail, advice)
    return Check("cluster", Health.OK, f"{address}, ray {found}")
