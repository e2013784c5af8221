"""Answers about studies, kept while they hold, so that many who ask cost little more than one."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Final, TypeVar, cast

from cachetools import LRUCache
from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from bitfront.errors import BitfrontError
from storage.records import StudyVersion
from storage.store import Store

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MOST_ANSWERS: Final = 256
_SHORTEST_REST_S: Final = 0.5
_REST: Final = 50
"""An answer is found again only after so many times as long as it took to find."""

_used: ContextVar[list[StudyVersion] | None] = ContextVar("used", default=None)
"""The versions of the answers that the one being found is made from."""


@dataclass(frozen=True)
class Found:
    """An answer, of which version of its study it is, and what it cost.

    Attributes:
        version: The study before it was found, and before what it is made from was found.
        content: The answer.
        at_s: When it was found, by the clock of who keeps it.
        took_s: How long it took.
    """

    version: StudyVersion
    content: object
    at_s: float
    took_s: float

    @property
    def rest_s(self) -> float:
        """How long it is given on before it is found again."""
        return max(_SHORTEST_REST_S, _REST * self.took_s)

    @cached_property
    def body(self) -> bytes:
        """The answer as JSON."""
        return cast("BaseModel", self.content).model_dump_json().encode()

    @cached_property
    def tag(self) -> str:
        """What differs whenever the JSON does."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


@dataclass(slots=True)
class _Kept:
    """The place of an answer; who finds it holds the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    found: Found | None = None


class Answers:
    """Answers about studies, each kept until the next event of its study.

    While a study runs, an answer is given on for a while after an event: for half a second, or 50
    times as long as it took to find, so that finding it again and again takes no more than a
    fiftieth of a core. For as long once more it is still given, and found again by a thread of
    its own meanwhile: then only who asks after a longer pause waits. An answer never outlives the
    state of its study: who sees that a study is complete gets its last front.
    """

    def __init__(
        self,
        store: Store,
        *,
        most: int = _MOST_ANSWERS,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keeps nothing yet.

        Args:
            store: The database.
            most: So many answers are kept.
            clock_s: A clock that never goes back.
        """
        self._store = store
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._kept: LRUCache[Hashable, _Kept] = LRUCache(most)
        self._behind = ThreadPoolExecutor(1, "bitfront-answers")

    def of(self, study: str, question: Hashable, answer: Callable[[], T]) -> T:
        """The answer to a question about a study.

        Raises:
            BitfrontError: As `answer` does; nothing is kept.
        """
        return cast("T", self._found(study, question, answer).content)

    def response(
        self, request: Request, study: str, question: Hashable, answer: Callable[[], BaseModel]
    ) -> Response:
        """The answer as JSON, with a tag; who shows the tag is told that nothing has changed."""
        found = self._found(study, question, answer)
        headers = {"etag": found.tag}
        if request.headers.get("if-none-match") == found.tag:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(found.body, headers=headers, media_type="application/json")

    def close(self) -> None:
        """Ends the thread that finds answers again."""
        self._behind.shutdown(cancel_futures=True)

    def _found(self, study: str, question: Hashable, answer: Callable[[], object]) -> Found:
        version = self._store.version(study)
        with self._lock:
            kept = self._kept.setdefault((study, question), _Kept())
        found = kept.found
        if found is None or not self._may_wait(found, version):
            with kept.lock:
                found = kept.found
                if found is None or not self._holds(found, version):
                    found = kept.found = self._find(version, answer)
        elif not self._holds(found, version):
            self._behind.submit(self._find_again, kept, study, answer)
        used = _used.get()
        if used is not None:
            used.append(found.version)
        return found

    def _find(self, version: StudyVersion, answer: Callable[[], object]) -> Found:
        used: list[StudyVersion] = []
        before = _used.set(used)
        started_s = self._clock_s()
        try:
            content = answer()
        finally:
            _used.reset(before)
        ended_s = self._clock_s()
        oldest = min((version, *used), key=lambda one: one.last_event)
        return Found(oldest, content, ended_s, ended_s - started_s)

    def _holds(self, found: Found, version: StudyVersion) -> bool:
        """Whether an answer is true, or young enough."""
        return found.version == version or (
            _is_alike(found, version) and self._clock_s() - found.at_s < found.rest_s
        )

    def _may_wait(self, found: Found, version: StudyVersion) -> bool:
        """Whether an answer is true, or may be given on while it is found again."""
        return found.version == version or (
            _is_alike(found, version) and self._clock_s() - found.at_s < 2 * found.rest_s
        )

    def _find_again(self, kept: _Kept, study: str, answer: Callable[[], object]) -> None:
        if not kept.lock.acquire(blocking=False):
            return  # it is found already
        try:
            version = self._store.version(study)
            if kept.found is None or not self._holds(kept.found, version):
                kept.found = self._find(version, answer)
        except BitfrontError:  # who asks next is told
            logger.debug("an answer about %s could not be found again", study, exc_info=True)
        finally:
            kept.lock.release()


def _is_alike(found: Found, version: StudyVersion) -> bool:
    """Whether a study is the one, and in the state, that an answer is about."""
    old = found.version
    return (old.made_at, old.state) == (version.made_at, version.state)
