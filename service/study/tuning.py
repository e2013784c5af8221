"""The way of a tuning: look at the plan, train samples of its recovery, finish the best one."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from itertools import product

from bitfront.errors import FailedTuning, SpecError
from bitfront.identity.keys import tuning_key
from bitfront.job.allowed_roots import check_allowed_roots
from bitfront.plan import ClassPosition, Plan, Recovery
from bitfront.spec import JobSpec, RecoverySpace
from bitfront.trial import TrialState
from bitfront.tuning import TuningSample, best_sample
from bitfront.units import size_text
from service.study.heartbeat import StopSignals, held, signals
from service.study.spools import spool_root, study_spool
from service.study.stored_model import check_same_model, naming_study
from service.views.progress import Reporter
from storage.records import Lease, StudyRecord
from storage.store import Store, open_store
from workers.cluster.connection import connected
from workers.cluster.ray_tuning import RayTuning
from workers.observability.logs import bound
from workers.scheduling.sample_scheduler import Experiment, SampleScheduler
from workers.scheduling.spool import Spool
from workers.scheduling.tuning_pool import RecoveryShape, TunedRecovery, TuningInfo, TuningPool

_SEARCHED: dict[str, tuple[object, ...]] = {
    "context_length": (0, 4, 8, 16),
    "class_position": tuple(ClassPosition),
    "class_specific": (False, True),
    "reduction": (0, 1, 2, 4, 8),
    "adapter_bits": (4, 8),
    "blend": (0.1, 0.2, 0.35, 0.5, 0.7),
    "distillation": (0.0, 1.0, 2.0, 4.0, 8.0),
    "learning_rate_multiplier": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
}
"""What each setting is chosen from, where a person does not name it; in rising order."""

_OF_CLASSES = ("class_position", "class_specific")
REDUCTION_FACTOR = 3


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person wants tuned.

    Attributes:
        plan: What is recovered.
        bounds: Learned bounds of the vision tower's inputs, as JSON content.
        first: The recovery that is trained without a search; its steps are the most of a sample.
        fixed: Names of its settings that were given, and are not searched.
        samples: How many recoveries are tried.
        max_nbytes: What plan and recovery may take together.
    """

    plan: Plan
    bounds: Mapping[str, object]
    first: Recovery
    fixed: frozenset[str]
    samples: int
    max_nbytes: int | None

    @property
    def space(self) -> RecoverySpace:
        """All that may be chosen, for a model that tells classes apart."""
        choices: dict[str, tuple[object, ...]] = {
            field.name: (getattr(self.first, field.name),) for field in fields(self.first)
        }
        for name, searched in {**_SEARCHED, "steps": self._steps}.items():
            if name not in self.fixed:
                own = choices[name]
                choices[name] = searched if own[0] in searched else (*searched, *own)
        return RecoverySpace.model_validate(choices)

    @property
    def _steps(self) -> tuple[int, ...]:
        longest = self.first.steps
        return tuple(sorted({max(1, longest // 4), max(1, longest // 2), longest}))


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a tuning came to.

    Attributes:
        samples: By number.
        best: The chosen one's number.
        recovery: It, finished.
    """

    samples: Mapping[int, TuningSample]
    best: int
    recovery: TunedRecovery


def tune_study(
    name: str,
    wish: Wish,
    url: str,
    *,
    reporter: Reporter,
    workers: int | None = None,
    address: str | None = None,
    patience_s: float = 30.0,
) -> Tuned:
    """Tunes a recovery, or resumes doing so; everything that is found stays in the database.

    Args:
        name: The study.
        wish: What is tuned.
        url: The database.
        reporter: Hears of the progress.
        workers: Samples that are trained side by side; None for what the job says.
        address: A Ray cluster; None runs on this machine.
        patience_s: How long a database that is away is waited for.

    Raises:
        Interrupted: It was told to end; the same wish resumes it.
        BitfrontError: It cannot be tuned; what was found is kept.
    """
    with open_store(url, patience_s=patience_s) as store:
        study = store.study(name)
        spec = study.spec
        if workers is not None:
            search = spec.search.model_copy(update={"workers": workers})
            spec = spec.model_copy(update={"search": search})
        check_allowed_roots(spec)
        spool_root(url)

        def release(lease: Lease, _: BaseException | None) -> None:
            """The study is as far as it was."""
            store.release(lease, study.state, study.message)

        with (
            bound(study=name),
            held(store, name, release) as (lease, stop_signals),
            connected(spec.search.workers, address),
            signals(stop_signals),  # Ray takes them over when it connects
            closing(study_spool(url, study)) as spool,
        ):
            sharing_as = None if address is None else f"{name} {lease.owner}"
            pool = RayTuning(spec, stop_signals.is_over, sharing_as=sharing_as)
            try:
                tuning = _Tuning(study, spec, wish, store, lease, stop_signals, reporter)
                return tuning.run(pool, spool)
            finally:
                pool.leave()


class _Tuning:
    """One driver's work on one tuning."""

    def __init__(
        self,
        study: StudyRecord,
        spec: JobSpec,
        wish: Wish,
        store: Store,
        lease: Lease,
        stop_signals: StopSignals,
        reporter: Reporter,
    ) -> None:
        self._study = study
        self._spec = spec
        self._wish = wish
        self._store = store
        self._lease = lease
        self._stop_signals = stop_signals
        self._reporter = reporter
        self._done = 0

    def run(self, pool: TuningPool, spool: Spool) -> Tuned:
        """Goes through all stages."""
        self._reporter.stage("load the model", total=None)
        if self._wish.bounds:
            pool.use_bounds(self._wish.bounds)
        info = self._look_at(pool)
        for note in pool.notes:
            self._reporter.warn(note)
        experiment = self._experiment(info)
        key = tuning_key(info.identity, experiment.to_dict())
        record = self._store.begin_tuning(self._lease, key, experiment.to_dict())
        own = Spool(spool.folder / f"tuning-{key[:16]}")
        with closing(own):
            own.tidy(self._lease.epoch)
            self._reporter.stage("samples", total=self._wish.samples)
            scheduler = SampleScheduler(
                self._store,
                self._lease,
                record.id,
                experiment,
                self._wish.samples,
                lambda recovery: info.nbytes.get(RecoveryShape.of(recovery)),
                sampler=self._spec.search.sampler,
                is_winding_down=self._stop_signals.is_winding_down,
                on_change=self._show,
            )
            self._show(scheduler.samples)
            pool.run_samples(scheduler, own, self._lease.epoch, self._stop_signals.is_over)
            return self._finish(pool, scheduler, own)

    def _look_at(self, pool: TuningPool) -> TuningInfo:
        with naming_study(self._study.name):
            info = pool.look_at(self._wish.plan, _shapes(self._wish.space))
        check_same_model(self._study, info.model, info.weights)
        return info

    def _experiment(self, info: TuningInfo) -> Experiment:
        """What is searched, as far as the model can have it and the limit allows for it."""
        wish, space = self._wish, self._wish.space
        lengths = {shape.context_length for shape in info.nbytes} | {0}
        limits: dict[str, object] = {
            "context_length": tuple(n for n in space.context_length if n in lengths)
        }
        if not info.knows_classes:
            limits |= {name: (getattr(wish.first, name),) for name in _OF_CLASSES}
        smallest = min(info.nbytes.values(), default=None)
        if smallest is None:
            raise SpecError("a recovery needs a prompt (context_length) or an adapter (reduction)")
        if wish.max_nbytes is not None and smallest > wish.max_nbytes:
            raise SpecError(
                f"with the smallest recovery the plan takes {size_text(smallest)} "
                f"({smallest:,} bytes), above --max-nbytes {wish.max_nbytes:,}: give a larger "
                "--max-nbytes, or name a smaller plan with --trial"
            )
        longest = wish.first.steps
        return Experiment(
            plan=wish.plan,
            space=space.model_copy(update=limits),
            first=wish.first,
            max_nbytes=wish.max_nbytes,
            seed=self._spec.search.seed,
            reduction_factor=REDUCTION_FACTOR,
            grace_steps=-(-longest // REDUCTION_FACTOR**2),
        )

    def _show(self, samples: Mapping[int, TuningSample]) -> None:
        done = sum(s.state is not TrialState.RUNNING for s in samples.values())
        self._reporter.advance(done - self._done)
        self._done = done

    def _finish(self, pool: TuningPool, scheduler: SampleScheduler, spool: Spool) -> Tuned:
        """Finishes the best sample, and measures it once on the test split."""
        best = best_sample(scheduler.samples)
        if best is None:
            messages = [s.message for s in scheduler.samples.values() if s.message is not None]
            raise FailedTuning(self._study.name, messages[-1] if messages else "there was no room")
        self._reporter.stage("test split", total=None)
        recovery = pool.finish(best.on(self._wish.plan), best.number, spool)
        test_error = recovery.test_error["tuned"]
        self._store.save_sample_test_error(
            self._lease, scheduler.tuning_id, best.number, test_error
        )
        samples = {
            **scheduler.samples,
            best.number: replace(best, test_error=test_error),
        }
        return Tuned(samples, best.number, recovery)


def _shapes(space: RecoverySpace) -> Sequence[RecoveryShape]:
    """Every form that a recovery of the space may have."""
    names = [field.name for field in fields(RecoveryShape)]
    chosen = product(*(getattr(space, name) for name in names))
    settings = [dict(zip(names, values, strict=True)) for values in chosen]
    recoveries = [
        Recovery(**one).canonical for one in settings if one["context_length"] or one["reduction"]
    ]
    return tuple(dict.fromkeys(RecoveryShape.of(recovery) for recovery in recoveries))
