"""Why an attempt has to end early: a signal, a node that is drained, or a driver that ends."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import ray
from ray._private.state import state as cluster_state

from bitfront.errors import UnusableSpool
from bitfront.trial import Cause
from workers.scheduling.spool import Spool

logger = logging.getLogger(__name__)

ENDING_S = 20.0
"""How long a worker that was told to end may continue with what it does, to save it."""

_LOOK_S = 0.5


class PreemptionHandler:
    """What a worker process knows of its own end.

    SIGTERM ends an idle worker at once. One that works has `ENDING_S` seconds: a training is
    saved after its next step, an evaluation may get through.
    """

    def __init__(self) -> None:
        self._is_told = False
        self._is_working = False
        self._looked_s = 0.0
        self._cause: Cause | None = None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGALRM, self._on_alarm)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._is_told = True
        if not self._is_working:
            sys.exit(1)
        logger.warning("SIGTERM: saving what is trained, then ending")
        signal.setitimer(signal.ITIMER_REAL, ENDING_S)

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        sys.exit(1)

    @contextmanager
    def working(self) -> Iterator[None]:
        """For the length of this block there is something worth saving."""
        self._is_working = True
        try:
            yield
        finally:
            self._is_working = False

    def begin(self, spool: Spool, epoch: int) -> None:
        """Takes the next attempt up; a process that was told to end takes none."""
        if self._is_told:
            sys.exit(1)
        self._spool, self._epoch = spool, epoch
        self._looked_s = time.monotonic()
        self._cause = None

    def leaves(self) -> bool:
        """Whether this process, or its node, is about to end."""
        return self._is_told or self._cause is Cause.NODE_LOST or node_is_draining()

    def cause(self) -> Cause | None:
        """Why the attempt has to end now; None if it may continue."""
        if self._is_told:
            return Cause.NODE_LOST
        if time.monotonic() - self._looked_s >= _LOOK_S:
            self._looked_s = time.monotonic()
            self._cause = self._look()
        return self._cause

    def _look(self) -> Cause | None:
        try:
            if self._spool.is_ending(self._epoch):
                return Cause.CANCELLED
        except UnusableSpool as error:
            logger.warning("it is not known whether the driver ends: %s", error)
        return Cause.NODE_LOST if node_is_draining() else None


def node_is_draining() -> bool:
    """Whether Ray was told that this node will go away soon; never without Ray."""
    if not ray.is_initialized():
        return False
    node = ray.get_runtime_context().get_node_id()
    return node in cluster_state.get_draining_nodes()
