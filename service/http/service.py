"""What every route needs: the settings, the database, and answers that are kept while they hold."""

import threading
from dataclasses import dataclass
from typing import Annotated, Final, cast

from fastapi import Depends, Request

from service.http.answers import Answers
from service.http.checking import Checker
from service.http.settings import Settings
from service.views.choosing import Known
from storage.store import Store

_MOST_KNOWN: Final = 4


@dataclass(slots=True)
class Streams:
    """How many clients follow events; only the event loop's own thread counts."""

    open: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes share.

    Attributes:
        settings: What the server is set to.
        store: The database.
        answers: Answers that are kept.
        known: What choices look at, of the studies that were asked for last: of many trials it is
            large.
        checker: Checks jobs.
        stopping: Set as soon as the server is told to end.
        streams: Who follows events.
    """

    settings: Settings
    store: Store
    answers: Answers
    known: Answers
    checker: Checker
    stopping: threading.Event
    streams: Streams

    def known_of(self, study: str) -> Known | None:
        """What a choice among the trials of a study looks at; None where samples are not known."""

        def look() -> Known | None:
            measured = self.store.measured(study)
            return None if measured is None else Known.of(measured)

        return self.known.of(study, "known", look)

    def close(self) -> None:
        """Ends what it has started."""
        self.stopping.set()
        self.answers.close()
        self.known.close()
        self.checker.close()


def make_service(settings: Settings, store: Store) -> Service:
    """What the routes share, at the start."""
    return Service(
        settings,
        store,
        Answers(store),
        Answers(store, most=_MOST_KNOWN),
        Checker(),
        threading.Event(),
        Streams(),
    )


def service_of(request: Request) -> Service:
    """What the application was made with."""
    return cast("Service", request.app.state.service)


ServiceDependency = Annotated[Service, Depends(service_of)]
