"""Mirrors a study while it is driven, in the background; no study waits for it or fails by it."""

import logging
import threading
from contextvars import copy_context
from types import TracebackType
from typing import Final, Self

from bitfront.errors import BitfrontError, LeaseLost
from service.study.mlflow_mirror import MlflowMirror
from service.views.progress import Reporter
from storage.store import Store

logger = logging.getLogger(__name__)

_EVERY_S: Final = 5.0


class Tracking:
    """Keeps a study's copy in MLflow up to date from `start` until its context ends.

    Without a tracking URI it does nothing. What MLflow cannot be told now is told later: by the
    next round, by the driver that resumes the study, or by `bitfront export-mlflow`.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        uri: str | None,
        reporter: Reporter,
        every_s: float = _EVERY_S,
    ) -> None:
        """Takes what it needs; nothing is asked of MLflow yet.

        Args:
            store: Where the study is.
            study: Its name.
            uri: MLflow's tracking URI; None mirrors nothing.
            reporter: Hears once that MLflow does not answer, and once that it does again.
            every_s: How often new trials are looked for.
        """
        self._store = store
        self._study = study
        self._uri = uri
        self._reporter = reporter
        self._every_s = every_s
        self._mirror: MlflowMirror | None = None
        self._is_away = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins, now that there is a study."""
        if self._uri is None:
            return
        run = copy_context().run
        self._thread = threading.Thread(
            target=run, args=(self._follow,), name="tracking", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tells the rest, unless another driver does by now."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        if not isinstance(error, LeaseLost):
            self._mirror_now(conclude=True)

    def _follow(self) -> None:
        self._mirror_now()
        while not self._ended.wait(self._every_s):
            self._mirror_now()

    def _mirror_now(self, *, conclude: bool = False) -> None:
        assert self._uri is not None
        try:
            if self._mirror is None:
                self._mirror = MlflowMirror(self._store, self._study, self._uri)
            self._mirror.update()
            if conclude:
                self._mirror.conclude()
        except BitfrontError as error:
            if not self._is_away:
                self._reporter.warn(
                    f"{error}; the study goes on, and what is missing there is added later, at the "
                    f"latest by 'bitfront export-mlflow {self._study} URI'"
                )
            self._is_away = True
            return
        if self._is_away:
            self._reporter.note("MLflow answers again")
        self._is_away = False
