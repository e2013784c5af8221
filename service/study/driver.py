"""Drives a study: holds its lease, hears signals and requests, and leaves it in a state."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from bitfront.errors import BitfrontError, traceback_text
from bitfront.job.allowed_roots import check_allowed_roots
from bitfront.passwords import masked
from bitfront.spec import JobSpec
from bitfront.trial import StudyState
from service.study.heartbeat import held, signals
from service.study.pipeline import Run
from service.study.spec_diff import accept_spec
from service.study.spools import spool_root, study_spool
from service.study.submission import driven_line
from service.study.tracking import Tracking
from service.views.progress import Reporter
from storage.records import Lease
from storage.store import Store, open_store
from workers.cluster.connection import connected
from workers.cluster.ray_pool import RayPool
from workers.observability.logs import bound
from workers.observability.metrics import StudyMetrics


def run_study(
    spec: JobSpec,
    url: str,
    *,
    reporter: Reporter,
    resume: bool = False,
    accept_changes: bool = False,
    address: str | None = None,
    patience_s: float = 30.0,
) -> StudyState:
    """Runs a study to its end, or goes on with one.

    Args:
        spec: The job.
        url: The database.
        reporter: Hears of the progress.
        resume: Whether the study exists already and is to be continued.
        accept_changes: Whether another model or other data than before are welcome.
        address: A Ray cluster; None runs on this machine.
        patience_s: How long a database that is away is waited for.

    Returns:
        The state in which the study ends.

    Raises:
        BitfrontError: The study cannot be run; what was measured is kept.
    """
    _refuse_early(spec, url)
    with open_store(url, patience_s=patience_s) as store:
        if not resume:
            store.replace_untried(spec.study)
        with (
            Tracking(store, spec.study, spec.tracking.mlflow, reporter) as tracking,
            _begun(
                store, spec, url, reporter, address, is_known=resume, accept_changes=accept_changes
            ) as run,
        ):
            tracking.start()
            run.drive(accept_changes=accept_changes)
        return store.study(spec.study).state


def profile_model(spec: JobSpec, url: str, reporter: Reporter, address: str | None = None) -> None:
    """Runs the stages before the trials only; `bitfront resume` runs the rest.

    A study of that name is continued if it is the same job.
    """
    _refuse_early(spec, url)
    with open_store(url) as store:
        store.replace_untried(spec.study)
        known = any(summary.name == spec.study for summary in store.studies())
        with _begun(store, spec, url, reporter, address, is_known=known) as run:
            run.profile()


def _refuse_early(spec: JobSpec, url: str) -> None:
    """Raises what can be known before there is a study."""
    check_allowed_roots(spec)
    spool_root(url)


@contextmanager
def _begun(
    store: Store,
    spec: JobSpec,
    url: str,
    reporter: Reporter,
    address: str | None,
    *,
    is_known: bool,
    accept_changes: bool = False,
) -> Iterator[Run]:
    """Drives a study that is made now, or one that is known and must be the same job."""
    if not is_known:
        store.create_study(spec, {})
    with bound(study=spec.study), _driving(store, spec, url, reporter, address) as run:
        if is_known:
            accept_spec(store, run.lease, spec, accept_changes=accept_changes)
        yield run


@contextmanager
def _driving(
    store: Store, spec: JobSpec, url: str, reporter: Reporter, address: str | None
) -> Iterator[Run]:
    """Holds the study's lease and a connection to Ray; in the end, leaves the study's state."""
    metrics = StudyMetrics(spec.study)
    store.on_wait(metrics.database)
    run: Run | None = None

    def release(lease: Lease, error: BaseException | None) -> None:
        match error:
            case None:
                assert run is not None
                store.release(lease, run.state, run.message)
            case SystemExit():
                # Ray's own handler of SIGTERM, which holds while it connects.
                store.release(lease, StudyState.CANCELLED, "ended while connecting to Ray")
            case Exception():
                store.cancel_running(lease)
                trace = masked(traceback_text(error))
                store.release(lease, StudyState.FAILED, _one_line(error), trace)
            case _:
                pass  # such as a second Ctrl-C: the lease ends by itself

    with (
        held(store, spec.study, release, metrics.heartbeat) as (lease, stop_signals),
        closing(study_spool(url, store.study(spec.study))) as spool,
    ):
        reporter.note(f"{driven_line(spec.study)}{lease.owner}, in {store}")
        # Ray takes the signals over when it connects: ours are set once more after it.
        with connected(spec.search.workers, address), signals(stop_signals), metrics:
            name = None if address is None else f"{spec.study} {lease.owner}"
            pool = RayPool(spec, stop_signals.is_over, sharing_as=name)
            run = Run(spec, store, lease, stop_signals, reporter, spool, pool, metrics)
            yield run
            pool.leave()


def _one_line(error: Exception) -> str:
    """What went wrong; errors that are none of ours are named with their type."""
    if isinstance(error, BitfrontError):
        return masked(str(error))
    return masked(f"{type(error).__name__}: {error}".partition("\n")[0])
