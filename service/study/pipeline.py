"""The way of a job: profile, partition, program, prune, trials, and the front on the test split."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence

from bitfront.errors import ChangedJob, Interrupted
from bitfront.identity.keys import bounds_key, evaluation_key
from bitfront.objective import OBJECTIVES, Budget
from bitfront.plan import Configuration
from bitfront.profile import StageArtefactKind
from bitfront.samples import SampleResults
from bitfront.spec import JobSpec
from bitfront.trial import Origin, Proposal, StudyState, Trial, TrialState
from search.choice import estimated_front
from search.estimate import estimate_errors
from search.keep import check_keep
from search.space import SearchSpace
from search.ties import ties_of
from service.study.bounds import stored_bounds
from service.study.heartbeat import StopSignals
from service.study.profiling import measure_profile
from service.study.proxy_search import ProxyCorrelation, ProxySearch
from service.study.spec_diff import result_differences
from service.study.warm_start import warm_seeds
from service.views.progress import Reporter
from storage.records import Lease
from storage.store import Store
from workers.scheduling.metrics import Metrics
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.spool import Spool
from workers.scheduling.study_pool import StudyPool
from workers.scheduling.trial_scheduler import Progress, TrialScheduler

logger = logging.getLogger(__name__)

_PAUSE_POLL_S = 0.5


class Run:
    """One driver's work on one study."""

    def __init__(
        self,
        spec: JobSpec,
        store: Store,
        lease: Lease,
        stop_signals: StopSignals,
        reporter: Reporter,
        spool: Spool,
        pool: StudyPool,
        metrics: Metrics,
    ) -> None:
        self._spec = spec
        self._store = store
        self.lease = lease
        self._stop_signals = stop_signals
        self._reporter = reporter
        self._spool = spool
        self._pool = pool
        self._metrics = metrics
        self._stop_reason = ""
        self.state = StudyState.FAILED
        self.message = ""

    def drive(self, *, accept_changes: bool) -> None:
        """Goes through all stages."""
        try:
            self._spool.tidy(self.lease.epoch)
            self._store.set_state(self.lease, StudyState.PROFILING)
            model_info = self._inspect(accept_changes=accept_changes)
            proxy_search = self._profile(model_info)
            self._store.set_state(self.lease, StudyState.RUNNING)
            self._run_trials(model_info, proxy_search)
            self._raise_if_over()
            self._test_front()
        except Interrupted:
            self._end_early()
        else:
            self.state, self.message = StudyState.COMPLETE, self._stop_reason

    def profile(self) -> None:
        """Goes through the stages before the trials."""
        try:
            self._profile(self._inspect(accept_changes=False))
        except Interrupted:
            self._end_early()
        else:
            self.state = StudyState.STOPPED
            self.message = "profiled; 'bitfront resume' runs the trials"

    def _end_early(self) -> None:
        self._store.cancel_running(self.lease)
        reason = f"{self._stop_signals.reason}; 'bitfront resume' continues it"
        if self._stop_signals.cancel.is_set():
            self.state, self.message = StudyState.CANCELLED, f"cancelled {reason}"
        else:
            self.state, self.message = StudyState.STOPPED, f"stopped {reason}"

    def _raise_if_over(self) -> None:
        if self._stop_signals.is_over():
            raise Interrupted

    def _inspect(self, *, accept_changes: bool) -> ModelInfo:
        """Loads the model on a worker, and makes sure that it is still the same."""
        for note in self._pool.notes:
            self._reporter.warn(note)
        self._reporter.stage("start a worker", total=None)
        model_info = self._load()
        ties = ties_of(self._spec.target, model_info.layers)
        check_keep(model_info.layers, self._spec.space, ties)
        for warning in model_info.warnings:
            self._reporter.warn(warning)
        self._pool.place(model_info)
        for note in self._pool.notes:
            self._reporter.warn(note)
        identities = model_info.identities.to_provenance()
        results = {**identities, **model_info.model_parts}
        differences = self._store.set_provenance(
            self.lease,
            {**results, **model_info.provenance},
            results=tuple(results),
            accept=accept_changes,
        )
        changed = result_differences(differences, results)
        if changed and not accept_changes:
            raise ChangedJob(self.lease.name, changed)
        if self._spec.profile.vision is None:
            return model_info
        self._pool.use_bounds(self._bounds(model_info))
        return self._load()

    def _load(self) -> ModelInfo:
        return self._pool.inspect(lambda stage: self._reporter.stage(stage, total=None))

    def _bounds(self, model_info: ModelInfo) -> dict[str, object]:
        """The learned bounds of the vision tower's inputs: known already, or learned now."""
        known = stored_bounds(self._store, self._spec, model_info.identities)
        if known is not None:
            return known
        key = bounds_key(self._spec, model_info.identities)
        self._reporter.stage("optimise the vision tower", total=None)
        started_s = time.perf_counter()
        bounds = self._pool.optimise_vision(self._spool.folder / f"vision-{key[:16]}")
        seconds = time.perf_counter() - started_s
        self._store.put_stage_artefact(self.lease, key, StageArtefactKind.BOUNDS, bounds, seconds)
        return bounds

    def _profile(self, model_info: ModelInfo) -> ProxySearch:
        """Measures the cells, solves the program, and stores the pruned space."""
        profile = measure_profile(
            self._spec,
            self._store,
            self.lease,
            self._pool,
            model_info,
            self._reporter,
            self._metrics,
        )
        proxy_search = ProxySearch(self._spec, profile)
        self._store.save_options(self.lease, proxy_search.option_records())
        measured = sum(not cell.is_estimate for cell in profile.cells)
        pairs = f" and {len(profile.pairs):,} pairs of them" if profile.pairs else ""
        self._reporter.note(
            f"{len(profile.layers)} layers in {len(profile.blocks)} blocks, {measured:,} of their "
            f"options{pairs} measured; {len(proxy_search.solutions)} plans are tried first"
        )
        for note in proxy_search.notes:
            self._reporter.note(note)
        return proxy_search

    def _run_trials(self, model_info: ModelInfo, proxy_search: ProxySearch) -> None:
        full = model_info.full.values
        reference = {o.value: full[o.value] for o in self._spec.objectives}
        reference["error"] = 1.0
        budget = Budget.of([*reference], self._spec.constraints.limits, full)
        assert budget is not None
        self._store.set_reference(self.lease, reference)
        self._reporter.stage("trials", total=self._spec.stop.trials)

        def review(trials: Sequence[Trial]) -> SearchSpace | None:
            return self._review(proxy_search, trials)

        def key(configuration: Configuration, halvings: int) -> str:
            spec = self._spec.with_halved_batch(halvings)
            return evaluation_key(spec, model_info.identities, model_info.device, configuration)

        scheduler = TrialScheduler(
            self._store,
            self.lease,
            self._spec,
            proxy_search.space,
            [*warm_seeds(self._store, self._spec, model_info), *proxy_search.seeds()],
            self._spool,
            key,
            reference=list(reference.values()),
            budget=budget,
            is_winding_down=self._stop_signals.is_winding_down,
            review=review,
            further=self._further(proxy_search),
            on_progress=self._show,
            metrics=self._metrics,
        )
        while True:
            self._pool.run_trials(scheduler, self._spool, self._stop_signals.cancel)
            if not self._stop_signals.pause.is_set():
                break
            self._wait_out_pause()
        self._stop_reason = scheduler.stop_reason
        found = self._correlation(proxy_search, self._store.trials(self.lease.name))
        self._store.set_correlation(self.lease, None if found is None else found.value)

    def _further(self, proxy_search: ProxySearch) -> dict[Origin, Iterator[Proposal]]:
        """What program and swaps propose after the seeds, by what the trials say."""

        def trials() -> Sequence[Trial]:
            return self._store.trials(self.lease.name)

        def samples() -> Mapping[int, SampleResults]:
            known = self._store.measured(self.lease.name)
            measured = () if known is None else known.trials
            return {one.number: one.samples for one in measured if one.samples is not None}

        found = {Origin.PROGRAM: proxy_search.further_seeds(trials)}
        if self._spec.search.refine:
            found[Origin.REFINEMENT] = proxy_search.refinements(trials, samples)
        return found

    def _correlation(
        self, proxy_search: ProxySearch, trials: Sequence[Trial]
    ) -> ProxyCorrelation | None:
        """How well the proxy ranks the trials, by their estimated errors."""
        known = self._store.measured(self.lease.name)
        estimates = {} if known is None else estimate_errors(known.trials)
        by_number = {number: own.error for (_, number), own in estimates.items()}
        return proxy_search.correlation(trials, by_number)

    def _wait_out_pause(self) -> None:
        """Holds the study without a worker until it is to go on or to end."""
        self._store.set_state(self.lease, StudyState.PAUSED, "'bitfront resume' continues it")
        self._reporter.note("paused; 'bitfront resume' continues it")
        while self._stop_signals.pause.is_set() and not self._stop_signals.is_over():
            time.sleep(_PAUSE_POLL_S)
        self._raise_if_over()
        self._store.set_state(self.lease, StudyState.RUNNING)

    def _review(self, proxy_search: ProxySearch, trials: Sequence[Trial]) -> SearchSpace | None:
        """Says how far the proxy can be trusted, and widens the space where it surely cannot."""
        found = self._correlation(proxy_search, trials)
        self._store.set_correlation(self.lease, None if found is None else found.value)
        self._tell_correction(proxy_search, trials)
        if found is None:
            return None
        text = (
            f"rank correlation of proxy and estimated error: {found.value:.2f} "
            f"(95 % interval {found.low:.2f} to {found.high:.2f})"
        )
        if found.high >= self._spec.search.min_correlation:
            self._reporter.note(text)
            return None
        if not self._spec.search.prune:
            self._reporter.warn(text)
            return None
        space = proxy_search.widened()
        self._store.save_options(self.lease, proxy_search.option_records())
        self._reporter.warn(
            f"{text}, below {self._spec.search.min_correlation}: "
            f"the space is widened to 10^{space.log10_size:.1f} plans"
        )
        return space

    def _tell_correction(self, proxy_search: ProxySearch, trials: Sequence[Trial]) -> None:
        """Says how much better whole plans make the proxy, each plan judged by the others."""
        correction = proxy_search.correction(trials)
        if correction is None or not correction.is_better:
            return
        before, after = correction.correlations
        self._reporter.note(
            f"cells are corrected by {len(correction.measured)} plans: rank correlation with a "
            f"plan's divergence {before:.3f} before, {after:.3f} after"
        )

    def _show(self, progress: Progress) -> None:
        self._metrics.progress(
            progress.counts, progress.front, progress.hypervolume, progress.best_error
        )
        self._reporter.trial(
            done=progress.done,
            total=progress.total,
            best_error=progress.best_error,
            hypervolume=progress.hypervolume,
        )

    def _test_front(self) -> None:
        """Evaluates the finished front once on the test split, and the baselines beside it."""
        numbers = {row.number for row in self._store.front(self.lease.name)}
        numbers |= self._answers()
        chosen = [
            trial
            for trial in self._store.trials(self.lease.name)
            if trial.state is TrialState.COMPLETE
            and not trial.test_values
            and (trial.number in numbers or trial.origin is Origin.BASELINE)
        ]
        self._reporter.stage("test split", total=len(chosen))
        for position, evaluation in self._pool.test([trial.configuration for trial in chosen]):
            number = chosen[position].number
            own = {f.name for f in OBJECTIVES if f.per_split and not f.on_demand}
            known = {name: value for name, value in evaluation.metrics.items() if name in own}
            samples = {} if evaluation.samples is None else {number: evaluation.samples}
            values = {number: {**known, **evaluation.values}}
            self._store.save_test_values(self.lease, values, samples)
            self._reporter.advance()

    def _answers(self) -> set[int]:
        """The trials that are best by the estimated error within some limit on the costs."""
        known = self._store.measured(self.lease.name)
        if known is None:
            return set()
        return {trial.number for trial in estimated_front(known.trials, known.objectives)}
