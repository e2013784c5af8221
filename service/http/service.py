"""What every route needs: the settings, the database, and answers that are kept while they hold."""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Annotated, Final, TypeVar, cast

from cachetools import LRUCache
from fastapi import Depends, Request

from service.http.checking import Checker
from service.http.settings import Settings
from storage.store import Store

T = TypeVar("T")

_MOST_ANSWERS: Final = 256
_PATIENCE: Final = 4


@dataclass(slots=True)
class _Kept:
    """An answer, or the wait for it; times are in seconds of a clock that never goes back."""

    version: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_known: bool = False
    answer: object = None
    made_at_s: float = 0.0
    took_s: float = 0.0

    def is_fresh(self, version: str) -> bool:
        """Whether it may be given where the study is at a version."""
        if self.version == version or not self.is_known:
            return self.version == version
        return time.monotonic() - self.made_at_s < _PATIENCE * self.took_s


class Answers:
    """Answers about a study, kept until its next event; who asks for the same waits for one.

    After an event, an answer is given on for four times as long as it took to find: one that takes
    long, of a study whose trials end all the time, leaves the server time for others.
    """

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
            if kept is None or not kept.is_fresh(version):
                kept = self._kept[key] = _Kept(version)
        with kept.lock:
            if not kept.is_known:
                started_s = time.monotonic()
                kept.answer = answer()
                kept.made_at_s = time.monotonic()
                kept.took_s = kept.made_at_s - started_s
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
