"""Failed attempts: what an exception, or the loss of a worker, stands for."""

import os
import socket
import traceback

from bitfront.attempt import Failed
from bitfront.errors import (
    BitfrontError,
    Interrupted,
    InvalidMetric,
    LeaseLost,
    UnavailableDevice,
    UnreachableCluster,
    UnusableSpool,
)
from bitfront.passwords import masked
from bitfront.trial import Cause

# What another time or another node may not show. All other errors of ours are about the job's
# own model, data and settings, which do not change between attempts.
_PASSING = (Interrupted, LeaseLost, UnavailableDevice, UnreachableCluster, UnusableSpool)


def failed_by(error: BaseException) -> Failed:
    """The result of an attempt that an exception ended."""
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    trace = "".join(traceback.format_exception(error))
    is_final = isinstance(error, BitfrontError) and not isinstance(error, _PASSING)
    return Failed(_cause(error), masked(message), masked(trace), is_final=is_final)


def _cause(error: BaseException) -> Cause:
    # torch.OutOfMemoryError is not imported: this module stays light.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Cause.OUT_OF_MEMORY
    if isinstance(error, InvalidMetric):
        return Cause.INVALID_METRIC
    return Cause.USER_ERROR


def lost_worker(reason: str) -> Failed:
    """The result of an attempt whose worker is gone, from what the cluster said of it."""
    reason = masked(reason)
    headline = reason.partition("\n")[0]
    if "low on memory" in reason:
        return Failed(Cause.OUT_OF_MEMORY, f"Ray ended the worker: {headline}", reason)
    lost = "the worker or its node went away"
    return Failed(Cause.NODE_LOST, f"{lost}: {headline}" if reason else lost, reason)


def worker_name() -> str:
    """The host and the process that run this."""
    return f"{socket.gethostname()}:{os.getpid()}"
