"""A database as a program sees it: its studies, and the way to start one."""

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack, overload

from bitfront.errors import SpecError
from service.api.answers import best_of, front_of
from service.api.connection import Connection
from service.api.found import FoundConfiguration
from service.api.front import Front
from service.api.limits import By, LimitOptions
from service.api.study import Study
from service.database_url import as_url, usual_database
from service.views.html import table_html
from service.views.status import STUDIES_LEFT, studies_cells, studies_table
from storage.records import StudySummary

if TYPE_CHECKING:
    from service.api.comparison import Comparison
    from service.api.jobs import Job

# What reads jobs takes longer to import than a question takes to answer.


def open_database(db: str | os.PathLike[str] | None = None) -> "Database":
    """The database of studies.

    Nothing is read before something is asked, and no file is made before a job is submitted.

    Args:
        db: A file, `sqlite:///PATH` or `postgresql://USER@HOST/NAME`; None takes what
            BITFRONT_DB names, or else the SQLite file in the person's state folder.

    Raises:
        SpecError: It is neither a path nor a URL.
    """
    return Database(usual_database() if db is None else as_url(os.fspath(db)))


class Studies(Sequence[Study]):
    """The studies of a database as they stood when they were read, the newest first.

    Attributes:
        summaries: A line of each.
    """

    def __init__(self, connection: Connection, summaries: Sequence[StudySummary]) -> None:
        """Takes what was read."""
        self._connection = connection
        self.summaries = tuple(summaries)

    def __len__(self) -> int:
        return len(self.summaries)

    @overload
    def __getitem__(self, place: int) -> Study: ...

    @overload
    def __getitem__(self, place: slice) -> list[Study]: ...

    def __getitem__(self, place: int | slice) -> Study | list[Study]:
        if isinstance(place, slice):
            return [Study(self._connection, summary.name) for summary in self.summaries[place]]
        return Study(self._connection, self.summaries[place].name)

    def __str__(self) -> str:
        return studies_table(self.summaries)

    def __repr__(self) -> str:
        return str(self) if self else f"<no studies in {self._connection}>"

    def _repr_html_(self) -> str:
        header, rows = studies_cells(self.summaries)
        return table_html(header, rows, left=STUDIES_LEFT, title=f"studies of {self._connection}")


class Database:
    """A database of studies; a `with` block closes its connections in the end."""

    def __init__(self, url: str) -> None:
        """Names the database.

        Args:
            url: `sqlite:///PATH` or `postgresql://USER@HOST/NAME`.
        """
        self._connection = Connection(url)

    def __repr__(self) -> str:
        return f"<bitfront database {self._connection}>"

    def __str__(self) -> str:
        """Where it is, without a password."""
        return str(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; what is asked afterwards opens new ones."""
        self._connection.close()

    @property
    def connection(self) -> Connection:
        """The way to its store, for what this interface does not have."""
        return self._connection

    def create(self) -> None:
        """Makes a database that is not there, and brings an older one up to date.

        Raises:
            DatabaseError: It cannot be written, or is another program's.
        """
        self._connection.store(create=True)

    @property
    def studies(self) -> Studies:
        """Every study, the newest first, as they stand now.

        Raises:
            DatabaseError: There is no such database, or it cannot be read.
        """
        return Studies(self._connection, self._connection.store().studies())

    def study(self, name: str) -> Study:
        """The study of that name.

        Raises:
            UnknownStudy: There is none.
            DatabaseError: There is no such database, or it cannot be read.
        """
        self._connection.store().study(name)
        return Study(self._connection, name)

    def __getitem__(self, name: str) -> Study:
        return self.study(name)

    def __iter__(self) -> Iterator[Study]:
        return iter(self.studies)

    def best(
        self, *, model: str, by: By = "estimate", **limits: Unpack[LimitOptions]
    ) -> FoundConfiguration:
        """The best configuration within limits that any study of a model found.

        Args:
            model: The model's name or hash.
            by: What stands for the error.
            limits: Upper limits, such as `max_nbytes="40MB"`.

        Raises:
            NothingFits: No trial holds them; the sentence says what comes nearest.
            SpecError: The model is unknown, or its studies cannot be compared.
        """
        return best_of(self._connection, None, model, by, limits)

    def front(self, *, model: str, by: By = "estimate", **limits: Unpack[LimitOptions]) -> Front:
        """The front of all studies of a model, by what all of them minimised.

        Args:
            model: The model's name or hash.
            by: What stands for the error.
            limits: Upper limits, such as `max_nbytes="40MB"`.

        Raises:
            NothingFits: Nothing on the front holds the limits.
            SpecError: The model is unknown, or its studies cannot be compared.
        """
        return front_of(self._connection, None, model, by, limits)

    def compare(self, first: str, second: str) -> "Comparison":
        """Two studies side by side; it draws itself in a notebook.

        Raises:
            UnknownStudy: One of them is not there.
        """
        from service.api.comparison import Comparison

        return Comparison.of(self.study(first), self.study(second))

    def submit(
        self,
        job: "Job",
        *,
        study: str | None = None,
        trials: int | None = None,
        workers: int | None = None,
        warm_start: Sequence[str] = (),
        address: str | None = None,
        resume: bool = False,
        accept_changes: bool = False,
        trust: bool = False,
        wait: bool = True,
    ) -> Study:
        """Runs the search that a job describes.

        Before there is a study, the job, its data and its model are looked at: everything that
        is wrong comes as one `SpecError`, a line each, and nothing is stored.

        Args:
            job: The path of a job file, its content as a mapping, or a `JobSpec`.
            study: Name of the study, instead of the job's.
            trials: How many trials, instead of the job's number.
            workers: Trials that run side by side, instead of the job's number.
            warm_start: Earlier studies of the same model whose fronts are tried first.
            address: A Ray cluster, as for `bitfront submit`; None runs on this machine.
            resume: Goes on with a study of that name if there is one.
            accept_changes: Goes on although its job, model or data changed.
            trust: Opens neither samples nor model: that was done before.
            wait: Shows the progress until the study ends; Ctrl-C ends it. Without, the study is
                driven by a process of its own, which outlives this one.

        Returns:
            The study; its `state` says how it ended, where this waited. One that was sent to a
            cluster is in the database that the cluster's environment names.

        Raises:
            BitfrontError: The job cannot be run, or a study of that name is in the way.
        """
        from service.api.jobs import changes_of
        from service.api.running import submit

        if isinstance(warm_start, str):
            raise SpecError(f"warm_start is a list of studies, such as [{warm_start!r}]")
        changes = changes_of(
            study=study, trials=trials, workers=workers, warm_start=tuple(warm_start)
        )
        name = submit(
            self._connection,
            job,
            changes,
            address=address,
            resume=resume,
            accept_changes=accept_changes,
            trust=trust,
            wait=wait,
        )
        return Study(self._connection, name)

    def profile(
        self,
        job: "Job",
        *,
        study: str | None = None,
        workers: int | None = None,
        address: str | None = None,
    ) -> Study:
        """Measures the blocks and cells of a job's model, and nothing after that.

        Args:
            job: As for `submit`.
            study: Name of the study, instead of the job's.
            workers: Cells that are measured side by side, instead of the job's number.
            address: A Ray cluster that this machine is part of; None runs on this machine.

        Returns:
            The study, with its `profile` and `options`; `resume` runs its trials.

        Raises:
            BitfrontError: The job cannot be run, or a study of that name is in the way.
        """
        from service.api.jobs import changes_of
        from service.api.running import profile

        changes = changes_of(study=study, workers=workers)
        return Study(self._connection, profile(self._connection, job, changes, address))
