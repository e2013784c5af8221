"""What every route needs: the settings, the database, and answers that are kept while they hold."""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Annotated, Final, TypeVar, cast

from cachetools import LRUCache
from fastapi import Depends, Request

from service.http.checking import Checker
from service.http.settings import Settings
from storage.store import Store

T = TypeVar("T")

_MOST_ANSWERS: Final = 64


@dataclass(slots=True)
class _Kept:
    """An answer, or the wait for it."""

    version: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_known: bool = False
    answer: object = None


class Answers:
    """Answers about a study, kept until its next event; who asks for the same waits for one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: LRUCache[Hashable, _Kept] = LRUCache(_MOST_ANSWERS)

    def of(self, study: str, question: Hashable, answer: Callable[[], T]) -> T:
        """The answer to a question about a study: as it was, if nothing has happened since."""
        version = self._store.version(study)
        key = (study, question)
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept.version != version:
                kept = self._kept[key] = _Kept(version)
        with kept.lock:
            if not kept.is_known:
                kept.answer = answer()
                kept.is_known = True
            return cast("T", kept.answer)


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
        checker: Checks jobs.
        stopping: Set as soon as the server is told to end.
        streams: Who follows events.
    """

    settings: Settings
    store: Store
    answers: Answers
    checker: Checker
    stopping: threading.Event
    streams: Streams


def service_of(request: Request) -> Service:
    """What the application was made with."""
    return cast("Service", request.app.state.service)


ServiceDependency = Annotated[Service, Depends(service_of)]
