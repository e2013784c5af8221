"""Tasks that installed packages bring: found by entry points, run only where a job names one."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from bitfront.errors import SpecError

GROUP: Final = "bitfront.tasks"
"""The group of entry points."""


@dataclass(frozen=True, slots=True)
class InstalledTask:
    """A task that a package brings.

    Attributes:
        name: As a job names it.
        package: The name of the installed package.
        version: Its version.
        entry: Where its maker is.
    """

    name: str
    package: str
    version: str
    entry: EntryPoint

    @property
    def title(self) -> str:
        """What a message calls it."""
        return f"task {self.name} of {self.package} {self.version}"

    @property
    def identity(self) -> list[str]:
        """What results depend on: package, version and the hash of its code.

        The code is each file of the module or package that the entry point names, so that an
        editable installation whose version stays has another identity after every change.

        Raises:
            SpecError: There is no such module.
        """
        return [self.package, self.version, self._code_digest()]

    def load(self) -> object:
        """What the entry point names; the package's code runs.

        Raises:
            SpecError: It cannot be imported.
        """
        try:
            found: object = self.entry.load()
        except (ImportError, AttributeError) as error:
            raise SpecError(
                f"data.task: the {self.title} cannot be imported ({error}): install what it needs, "
                f"or correct its entry point {self.entry.value!r}"
            ) from error
        return found

    def _code_digest(self) -> str:
        module = self.entry.module.partition(".")[0]
        found = find_spec(module)  # of a package without dots: nothing of it runs
        if found is None:
            raise SpecError(
                f"data.task: the {self.title} names the module {module}, which is not installed: "
                "install the package again"
            )
        code = hashlib.sha256()
        for name, path in _files(found.origin, found.submodule_search_locations):
            code.update(f"{name}/{path.stat().st_size}/".encode(errors="surrogateescape"))
            code.update(path.read_bytes())
        return code.hexdigest()


def installed_task(name: str) -> InstalledTask:
    """The task of a name.

    Raises:
        SpecError: No package, or more than one, brings it.
    """
    found = sorted({(task.package, task.version): task for task in _all(name)}.items())
    if len(found) == 1:
        return found[0][1]
    if found:
        packages = " and ".join(package for (package, _), _ in found)
        raise SpecError(f"data.task: {packages} both bring a task {name}: uninstall one of them")
    known = sorted({task.name for task in _all()})
    way = f"write {' or '.join(known)}, or install" if known else "install"
    raise SpecError(
        f"data.task: no installed package brings a task {name}: {way} the package that does on "
        "every machine of the study"
    )


def _all(name: str | None = None) -> Iterator[InstalledTask]:
    for entry in entry_points(group=GROUP):
        if name in (None, entry.name) and entry.dist is not None:
            yield InstalledTask(entry.name, entry.dist.name, entry.dist.version, entry)


def _files(origin: str | None, folders: object) -> Iterator[tuple[str, Path]]:
    """The files of a module or a package with their names in it, in order."""
    roots = [Path(folder) for folder in folders] if isinstance(folders, list) else []
    if not roots and origin is not None:
        yield Path(origin).name, Path(origin)
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root).as_posix(), path
