"""Driving a study: the lease, its heartbeat, and the requests and signals that end it."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from types import FrameType

from bitfront.errors import DatabaseError, LeaseLost
from storage.records import Lease, Request
from storage.store import Store

logger = logging.getLogger(__name__)

LEASE_S = 30.0  # a driver that gave no sign of life for so long is taken for dead
HEARTBEAT_S = 2.0


@dataclass(slots=True)
class StopSignals:
    """What the driver was told to do since it started.

    Attributes:
        stop: Finish what runs, start nothing new.
        pause: Finish what runs, then wait until it is taken back.
        cancel: End now.
        lost: Another driver took the study over: end now, write nothing more.
        reason: Why it ends, for a person.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    pause: threading.Event = field(default_factory=threading.Event)
    cancel: threading.Event = field(default_factory=threading.Event)
    lost: threading.Event = field(default_factory=threading.Event)
    reason: str = "on request"

    def is_over(self) -> bool:
        """Whether the driver is to end."""
        return self.stop.is_set() or self.cancel.is_set()

    def is_winding_down(self) -> bool:
        """Whether nothing new is to be started."""
        return self.is_over() or self.pause.is_set()

    def take(self, request: Request | None) -> None:
        """Takes in what a client asks; a pause ends when nobody asks for it any more."""
        if request is Request.PAUSE:
            self.pause.set()
            return
        self.pause.clear()
        if request is Request.CANCEL:
            self.cancel.set()
        elif request is Request.STOP:
            self.stop.set()


@contextmanager
def held(
    store: Store,
    study: str,
    release: Callable[[Lease, BaseException | None], None],
    on_beat: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Lease, StopSignals]]:
    """Makes this process the study's driver: it holds the lease, and hears requests and signals.

    Args:
        store: The database.
        study: The study.
        release: Called in the end with what ended the block, None if nothing did: gives the
            lease back, and leaves the study in a state.
        on_beat: Called after each heartbeat.

    Raises:
        LeaseLost: Another driver took the study over; nothing is released.
    """
    lease = take(store, study)
    stop_signals = StopSignals()
    with signals(stop_signals), heartbeat(store, lease, stop_signals, on_beat):
        try:
            yield lease, stop_signals
        except LeaseLost:
            raise
        except BaseException as error:
            if stop_signals.lost.is_set():
                raise LeaseLost(lease.name, lease.epoch) from error
            release(lease, error)
            raise
        if stop_signals.lost.is_set():
            raise LeaseLost(lease.name, lease.epoch)
        release(lease, None)


def owner_name() -> str:
    """The host and the process of this driver."""
    return f"{socket.gethostname()}:{os.getpid()}"


def take(store: Store, study: str) -> Lease:
    """Takes the lease of a study; that of a driver which died on this host does not count."""
    holder = store.study(study).owner
    dead = holder if holder is not None and _is_dead(holder) else None
    return store.acquire(study, owner_name(), LEASE_S, dead_owner=dead)


def _is_dead(owner: str) -> bool:
    host, _, process = owner.rpartition(":")
    if host != socket.gethostname() or not process.isdecimal():
        return False
    return not is_running(int(process))


def is_running(pid: int) -> bool:
    """Whether there is a process of that number on this machine, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def heartbeat(
    store: Store, lease: Lease, stop_signals: StopSignals, on_beat: Callable[[], None]
) -> Iterator[None]:
    """Renews the lease in the background, and takes in requests from the database.

    Args:
        store: The database.
        lease: What is renewed.
        stop_signals: What requests become.
        on_beat: Called after each beat that was heard.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            try:
                request = store.heartbeat(lease)
            except LeaseLost:
                stop_signals.lost.set()
                stop_signals.cancel.set()
                return
            except DatabaseError as error:
                # The lease outlasts a short absence; the next beat tries again.
                logger.warning("no heartbeat: %s", error)
                continue
            on_beat()
            stop_signals.take(request)

    # What the log lines of this thread belong to is what this one's do.
    run = copy_context().run
    thread = threading.Thread(target=run, args=(beat,), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def signals(stop_signals: StopSignals) -> Iterator[None]:
    """SIGINT and SIGTERM end the driver gracefully: the study stays and can be resumed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        stop_signals.reason = f"by {signal.Signals(number).name}"
        logger.warning("%s: ending; the study can be resumed", signal.Signals(number).name)
        stop_signals.cancel.set()

    previous = {n: signal.signal(n, end) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
