"""Every error that bitfront raises on purpose; each one crosses processes unharmed."""

import traceback
from difflib import get_close_matches
from typing import Final

_MOST_KNOWN: Final = 12


class BitfrontError(Exception):
    """The root of bitfront's own errors: the message is one sentence for the person.

    Attributes:
        remote_traceback: Where it was raised, as text, if that was in another process.
    """

    remote_traceback: str | None = None


class SpecError(BitfrontError):
    """A job specification, a precision or a command has a value that cannot be used."""


class MissingModel(BitfrontError):
    """The model's name, checkpoint or weights cannot be found."""


class MissingData(BitfrontError):
    """The data set cannot be found, or one of its splits is empty."""


class InvalidSample(BitfrontError):
    """A sample of the data set cannot be used: no image, no caption, an unknown label."""


class InvalidModel(BitfrontError):
    """The model cannot be quantized as it is: a NaN weight, an unknown layer, a wrong shape."""


class InvalidMetric(BitfrontError):
    """A trial yielded a value that is missing or not finite."""

    def __init__(self, objective: str, value: str) -> None:
        # Ray pickles errors back to the driver, and unpickling calls cls(*args).
        super().__init__(objective, value)
        self.objective = objective
        self.value = value

    def __str__(self) -> str:
        return f"the objective {self.objective} came out as {self.value}, not as a finite number"


class InfeasibleBudget(BitfrontError):
    """No plan holds a limit: even the least that any plan needs is more."""

    def __init__(self, limit: str, value: float, least: float, given: tuple[str, ...] = ()) -> None:
        super().__init__(limit, value, least, given)
        self.limit = limit
        self.value = value
        self.least = least
        self.given = given

    def __str__(self) -> str:
        together = f" together with {' and '.join(self.given)}" if self.given else ""
        return (
            f"no plan holds {self.limit} {_number(self.value)}{together}: "
            f"the least possible is {_number(self.least)}"
        )


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"


class UnavailableDevice(BitfrontError):
    """A measurement asks for a device or a kernel that this machine does not have."""


class DatabaseError(BitfrontError):
    """The database cannot be opened, is foreign, or has another schema version."""


class TrackingError(BitfrontError):
    """MLflow does not answer, or rejects a request; no study depends on it."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)
        self.uri = uri
        self.reason = reason

    def __str__(self) -> str:
        return f"MLflow at {self.uri} cannot be used ({self.reason}): check tracking.mlflow"


class UnreachableCluster(BitfrontError):
    """A Ray cluster does not answer; whatever runs on it may continue."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the cluster at {self.address} cannot be reached ({self.reason}): check --address, "
            "and the tunnel to it; what runs there is not affected"
        )


class UnstartedCluster(BitfrontError):
    """Ray does not start on this machine."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"Ray does not start on this machine ({self.reason}): give the same command again "
            "when the machine is less busy, or name a running cluster with --address"
        )


class NoWorkers(BitfrontError):
    """Trial workers end as soon as they start: no trial can run."""

    def __init__(self, study: str, reason: str) -> None:
        super().__init__(study, reason)
        self.study = study
        self.reason = reason

    def __str__(self) -> str:
        headline = self.reason.strip().partition("\n")[0]
        return (
            f"the workers of study {self.study!r} end as soon as they start ({headline}): "
            "see the logs of Ray on their node"
        )


class FailedTask(BitfrontError):
    """A task on a worker raised what none of ours is; its traceback goes to the study's log."""

    def __init__(self, headline: str, remote_traceback: str) -> None:
        super().__init__(headline, remote_traceback)
        self.headline = headline
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        return (
            f"a worker failed with {self.headline}; 'bitfront logs' of the study has the traceback"
        )


class FailedDriver(BitfrontError):
    """A driver that was sent to a cluster ended before it held its study; it says why."""


class UnusableSpool(BitfrontError):
    """The spool's folder cannot be read or written."""

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder = folder
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the spool {self.folder} cannot be used ({self.reason}): make it reachable and "
            "writable; BITFRONT_SPOOL names its place"
        )


class UnknownStudy(BitfrontError):
    """No study of that name is in the database."""

    def __init__(self, study: str, known: tuple[str, ...] = ()) -> None:
        super().__init__(study, known)
        self.study = study
        self.known = known

    def __str__(self) -> str:
        if not self.known:
            return f"there is no study {self.study!r}: the database holds no studies yet"
        near = get_close_matches(self.study, self.known, n=1)
        if near:
            return f"there is no study {self.study!r}: did you mean {near[0]!r}?"
        shown = ", ".join(self.known[:_MOST_KNOWN])
        more = len(self.known) - _MOST_KNOWN
        rest = f" and {more} more" if more > 0 else ""
        return f"there is no study {self.study!r}; the database holds {shown}{rest}"


class DuplicateStudy(BitfrontError):
    """A study of that name exists already."""

    def __init__(self, study: str) -> None:
        super().__init__(study)
        self.study = study

    def __str__(self) -> str:
        return (
            f"a study named {self.study!r} exists already: continue it with "
            f"'bitfront resume {self.study}', or choose another name with --study"
        )


class ChangedJob(BitfrontError):
    """A resumed study has another spec, model or data than the one it was started with."""

    def __init__(self, study: str, differences: tuple[str, ...]) -> None:
        super().__init__(study, differences)
        self.study = study
        self.differences = differences

    def __str__(self) -> str:
        return (
            f"study {self.study!r} was started with something else "
            f"({'; '.join(self.differences)}): submit it under another name, "
            "or accept the change with --accept-changes"
        )


class LeaseHeld(BitfrontError):
    """Another driver runs the study and its heartbeat is fresh."""

    def __init__(self, study: str, owner: str, age_s: float) -> None:
        super().__init__(study, owner, age_s)
        self.study = study
        self.owner = owner
        self.age_s = age_s

    def __str__(self) -> str:
        return (
            f"study {self.study!r} is being run by {self.owner} "
            f"(last heartbeat {self.age_s:.0f} s ago): wait for it, or stop it first"
        )


class LeaseLost(BitfrontError):
    """Another driver took the study over: this one must not write any more."""

    def __init__(self, study: str, epoch: int) -> None:
        super().__init__(study, epoch)
        self.study = study
        self.epoch = epoch

    def __str__(self) -> str:
        return f"another driver took over study {self.study!r} (our epoch was {self.epoch})"


class NothingFits(BitfrontError):
    """No trial holds the limits that were asked for; the sentence says what comes nearest."""


class FailedBuild(BitfrontError):
    """An artefact could not be written, or is not what was measured."""


class FailedTuning(BitfrontError):
    """No sample of a tuning was trained to its end."""

    def __init__(self, study: str, reason: str) -> None:
        super().__init__(study, reason)
        self.study = study
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"no recovery for study {self.study!r} was trained to its end, "
            f"the last one ended with: {self.reason}"
        )


class TooManyFailures(BitfrontError):
    """More than half of the trials failed, so the study stops."""

    def __init__(self, study: str, failed: int, finished: int, cause: str) -> None:
        super().__init__(study, failed, finished, cause)
        self.study = study
        self.failed = failed
        self.finished = finished
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"study {self.study!r} stopped: {self.failed} of {self.finished} trials failed, "
            f"the last one with: {self.cause}"
        )


class Interrupted(BitfrontError):
    """The driver was told to end; what is done is stored, and the study can be resumed."""

    def __str__(self) -> str:
        return "the study was told to end; it can be resumed"


def traceback_text(error: Exception) -> str:
    """Where an error was raised, on whichever machine."""
    remote = error.remote_traceback if isinstance(error, BitfrontError) else None
    return remote or "".join(traceback.format_exception(error))
